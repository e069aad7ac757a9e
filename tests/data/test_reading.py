"""Datasets in folders: classes, splits, metadata beside images, links, and what a user may get wrong."""

import json
import math
from collections import Counter

import datasets
import pytest
from written_data import boxes, names, one_image, problems, save_image, sizes, write

from mobilevit_hf.data.reading import load_dataset

# Class folders


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


def test_class_folders_in_order_without_what_is_no_image(class_folders):
    dataset = load_dataset(str(class_folders))
    assert (dataset.task, dataset.data_format, dataset.root) == ("image-classification", "imagefolder", class_folders)
    assert dataset.classes == ("Cat", "dog", "owl")
    assert names(dataset.splits["train"])[:4] == [f"train/Cat/{n}.jpg" for n in range(3)] + ["train/dog/0.jpg"]
    assert not dataset.problems
    assert not dataset.notes


def test_images_below_a_class_folder_are_of_that_class(tmp_path):
    save_image(tmp_path / "a" / "x" / "y" / "1.png")
    save_image(tmp_path / "b" / "1.png")
    samples = load_dataset(tmp_path, validation_fraction=0).splits["train"]
    assert [(sample.name, sample.label) for sample in samples] == [("a/x/y/1.png", 0), ("b/1.png", 1)]


@pytest.mark.parametrize(("folder", "split"), [("valid", "validation"), ("dev", "validation"), ("Test", "test")])
def test_splits_by_other_names(tmp_path, folder, split):
    for place in ("training", folder):
        save_image(tmp_path / place / "a" / "1.png")
    assert set(load_dataset(tmp_path, validation_fraction=0).splits) == {"train", split}


def test_a_class_may_be_called_test(tmp_path):
    for name in ("test", "rest"):
        save_image(tmp_path / name / "1.png")
    assert load_dataset(tmp_path).classes == ("rest", "test")


def test_a_test_split_alone_is_not_cut(tmp_path):
    for number in range(9):
        save_image(tmp_path / "test" / "a" / f"{number}.png")
    assert sizes(load_dataset(tmp_path)) == {"test": 9}


def test_a_class_that_training_lacks(class_folders):
    save_image(class_folders / "test" / "fox" / "1.jpg")
    dataset = load_dataset(class_folders)
    assert dataset.classes == ("Cat", "dog", "owl")
    assert problems(dataset) == [("test/fox/1.jpg", "unknown class")]
    assert sizes(dataset)["test"] == 3


def test_what_is_left_out_is_said(class_folders):
    save_image(class_folders / "train" / "loose.jpg")
    (class_folders / "train" / "empty").mkdir()
    save_image(class_folders / "extra" / "a" / "1.jpg")
    notes = " ".join(load_dataset(class_folders).notes)
    assert all(word in notes for word in ("train/loose.jpg", "train/empty", "extra"))


def test_two_names_for_a_split(class_folders):
    save_image(class_folders / "valid" / "owl" / "1.jpg")
    with pytest.raises(ValueError, match="val and valid"):
        load_dataset(class_folders)


# A validation split that is missing


@pytest.fixture
def uneven(tmp_path):
    """60 images of one class, 24 of another, 7 of a third and a single one."""
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
    # Written down once: the same images on every machine, in every run and version.
    assert cut(0) == [
        f"{name}.jpg" for name in ["a/05", "a/10", "a/23", "a/25", "a/26", "a/41", "b/02", "b/22", "c/01"]
    ]


def test_the_cut_moves_little_when_images_are_added(uneven):
    before = set(names(load_dataset(uneven).splits["validation"]))
    write(uneven / "a" / "new.jpg", "")
    assert len(before - set(names(load_dataset(uneven).splits["validation"]))) <= 1


def test_no_cut_is_said_too(uneven):
    dataset = load_dataset(uneven, validation_fraction=0)
    assert sizes(dataset) == {"train": 92}
    assert "none was cut off" in dataset.notes[0]


