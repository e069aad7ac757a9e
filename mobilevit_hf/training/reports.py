"""Report of a finished training run."""

from collections.abc import Sequence
from pathlib import Path

from ..data.types import Sample
from ..records import TrainingRecord
from ..reports import augmented_images, write_report
from ..visualization import LabeledImage
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
        samples: Validation split; None for a stream.
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
        result.evaluation,
        samples,
        title=folder.name,
        dataset=record.data.name if record else None,
        history=result.history,
        metric=result.metric,
        best_step=best_step,
        classes=classes,
        counts=record.data.counts if record else None,
        train_batches=train_batches,
        test=result.test,
        facts=_describe_run(result, record) if record else None,
        notes=_describe_selection(result, best_step),
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


def _describe_selection(result: TrainingResult, best_step: int | None) -> list[str]:
    """Return how the saved weights and the headline metric came about."""
    if folds := result.cross_validation:
        values = folds.metrics[result.metric]
        return [
            f"{result.metric} {result.best:.3f} ± {folds.std[result.metric]:.3f}: mean and standard deviation of a "
            f"{len(folds.num_images)}-fold cross-validation on {sum(folds.num_images)} images "
            f"({', '.join(f'{value:.3f}' for value in values)}). The saved model is trained on all of them."
        ]
    if result.evaluation is None or result.num_evaluations < 2:
        return []
    return [
        f"The saved weights, of step {best_step}, are the best of {result.num_evaluations} evaluations on validation."
    ]
