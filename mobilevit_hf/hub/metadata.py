"""Metadata of a model: training, evaluation and export records, the model's files, and what the author adds."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from ..io import read_json
from ..records import (
    EXPORT_FILE,
    RESULTS_FILE,
    TRAINING_FILE,
    CrossValidationRecord,
    DatasetRecord,
    EvaluationRecord,
    ExportRecord,
    Number,
    ResultsRecord,
    TrainingRecord,
    from_dict,
    read_export_records,
    read_record,
)
from ..tasks import Task, find_task
from .licenses import License, find_license, public_name, read_license

# Plots and image grids that training writes, and results of `mobilevit evaluate --json`.
FIGURES = (
    "curves.png",
    "confusion_matrix.png",
    "reliability.png",
    "average_precision.png",
    "precision_recall.png",
    "thresholds.png",
    "class_iou.png",
    "confusion_matrix_normalized.png",
)
IMAGES = ("samples.png", "mistakes.png", "best_images.png", "worst_images.png")
EVALUATIONS = "evaluation*.json"
# Published next to weights, configurations, card and exports. None contains a local path; recipe, checkpoints and the
# results of `mobilevit evaluate` may.
PUBLISHED_FILES = (TRAINING_FILE, RESULTS_FILE, *FIGURES, *IMAGES)

# Entries of the weights that are not parameters.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# By their names in safetensors.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class CardOptions:
    """Model card metadata from the author. All fields are optional.

    Attributes:
        license: License id on the Hub, such as "apache-2.0".
        license_name, license_link: Name and URL of an "other" license.
        base_model: Hub id of the base model.
        datasets: Hub ids of the training data.
        language: Language code of the class names, such as "en".
        tags: Tags in addition to those inferred from the model.
        description: Description of the model, in Markdown.
        intended_use: Intended and out-of-scope use, in Markdown.
        images: Whether images of the dataset may be shown.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    language: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None
    intended_use: str | None = None
    images: bool = True


