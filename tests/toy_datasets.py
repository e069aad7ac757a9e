"""Small datasets of circles and squares, whose colors are unrelated to their class."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("circle", "square")
IGNORED = 255  # label of the top rows of a mask


def draw_image(shapes, seed, side=64):
    """Draw shapes in random colors next to each other on a blurred random background.

    Args:
        shapes: Names of the shapes.
        seed: Random seed.
        side: Side of the image in pixels.

    Returns:
        The image, and a box (x1, y1, x2, y2) in pixels for each shape.
    """
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    colors = noise.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    image = Image.fromarray(colors).resize((side, side))
    boxes, cell = [], side / max(len(shapes), 1)
    for index, shape in enumerate(shapes):
        length = rng.uniform(0.4, 0.8) * cell
        x, y = index * cell + rng.uniform(0, cell - length), rng.uniform(0, side - length)
        boxes.append([round(value, 2) for value in (x, y, x + length, y + length)])
        draw = ImageDraw.Draw(image)
        draw_shape = draw.ellipse if shape == "circle" else draw.rectangle
        draw_shape(boxes[-1], fill=tuple(rng.randrange(256) for _ in range(3)))
    return image, boxes


def draw_classification(folder, train=16, validation=8, side=64):
    """Write class folders with the given number of images per split, and return the folder."""
    for split, count, seed in (("train", train, 0), ("validation", validation, 10_000)):
        for i in range(count):
            shape = CLASSES[i % 2]
            (folder / split / shape).mkdir(parents=True, exist_ok=True)
            draw_image([shape], seed + i, side)[0].save(folder / split / shape / f"{i:03}.png")
    return folder


def draw_detection(folder, train=16, validation=8, side=64):
    """Write a COCO dataset with one to three shapes per image, and return the folder."""
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


def draw_segmentation(folder, train=16, validation=8, side=64):
    """Write images with one or two shapes and masks of background, circles and squares; return the folder.

    The shapes of the masks are their boxes. The top rows are unlabeled.
    """
    for split, count, seed in (("train", train, 0), ("val", validation, 10_000)):
        for name in (split, f"{split}annot"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shapes = random.Random(seed + i).sample(CLASSES, k=1 + i % 2)
            image, boxes = draw_image(shapes, seed + i, side)
            mask = np.zeros((side, side), np.uint8)
            for shape, corners in zip(shapes, boxes, strict=True):
                x1, y1, x2, y2 = map(round, corners)
                mask[y1:y2, x1:x2] = 1 + CLASSES.index(shape)
            mask[: side // 16] = IGNORED
            image.save(folder / split / f"{i:03}.png")
            Image.fromarray(mask).save(folder / f"{split}annot" / f"{i:03}.png")
    (folder / "classes.txt").write_text("\n".join(("background", *CLASSES)))
    return folder


def save_shards(source, task, folder, num_shards=4):
    """Save a dataset that this module has drawn as Parquet files, and return the folder."""
    import datasets

    from mobilevit_hf.data.reading import load_dataset

    dataset = load_dataset(source)
    classes = datasets.ClassLabel(names=list(dataset.classes))
    features = {"image": datasets.Image(), "mask": datasets.Image()}
    if task == "image-classification":
        features = {"image": datasets.Image(), "label": classes}
    elif task == "object-detection":
        objects = {"bbox": datasets.List(datasets.Value("float32"), 4), "category": classes}
        features = {"image": datasets.Image(), "objects": datasets.List(objects)}
    (folder / "data").mkdir(parents=True)
    for split, samples in dataset.splits.items():
        rows = [_row(sample, task) for sample in samples]
        columns = {name: [row[name] for row in rows] for name in features}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        count = num_shards if split == "train" else 1
        for index in range(count):
            path = folder / "data" / f"{split}-{index:05}-of-{count:05}.parquet"
            table.shard(count, index, contiguous=False).to_parquet(str(path))
    if task == "image-segmentation":
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(dataset.classes))))
    return folder


def _row(sample, task):
    image = {"bytes": Path(sample.image).read_bytes(), "path": None}
    if task == "image-classification":
        return {"image": image, "label": sample.label}
    if task == "object-detection":
        boxes = sample.objects.boxes.tolist()
        return {
            "image": image,
            "objects": [
                {"bbox": [x1, y1, x2 - x1, y2 - y1], "category": label}
                for (x1, y1, x2, y2), label in zip(boxes, sample.objects.labels.tolist(), strict=True)
            ],
        }
    return {"image": image, "mask": {"bytes": Path(sample.mask.source).read_bytes(), "path": None}}
