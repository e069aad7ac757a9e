"""Label Studio's masks by task and label."""

import json

import numpy as np
import pytest
from dataset_files import problem_kinds, write
from mask_files import save_image
from PIL import Image

from mobilevit_hf.data.checks import check_dataset
from mobilevit_hf.data.reading import load_dataset


def save_layer(root, task, annotation, label, rows, number=0):
    """Save a binary mask whose pixels are 255 in some rows."""
    mask = np.zeros((16, 24), np.uint8)
    mask[rows] = 255
    (root / "masks").mkdir(exist_ok=True, parents=True)
    Image.fromarray(mask).save(root / f"masks/task-{task}-annotation-{annotation}-by-1-tag-{label}-{number}.png")


@pytest.fixture
def export(tmp_path):
    """Two tasks with the labels car and traffic-sign, images, and the JSON export of the project."""
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / "images" / name)
    save_layer(tmp_path, 7, 3, "car", slice(0, 8))
    save_layer(tmp_path, 7, 3, "traffic-sign", slice(6, 10), number=1)
    save_layer(tmp_path, 8, 4, "car", slice(0, 16))
    save_layer(tmp_path, 8, 5, "car", slice(2, 4))  # a later annotation
    tasks = [{"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-b.jpg"}}, {"id": 8, "image": "a.jpg"}]
    write(tmp_path / "project-1.json", tasks)
    return tmp_path


def test_masks_of_a_task_are_combined(export):
    dataset = load_dataset(export, validation_fraction=0)
    assert (dataset.task, dataset.data_format) == ("image-segmentation", "label_studio")
    assert dataset.classes == ("background", "car", "traffic-sign")
    first, second = dataset.splits["train"]
    assert (first.name, second.name) == ("images/b.jpg", "images/a.jpg")
    expected = np.zeros((16, 24), np.uint8)
    expected[0:8], expected[6:10] = 1, 2
    np.testing.assert_array_equal(first.mask.read(), expected)
    assert np.flatnonzero(second.mask.read().any(axis=1)).tolist() == [2, 3]
    assert first.mask.labels() == [1, 2]
    assert "several annotations" in " ".join(dataset.notes)


def test_images_named_after_their_task(tmp_path):
    save_image(tmp_path / "images" / "7.jpg")
    save_image(tmp_path / "images" / "task-8.jpg")
    for task in (7, 8):
        save_layer(tmp_path, task, 1, "car", slice(0, task))
    names = [sample.name for sample in load_dataset(tmp_path, validation_fraction=0).splits["train"]]
    assert names == ["images/7.jpg", "images/task-8.jpg"]


def test_tasks_without_an_image_are_problems(export):
    save_layer(export, 9, 6, "car", slice(0, 2))
    dataset = load_dataset(export, validation_fraction=0)
    assert problem_kinds(dataset) == [("masks/task-9-annotation-6-by-1-tag-car-0.png", "missing image")]


def encode_brush(mask):
    """Encode a mask (H, W) as Label Studio's brush does: RGBA pixels, in runs and, every third, as a literal block."""
    words = np.repeat(np.where(mask, 255, 0), 4).tolist()
    bits = f"{len(words):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    start = 0
    while start < len(words):
        run = next((i for i in range(start, len(words)) if words[i] != words[start]), len(words)) - start
        if start % 3 == 0 and run <= 8:
            bits += f"000{run - 1:03b}" + f"{words[start]:08b}" * run
        else:
            bits += f"111{run - 1:016b}{words[start]:08b}"
        start += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def make_region(label, shape, kind="brushlabels", **fields):
    """Return a region of the JSON export, with the RLE of a mask or a polygon in percent of the image."""
    content = {"format": "rle", "rle": encode_brush(shape)} if kind == "brushlabels" else {"points": shape}
    size = {"original_width": 24, "original_height": 16}
    return {"id": label, "type": kind, "value": content | {kind: [label]}, **size, **fields}


