"""What training, evaluation and export record about a model, and what cards, reports and runtimes read back."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from huggingface_hub.dataclasses import strict

from .io import read_json, write_text

TRAINING_FILE = "run.json"
RESULTS_FILE = "results.json"
EXPORT_FILE = "export.json"

Number = int | float
R = TypeVar("R")


@strict
@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The dataset of a training run, by name and in numbers.

    Attributes:
        format: Key of `data.reading.DATA_FORMATS`.
        classes: Class names, in label order.
        name: Last part of its path or Hub id; None if that would reveal a user or machine name.
        dataset: Hub id, None for local data.
        widths, heights: Minimum, median and maximum in pixels.
        box_sides: The same of the longer box sides, in pixels; detection.
        boxes_per_image: The same; detection.
        images: Number of images, by split.
        counts: Number of images (classification) or objects (detection), by split and class.
        streamed: Whether only the first images were counted.
        skipped: Number of skipped samples, by kind of problem.
        validation_cut_off: Whether the validation split was cut off the training split.
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
@dataclass(frozen=True, kw_only=True)
class InitialCheckpoint:
    """What a training run started from, without a path.

    Attributes:
        kind: Where the weights come from.
        name: Variant, name of a built-in model or local folder, or Hub id.
        base_model: Hub id of its nearest ancestor on the Hub.
        license: Fields of `hub.licenses.License`.
    """

    kind: Literal["scratch", "local", "built-in", "hub"]
    name: str | None = None
    base_model: str | None = None
    license: dict[str, str | None] | None = None


@strict
@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A training run, written to `run.json`; no path, user or machine name is in it.

    Attributes:
        task: Pipeline task.
        command: Command line that repeats it, with placeholders for local folders.
        initial_checkpoint: What it started from.
        data: What it was trained on.
        arguments: Training arguments that change the model.
        date: ISO date of its end.
        steps: Optimizer steps.
        seconds: Duration.
        images_per_second: Median training throughput of all processes together.
        hardware: From `environment.describe_hardware`.
        versions: From `environment.library_versions`.
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
@dataclass(frozen=True, kw_only=True)
class ResultsRecord:
    """Figures of the saved weights, written to `results.json` by training.

    Attributes:
        metric: Metric that chose the weights.
        best: Its value on the validation split.
        steps: Optimizer steps.
        seconds: Duration of the training.
        split: Split that `metrics` were measured on.
        num_images: Number of images in it.
        metrics: As in `EvaluationResult`.
        intervals: 95 % confidence interval, by metric.
        images_per_second: Evaluation throughput, from file to prediction.
        threshold: Score threshold with the highest F1; detection.
        best_threshold: Fields of `BestThreshold`; detection.
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
@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """An exported model, one entry of `export.json`.

    Attributes:
        backend: Key of `backends.formats.FORMATS`.
        file: Path relative to the model's folder.
        dtype: Precision it computes in.
        quantization: "int8" or None.
        bytes: Size on disk, weights included.
        weights: Hash of the weights it was made from.
        size: Height and width of the image processor's output.
        verified: Whether it was run and compared with the model.
        max_error: Largest absolute difference in the outputs.
        agreement: Fraction of predictions equal to the model's, 0..1.
        drop: Fields of `backends.quantization.Drop`.
        latency_ms: Median milliseconds per call, by batch size.
        versions: Versions of the packages that made it.
        machine: Hardware that `latency_ms` was measured on.
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


def read_record(path: Path, record_class: type[R]) -> R | None:
    """Read a record; None if there is no such file.

    Raises:
        ValueError: If it can't be read, a field is missing or has another type.
    """
    values = read_json(path)
    return from_dict(record_class, values, str(path)) if values else None


def from_dict(record_class: type[R], values: dict[str, Any], source: str) -> R:
    """Build a record from JSON values; unknown names are left out.

    Args:
        record_class: One of this module's dataclasses.
        values: Values by field name.
        source: File name for the error.

    Raises:
        ValueError: If a field is missing or has another type.
    """
    hints, given = get_type_hints(record_class), {}
    for item in dataclasses.fields(record_class):  # ty: ignore
        value = values.get(item.name)
        if value is None:
            continue
        nested = next((kind for kind in (hints[item.name], *get_args(hints[item.name])) if _is_record(kind)), None)
        given[item.name] = from_dict(nested, value, source) if nested and isinstance(value, dict) else value
    try:
        return record_class(**given)
    except Exception as error:  # huggingface_hub's validation errors, or a TypeError for a missing field
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} can't be used ({reason}). Remove it, or write it again.") from error


def to_dict(record: Any) -> dict[str, Any]:
    """Return the JSON values of a record; what is not known is left out."""
    values = dataclasses.asdict(record)
    return {
        name: {key: entry for key, entry in value.items() if entry is not None}
        if _is_record_field(record, name)
        else value
        for name, value in values.items()
        if value is not None
    }


def write_record(path: Path, record: Any) -> None:
    """Write a record as JSON, whole or not at all."""
    write_text(path, json.dumps(to_dict(record), indent=2) + "\n")


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _is_record_field(record: Any, name: str) -> bool:
    return dataclasses.is_dataclass(getattr(record, name))
