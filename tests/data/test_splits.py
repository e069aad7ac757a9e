"""Split of a validation set off the training samples."""

import math
from collections import Counter

import pytest
from dataset_files import sample_names, save_image, split_sizes, write
from mask_files import write_mask_dataset

from mobilevit_hf.data import splits
from mobilevit_hf.data.masks import Mask
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.splits import assign_folds


@pytest.fixture
def imbalanced_folder(tmp_path):
    """Class folders with 60, 24, 7 and 1 images."""
    for name, count in {"a": 60, "b": 24, "c": 7, "d": 1}.items():
        for number in range(count):
            write(tmp_path / "data" / name / f"{number:02}.jpg", "")
    return tmp_path / "data"


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.75])
def test_split_is_stratified_by_class(imbalanced_folder, fraction):
    dataset = load_dataset(imbalanced_folder, validation_fraction=fraction)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert sorted(sample_names(train) + sample_names(validation)) == sorted(
        p.relative_to(imbalanced_folder).as_posix() for p in imbalanced_folder.rglob("*.jpg")
    )
    assert len(validation) == round(92 * fraction)
    counts = Counter(sample.label for sample in validation)
    for label, count in enumerate((60, 24, 7)):
        assert math.floor(count * fraction) <= counts[label] <= math.ceil(count * fraction)
    assert counts[3] == 0
    assert f"{len(validation)} of 92" in dataset.notes[0]
    assert dataset.validation_cut_off


def test_each_class_with_two_images_is_in_both_splits(tmp_path):
    for name, count in {"a": 12, "b": 6, "c": 4, "d": 2, "e": 1}.items():
        for number in range(count):
            write(tmp_path / "data" / name / f"{number:02}.jpg", "")
    dataset = load_dataset(tmp_path / "data")
    counts = {name: Counter(sample.label for sample in split) for name, split in dataset.splits.items()}
    assert counts["validation"] == {0: 1, 1: 1, 2: 1, 3: 1}
    assert {*counts["train"]} == {0, 1, 2, 3, 4}


def test_split_depends_on_the_seed_only(imbalanced_folder):
    def split(seed):
        return sample_names(load_dataset(imbalanced_folder, seed=seed).splits["validation"])

    assert split(0) != split(1)
    # Constant: the same images on every machine, in every run and version.
    assert split(0) == [
        f"{name}.jpg" for name in ["a/05", "a/10", "a/23", "a/25", "a/26", "a/41", "b/02", "b/22", "c/01"]
    ]


def test_split_is_stable_when_images_are_added(imbalanced_folder):
    before = set(sample_names(load_dataset(imbalanced_folder).splits["validation"]))
    write(imbalanced_folder / "a" / "new.jpg", "")
    assert len(before - set(sample_names(load_dataset(imbalanced_folder).splits["validation"]))) <= 1


def test_disabled_split_is_noted(imbalanced_folder):
    dataset = load_dataset(imbalanced_folder, validation_fraction=0)
    assert not dataset.validation_cut_off
    assert split_sizes(dataset) == {"train": 92}
    assert "none was split off" in dataset.notes[0]


def test_detection_split_is_stratified_by_the_rarest_class(tmp_path):
    """All 20 images with the rare class also have the common one; 10% of them are split off."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(100)]
    annotations = [{"image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(100)]
    annotations += [{"image_id": n, "category_id": 2, "bbox": [1, 1, 5, 5]} for n in range(20)]
    categories = [{"id": 1, "name": "common"}, {"id": 2, "name": "rare"}]
    for n in range(100):
        save_image(tmp_path / "images" / f"{n}.jpg")
    write(tmp_path / "all.json", {"images": images, "annotations": annotations, "categories": categories})
    validation = load_dataset(tmp_path).splits["validation"]
    assert len(validation) == 10
    assert sum(1 in sample.objects.labels for sample in validation) == 2


def test_test_split_is_never_split(tmp_path):
    for number in range(9):
        save_image(tmp_path / "test" / "ab"[number % 2] / f"{number}.png")
    assert split_sizes(load_dataset(tmp_path)) == {"test": 9}


# --- folds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_are_stratified_by_class(num_folds):
    labels = [[label] for label, count in enumerate((60, 24, 7, 1)) for _ in range(count)]
    names = [f"{index}.jpg" for index in range(len(labels))]
    folds = assign_folds(labels, names, num_folds)
    sizes = Counter(folds)
    assert sizes.keys() == set(range(num_folds))
    assert max(sizes.values()) - min(sizes.values()) <= 2
    for label in range(4):
        counts = Counter(fold for fold, own in zip(folds, labels, strict=True) if own == [label])
        assert max(counts.values()) - min(counts[fold] for fold in range(num_folds)) <= 1
    order = sorted(range(len(names)), key=lambda index: names[index])
    again = assign_folds([labels[index] for index in order], [names[index] for index in order], num_folds)
    assert again == [folds[index] for index in order]  # by name, not by order
    assert assign_folds(labels, names, num_folds, seed=1) != folds


def test_folds_of_images_with_several_objects_follow_the_rarest():
    labels = [[0, 0, 1] if index % 4 == 0 else [0] for index in range(16)] + [[]] * 4
    folds = assign_folds(labels, [str(index) for index in range(20)], 4)
    assert Counter(folds) == dict.fromkeys(range(4), 5)
    assert sorted(fold for fold, own in zip(folds, labels, strict=True) if 1 in own) == [0, 1, 2, 3]
    assert sorted(folds[16:]) == [0, 1, 2, 3]


def test_duplicates_are_in_one_fold():
    pairs = [(0, 5), (5, 9), (2, 3), (10, 2), (11, 12), (0, 9)]
    folds = assign_folds(
        [[index % 2] for index in range(20)], [str(index) for index in range(20)], 4, duplicates=pairs
    )
    assert all(folds[first] == folds[second] for first, second in pairs)
    sizes = Counter(folds)
    assert max(sizes.values()) - min(sizes.values()) <= 2


def write_masks(root, count, rare=4):
    """Write images with masks of the classes 0 and 1, of which every `rare`-th also has class 2."""
    names = [(f"images/{i:02}.png", f"masks/{i:02}.png") for i in range(count)]
    for number, (image, mask) in enumerate(names):
        write_mask_dataset(root, [(image, mask)], values=(0, 1, 2) if number % rare == 0 else (0, 1))


def test_masks_are_split_by_their_rarest_class(tmp_path):
    write_masks(tmp_path, 20)
    dataset = load_dataset(tmp_path, validation_fraction=0.4)
    assert split_sizes(dataset) == {"train": 12, "validation": 8}
    assert sum(2 in sample.mask.labels() for sample in dataset.splits["validation"]) == 2
    assert "stratified" in " ".join(dataset.notes)


def test_many_masks_are_split_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "MAX_READ_MASKS", 10)
    monkeypatch.setattr(Mask, "labels", lambda self: pytest.fail("read"))
    write_masks(tmp_path, 20)
    dataset = load_dataset(tmp_path, validation_fraction=0.4)
    assert split_sizes(dataset) == {"train": 12, "validation": 8}
    assert "at random" in " ".join(dataset.notes)
