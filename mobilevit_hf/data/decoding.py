"""Decode of an image what training takes, no finer than needed: the fast way for most, else `load_image`'s."""

import io
import math
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from .images import DECODER_ERRORS, MAX_PIXELS, is_url, load_image

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
# Markers in a JPEG's header: frames (baseline, extended, progressive), and segments that tell no colors and no EXIF:
# JFIF, ICC profile, comment, quantization and Huffman tables, restart interval.
PLAIN_FRAMES = {0xC0, 0xC1, 0xC2}
HARMLESS_SEGMENTS = {0xE0, 0xE2, 0xFE, 0xDB, 0xC4, 0xDD}
MAX_REDUCTION = 8  # a JPEG's blocks have 8x8 pixels


class Region(NamedTuple):
    """A rectangle in pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


class LazyImage:
    """An image of which only the size is known; its pixels are decoded when they are asked for.

    Args:
        source: A path, an http(s) URL, the bytes of a file, or a decoded image.

    Raises:
        UnreadableImageError: As `load_image` does.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._jpeg, size = _plain_jpeg(source) or (None, None)
        self._image = None if self._jpeg else load_image(source)
        self.width, self.height = size or self._image.size

    def load(self) -> Image.Image:
        """The whole image, upright 8-bit RGB."""
        return self._image or load_image(self._source)

    def read(self, region: Region, size: tuple[int, int]) -> Tensor:
        """A part of the image, to be resized to `size`.

        Args:
            region: The part, inside the image.
            size: Height and width it is needed at.

        Returns:
            (3, height, width) uint8 RGB: the region's pixels. Of a JPEG, where they are more than twice as many each
            way as needed, means over squares of 2, 4 or 8 pixels, which cost less to decode.
        """
        if self._jpeg is None:
            return _crop(_to_tensor(self._image), region)
        reduction = 1
        while reduction < MAX_REDUCTION and all(
            2 * reduction * needed <= side for needed, side in zip(size, region[2:], strict=True)
        ):
            reduction *= 2
        try:
            return _crop(_decode(self._jpeg, reduction), region, reduction)
        except (RuntimeError, *DECODER_ERRORS):
            return _crop(_to_tensor(self.load()), region)  # decodes it after all, or says what is wrong with it


def _plain_jpeg(source: Any) -> tuple[bytes, tuple[int, int]] | None:
    """A file's bytes, and its width and height, if it is a JPEG that is upright RGB or gray."""
    if isinstance(source, Image.Image) or (isinstance(source, str) and is_url(source)):
        return None
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if size := _simple_jpeg_size(data):
            return (data, size) if math.prod(size) <= MAX_PIXELS else None
        image = _open_jpeg(data)
    except DECODER_ERRORS:
        return None
    is_plain = image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) == 1
    return (data, image.size) if is_plain and image.width * image.height <= MAX_PIXELS else None


def _simple_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height if the header says all there is to know: 8-bit gray or YCbCr and no EXIF, which may turn it.

    Pillow finds out the same, but reads the tables too: a third of the time that decoding a small image takes.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in PLAIN_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            return (width, height) if bits == 8 and components in (1, 3) and width and height else None
        if marker not in HARMLESS_SEGMENTS or length < 2:
            return None
        place += 2 + length
    return None


def _open_jpeg(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=("JPEG",))


def _decode(data: bytes, reduction: int) -> Tensor:
    """(3, height, width) uint8, `reduction` times smaller. torchvision decodes faster, Pillow also to fewer pixels."""
    if reduction == 1:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    image = _open_jpeg(data)
    image.draft("RGB", (image.width // reduction, image.height // reduction))
    return _to_tensor(image.convert("RGB"))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _crop(pixels: Tensor, region: Region, reduction: int = 1) -> Tensor:
    top, left = round(region.top / reduction), round(region.left / reduction)
    height, width = max(1, round(region.height / reduction)), max(1, round(region.width / reduction))
    return pixels[:, top : top + height, left : left + width]
