"""Label Studio's masks by task and label."""

import numpy as np
import pytest
from dataset_files import problem_kinds, write
from mask_files import save_image
from PIL import Image

from mobilevit_hf.data.reading import load_dataset


def save_layer(root, task, annotation, label, rows, number=0):
    """Save a binary mask whose pixels are 255 in some rows."""
    mask = np.zeros((16, 24), np.uint8)
    mask[rows] = 255
    (root / "masks").mkdir(exist_ok=True, parents=True)
    Image.fromarray(mask).save(root / f"masks/task-{task}-annotation-{annotation}-by-1-tag-{label}-{number}.png")


@pytest.fixture
def export(tmp_path):
    """Two tasks with the labels car and traffic-sign, images, and the JSON export of the project."""
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / "images" / name)
    save_layer(tmp_path, 7, 3, "car", slice(0, 8))
    save_layer(tmp_path, 7, 3, "traffic-sign", slice(6, 10), number=1)
    save_layer(tmp_path, 8, 4, "car", slice(0, 16))
    save_layer(tmp_path, 8, 5, "car", slice(2, 4))  # a later annotation
    tasks = [{"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-b.jpg"}}, {"id": 8, "image": "a.jpg"}]
    write(tmp_path / "project-1.json", tasks)
    return tmp_path


def test_masks_of_a_task_are_combined(export):
    dataset = load_dataset(export, validation_fraction=0)
    assert (dataset.task, dataset.data_format) == ("image-segmentation", "label_studio")
    assert dataset.classes == ("background", "car", "traffic-sign")
    first, second = dataset.splits["train"]
    assert (first.name, second.name) == ("images/b.jpg", "images/a.jpg")
    expected = np.zeros((16, 24), np.uint8)
    expected[0:8], expected[6:10] = 1, 2
    np.testing.assert_array_equal(first.mask.read(), expected)
    assert np.flatnonzero(second.mask.read().any(axis=1)).tolist() == [2, 3]
    assert first.mask.labels() == [1, 2]
    assert "several annotations" in " ".join(dataset.notes)


def test_images_named_after_their_task(tmp_path):
    save_image(tmp_path / "images" / "7.jpg")
    save_image(tmp_path / "images" / "task-8.jpg")
    for task in (7, 8):
        save_layer(tmp_path, task, 1, "car", slice(0, task))
    names = [sample.name for sample in load_dataset(tmp_path, validation_fraction=0).splits["train"]]
    assert names == ["images/7.jpg", "images/task-8.jpg"]


def test_tasks_without_an_image_are_problems(export):
    save_layer(export, 9, 6, "car", slice(0, 2))
    dataset = load_dataset(export, validation_fraction=0)
    assert problem_kinds(dataset) == [("masks/task-9-annotation-6-by-1-tag-car-0.png", "missing image")]
