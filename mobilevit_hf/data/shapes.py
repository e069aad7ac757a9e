"""Polygons and run-length encodings (RLE) of COCO and Label Studio, painted to masks as pycocotools does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

POLYGON_SCALE = 5  # by which pycocotools scales polygons before it rounds their points


def fill_shape(canvas: np.ndarray, shape: Sequence[Sequence[float]] | Mapping[str, Any] | bytes, value: int) -> None:
    """Set the pixels of a shape on a canvas (H, W).

    Args:
        canvas: Canvas of the size of the image.
        shape: Polygons, each [x1, y1, x2, y2, ...] in pixels; or RLE, a dictionary of `size` (height, width) and
            `counts`, a list or a compressed string; or the RLE of a brush of Label Studio, see `decode_brush`.
        value: Value of the pixels.

    Raises:
        ValueError: If it is malformed, or RLE of another size.
    """
    if isinstance(shape, bytes):
        canvas[decode_brush(shape, canvas.shape)] = value
        return
    if isinstance(shape, Mapping):
        canvas[decode_rle(shape, canvas.shape)] = value
        return
    for polygon in shape:
        canvas[fill_polygon(polygon, *canvas.shape)] = value


def decode_rle(shape: Mapping[str, Any], size: Sequence[int]) -> np.ndarray:
    """Decode RLE of an image of `size` (height, width) to a boolean mask. See `fill_shape`."""
    counts = shape.get("counts")
    if isinstance(counts, str | bytes):
        counts = _decompress(counts)
    if (
        list(shape.get("size") or ()) != list(size)
        or not isinstance(counts, Sequence)
        or sum(counts) != math.prod(size)
    ):
        raise ValueError(
            f"got RLE of size {shape.get('size')} with {sum(counts or ())} pixels, expected that of the image, "
            f"{list(size)}"
        )
    runs = np.arange(len(counts)) % 2 == 1
    return np.repeat(runs, counts).reshape(size[1], size[0]).T


def _decompress(text: str | bytes) -> list[int]:
    """Decode COCO's string of counts: groups of 5 bits as characters, from the third on as differences."""
    counts: list[int] = []
    value = bits = 0
    for character in text.encode() if isinstance(text, str) else text:
        group = character - 48
        value |= (group & 0x1F) << bits
        bits += 5
        if group & 0x20:
            continue
        if group & 0x10:  # negative
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = bits = 0
    return counts


def decode_brush(rle: bytes, size: Sequence[int]) -> np.ndarray:
    """Decode RLE of Label Studio's brush to a boolean mask of `size` (height, width): where it is not transparent.

    The RLE is a stream of bits. Its header has the number of words (32 bits), the bits of a word minus one (5), and
    the bits of the four kinds of lengths, each minus one (4 each). Blocks follow: whether a single word is repeated
    (1), the kind of length (2), the length minus one, and the word or words. Words are the channels of RGBA pixels.

    Raises:
        ValueError: If it is malformed, or of another size.
    """
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise ValueError(f"got brush RLE that ends after {len(rle)} bytes, expected more")
        return int(bits[position - count : position], 2)

    total, word_bits, length_bits = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    if total != 4 * math.prod(size) or word_bits != 8:
        raise ValueError(
            f"got brush RLE of {total} words of {word_bits} bits, expected 4 of 8 bits for each pixel of the image, "
            f"{size[1]}x{size[0]}"
        )
    words = np.empty(total, np.uint8)
    start = 0
    while start < total:
        is_repeated = take(1)
        stop = start + take(length_bits[take(2)]) + 1
        if stop > total:
            raise ValueError(f"got brush RLE of more than the {total} words of its header")
        words[start:stop] = take(word_bits) if is_repeated else [take(word_bits) for _ in range(start, stop)]
        start = stop
    return words.reshape(*size, 4)[..., 3] > 0


def fill_polygon(polygon: Sequence[float], height: int, width: int) -> np.ndarray:
    """Return the pixels of a polygon [x1, y1, x2, y2, ...] as a boolean mask, as `rleFrPoly` of pycocotools."""
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    corners = np.trunc(POLYGON_SCALE * points + 0.5).astype(np.int64)
    outline = np.concatenate(
        [_draw_edge(start, end) for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    )
    (x, y), (previous_x, previous_y) = outline[1:].T, outline[:-1].T
    # Where the outline enters another column, at its center in pixels of the image.
    columns = (np.where(x < previous_x, x, x - 1) + 0.5) / POLYGON_SCALE - 0.5
    rows = np.ceil(((np.minimum(y, previous_y) + 0.5) / POLYGON_SCALE - 0.5).clip(0, height))
    crosses = (x != previous_x) & (columns == np.floor(columns)) & (columns >= 0) & (columns <= width - 1)
    positions = (columns[crosses] * height + rows[crosses]).astype(np.int64)
    # Column by column, each crossing of the outline switches between outside and inside.
    switches = np.bincount(positions, minlength=height * width + 1)[: height * width]
    return (np.cumsum(switches) % 2 == 1).reshape(width, height).T


def _draw_edge(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the points (N, 2) of a line, from its start to its end."""
    is_steep = int(abs(end[0] - start[0]) < abs(end[1] - start[1]))  # index of the axis with a point for each step
    is_flipped = start[is_steep] > end[is_steep]
    first, last = (end, start) if is_flipped else (start, end)
    steps = np.arange(last[is_steep] - first[is_steep] + 1)
    slope = (last[1 - is_steep] - first[1 - is_steep]) / max(len(steps) - 1, 1)
    line = np.empty((len(steps), 2), np.int64)
    line[:, is_steep] = first[is_steep] + steps
    line[:, 1 - is_steep] = np.trunc(first[1 - is_steep] + slope * steps + 0.5)
    return line[::-1] if is_flipped else line
