"""Fixtures of the dataset tests."""

import numpy as np
import pytest
from dataset_files import save_image, write


@pytest.fixture
def class_folders(tmp_path):
    """Class folders of three classes in train, val and test, with files that are not images."""
    root = tmp_path / "data"
    for split, count in {"train": 3, "val": 2, "test": 1}.items():
        for name in ("owl", "Cat", "dog"):
            for number in range(count):
                save_image(root / split / name / f"{number}.jpg")
    write(root / "train" / "owl" / "notes.txt", "")
    write(root / "train" / "owl" / "._0.jpg", "what macOS leaves")
    return root


@pytest.fixture
def coco_dataset(tmp_path):
    """COCO dataset with two splits, sparse category ids, crowds, segment areas and an image without boxes."""
    root = tmp_path / "coco"
    rng = np.random.default_rng(0)
    for split, count in {"train2017": 6, "val2017": 3}.items():
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": i, "name": name} for i, name in ((90, "brush"), (1, "person"), (13, "sign"))]
        for number in range(count):
            save_image(root / split / f"{number}.jpg", (60, 50))
            content["images"].append({"id": 100 - number, "file_name": f"{number}.jpg", "width": 60, "height": 50})
            for _ in range(number):
                bbox = [*rng.uniform(0, 20, 2).round(2), *rng.uniform(2, 25, 2).round(2)]
                entry = {"id": len(content["annotations"]) + 1, "image_id": 100 - number, "bbox": bbox}
                entry |= {"category_id": int(rng.choice([1, 13, 90])), "area": bbox[2] * bbox[3] / 2}
                content["annotations"].append(entry | {"iscrowd": int(rng.random() < 0.2)})
        write(root / "annotations" / f"instances_{split}.json", content)
    write(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    return root
