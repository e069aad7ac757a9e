"""Where predictions are written, and in which format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...io import TEMP_PREFIX, remove_abandoned
from ...tasks import TaskName
from .base import PredictionWriter
from .coco import ANNOTATIONS, BOXES, POLYGONS, RLE, CocoDatasetWriter, CocoWriter, partial_file
from .csv_rows import BoxCsvWriter, CsvWriter, SegmentCsvWriter
from .json_lines import JsonLinesWriter
from .voc import VocWriter
from .yolo import YoloWriter

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "coco"}
# By task.
FORMATS: dict[TaskName, tuple[str, ...]] = {
    "image-classification": ("csv", "jsonl"),
    "object-detection": ("csv", "jsonl", "coco", "yolo", "voc"),
    "image-segmentation": ("csv", "jsonl", "coco", "coco-polygons", "png"),
}
PREDICTION_FORMATS = tuple(dict.fromkeys(name for names in FORMATS.values() for name in names))
FOLDER_FORMATS = ("yolo", "voc", "png")  # several files; a folder of these and of COCO has copies of the images
FILES = {"csv": "predictions.csv", "jsonl": "predictions.jsonl"}  # in a folder
# Of a dataset, to recognize one to continue.
PARTS = {
    "coco": ANNOTATIONS.partition("/")[0],
    "coco-polygons": ANNOTATIONS.partition("/")[0],
    "yolo": "data.yaml",
    "voc": "Annotations",
    "png": "masks",
}


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
        if self.format not in FORMATS[task]:
            *names, last = FORMATS[task]
            raise ValueError(
                f"output: got {self.path} in the format {self.format}, expected {', '.join(names)} or {last} for "
                f"{task}. Pass --format."
            )

    def check_new(self) -> None:
        """Check that the destination does not exist yet.

        Raises:
            ValueError: If it does.
        """
        paths = [self.path]
        if self.format in ("coco", "coco-polygons"):
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
        return self._writers(task, top_k)[self.format](self.path, classes)

    def _writers(self, task: TaskName, top_k: int) -> dict[str, Callable[[Path, Sequence[str]], PredictionWriter]]:
        """Return the functions that open a writer, by format."""
        from .png_masks import PngMaskWriter  # imports numpy

        csv_writers = {"object-detection": BoxCsvWriter, "image-segmentation": SegmentCsvWriter}
        coco = CocoDatasetWriter if self.is_dataset else CocoWriter
        return {
            "csv": csv_writers.get(task, partial(CsvWriter, top_k=top_k)),
            "jsonl": JsonLinesWriter,
            "coco": partial(coco, kind=BOXES if task == "object-detection" else RLE),
            "coco-polygons": partial(coco, kind=POLYGONS),
            "yolo": YoloWriter,
            "voc": VocWriter,
            "png": PngMaskWriter,
        }


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
    if is_file and prediction_format in FOLDER_FORMATS:
        raise ValueError(f"output: got the file {output}, expected a folder for {prediction_format}.")
    if not is_file and prediction_format in FILES:
        return Destination(output / FILES[prediction_format], prediction_format, is_dataset=False)
    return Destination(output, prediction_format, is_dataset=not is_file)


def _has_entries(path: Path) -> bool:
    """Return whether a folder contains anything but what a killed process left."""
    return path.is_dir() and any(not entry.name.startswith(TEMP_PREFIX) for entry in path.iterdir())


def _check_dataset(folder: Path, prediction_format: str) -> None:
    """Check that a folder is empty or has a dataset of a format."""
    if _has_entries(folder) and not (folder / PARTS[prediction_format]).exists():
        raise ValueError(f"output: got {folder} without predictions in the format {prediction_format}, expected them.")
