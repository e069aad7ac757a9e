"""Decode images to upright 8-bit RGB, whole or only the region that is needed."""

import io
import math
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from ..model_sources import call_within
from .image_formats import FORMATS, FORMATS_BY_SUFFIX, describe_format, is_url
from .image_repair import strip_metadata

Result = TypeVar("Result")

# A file of a few kB can claim gigabytes of pixels. 100 megapixels need 300 MB as RGB.
MAX_PIXELS = 100_000_000
TOO_LARGE = f"more than {MAX_PIXELS // 10**6} megapixels: scale it down"
MAX_READ_BYTES = 256 * 2**20  # into memory: larger files are left to Pillow, which reads in parts
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT_SECONDS = 30  # to connect, and between two parts of the response
MAX_DOWNLOAD_SECONDS = 60

# Raised by Pillow's decoders on damaged files.
DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError),
    *(AttributeError, RuntimeError, ZeroDivisionError, struct.error, zlib.error, Image.DecompressionBombError),
)

# How to turn the stored pixels upright, by EXIF orientation.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What the conversion to 8-bit RGB loses, and how to avoid it.
LOSSES = {
    "transparency": (
        "Transparency is dropped, which shows the colors below it",
        'composite them over a background: `Image.alpha_composite(Image.new("RGBA", image.size, "white"), '
        'image.convert("RGBA"))`',
    ),
    "depth": (
        "Pixels of more than 8 bits are clipped to 0..255",
        "scale them, such as 16 bits by `Image.fromarray((numpy.asarray(image) / 257).astype(numpy.uint8))`",
    ),
    "frames": ("Only the first of several frames is used", "save each frame as a file of its own"),
    "colors": ("CMYK is converted to RGB without a color profile", "save them as RGB with an image editor"),
}

# Markers of a JPEG header: frames (baseline, extended, progressive), and segments without information about colors or
# orientation: JFIF, ICC profile, comment, quantization and Huffman tables, restart interval.
PLAIN_FRAMES = {0xC0, 0xC1, 0xC2}
IGNORED_SEGMENTS = {0xE0, 0xE2, 0xFE, 0xDB, 0xC4, 0xDD}
MAX_REDUCTION = 8  # a JPEG block has 8x8 pixels


class UnreadableImageError(ValueError):
    """An image can't be fetched or decoded. The message is the reason, in one line."""


def load_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Decode an image to upright 8-bit RGB, with the pixels that `transformers.image_utils.load_image` returns.

    The EXIF orientation is applied. What RGB can't represent is dropped, see `LOSSES`. Damaged metadata is ignored,
    while transformers raises an error.

    Args:
        source: A path, an http(s) URL, the content of an image file, or a decoded image.

    Raises:
        UnreadableImageError: If the image can't be fetched or decoded, or has more than `MAX_PIXELS` pixels.
    """
    return _read(source, _to_rgb)


def load_with_losses(source: str | Path | bytes | Image.Image) -> tuple[Image.Image, list[str]]:
    """Return an image as `load_image`, and the keys of `LOSSES` that apply to it."""
    return _read(source, lambda image: (_to_rgb(image), _find_losses(image)))


def load_first_frame(source: str | Path | bytes | Image.Image) -> tuple[Image.Image, bool]:
    """Return an image as `load_image`, and whether its file has further frames, which are not decoded."""
    return _read(source, lambda image: (_to_rgb(image), _is_animated(image)))


def open_header(source: str | Path | bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Open an image file and read only its header, without Pillow's warning about large images.

    Args:
        source: A path, or the content of an image file.
        formats: Formats of Pillow to try. Default: `FORMATS`, and the format of the path's suffix.

    Raises:
        Exception: One of `DECODER_ERRORS` if the header can't be read.
    """
    suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
    if reason := describe_format(suffix and str(source)):  # Pillow would read the thumbnail of a camera raw
        raise UnreadableImageError(reason)
    if formats is None:
        own = FORMATS_BY_SUFFIX.get(suffix)
        formats = FORMATS if own is None or own in FORMATS else (*FORMATS, own)
    with _ignore_warnings:
        try:
            return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        except DECODER_ERRORS:
            if (stripped := _without_metadata(source)) is None:
                raise
            return Image.open(io.BytesIO(stripped), formats=formats)


class _IgnoreWarnings:
    """Ignore warnings of image libraries while any thread decodes: the filters belong to the whole process."""

    def __init__(self) -> None:
        self.lock, self.depth, self.filters = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif|mobilevit_hf)\b")
            self.depth += 1

    def __exit__(self, *exception: Any) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.filters.__exit__(*exception)


