"""YOLO text files."""

import warnings

import pytest
from dataset_files import labeled_boxes, problem_kinds, sample_names, save_image, split_sizes, write
from PIL import Image

from mobilevit_hf.data.reading import load_dataset


def write_yolo_dataset(root, pattern, data_yaml=None):
    """Write images of 40x30 pixels to `pattern` for train and val, and labels to the same path with "labels"."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            path = root / pattern.format(split=split)
            save_image(path / f"{name}.jpg")
            write(
                root / pattern.format(split=split).replace("images", "labels") / f"{name}.txt", "1 0.5 0.5 0.2 0.4\n"
            )
    if data_yaml:
        write(root / "data.yaml", data_yaml)
    else:
        write(root / "classes.txt", "cat\ndog\n")
    return root


@pytest.mark.parametrize("pattern", ["images/{split}", "{split}/images"])
@pytest.mark.parametrize(
    "data_yaml",
    [
        "train: {train}\nval: {val}\nnames: [cat, dog]\n",
        "path: /home/someone/data\ntrain: ../{train}\nval: ./{val}/\nnc: 2\nnames:\n  1: dog\n  0: cat\n",
        "train: [{train}]\nval: [{val}]\nnames: [cat, dog]\n",
        "names: [cat, dog]\n",
        None,
    ],
)
def test_splits_and_boxes(tmp_path, pattern, data_yaml):
    folders = {split: pattern.format(split=split) for split in ("train", "val")}
    dataset = load_dataset(write_yolo_dataset(tmp_path, pattern, data_yaml and data_yaml.format(**folders)))
    assert (dataset.task, dataset.data_format, dataset.classes) == ("object-detection", "yolo", ("cat", "dog"))
    assert sample_names(dataset.splits["train"]) == [f"{folders['train']}/{name}.jpg" for name in "ab"]
    assert sample_names(dataset.splits["validation"]) == [f"{folders['val']}/{name}.jpg" for name in "ab"]
    ((label, box),) = labeled_boxes(dataset.splits["train"][0])
    assert label == 1
    assert box == pytest.approx([16, 9, 24, 21])
    assert not dataset.problems


def test_lists_of_files(tmp_path):
    write_yolo_dataset(tmp_path, "images/{split}", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    write(
        tmp_path / "train.txt", f"./images/train/b.jpg\n{tmp_path}/images/train/a.jpg\nimages/gone.jpg\n/etc/x.jpg\n"
    )
    write(tmp_path / "val.txt", "images/val/a.jpg\n")
    dataset = load_dataset(tmp_path / "data.yaml")
    assert sample_names(dataset.splits["train"]) == ["images/train/b.jpg", "images/train/a.jpg"]
    assert problem_kinds(dataset) == [("/etc/x.jpg", "missing image"), ("images/gone.jpg", "missing image")]


def test_boxes_are_relative_to_the_upright_image(tmp_path):
    write_yolo_dataset(tmp_path, "images/{split}")
    save_image(tmp_path / "images" / "train" / "a.jpg", (40, 30), orientation=6)
    ((_, box),) = labeled_boxes(load_dataset(tmp_path).splits["train"][0])
    assert box == pytest.approx([12, 12, 18, 28])


def test_label_files(tmp_path):
    lines = {
        "empty": "",
        "invalid": "0 0.5 0.5 0.2\n0 0.5 0.5 0.2 wide\n7 0.5 0.5 0.2 0.4\n0.5 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.1 0.1\n",
        "outside": "0 0.5 0.5 0.5 0.5\n0 0.9 0.5 0.4 0.5\n0 1.5 0.5 0.4 0.5\n0 0.5 0.5 0 0.1\n",
        "polygon": "1 0.25 0.5 0.75 0.5 0.5 0.9\n",
    }
    for name, text in lines.items():
        save_image(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "labels" / f"{name}.txt", text)
    save_image(tmp_path / "images" / "unlabeled.png")
    write(tmp_path / "images" / "damaged.png", "no image")
    write(tmp_path / "labels" / "damaged.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "labels" / "classes.txt", "cat\ndog\n")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    boxes = {sample.name[7:-4]: labeled_boxes(sample) for sample in dataset.splits["train"]}
    assert set(boxes) == {"empty", "invalid", "outside", "polygon", "unlabeled"}
    assert boxes["empty"] == boxes["unlabeled"] == []
    assert len(boxes["invalid"]) == 1
    assert boxes["outside"][1][1] == pytest.approx([28, 7.5, 40, 22.5])
    assert boxes["polygon"][0][1] == pytest.approx([10, 15, 30, 27])
    assert problem_kinds(dataset) == [
        ("images/damaged.png", "unreadable image"),
        *[("images/invalid.png", "unknown class")] * 2,
        *[("images/invalid.png", "unreadable annotation")] * 2,
        *[("images/outside.png", "box outside the image")] * 2,
        ("images/outside.png", "box without area"),
        ("labels/empty.txt", "empty label file"),
    ]
    assert "images/unlabeled.png" in dataset.notes[0]


@pytest.mark.parametrize(
    ("data_yaml", "message"),
    [
        ("names: [cat, cat]\n", "unique names"),
        ("names: {1: cat}\n", "by number from 0"),
        ("names: [cat\n", "can't be read"),
        ("names: !!python/object/apply:os.getcwd []\n", "can't be read"),
        ("train: /elsewhere/images\nnames: [cat, dog]\n", "/elsewhere/images"),
        ("train: ../../images\nnames: [cat, dog]\n", None),
        ("train: missing\nnames: [cat, dog]\n", "missing"),
    ],
)
def test_invalid_yaml_raises(tmp_path, data_yaml, message):
    write_yolo_dataset(tmp_path, "images/{split}", data_yaml)
    if message is None:  # relative to another directory, as written by other tools
        assert split_sizes(load_dataset(tmp_path, validation_fraction=0)) == {"train": 4}
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path)
    assert str(tmp_path / "data.yaml") in str(caught.value)


def test_dataset_without_label_files_raises(tmp_path):
    write_yolo_dataset(tmp_path, "images/{split}")
    (tmp_path / "labels").rename(tmp_path / "annots")
    with pytest.raises(ValueError, match="got no label files"):
        load_dataset(tmp_path, data_format="yolo")


def test_directory_named_data_yaml_is_ignored(tmp_path):
    (tmp_path / "data.yaml").mkdir()
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("1", (9500, 9500)).save(tmp_path / "images/0.png")  # Pillow warns about its size
    (tmp_path / "labels/0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    with warnings.catch_warnings(action="error"):
        assert len(load_dataset(tmp_path, data_format="yolo").splits["train"]) == 1
