"""Data sets written by hand, file by file, and what is read of them."""

import io
import json
import math
import pickle
from collections import Counter

import datasets
import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import constants
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO

from mobilevit_hf.data.reading import load_dataset

ORIENTATION = 0x0112


def save_picture(path, size=(40, 30), orientation=None, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    Image.new("RGB", size, (colour, 90, 30)).save(path, exif=exif)


def picture_bytes(size=(40, 30), colour=0):
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 90, 30)).save(file, "PNG")
    return file.getvalue()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def names(samples):
    return [sample.name for sample in samples]


def boxes(sample):
    objects = sample.objects
    return list(zip(objects.labels.tolist(), objects.boxes.tolist(), strict=True))


def problems(dataset):
    return sorted((problem.name, problem.kind) for problem in dataset.problems)


def sizes(dataset):
    return {split: len(samples) for split, samples in dataset.splits.items()}


# Class folders


@pytest.fixture
def class_folders(tmp_path):
    """Three classes in train, val and test, with a picture deeper down and things that are no pictures."""
    root = tmp_path / "data"
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        for name in ("owl", "Cat", "dog"):
            for number in range(count):
                save_picture(root / split / name / f"{number}.jpg")
    write(root / "train" / "owl" / "notes.txt", "")
    write(root / "train" / "owl" / "._0.jpg", "what macOS leaves")
    return root


def test_class_folders_are_what_datasets_reads(class_folders, tmp_path):
    (class_folders / "train" / "owl" / "._0.jpg").unlink()
    theirs = datasets.load_dataset("imagefolder", data_dir=str(class_folders), cache_dir=str(tmp_path / "cache"))
    ours = load_dataset(class_folders)
    assert list(ours.splits) == list(theirs)
    assert list(ours.classes) == theirs["train"].features["label"].names
    for split, rows in theirs.items():
        rows = rows.cast_column("image", datasets.Image(decode=False))
        assert {(str(sample.image), sample.label) for sample in ours.splits[split]} == {
            (row["image"]["path"], row["label"]) for row in rows
        }


def test_class_folders_in_order_without_what_is_no_picture(class_folders):
    dataset = load_dataset(str(class_folders))
    assert (dataset.task, dataset.data_format, dataset.root) == ("image-classification", "imagefolder", class_folders)
    assert dataset.classes == ("Cat", "dog", "owl")
    assert names(dataset.splits["train"])[:4] == [f"train/Cat/{n}.jpg" for n in range(3)] + ["train/dog/0.jpg"]
    assert not dataset.problems
    assert not dataset.notes


def test_pictures_below_a_class_folder_are_of_that_class(tmp_path):
    save_picture(tmp_path / "a" / "x" / "y" / "1.png")
    save_picture(tmp_path / "b" / "1.png")
    samples = load_dataset(tmp_path, validation_fraction=0).splits["train"]
    assert [(sample.name, sample.label) for sample in samples] == [("a/x/y/1.png", 0), ("b/1.png", 1)]


@pytest.mark.parametrize(("folder", "split"), [("valid", "validation"), ("dev", "validation"), ("Test", "test")])
def test_splits_by_other_names(tmp_path, folder, split):
    for place in ("training", folder):
        save_picture(tmp_path / place / "a" / "1.png")
    assert set(load_dataset(tmp_path, validation_fraction=0).splits) == {"train", split}


def test_a_class_may_be_called_test(tmp_path):
    for name in ("test", "rest"):
        save_picture(tmp_path / name / "1.png")
    assert load_dataset(tmp_path).classes == ("rest", "test")


def test_a_test_split_alone_is_not_cut(tmp_path):
    for number in range(9):
        save_picture(tmp_path / "test" / "a" / f"{number}.png")
    assert sizes(load_dataset(tmp_path)) == {"test": 9}


def test_a_class_that_training_lacks(class_folders):
    save_picture(class_folders / "test" / "fox" / "1.jpg")
    dataset = load_dataset(class_folders)
    assert dataset.classes == ("Cat", "dog", "owl")
    assert problems(dataset) == [("test/fox/1.jpg", "unknown class")]
    assert sizes(dataset)["test"] == 3


def test_what_is_left_out_is_said(class_folders):
    save_picture(class_folders / "train" / "loose.jpg")
    (class_folders / "train" / "empty").mkdir()
    save_picture(class_folders / "extra" / "a" / "1.jpg")
    notes = " ".join(load_dataset(class_folders).notes)
    assert all(word in notes for word in ("train/loose.jpg", "train/empty", "extra"))


def test_two_names_for_a_split(class_folders):
    save_picture(class_folders / "valid" / "owl" / "1.jpg")
    with pytest.raises(ValueError, match="val and valid"):
        load_dataset(class_folders)


# A validation split that is missing


