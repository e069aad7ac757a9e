"""Small datasets for trainings: circles and squares, whose colors tell nothing about what they are."""

import json
import random

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("circle", "square")


def draw_image(shapes, seed, side=64):
    """An image of shapes in any color on a blurred background in any colors, and where they are.

    Args:
        shapes: Their names. They lie beside each other.
        seed: Of all that is drawn at random.
        side: Of the image, in pixels.

    Returns:
        The image, and a box (x1, y1, x2, y2) in pixels for each shape.
    """
    chance, noise = random.Random(seed), np.random.default_rng(seed)
    colors = noise.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    image = Image.fromarray(colors).resize((side, side))
    boxes, room = [], side / max(len(shapes), 1)
    for place, shape in enumerate(shapes):
        length = chance.uniform(0.4, 0.8) * room
        x, y = place * room + chance.uniform(0, room - length), chance.uniform(0, side - length)
        boxes.append([round(value, 2) for value in (x, y, x + length, y + length)])
        draw = ImageDraw.Draw(image)
        draw_shape = draw.ellipse if shape == "circle" else draw.rectangle
        draw_shape(boxes[-1], fill=tuple(chance.randrange(256) for _ in range(3)))
    return image, boxes


def draw_classification(folder, train=16, validation=8, side=64):
    """Class folders in two splits, with so many images in each split.

    Returns:
        The folder.
    """
    for split, count, seed in (("train", train, 0), ("validation", validation, 10_000)):
        for i in range(count):
            shape = CLASSES[i % 2]
            (folder / split / shape).mkdir(parents=True, exist_ok=True)
            draw_image([shape], seed + i, side)[0].save(folder / split / shape / f"{i:03}.png")
    return folder


def draw_detection(folder, train=16, validation=8, side=64):
    """Images of one to three shapes in COCO's format in two splits, with so many images in each split.

    Returns:
        The folder.
    """
    for split, count, seed in (("train", train, 0), ("val", validation, 10_000)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            shapes = random.Random(seed + i).choices(CLASSES, k=1 + i % 3)
            image, boxes = draw_image(shapes, seed + i, side)
            name = f"{i:03}.png"
            image.save(folder / split / name)
            images.append({"id": i, "file_name": name, "width": side, "height": side})
            for shape, (x1, y1, x2, y2) in zip(shapes, boxes, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": CLASSES.index(shape) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (folder / "annotations" / f"instances_{split}.json").write_text(text)
    return folder
