"""Validation of annotated boxes and image sizes."""

import pytest
from dataset_files import coco_json, labeled_boxes, problem_kinds, sample_names, save_image, write

from mobilevit_hf.data.reading import load_dataset


@pytest.mark.parametrize(
    ("box", "kept", "kind"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 6], None),
        ([0, 0, 40, 30], [0, 0, 40, 30], None),
        ([30, 20, 10.9, 10.9], [30, 20, 40, 30], None),  # tolerated as rounding
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
def test_invalid_boxes_are_clipped_or_dropped(tmp_path, box, kept, kind):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", coco_json([[5, 5, 5, 5], box]))
    dataset = load_dataset(tmp_path)
    assert labeled_boxes(dataset.splits["train"][0])[1:] == ([(0, kept)] if kept else [])
    assert problem_kinds(dataset) == ([("a.jpg", kind)] if kind else [])
    assert "box 2" in (dataset.problems[0].reason if kind else "box 2")


def test_image_with_only_invalid_boxes_is_dropped(tmp_path):
    for name in "ab":
        save_image(tmp_path / f"{name}.jpg")
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in ((1, "a"), (2, "b"))]
    write(tmp_path / "coco.json", coco_json([[5, 5, 0, 5]], images=images))
    assert sample_names(load_dataset(tmp_path).splits["train"]) == ["b.jpg"]


def test_area_defaults_to_the_clipped_box(tmp_path):
    save_image(tmp_path / "a.jpg")
    write(tmp_path / "coco.json", coco_json([[35, 5, 20, 4]]))
    assert load_dataset(tmp_path).splits["train"][0].objects.areas.tolist() == [20]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_before_exif_rotation_is_a_problem(tmp_path, orientation):
    save_image(tmp_path / "a.jpg", (40, 30), orientation)
    save_image(tmp_path / "b.jpg")
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 40, "height": 30} for n, name in ((1, "a"), (2, "b"))]
    write(tmp_path / "coco.json", coco_json([[1, 2, 3, 4]], images=images))
    dataset = load_dataset(tmp_path)
    is_rotated = orientation in (6, 8)
    assert problem_kinds(dataset) == ([("a.jpg", "unreadable annotation")] if is_rotated else [])
    upright = coco_json([[1, 2, 3, 4]], images=[{"id": 1, "file_name": "a.jpg", "width": 30, "height": 40}])
    write(tmp_path / "coco.json", upright)
    assert not load_dataset(tmp_path).problems
