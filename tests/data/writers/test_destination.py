"""Predictions are written in every format, read back with equal boxes, and continued after any interruption."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.writers.base import PredictedImage
from mobilevit_hf.data.writers.destination import Destination, find_destination
from mobilevit_hf.io import TEMP_PREFIX

TASK = "object-detection"
CLASSES = ["zebra", 'a, "b" & <c>', "日本", "unused"]
NAMES = ["a.jpg", "sub/a.jpg", "sub/images/x y.png", "test/a.b.jpg", 'ünï, "q".jpg', "empty.png"]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """Images of different sizes with whole-numbered boxes that touch the edges; one has none."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    images = []
    for number, name in enumerate(NAMES):
        size = int(rng.integers(50, 700)), int(rng.integers(50, 700))
        pixels = rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels).save(folder / name)
        predictions = []
        for label in CLASSES[:3] * (name != "empty.png") * 3:
            xmin, ymin = int(rng.integers(0, size[0] - 1)), int(rng.integers(0, size[1] - 1))
            xmax, ymax = int(rng.integers(xmin + 1, size[0] + 1)), int(rng.integers(ymin + 1, size[1] + 1))
            box = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
            predictions.append({"label": label, "score": float(rng.random(dtype=np.float32)), "box": box})
        content = folder / name if number else (folder / name).read_bytes()
        images.append(PredictedImage(name, size, predictions, content))
    return images


def write(destination, images, classes=CLASSES, task=TASK, top_k=1):
    writer = destination.open(task, classes, top_k)
    pending = [image for image in images if not writer.is_written(image.name)]
    for image in pending:
        writer.write(image)
    writer.finish()
    return len(pending)


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_objects(image):
    """Return the sorted labels and boxes of an image."""
    edges = ("xmin", "ymin", "xmax", "ymax")
    return sorted((p["label"], *(float(p["box"][edge]) for edge in edges)) for p in image.predictions)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_datasets_are_read_back_with_equal_boxes(predicted, name, tmp_path):
    write(find_destination(tmp_path / "out", name), predicted)
    dataset = load_dataset(tmp_path / "out", validation_fraction=0)
    assert dataset.data_format == name
    assert list(dataset.splits) == ["train"]
    assert not [problem for problem in dataset.problems if problem.is_error]
    assert list(dataset.classes) == (sorted(CLASSES[:3]) if name == "voc" else CLASSES)
    samples = {sample.name.split("/", 1)[1]: sample for sample in dataset.splits["train"]}
    assert set(samples) == set(NAMES)
    for image in predicted:
        objects = samples[image.name].objects
        labels = [dataset.classes[label] for label in objects.labels]
        assert sorted(zip(labels, *objects.boxes.T.tolist(), strict=True)) == expected_objects(image)
        with Image.open(samples[image.name].image) as copy:
            assert copy.size == image.size


def test_coco_file_is_valid_for_pycocotools(predicted, tmp_path):
    path = tmp_path / "predictions.json"
    write(find_destination(path, None), predicted)
    coco = COCO(path)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == CLASSES
    entries = {entry["file_name"]: entry for entry in coco.imgs.values()}
    assert list(entries) == NAMES
    for image in predicted:
        entry = entries[image.name]
        assert (entry["width"], entry["height"]) == image.size
        annotations = coco.loadAnns(coco.getAnnIds(entry["id"]))
        assert [annotation["score"] for annotation in annotations] == [p["score"] for p in image.predictions]
        for annotation, prediction in zip(annotations, image.predictions, strict=True):
            x, y, width, height = annotation["bbox"]
            assert CLASSES[annotation["category_id"] - 1] == prediction["label"]
            assert {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height} == prediction["box"]
            assert annotation["area"] == width * height
    results = coco.loadRes([a | {"score": 1.0} for a in coco.dataset["annotations"]])
    assert len(results.anns) == sum(len(image.predictions) for image in predicted)


def test_csv_has_a_row_per_box(predicted, tmp_path):
    path = tmp_path / "predictions.csv"
    write(find_destination(path, None), predicted)
    rows = list(csv.DictReader(path.open(newline="", encoding="utf-8")))
    for image in predicted:
        own = [row for row in rows if row["image"] == image.name]
        assert {(int(row["width"]), int(row["height"])) for row in own} == {image.size}
        if not image.predictions:
            assert [row["label"] for row in own] == [""]
            continue
        for row, prediction in zip(own, image.predictions, strict=True):
            assert row["label"] == prediction["label"]
            assert float(row["score"]) == pytest.approx(prediction["score"], rel=1e-5)
            assert {edge: int(row[edge]) for edge in prediction["box"]} == prediction["box"]


