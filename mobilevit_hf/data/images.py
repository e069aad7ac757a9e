"""Find images on disk, in folders, by pattern or at a URL, and decode any of them to upright 8-bit RGB."""

import glob
import http.client
import io
import os
import string
import struct
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}

# What Pillow may take a file for. Others are left out: for PostScript it would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

# A file of a few kB can ask for gigabytes of pixels. 100 megapixels need 300 MB as RGB.
MAX_PIXELS = 100_000_000
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT_SECONDS = 30

# What Pillow's decoders raise on damaged files.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(ValueError):
    """An image can't be read; the message says why, in one line."""


def is_url(source: str) -> bool:
    """Whether a source is to be fetched rather than opened."""
    return source.startswith(("http://", "https://"))


def find_images(sources: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The images behind files, folders, glob patterns and URLs.

    Args:
        sources: A folder stands for all files below it that end like an image, in alphabetical order; a pattern
            (`"photos/*.jpg"`, `**` for folders below) for the files it matches. A file is taken whatever its ending.

    Returns:
        The images' paths and URLs, each once, in the order given, and the sources that stand for no image with
        the reason.
    """
    found: dict[str, None] = {}
    missing: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        if is_url(source) or path.is_file():
            found[source] = None
            continue
        if path.is_dir():
            matches = [str(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
            reason = f"no images in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
        else:
            matches = [match for match in sorted(glob.glob(source, recursive=True)) if os.path.isfile(match)]  # noqa: PTH207, PTH113
            reason = "no such file or folder"
        found.update(dict.fromkeys(matches))
        if not matches:
            missing[source] = reason
    return list(found), missing


def load_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    EXIF rotation is applied, transparency laid over white, 16-bit gray scaled to 8, CMYK and palettes converted; of an
    animation it is the first frame.

    Args:
        source: A path, an http(s) URL, the bytes of a file, or an image that is decoded already.

    Raises:
        UnreadableImageError: If it can't be fetched or decoded, or is larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about files it then decodes, and of sizes checked here
            with (
                nullcontext(source)
                if isinstance(source, Image.Image)
                else Image.open(_file(source), formats=FORMATS) as image
            ):
                _check_size(image)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImageError:
        raise
    except DECODER_ERRORS as error:
        raise UnreadableImageError(_reason(error)) from error


def open_header(source: str | Path | bytes) -> Image.Image:
    """An image's file of which only the header is read, without Pillow's warning of its size.

    Raises:
        One of `DECODER_ERRORS` if it can't be read.
    """
    with warnings.catch_warnings(action="ignore"):
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _file(source: str | Path | bytes) -> Any:
    """What Pillow opens."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return io.BytesIO(_download(str(source))) if is_url(str(source)) else source


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(
            f"{width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels: scale it down"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert("RGB") would clip to white
        values = np.asarray(image, dtype=np.float64) / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels, whose range is unknown: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _download(url: str) -> bytes:
    url = urllib.parse.quote(url, safe=string.punctuation)  # blanks and letters outside ASCII, as browsers do
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mobilevit-hf"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise UnreadableImageError(f"can't be fetched: {reason}") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise UnreadableImageError(f"more than {MAX_DOWNLOAD_BYTES // 2**20} MiB to download")
    return data


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 10**6} megapixels: scale it down"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a format Pillow reads"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
