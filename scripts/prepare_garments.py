"""Write Fashion-MNIST as folders of images, by split and class, for the built-in model `garments`.

python scripts/prepare_garments.py OUTPUT_DIR [--source FOLDER] [--copies 1]

Fashion-MNIST (Xiao et al., arXiv 1708.07747; MIT license) has gray garments on black, 28 x 28. A model that learns
from these alone answers by what no photo has: the black. Beside the training images there are therefore copies of
them with the garment in a color, light or dark, on a plain, shaded or noisy background, which is white in half of
them as in a shop's photo, with some room around. Validation (the last 5,000 of the 60,000 training images) and test
are the originals.
"""

import argparse
import gzip
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevit_hf.cli import console
from mobilevit_hf.io import SCRATCH

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
NUM_VALIDATION = 5000
HUB_ID = "zalando-datasets/fashion_mnist"
MOST_ROOM = 8  # pixels on each side of a copy
SOLID = 48.0  # a gray value from which a pixel is all garment; below it is an edge


def read_idx(path: Path) -> np.ndarray:
    """The array in one of the files that Fashion-MNIST is published as."""
    content = gzip.decompress(path.read_bytes())
    ndim = content[3]
    shape = np.frombuffer(content, ">u4", ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def read_split(source: Path | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and classes (N,), both uint8, of "train" or "test": from files, or from the Hub."""
    if source is None:
        from datasets import load_dataset

        data = load_dataset(HUB_ID, split=split)
        return np.stack([np.asarray(image) for image in data["image"]]), np.asarray(data["label"], np.uint8)
    prefix = {"train": "train", "test": "t10k"}[split]
    return read_idx(source / f"{prefix}-images-idx3-ubyte.gz"), read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")


def draw_background(generator: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3), 0..1: white, plain, shaded or noisy."""
    if generator.random() < 0.5:
        return np.full((size, size, 3), generator.uniform(0.9, 1.0))
    first, second = generator.random((2, 3))
    if generator.random() < 0.3:
        second = first
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    share = (0.5 + x * np.cos(angle) + y * np.sin(angle)).clip(0, 1)[..., None]
    noise = generator.normal(0, generator.uniform(0, 0.15), (size, size, 1))
    return (first * (1 - share) + second * share + noise).clip(0, 1)


def recolor(garment: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A gray garment on black, (size, size) uint8, in a color and somewhere on a background: (S, S, 3) uint8."""
    left, right, top, bottom = generator.integers(0, MOST_ROOM + 1, 4)
    across, down = left + right, top + bottom  # the image stays square
    right, bottom = right + max(0, down - across), bottom + max(0, across - down)
    garment = np.pad(garment, ((top, bottom), (left, right)))
    gray = garment.astype(float) / 255
    alpha = (garment / SOLID).clip(0, 1)[..., None]
    background = draw_background(generator, len(garment))
    if generator.random() < 0.3:
        color = np.full(3, generator.uniform(0.1, 1.0))
    else:
        color = generator.random(3) * generator.uniform(0.4, 1.0)
    shade = 1 - gray if generator.random() < 0.5 else gray
    contrast = generator.uniform(0.3, 1.0)
    cloth = color * (1 - contrast + contrast * shade[..., None])
    # A garment that can't be told from what it lies on teaches nothing.
    if abs((cloth * alpha).sum() / (3 * alpha.sum() + 1e-6) - background.mean()) < 0.15:
        cloth = 1 - cloth
    return ((cloth * alpha + background * (1 - alpha)) * 255).round().astype(np.uint8)


def read_images(source: Path | None, copies: float) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """Split, class, name and pixels of every image that is written."""
    images, labels = read_split(source, "train")
    generator = np.random.default_rng(0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        is_validation = number >= len(images) - NUM_VALIDATION
        yield "validation" if is_validation else "train", label, f"{number:05}", image
        number_of_copies = int(copies) if copies >= 1 else int(copies > 0 and number % round(1 / copies) == 0)
        for copy in range(0 if is_validation else number_of_copies):
            yield "train", label, f"{number:05}-{copy}", recolor(image, generator)
    for number, (image, label) in enumerate(zip(*read_split(source, "test"), strict=True)):
        yield "test", label, f"{number:05}", image


def write_folders(folder: Path, found: Iterable[tuple[str, int, str, np.ndarray]]) -> None:
    """Write what `read_images` yields, all of it or nothing.

    Raises:
        ValueError: If the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{folder}: expected a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        for split, name in product(("train", "validation", "test"), CLASSES):
            (new / split / name).mkdir(parents=True)
        for split, label, name, pixels in found:
            Image.fromarray(pixels).save(new / split / CLASSES[label] / f"{name}.png")
        new.rename(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--source", type=Path, help=f"a folder with the four .gz files; else the Hub's {HUB_ID}")
    parser.add_argument("--copies", type=float, default=1, help="colored ones of an image; 0.25: of every fourth")
    args = parser.parse_args()
    try:
        write_folders(args.output_dir, read_images(args.source, args.copies))
    except (ValueError, OSError) as error:
        console.say("error", str(error), color="red")
        sys.exit(console.EXIT_ERROR)


if __name__ == "__main__":
    main()
