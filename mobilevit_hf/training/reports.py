"""Report of a finished training run."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from ..data.types import Sample
from ..records import CROSS_VALIDATION, CrossValidationRecord, TrainingRecord
from ..reports import augmented_images, write_report
from ..reports.files import REPORT_FILE
from ..reports.text import count, interval, percent
from ..tasks import METRICS
from ..visualization import LabeledImage
from .output_dir import FOLDS_FOLDER
from .setup import Run
from .state import TrainingResult

NUM_AUGMENTED = 24


def write_reports(
    result: TrainingResult,
    samples: Sequence[Sample] | None,
    classes: Sequence[str],
    *,
    record: TrainingRecord | None = None,
    best_step: int | None = None,
    train_batches: Sequence[LabeledImage] = (),
) -> list[Path]:
    """Write the report of a run into its output directory: see `reports.write_report`.

    Args:
        result: Result of the run.
        samples: Validation split, or images of all folds of a cross-validation; None for a stream.
        classes: Class names.
        record: Record of the run, for the dataset and the header.
        best_step: Step of the saved weights.
        train_batches: Images of the first training batches.

    Returns:
        Paths of the files.
    """
    folder = result.output_dir
    return write_report(
        folder,
        result.evaluation or result.pooled,
        samples,
        title=folder.name,
        split=CROSS_VALIDATION if result.cross_validation else "validation",
        dataset=record.data.name if record else None,
        history=result.history,
        metric=result.metric,
        best_step=best_step,
        classes=classes,
        counts=record.data.counts if record else None,
        train_batches=train_batches,
        test=result.test,
        headline=_describe_folds(result.cross_validation, result) if result.cross_validation else None,
        facts=_describe_run(result, record) if record else None,
        notes=_describe_selection(result, best_step, is_fold=_is_fold(result, record)),
        files=_list_fold_reports(result.cross_validation, result) if result.cross_validation else None,
    )


def first_images(run: Run) -> list[LabeledImage]:
    """Return the augmented images of the first training batches, as the model sees them."""
    images: list[LabeledImage] = []
    for batch, names in run.loader.first_batches(NUM_AUGMENTED):
        images += augmented_images(batch, names, run.processor, run.task.dataset.classes)
    return images[:NUM_AUGMENTED]


def _describe_run(result: TrainingResult, record: TrainingRecord) -> dict[str, str]:
    minutes, seconds = divmod(round(result.seconds), 60)
    initial, size = record.initial_checkpoint, record.arguments["image_size"]
    return {
        "initial checkpoint": f"{initial.name or 'local'}{', from scratch' if initial.kind == 'scratch' else ''}",
        "image size": f"{size}x{size} pixels",
        "training": f"{result.steps} steps in {minutes}:{seconds:02}",
    }


def _is_fold(result: TrainingResult, record: TrainingRecord | None) -> bool:
    return bool(record and record.arguments.get("cross_validation")) and not result.cross_validation


def _describe_folds(folds: CrossValidationRecord, result: TrainingResult) -> tuple[str, str, str]:
    """Return the headline of a cross-validation: mean and standard deviation."""
    metric, number, images = result.metric, len(folds.num_images), count(sum(folds.num_images), "image")
    value = f"{percent(statistics.fmean(folds.metrics[metric]))} ± {percent(folds.std[metric])}"
    ends = interval(result.fold_intervals.get(metric))
    text = f"mean and standard deviation of {number} folds; {f'95% confidence interval {ends}; ' if ends else ''}"
    return METRICS[metric].title, value, f"({text}{images})"


def _list_fold_reports(folds: CrossValidationRecord, result: TrainingResult) -> dict[str, str]:
    """Return the paths of the folds' reports, with a description."""
    names = [f"{FOLDS_FOLDER}/fold-{number + 1}" for number in range(len(folds.num_images))]
    files = {}
    for name, number in zip(names, folds.num_images, strict=True):
        if (result.output_dir / name / REPORT_FILE).exists():
            files[f"{name}/{REPORT_FILE}"] = f"report of the model of a fold, measured on its {count(number, 'image')}"
    return files


def _describe_selection(result: TrainingResult, best_step: int | None, *, is_fold: bool) -> list[str]:
    """Return how the saved weights and the headline metric came about."""
    if is_fold:
        return [
            "Model of a fold of a cross-validation, trained on the other folds. The saved weights are the last, of "
            f"step {best_step}; no evaluation selected them."
        ]
    if folds := result.cross_validation:
        values = ", ".join(percent(value) for value in folds.metrics[result.metric])
        return [
            f"The folds: {values}. The saved model is trained on the images of all folds and can't be measured on "
            "them. This page shows the predictions of the folds' models: each image is predicted by the model that "
            "was not trained on it."
        ]
    if result.evaluation is None or result.num_evaluations < 2:
        return []
    return [
        f"The saved weights, of step {best_step}, are the best of {result.num_evaluations} evaluations on validation."
    ]