def test_detection_is_cut_by_the_rarest_class(tmp_path):
    """Each of the 20 images with the rare class has the common one, too: a tenth of them goes."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(100)]
    found = [{"image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(100)]
    found += [{"image_id": n, "category_id": 2, "bbox": [1, 1, 5, 5]} for n in range(20)]
    categories = [{"id": 1, "name": "common"}, {"id": 2, "name": "rare"}]
    for n in range(100):
        save_image(tmp_path / "images" / f"{n}.jpg")
    write(tmp_path / "all.json", {"images": images, "annotations": found, "categories": categories})
    validation = load_dataset(tmp_path).splits["validation"]
    assert len(validation) == 10
    assert sum(1 in sample.objects.labels for sample in validation) == 2


# Paths that lead out


@pytest.mark.parametrize(
    "path",
    ["../secret.jpg", "images/../../secret.jpg", "{}/secret.jpg", "..\\secret.jpg", "link.jpg", "out/secret.jpg"],
)
def test_annotations_reach_no_file_outside(tmp_path, path):
    save_image(tmp_path / "secret.jpg")
    root = tmp_path / "data"
    save_image(root / "images" / "a.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "out").symlink_to(tmp_path)
    images = [{"id": n, "file_name": name} for n, name in enumerate(("a.jpg", path.format(tmp_path)))]
    write(root / "coco.json", one_image([], images=images))
    dataset = load_dataset(root)
    assert names(dataset.splits["train"]) == ["images/a.jpg"]
    assert problems(dataset) == [(path.format(tmp_path), "missing image")]


def test_links_inside_are_followed_and_those_outside_reported(tmp_path):
    save_image(tmp_path / "secret.jpg")
    root = tmp_path / "data"
    save_image(root / "a" / "1.jpg")
    save_image(root / "b" / "1.jpg")
    (root / "a" / "2.jpg").symlink_to("../b/1.jpg")
    (root / "a" / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "a" / "round").symlink_to(root)
    dataset = load_dataset(root, validation_fraction=0)
    assert names(dataset.splits["train"]) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert problems(dataset) == [("a/3.jpg", "missing image"), ("a/round", "missing image")]


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    root = tmp_path / "datasets--user--name" / "snapshots" / "1234"
    save_image(root.parents[1] / "blobs" / "5678.jpg")
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.jpg").symlink_to("../../../blobs/5678.jpg")
    assert names(load_dataset(root).splits["train"]) == ["a/1.jpg"]


# Metadata beside images


OBJECTS = {
    "lists": {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "categories": ["dog", "cat"]},
    "entries": [{"bbox": [1, 2, 3, 4], "category": "dog"}, {"bbox": [5, 6, 7, 8], "category": "cat"}],
}


@pytest.mark.parametrize("form", OBJECTS)
@pytest.mark.parametrize("in_splits", [True, False])
def test_metadata_with_boxes(tmp_path, form, in_splits):
    for split in ("train", "test"):
        save_image(tmp_path / split / "a.png")
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
        save_image(tmp_path / f"{name}.png")
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
        ("metadata.csv", "missing image"),
    ]


def test_metadata_with_labels_or_captions(tmp_path):
    for name in ("x/a.png", "y/b.png"):
        save_image(tmp_path / name)
    rows = [{"file_name": "x/a.png", "label": "dog"}, {"file_name": "y/b.png", "label": "cat"}]
    write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert [dataset.classes[sample.label] for sample in dataset.splits["train"]] == ["dog", "cat"]
    write(tmp_path / "metadata.jsonl", "\n".join(json.dumps({"file_name": row["file_name"]}) for row in rows))
    assert load_dataset(tmp_path).classes == ("x", "y")


# What a user may get wrong


def test_no_such_place(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        load_dataset(tmp_path / "nowhere")


def test_nothing_in_it(tmp_path):
    with pytest.raises(ValueError, match="holds no dataset"):
        load_dataset(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="No images in class folders"):
        load_dataset(tmp_path)


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
    save_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a file"):
        load_dataset(tmp_path / "a.png")


def test_no_image_that_can_be_used(tmp_path):
    write(tmp_path / "coco.json", one_image([]))
    with pytest.raises(ValueError, match=r"1 problems.*a\.jpg"):
        load_dataset(tmp_path)


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
