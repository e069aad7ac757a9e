"""Pascal VOC XML."""

import pytest
from dataset_files import labeled_boxes, problem_kinds, sample_names, save_image, voc_xml, write, write_voc_dataset

from mobilevit_hf.data.reading import load_dataset


def test_splits_and_boxes(tmp_path):
    annotations = {
        "a": voc_xml(("dog", 1, 2, 11, 12), ("cat", 3.5, 4, 40, 30)),
        "b": voc_xml(("cat", 5, 6, 7, 8), size=(0, 0)),
        "c": voc_xml(("dog", 5, 6, 7, 8)),
        "unlisted": voc_xml(),
    }
    image_sets = {"train": ["a  1"], "val": ["b -1"], "trainval": ["a", "b"], "test": ["c"], "dog_train": ["c"]}
    dataset = load_dataset(write_voc_dataset(tmp_path, annotations, image_sets))
    assert (dataset.task, dataset.data_format, dataset.classes) == ("object-detection", "voc", ("cat", "dog"))
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["JPEGImages/a.jpg"],
        "validation": ["JPEGImages/b.jpg"],
        "test": ["JPEGImages/c.jpg"],
    }
    assert labeled_boxes(dataset.splits["train"][0]) == [(1, [1, 2, 11, 12]), (0, [3.5, 4, 40, 30])]
    assert not dataset.problems
    assert "unlisted.jpg" in dataset.notes[0]


@pytest.mark.parametrize(
    ("image_sets", "expected"),
    [
        ({"trainval": "abcd"}, ("abcd", "")),
        ({"train": "ab", "trainval": "abcd"}, ("ab", "cd")),
        ({"val": "a", "trainval": "abcd"}, ("bcd", "a")),
        ({"trainval": "abcd", "test": "d"}, ("abc", "")),
        (None, ("abcd", "")),
    ],
)
def test_trainval_lists(tmp_path, image_sets, expected):
    write_voc_dataset(tmp_path, {name: voc_xml(("cat", 1, 2, 3, 4)) for name in "abcd"}, image_sets)
    splits = load_dataset(tmp_path, validation_fraction=0).splits
    stems = {split: "".join(name[-5] for name in sample_names(samples)) for split, samples in splits.items()}
    assert (stems["train"], stems.get("validation", "")) == expected


def test_unreadable_files_are_problems(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]>' + voc_xml(("&y;", 1, 2, 3, 4))
    annotations = {
        "bomb": bomb,
        "invalid": "<annotation><object>",
        "empty": "",
        "partly_valid": voc_xml(("cat", 1, 2, 3, 4), ("cat", "left", 2, 3, 4), ("", 1, 2, 3, 4)),
        "missing": voc_xml(("cat", 1, 2, 3, 4), filename="../../x.jpg"),
        "without_objects": voc_xml(),
    }
    write_voc_dataset(tmp_path, annotations, {"train": [*annotations, "without_file"]})
    (tmp_path / "Annotations" / "utf16.xml").write_bytes(bomb.encode("utf-16"))
    write(tmp_path / "ImageSets" / "Main" / "val.txt", "utf16")
    (tmp_path / "JPEGImages" / "missing.jpg").unlink()
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert sample_names(dataset.splits["train"]) == ["JPEGImages/partly_valid.jpg", "JPEGImages/without_objects.jpg"]
    assert [len(sample.objects.labels) for sample in dataset.splits["train"]] == [1, 0]
    assert problem_kinds(dataset) == [
        ("Annotations/bomb.xml", "unreadable annotation"),
        ("Annotations/empty.xml", "empty label file"),
        ("Annotations/invalid.xml", "unreadable annotation"),
        ("Annotations/missing.xml", "missing image"),
        ("Annotations/utf16.xml", "unreadable annotation"),
        ("Annotations/without_file.xml", "unreadable annotation"),
        ("Annotations/without_objects.xml", "empty label file"),
        ("JPEGImages/partly_valid.jpg", "unknown class"),
        ("JPEGImages/partly_valid.jpg", "unreadable annotation"),
    ]


def test_xml_next_to_the_images_of_each_split(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.JPG")
        write(tmp_path / split / "a.xml", voc_xml(("cat", 1, 2, 3, 4)))
    splits = load_dataset(tmp_path).splits
    assert {split: sample_names(samples) for split, samples in splits.items()} == {
        "train": ["train/a.JPG"],
        "validation": ["valid/a.JPG"],
    }