@pytest.fixture
def strokes():
    masks = np.zeros((2, 16, 24), bool)
    masks[0, 2:9, 3:20] = True
    masks[1] = np.random.default_rng(0).random((16, 24)) < 0.3
    return masks


@pytest.fixture
def brush_export(tmp_path, strokes):
    """A JSON export with brushes, a polygon, a task without regions, a canceled one and one without annotations."""
    regions = [make_region("car", strokes[0]), make_region("road", strokes[1])]
    polygon = make_region("road", [[0, 0], [50, 0], [50, 50], [0, 50]], "polygonlabels")
    results = [[{"result": regions}], [{"result": [polygon]}], [{"result": []}], [{"was_cancelled": True}], []]
    for name in "abcde":
        save_image(tmp_path / "images" / f"{name}.jpg")
    tasks = [
        {"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.jpg"}, "annotations": result}
        for number, (name, result) in enumerate(zip("abcde", results, strict=True), 1)
    ]
    write(tmp_path / "project.json", tasks)
    return tmp_path


def test_brushes_and_polygons_of_json(brush_export, strokes):
    dataset = load_dataset(brush_export, validation_fraction=0)
    assert (dataset.task, dataset.data_format) == ("image-segmentation", "label_studio")
    assert dataset.classes == ("background", "car", "road")
    samples = dataset.splits["train"]
    assert [sample.name for sample in samples] == ["images/a.jpg", "images/b.jpg", "images/c.jpg"]
    first, second, third = (sample.mask.read(size=(16, 24)) for sample in samples)
    np.testing.assert_array_equal(first, np.where(strokes[1], 2, strokes[0]))
    expected = np.zeros((16, 24))
    expected[:8, :12] = 2
    np.testing.assert_array_equal(second, expected)
    assert not third.any()
    assert "Skipped 2 tasks without an annotation." in dataset.notes


def test_brushes_of_minimal_json(tmp_path, strokes):
    save_image(tmp_path / "a.jpg")
    region = make_region("car", strokes[1])
    value = region["value"] | {"original_width": 24, "original_height": 16}
    write(tmp_path / "min.json", [{"id": 4, "image": "/data/upload/1/a.jpg", "tag": [value], "annotator": 1}])
    (sample,) = load_dataset(tmp_path, validation_fraction=0).splits["train"]
    np.testing.assert_array_equal(sample.mask.read(), strokes[1])


def test_regions_that_are_not_painted_are_noted(brush_export):
    path = brush_export / "project.json"
    tasks = json.loads(path.read_text())
    result = tasks[0]["annotations"][0]["result"]
    result.append({"id": "k", "type": "keypointlabels", "value": {"x": 1, "y": 2, "keypointlabels": ["car"]}})
    result.append({"id": "car", "type": "brush", "value": {"format": "rle", "rle": []}})  # the shape of a labeled one
    path.write_text(json.dumps(tasks))
    dataset = load_dataset(brush_export, validation_fraction=0)
    assert "Skipped regions that are neither a labeled brush nor a labeled polygon: 1 keypointlabels." in dataset.notes
    assert not dataset.problems


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"value": {"rle": [1, 999], "brushlabels": ["car"]}}, "unreadable annotation"),
        ({"original_width": None}, "unreadable annotation"),
        ({"value": {"rle": [0, 1], "brushlabels": ["car"]}}, "unreadable mask"),
    ],
)
def test_malformed_brushes_are_problems(brush_export, change, kind):
    path = brush_export / "project.json"
    tasks = json.loads(path.read_text())
    tasks[0]["annotations"][0]["result"][0].update(change)
    path.write_text(json.dumps(tasks))
    problems = check_dataset(load_dataset(brush_export, validation_fraction=0)).problems
    assert [(problem.name, problem.kind) for problem in problems if problem.is_error] == [("images/a.jpg", kind)]
