"""COCO JSON."""

import json

import numpy as np
import pytest
from dataset_files import coco_json, labeled_boxes, problem_kinds, sample_names, save_image, split_sizes, write
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from mobilevit_hf.data.formats import coco
from mobilevit_hf.data.formats.folder import DataFolder
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
        (coco_json([], categories=[{"id": [1], "name": "a"}]), "unique `id`"),
        (coco_json([], categories=[{"id": 1, "name": "a"}, {"id": "1", "name": "b"}]), "unique `id`"),
        (coco_json([], categories=[{"id": 1, "name": None}]), "`name`"),
        (coco_json([], annotations=[{"id": 1, "image_id": 1, "category_id": 1}]), "without `bbox`"),
        (coco_json([[0.1, 0.2, 0.3, 0.4]]), "boxes within 0..1"),
        ("[" * 100_000, "can't be read as JSON"),
        ('{"images": []}\n{"annotations": []}', "can't be read as JSON"),
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


@pytest.mark.parametrize("image_id", ["1", " 1", "1.0", 1.0, 1])
@pytest.mark.parametrize("category_id", ["3", 3.0, 3])
def test_ids_may_be_numbers_or_strings(tmp_path, image_id, category_id):
    save_image(tmp_path / "a.jpg")
    annotations = [{"id": 1, "image_id": image_id, "category_id": category_id, "bbox": ["1", "2", "3", 4.0]}]
    write(tmp_path / "export.json", coco_json([], annotations=annotations, categories=[{"id": "3", "name": "cell"}]))
    dataset = load_dataset(tmp_path)
    assert labeled_boxes(dataset.splits["train"][0]) == [(0, [1, 2, 4, 6])]
    assert not dataset.problems


def test_ids_that_are_names(tmp_path):
    save_image(tmp_path / "a.jpg")
    annotations = [{"image_id": "a-7f", "category_id": "cell", "bbox": [1, 2, 3, 4]}]
    images = [{"id": "a-7f", "file_name": "a.jpg"}]
    content = coco_json([], annotations=annotations, images=images, categories=[{"id": "cell", "name": "Cell"}])
    write(tmp_path / "coco.json", content)
    assert labeled_boxes(load_dataset(tmp_path).splits["train"][0]) == [(0, [1, 2, 4, 6])]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 10, 30, 10, 30, 25.5, 10, 25.5]],
        [[10, 10, 15, 10, 15, 12], [20, 20, 30, 25.5, 22, 22]],  # two parts
        [10, 10, 30, 10, 30, 25.5],
        [[10, 10], [30, 10], [30, 25.5]],
        [["10", "10", "30", "25.5"]],
    ],
)
@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}])
def test_box_of_polygons_is_their_extent(tmp_path, segmentation, bbox):
    save_image(tmp_path / "a.jpg")
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation} | bbox]
    write(tmp_path / "coco.json", coco_json([], annotations=annotations))
    assert labeled_boxes(load_dataset(tmp_path).splits["train"][0]) == [(0, [10, 10, 30, 25.5])]


