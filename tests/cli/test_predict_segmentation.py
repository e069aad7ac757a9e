"""`mobilevit predict` with a semantic segmentation model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image
from pycocotools.coco import COCO

from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.visualization import class_colors

CLASSES = ["cat", "dog", "fish", "owl"]
NAMES = ["a.jpg", "b.png", "more/c.jpg"]


@pytest.fixture
def photos(image, tmp_path):
    """Folder with three images of different shapes."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    image.save(folder / "a.jpg", quality=100)
    image.rotate(90, expand=True).save(folder / "b.png")
    image.resize((200, 70)).save(folder / "more" / "c.jpg")
    return folder


@pytest.fixture
def label_maps(segmenter_dir, photos):
    """Label maps of the stock pipeline, by name."""
    segment = transformers.pipeline("image-segmentation", str(segmenter_dir))
    label_maps = {}
    for name in NAMES:
        segments = segment(str(photos / name))
        label_maps[name] = np.full(segments[0]["mask"].size[::-1], 99)
        for each in segments:
            label_maps[name][np.asarray(each["mask"]) > 0] = CLASSES.index(each["label"])
    assert len(np.unique(label_maps["a.jpg"])) >= 3
    return label_maps


def fractions(label_map):
    """Return the fraction of the pixels by class, of the classes with pixels."""
    values, counts = np.unique(label_map, return_counts=True)
    return {CLASSES[value]: count / label_map.size for value, count in zip(values, counts, strict=True)}


def paint(coco, image_id):
    """Return the label map of a COCO file, decoded by pycocotools; 99 without an annotation."""
    entry = coco.imgs[image_id]
    label_map = np.full((entry["height"], entry["width"]), 99)
    for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
        mask = coco.annToMask(annotation) > 0
        assert (label_map[mask] == 99).all()
        label_map[mask] = annotation["category_id"] - 1
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
        assert annotation["area"] == mask.sum()
    return label_map


def test_table_has_the_fraction_of_each_class(mobilevit, segmenter_dir, photos, label_maps):
    code, out, err = mobilevit("predict", photos / "a.jpg", "--model", segmenter_dir)
    assert (code, err) == (0, "")
    name, *rows = out.splitlines()
    assert name == str(photos / "a.jpg")
    expected = sorted(fractions(label_maps["a.jpg"]).items(), key=lambda item: -item[1])
    assert [row.split()[:2] for row in rows if row.strip()] == [[label, f"{value:.1%}"] for label, value in expected]


def test_json_has_the_masks_of_the_stock_pipeline(mobilevit, segmenter_dir, photos, label_maps):
    from pycocotools.mask import decode

    code, out, err = mobilevit("predict", photos, "--model", segmenter_dir, "--json")
    assert (code, err) == (0, "")
    lines = {line["image"]: line["predictions"] for line in map(json.loads, out.splitlines())}
    assert list(lines) == [str(photos / name) for name in NAMES]
    for name in NAMES:
        predictions = lines[str(photos / name)]
        assert {p["label"]: p["fraction"] for p in predictions} == pytest.approx(fractions(label_maps[name]))
        assert [p["fraction"] for p in predictions] == sorted([p["fraction"] for p in predictions], reverse=True)
        for prediction in predictions:
            is_label = label_maps[name] == CLASSES.index(prediction["label"])
            np.testing.assert_array_equal(decode(prediction["mask"]) > 0, is_label)


def test_saved_overlay_has_the_colors_of_the_classes(mobilevit, segmenter_dir, photos, label_maps, tmp_path):
    code, out, _ = mobilevit("predict", photos / "b.png", "--model", segmenter_dir, "--save", tmp_path / "out")
    assert code == 0
    assert str(tmp_path / "out" / "b.png") in out
    colors, labels = class_colors(CLASSES), label_maps["b.png"]
    with Image.open(photos / "b.png") as image, Image.open(tmp_path / "out" / "b.png") as overlay:
        original, drawn = np.asarray(image).astype(int), np.asarray(overlay).astype(int)
    height, width = labels.shape
    assert drawn.shape[0] > height
    drawn = drawn[:height, :width]
    inner = np.zeros_like(labels, dtype=bool)  # not next to another class
    inner[1:-1, 1:-1] = np.all(
        [labels[1:-1, 1:-1] == np.roll(labels, shift, axis)[1:-1, 1:-1] for shift in (1, -1) for axis in (0, 1)],
        axis=0,
    )
    for label in np.unique(labels):
        color = np.array(colors[CLASSES[label]])
        pixels = inner & (labels == label)
        # Between the image and the color, by the same fraction everywhere.
        moved, distance = drawn[pixels] - original[pixels], color - original[pixels]
        alpha = (moved * distance).sum() / (distance**2).sum()
        assert 0.3 < alpha < 0.8
        assert np.abs(moved - alpha * distance).max() <= 1.5


def test_png_folder_is_read_back(mobilevit, segmenter_dir, photos, label_maps, tmp_path):
    folder = tmp_path / "out"
    code, out, err = mobilevit("predict", photos, "--model", segmenter_dir, "--output", folder, "--format", "png")
    assert (code, out) == (0, "")
    assert f"saved: {folder} (3 images)" in err
    assert (folder / "classes.txt").read_text().split() == CLASSES
    colors = class_colors(CLASSES)
    for name in NAMES:
        with Image.open((folder / "masks" / name).with_suffix(".png")) as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), label_maps[name])
            expected = np.array([colors[label] for label in CLASSES])[label_maps[name]]
            np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), expected)
    dataset = load_dataset(folder, validation_fraction=0)
    assert (dataset.task, dataset.classes, dataset.problems) == ("image-segmentation", tuple(CLASSES), [])
    samples = {sample.name.removeprefix("images/"): sample for sample in dataset.splits["train"]}
    assert set(samples) == set(NAMES)
    for name, sample in samples.items():
        np.testing.assert_array_equal(sample.mask.read(), label_maps[name])
        assert Path(sample.image).read_bytes() == (photos / name).read_bytes()


