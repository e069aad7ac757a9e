"""CSV: a row per image with its labels, or a row per box or segment."""

import contextlib
import csv
import io
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..segments import count_pixels
from .base import PredictedImage, PredictionWriter, RecordFile, box_corners

BOX_COLUMNS = ("image", "width", "height", "label", "score", "xmin", "ymin", "xmax", "ymax")
SEGMENT_COLUMNS = ("image", "width", "height", "label", "pixels", "fraction")


class CsvWriter(PredictionWriter):
    """Writer of a row per image: `image,label,score,label_2,score_2,…`, by descending score.

    Args:
        path, classes: See `PredictionWriter`.
        top_k: Number of labels per image, at most that of the classes.
    """

    def __init__(self, path: Path, classes: Sequence[str], top_k: int = 1) -> None:
        super().__init__(path, classes)
        self._columns = self._make_columns(min(top_k, len(classes)))
        self._names, size = _read_names(path, self._columns)
        self._file = RecordFile(path, size)
        if not size:
            self._file.append(_format_rows([self._columns]))

    def _make_columns(self, top_k: int) -> tuple[str, ...]:
        further = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
        return ("image", "label", "score", *further)

    def _make_rows(self, image: PredictedImage) -> list[list[Any]]:
        values = [value for p in image.predictions for value in (p["label"], _format_score(p["score"]))]
        return [[image.name, *values]]

    def is_written(self, name: str) -> bool:
        """Return whether the predictions of an image are in the output."""
        return name in self._names

    def write(self, image: PredictedImage) -> None:
        """Write the predictions of an image."""
        self._file.append(_format_rows(self._make_rows(image)))
        self._names.add(image.name)

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


class BoxCsvWriter(CsvWriter):
    """Writer of a row per box, with `BOX_COLUMNS`. An image without boxes has a row without label, score and box."""

    def _make_columns(self, top_k: int) -> tuple[str, ...]:
        return BOX_COLUMNS

    def _make_rows(self, image: PredictedImage) -> list[list[Any]]:
        rows = [[p["label"], _format_score(p["score"]), *box_corners(p)] for p in image.predictions]
        return [[image.name, *image.size, *row] for row in rows or [[""] * 6]]


class SegmentCsvWriter(CsvWriter):
    """Writer of a row per segment, with `SEGMENT_COLUMNS`."""

    def _make_columns(self, top_k: int) -> tuple[str, ...]:
        return SEGMENT_COLUMNS

    def _make_rows(self, image: PredictedImage) -> list[list[Any]]:
        rows = [[p["label"], count_pixels(p["mask"]), _format_score(p["fraction"])] for p in image.predictions]
        return [[image.name, *image.size, *row] for row in rows]


def _format_score(score: float) -> str:
    return f"{score:.6g}"


def _format_rows(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read_names(path: Path, columns: Sequence[str]) -> tuple[set[str], int]:
    """Return the images of an existing file, and the size of their rows in bytes.

    Raises:
        ValueError: If the file has other columns.
    """
    data = path.read_bytes() if path.exists() else b""
    if _format_rows([columns]).encode().startswith(data):  # empty, or killed at the first row
        return set(), 0
    rows = _parse_rows(data)
    header, size = next(rows, ([], 0))
    if header != list(columns):
        raise ValueError(
            f"{path}: got the columns {','.join(header)[:100]}, expected {','.join(columns)}. Pass another file, or "
            "the model and --top-k that it was written with."
        )
    names, last, start = set(), "", size
    for (name, *_), end in rows:
        if name != last:
            names.add(name)
            last, start = name, size
        size = end
    # A killed process may leave a part of the last image's rows. It ends within a row or, where the system has written
    # whole pages of memory, possibly between two.
    if size < len(data) or len(data) % mmap.PAGESIZE == 0:
        names.discard(last)
        size = start
    return names, size


def _parse_rows(data: bytes) -> Iterator[tuple[list[str], int]]:
    """Yield the complete rows, and the position in bytes of the end of each. Fields may contain line breaks."""
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for line in io.BytesIO(data):
            if line.endswith(b"\n"):
                position += len(line)
                yield line.decode()

    with contextlib.suppress(csv.Error, UnicodeDecodeError):  # at the end of a row that is cut off
        for row in csv.reader(lines(), strict=True):
            yield row or [""], position