@pytest.mark.parametrize(
    "segmentation", [{"size": [30, 40], "counts": [100, 50]}, [[1, 2, 3]], [[]], "abc", [[1, "x"]], [None], 5]
)
def test_segmentation_without_polygons_is_a_problem(tmp_path, segmentation):
    save_image(tmp_path / "a.jpg")
    content = coco_json([[5, 5, 5, 5]])
    content["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "segmentation": segmentation})
    write(tmp_path / "coco.json", content)
    dataset = load_dataset(tmp_path)
    assert problem_kinds(dataset) == [("a.jpg", "unreadable annotation")]
    assert len(dataset.splits["train"][0].objects.labels) == 1


@pytest.mark.parametrize(("value", "expected"), [(None, 0), (0, 0), (1, 1), (True, 1), ("0", 0), ("1", 1)])
def test_iscrowd(tmp_path, value, expected):
    save_image(tmp_path / "a.jpg")
    annotations = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": value, "area": 0}]
    write(tmp_path / "coco.json", coco_json([], annotations=annotations))
    objects = load_dataset(tmp_path).splits["train"][0].objects
    assert objects.iscrowd.tolist() == [expected]
    assert objects.areas.tolist() == [12]  # an exporter's placeholder is not an area


@pytest.mark.parametrize(
    ("categories", "used", "expected"),
    [
        (  # Roboflow's placeholder with the name of the class, or of the project
            [
                {"id": 0, "name": "cells", "supercategory": "none"},
                {"id": 1, "name": "cells", "supercategory": "cells"},
            ],
            1,
            ("cells",),
        ),
        (
            [{"id": 0, "name": "p-x1", "supercategory": "none"}, {"id": 1, "name": "a", "supercategory": "p-x1"}],
            1,
            ("a",),
        ),
        ([{"id": 0, "name": "_background_"}, {"id": 1, "name": "a"}], 1, ("a",)),
        ([{"id": 0, "name": "background"}, {"id": 1, "name": "a"}], 0, ("background", "a")),
        ([{"id": 7, "name": "b"}, {"id": 2, "name": " a "}, {"id": 0, "name": "c"}], 7, ("c", "a", "b")),
        ([{"id": 0, "name": "a"}, {"id": 1, "name": "a"}], 0, ("a",)),
        ([{"id": 1, "name": 5}], 1, ("5",)),
        ([{"id": 1, "name": "a", "supercategory": None}], 1, ("a",)),
    ],
)
def test_categories(tmp_path, categories, used, expected):
    save_image(tmp_path / "a.jpg")
    annotations = [{"image_id": 1, "category_id": used, "bbox": [1, 2, 3, 4]}]
    write(tmp_path / "coco.json", coco_json([], annotations=annotations, categories=categories))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == expected
    (label,) = dataset.splits["train"][0].objects.labels.tolist()
    assert expected[label] == str(next(c["name"] for c in categories if c["id"] == used)).strip()


def test_file_without_categories(tmp_path):
    save_image(tmp_path / "a.jpg")
    content = coco_json([[1, 2, 3, 4]])
    del content["categories"]
    write(tmp_path / "coco.json", content)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("1",)
    assert "no categories" in dataset.notes[0]


def test_classes_are_compared_by_name(tmp_path):
    """Some exporters number the categories of each split by their first use."""
    for split, names in {"train": ["cat", "dog"], "val": ["dog", "cat"]}.items():
        save_image(tmp_path / split / "a.jpg")
        categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        write(tmp_path / f"{split}.json", coco_json([[1, 2, 3, 4]], categories=categories))
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert [samples[0].objects.labels.tolist() for samples in dataset.splits.values()] == [[0], [1]]


@pytest.mark.parametrize(
    ("json_files", "images", "expected"),
    [
        (["train_annotations.json", "val_annotations.json"], "images/{split}/a.jpg", ["train", "validation"]),
        (["annotations/instances_default.json"], "images/default/a.jpg", ["train"]),
        (["annotations/train.json", "annotations/val.json"], "images/{split}/a.jpg", ["train", "validation"]),
        (["train/labels.json", "val/labels.json"], "{split}/data/a.jpg", ["train", "validation"]),
        (["result.json"], "images/a.jpg", ["train"]),
        (["coco/export (1).json"], "photos/2024/a.jpg", ["train"]),
        (["data/labels.json", "data/val.json"], "data/{split}/a.jpg", ["train", "validation"]),
        (["annotations/instances_train.json", "annotations/person_keypoints_train.json"], "train/a.jpg", ["train"]),
    ],
)  # fmt: skip
def test_files_are_recognized_by_their_keys(tmp_path, json_files, images, expected):
    for file in json_files:
        split = "val" if "val" in file else "train"
        save_image(tmp_path / images.format(split=split))
        write(tmp_path / file, coco_json([[1, 2, 3, 4]]))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.data_format == "coco"
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == {
        split: [images.format(split="val" if split == "validation" else split)] for split in expected
    }


@pytest.mark.parametrize(
    "content",
    [
        {"categories": [{"id": 0, "name": "cat"}], "info": {"contributor": "Label Studio"}},
        {"images": [], "annotations": []},  # captions
        coco_json([]) | {"annotations": [{"image_id": 1, "segments_info": []}]},  # panoptic
        [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
        {"version": "5.4", "shapes": [], "imagePath": "a.jpg", "imageData": None},
        "",
    ],
)
def test_other_json_is_not_recognized(tmp_path, content):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "a.json", content)
    assert not coco.recognizes(DataFolder(tmp_path))


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("a.jpg", "images/a.JPG"),
        ("images\\1/a.jpg", "images/a.jpg"),
        ("..\\label\\a.jpg", "images/a.jpg"),
        ("/home/someone/project/images/a.jpg", "images/a.jpg"),
        ("https://host/files/my%20photo.jpg", "images/my photo.jpg"),
        ("https://host/a%20b/a.jpg?expires=1&signature=1%2F2", "images/a.jpg"),
        ("my photo.jpg ", "images/my photo.jpg"),
        ("/data/local-files/?d=images/a.jpg", "images/a.jpg"),
        ("a.jpg", "photos/site 1/a.jpg"),
    ],
)
def test_image_names(tmp_path, file_name, name):
    save_image(tmp_path / name)
    images = [{"id": 1, "file_name": file_name, "width": 40, "height": 30}]
    write(tmp_path / "annotations" / "export.json", coco_json([[1, 2, 3, 4]], images=images))
    dataset = load_dataset(tmp_path)
    assert sample_names(dataset.splits["train"]) == [name]
    assert not dataset.problems