@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_coco_file_is_decoded_by_pycocotools(mobilevit, segmenter_dir, photos, label_maps, tmp_path, name):
    path = tmp_path / "masks.json"
    arguments = [] if name == "coco" else ["--format", name]
    assert mobilevit("predict", photos, "--model", segmenter_dir, "--output", path, *arguments)[0] == 0
    coco = COCO(path)
    assert [category["name"] for category in coco.cats.values()] == CLASSES
    assert [entry["file_name"] for entry in coco.imgs.values()] == NAMES
    kind = dict if name == "coco" else list
    assert all(isinstance(annotation["segmentation"], kind) for annotation in coco.anns.values())
    for image_id, entry in coco.imgs.items():
        np.testing.assert_array_equal(paint(coco, image_id), label_maps[entry["file_name"]])


@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_coco_folder_is_read_back(mobilevit, segmenter_dir, photos, label_maps, tmp_path, name):
    folder = tmp_path / "out"
    assert mobilevit("predict", photos, "--model", segmenter_dir, "--output", folder, "--format", name)[0] == 0
    dataset = load_dataset(folder, task="image-segmentation", validation_fraction=0)
    samples = {sample.name.removeprefix("images/"): sample for sample in dataset.splits["train"]}
    assert set(samples) == set(NAMES)
    for name, sample in samples.items():
        labels = np.array([CLASSES.index(label) if label in CLASSES else 99 for label in dataset.classes])
        np.testing.assert_array_equal(labels[sample.mask.read()], label_maps[name])


def test_csv_has_the_pixels_of_each_class(mobilevit, segmenter_dir, photos, label_maps, tmp_path):
    path = tmp_path / "masks.csv"
    assert mobilevit("predict", photos, "--model", segmenter_dir, "--output", path)[0] == 0
    rows = list(csv.DictReader(path.open(newline="")))
    assert len(rows) == sum(len(np.unique(label_map)) for label_map in label_maps.values())
    for row in rows:
        label_map = label_maps[row["image"]]
        count = (label_map == CLASSES.index(row["label"])).sum()
        assert (int(row["height"]), int(row["width"])) == label_map.shape
        assert int(row["pixels"]) == count
        assert float(row["fraction"]) == pytest.approx(count / label_map.size, rel=1e-5)


@pytest.mark.parametrize(
    ("path", "name"),
    [("m.csv", "csv"), ("m.jsonl", "jsonl"), ("m.json", "coco"), ("p.json", "coco-polygons"), ("d", "png")],
)
def test_interrupted_output_is_continued(mobilevit, segmenter_dir, photos, tmp_path, path, name):
    def predict(folder, *images):
        arguments = ["--model", segmenter_dir, "--output", tmp_path / folder / path, "--format", name]
        return mobilevit("predict", *images, *arguments, "--resume")

    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    predict("whole", photos)
    other = photos / "b.png"
    other.rename(tmp_path / "b.png")
    predict("parts", photos)
    (tmp_path / "b.png").rename(other)
    code, _, err = predict("parts", photos)
    assert code == 0
    assert "2 of 3 images are in" in err
    files = [
        {file.relative_to(tmp_path / folder): file for file in (tmp_path / folder).rglob("*") if file.is_file()}
        for folder in ("whole", "parts")
    ]
    assert set(files[0]) == set(files[1])
    if name == "png":
        for file in files[0]:
            assert files[0][file].read_bytes() == files[1][file].read_bytes()
    elif name in ("csv", "jsonl"):
        assert sorted(files[0][next(iter(files[0]))].read_text().splitlines()) == sorted(
            files[1][next(iter(files[1]))].read_text().splitlines()
        )
    else:
        painted = []
        for folder in ("whole", "parts"):
            coco = COCO(tmp_path / folder / path)
            painted.append({entry["file_name"]: paint(coco, image_id) for image_id, entry in coco.imgs.items()})
        assert set(painted[0]) == set(painted[1]) == set(NAMES)
        for file in NAMES:
            np.testing.assert_array_equal(painted[0][file], painted[1][file])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top-k", "2"], "--top-k: not for image-segmentation"),
        (["--threshold", "0.5"], "--threshold: not for image-segmentation"),
        (["--save", "{tmp}/s", "--sort"], "--sort: not for image-segmentation"),
        (
            ["--output", "{tmp}/o", "--format", "yolo"],
            "expected csv, jsonl, coco, coco-polygons or png for",
        ),
        (["--output", "{tmp}/o.png", "--format", "png"], "expected a folder for png"),
    ],
)
def test_invalid_options_are_rejected(mobilevit, segmenter_dir, photos, tmp_path, arguments, words):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    code, out, err = mobilevit("predict", photos, "--model", segmenter_dir, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("[os]*"))


def test_center_crop_is_noted(mobilevit, checkpoints, photos):
    code, _, err = mobilevit("predict", photos / "a.jpg", "--model", checkpoints["image-segmentation"])
    assert code == 0
    assert "crops images to their center, and masks are stretched" in err
