"""Recognize folders of masks by their content: the names of the images, and few colors."""

import posixpath
from collections import defaultdict
from itertools import permutations

import numpy as np

from ..images import DECODER_ERRORS, load_image
from .folder import DataFolder, is_image_name

MAX_FOLDERS = 8  # with more, folders are classes
MIN_FILES = 3  # of a folder
SAMPLE = 3  # files of a folder that are decoded
MAX_MASK_COLORS, MIN_IMAGE_COLORS = 32, 128
LOSSLESS_SUFFIXES = (".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def find_mask_folders(folder: DataFolder) -> dict[str, str]:
    """Return the folders of masks, each with that of its images, whose names say nothing about it.

    The files of both have the same names, and those of the masks are lossless and have few colors.
    """
    stems: dict[str, set[str]] = defaultdict(set)
    files: dict[str, list[str]] = defaultdict(list)
    for name, kind in folder.walk():
        if kind == "file" and is_image_name(name):
            directory, base = posixpath.split(name)
            stems[directory].add(posixpath.splitext(base)[0])
            files[directory].append(name)
            if len(files) > MAX_FOLDERS:
                return {}
    candidates: dict[str, list[str]] = defaultdict(list)
    for masks, images in permutations(sorted(files), 2):
        is_same = stems[masks] == stems[images] and len(stems[masks]) >= MIN_FILES
        if is_same and _are_masks(folder, files[masks]) and _are_photos(folder, files[images]):
            candidates[masks].append(images)
    return {masks: max(found, key=lambda images: _count_shared(masks, images)) for masks, found in candidates.items()}


def _count_shared(directory: str, other: str) -> int:
    """Return the number of parts that two paths of the same depth have in common, such as the split."""
    return sum(part == other_part for part, other_part in zip(directory.split("/"), other.split("/"), strict=False))


def _are_masks(folder: DataFolder, names: list[str]) -> bool:
    counts = [_count_colors(folder, name) for name in names[:SAMPLE]]
    is_lossless = all(name.lower().endswith(LOSSLESS_SUFFIXES) for name in names)
    return is_lossless and 1 < max(counts) <= MAX_MASK_COLORS and min(counts) > 0


def _are_photos(folder: DataFolder, names: list[str]) -> bool:
    return min(_count_colors(folder, name) for name in names[:SAMPLE]) >= MIN_IMAGE_COLORS


def _count_colors(folder: DataFolder, name: str) -> int:
    """Return the number of colors of an image, 0 if it can't be read."""
    try:
        pixels = np.asarray(load_image(folder.path(name)), dtype=np.int32)
    except DECODER_ERRORS:
        return 0
    return len(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)))
