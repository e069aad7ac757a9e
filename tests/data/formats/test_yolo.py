"""YOLO text files."""

import shutil
import warnings

import numpy as np
import pytest
from dataset_files import labeled_boxes, problem_kinds, sample_names, save_image, split_sizes, write
from PIL import Image
from pycocotools import mask as mask_api

from mobilevit_hf.data.formats import yolo
from mobilevit_hf.data.formats.folder import DataFolder
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
        ("names: {cat: 1}\n", "by number"),
        ("names: [[cat], [dog]]\n", "unique names"),
        ("names: cat\n", "a file of them"),
        ("names: [cat\n", "can't be read"),
        ("names: !!python/object/apply:os.getcwd []\n", "unique names"),
        ("names: " + "[" * 10_000, "can't be read"),
        ("train: gone\nval: images/val\nnames: [cat, dog]\n", "gone"),
        ("train: [{a: 1}]\nnames: [cat, dog]\n", "names of folders"),
        ("names: [cat, dog]\nkpt_shape: [17]\n", "two numbers in `kpt_shape`"),
        ("names: [cat, dog]\nkpt_shape: &a [*a, *a]\n", "can't be read|two numbers"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", "unique names"),
        (f"names: [{'cat, ' * 500_000}]\n", "more than 2000000 characters"),
    ],
)
def test_invalid_yaml_raises(tmp_path, data_yaml, message):
    write_yolo_dataset(tmp_path, "images/{split}", data_yaml)
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "first")
    (tmp_path / "labels" / "train").rename(tmp_path / "labels" / "first")
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path, data_format="yolo")
    assert str(tmp_path / "data.yaml") in str(caught.value)


def test_dataset_without_label_files_raises(tmp_path):
    write_yolo_dataset(tmp_path, "images/{split}")
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(ValueError, match="got no label files"):
        load_dataset(tmp_path, data_format="yolo")


@pytest.mark.parametrize(
    ("data_yaml", "note"),
    [
        ("path: ../datasets/coco128\ntrain: images/train\nval: images/val\ntest:\n", ""),
        ("path: /content/x\ntrain: images/train\nval: images/val\n", ""),
        ("train: /content/data/images/train\nval: C:\\data\\images\\val\n", "images/train is used"),
        ("train: ../images/train\nval: ../images/val\ntest: ../images/test\n", "there is no test split"),
        ("train: images/train\nval: ../valid/images\n", "images/val is used for validation"),
        ("train: [images/train, images/more]\nvalid: images/val\n", "the other paths of train"),
        ("train: /elsewhere\nval: ~\n", "all folders are used"),
        ("val: images/val\ntrain: images\n", "2 images of train are also in validation"),
    ],
)
def test_paths_of_another_machine(tmp_path, data_yaml, note):
    write_yolo_dataset(tmp_path, "images/{split}", f"{data_yaml}names: [cat, dog]\n")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["images/train/a.jpg", "images/train/b.jpg"],
        "validation": ["images/val/a.jpg", "images/val/b.jpg"],
    }
    assert note in " ".join(dataset.notes)
    assert bool(note) == bool(dataset.notes)


def test_validation_split_of_the_training_images_is_replaced(tmp_path):
    """coco128 validates on its training images."""
    data_yaml = "train: images/train\nval: images/train/\ntest: images/val\nnames: [cat, dog]\n"
    dataset = load_dataset(write_yolo_dataset(tmp_path, "images/{split}", data_yaml), validation_fraction=0.5)
    assert split_sizes(dataset) == {"train": 1, "validation": 1, "test": 2}
    assert "nothing remains of validation" in dataset.notes[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, no, on, off]", ["yes", "no", "on", "off"]),
        ("[null, 1.0, 010, 1e3, 2020-01-01, ~]", ["null", "1.0", "010", "1e3", "2020-01-01", "~"]),
        ("\n- true\n- 'quoted'", ["true", "quoted"]),
        ("{'1': dog, '0': cat}", ["cat", "dog"]),
        ("{1: dog, 7: no}", ["dog", "no"]),  # without unused numbers
        ("lists/names.txt", ["ant", "bee"]),
        ("/home/someone/lists/names.txt", ["ant", "bee"]),
    ],
)
def test_class_names_are_the_text_in_the_file(tmp_path, names, expected):
    write_yolo_dataset(tmp_path, "images/{split}", f"names: {names}\nnc: {len(expected)}\n")
    write(tmp_path / "lists" / "names.txt", "\ufeffant\r\nbee\r\n")
    dataset = load_dataset(tmp_path)
    assert list(dataset.classes) == expected
    assert dataset.splits["train"][0].objects.labels.tolist() == [
        list(expected).index(expected[0 if "7:" in names else 1])
    ]
    assert not [note for note in dataset.notes if "nc" in note]