@pytest.fixture
def uneven(tmp_path):
    """60 pictures of one class, 24 of another, 7 of a third and a single one."""
    for name, count in {"a": 60, "b": 24, "c": 7, "d": 1}.items():
        for number in range(count):
            write(tmp_path / "data" / name / f"{number:02}.jpg", "")
    return tmp_path / "data"


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.75])
def test_validation_is_cut_off_class_by_class(uneven, fraction):
    dataset = load_dataset(uneven, validation_fraction=fraction)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert sorted(names(train) + names(validation)) == sorted(
        p.relative_to(uneven).as_posix() for p in uneven.rglob("*.jpg")
    )
    assert len(validation) == round(92 * fraction)
    counts = Counter(sample.label for sample in validation)
    for label, count in enumerate((60, 24, 7)):
        assert math.floor(count * fraction) <= counts[label] <= math.ceil(count * fraction)
    assert counts[3] == 0
    assert f"{len(validation)} of 92" in dataset.notes[0]


def test_the_cut_follows_the_seed_alone(uneven):
    def cut(seed):
        return names(load_dataset(uneven, seed=seed).splits["validation"])

    assert cut(0) != cut(1)
    # Written down once: the same pictures on every machine, in every run and version.
    assert cut(0) == [
        f"{name}.jpg" for name in ["a/05", "a/10", "a/23", "a/25", "a/26", "a/41", "b/02", "b/22", "c/01"]
    ]


def test_the_cut_moves_little_when_pictures_are_added(uneven):
    before = set(names(load_dataset(uneven).splits["validation"]))
    write(uneven / "a" / "new.jpg", "")
    assert len(before - set(names(load_dataset(uneven).splits["validation"]))) <= 1


def test_no_cut_is_said_too(uneven):
    dataset = load_dataset(uneven, validation_fraction=0)
    assert sizes(dataset) == {"train": 92}
    assert "none was cut off" in dataset.notes[0]


def test_detection_is_cut_by_the_rarest_class(tmp_path):
    """Each of the 20 pictures with the rare class has the common one, too: a tenth of them goes."""
    pictures = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(100)]
    found = [{"image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(100)]
    found += [{"image_id": n, "category_id": 2, "bbox": [1, 1, 5, 5]} for n in range(20)]
    categories = [{"id": 1, "name": "common"}, {"id": 2, "name": "rare"}]
    for n in range(100):
        save_picture(tmp_path / "images" / f"{n}.jpg")
    write(tmp_path / "all.json", {"images": pictures, "annotations": found, "categories": categories})
    validation = load_dataset(tmp_path).splits["validation"]
    assert len(validation) == 10
    assert sum(1 in sample.objects.labels for sample in validation) == 2


# COCO


@pytest.fixture
def coco(tmp_path):
    """Two splits with sparse category ids, a crowd, areas of shapes and a picture without boxes."""
    root = tmp_path / "coco"
    rng = np.random.default_rng(0)
    for split, count in {"train2017": 6, "val2017": 3}.items():
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": i, "name": name} for i, name in ((90, "brush"), (1, "person"), (13, "sign"))]
        for number in range(count):
            save_picture(root / split / f"{number}.jpg", (60, 50))
            content["images"].append({"id": 100 - number, "file_name": f"{number}.jpg", "width": 60, "height": 50})
            for _ in range(number):
                bbox = [*rng.uniform(0, 20, 2).round(2), *rng.uniform(2, 25, 2).round(2)]
                entry = {"id": len(content["annotations"]) + 1, "image_id": 100 - number, "bbox": bbox}
                entry |= {"category_id": int(rng.choice([1, 13, 90])), "area": bbox[2] * bbox[3] / 2}
                content["annotations"].append(entry | {"iscrowd": int(rng.random() < 0.2)})
        write(root / "annotations" / f"instances_{split}.json", content)
    write(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    return root


def test_coco_is_what_pycocotools_reads(coco):
    dataset = load_dataset(coco)
    assert (dataset.task, dataset.data_format) == ("object-detection", "coco")
    assert dataset.classes == ("person", "sign", "brush")
    assert sizes(dataset) == {"train": 6, "validation": 3}
    for split, stem in {"train": "train2017", "validation": "val2017"}.items():
        theirs = COCO(str(coco / "annotations" / f"instances_{stem}.json"))
        for sample in dataset.splits[split]:
            (image,) = [i for i in theirs.imgs.values() if sample.name == f"{stem}/{i['file_name']}"]
            entries = theirs.loadAnns(theirs.getAnnIds(image["id"]))
            assert sample.image == str(coco / sample.name)
            expected = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)]
            np.testing.assert_allclose(sample.objects.boxes, np.reshape(expected, (-1, 4)), rtol=1e-6)
            assert [dataset.classes[n] for n in sample.objects.labels] == [
                theirs.cats[entry["category_id"]]["name"] for entry in entries
            ]
            assert sample.objects.iscrowd.tolist() == [entry["iscrowd"] for entry in entries]
            np.testing.assert_allclose(sample.objects.areas, [entry["area"] for entry in entries], rtol=1e-6)


def one_picture(boxes, **fields):
    """COCO's JSON for a picture a.jpg of 40x30 pixels with boxes [x, y, w, h] of one class."""
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}]}
    content["annotations"] = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
    return content | {"categories": [{"id": 1, "name": "cell"}]} | fields


