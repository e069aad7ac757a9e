"""Small synthetic datasets in the formats of ImageNet-1k on the Hub, COCO 2017 and PASCAL VOC 2012.

Images are JPEGs in the typical sizes of these datasets, with noise, so that decoding them takes a typical time.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

IMAGENET_SIZE, COCO_SIZE, VOC_SIZE = (500, 375), (640, 480), (500, 375)  # width and height in pixels
QUALITY = 92  # of the JPEGs, of 98 kB at 500x375 and 145 kB at 640x480; those of ImageNet-1k have about 110 kB
COLORS = ((200, 40, 40), (40, 170, 60), (50, 70, 210), (220, 190, 40))  # of the classes
COCO_CATEGORIES = {1: "person", 3: "car", 18: "dog", 90: "toothbrush"}  # the ids have gaps, as those of COCO
VOC_LABELS = (0, 1, 7, 15)  # background and three of the 20 classes
BORDER = 255  # ignored pixels between a VOC object and the background


def draw_photo(
    rng: np.random.Generator, size: tuple[int, int], labels: list[int]
) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Return an image of an object per label on noise, and the boxes of the objects.

    Args:
        rng: Source of randomness.
        size: Width and height in pixels.
        labels: Index into `COLORS` of each object.

    Returns:
        Image, and (x1, y1, x2, y2) in pixels of each object.
    """
    width, height = size
    layers = [rng.normal(0, 30, (height // scale + 1, width // scale + 1, 3)) for scale in (64, 16, 4, 1)]
    noise = sum(
        np.asarray(layer.repeat(scale, 0).repeat(scale, 1)[:height, :width])
        for layer, scale in zip(layers, (64, 16, 4, 1), strict=True)
    )
    image = Image.fromarray((128 + 0.5 * noise).clip(0, 255).astype(np.uint8))
    draw, boxes = ImageDraw.Draw(image), []
    for label in labels:
        w, h = int(rng.integers(width // 4, width // 2)), int(rng.integers(height // 4, height // 2))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=COLORS[label])
        boxes.append((x, y, x + w, y + h))
    return image, boxes


def encode_jpeg(image: Image.Image) -> bytes:
    """Return the content of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _photos(
    seed: int, size: tuple[int, int], count: int, objects: int
) -> Iterator[tuple[Image.Image, list[tuple[int, int, int, int]], list[int]]]:
    """Yield images with up to `objects` objects, every third one in portrait format, with boxes and labels."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        labels = [(number + extra) % len(COLORS) for extra in range(1 + number % objects)]
        image, boxes = draw_photo(rng, size if number % 3 else size[::-1], labels)
        yield image, boxes, labels


def write_imagenet(folder: Path, *, train: int = 48, validation: int = 16, shards: int = 2) -> Path:
    """Write Parquet files as in `ILSVRC/imagenet-1k`, whose test split has no labels, with four classes."""
    import datasets

    datasets.disable_progress_bars()
    names = [f"class {number}, {color} object" for number, color in enumerate(("red", "green", "blue", "yellow"))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    (folder / "data").mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": train, "validation": validation, "test": 4}.items()):
        photos = list(_photos(seed, IMAGENET_SIZE, count, 1))
        images = [{"bytes": encode_jpeg(image), "path": f"{i:08}.JPEG"} for i, (image, _, _) in enumerate(photos)]
        labels = [-1 if split == "test" else labels[0] for _, _, labels in photos]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        for index in range(number_of := min(shards, count)):
            name = f"{split}-{index:05}-of-{number_of:05}.parquet"
            rows.shard(number_of, index).to_parquet(folder / "data" / name)
    return folder


def write_coco(folder: Path, *, train: int = 24, validation: int = 8) -> Path:
    """Write images and annotations in the layout of COCO 2017; the first object of some images is a crowd."""
    ids = list(COCO_CATEGORIES)
    categories = [{"id": number, "name": name, "supercategory": "thing"} for number, name in COCO_CATEGORIES.items()]
    (folder / "annotations").mkdir(parents=True)
    for seed, (split, count) in enumerate({"train2017": train, "val2017": validation}.items()):
        (folder / split).mkdir()
        images, annotations = [], []
        for number, (image, boxes, labels) in enumerate(_photos(seed, COCO_SIZE, count, 3)):
            name = f"{number:012}.jpg"
            (folder / split / name).write_bytes(encode_jpeg(image))
            images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
            for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[label]}
                annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                annotation["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
                annotation["iscrowd"] = int(number % 5 == 4 and len(boxes) > 1 and not label)
                annotations.append(annotation)
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_voc(folder: Path, *, train: int = 24, validation: int = 8) -> Path:
    """Write images and masks in the layout of PASCAL VOC 2012."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": train, "val": validation}.items()):
        names = []
        for number, (image, boxes, labels) in enumerate(_photos(seed, VOC_SIZE, count, 3)):
            names.append(f"{split}_{number:06}")
            mask = Image.new("P", image.size, 0)
            draw = ImageDraw.Draw(mask)
            for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=VOC_LABELS[label], outline=BORDER, width=4)
            mask.putpalette([value for number in range(256) for value in _voc_color(number)])
            (folder / "JPEGImages" / f"{names[-1]}.jpg").write_bytes(encode_jpeg(image))
            mask.save(folder / "SegmentationClass" / f"{names[-1]}.png")
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return folder


def _voc_color(number: int) -> tuple[int, int, int]:
    """Return the color of a class in VOC's palette, which spreads the bits of the number over the channels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]
