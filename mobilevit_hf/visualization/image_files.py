"""Save images without overwriting files."""

import os
from itertools import chain, count
from pathlib import Path

from PIL import Image

from ..io import write_atomically

# File systems limit names to 255 bytes; a number and a suffix are added.
MAX_STEM_BYTES = 200

# Suffixes of the supported formats.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def save_image(image: Image.Image, folder: Path, name: str) -> Path:
    """Save an image atomically under an unused name: a number is appended to the name of an existing file.

    Args:
        image: RGB image.
        folder: Existing folder.
        name: File name with the suffix .jpg, .jpeg or .png; any other suffix is replaced by .png.

    Returns:
        The path of the file.
    """
    stem, suffix = Path(name).stem or "image", Path(name).suffix
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    suffix = suffix if suffix.lower() in IMAGE_SUFFIXES else ".png"
    stems = chain([stem], (f"{stem}-{number}" for number in count(2)))
    path = next(path for stem in stems if not (path := folder / f"{stem}{suffix}").exists())
    file_format = "PNG" if suffix.lower() == ".png" else "JPEG"
    # JPEG without chroma subsampling, so that thin lines keep their colors.
    write_atomically(path, lambda file: image.save(file, file_format, quality=95, subsampling=0))
    return path
