"""Write Fashion-MNIST as image folders by split and class, to pretrain the built-in model `garments`.

python scripts/prepare_garments.py OUTPUT_DIR [--source FOLDER] [--copies 1]

Fashion-MNIST (Xiao et al., arXiv 1708.07747; MIT license) has gray garments on black, 28 x 28 pixels. A model trained
on these alone relies on the black background, which photos don't have. The training split therefore also contains
recolored copies: the garment in a light or dark color, padded, on a plain, shaded or noisy background, which is white
in half of the copies as in product photos. Validation (the last 5,000 of the 60,000 training images) and test contain
the originals only.
"""

from mobilevit_hf.cli.process import run_and_exit

# isort: split

import argparse
import gzip
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevit_hf.io import temporary_folder

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
NUM_VALIDATION = 5000
HUB_ID = "zalando-datasets/fashion_mnist"
MAX_PADDING = 8  # pixels on each side of a copy
OPAQUE = 48.0  # gray value from which a pixel is opaque; lower values are edges


def read_idx(path: Path) -> np.ndarray:
    """Read the array of a gzipped IDX file."""
    content = gzip.decompress(path.read_bytes())
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def read_split(source: Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 28, 28) and classes (N,), both uint8, of "train" or "test", from files or the Hub."""
    if source is None:
        from datasets import load_dataset

        data = load_dataset(HUB_ID, split=split)
        return np.stack([np.asarray(image) for image in data["image"]]), np.asarray(data["label"], np.uint8)
    prefix = {"train": "train", "test": "t10k"}[split]
    return read_idx(source / f"{prefix}-images-idx3-ubyte.gz"), read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")


def draw_background(generator: np.random.Generator, size: int) -> np.ndarray:
    """Return a background (size, size, 3) in 0..1: white, plain, shaded or noisy."""
    if generator.random() < 0.5:
        return np.full((size, size, 3), generator.uniform(0.9, 1.0))
    first, second = generator.random((2, 3))
    if generator.random() < 0.3:
        second = first
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    weight = (0.5 + x * np.cos(angle) + y * np.sin(angle)).clip(0, 1)[..., None]
    noise = generator.normal(0, generator.uniform(0, 0.15), (size, size, 1))
    return (first * (1 - weight) + second * weight + noise).clip(0, 1)


def recolor(garment: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Color a gray garment on black, (size, size) uint8, and put it on a background: (S, S, 3) uint8."""
    left, right, top, bottom = generator.integers(0, MAX_PADDING + 1, 4)
    horizontal, vertical = left + right, top + bottom  # padded to a square
    right, bottom = right + max(0, vertical - horizontal), bottom + max(0, horizontal - vertical)
    garment = np.pad(garment, ((top, bottom), (left, right)))
    gray = garment.astype(float) / 255
    alpha = (garment / OPAQUE).clip(0, 1)[..., None]
    background = draw_background(generator, len(garment))
    if generator.random() < 0.3:
        color = np.full(3, generator.uniform(0.1, 1.0))
    else:
        color = generator.random(3) * generator.uniform(0.4, 1.0)
    shade = 1 - gray if generator.random() < 0.5 else gray
    contrast = generator.uniform(0.3, 1.0)
    cloth = color * (1 - contrast + contrast * shade[..., None])
    # Invert the color of a garment that is hardly visible.
    if abs((cloth * alpha).sum() / (3 * alpha.sum() + 1e-6) - background.mean()) < 0.15:
        cloth = 1 - cloth
    return ((cloth * alpha + background * (1 - alpha)) * 255).round().astype(np.uint8)


def read_images(source: Path | None, copies: float) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """Yield split, class, name and pixels of every image."""
    images, labels = read_split(source, "train")
    generator = np.random.default_rng(0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        is_validation = number >= len(images) - NUM_VALIDATION
        yield "validation" if is_validation else "train", label, f"{number:05}", image
        num_copies = int(copies) if copies >= 1 else int(copies > 0 and number % round(1 / copies) == 0)
        for copy in range(0 if is_validation else num_copies):
            yield "train", label, f"{number:05}-{copy}", recolor(image, generator)
    for number, (image, label) in enumerate(zip(*read_split(source, "test"), strict=True)):
        yield "test", label, f"{number:05}", image


def write_folders(folder: Path, images: Iterable[tuple[str, int, str, np.ndarray]]) -> None:
    """Write the images of `read_images` to a new folder atomically.

    Raises:
        ValueError: If the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder}: got an existing folder, expected a new one. Pass another path.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as scratch:
        new = scratch / "new"
        for split, name in product(("train", "validation", "test"), CLASSES):
            (new / split / name).mkdir(parents=True)
        for split, label, name, pixels in images:
            Image.fromarray(pixels).save(new / split / CLASSES[label] / f"{name}.png")
        new.rename(folder)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--source", type=Path, help=f"folder of the four .gz files (default: {HUB_ID} on the Hub)")
    parser.add_argument(
        "--copies", type=float, default=1, help="recolored copies per training image; 0.25: of every fourth image"
    )
    args = parser.parse_args()
    write_folders(args.output_dir, read_images(args.source, args.copies))


if __name__ == "__main__":
    run_and_exit(main)