def write_images(root, labels):
    """Write an image of 40x30 pixels for each name, and label files by their path."""
    for name, text in labels.items():
        if name.endswith(".jpg"):
            save_image(root / name)
        else:
            write(root / name, text)
    return root


ROW = "0 0.5 0.5 0.2 0.4\n"


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        # labelImg: next to the images
        ({"a.jpg": "", "a.txt": ROW, "classes.txt": "cat\n"}, {"train": ["a.jpg"]}),
        ({"x/a.jpg": "", "x/a.txt": ROW, "x/classes.txt": "cat\n"}, {"train": ["x/a.jpg"]}),
        # Label Studio
        (
            {"images/a.jpg": "", "labels/a.txt": ROW, "classes.txt": "cat\n"}
            | {"notes.json": {"categories": [{"id": 0, "name": "cat"}], "info": {"contributor": "Label Studio"}}},
            {"train": ["images/a.jpg"]},
        ),
        # CVAT, Datumaro and darknet
        (
            {"obj_train_data/a.jpg": "", "obj_train_data/a.txt": ROW, "obj.names": "cat\n"}
            | {"obj.data": "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"}
            | {"train.txt": "data/obj_train_data/a.jpg\n"},
            {"train": ["obj_train_data/a.jpg"]},
        ),
        (
            {"data/obj/a.jpg": "", "data/obj/a.txt": ROW, "data/obj/b.jpg": "", "data/obj/b.txt": ROW}
            | {"data/obj.data": "classes=1\ntrain=data/train.txt\nvalid=data/test.txt\nnames=data/obj.names\n"}
            | {"data/train.txt": "data/obj/a.jpg\n", "data/test.txt": "data/obj/b.jpg\n", "data/obj.names": "cat\n"},
            {"train": ["data/obj/a.jpg"], "validation": ["data/obj/b.jpg"]},
        ),
        (
            {"obj_train_data/a.jpg": "", "obj_train_data/a.txt": ROW, "obj_Validation_data/b.jpg": ""}
            | {"obj_Validation_data/b.txt": ROW, "obj.names": "cat\n"},
            {"train": ["obj_train_data/a.jpg"], "validation": ["obj_Validation_data/b.jpg"]},
        ),
        # lists without a file that describes them
        (
            {"images/a.jpg": "", "images/b.jpg": "", "labels/a.txt": ROW, "labels/b.txt": ROW, "classes.txt": "cat\n"}
            | {"train.txt": "C:\\data\\images\\a.jpg\n", "val.txt": "./images/b.jpg\n"},
            {"train": ["images/a.jpg"], "validation": ["images/b.jpg"]},
        ),
        # folders of other names
        (
            {"train_images/a.jpg": "", "train_labels/a.txt": ROW, "test_images/a.jpg": "", "test_labels/a.txt": ROW}
            | {"cfg/data.yaml": "names: [cat]\n"},
            {"train": ["train_images/a.jpg"], "test": ["test_images/a.jpg"]},
        ),
        (
            {"Images/a.jpg": "", "Annotations/a.txt": ROW, "predefined_classes.txt": "cat\ndog"},
            {"train": ["Images/a.jpg"]},
        ),
        # Roboflow for darknet
        (
            {"train/a.jpg": "", "train/a.txt": ROW, "train/_darknet.labels": "cat\n"}
            | {"valid/b.jpg": "", "valid/b.txt": ROW, "valid/_darknet.labels": "cat\n"},
            {"train": ["train/a.jpg"], "validation": ["valid/b.jpg"]},
        ),
    ],
)
def test_layouts_of_tools_are_recognized(tmp_path, files, splits):
    dataset = load_dataset(write_images(tmp_path, files), validation_fraction=0)
    assert dataset.data_format == "yolo"
    assert dataset.classes[0] == "cat"
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == splits
    for samples in dataset.splits.values():
        assert labeled_boxes(samples[0]) == [(0, pytest.approx([16, 9, 24, 21]))]
    assert not dataset.problems


def test_numbers_are_the_classes_without_names(tmp_path):
    files = {"images/a.jpg": "", "labels/a.txt": f"2{ROW[1:]}"}
    dataset = load_dataset(write_images(tmp_path, files), validation_fraction=0)
    assert dataset.classes == ("0", "1", "2")
    assert "classes.txt" in " ".join(dataset.notes)


