"""Typed records of training, evaluation and export: the JSON files next to a model."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from .io import read_json, write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TRAINING_FILE = "run.json"
RESULTS_FILE = "results.json"
EXPORT_FILE = "export.json"
CROSS_VALIDATION = "cross-validation"  # in place of a split: the folds of one

Number = int | float
Record = TypeVar("Record", bound="DataclassInstance")


@strict
@dataclass(kw_only=True)
class DatasetRecord:
    """Dataset of a training run. Ranges are `min`, `median` and `max`; those of boxes are for detection only."""

    format: str  # key of `data.reading.DATA_FORMATS`
    classes: list[str]
    name: str | None = None  # last part of the path, or Hub id; None if it would reveal a user or machine name
    dataset: str | None = None  # Hub id
    widths: dict[str, Number] | None = None  # pixels
    heights: dict[str, Number] | None = None
    box_sides: dict[str, Number] | None = None  # √(box area / image area), 0..1
    boxes_per_image: dict[str, Number] | None = None
    images: dict[str, int] = field(default_factory=dict)  # number of images by split
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # of images, objects or pixels, by split and class
    streamed: bool = False  # only the first images are counted
    skipped: dict[str, int] = field(default_factory=dict)  # number of samples by kind of problem
    validation_cut_off: bool = False  # the validation split was split off the training split


@strict
@dataclass(kw_only=True)
class InitialCheckpoint:
    """Initial checkpoint of a training run. Contains no path."""

    kind: Literal["scratch", "local", "built-in", "hub"]
    name: str | None = None  # variant, built-in model, last part of a local path, or Hub id
    base_model: str | None = None  # Hub id of the nearest ancestor on the Hub
    license: dict[str, str | None] | None = None  # fields of `hub.licenses.License`


@strict
@dataclass(kw_only=True)
class HardwareRecord:
    """Hardware of a measurement: see `environment.describe_hardware`."""

    device: str | None = None
    cpu: str | None = None
    cores: int | None = None
    gpu: str | None = None
    threads: int | None = None
    processes: int | None = None
    system: str | None = None


@strict
@dataclass(kw_only=True)
class TrainingRecord:
    """A training run, as written to `run.json`. Contains no path, user or machine name."""

    task: str
    command: str  # command line that repeats the run, with placeholders for local paths
    initial_checkpoint: InitialCheckpoint
    data: DatasetRecord
    arguments: dict[str, Any]  # only those that affect the model
    date: str | None = None  # ISO date on which the run ended
    steps: int | None = None
    seconds: Number | None = None
    images_per_second: Number | None = None  # median, summed over all processes
    hardware: HardwareRecord | None = None
    versions: dict[str, str] = field(default_factory=dict)  # see `environment.library_versions`


@strict
@dataclass(kw_only=True)
class EvaluationRecord:
    """Result of an evaluation, as `mobilevit evaluate --json` prints it. See `evaluation.EvaluationResult`.

    The figures per class of a detector are in `per_class_metrics`; `per_class` has the mAP of each class.
    """

    data: str | None = None  # path or Hub id
    split: str | None = None
    num_images: int | None = None
    metrics: dict[str, Number | dict[str, Number | dict[str, Number]]] = field(default_factory=dict)
    intervals: dict[str, tuple[Number, Number] | list[Number]] = field(default_factory=dict)
    class_intervals: dict[str, dict[str, tuple[Number, Number] | list[Number]]] | None = None
    losses: dict[str, Number] | None = None  # the loss and its terms
    images_per_second: Number | None = None
    # Fields of `evaluation.ThresholdMetrics`; detection only.
    best_threshold: dict[str, Number] | None = None
    recommended_threshold: dict[str, Number] | None = None

    def validate_metrics(self) -> None:
        """Check that all metrics are numbers but those `per_class`, and that an interval has two ends."""
        for name, value in self.metrics.items():
            if isinstance(value, dict) != name.startswith("per_class"):
                raise ValueError(f"metrics: got {type(value).__name__} for {name}")
        for name, ends in self.intervals.items():
            if len(ends) != 2:
                raise ValueError(f"intervals: got {len(ends)} ends for {name}, expected 2")


@strict
@dataclass(kw_only=True)
class CrossValidationRecord:
    """Metrics of the models of a cross-validation, each measured on its own fold, which it was not trained on."""

    metrics: dict[str, list[Number]]  # one value per fold, by metric
    std: dict[str, Number]  # sample standard deviation of these values
    num_images: list[int]  # of each fold
    thresholds: list[Number] = field(default_factory=list)  # with the highest F1 on each fold; detection only


@strict
@dataclass(kw_only=True)
class ResultsRecord(EvaluationRecord):
    """Evaluation of the saved weights, as training writes it to `results.json`.

    After a cross-validation, `split` is "cross-validation" and the metrics are means over the folds: the saved model
    is trained on all images in the same way.
    """

    metric: str  # metric that selected the weights
    best: Number | None = None  # best value of that metric on the validation split, or its mean over the folds
    num_evaluations: int | None = None  # on the validation split, of which `best` is the best
    cross_validation: CrossValidationRecord | None = None
    steps: int | None = None
    seconds: Number | None = None  # of the training
    threshold: Number | None = None  # score threshold with the highest F1; detection only


@strict
@dataclass(kw_only=True)
class DropRecord:
    """Accuracy of a quantized model compared with its torch model: see `backends.quantization.AccuracyDrop`."""

    metric: str
    model: Number
    exported: Number
    num_images: int


@strict
@dataclass(kw_only=True)
class ExportRecord:
    """An exported model: one entry of `export.json`."""

    backend: str  # key of `backends.formats.FORMATS`
    file: str  # path relative to the model directory
    dtype: str | None = None
    quantization: str | None = None  # "int8" or None
    interface: Literal["tensors", "image", "transformers.js"] = "tensors"  # see `backends.interfaces`
    bytes: int | None = None  # size on disk, weights included
    weights: str | None = None  # hash of the source weights
    files: dict[str, str] | None = None  # SHA-256 of each file, by path relative to the folder of `file`
    size: list[int] | None = None  # input height and width in pixels
    verified: bool = True  # the outputs were compared with those of the PyTorch model
    max_error: Number | None = None  # largest absolute difference in the outputs
    agreement: Number | None = None  # fraction of predictions equal to those of the PyTorch model, 0..1
    strict_agreement: Number | None = None  # without near ties of labels
    num_images: int | None = None  # number of images on which they were compared
    images: Literal["samples", "calibration"] | None = None  # generated sample images, or the user's own
    drop: DropRecord | None = None  # quantized models only
    latency_ms: dict[str, Number] | None = None  # median by batch size
    versions: dict[str, str] | None = None  # of the export libraries
    machine: HardwareRecord | None = None  # on which the latency was measured
    source: str | None = None  # model that used it last, only in the cache; see `backends.cache.name_source`


def read_record(path: Path, record_class: type[Record]) -> Record | None:
    """Read a record from a JSON file, None if the file does not exist.

    Raises:
        ValueError: If the file is unreadable, a required field is missing or a field has the wrong type.
    """
    return from_dict(record_class, read_json(path), str(path)) if path.is_file() else None


def write_record(path: Path, record: "DataclassInstance") -> None:
    """Write a record to a JSON file atomically."""
    write_text(path, json.dumps(to_dict(record), indent=2) + "\n")


def read_export_records(path: Path) -> list[ExportRecord]:
    """Read the records of an `export.json`, empty if the file does not exist or is not a JSON array.

    Entries that are not valid records are skipped: the next export measures and writes them again.
    """
    records, entries = [], []
    with contextlib.suppress(ValueError):
        entries = read_json(path, list)
    for entry in entries:
        with contextlib.suppress(ValueError):
            records.append(from_dict(ExportRecord, entry, str(path)))
    return records


def write_export_records(path: Path, records: Sequence[ExportRecord]) -> None:
    """Write the records of an `export.json` atomically."""
    write_text(path, json.dumps([to_dict(record) for record in records], indent=2) + "\n")


def from_dict(record_class: type[Record], values: Mapping[str, Any], source: str) -> Record:
    """Create a record from the JSON values of a file. Unknown keys are ignored; null selects a field's default.

    Raises:
        ValueError: If a required field is missing or a field has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: got {type(values).__name__}, expected a JSON object. Remove or fix it.")
    types, arguments = get_type_hints(record_class), {}
    for item in dataclasses.fields(record_class):
        value = values.get(item.name)
        if value is not None:
            kinds = (types[item.name], *get_args(types[item.name]))
            nested: Any = next(filter(dataclasses.is_dataclass, kinds), None)
            arguments[item.name] = from_dict(nested, value, source) if nested else value
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{source}: got no {item.name}, expected a {record_class.__name__}. Remove or fix it.")
    try:
        return record_class(**arguments)
    except StrictDataclassError as error:
        reason = str(error.__cause__).partition(". Errors:")[0]
        raise ValueError(f"{source}: {reason}. Remove or fix it.") from error


def to_dict(record: "DataclassInstance") -> dict[str, Any]:
    """Return the JSON values of a record, without the fields that are None."""
    return dataclasses.asdict(record, dict_factory=lambda items: {k: v for k, v in items if v is not None})
