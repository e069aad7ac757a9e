"""COCO JSON."""

import numpy as np
import pytest
from dataset_files import coco_json, labeled_boxes, problem_kinds, sample_names, save_image, split_sizes, write
from pycocotools.coco import COCO

from mobilevit_hf.data.reading import load_dataset


def test_coco_matches_pycocotools(coco_dataset):
    dataset = load_dataset(coco_dataset)
    assert (dataset.task, dataset.data_format) == ("object-detection", "coco")
    assert dataset.classes == ("person", "sign", "brush")
    assert split_sizes(dataset) == {"train": 6, "validation": 3}
    for split, stem in {"train": "train2017", "validation": "val2017"}.items():
        reference = COCO(str(coco_dataset / "annotations" / f"instances_{stem}.json"))
        for sample in dataset.splits[split]:
            (image,) = [i for i in reference.imgs.values() if sample.name == f"{stem}/{i['file_name']}"]
            entries = reference.loadAnns(reference.getAnnIds(image["id"]))
            assert sample.image == str(coco_dataset / sample.name)
            expected = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in entries)]
            np.testing.assert_allclose(sample.objects.boxes, np.reshape(expected, (-1, 4)), rtol=1e-6)
            assert [dataset.classes[n] for n in sample.objects.labels] == [
                reference.cats[entry["category_id"]]["name"] for entry in entries
            ]
            assert sample.objects.iscrowd.tolist() == [entry["iscrowd"] for entry in entries]
            np.testing.assert_allclose(sample.objects.areas, [entry["area"] for entry in entries], rtol=1e-6)


def test_unresolved_references_are_problems(tmp_path):
    save_image(tmp_path / "a.jpg")
    content = coco_json([[5, 5, 5, 5]])
    content["images"] += [{"id": 2, "file_name": "gone.jpg"}, {"id": 1, "file_name": "a.jpg"}, {"file_name": 3}]
    content["annotations"] += [
        {"id": 8, "image_id": 77, "category_id": 1, "bbox": [1, 1, 2, 2]},
        {"id": 9, "image_id": 1, "category_id": 5, "bbox": [1, 1, 2, 2]},
        {"id": 10, "image_id": [1], "category_id": [5], "bbox": [1, 1, 2, 2]},
    ]
    write(tmp_path / "coco.json", content)
    dataset = load_dataset(tmp_path)
    assert [labeled_boxes(sample) for sample in dataset.splits["train"]] == [[(0, [5, 5, 10, 10])]]
    assert problem_kinds(dataset) == [
        ("a.jpg", "unknown class"),
        *[("coco.json", "unreadable annotation")] * 4,
        ("gone.jpg", "missing image"),
    ]


def test_files_in_split_folders(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.jpg")
        categories = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 1, "name": "cell", "supercategory": "cells"},
        ]
        write(tmp_path / split / "_annotations.coco.json", coco_json([[1, 2, 3, 4]], categories=categories))
    dataset = load_dataset(tmp_path)
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["train/a.jpg"],
        "validation": ["valid/a.jpg"],
    }
    assert dataset.classes == ("cell",)
    assert "cells" in dataset.notes[0]


def test_single_file(tmp_path):
    save_image(tmp_path / "images" / "a.jpg")
    write(tmp_path / "my_labels.json", coco_json([[1, 2, 3, 4]]))
    assert sample_names(load_dataset(tmp_path / "my_labels.json").splits["train"]) == ["images/a.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ([], "`images`"),
        (coco_json([], categories={}), "`categories`"),
        (coco_json([], annotations=[1]), "`annotations`"),
        (coco_json([], categories=[{"id": "1", "name": "a"}]), "integer `id`"),
        (coco_json([], categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "unique names"),
    ],
)
def test_invalid_json_raises(tmp_path, content, message):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(tmp_path, data_format="coco")
    assert str(tmp_path / "coco.json") in str(caught.value)


def test_different_categories_in_splits_raise(tmp_path):
    for split, name in {"train": "cat", "val": "dog"}.items():
        save_image(tmp_path / split / "a.jpg")
        write(tmp_path / "annotations" / f"{split}.json", coco_json([], categories=[{"id": 1, "name": name}]))
    with pytest.raises(ValueError, match="category 1"):
        load_dataset(tmp_path)