def test_different_class_files_raise(tmp_path):
    files = {f"{split}/a.{suffix}": ROW for split in ("train", "val") for suffix in ("jpg", "txt")}
    write_images(tmp_path, files | {"train/classes.txt": "cat\ndog\n", "val/classes.txt": "dog\ncat\n"})
    with pytest.raises(ValueError, match=r"train/classes\.txt and val/classes\.txt"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("names", ["caf\u00e9\ncat\n".encode("latin-1"), "cat\n".encode("utf-16")])
def test_class_file_in_another_encoding_raises(tmp_path, names):
    write_images(tmp_path, {"a.jpg": "", "a.txt": ROW})
    (tmp_path / "classes.txt").write_bytes(names)
    with pytest.raises(ValueError, match=r"classes\.txt: expected UTF-8"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["\ufeff" + ROW, ROW.replace("\n", "\r\n"), f"\n{ROW}\n \n", ROW.replace(" ", "\t"), "0 .5 .5 .2 .4 .99\n"],
)
def test_variants_of_label_files(tmp_path, text):
    files = {"a.jpg": "", "a.txt": text, "classes.txt": "cat\r\n"}
    dataset = load_dataset(write_images(tmp_path, files), validation_fraction=0)
    assert labeled_boxes(dataset.splits["train"][0]) == [(0, pytest.approx([16, 9, 24, 21]))]
    assert len(dataset.notes) == (".99" in text) + 1  # and that there is no validation split


def test_rows_of_unexpected_length_are_problems_with_file_and_line(tmp_path):
    files = {"a.jpg": "", "a.txt": f"{ROW}0 0.5 0.5\n\n0 0.5 0.5 0.2 0.2 0.3 0.4 0.5\n", "classes.txt": "cat"}
    dataset = load_dataset(write_images(tmp_path, files), validation_fraction=0)
    assert len(dataset.splits["train"][0].objects.labels) == 1
    reasons = [problem.reason for problem in dataset.problems]
    assert problem_kinds(dataset) == [("a.jpg", "unreadable annotation")] * 2
    assert "a.txt, line 2: got 2 values" in reasons[0]
    assert "a.txt, line 4: got 7 values" in reasons[1]


@pytest.mark.parametrize("shape", ["[3, 2]", None])
def test_pose_rows(tmp_path, shape):
    row = "0 0.5 0.5 0.2 0.4 0.45 0.35 0.55 0.65 0.5 0.4\n"
    data_yaml = "names: [hand]\n" + (f"kpt_shape: {shape}\n" if shape else "")
    write_images(tmp_path, {"images/a.jpg": "", "labels/a.txt": row * 3, "data.yaml": data_yaml})
    if shape is None:
        with pytest.raises(ValueError, match=r"labels/a\.txt, line 1: .*kpt_shape"):
            load_dataset(tmp_path)
        return
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert labeled_boxes(dataset.splits["train"][0]) == [(0, pytest.approx([16, 9, 24, 21]))] * 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0 20 15 10 10\n0 8 8 4 4\n", "coordinates in pixels"),
        ("0 0.5 0.5 0.2 0.2 0.7\n0 0.5 0.5 0.2 0.2 1.57\n", r"sixth column of 0\.7 to 1\.57"),
    ],
)
def test_values_of_another_unit_raise(tmp_path, rows, message):
    write_images(tmp_path, {"images/a.jpg": "", "labels/a.txt": rows, "classes.txt": "cat"})
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path)


@pytest.mark.parametrize("value", ["images/test", "test.txt"])
def test_split_without_labels_or_images_is_noted(tmp_path, value):
    write_yolo_dataset(tmp_path, "images/{split}", f"train: images/train\ntest: {value}\nnames: [cat, dog]\n")
    save_image(tmp_path / "images" / "test" / "c.jpg")
    write(tmp_path / "test.txt", "images/gone.jpg\n")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert list(dataset.splits) == ["train"]
    assert "test" in dataset.notes[0]
    assert not dataset.problems


def test_names_file_of_another_machine(tmp_path):
    files = {
        "a.jpg": "",
        "a.txt": ROW,
        "my.names": "cat\n",
        "obj.data": "train = train.txt\nnames = /content/obj.names\n",
    }
    assert load_dataset(write_images(tmp_path, files | {"train.txt": "data/a.jpg\n"})).classes == ("cat",)


def test_labels_without_images_are_noted(tmp_path):
    files = {"images/a.jpg": "", "labels/a.txt": ROW, "labels/gone.txt": ROW, "labels/README.txt": "labels by hand"}
    dataset = load_dataset(write_images(tmp_path, files | {"classes.txt": "cat"}), validation_fraction=0)
    assert "Skipped 1 label files without an image, such as labels/gone.txt." in dataset.notes


def test_captions_next_to_images_are_not_recognized(tmp_path):
    files = {f"{name}/a.{suffix}": "2 dogs on a lawn" for name in ("cat", "dog") for suffix in ("jpg", "txt")}
    assert not yolo.recognizes(DataFolder(write_images(tmp_path, files)))


