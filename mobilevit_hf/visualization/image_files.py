"""Images as files, written whole or not at all."""

import os
from itertools import chain, count
from pathlib import Path

from PIL import Image

from ..io import write_whole

# File systems take names of 255 bytes; a number and a suffix are added.
MAX_STEM_BYTES = 200

# What a file's name may end with; Pillow writes the format it stands for.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def save_image(image: Image.Image, folder: Path, name: str) -> Path:
    """Write an image whole or not at all, and never over another file: a name that is taken gets a number.

    Args:
        image: RGB.
        folder: An existing directory.
        name: With the ending .jpg, .jpeg or .png; anything else becomes .png.

    Returns:
        The file.
    """
    stem, suffix = Path(name).stem or "image", Path(name).suffix
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    suffix = suffix if suffix.lower() in IMAGE_SUFFIXES else ".png"
    numbered = chain([stem], (f"{stem}-{number}" for number in count(2)))
    path = next(path for name in numbered if not (path := folder / f"{name}{suffix}").exists())
    file_format = "PNG" if suffix.lower() == ".png" else "JPEG"
    # As JPEG without subsampling: thin lines keep their colors.
    write_whole(path, lambda file: image.save(file, file_format, quality=95, subsampling=0))
    return path
