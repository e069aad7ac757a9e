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
    stem, suffix = Path(name).stem or "image", Path(name).suffix
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    suffix = suffix if suffix.lower() in FORMATS else ".png"
    stems = chain([stem], (f"{stem}-{number}" for number in count(2)))
    path = next(path for stem in stems if not (path := folder / f"{stem}{suffix}").exists())
    # JPEG without chroma subsampling, so that thin lines keep their colors.
    write_atomically(path, lambda file: image.save(file, FORMATS[suffix.lower()], quality=95, subsampling=0))
    return path