def test_images_of_the_same_name_in_another_split_are_missing(tmp_path):
    for split, names in {"train": "ab", "val": "b"}.items():
        for name in names:
            save_image(tmp_path / "images" / split / f"{name}.jpg")
    images = [{"id": n, "file_name": f"x/{name}.jpg"} for n, name in enumerate("ab")]
    for split in ("train", "val"):
        annotations = [{"image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in (0, 1)]
        write(tmp_path / f"{split}.json", coco_json([], images=images, annotations=annotations))
    dataset = load_dataset(tmp_path)
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["images/train/a.jpg", "images/train/b.jpg"],
        "validation": ["images/val/b.jpg"],
    }
    assert problem_kinds(dataset) == [("x/a.jpg", "missing image")]


def test_boxes_of_an_image_that_is_listed_twice_are_combined(tmp_path):
    save_image(tmp_path / "a.jpg")
    images = [{"id": n, "file_name": "a.jpg", "width": 40, "height": 30} for n in (1, 2)]
    annotations = [{"image_id": n, "category_id": 1, "bbox": [n, 2, 3, 4]} for n in (1, 2)]
    write(tmp_path / "coco.json", coco_json([], images=images, annotations=annotations))
    dataset = load_dataset(tmp_path)
    assert [labeled_boxes(sample) for sample in dataset.splits["train"]] == [[(0, [1, 2, 4, 6]), (0, [2, 2, 5, 6])]]
    assert "more than once" in dataset.notes[0]


def test_unlisted_images_are_noted(tmp_path):
    for name in "ab":
        save_image(tmp_path / "images" / f"{name}.jpg")
    write(tmp_path / "coco.json", coco_json([[1, 2, 3, 4]]))
    dataset = load_dataset(tmp_path)
    assert "Skipped 1 images that coco.json doesn't list, such as images/b.jpg." in dataset.notes


def test_byte_order_mark(tmp_path):
    save_image(tmp_path / "a.jpg")
    (tmp_path / "coco.json").write_text(json.dumps(coco_json([[1, 2, 3, 4]])), encoding="utf-8-sig")
    assert len(load_dataset(tmp_path).splits["train"]) == 1


def test_two_files_for_a_split_raise(tmp_path):
    save_image(tmp_path / "a.jpg")
    for name in ("train_1.json", "train_2.json"):
        write(tmp_path / name, coco_json([]))
    with pytest.raises(ValueError, match=r"train_1\.json and train_2\.json"):
        load_dataset(tmp_path)


def test_validation_file_with_the_training_images_is_replaced(tmp_path):
    for name in "abcd":
        save_image(tmp_path / "images" / f"{name}.jpg")
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in enumerate("abcd")]
    annotations = [{"image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in range(4)]
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", coco_json([], images=images, annotations=annotations))
    assert split_sizes(load_dataset(tmp_path, validation_fraction=0.5)) == {"train": 2, "validation": 2}


def test_split_without_images_is_noted(tmp_path):
    save_image(tmp_path / "train" / "a.jpg")
    for split in ("train", "val"):
        content = coco_json([[1, 2, 3, 4]])
        content["images"][0]["file_name"] = "a.jpg" if split == "train" else "b.jpg"
        write(tmp_path / "annotations" / f"instances_{split}.json", content)
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert list(dataset.splits) == ["train"]
    assert "instances_val.json exists" in dataset.notes[0]
    assert not dataset.problems


def draw_polygon(rng, size=(60, 50), points=7):
    return (rng.uniform(0, 1, (points, 2)) * size).round(2).ravel().tolist()


def write_coco_masks(root):
    """Write COCO JSON with polygons of one or two parts, RLE in both forms and a crowd, on two images."""
    rng = np.random.default_rng(3)
    content = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}]}
    for image in (1, 2):
        save_image(root / "train" / f"{image}.jpg", (60, 50))
        content["images"].append({"id": image, "file_name": f"{image}.jpg", "width": 60, "height": 50})
        blob = np.asfortranarray(rng.random((50, 60)) < 0.1)
        compressed = mask_api.encode(blob.astype(np.uint8))
        flat = blob.T.ravel().astype(int)
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, flat.size]).tolist()
        shapes = [
            ([draw_polygon(rng)], 0, 4),
            ([draw_polygon(rng, (30, 20)), draw_polygon(rng, (10, 10))], 0, 7),
            ({"size": [50, 60], "counts": compressed["counts"].decode()}, 0, 4),
            ({"size": [50, 60], "counts": counts if not flat[0] else [0, *counts]}, 1, 7),
        ]
        for shape, iscrowd, category in shapes:
            entry = {"id": len(content["annotations"]) + 1, "image_id": image, "category_id": category}
            entry |= {"segmentation": shape, "iscrowd": iscrowd, "area": 1000 - 7 * len(content["annotations"])}
            content["annotations"].append(entry | {"bbox": [1, 1, 30, 20]})
    write(root / "annotations" / "instances_train.json", content)
    return root


