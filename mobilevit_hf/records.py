"""Typed records of training, evaluation and export: the JSON files next to a model."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from .io import read_json, write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TRAINING_FILE = "run.json"
RESULTS_FILE = "results.json"
EXPORT_FILE = "export.json"

Number = int | float
Record = TypeVar("Record", bound="DataclassInstance")


@strict
@dataclass(kw_only=True)
class DatasetRecord:
    """Dataset of a training run.

    Attributes:
        format: Key of `data.reading.DATA_FORMATS`.
        classes: Class names, in label order.
        name: Last part of the path, or Hub id; None if it would reveal a user or machine name.
        dataset: Hub id, None for local data.
        widths, heights: `min`, `median` and `max` of the image sizes in pixels.
        box_sides: `min`, `median` and `max` of √(box area / image area), 0..1; detection only.
        boxes_per_image: `min`, `median` and `max`; detection only.
        images: Number of images, by split.
        counts: Number of images (classification) or objects (detection), by split and class.
        streamed: Whether the dataset was streamed, so that only its first images were counted.
        skipped: Number of skipped samples, by kind of problem.
        validation_cut_off: Whether the validation split was split off the training split.
    """

    format: str
    classes: list[str]
    name: str | None = None
    dataset: str | None = None
    widths: dict[str, Number] | None = None
    heights: dict[str, Number] | None = None
    box_sides: dict[str, Number] | None = None
    boxes_per_image: dict[str, Number] | None = None
    images: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    streamed: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    validation_cut_off: bool = False


@strict
@dataclass(kw_only=True)
class InitialCheckpoint:
    """Initial checkpoint of a training run. Contains no path.

    Attributes:
        kind: Origin of the weights; "scratch" for random initialization.
        name: Variant, built-in model, last part of a local path, or Hub id.
        base_model: Hub id of the nearest ancestor on the Hub.
        license: Fields of `hub.licenses.License`.
    """

    kind: Literal["scratch", "local", "built-in", "hub"]
    name: str | None = None
    base_model: str | None = None
    license: dict[str, str | None] | None = None


@strict
@dataclass(kw_only=True)
class TrainingRecord:
    """A training run, as written to `run.json`. Contains no path, user or machine name.

    Attributes:
        task: Pipeline task.
        command: Command line that repeats the run, with placeholders for local paths.
        initial_checkpoint: Initial checkpoint.
        data: Dataset.
        arguments: Training arguments that affect the model.
        date: ISO date on which the run ended.
        steps: Number of optimizer steps.
        seconds: Duration in seconds.
        images_per_second: Median training throughput, summed over all processes.
        hardware: Hardware, from `environment.describe_hardware`.
        versions: Library versions, from `environment.library_versions`.
    """

    task: str
    command: str
    initial_checkpoint: InitialCheckpoint
    data: DatasetRecord
    arguments: dict[str, Any]
    date: str | None = None
    steps: int | None = None
    seconds: Number | None = None
    images_per_second: Number | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@strict
@dataclass(kw_only=True)
class ResultsRecord:
    """Evaluation of the saved weights, as training writes it to `results.json`.

    Attributes:
        metric: Metric that selected the weights.
        best: Best value of that metric on the validation split.
        steps: Number of optimizer steps.
        seconds: Duration of the training in seconds.
        split: Evaluated split.
        num_images: Number of evaluated images.
        metrics: Metrics, as in `evaluation.EvaluationResult`.
        intervals: Ends of the 95 % confidence interval, by metric.
        images_per_second: Evaluation throughput, from file to prediction.
        threshold: Score threshold with the highest F1; detection only.
        best_threshold: Fields of `evaluation.BestThreshold`; detection only.
    """

    metric: str
    best: Number | None = None
    steps: int | None = None
    seconds: Number | None = None
    split: str | None = None
    num_images: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)
    images_per_second: Number | None = None
    threshold: Number | None = None
    best_threshold: dict[str, Number] | None = None


@strict
@dataclass(kw_only=True)
class ExportRecord:
    """An exported model: one entry of `export.json`.

    Attributes:
        backend: Key of `backends.formats.FORMATS`.
        file: Path relative to the model directory.
        dtype: Precision of the computation.
        quantization: "int8" or None.
        bytes: Size on disk, weights included.
        weights: Hash of the source weights.
        size: Input height and width in pixels.
        verified: Whether the outputs were compared with those of the PyTorch model.
        max_error: Largest absolute difference in the outputs.
        agreement: Fraction of predictions equal to those of the PyTorch model, 0..1.
        drop: Accuracy drop of a quantized model: fields of `backends.quantization.AccuracyDrop`.
        latency_ms: Median latency in milliseconds, by batch size.
        versions: Versions of the export libraries.
        machine: Hardware on which `latency_ms` was measured.
    """

    backend: str
    file: str
    dtype: str | None = None
    quantization: str | None = None
    bytes: int | None = None
    weights: str | None = None
    size: list[int] | None = None
    verified: bool = True
    max_error: Number | None = None
    agreement: Number | None = None
    drop: dict[str, Any] | None = None
    latency_ms: dict[str, Number] | None = None
    versions: dict[str, str] | None = None
    machine: Any = None


def read_record(path: Path, record_class: type[Record]) -> Record | None:
    """Read a record from a JSON file.

    Returns:
        The record, None if the file does not exist.

    Raises:
        ValueError: If the file is unreadable, a required field is missing or a field has the wrong type.
    """
    return from_dict(record_class, read_json(path), str(path)) if path.is_file() else None


def write_record(path: Path, record: "DataclassInstance") -> None:
    """Write a record to a JSON file atomically."""
    write_text(path, json.dumps(to_dict(record), indent=2) + "\n")


def read_export_records(path: Path) -> list[ExportRecord]:
    """Read the records of an `export.json`; entries that are not valid records are skipped.

    Returns:
        The records, empty if the file does not exist or is not a JSON array. The file only caches measurements, which
        the next export writes again, so an invalid one is not an error.
    """
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    records = []
    for entry in entries if isinstance(entries, list) else []:
        with contextlib.suppress(ValueError):
            records.append(from_dict(ExportRecord, entry, str(path)))
    return records


def write_export_records(path: Path, records: Sequence[ExportRecord]) -> None:
    """Write the records of an `export.json` atomically."""
    write_text(path, json.dumps([to_dict(record) for record in records], indent=2) + "\n")


def from_dict(record_class: type[Record], values: Mapping[str, Any], source: str) -> Record:
    """Create a record from JSON values. Unknown keys are ignored; null selects a field's default.

    Args:
        record_class: A dataclass of this module.
        values: Values by field name.
        source: File name for the error message.

    Raises:
        ValueError: If a required field is missing or a field has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: got {type(values).__name__}, expected a JSON object. Remove or fix it.")
    types, arguments = get_type_hints(record_class), {}
    for item in dataclasses.fields(record_class):
        value = values.get(item.name)
        if value is not None:
            nested = types[item.name]
            arguments[item.name] = from_dict(nested, value, source) if dataclasses.is_dataclass(nested) else value
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{source}: got no {item.name}, expected a {record_class.__name__}. Remove or fix it.")
    try:
        return record_class(**arguments)
    except StrictDataclassError as error:
        reason = str(error.__cause__).partition(". Errors:")[0]
        raise ValueError(f"{source}: {reason}. Remove or fix it.") from error


def to_dict(record: "DataclassInstance") -> dict[str, Any]:
    """Return the JSON values of a record, without the fields that are None."""
    values = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
    return {
        name: to_dict(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
        if value is not None
    }
