"""Images with boxes in COCO's, Pascal VOC's and YOLO's files: what is read of them."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from written_data import boxes, names, one_image, problems, save_image, sizes, write

from mobilevit_hf.data.reading import load_dataset

# COCO


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


@pytest.mark.parametrize(
    ("box", "kept", "kind"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 6], None),
        ([0, 0, 40, 30], [0, 0, 40, 30], None),
        ([30, 20, 10.9, 10.9], [30, 20, 40, 30], None),  # what rounding may do
        ([-3, 20, 10, 5], [0, 20, 7, 25], "box outside the image"),
        ([30, 20, 100, 5], [30, 20, 40, 25], "box outside the image"),
        ([41, 2, 10, 10], None, "box outside the image"),
        ([-10, 2, 10, 10], None, "box outside the image"),
        ([3, 4, 0, 5], None, "box without area"),
        ([3, 4, 5, -1], None, "box without area"),
        ([1, 2, 3], None, "unreadable annotation"),
        ([1, 2, 3, "wide"], None, "unreadable annotation"),
        ([1, 2, 3, float("nan")], None, "unreadable annotation"),
        (None, None, "unreadable annotation"),
    ],
)
def test_boxes_that_can_not_be_trained_on(tmp_path, box, kept, kind):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", one_image([[5, 5, 5, 5], box]))
    dataset = load_dataset(tmp_path)
    assert boxes(dataset.splits["train"][0])[1:] == ([(0, kept)] if kept else [])
    assert problems(dataset) == ([("a.jpg", kind)] if kind else [])
    assert "box 2" in (dataset.problems[0].reason if kind else "box 2")


def test_a_image_with_bad_boxes_alone_is_not_background(tmp_path):
    for name in "ab":
        save_image(tmp_path / f"{name}.jpg")
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in ((1, "a"), (2, "b"))]
    write(tmp_path / "coco.json", one_image([[5, 5, 0, 5]], images=images))
    assert names(load_dataset(tmp_path).splits["train"]) == ["b.jpg"]


def test_areas_are_of_the_boxes_if_not_stated(tmp_path):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", one_image([[35, 5, 20, 4]]))
    assert load_dataset(tmp_path).splits["train"][0].objects.areas.tolist() == [20]


def test_coco_entries_that_point_nowhere(tmp_path):
    save_image(tmp_path / "a.jpg")
    content = one_image([[5, 5, 5, 5]])
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
        ("gone.jpg", "missing image"),
    ]


def test_coco_in_the_folders_of_splits(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.jpg")
        categories = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "cell", "supercategory": "cells"},
        ]
        write(tmp_path / split / "_annotations.coco.json", one_image([[1, 2, 3, 4]], categories=categories))
    dataset = load_dataset(tmp_path)
    assert {split: names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["train/a.jpg"],
        "validation": ["valid/a.jpg"],
    }
    assert dataset.classes == ("cell",)
    assert "cells" in dataset.notes[0]


def test_one_coco_file(tmp_path):
    save_image(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels_of_mine.json", one_image([[1, 2, 3, 4]]))
    assert names(load_dataset(tmp_path / "labels_of_mine.json").splits["train"]) == ["images/a.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ([], "`images`"),
        (one_image([], categories={}), "`categories`"),
        (one_image([], annotations=[1]), "`annotations`"),
        (one_image([], categories=[{"id": "1", "name": "a"}]), "integer `id`"),
        (one_image([], categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "names that differ"),
    ],
)
def test_json_of_another_shape(tmp_path, content, message):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path, data_format="coco")
    assert str(tmp_path / "coco.json") in str(caught.value)


def test_splits_that_number_the_classes_differently(tmp_path):
    for split, name in {"train": "cat", "val": "dog"}.items():
        save_image(tmp_path / split / "a.jpg")
        write(tmp_path / "annotations" / f"{split}.json", one_image([], categories=[{"id": 1, "name": name}]))
    with pytest.raises(ValueError, match="category 1"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_from_before_the_turn_is_reported(tmp_path, orientation):
    save_image(tmp_path / "a.jpg", (40, 30), orientation)
    save_image(tmp_path / "b.jpg")
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in ((1, "a"), (2, "b"))]
    write(tmp_path / "coco.json", one_image([[1, 2, 3, 4]], images=images))
    dataset = load_dataset(tmp_path)
    is_turned = orientation in (6, 8)
    assert problems(dataset) == ([("a.jpg", "unreadable annotation")] if is_turned else [])
    upright = one_image([[1, 2, 3, 4]], images=[{"id": 1, "file_name": "a.jpg", "width": 30, "height": 40}])
    write(tmp_path / "coco.json", upright)
    assert not load_dataset(tmp_path).problems


# Pascal VOC


def voc_xml(*objects, size=(40, 30), filename="whatever.jpg"):
    entries = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{stated}{entries}</annotation>"


def make_voc(root, images, sets=None):
    for name, text in images.items():
        save_image(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", text)
    for name, listed in (sets or {}).items():
        write(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(listed) + "\n")
    return root


def test_voc(tmp_path):
    images = {
        "a": voc_xml(("dog", 1, 2, 11, 12), ("cat", 3.5, 4, 40, 30)),
        "b": voc_xml(("cat", 5, 6, 7, 8), size=(0, 0)),
        "c": voc_xml(("dog", 5, 6, 7, 8)),
        "unlisted": voc_xml(),
    }
    sets = {"train": ["a  1"], "val": ["b -1"], "trainval": ["a", "b"], "test": ["c"], "dog_train": ["c"]}
    dataset = load_dataset(make_voc(tmp_path, images, sets))
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
    images = {
        "bomb": bomb,
        "broken": "<annotation><object>",
        "empty": "",
        "good": voc_xml(("cat", 1, 2, 3, 4), ("cat", "left", 2, 3, 4), ("", 1, 2, 3, 4)),
        "gone": voc_xml(("cat", 1, 2, 3, 4), filename="../../x.jpg"),
        "nothing": voc_xml(),
    }
    make_voc(tmp_path, images, {"train": [*images, "unwritten"]})
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
        ("Annotations/gone.xml", "missing image"),
        ("Annotations/nothing.xml", "empty label file"),
        ("Annotations/unwritten.xml", "unreadable annotation"),
        ("Annotations/wide.xml", "unreadable annotation"),
        ("JPEGImages/good.jpg", "unknown class"),
        ("JPEGImages/good.jpg", "unreadable annotation"),
    ]


def test_xml_beside_the_images_of_each_split(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.JPG")
        write(tmp_path / split / "a.xml", voc_xml(("cat", 1, 2, 3, 4)))
    splits = load_dataset(tmp_path).splits
    assert {s: names(found) for s, found in splits.items()} == {
        "train": ["train/a.JPG"],
        "validation": ["valid/a.JPG"],
    }


# YOLO


def make_yolo(root, pattern, data_yaml=None):
    """Images of 40x30 pixels in train and val, labels where `pattern` with "labels" for "images" says."""
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
    assert problems(dataset) == [("/etc/x.jpg", "missing image"), ("images/gone.jpg", "missing image")]


def test_yolo_boxes_are_of_the_upright_image(tmp_path):
    make_yolo(tmp_path, "images/{split}")
    save_image(tmp_path / "images" / "train" / "a.jpg", (40, 30), orientation=6)
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
        save_image(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "labels" / f"{name}.txt", text)
    save_image(tmp_path / "images" / "unlabelled.png")
    write(tmp_path / "images" / "damaged.png", "no image")
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
        ("images/damaged.png", "unreadable image"),
        *[("images/outside.png", "box outside the image")] * 2,
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


# More than one


def test_more_than_one_format(tmp_path):
    make_voc(tmp_path, {"a": voc_xml(("cat", 1, 2, 3, 4))})
    write(tmp_path / "classes.txt", "dog")
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match="voc or yolo"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, data_format="voc").classes == ("cat",)