def test_csv_of_a_classifier_has_a_row_per_image(tmp_path):
    labels = [{"label": label, "score": score} for label, score in (("b", 0.75), ("a", 0.2), ("c", 0.05))]
    path = tmp_path / "predictions.csv"
    write(
        find_destination(path, None), [PredictedImage("x.jpg", (5, 5), labels)], list("abc"), "image-classification", 5
    )
    assert path.read_text() == "image,label,score,label_2,score_2,label_3,score_3\nx.jpg,b,0.75,a,0.2,c,0.05\n"


def test_json_lines_have_an_object_per_image(predicted, tmp_path):
    path = tmp_path / "predictions.jsonl"
    write(find_destination(path, None), predicted)
    for line, image in zip(path.read_text().splitlines(), predicted, strict=True):
        record = json.loads(line)
        assert (record["width"], record["height"]) == image.size
        assert (record["image"], record["predictions"]) == (image.name, image.predictions)


def test_yolo_label_files_have_five_columns_within_the_image(predicted, tmp_path):
    """As ultralytics requires; it looks for the label of an image as here, too."""
    write(find_destination(tmp_path, "yolo"), predicted)
    for image in predicted:
        path = str(tmp_path / "images" / image.name)
        label = Path("/labels/".join(path.rsplit("/images/", 1))).with_suffix(".txt")
        rows = np.loadtxt(label, ndmin=2) if image.predictions else np.empty((0, 5))
        assert rows.shape == (len(image.predictions), 5)
        assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all()


# --- interruptions ---------------------------------------------------------------------------------------------------

FORMATS = [
    ("csv", "p.csv"),
    ("jsonl", "p.jsonl"),
    ("coco", "p.json"),
    ("coco", "coco"),
    ("yolo", "yolo"),
    ("voc", "voc"),
]
every_format = pytest.mark.parametrize(("name", "path"), FORMATS)