@pytest.mark.parametrize(
    ("box", "kept", "kind"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 6], None),
        ([0, 0, 40, 30], [0, 0, 40, 30], None),
        ([30, 20, 10.9, 10.9], [30, 20, 40, 30], None),  # what rounding may do
        ([-3, 20, 10, 5], [0, 20, 7, 25], "box outside the picture"),
        ([30, 20, 100, 5], [30, 20, 40, 25], "box outside the picture"),
        ([41, 2, 10, 10], None, "box outside the picture"),
        ([-10, 2, 10, 10], None, "box outside the picture"),
        ([3, 4, 0, 5], None, "box without area"),
        ([3, 4, 5, -1], None, "box without area"),
        ([1, 2, 3], None, "unreadable annotation"),
        ([1, 2, 3, "wide"], None, "unreadable annotation"),
        ([1, 2, 3, float("nan")], None, "unreadable annotation"),
        (None, None, "unreadable annotation"),
    ],
)
def test_boxes_that_can_not_be_trained_on(tmp_path, box, kept, kind):
    save_picture(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", one_picture([[5, 5, 5, 5], box]))
    dataset = load_dataset(tmp_path)
    assert boxes(dataset.splits["train"][0])[1:] == ([(0, kept)] if kept else [])
    assert problems(dataset) == ([("a.jpg", kind)] if kind else [])
    assert "box 2" in (dataset.problems[0].reason if kind else "box 2")


def test_a_picture_with_bad_boxes_alone_is_not_background(tmp_path):
    for name in "ab":
        save_picture(tmp_path / f"{name}.jpg")
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in ((1, "a"), (2, "b"))]
    write(tmp_path / "coco.json", one_picture([[5, 5, 0, 5]], images=images))
    assert names(load_dataset(tmp_path).splits["train"]) == ["b.jpg"]


def test_areas_are_of_the_boxes_if_not_stated(tmp_path):
    save_picture(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", one_picture([[35, 5, 20, 4]]))
    assert load_dataset(tmp_path).splits["train"][0].objects.areas.tolist() == [20]


def test_coco_entries_that_point_nowhere(tmp_path):
    save_picture(tmp_path / "a.jpg")
    content = one_picture([[5, 5, 5, 5]])
    content["images"] += [{"id": 2, "file_name": "gone.jpg"}, {"id": 1, "file_name": "a.jpg"}, {"file_name": 3}]
    content["annotations"] += [
        {"id": 8, "image_id": 77, "category_id": 1, "bbox": [1, 1, 2, 2]},
        {"id": 9, "image_id": 1, "category_id": 5, "bbox": [1, 1, 2, 2]},
        {"id": 10, "image_id": [1], "category_id": [5], "bbox": [1, 1, 2, 2]},
    ]
    write(tmp_path / "coco.json", content)
    dataset = load_dataset(tmp_path)
    assert [boxes(sample) for sample in dataset.splits["train"]] == [[(0, [5, 5, 10, 10])]]
    assert problems(dataset) == [
        ("a.jpg", "unknown class"),
        *[("coco.json", "unreadable annotation")] * 4,
        ("gone.jpg", "missing picture"),
    ]


def test_coco_in_the_folders_of_splits(tmp_path):
    for split in ("train", "valid"):
        save_picture(tmp_path / split / "a.jpg")
        categories = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "cell", "supercategory": "cells"},
        ]
        write(tmp_path / split / "_annotations.coco.json", one_picture([[1, 2, 3, 4]], categories=categories))
    dataset = load_dataset(tmp_path)
    assert {split: names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["train/a.jpg"],
        "validation": ["valid/a.jpg"],
    }
    assert dataset.classes == ("cell",)
    assert "cells" in dataset.notes[0]


