"""Save images without overwriting files."""

import os
from itertools import chain, count
from pathlib import Path

from PIL import Image

from ..io import write_atomically

MAX_STEM_BYTES = 200  # file systems limit names to 255 bytes; a number and a suffix are added
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


def save_image(image: Image.Image, folder: Path, name: str) -> Path:
    """Save an RGB image atomically; return the path.

    A number is appended if the file exists. A suffix other than .jpg, .jpeg and .png is replaced by .png.
    """
    suffix = Path(name).suffix.lower()
    path = unused_path(folder, name if suffix in FORMATS else f"{Path(name).stem or 'image'}.png")
    # JPEG without chroma subsampling, so that thin lines keep their colors.
    image_format = FORMATS[path.suffix.lower()]
    write_atomically(path, lambda file: image.save(file, image_format, quality=95, subsampling=0))
    return path


def unused_path(folder: Path, name: str) -> Path:
    """Return the path of a new file in a folder: with a number before the suffix if the name is taken."""
    stem, suffix = Path(name).stem or "image", Path(name).suffix
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    stems = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(path for stem in stems if not (path := folder / f"{stem}{suffix}").exists())
