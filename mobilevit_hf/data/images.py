"""Find images on disk and at URLs, and decode them to upright 8-bit RGB, whole or only the region that is needed."""

import glob
import io
import math
import os
import struct
import time
import warnings
import zlib
from collections.abc import Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}

# Formats that Pillow may detect. Others are excluded: for PostScript it would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

# A file of a few kB can claim gigabytes of pixels. 100 megapixels need 300 MB as RGB.
MAX_PIXELS = 100_000_000
TOO_LARGE = f"more than {MAX_PIXELS // 10**6} megapixels: scale it down"
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT_SECONDS = 30  # to connect, and between two parts of the response
MAX_DOWNLOAD_SECONDS = 600

# Raised by Pillow's decoders on damaged files.
DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

# Markers of a JPEG header: frames (baseline, extended, progressive), and segments without information about colors or
# orientation: JFIF, ICC profile, comment, quantization and Huffman tables, restart interval.
PLAIN_FRAMES = {0xC0, 0xC1, 0xC2}
IGNORED_SEGMENTS = {0xE0, 0xE2, 0xFE, 0xDB, 0xC4, 0xDD}
MAX_REDUCTION = 8  # a JPEG block has 8x8 pixels


class UnreadableImageError(ValueError):
    """An image can't be fetched or decoded. The message is the reason, in one line."""


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL."""
    return source.startswith(("http://", "https://"))


def find_images(sources: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Resolve files, folders, glob patterns and URLs to images.

    Args:
        sources: Files of any suffix, http(s) URLs, glob patterns (`"photos/*.jpg"`, `**` for subfolders), or folders,
            of which all files below with a suffix in `IMAGE_SUFFIXES` are returned in alphabetical order.

    Returns:
        The unique paths and URLs in the order of the sources, and the reason for each source without any image.
    """
    images: dict[str, None] = {}
    missing: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        if is_url(source) or path.is_file():
            images[source] = None
            continue
        if path.is_dir():
            matches = [str(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
            reason = f"no images in this folder (expected {', '.join(sorted(IMAGE_SUFFIXES))})"
        else:
            matches = [match for match in sorted(glob.glob(source, recursive=True)) if os.path.isfile(match)]  # noqa: PTH207, PTH113
            reason = "no such file or folder"
        images.update(dict.fromkeys(matches))
        if not matches:
            missing[source] = reason
    return list(images), missing


def load_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Applies the EXIF orientation, composites transparency over white, scales 16-bit gray to 8 bits, and converts CMYK
    and palettes. Of an animation, the first frame is returned.

    Args:
        source: A path, an http(s) URL, the content of an image file, or a decoded image.

    Raises:
        UnreadableImageError: If the image can't be fetched or decoded, or has more than `MAX_PIXELS` pixels.
    """
    try:
        source = _download(source) if isinstance(source, str) and is_url(source) else source
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow warns of damage that it repairs
            nullcontext(source) if isinstance(source, Image.Image) else open_header(source) as image,
        ):
            if math.prod(image.size) > MAX_PIXELS:
                raise UnreadableImageError(f"{image.width}x{image.height} pixels, {TOO_LARGE}")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImageError:
        raise
    except DECODER_ERRORS as error:
        raise UnreadableImageError(_describe_error(error)) from error


def open_header(source: str | Path | bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image file and read only its header, without Pillow's warning about large images.

    Raises:
        Exception: One of `DECODER_ERRORS` if the header can't be read.
    """
    with warnings.catch_warnings(action="ignore"):
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


class Region(NamedTuple):
    """A rectangle in pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


class LazyImage:
    """An image whose size is known and whose pixels are decoded on access.

    Args:
        source: See `load_image`.

    Attributes:
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.

    Raises:
        UnreadableImageError: See `load_image`.
    """

    def __init__(self, source: Any) -> None:
        self._source, self._image = source, None
        self._jpeg, size = _read_plain_jpeg(source) or (None, None)
        if size is None:
            self._image = load_image(source)
            size = self._image.size
        self.width, self.height = size

    def load(self) -> Image.Image:
        """Return the whole image as upright 8-bit RGB."""
        return self._image or load_image(self._source)

    def read(self, region: Region, size: tuple[int, int]) -> Tensor:
        """Decode a region that is going to be resized to `size`.

        Args:
            region: Rectangle within the image.
            size: Target (height, width).

        Returns:
            Pixels of the region (3, height, width), uint8 RGB. If a JPEG has at least twice the target resolution, it
            is decoded at 1/2, 1/4 or 1/8 of its size (means over squares of pixels), which is faster.
        """
        reduction = 1
        while reduction < MAX_REDUCTION and all(
            2 * reduction * target <= side for target, side in zip(size, region[2:], strict=True)
        ):
            reduction *= 2
        if self._jpeg:
            try:
                return _crop(_decode_jpeg(self._jpeg, reduction), region, reduction)
            except (RuntimeError, *DECODER_ERRORS):
                pass  # load() decodes the file after all, or raises the reason
        return _crop(pil_to_tensor(self.load()), region)


def _download(url: str) -> bytes:
    session = get_session()
    headers = {"User-Agent": "mobilevit-hf", "Accept-Encoding": "identity"}
    try:
        request = session.build_request("GET", url, headers=headers, timeout=DOWNLOAD_TIMEOUT_SECONDS)
    except Exception as error:  # an invalid URL; which package defines the class depends on huggingface_hub's version
        raise UnreadableImageError(f"can't be fetched: {error}") from error
    data, deadline = bytearray(), time.monotonic() + MAX_DOWNLOAD_SECONDS
    try:
        with closing(session.send(request, stream=True, follow_redirects=True)) as response:
            if response.is_error:
                raise UnreadableImageError(f"can't be fetched: HTTP {response.status_code} {response.reason_phrase}")
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES:
                    raise UnreadableImageError(f"more than {MAX_DOWNLOAD_BYTES // 2**20} MiB to download")
                if time.monotonic() > deadline:
                    raise UnreadableImageError(f"can't be fetched: took more than {MAX_DOWNLOAD_SECONDS} s")
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"can't be fetched: {reason}") from error
    return bytes(data)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel, which convert("RGB") would clip to white
        values = np.asarray(image, dtype=np.float64) / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels of unknown range: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _describe_error(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return TOO_LARGE
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a format Pillow reads"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def _read_plain_jpeg(source: Any) -> tuple[bytes, tuple[int, int]] | None:
    """Return the content and the (width, height) of a file if it is an upright RGB or gray JPEG, else None."""
    if isinstance(source, Image.Image) or (isinstance(source, str) and is_url(source)):
        return None
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        size = _parse_jpeg_size(data)
        if size is None:
            image = open_header(data, ("JPEG",))
            if image.mode in ("RGB", "L") and image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
                size = image.size
    except DECODER_ERRORS:
        return None
    return (data, size) if size and math.prod(size) <= MAX_PIXELS else None


def _parse_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of an 8-bit gray or YCbCr JPEG without EXIF data (which may rotate it), else None."""
    # Pillow reads the tables of the header too, which takes a third of the time of decoding a small image.
    if data[:3] != b"\xff\xd8\xff":
        return None
    offset = 2
    while offset + 10 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker in PLAIN_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, offset + 4)
            return (width, height) if bits == 8 and components in (1, 3) and width and height else None
        if marker not in IGNORED_SEGMENTS or length < 2:
            return None
        offset += 2 + length
    return None


def _decode_jpeg(data: bytes, reduction: int) -> Tensor:
    """Decode a JPEG to (3, H, W) uint8 at a fraction of its size. Only Pillow can reduce; torchvision is faster."""
    if reduction == 1:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, ImageReadMode.RGB)  # ty: ignore[invalid-explicit-return] (a list only for a list)
    image = open_header(data, ("JPEG",))
    image.draft("RGB", (image.width // reduction, image.height // reduction))
    return pil_to_tensor(image.convert("RGB"))


def _crop(pixels: Tensor, region: Region, reduction: int = 1) -> Tensor:
    top, left = round(region.top / reduction), round(region.left / reduction)
    height, width = max(1, round(region.height / reduction)), max(1, round(region.width / reduction))
    return pixels[:, top : top + height, left : left + width]