@every_format
@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_continued_output_equals_an_uninterrupted_one(predicted, name, path, count, tmp_path):
    """Without `finish`, as in a killed process."""
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    write(find_destination(tmp_path / "whole" / path, name), predicted)
    destination = find_destination(tmp_path / "parts" / path, name)
    writer = destination.open(TASK, CLASSES, 1)
    for image in predicted[:count]:
        writer.write(image)
    if destination.is_dataset:  # a killed process leaves temporary folders
        (tmp_path / "parts" / path / f"{TEMP_PREFIX}0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / path / f"{TEMP_PREFIX}0" / "a.txt").write_text("part")
    assert write(destination, predicted) == len(predicted) - count
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")
    assert write(destination, predicted) == 0  # of finished output
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


@pytest.mark.parametrize(("name", "path"), FORMATS[:3])
def test_output_that_is_cut_anywhere_is_continued(predicted, name, path, tmp_path):
    destination = find_destination(tmp_path / path, name)
    write(destination, predicted)
    expected = read_files(tmp_path)
    writer = find_destination(tmp_path / "whole", name).open(TASK, CLASSES, 1)
    file = tmp_path / path
    if name == "coco":
        file.unlink()
        file = tmp_path / f"{path}.partial"
        writer = destination.open(TASK, CLASSES, 1)
        for image in predicted:
            writer.write(image)
    content = file.read_bytes()
    rows = content.count(b"\n")
    for size in np.random.default_rng(0).integers(0, len(content), 60 if rows > 6 else 20):
        if name == "csv" and content[size - 1 : size] == b"\n":
            continue  # within an image's rows, where only a page of memory may end
        file.write_bytes(content[:size])
        write(destination, predicted)
        assert {path: data for path, data in read_files(tmp_path).items() if path in expected} == expected


def test_csv_cut_at_a_page_of_memory_between_two_rows_is_continued(predicted, tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    write(find_destination(path, None), predicted)
    content = path.read_bytes()
    size = content.index(b"\n", content.index(b"sub/a.jpg")) + 1
    monkeypatch.setattr("mmap.PAGESIZE", size)
    path.write_bytes(content[:size])
    assert write(find_destination(path, None), predicted) == len(predicted) - 1
    assert path.read_bytes() == content


def test_full_disk_leaves_whole_records(predicted, tmp_path, monkeypatch):
    """A write that fails after a part of the data is taken back."""
    path, os_write = tmp_path / "p.csv", os.write
    writer = find_destination(path, None).open(TASK, CLASSES, 1)
    writer.write(predicted[0])
    content = path.read_bytes()

    def write_some(descriptor, data):
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return os_write(descriptor, data[:-90])

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(OSError, match="No space left"):
        writer.write(predicted[1])
    assert path.read_bytes() == content


# --- invalid destinations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name", "words"),
    [
        ("p.txt", None, "expected a file that ends with"),
        ("folder", None, "without a format"),
        ("p.txt", "yolo", "expected a folder for yolo"),
    ],
)
def test_unknown_format_raises(path, name, words, tmp_path):
    with pytest.raises(ValueError, match=f"^output: .*{words}"):
        find_destination(tmp_path / path, name)


@pytest.mark.parametrize(
    ("path", "name", "expected", "is_dataset"),
    [
        ("p.txt", "csv", "p.txt", False),
        ("P.CSV", None, "P.CSV", False),
        ("p.ndjson", None, "p.ndjson", False),
        ("out", "csv", "out/predictions.csv", False),
        ("existing.dir", "jsonl", "existing.dir/predictions.jsonl", False),
        ("out", "coco", "out", True),
        ("p.json", "coco", "p.json", False),
    ],
)
def test_destinations(path, name, expected, is_dataset, tmp_path):
    (tmp_path / "existing.dir").mkdir()
    destination = find_destination(tmp_path / path, name)
    assert (destination.path, destination.is_dataset) == (tmp_path / expected, is_dataset)


@every_format
def test_existing_output_is_an_error_unless_resumed(predicted, name, path, tmp_path):
    destination = find_destination(tmp_path / path, name)
    destination.check_new()
    writer = destination.open(TASK, CLASSES, 1)
    writer.write(predicted[0])
    with pytest.raises(ValueError, match=r"exists.*--resume"):
        destination.check_new()
    write(destination, predicted)
    with pytest.raises(ValueError, match=r"exists.*--resume"):
        destination.check_new()


@every_format
def test_other_content_is_not_continued(name, path, tmp_path):
    if "." in path:
        (tmp_path / path).write_text('{"a": 1}\nb\n')
    else:
        (tmp_path / path).mkdir()
        (tmp_path / path / "notes.txt").write_text("mine")
    before = read_files(tmp_path)
    with pytest.raises(ValueError, match=r"expected|got no|can't be read"):
        find_destination(tmp_path / path, name).open(TASK, CLASSES, 1)
    assert read_files(tmp_path) == before


def test_predictions_of_other_classes_are_not_continued(predicted, tmp_path):
    write(find_destination(tmp_path / "p.json", None), predicted)
    with pytest.raises(ValueError, match="other classes"):
        find_destination(tmp_path / "p.json", None).open(TASK, ["a"], 1)


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_formats_of_boxes_are_rejected_for_a_classifier(name, tmp_path):
    with pytest.raises(ValueError, match="expected csv or jsonl for image-classification"):
        Destination(tmp_path, name, is_dataset=True).check_task("image-classification")


@pytest.mark.parametrize(("written", "continued"), [("coco", "coco-polygons"), ("coco-polygons", "coco")])
def test_masks_are_not_continued_in_another_format(written, continued, tmp_path):
    path, mask = tmp_path / "p.json", Image.new("L", (4, 3), 255)
    image = PredictedImage("a.jpg", mask.size, [{"label": "zebra", "fraction": 1.0, "mask": mask}])
    write(find_destination(path, written), [image], task="image-segmentation")
    with pytest.raises(ValueError, match="no COCO file of such predictions"):
        find_destination(path, continued).open("image-segmentation", CLASSES, 1)


def test_png_values_are_limited_to_255_classes(tmp_path):
    with pytest.raises(ValueError, match=r"got 256 classes, expected at most 255 for png\. Use coco"):
        find_destination(tmp_path, "png").open("image-segmentation", list(map(str, range(256))), 1)
    assert not list(tmp_path.iterdir())