@dataclass(frozen=True)
class Evaluation:
    """Metrics on one split.

    Attributes:
        dataset: Name of the dataset, None if it may not be published.
        split: Split, such as "validation".
        num_images: Number of images.
        metrics, intervals: Metrics and the ends of their confidence intervals, as in `EvaluationResult`.
        threshold: Fields of `ThresholdMetrics` at the threshold with the highest F1; None for a classifier.
        images_per_second: Throughput from file to prediction on the training machine; None if measured elsewhere.
        losses: Mean loss and its terms, by name.
        counts_at: Score threshold of the counts per class of a detector.
        num_evaluations: Number of evaluations on this split of which the saved weights had the best one.
        cross_validation: Metrics of the folds, whose means are `metrics`.
        from_training: Whether training recorded it, and drew the plots of it.
    """

    dataset: str | None
    split: str
    num_images: int
    metrics: Mapping[str, Any]
    intervals: Mapping[str, Sequence[Number]] = field(default_factory=dict)
    threshold: Mapping[str, Number] | None = None
    images_per_second: float | None = None
    losses: Mapping[str, Number] = field(default_factory=dict)
    counts_at: Number | None = None
    num_evaluations: int | None = None
    cross_validation: CrossValidationRecord | None = None
    from_training: bool = False


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model card. What is not recorded is None or empty.

    Attributes:
        options: Metadata from the author.
        task: Task of the model.
        classes: Class names, in label order.
        image_size: Side of the input images in pixels.
        parameters: Number of parameters.
        num_bytes: Size of the weights in bytes.
        dtype: Most frequent dtype of the weights, such as "float32".
        license: License given by the author or inherited from the initial checkpoint.
        base_model: Hub id of the nearest ancestor on the Hub.
        datasets: Hub ids of the training data.
        training: Training record.
        evaluations: Evaluations, the one of the training first.
        threshold: Recommended score threshold of a detector.
        exports: Exported models; `file` is a file name without folders.
        figures: File names of the plots and images.
    """

    options: CardOptions
    task: Task
    classes: tuple[str, ...]
    image_size: int | None
    parameters: int
    num_bytes: int
    dtype: str
    license: License
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    training: TrainingRecord | None = None
    evaluations: tuple[Evaluation, ...] = ()
    threshold: float | None = None
    exports: tuple[ExportRecord, ...] = ()
    figures: tuple[str, ...] = ()

    @property
    def data(self) -> DatasetRecord | None:
        """Training dataset."""
        return self.training.data if self.training else None


def collect_metadata(folder: Path, options: CardOptions) -> ModelMetadata:
    """Collect the metadata of the model in a folder.

    Raises:
        ValueError: If the folder contains no MobileViT, a file is invalid, or the license is unknown.
    """
    config = read_json(folder / "config.json")
    if not config:
        raise ValueError(
            f"{folder}: got no config.json, expected a model. Pass a folder of `mobilevit train` or save_pretrained."
        )
    training = read_record(folder / TRAINING_FILE, TrainingRecord)
    initial = training.initial_checkpoint if training else None
    if options.license:
        license = License(options.license, options.license_name, options.license_link)
    else:
        license = None if options.base_model else read_license(folder)
    recorded_dataset = training.data.dataset if training else None
    parameters, num_bytes, dtype = read_weights(folder)
    names = config.get("id2label") or {}
    figures = (*FIGURES, *(IMAGES if options.images else ()))
    return ModelMetadata(
        options=options,
        task=find_mobilevit_task(config),
        classes=tuple(name for _, name in sorted(names.items(), key=lambda item: int(item[0]))),
        image_size=_image_size(read_json(folder / "preprocessor_config.json")) or config.get("image_size"),
        parameters=parameters,
        num_bytes=num_bytes,
        dtype=dtype,
        license=find_license(license, options.base_model, initial),
        base_model=options.base_model or (initial.base_model if initial else None),
        datasets=options.datasets or ((recorded_dataset,) if recorded_dataset else ()),
        training=training,
        evaluations=tuple(_read_evaluations(folder, training)),
        threshold=config.get("recommended_threshold"),
        exports=_read_exports(folder),
        figures=tuple(name for name in figures if (folder / name).is_file()),
    )


def find_mobilevit_task(config: Mapping[str, Any]) -> Task:
    """Return the task of a MobileViT; a ValueError if the configuration is of another model."""
    task = find_task(config, "config.json")
    architecture = config["architectures"][0]
    if not architecture.startswith("MobileViT"):
        raise ValueError(f"architectures: got {architecture}, expected a MobileViT of transformers or mobilevit_hf.")
    return task


def read_weights(folder: Path) -> tuple[int, int, str]:
    """Return the number of parameters, the bytes of their files, and their most frequent dtype.

    Raises:
        ValueError: If there are no weights or a file is invalid.
    """
    try:
        files = get_local_safetensors_metadata(folder).files_metadata
    except NotASafetensorsRepoError as error:
        raise ValueError(f"{folder}: got no model.safetensors. Save the model with save_pretrained.") from error
    except (OSError, SafetensorsParsingError) as error:
        raise ValueError(f"{folder}: not a valid safetensors file ({error}). Save the model again.") from error
    counts: Counter[str] = Counter()
    for file in files.values():
        for name, tensor in file.tensors.items():
            if not name.endswith(BUFFERS):
                counts[tensor.dtype] += tensor.parameter_count
    dtype = max(counts, key=counts.__getitem__)
    return counts.total(), sum((folder / name).stat().st_size for name in files), DTYPES.get(dtype, dtype.lower())


def _image_size(preprocessor: Mapping[str, Any]) -> int | None:
    sizes = (preprocessor.get(name) for name in ("crop_size", "size"))
    return next((size["height"] for size in sizes if isinstance(size, dict) and "height" in size), None)


def _read_evaluations(folder: Path, training: TrainingRecord | None) -> Iterator[Evaluation]:
    path = folder / RESULTS_FILE
    results = read_record(path, ResultsRecord)
    if results and results.metrics:
        evaluation = _evaluation(path, results, training.data.name if training else None)
        yield dataclasses.replace(
            evaluation,
            images_per_second=results.images_per_second,
            num_evaluations=results.num_evaluations,
            cross_validation=results.cross_validation,
            from_training=True,
        )
    for path in sorted(folder.glob(EVALUATIONS)):
        record = from_dict(EvaluationRecord, read_json(path), str(path))
        name = re.sub(r"(?<=..):.*", "", record.data or "")  # without a configuration's name
        yield _evaluation(path, record, public_name(Path(name)) if name else None)


def _evaluation(path: Path, record: EvaluationRecord, dataset: str | None) -> Evaluation:
    values = {name: getattr(record, name) for name in ("split", "num_images", "metrics")}
    if missing := [name for name, value in values.items() if value in (None, {})]:
        raise ValueError(
            f"{path}: got no {', '.join(missing)}, expected results of training or `mobilevit evaluate --json`. "
            "Remove it, or evaluate again."
        )
    counts_at = record.recommended_threshold or record.best_threshold
    return Evaluation(
        dataset=dataset,
        **values,
        intervals=record.intervals,
        threshold=record.best_threshold,
        losses=record.losses or {},
        counts_at=counts_at.get("value") if counts_at else None,
    )


def _read_exports(folder: Path) -> tuple[ExportRecord, ...]:
    """Return the exported models, each once, with their file names only."""
    exports = {}
    for path in (folder / EXPORT_FILE, *sorted(folder.glob(f"*/{EXPORT_FILE}"))):
        for record in read_export_records(path):
            record.file = Path(record.file).name  # `mobilevit export --out` records paths of this machine
            exports.setdefault((record.backend, record.dtype, record.quantization, record.file), record)
    return tuple(exports.values())