def test_shapes_are_painted_as_by_pycocotools(tmp_path):
    dataset = load_dataset(write_coco_masks(tmp_path), task="image-segmentation", validation_fraction=0)
    assert (dataset.task, dataset.classes) == ("image-segmentation", ("background", "cat", "dog"))
    reference = COCO(str(tmp_path / "annotations" / "instances_train.json"))
    for sample, image in zip(dataset.splits["train"], (1, 2), strict=True):
        expected = np.zeros((50, 60), np.uint8)
        for entry in sorted(reference.loadAnns(reference.getAnnIds(image)), key=lambda entry: -entry["area"]):
            expected[reference.annToMask(entry) > 0] = {4: 1, 7: 2}[entry["category_id"]]
        assert set(np.unique(expected)) == {0, 1, 2}
        np.testing.assert_array_equal(sample.mask.read(), expected)


def test_boxes_are_read_from_coco_with_masks_by_default(tmp_path):
    dataset = load_dataset(write_coco_masks(tmp_path), validation_fraction=0)
    assert dataset.task == "object-detection"
    assert 'task="image-segmentation"' in " ".join(dataset.notes)


def test_objects_without_a_valid_shape_are_problems(tmp_path):
    save_image(tmp_path / "a.jpg")
    content = coco_json([[1, 1, 9, 9]] * 4)
    shapes = ([[1, 1, 20, 1, 20, 20]], [], [[1, 1, 2, 2]], {"size": [4, 4], "counts": "0123"})
    for entry, shape in zip(content["annotations"], shapes, strict=True):
        entry["segmentation"] = shape
    write(tmp_path / "data.json", content)
    dataset = load_dataset(tmp_path, task="image-segmentation", validation_fraction=0)
    assert problem_kinds(dataset) == [("a.jpg", "unreadable annotation")] * 3
    assert dataset.splits["train"][0].mask.read().any()


def test_boxes_alone_are_no_masks(tmp_path):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "data.json", coco_json([[1, 1, 9, 9]]))
    with pytest.raises(ValueError, match=r"boxes only, expected polygons or RLE\. Export masks"):
        load_dataset(tmp_path, task="image-segmentation")
