"""Write small datasets to disk, and summarize loaded ones."""

import io
import json

import numpy as np
from PIL import ExifTags, Image


def make_images(count, size=(96, 80), seed=0):
    """Yield images with random colors and smooth structures."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        noise = generator.integers(0, 40, (size[1], size[0], 3))
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        yield Image.fromarray((smooth * generator.random(3) + noise).clip(0, 255).astype(np.uint8))


def noise_image(seed, width=24, height=16):
    """Return an image that differs for each seed."""
    values = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_bytes(image):
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def jpeg_bytes(image, **options):
    image.save(file := io.BytesIO(), "JPEG", **options)
    return file.getvalue()


def orientation_exif(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def save_image(path, size=(40, 30), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = orientation_exif(orientation) if orientation else Image.Exif()
    Image.new("RGB", size, (0, 90, 30)).save(path, exif=exif)


def save_noise_images(folder, names):
    """Save images of different content and size, at most 40x64 pixels, at paths relative to a folder."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise_image(i, 20 + i, 64 - i).save(folder / name)


def write(path, content):
    """Write text, or any other content as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def coco_json(boxes, **fields):
    """Return COCO JSON of one image a.jpg of 40x30 pixels with boxes [x, y, w, h] of one class."""
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}]}
    content["annotations"] = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
    return content | {"categories": [{"id": 1, "name": "cell"}]} | fields


def voc_xml(*objects, size=(40, 30), filename="whatever.jpg"):
    """Return Pascal VOC XML with objects (name, x1, y1, x2, y2)."""
    entries = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    size_entry = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size_entry}{entries}</annotation>"


def write_voc_dataset(root, annotations, image_sets=None):
    """Write an image of 40x30 pixels and its XML for each name, and the lists of `ImageSets/Main`."""
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for i, (name, xml) in enumerate(annotations.items()):
        noise_image(i, 40, 30).save(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", xml)
    for name, lines in (image_sets or {}).items():
        write(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(lines) + "\n")
    return root


def sample_names(samples):
    return [sample.name for sample in samples]


def labeled_boxes(sample):
    objects = sample.objects
    return list(zip(objects.labels.tolist(), objects.boxes.tolist(), strict=True))


def problem_kinds(dataset):
    return sorted((problem.name, problem.kind) for problem in dataset.problems)


def split_sizes(dataset):
    return {split: len(samples) for split, samples in dataset.splits.items()}


def color_png(color=0):
    """Return a PNG file of 40x30 pixels of one color."""
    return png_bytes(Image.new("RGB", (40, 30), (color, 90, 30)))


def labeled_rows(count, **columns):
    """Return a `datasets` dataset of images of two classes, with further integer columns."""
    import datasets

    features = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["cat", "dog"])}
    values = {
        "img": [{"bytes": color_png(color=n), "path": None} for n in range(count)],
        "fine_label": [n % 2 for n in range(count)],
    }
    features |= {name: datasets.Value("int64") for name in columns}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


def save_rows(rows, root, storage):
    """Save a `datasets` dataset for each split, with `save_to_disk` ("disk") or as Parquet files ("parquet")."""
    import datasets

    root.mkdir()
    if storage == "disk":
        datasets.DatasetDict(rows).save_to_disk(str(root))
    else:
        for split, dataset in rows.items():
            dataset.to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return root