_ignore_warnings = _IgnoreWarnings()


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1..8; 1 (upright) if the EXIF data is missing or damaged."""
    try:
        with _ignore_warnings:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except DECODER_ERRORS:
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


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


def download(url: str) -> bytes:
    """Return the content of an image file at an http(s) URL.

    Raises:
        UnreadableImageError: If it can't be fetched, or has more than `MAX_DOWNLOAD_BYTES`.
    """
    if reason := describe_format(url.partition("?")[0]):
        raise UnreadableImageError(reason)
    try:
        return call_within(MAX_DOWNLOAD_SECONDS, lambda: _fetch(url))
    except TimeoutError as error:
        raise UnreadableImageError(f"can't be fetched: {error}") from error


def _fetch(url: str) -> bytes:
    session = get_session()
    headers = {"User-Agent": "mobilevit-hf", "Accept-Encoding": "identity"}
    try:
        request = session.build_request("GET", url, headers=headers, timeout=DOWNLOAD_TIMEOUT_SECONDS)
    except Exception as error:  # an invalid URL; which package defines the class depends on huggingface_hub's version
        raise UnreadableImageError(f"can't be fetched: {error}") from error
    data, deadline = bytearray(), time.monotonic() + MAX_DOWNLOAD_SECONDS  # ends the thread
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


def _read(source: Any, convert: Callable[[Image.Image], Result]) -> Result:
    """Open an image and convert it, without its metadata if it can't be decoded with it."""
    try:
        if isinstance(source, str) and is_url(source):
            source = download(source)
        with _ignore_warnings:  # Pillow warns of damage that it repairs
            if isinstance(source, Image.Image):
                return _convert(source, convert)
            try:
                with open_header(source) as image:
                    return _convert(image, convert)
            except UnreadableImageError:
                raise
            except DECODER_ERRORS:
                if (stripped := _without_metadata(source)) is None:
                    raise
                with open_header(stripped) as image:
                    return _convert(image, convert)
    except UnreadableImageError:
        raise
    except DECODER_ERRORS as error:
        raise UnreadableImageError(describe_error(error)) from error


def _convert(image: Image.Image, convert: Callable[[Image.Image], Result]) -> Result:
    if math.prod(image.size) > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width}x{image.height} pixels, {TOO_LARGE}")
    image.load()
    return convert(image)


def _without_metadata(source: str | Path | bytes) -> bytes | None:
    """Return an image file without metadata, None if it has none or is too large."""
    data = _read_bytes(source)
    stripped = strip_metadata(data) if data else data
    return None if stripped == data else stripped


def _read_bytes(source: str | Path | bytes) -> bytes | None:
    """Return the content of a file, None if it has more than `MAX_READ_BYTES`."""
    if isinstance(source, bytes):
        return source
    return Path(source).read_bytes() if os.path.getsize(source) <= MAX_READ_BYTES else None  # noqa: PTH202


def _to_rgb(image: Image.Image) -> Image.Image:
    transposition = TRANSPOSITIONS.get(read_orientation(image))
    rgb = (image if transposition is None else image.transpose(transposition)).convert("RGB")
    rgb.info = {}  # without the EXIF data, so that no later step rotates the image again
    return rgb


def _find_losses(image: Image.Image) -> list[str]:
    """Return the keys of `LOSSES` that apply to a loaded image. Its frame may change."""
    losses = {
        "transparency": image.has_transparency_data and _is_transparent(image),
        "depth": image.mode == "F" or (image.mode.startswith("I") and _exceeds_8_bits(image)),
        "frames": _is_animated(image),
        "colors": image.mode == "CMYK",
    }
    return [loss for loss, applies in losses.items() if applies]


def _is_transparent(image: Image.Image) -> bool:
    alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    return alpha.getextrema() != (255, 255)


def _exceeds_8_bits(image: Image.Image) -> bool:
    values = np.asarray(image.convert("I"))
    return values.min() < 0 or values.max() > 255


def _is_animated(image: Image.Image) -> bool:
    try:
        # An MPO is a photo with a preview or a depth map.
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except DECODER_ERRORS:  # of the second frame
        return False


def describe_error(error: Exception) -> str:
    """Return an error of a decoder as one line."""
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
        data = _read_bytes(source)
        size = _parse_jpeg_size(data) if data else None
        if data and size is None:
            image = open_header(data, ("JPEG",))
            if image.mode in ("RGB", "L") and read_orientation(image) == 1:
                size = image.size
    except DECODER_ERRORS:
        return None
    return (data, size) if data and size and math.prod(size) <= MAX_PIXELS else None


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