def test_directory_named_data_yaml_is_ignored(tmp_path):
    (tmp_path / "data.yaml").mkdir()
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("1", (9500, 9500)).save(tmp_path / "images/0.png")  # Pillow warns about its size
    (tmp_path / "labels/0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    with warnings.catch_warnings(action="error"):
        assert len(load_dataset(tmp_path, data_format="yolo").splits["train"]) == 1


def write_polygons(root, rows):
    """Write an image of 40x30 pixels and its rows, with the classes cat and dog."""
    save_image(root / "images" / "a.jpg", (40, 30))
    write(root / "labels" / "a.txt", rows)
    write(root / "data.yaml", "train: images\nnames: [cat, dog]\n")
    return root


def test_polygons_are_painted_as_by_pycocotools_smaller_ones_on_top(tmp_path):
    small, large = [0.3, 0.3, 0.6, 0.35, 0.5, 0.7], [0.1, 0.1, 0.9, 0.2, 0.8, 0.9, 0.15, 0.8]
    stick = [0, 0, 0.02, 0, 1, 0.98, 1, 1, 0.98, 1, 0, 0.03]  # a small area in a large box
    rows = [(1, small), (0, large), (1, stick)]
    write_polygons(tmp_path, "".join(f"{key} {' '.join(map(str, values))}\n" for key, values in rows))
    dataset = load_dataset(tmp_path, task="image-segmentation", validation_fraction=0)
    assert (dataset.task, dataset.data_format) == ("image-segmentation", "yolo")
    assert dataset.classes == ("background", "cat", "dog")
    expected = np.zeros((30, 40), np.uint8)
    for polygon, label in ((large, 1), (small, 2), (stick, 2)):
        pixels = (np.reshape(polygon, (-1, 2)) * (40, 30)).ravel().tolist()
        expected[mask_api.decode(mask_api.frPyObjects([pixels], 30, 40))[..., 0] > 0] = label
    assert np.unique(expected).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), expected)
    assert not dataset.problems


def test_polygons_are_relative_to_the_upright_image(tmp_path):
    write_polygons(tmp_path, "0 0 0 1 0 1 0.5 0 0.5\n")
    save_image(tmp_path / "images" / "a.jpg", (40, 30), orientation=6)
    mask = load_dataset(tmp_path, task="image-segmentation", validation_fraction=0).splits["train"][0].mask.read()
    assert mask.shape == (40, 30)
    np.testing.assert_array_equal(mask[:, 15], [1] * 20 + [0] * 20)


def test_rows_without_a_polygon_are_problems_of_masks(tmp_path):
    rows = "0 0.1 0.1 0.5 0.1 0.5 0.9\n1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.5\n7 0.1 0.1 0.5 0.1 0.5 0.9\n"
    huge = "1 0.1 0.1 1e12 0.1 0.5 1e12\n"  # whose outline would fill the memory
    dataset = load_dataset(write_polygons(tmp_path, rows + huge), task="image-segmentation", validation_fraction=0)
    no_polygon = "has no polygon of three points and no RLE of the image's size: skipped"
    assert [(problem.kind, problem.reason) for problem in dataset.problems] == [
        ("unreadable annotation", f"object 2 {no_polygon}"),
        (
            "unreadable annotation",
            "object 3 of labels/a.txt, line 3: got 3 values after the class, expected 4, or 2 for each point of a "
            "polygon",
        ),
        ("unknown class", "object 4 has the class 7, which is not a class of the dataset"),
        ("unreadable annotation", f"object 5 {no_polygon}"),
    ]
    assert dataset.splits["train"][0].mask.labels() == [1]


def test_boxes_alone_are_no_masks(tmp_path):
    write_polygons(tmp_path, "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match=r"boxes only, expected polygons\. Export polygons or masks"):
        load_dataset(tmp_path, task="image-segmentation")


def test_polygons_in_pixels_raise(tmp_path):
    write_polygons(tmp_path, "0 3 4 30 5 12 25\n")
    with pytest.raises(ValueError, match="coordinates in pixels"):
        load_dataset(tmp_path, task="image-segmentation")


@pytest.mark.parametrize(
    ("row", "expected"), [("0 0.1 0.1 0.5 0.1 0.5 0.9", True), ("0 0.4 0.1 0.6 0.1 0.6 0.7 0.4 0.7", False)]
)
def test_polygons_are_noted_when_boxes_are_read(row, expected, tmp_path):
    """Four points are a rotated box."""
    dataset = load_dataset(write_polygons(tmp_path, row), validation_fraction=0)
    assert dataset.task == "object-detection"
    assert ('task="image-segmentation"' in " ".join(dataset.notes)) == expected
