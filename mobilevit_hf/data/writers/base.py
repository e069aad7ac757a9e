"""What writers of predictions share: their interface, whole records, and copies of images."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...io import write_atomically


@dataclass(frozen=True)
class PredictedImage:
    """An image and its predictions.

    Attributes:
        name: Unique name, a relative path with forward slashes; see `names`.
        size: Width and height in pixels of the upright image.
        predictions: Output of a pipeline: dicts with `label` and `score` and, in detection, `box`, a dict with
            `xmin`, `ymin`, `xmax` and `ymax` in pixels. By descending score. In segmentation, `segments`.
        content: File of the image, or its content; for formats that copy images.
    """

    name: str
    size: tuple[int, int]
    predictions: Sequence[dict[str, Any]]
    content: Path | bytes = b""


class PredictionWriter(ABC):
    """Writer of predictions, which are on the disk after each image: a killed process leaves whole records.

    Args:
        path: File or folder. An existing one is continued.
        classes: Class names in the order of the model.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path, self.classes = path, classes

    @abstractmethod
    def is_written(self, name: str) -> bool:
        """Return whether the predictions of an image are in the output."""

    @abstractmethod
    def write(self, image: PredictedImage) -> None:
        """Write the predictions of an image."""

    @abstractmethod
    def finish(self) -> None:
        """Write what depends on all images, and close the files."""


class RecordFile:
    """A file to which whole records are appended.

    Args:
        path: The file; created if it does not exist.
        size: Size in bytes to which an existing file is cut first: that of its whole records.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._size = size
        os.ftruncate(self._descriptor, size)

    def append(self, record: str) -> None:
        """Append a record, in one call: it is in the file whenever the process is killed afterwards.

        Raises:
            OSError: If it can't be written, as on a full disk. The file is left without it.
        """
        data = record.encode()
        os.lseek(self._descriptor, self._size, os.SEEK_SET)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def box_corners(prediction: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return (x1, y1, x2, y2) of a detection, in pixels."""
    box = prediction["box"]
    return box["xmin"], box["ymin"], box["xmax"], box["ymax"]


def copy_image(content: Path | bytes, path: Path) -> None:
    """Copy the file of an image atomically, with its folders; an existing file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        write_atomically(path, lambda file: file.write(content))
        return
    with content.open("rb") as source:
        write_atomically(path, lambda file: shutil.copyfileobj(source, file))
