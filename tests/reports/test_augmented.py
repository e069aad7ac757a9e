"""Images of training batches are shown as they were before normalization."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mobilevit_hf
from mobilevit_hf.reports import augmented_images
from mobilevit_hf.reports.augmented import augmented_gallery
from mobilevit_hf.visualization import LabeledImage, class_colors

CLASSES = ["cat", "dog", "fish"]
PROCESSORS = {
    "bgr": transformers.MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "rgb": transformers.MobileViTImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_flip_channel_order=False
    ),
    "normalized": transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    "detector": mobilevit_hf.MobileViTSSDLiteImageProcessor(size={"height": 32, "width": 32}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_normalization_is_reversed(name):
    original = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    pixels = PROCESSORS[name](Image.fromarray(original), return_tensors="pt")["pixel_values"]
    batch = {"pixel_values": pixels, "labels": torch.tensor([1])}
    (entry,) = augmented_images(batch, ["a.jpg"], PROCESSORS[name], CLASSES)
    assert np.abs(np.asarray(entry.image).astype(int) - original).max() <= 1
    assert (entry.file, list(entry.labels), entry.boxes) == ("a.jpg", ["dog"], None)


def test_classes_of_mixed_images():
    labels = torch.tensor([[0.3, 0.0, 0.7], [1.0, 0.0, 0.0], [0.02, 0.98, 0.0]])
    batch = {"pixel_values": torch.zeros(3, 3, 32, 32), "labels": labels}
    entries = augmented_images(batch, [], PROCESSORS["bgr"], CLASSES)
    assert [list(entry.labels) for entry in entries] == [["fish", "cat"], ["cat"], ["dog"]]
    assert [entry.file for entry in entries] == ["", "", ""]


def test_boxes_are_in_pixels():
    objects = {
        "class_labels": torch.tensor([2, 0]),
        "boxes": torch.tensor([[0.5, 0.5, 1.0, 0.5], [0.25, 0.5, 0.5, 1]]),
    }
    empty = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    batch = {"pixel_values": torch.zeros(3, 3, 20, 40), "labels": [objects, empty, empty]}
    first, second = augmented_images(batch, ["a", "b", "c"], PROCESSORS["detector"], CLASSES, limit=2)
    assert list(first.labels) == ["fish", "cat"]
    assert first.boxes.tolist() == [[0, 5, 40, 15], [0, 0, 20, 20]]
    assert (second.file, list(second.labels), len(second.boxes)) == ("b", [], 0)


def test_label_maps_are_overlays_with_a_legend():
    labels = torch.full((2, 20, 40), 255)
    labels[0, :, :30] = 2
    labels[0, :, 30:35] = 0
    batch = {"pixel_values": torch.zeros(2, 3, 20, 40), "labels": labels}
    first, second = augmented_images(batch, ["a", "b"], PROCESSORS["bgr"], CLASSES)
    assert (first.file, list(first.labels), list(second.labels)) == ("a", ["fish", "cat"], [])
    assert (first.label_map == labels[0].numpy()).all()
    gallery = augmented_gallery([first, second], CLASSES)
    assert [fact.text for fact in gallery.classes] == ["cat", "fish"]
    assert [fact.color for fact in gallery.classes] == [class_colors(CLASSES)[name] for name in ("cat", "fish")]
    pixels = np.asarray(gallery.tiles[0].image)
    assert tuple(pixels[10, 29]) == class_colors(CLASSES)["fish"]  # line around the region
    assert tuple(pixels[10, 38]) == (0, 0, 0)
    assert [list(tile.facts) for tile in gallery.tiles] == [[], []]


def test_tiles_have_classes_in_the_colors_of_the_grid():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20], [8, 8, 30, 30]])
    photo = Image.new("RGB", (40, 40), "white")
    images = [LabeledImage(photo, "a", ["fish", "cat", "fish"], boxes), LabeledImage(photo, "b", ["dog"])]
    first, second = augmented_gallery(images, CLASSES).tiles
    colors = class_colors(CLASSES)
    assert [(fact.text, fact.color) for fact in first.facts] == [
        ("fish: 2", colors["fish"]),
        ("cat: 1", colors["cat"]),
    ]
    assert {colors["fish"], colors["cat"]} <= {color for _, color in first.image.getcolors(10**6)}
    assert [(fact.text, fact.color) for fact in second.facts] == [("dog", colors["dog"])]
    assert second.image is photo
