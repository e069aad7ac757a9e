"""Datasets written by hand, file by file, and what is read of them."""

import io
import json

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def make_images(count, size=(96, 80), seed=0):
    """Images that differ in colors and in what is on them."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        noise = generator.integers(0, 40, (size[1], size[0], 3))
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        yield Image.fromarray((smooth * generator.random(3) + noise).clip(0, 255).astype(np.uint8))


def png_bytes(image):
    """The bytes of a file."""
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def save_image(path, size=(40, 30), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    Image.new("RGB", size, (0, 90, 30)).save(path, exif=exif)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def coco_json(boxes, **fields):
    """COCO's JSON for an image a.jpg of 40x30 pixels with boxes [x, y, w, h] of one class."""
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}]}
    content["annotations"] = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
    return content | {"categories": [{"id": 1, "name": "cell"}]} | fields


def names(samples):
    return [sample.name for sample in samples]


def boxes(sample):
    objects = sample.objects
    return list(zip(objects.labels.tolist(), objects.boxes.tolist(), strict=True))


def problems(dataset):
    return sorted((problem.name, problem.kind) for problem in dataset.problems)


def sizes(dataset):
    return {split: len(samples) for split, samples in dataset.splits.items()}
