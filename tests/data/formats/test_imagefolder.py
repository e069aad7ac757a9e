"""Class folders."""

import datasets
import pytest
from dataset_files import problem_kinds, sample_names, save_image, split_sizes

from mobilevit_hf.data.reading import load_dataset


def test_class_folders_match_the_datasets_library(class_folders, tmp_path):
    (class_folders / "train" / "owl" / "._0.jpg").unlink()
    reference = datasets.load_dataset("imagefolder", data_dir=str(class_folders), cache_dir=str(tmp_path / "cache"))
    dataset = load_dataset(class_folders)
    assert list(dataset.splits) == list(reference)
    assert list(dataset.classes) == reference["train"].features["label"].names
    for split, rows in reference.items():
        rows = rows.cast_column("image", datasets.Image(decode=False))
        assert {(str(sample.image), sample.label) for sample in dataset.splits[split]} == {
            (row["image"]["path"], row["label"]) for row in rows
        }


def test_class_folders_are_sorted_and_other_files_ignored(class_folders):
    dataset = load_dataset(str(class_folders))
    assert (dataset.task, dataset.data_format, dataset.root) == ("image-classification", "imagefolder", class_folders)
    assert dataset.classes == ("Cat", "dog", "owl")
    assert sample_names(dataset.splits["train"])[:4] == [f"train/Cat/{n}.jpg" for n in range(3)] + ["train/dog/0.jpg"]
    assert not dataset.problems
    assert not dataset.notes


def test_images_in_subfolders_belong_to_the_class(tmp_path):
    save_image(tmp_path / "a" / "x" / "y" / "1.png")
    save_image(tmp_path / "b" / "1.png")
    samples = load_dataset(tmp_path, validation_fraction=0).splits["train"]
    assert [(sample.name, sample.label) for sample in samples] == [("a/x/y/1.png", 0), ("b/1.png", 1)]


def test_class_may_be_named_like_a_split(tmp_path):
    for name in ("test", "rest"):
        save_image(tmp_path / name / "1.png")
    assert load_dataset(tmp_path).classes == ("rest", "test")


def test_class_missing_in_training_is_a_problem(class_folders):
    save_image(class_folders / "test" / "fox" / "1.jpg")
    dataset = load_dataset(class_folders)
    assert dataset.classes == ("Cat", "dog", "owl")
    assert problem_kinds(dataset) == [("test/fox/1.jpg", "unknown class")]
    assert split_sizes(dataset)["test"] == 3


def test_skipped_images_and_folders_are_noted(class_folders):
    save_image(class_folders / "train" / "loose.jpg")
    (class_folders / "train" / "empty").mkdir()
    save_image(class_folders / "extra" / "a" / "1.jpg")
    notes = " ".join(load_dataset(class_folders).notes)
    assert all(word in notes for word in ("train/loose.jpg", "train/empty", "extra"))


@pytest.mark.parametrize(
    ("validation", "classes"),
    [
        (["fruit/apple/fuji", "fruit/pear"], ("carrot", "fuji", "gala", "pear")),
        (["fruit/session_9", "root/session_8"], ("fruit", "root")),
        ([], ("fruit", "root")),
    ],
)
def test_nested_folders_are_classes_if_splits_share_them(tmp_path, validation, classes):
    for folder in ("fruit/apple/fuji", "fruit/apple/gala", "fruit/pear", "root/carrot"):
        save_image(tmp_path / "train" / folder / "1.png")
    for folder in validation:
        save_image(tmp_path / "val" / folder / "1.png")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == classes
    assert any(note.startswith("Classes are the") for note in dataset.notes)
