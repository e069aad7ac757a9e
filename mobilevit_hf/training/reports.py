"""Results file and report of a finished training run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..data.types import Sample
from ..records import RESULTS_FILE, ResultsRecord, write_record
from ..reports import write_report
from .state import TrainingResult


def write_reports(result: TrainingResult, samples: Sequence[Sample] | None, classes: Sequence[str]) -> list[Path]:
    """Write the results and the report of a run into its output directory: see `reports.write_report`.

    Args:
        result: Result of the run.
        samples: Validation split; None for a stream.
        classes: Class names.

    Returns:
        Paths of the files.
    """
    folder = result.output_dir
    written = write_report(
        folder,
        result.evaluation,
        samples or [],
        title=folder.name,
        history=result.history,
        metric=result.metric,
        classes=classes,
    )
    write_record(folder / RESULTS_FILE, _results_record(result))  # last: it marks a finished run
    return [folder / RESULTS_FILE, *written]


def _results_record(result: TrainingResult) -> ResultsRecord:
    seconds, evaluation = round(result.seconds, 1), result.evaluation
    record = ResultsRecord(metric=result.metric, best=result.best, steps=result.steps, seconds=seconds)
    if evaluation is None:
        return record
    threshold = evaluation.best_threshold
    return dataclasses.replace(
        record,
        split="validation",
        num_images=evaluation.num_images,
        metrics=evaluation.metrics,
        intervals=evaluation.intervals,
        images_per_second=round(evaluation.images_per_second, 1),
        threshold=threshold.value if threshold else None,
        best_threshold=dataclasses.asdict(threshold) if threshold else None,
    )
