"""The detector finds real objects again that it was trained on, through its own pipeline."""

import xml.etree.ElementTree as ET

import pytest
import torch
from PIL import Image
from transformers import pipeline

from mobilevit_hf import (
    MobileViTSSDLiteForObjectDetection,
    MobileViTSSDLiteImageProcessor,
    convert_checkpoint,
)
from mobilevit_hf.metrics import CocoMap

CLASSES = ["RBC", "WBC", "Platelets"]
IMAGES = 8
STEPS = 150


def read_image(folder, name):
    """A blood smear, and the cells on it: boxes (x1, y1, x2, y2) in pixels and class numbers."""
    cells = ET.parse(folder / "Annotations" / f"{name}.xml").findall("object")
    boxes = [[float(cell.find(f"bndbox/{edge}").text) for edge in ("xmin", "ymin", "xmax", "ymax")] for cell in cells]
    labels = [CLASSES.index(cell.find("name").text) for cell in cells]
    return Image.open(folder / "JPEGImages" / f"{name}.jpg").convert("RGB"), boxes, labels


def train(model, batch):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@pytest.mark.slow
def test_finds_the_cells_it_was_trained_on(reference_data, tmp_path):
    folder = reference_data / "data" / "bccd"
    names = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()[:IMAGES]
    images, boxes, labels = zip(*(read_image(folder, name) for name in names), strict=True)

    convert_checkpoint(reference_data / "weights" / "timm_mobilevit_xxs_backbone.pth", tmp_path / "backbone")
    model = MobileViTSSDLiteForObjectDetection.from_backbone(tmp_path / "backbone", id2label=dict(enumerate(CLASSES)))
    processor = MobileViTSSDLiteImageProcessor.from_backbone(tmp_path / "backbone")
    annotations = [
        {"annotations": [{"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": c} for (x1, y1, x2, y2), c in cells]}
        for cells in (zip(*pair, strict=True) for pair in zip(boxes, labels, strict=True))
    ]
    train(model, processor(images, annotations=annotations, return_tensors="pt"))
    model.save_pretrained(tmp_path / "detector")
    processor.save_pretrained(tmp_path / "detector")

    detector = pipeline("object-detection", model=str(tmp_path / "detector"))
    coco_map = CocoMap()
    for image, image_boxes, image_labels in zip(images, boxes, labels, strict=True):
        found = detector(image, threshold=0.01)
        prediction = {
            "boxes": [[f["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for f in found],
            "scores": [f["score"] for f in found],
            "labels": [CLASSES.index(f["label"]) for f in found],
        }
        coco_map.add(prediction=prediction, reference={"boxes": image_boxes, "labels": image_labels})
    assert coco_map.compute()["map_50"] >= 0.95
