"""JSON lines: one object per image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...io import parse_json
from ..segments import to_json
from .base import PredictedImage, PredictionWriter, RecordFile


def parse_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a file, and their size in bytes: without an incomplete line at the end.

    Raises:
        ValueError: If a line is no record of an image.
    """
    data = path.read_bytes() if path.exists() else b""
    size = data.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
        try:
            record = parse_json(line)
            record["image"], record["predictions"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: got no record of an image in line {number}, expected predictions. Pass another file."
            ) from error
        records.append(record)
    return records, size


class JsonLinesWriter(PredictionWriter):
    """Writer of `{"image": …, "width": …, "height": …, "predictions": […]}`, one line per image."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        super().__init__(path, classes)
        records, size = parse_lines(path)
        self._names = {record["image"] for record in records}
        self._file = RecordFile(path, size)

    def is_written(self, name: str) -> bool:
        """Return whether the predictions of an image are in the output."""
        return name in self._names

    def write(self, image: PredictedImage) -> None:
        """Write the predictions of an image."""
        width, height = image.size
        record = {"image": image.name, "width": width, "height": height, "predictions": to_json(image.predictions)}
        self._file.append(f"{json.dumps(record, allow_nan=False)}\n")
        self._names.add(image.name)

    def read(self) -> list[dict[str, Any]]:
        """Return all records."""
        return parse_lines(self.path)[0]

    def finish(self) -> None:
        """Close the file."""
        self._file.close()
