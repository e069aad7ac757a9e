"""Masks of semantic segmentation, read on access: files of values or colors, or shapes that are painted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .images import (
    DECODER_ERRORS,
    MAX_PIXELS,
    TOO_LARGE,
    Region,
    UnreadableImageError,
    describe_error,
    open_header,
)
from .shapes import fill_shape
from .types import IGNORE_INDEX

MAX_CLASSES = 255  # of masks of 8 bits, whose last value is the ignored one
COLOR = 1 << 24  # added to the code of a color where values are expected


class UnreadableMaskError(UnreadableImageError):
    """A mask can't be decoded, or differs in size from its image. The message is the reason, in one line."""


class MaskSizeError(UnreadableMaskError):
    """A mask differs in size from its image."""


@dataclass(frozen=True)
class MaskEncoding:
    """Class of each raw value of a mask.

    Attributes:
        labels: Class 0..K-1 or `IGNORE_INDEX` by value (of a gray image, or an index into a palette), or by color as
            0xRRGGBB.
        is_color: Whether the keys of `labels` are colors.
    """

    labels: Mapping[int, int]
    is_color: bool = False

    def encode(self, codes: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
        """Return the classes (H, W) uint8 of raw values or colors (H, W), and the number of pixels of unknown ones.

        Unknown ones become `IGNORE_INDEX`.
        """
        if codes.dtype == np.uint8:
            labels, known = (column[codes] for column in self._table)
        else:
            keys, values = self._sorted
            positions = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
            known = keys[positions] == codes
            labels = np.where(known, values[positions], IGNORE_INDEX).astype(np.uint8)
        if known.all():
            return labels, {}
        unknown, counts = np.unique(codes[~known], return_counts=True)
        return labels, dict(zip(unknown.tolist(), counts.tolist(), strict=True))

    def describe(self, code: int) -> str:
        """Return a raw value or a color as text."""
        if self.is_color or code >= COLOR:
            return f"color ({code >> 16 & 255}, {code >> 8 & 255}, {code & 255})"
        return f"value {code}"

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        values = [self.labels.get(value, -1) for value in range(256)]
        known = np.array(values) >= 0
        return np.where(known, values, IGNORE_INDEX).astype(np.uint8), known

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        keys = sorted(self.labels)
        return np.array(keys, np.int32), np.array([self.labels[key] for key in keys], np.int32)


@dataclass(frozen=True)
class Mask:
    """Class of each pixel of an image, read on access.

    Attributes:
        source: Path or content of an image file, a decoded image, raw values (H, W), or `Shapes` or `Layers` to paint.
        encoding: Class of each raw value. None: the values are the classes.
    """

    source: Any
    encoding: MaskEncoding | None = field(default=None)

    def read(self, region: Region | None = None, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return classes (H, W) uint8, 0..K-1 or `IGNORE_INDEX`.

        Args:
            region: Region of the upright image. None: the whole image.
            size: (height, width) of the image, to be checked.

        Raises:
            UnreadableMaskError: If the mask can't be decoded, or has another size.
        """
        return self.inspect(region, size=size)[0]

    def inspect(
        self, region: Region | None = None, *, size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Return classes as `read`, and the number of pixels of each raw value or color without a class."""
        if isinstance(self.source, Shapes | Layers):
            codes = self.source.read()
        else:
            codes = read_codes(self.source, is_color=self.encoding is not None and self.encoding.is_color)
        if size is not None and codes.shape != size:
            (height, width), (mask_height, mask_width) = size, codes.shape
            reason = f"mask of {mask_width}x{mask_height} pixels, image of {width}x{height}"
            if codes.shape == size[::-1]:
                reason += "; the orientation in EXIF applies to the image, not to its mask"
            raise MaskSizeError(reason)
        if region is not None:
            codes = codes[region.top : region.top + region.height, region.left : region.left + region.width]
        return self.encoding.encode(codes) if self.encoding else (codes.astype(np.uint8, copy=False), {})

    @property
    def is_painted(self) -> bool:
        """Whether it is painted, from shapes or layers whose classes are known."""
        return isinstance(self.source, Shapes | Layers)

    def labels(self) -> list[int]:
        """Return the classes of its pixels, none if it can't be read."""
        if isinstance(self.source, Shapes | Layers):
            parts = self.source.shapes if isinstance(self.source, Shapes) else self.source.layers
            return sorted({label for label, _ in parts} - {IGNORE_INDEX})
        try:
            return [label for label in np.unique(self.read()).tolist() if label != IGNORE_INDEX]
        except UnreadableMaskError:
            return []


def read_codes(source: Any, *, is_color: bool) -> np.ndarray:
    """Return the raw values (H, W) of a mask, uint8 or int32, or its colors as 0xRRGGBB, int32.

    A gray image may have three equal channels. Other colors, where values are expected, are 0x1RRGGBB.

    Raises:
        UnreadableMaskError: If it can't be decoded.
    """
    if isinstance(source, np.ndarray):
        return source
    try:
        with source if isinstance(source, Image.Image) else open_header(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableMaskError(f"{image.width}x{image.height} pixels, {TOO_LARGE}")
            return _to_colors(image.convert("RGB")) if is_color else _to_values(image)
    except UnreadableMaskError:
        raise
    except DECODER_ERRORS as error:
        name = "/".join(Path(source).parts[-2:]) + ": " if isinstance(source, str) else ""
        raise UnreadableMaskError(name + describe_error(error)) from error


def count_codes(source: Any, *, is_color: bool) -> dict[int, int]:
    """Return the number of pixels of each raw value or color of a mask, see `read_codes`."""
    codes = read_codes(source, is_color=is_color)
    if codes.dtype == np.uint8:
        counts = np.bincount(codes.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(codes, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _to_values(image: Image.Image) -> np.ndarray:
    if image.mode in ("P", "L"):
        return np.asarray(image)
    if image.mode == "LA":
        return np.asarray(image.getchannel("L"))
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image).astype(np.int32)
    red, green, blue = (np.asarray(channel) for channel in image.convert("RGB").split())
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    colors = _to_colors(image.convert("RGB"))
    return np.where((red == green) & (red == blue), red, colors + COLOR)


def _to_colors(image: Image.Image) -> np.ndarray:
    red, green, blue = (np.asarray(channel, dtype=np.int32) for channel in image.split())
    return red << 16 | green << 8 | blue


@dataclass(frozen=True)
class Shapes:
    """Shapes on an image: polygons or RLE of COCO.

    Attributes:
        size: (width, height) of the upright image.
        shapes: Class and shape of each object. A later one covers those before.
        background: Class of the pixels without a shape.
    """

    size: tuple[int, int]
    shapes: Sequence[tuple[int, Any]]
    background: int = 0

    def read(self) -> np.ndarray:
        """Return classes (H, W) uint8.

        Raises:
            UnreadableMaskError: If a shape is malformed.
        """
        canvas = np.full((self.size[1], self.size[0]), self.background, np.uint8)
        try:
            for label, shape in self.shapes:
                fill_shape(canvas, shape, label)
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise UnreadableMaskError(" ".join(str(error).split())) from error
        return canvas


@dataclass(frozen=True)
class Layers:
    """Binary masks of one image, one or more for each class.

    Attributes:
        layers: Class and source of each mask, see `Mask`. Pixels other than 0 are of the class; a later mask covers
            those before.
        background: Class of the pixels in no mask.
    """

    layers: Sequence[tuple[int, Any]]
    background: int = 0

    def read(self) -> np.ndarray:
        """Return classes (H, W) uint8.

        Raises:
            UnreadableMaskError: If a mask can't be decoded, or they differ in size.
        """
        canvas = None
        for label, source in self.layers:
            codes = read_codes(source, is_color=False)
            canvas = np.full(codes.shape, self.background, np.uint8) if canvas is None else canvas
            if codes.shape != canvas.shape:
                raise UnreadableMaskError(f"masks of {codes.shape} and {canvas.shape} pixels, expected one size")
            canvas[codes != 0] = label
        if canvas is None:
            raise UnreadableMaskError("no masks")
        return canvas
