"""Where predictions are written, and in which format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...io import TEMP_PREFIX, remove_abandoned
from ...tasks import TaskName
from .base import PredictionWriter
from .coco import ANNOTATIONS, CocoDatasetWriter, CocoWriter, partial_file
from .csv_rows import BoxCsvWriter, CsvWriter
from .json_lines import JsonLinesWriter
from .voc import VocWriter
from .yolo import YoloWriter

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "coco"}
PREDICTION_FORMATS = ("csv", "jsonl", "coco", "yolo", "voc")
DATASET_FORMATS = ("coco", "yolo", "voc")  # of boxes; a folder of them has copies of the images
FILES = {"csv": "predictions.csv", "jsonl": "predictions.jsonl"}  # in a folder


@dataclass(frozen=True)
class Destination:
    """A file or folder for predictions.

    Attributes:
        path: The file, or the folder of a dataset.
        format: One of `PREDICTION_FORMATS`.
        is_dataset: Whether copies of the images are written, too.
    """

    path: Path
    format: str
    is_dataset: bool

    def check_task(self, task: TaskName) -> None:
        """Check that the format can represent the predictions of a task.

        Raises:
            ValueError: If it can't.
        """
        if task != "object-detection" and self.format in DATASET_FORMATS:
            raise ValueError(f"output: got {self.path} in the format {self.format}, expected csv or jsonl for {task}.")

    def check_new(self) -> None:
        """Check that the destination does not exist yet.

        Raises:
            ValueError: If it does.
        """
        paths = [self.path]
        if self.format == "coco":
            paths.append(partial_file(self.path))
        if any(path.stat().st_size for path in paths if path.is_file()) or _has_entries(self.path):
            raise ValueError(f"output: {self.path} exists. Continue it with --resume, or pass another path.")

    def open(self, task: TaskName, classes: Sequence[str], top_k: int) -> PredictionWriter:
        """Return the writer, which continues existing predictions.

        Raises:
            ValueError: If the destination exists and is something else.
            OSError: If it can't be written.
        """
        if self.path.is_dir() != self.is_dataset and self.path.exists():
            found, expected = ("a folder", "a file") if self.path.is_dir() else ("a file", "a folder")
            raise ValueError(f"output: got {found}, {self.path}, expected {expected}. Pass another path.")
        if self.is_dataset:
            _check_dataset(self.path, self.format)
            for temporary in list(self.path.rglob(f"{TEMP_PREFIX}*")):
                remove_abandoned(temporary.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.format == "csv" and task != "object-detection":
            return CsvWriter(self.path, classes, top_k)
        writers = {"csv": BoxCsvWriter, "jsonl": JsonLinesWriter, "coco": CocoWriter, "yolo": YoloWriter}
        datasets = {"coco": CocoDatasetWriter, "yolo": YoloWriter, "voc": VocWriter}
        return (datasets if self.is_dataset else writers)[self.format](self.path, classes)


def find_destination(output: Path, prediction_format: str | None) -> Destination:
    """Return the destination of an output path: a file by its suffix, or else a folder in a format.

    Raises:
        ValueError: If the format is neither passed nor known by the suffix, or needs a folder.
    """
    suffix = output.suffix.lower()
    is_file = bool(suffix) and not output.is_dir()
    if prediction_format is None:
        if not is_file:
            raise ValueError(
                f"output: got the folder {output} without a format, expected --format with one of "
                f"{', '.join(PREDICTION_FORMATS)}. To write a file, pass a name such as predictions.csv."
            )
        if suffix not in SUFFIXES:
            raise ValueError(
                f"output: got {output}, expected a file that ends with {', '.join(SUFFIXES)}, or --format."
            )
        prediction_format = SUFFIXES[suffix]
    if is_file and prediction_format in ("yolo", "voc"):
        raise ValueError(f"output: got the file {output}, expected a folder for {prediction_format}.")
    if not is_file and prediction_format in FILES:
        return Destination(output / FILES[prediction_format], prediction_format, is_dataset=False)
    return Destination(output, prediction_format, is_dataset=not is_file)


def _has_entries(path: Path) -> bool:
    """Return whether a folder contains anything but what a killed process left."""
    return path.is_dir() and any(not entry.name.startswith(TEMP_PREFIX) for entry in path.iterdir())


def _check_dataset(folder: Path, prediction_format: str) -> None:
    """Check that a folder is empty or has a dataset of a format."""
    parts = {"coco": ANNOTATIONS.partition("/")[0], "yolo": "data.yaml", "voc": "Annotations"}
    if _has_entries(folder) and not (folder / parts[prediction_format]).exists():
        raise ValueError(f"output: got {folder} without predictions in the format {prediction_format}, expected them.")
