"""Checks of masks: problems by file, and pixels by class."""

import numpy as np
import pytest
from dataset_files import split_sizes
from mask_files import VOC_COLORS, blocks, save_image, save_mask, write_mask_dataset, write_text_files
from PIL import Image

from mobilevit_hf.data.checks import check_dataset, drop_invalid, valid_splits
from mobilevit_hf.data.reading import load_dataset

PAIRS = [(f"images/{i}.png", f"masks/{i}.png") for i in range(6)]


@pytest.fixture
def dataset_folder(tmp_path):
    """Six images with masks of the classes road, car and tree."""
    write_mask_dataset(tmp_path, PAIRS)
    write_text_files(tmp_path, {"classes.txt": "background\ncar\ntree\n"})
    return tmp_path


def check(root):
    dataset = load_dataset(root, validation_fraction=0)
    return dataset, check_dataset(dataset)


def change(root, index, values=None, **options):
    save_mask(root / f"masks/{index}.png", values or (0, 1, 2), **options)


def resize(root):
    Image.new("L", (20, 10)).save(root / "masks/1.png")


def paint_colors(root):
    change(root, 1, (1, 2, 3), colors=VOC_COLORS)


CHANGES = {
    "mask of another size": (resize, "mask of 20x10 pixels, image of 24x16", True),
    "unreadable mask": (lambda root: (root / "masks/1.png").write_text("no image"), "not an image", True),
    "color mask without a palette": (paint_colors, "color (", True),
    "mask of ignored pixels": (lambda root: change(root, 1, (255,)), "no pixel has a class", True),
    "empty mask": (lambda root: change(root, 1, (0,)), "all pixels are background", False),
    "value outside the classes": (lambda root: change(root, 1, (0, 1, 77)), "value 77 in 128 pixels (33.33%)", False),
    "unreadable image": (lambda root: (root / "images/1.png").write_text("no image"), "", True),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_problems_are_reported_by_file(dataset_folder, kind):
    edit, reason, is_dropped = CHANGES[kind]
    edit(dataset_folder)
    dataset, report = check(dataset_folder)
    (problem,) = report.problems
    assert (problem.name, problem.kind) == ("images/1.png", kind)
    assert reason in problem.reason
    assert report.problem_counts == {kind: 1}
    assert report.num_samples["train"] == len(valid_splits(dataset, report)["train"]) == 6 - is_dropped
    assert report.invalid_fraction == pytest.approx(is_dropped / 6)
    kept = [sample.name for sample in drop_invalid(dataset, report, max_bad=0.5).splits["train"]]
    assert ("images/1.png" in kept) == (not is_dropped)


def test_pixels_are_counted_by_class(dataset_folder):
    change(dataset_folder, 0, (0, 1, 255))
    masks = [blocks((0, 1, 2), seed) for seed in range(1, 6)] + [blocks((0, 1, 255), 0)]
    _, report = check(dataset_folder)
    pixels = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)
    assert report.counts["train"] == {"background": pixels[0], "car": pixels[1], "tree": pixels[2]}
    assert report.ignored_pixels == {"train": pixels[255]}
    assert report.class_fractions("train")["car"] == pytest.approx(pixels[1] / pixels[:3].sum())
    assert report.ignored_fraction("train") == pytest.approx(pixels[255] / pixels.sum())


def test_a_dataset_without_problems(dataset_folder):
    _, report = check(dataset_folder)
    assert (report.problems, report.invalid_fraction) == ((), 0)


def test_images_in_two_splits_stay_in_the_later_one(tmp_path):
    names = [(f"{split}/images/{i}.png", f"{split}/masks/{i}.png") for split in ("train", "test") for i in range(3)]
    write_mask_dataset(tmp_path, names)
    save_image(tmp_path / "train/images/0.png", seed=3)  # equal to test/images/0.png
    dataset, report = check(tmp_path)
    assert [(problem.name, problem.kind) for problem in report.problems] == [
        ("train/images/0.png", "same image in two splits")
    ]
    assert split_sizes(drop_invalid(dataset, report)) == {"train": 2, "test": 3}