def test_one_coco_file(tmp_path):
    save_picture(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels_of_mine.json", one_picture([[1, 2, 3, 4]]))
    assert names(load_dataset(tmp_path / "labels_of_mine.json").splits["train"]) == ["images/a.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ([], "`images`"),
        (one_picture([], categories={}), "`categories`"),
        (one_picture([], annotations=[1]), "`annotations`"),
        (one_picture([], categories=[{"id": "1", "name": "a"}]), "integer `id`"),
        (one_picture([], categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "names that differ"),
    ],
)
def test_json_of_another_shape(tmp_path, content, message):
    save_picture(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path, data_format="coco")
    assert str(tmp_path / "coco.json") in str(caught.value)


def test_splits_that_number_the_classes_differently(tmp_path):
    for split, name in {"train": "cat", "val": "dog"}.items():
        save_picture(tmp_path / split / "a.jpg")
        write(tmp_path / "annotations" / f"{split}.json", one_picture([], categories=[{"id": 1, "name": name}]))
    with pytest.raises(ValueError, match="category 1"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_from_before_the_turn_is_reported(tmp_path, orientation):
    save_picture(tmp_path / "a.jpg", (40, 30), orientation)
    save_picture(tmp_path / "b.jpg")
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in ((1, "a"), (2, "b"))]
    write(tmp_path / "coco.json", one_picture([[1, 2, 3, 4]], images=images))
    dataset = load_dataset(tmp_path)
    is_turned = orientation in (6, 8)
    assert problems(dataset) == ([("a.jpg", "unreadable annotation")] if is_turned else [])
    upright = one_picture([[1, 2, 3, 4]], images=[{"id": 1, "file_name": "a.jpg", "width": 30, "height": 40}])
    write(tmp_path / "coco.json", upright)
    assert not load_dataset(tmp_path).problems


# Paths that lead out


@pytest.mark.parametrize(
    "path",
    ["../secret.jpg", "images/../../secret.jpg", "{}/secret.jpg", "..\\secret.jpg", "link.jpg", "out/secret.jpg"],
)
def test_annotations_reach_no_file_outside(tmp_path, path):
    save_picture(tmp_path / "secret.jpg")
    root = tmp_path / "data"
    save_picture(root / "images" / "a.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "out").symlink_to(tmp_path)
    images = [{"id": n, "file_name": name} for n, name in enumerate(("a.jpg", path.format(tmp_path)))]
    write(root / "coco.json", one_picture([], images=images))
    dataset = load_dataset(root)
    assert names(dataset.splits["train"]) == ["images/a.jpg"]
    assert problems(dataset) == [(path.format(tmp_path), "missing picture")]


def test_links_inside_are_followed_and_those_outside_reported(tmp_path):
    save_picture(tmp_path / "secret.jpg")
    root = tmp_path / "data"
    save_picture(root / "a" / "1.jpg")
    save_picture(root / "b" / "1.jpg")
    (root / "a" / "2.jpg").symlink_to("../b/1.jpg")
    (root / "a" / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "a" / "round").symlink_to(root)
    dataset = load_dataset(root, validation_fraction=0)
    assert names(dataset.splits["train"]) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert problems(dataset) == [("a/3.jpg", "missing picture"), ("a/round", "missing picture")]


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    root = tmp_path / "datasets--user--name" / "snapshots" / "1234"
    save_picture(root.parents[1] / "blobs" / "5678.jpg")
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.jpg").symlink_to("../../../blobs/5678.jpg")
    assert names(load_dataset(root).splits["train"]) == ["a/1.jpg"]


# Pascal VOC


def voc_xml(*objects, size=(40, 30), filename="whatever.jpg"):
    entries = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{stated}{entries}</annotation>"


def make_voc(root, pictures, sets=None):
    for name, text in pictures.items():
        save_picture(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", text)
    for name, listed in (sets or {}).items():
        write(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(listed) + "\n")
    return root


def test_voc(tmp_path):
    pictures = {
        "a": voc_xml(("dog", 1, 2, 11, 12), ("cat", 3.5, 4, 40, 30)),
        "b": voc_xml(("cat", 5, 6, 7, 8), size=(0, 0)),
        "c": voc_xml(("dog", 5, 6, 7, 8)),
        "unlisted": voc_xml(),
    }
    sets = {"train": ["a  1"], "val": ["b -1"], "trainval": ["a", "b"], "test": ["c"], "dog_train": ["c"]}
    dataset = load_dataset(make_voc(tmp_path, pictures, sets))
    assert (dataset.task, dataset.data_format, dataset.classes) == ("object-detection", "voc", ("cat", "dog"))
    assert {split: names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["JPEGImages/a.jpg"],
        "validation": ["JPEGImages/b.jpg"],
        "test": ["JPEGImages/c.jpg"],
    }
    assert boxes(dataset.splits["train"][0]) == [(1, [1, 2, 11, 12]), (0, [3.5, 4, 40, 30])]
    assert not dataset.problems
    assert "unlisted.jpg" in dataset.notes[0]


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ({"trainval": "abcd"}, ("abcd", "")),
        ({"train": "ab", "trainval": "abcd"}, ("ab", "cd")),
        ({"val": "a", "trainval": "abcd"}, ("bcd", "a")),
        ({"trainval": "abcd", "test": "d"}, ("abc", "")),
        (None, ("abcd", "")),
    ],
)
def test_voc_lists(tmp_path, sets, expected):
    make_voc(tmp_path, {name: voc_xml(("cat", 1, 2, 3, 4)) for name in "abcd"}, sets)
    splits = load_dataset(tmp_path, validation_fraction=0).splits
    stems = {split: "".join(name[-5] for name in names(samples)) for split, samples in splits.items()}
    assert (stems["train"], stems.get("validation", "")) == expected


def test_voc_files_that_can_not_be_read(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]>' + voc_xml(("&y;", 1, 2, 3, 4))
    pictures = {
        "bomb": bomb,
        "broken": "<annotation><object>",
        "empty": "",
        "good": voc_xml(("cat", 1, 2, 3, 4), ("cat", "left", 2, 3, 4), ("", 1, 2, 3, 4)),
        "gone": voc_xml(("cat", 1, 2, 3, 4), filename="../../x.jpg"),
        "nothing": voc_xml(),
    }
    make_voc(tmp_path, pictures, {"train": [*pictures, "unwritten"]})
    (tmp_path / "Annotations" / "wide.xml").write_bytes(bomb.encode("utf-16"))
    write(tmp_path / "ImageSets" / "Main" / "val.txt", "wide")
    (tmp_path / "JPEGImages" / "gone.jpg").unlink()
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert names(dataset.splits["train"]) == ["JPEGImages/good.jpg", "JPEGImages/nothing.jpg"]
    assert [len(sample.objects.labels) for sample in dataset.splits["train"]] == [1, 0]
    assert problems(dataset) == [
        ("Annotations/bomb.xml", "unreadable annotation"),
        ("Annotations/broken.xml", "unreadable annotation"),
        ("Annotations/empty.xml", "empty label file"),
        ("Annotations/gone.xml", "missing picture"),
        ("Annotations/nothing.xml", "empty label file"),
        ("Annotations/unwritten.xml", "unreadable annotation"),
        ("Annotations/wide.xml", "unreadable annotation"),
        ("JPEGImages/good.jpg", "unknown class"),
        ("JPEGImages/good.jpg", "unreadable annotation"),
    ]


def test_xml_beside_the_pictures_of_each_split(tmp_path):
    for split in ("train", "valid"):
        save_picture(tmp_path / split / "a.JPG")
        write(tmp_path / split / "a.xml", voc_xml(("cat", 1, 2, 3, 4)))
    splits = load_dataset(tmp_path).splits
    assert {s: names(found) for s, found in splits.items()} == {
        "train": ["train/a.JPG"],
        "validation": ["valid/a.JPG"],
    }


# YOLO


def make_yolo(root, pattern, data_yaml=None):
    """Pictures of 40x30 pixels in train and val, labels where `pattern` with "labels" for "images" says."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            path = root / pattern.format(split=split)
            save_picture(path / f"{name}.jpg")
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
def test_yolo(tmp_path, pattern, data_yaml):
    folders = {split: pattern.format(split=split) for split in ("train", "val")}
    dataset = load_dataset(make_yolo(tmp_path, pattern, data_yaml and data_yaml.format(**folders)))
    assert (dataset.task, dataset.data_format, dataset.classes) == ("object-detection", "yolo", ("cat", "dog"))
    assert names(dataset.splits["train"]) == [f"{folders['train']}/{name}.jpg" for name in "ab"]
    assert names(dataset.splits["validation"]) == [f"{folders['val']}/{name}.jpg" for name in "ab"]
    ((label, box),) = boxes(dataset.splits["train"][0])
    assert label == 1
    assert box == pytest.approx([16, 9, 24, 21])
    assert not dataset.problems


def test_yolo_lists_of_files(tmp_path):
    make_yolo(tmp_path, "images/{split}", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    write(
        tmp_path / "train.txt", f"./images/train/b.jpg\n{tmp_path}/images/train/a.jpg\nimages/gone.jpg\n/etc/x.jpg\n"
    )
    write(tmp_path / "val.txt", "images/val/a.jpg\n")
    dataset = load_dataset(tmp_path / "data.yaml")
    assert names(dataset.splits["train"]) == ["images/train/b.jpg", "images/train/a.jpg"]
    assert problems(dataset) == [("/etc/x.jpg", "missing picture"), ("images/gone.jpg", "missing picture")]


def test_yolo_boxes_are_of_the_upright_picture(tmp_path):
    make_yolo(tmp_path, "images/{split}")
    save_picture(tmp_path / "images" / "train" / "a.jpg", (40, 30), orientation=6)
    ((_, box),) = boxes(load_dataset(tmp_path).splits["train"][0])
    assert box == pytest.approx([12, 12, 18, 28])


def test_yolo_label_files(tmp_path):
    lines = {
        "background": "",
        "bad": "0 0.5 0.5 0.2\n0 0.5 0.5 0.2 wide\n7 0.5 0.5 0.2 0.4\n0.5 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.1 0.1\n",
        "outside": "0 0.5 0.5 0.5 0.5\n0 0.9 0.5 0.4 0.5\n0 1.5 0.5 0.4 0.5\n0 0.5 0.5 0 0.1\n",
        "polygon": "1 0.25 0.5 0.75 0.5 0.5 0.9\n",
    }
    for name, text in lines.items():
        save_picture(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "labels" / f"{name}.txt", text)
    save_picture(tmp_path / "images" / "unlabelled.png")
    write(tmp_path / "images" / "damaged.png", "no picture")
    write(tmp_path / "labels" / "damaged.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "labels" / "classes.txt", "cat\ndog\n")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    found = {sample.name[7:-4]: boxes(sample) for sample in dataset.splits["train"]}
    assert set(found) == {"background", "bad", "outside", "polygon", "unlabelled"}
    assert found["background"] == found["unlabelled"] == []
    assert len(found["bad"]) == 1
    assert found["outside"][1][1] == pytest.approx([28, 7.5, 40, 22.5])
    assert found["polygon"][0][1] == pytest.approx([10, 15, 30, 27])
    assert problems(dataset) == [
        *[("images/bad.png", "unknown class")] * 2,
        *[("images/bad.png", "unreadable annotation")] * 2,
        ("images/damaged.png", "unreadable picture"),
        *[("images/outside.png", "box outside the picture")] * 2,
        ("images/outside.png", "box without area"),
        ("labels/background.txt", "empty label file"),
    ]
    assert "images/unlabelled.png" in dataset.notes[0]


@pytest.mark.parametrize(
    ("data_yaml", "message"),
    [
        ("names: [cat, cat]\n", "names that differ"),
        ("names: {1: cat}\n", "by number from 0"),
        ("names: [cat\n", "can't be read"),
        ("names: !!python/object/apply:os.getcwd []\n", "can't be read"),
        ("train: /elsewhere/images\nnames: [cat, dog]\n", "/elsewhere/images"),
        ("train: ../../images\nnames: [cat, dog]\n", None),
        ("train: nowhere\nnames: [cat, dog]\n", "nowhere"),
    ],
)
def test_yolo_yaml_mistakes(tmp_path, data_yaml, message):
    make_yolo(tmp_path, "images/{split}", data_yaml)
    if message is None:  # it was written elsewhere
        assert sizes(load_dataset(tmp_path, validation_fraction=0)) == {"train": 4}
        return
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path)
    assert str(tmp_path / "data.yaml") in str(caught.value)


def test_yolo_without_any_label_file(tmp_path):
    make_yolo(tmp_path, "images/{split}")
    (tmp_path / "labels").rename(tmp_path / "annots")
    with pytest.raises(ValueError, match="No label files"):
        load_dataset(tmp_path, data_format="yolo")


# Metadata beside pictures


OBJECTS = {
    "lists": {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "categories": ["dog", "cat"]},
    "entries": [{"bbox": [1, 2, 3, 4], "category": "dog"}, {"bbox": [5, 6, 7, 8], "category": "cat"}],
}


@pytest.mark.parametrize("form", OBJECTS)
@pytest.mark.parametrize("in_splits", [True, False])
def test_metadata_with_boxes(tmp_path, form, in_splits):
    for split in ("train", "test"):
        save_picture(tmp_path / split / "a.png")
        below = "" if in_splits else f"{split}/"
        path = tmp_path / (f"{split}/" if in_splits else "") / "metadata.jsonl"
        with open(path, "a") as file:
            file.write(json.dumps({"file_name": f"{below}a.png", "objects": OBJECTS[form]}) + "\n")
    dataset = load_dataset(tmp_path)
    assert (dataset.data_format, dataset.task, dataset.classes) == ("imagefolder", "object-detection", ("cat", "dog"))
    for split in ("train", "test"):
        (sample,) = dataset.splits[split]
        assert sample.name == f"{split}/a.png"
        assert boxes(sample) == [(1, [1, 2, 4, 6]), (0, [5, 6, 12, 14])]


def test_metadata_as_csv_with_numbers_and_mistakes(tmp_path):
    for name in "abc":
        save_picture(tmp_path / f"{name}.png")
    rows = {
        "a.png": {"bbox": [[1, 2, 3, 4], [5, 6, 0, 8]], "category": [2, 0], "area": [7, 7]},
        "b.png": {"bbox": [[1, 2, 3, 4]], "category": []},
        "c.png": {"bbox": [], "category": []},
        "../d.png": {"bbox": [], "category": []},
    }
    quoted = {name: json.dumps(row).replace('"', '""') for name, row in rows.items()}
    write(tmp_path / "metadata.csv", "file_name,objects\n" + "".join(f'{n},"{text}"\n' for n, text in quoted.items()))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == ("0", "1", "2")
    assert [boxes(sample) for sample in dataset.splits["train"]] == [[(2, [1, 2, 4, 6])], []]
    assert dataset.splits["train"][0].objects.areas.tolist() == [7]
    assert problems(dataset) == [
        ("a.png", "box without area"),
        ("b.png", "unreadable annotation"),
        ("metadata.csv", "missing picture"),
    ]


def test_metadata_with_labels_or_captions(tmp_path):
    for name in ("x/a.png", "y/b.png"):
        save_picture(tmp_path / name)
    rows = [{"file_name": "x/a.png", "label": "dog"}, {"file_name": "y/b.png", "label": "cat"}]
    write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert [dataset.classes[sample.label] for sample in dataset.splits["train"]] == ["dog", "cat"]
    write(tmp_path / "metadata.jsonl", "\n".join(json.dumps({"file_name": row["file_name"]}) for row in rows))
    assert load_dataset(tmp_path).classes == ("x", "y")


# The datasets library


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def labelled_rows(count, **columns):
    features = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["cat", "dog"])}
    values = {
        "img": [{"bytes": picture_bytes(colour=n), "path": None} for n in range(count)],
        "fine_label": [n % 2 for n in range(count)],
    }
    features |= {name: datasets.Value("int64") for name in columns}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


def object_rows(entries, form, **columns):
    """Rows of pictures of 40x30 pixels with objects, as a list of dictionaries or a dictionary of lists."""
    category = datasets.ClassLabel(names=["cat", "dog"])
    bbox = datasets.List(datasets.Value("float32"))
    if form == "entries":
        feature = datasets.List({"bbox": bbox, "category": category})
        values = [[{"bbox": box, "category": label} for label, box in row] for row in entries]
    else:
        feature = {"bbox": datasets.List(bbox), "category": datasets.List(category)}
        values = [{"bbox": [box for _, box in row], "category": [label for label, _ in row]} for row in entries]
    features = {"image": datasets.Image(), "objects": feature} | {name: datasets.Value("int64") for name in columns}
    values = {"image": [{"bytes": picture_bytes(), "path": None}] * len(entries), "objects": values}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


def save(rows, root, how):
    root.mkdir()
    if how == "disk":
        datasets.DatasetDict(rows).save_to_disk(str(root))
    else:
        for split, found in rows.items():
            found.to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return root


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_rows_with_labels(tmp_path, how):
    rows = {"train": labelled_rows(20, coarse=list(range(20))), "test": labelled_rows(3, coarse=[0] * 3)}
    dataset = load_dataset(save(rows, tmp_path / "data", how))
    assert (dataset.task, dataset.data_format) == ("image-classification", "datasets")
    assert dataset.classes == ("cat", "dog")
    assert sizes(dataset) == {"train": 18, "validation": 2, "test": 3}
    samples = [*dataset.splits["train"], *dataset.splits["validation"]]
    assert {(s.name, s.image, s.label) for s in samples} == {
        (f"train[{n}]", picture_bytes(colour=n), n % 2) for n in range(20)
    }
    assert [s.label for s in dataset.splits["validation"]] in ([0, 1], [1, 0])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["lists", "entries"])
@pytest.mark.parametrize("stated", [False, True])
def test_rows_with_objects(tmp_path, form, streaming, stated):
    entries = [
        [(1, [1, 2, 3, 4]), (0, [5, 6, 7, 8])],
        [(0, [1, 2, 0, 4]), (0, [35, 6, 20, 8])],
        [(1, [1, 2, 0, 4])],
        [],
    ]
    columns = {"width": [40] * 4, "height": [30] * 4} if stated else {}
    root = save({"train": object_rows(entries, form, **columns)}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, streaming=streaming, validation_fraction=0)
    assert (dataset.task, dataset.classes) == ("object-detection", ("cat", "dog"))
    for _ in range(2):  # a second round over a stream finds the same, and says nothing twice
        assert [(s.name, boxes(s)) for s in dataset.splits["train"]] == [
            ("train[0]", [(1, [1, 2, 4, 6]), (0, [5, 6, 12, 14])]),
            ("train[1]", [(0, [35, 6, 40, 14])]),
            ("train[3]", []),
        ]
    assert problems(dataset) == [
        ("train[1]", "box outside the picture"),
        ("train[1]", "box without area"),
        ("train[2]", "box without area"),
    ]


def test_a_stream_is_cut_by_content(tmp_path):
    rows = {"train": labelled_rows(200)}
    dataset = load_dataset(save(rows, tmp_path / "data", "parquet"), streaming=True, validation_fraction=0.2)
    train, validation = ({sample.image for sample in dataset.splits[split]} for split in ("train", "validation"))
    assert not hasattr(dataset.splits["train"], "__len__")
    assert not train & validation
    assert len(train | validation) == 200
    assert 20 < len(validation) < 60
    assert "hash" in dataset.notes[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_reach_no_file_outside(tmp_path, streaming):
    save_picture(tmp_path / "secret.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    pictures = [{"bytes": picture_bytes(), "path": None}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    pictures += [{"bytes": None, "path": "http://localhost/x.png"}, None]
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [0] * 4}, features=features)
    (tmp_path / "data").mkdir()
    parquet.write_table(rows.with_format("arrow")[:], tmp_path / "data" / "train.parquet")
    dataset = load_dataset(tmp_path / "data", streaming=streaming, validation_fraction=0)
    assert names(dataset.splits["train"]) == ["train[0]"]
    assert problems(dataset) == [(f"train[{n}]", "missing picture") for n in (1, 2, 3)]


def test_rows_without_labels(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [{"bytes": picture_bytes(), "path": None}] * 3
    rows = {
        "train": datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, None]}, features=features),
        "test": datasets.Dataset.from_dict({"image": pictures, "label": [-1] * 3}, features=features),
    }
    dataset = load_dataset(save(rows, tmp_path / "data", "disk"), validation_fraction=0)
    assert sizes(dataset) == {"train": 2}
    assert problems(dataset) == [("train[2]", "unknown class")]
    assert any("test" in note for note in dataset.notes)


def test_rows_with_names_for_labels(tmp_path):
    pictures = [{"bytes": picture_bytes(), "path": None}] * 3
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": ["dog", "cat", "dog"]}, features=features)
    root = save({"train": rows}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, validation_fraction=0)
    assert dataset.classes == ("cat", "dog")
    assert [sample.label for sample in dataset.splits["train"]] == [1, 0, 1]
    with pytest.raises(ValueError, match="doesn't name the classes"):
        load_dataset(root, streaming=True)


def test_rows_without_pictures_or_labels(tmp_path):
    root = save({"train": datasets.Dataset.from_dict({"text": ["a"]})}, tmp_path / "text", "disk")
    with pytest.raises(ValueError, match="one column of images, got text"):
        load_dataset(root)
    root = save({"train": labelled_rows(2).remove_columns("fine_label")}, tmp_path / "bare", "disk")
    with pytest.raises(ValueError, match=r"`label` or `objects`, got img"):
        load_dataset(root)


def test_samples_travel_to_other_processes(tmp_path, class_folders, coco):
    rows = load_dataset(save({"train": labelled_rows(4)}, tmp_path / "rows", "disk"))
    for dataset in (rows, load_dataset(class_folders), load_dataset(coco)):
        train = dataset.splits["train"]
        copy = pickle.loads(pickle.dumps(train))
        assert [repr(sample) for sample in copy] == [repr(sample) for sample in train]
        assert repr(train[-1]) == repr(train[len(train) - 1]) == repr(train[-2:][1])
        with pytest.raises(IndexError):
            train[len(train)]


# What a user may get wrong


def test_no_such_place(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        load_dataset(tmp_path / "nowhere")


def test_nothing_in_it(tmp_path):
    with pytest.raises(ValueError, match="holds no data set"):
        load_dataset(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="No pictures in class folders"):
        load_dataset(tmp_path)


def test_more_than_one_format(tmp_path):
    make_voc(tmp_path, {"a": voc_xml(("cat", 1, 2, 3, 4))})
    write(tmp_path / "classes.txt", "dog")
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match="voc or yolo"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, data_format="voc").classes == ("cat",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_format": "tfrecord"}, "none of"),
        ({"validation_fraction": 1}, "less than 1"),
        ({"validation_fraction": -0.1}, "at least 0"),
        ({"streaming": True}, "can't be streamed"),
        ({"revision": "main"}, "on the Hub"),
        ({"data_format": "coco"}, "No COCO annotations"),
        ({"data_format": "voc"}, "No XML files"),
        ({"data_format": "yolo"}, r"classes\.txt"),
    ],
)
def test_wrong_arguments(class_folders, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(class_folders, **options)


def test_a_file_of_no_format(tmp_path):
    save_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a file"):
        load_dataset(tmp_path / "a.png")


def test_no_picture_that_can_be_used(tmp_path):
    write(tmp_path / "coco.json", one_picture([]))
    with pytest.raises(ValueError, match=r"1 problems.*a\.jpg"):
        load_dataset(tmp_path)


# The Hub


def test_a_hub_that_is_down(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="can't be reached"):
        load_dataset("user/name")


@pytest.mark.slow
def test_the_hub(run_python, tmp_path):
    save({"train": labelled_rows(20), "test": labelled_rows(4)}, tmp_path / "data", "parquet")
    write(tmp_path / "script" / "script.py", "raise SystemExit")
    code = f"""
        from huggingface_hub import HfApi
        for name, folder in {{"animals": "data", "script": "script"}}.items():
            HfApi().create_repo(f"user/{{name}}", repo_type="dataset", private=True)
            path = {str(tmp_path)!r} + "/" + folder
            HfApi().upload_folder(folder_path=path, repo_id=f"user/{{name}}", repo_type="dataset")

        from mobilevit_hf.data.reading import load_dataset
        for streaming in (False, True):
            dataset = load_dataset("user/animals", streaming=streaming)
            print(dataset.classes, [sample.label for sample in dataset.splits["test"]], dataset.root)
        for name in ("absent", "script"):
            try:
                load_dataset(f"user/{{name}}", token="hf_loopback")
            except ValueError as error:
                print(error, error.__context__)
    """
    with HubServer() as hub:
        downloaded, streamed, absent, script = run_python(code, hub.environment(tmp_path / "home")).splitlines()
    assert downloaded == streamed == "('cat', 'dog') [0, 1, 0, 1] None"
    assert "no such data set on the Hub" in absent
    assert "can't be read" in script
    assert "hf_loopback" not in absent + script


# Real ones


@pytest.mark.parametrize(
    ("name", "data_format", "class_count", "counts"),
    [
        ("clothing", "imagefolder", 10, {"train": 3068, "validation": 341, "test": 372}),
        ("bccd", "voc", 3, {"train": 205, "validation": 87, "test": 72}),
        ("corn-leaf", "imagefolder", 4, {"train": 54, "validation": 6}),
    ],
)
def test_real_data_sets(reference_data, name, data_format, class_count, counts):
    dataset = load_dataset(reference_data / "data" / name)
    assert dataset.data_format == data_format
    assert len(dataset.classes) == class_count
    assert sizes(dataset) == counts


def test_the_boxes_without_area_of_a_real_data_set(reference_data):
    root = reference_data / "data" / "bccd"
    dataset = load_dataset(root)
    assert problems(dataset) == [(f"JPEGImages/BloodImage_00{n}.jpg", "box without area") for n in (338, 343)]
    stated = sum(path.read_text().count("<object>") for path in (root / "Annotations").iterdir())
    assert sum(len(s.objects.labels) for samples in dataset.splits.values() for s in samples) == stated - 2
