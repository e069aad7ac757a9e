"""Results file and figures of a finished training run."""

import dataclasses
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import Pipeline

from ..data.images import LazyImage
from ..data.types import Objects, Sample
from ..evaluation import EvaluationResult
from ..io import atomic_folder
from ..model_sources import DEFAULT_THRESHOLD
from ..pipelines import pipeline
from ..records import RESULTS_FILE, ResultsRecord, write_record
from ..visualization import draw_detection_mistakes, draw_image_grid, draw_mistakes
from .state import TrainingResult

# Number of images in the grids; a detector's are larger.
NUM_MISTAKES, NUM_DETECTION_MISTAKES = 24, 8
NUM_SAMPLES, NUM_DETECTION_SAMPLES = 12, 3
# Side of a detector's samples in pixels: cards show them first.
SAMPLE_SIDE = 320


def write_reports(result: TrainingResult, samples: Sequence[Sample] | None, classes: Sequence[str]) -> list[Path]:
    """Write the results and figures of a run into its output directory.

    `results.json` holds the metrics of the saved weights; `curves.png` plots the history; `confusion_matrix.png` or
    `average_precision.png` and `mistakes.png` show the errors on the validation split; `samples.png` shows predictions
    for validation images (`samples`; None for a stream).

    Returns:
        Paths of the files.
    """
    from ..visualization import plots  # imports matplotlib.pyplot, which most commands don't need

    folder, evaluation = result.output_dir, result.evaluation
    figures = {"curves.png": plots.plot_curves(result.history, result.metric)} if result.history else {}
    if evaluation and evaluation.confusion is not None:
        figures["confusion_matrix.png"] = plots.plot_confusion_matrix(evaluation.confusion, classes)
    elif evaluation:
        figures["average_precision.png"] = plots.plot_average_precision(evaluation.metrics["per_class"])
    with atomic_folder(folder) as scratch:
        for name, figure in figures.items():
            plots.save_plot(figure, scratch / name)
        if evaluation and samples:
            for name, grid in _draw_grids(folder, evaluation, samples, classes).items():
                grid.save(scratch / name)
        written = [folder / file.name for file in sorted(scratch.iterdir())]
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


def _draw_grids(
    folder: Path, evaluation: EvaluationResult, samples: Sequence[Sample], classes: Sequence[str]
) -> dict[str, Image.Image]:
    """Return image grids of samples and mistakes, by file name."""
    predict = pipeline(evaluation.task, str(folder), trust_remote_code=False)
    unreadable = {problem.name for problem in evaluation.problems}
    readable = [sample for sample in samples if sample.name not in unreadable]
    if evaluation.task == "image-classification":
        grids = {"samples.png": _draw_predictions(predict, _spread(readable, NUM_SAMPLES), classes)}
        if evaluation.mistakes:
            entries = ((_load(samples[m.index]), m.target, m.prediction, m.score) for m in evaluation.mistakes)
            grids["mistakes.png"] = draw_mistakes(islice(entries, NUM_MISTAKES), classes)
        return grids
    threshold = evaluation.best_threshold.value if evaluation.best_threshold else DEFAULT_THRESHOLD

    def compare(sample: Sample) -> tuple[Any, ...]:
        image, objects = _load(sample), sample.objects or Objects.from_lists([], [])
        labels = [classes[label] for label in objects.labels.tolist()]
        return image, objects.boxes, labels, predict(image, threshold=threshold)

    entries = map(compare, _spread(readable, NUM_DETECTION_SAMPLES))
    grids = {"samples.png": draw_detection_mistakes(entries, classes, side=SAMPLE_SIDE)}
    if evaluation.mistakes:
        worst = (compare(samples[mistake.index]) for mistake in evaluation.mistakes)
        grids["mistakes.png"] = draw_detection_mistakes(islice(worst, NUM_DETECTION_MISTAKES), classes)
    return grids


def _draw_predictions(classify: Pipeline, samples: Sequence[Sample], classes: Sequence[str]) -> Image.Image:
    """Return a grid of correct predictions above one of wrong predictions."""
    correct, wrong = [], []
    for sample in samples:
        if sample.label is None:
            continue
        image, target = _load(sample), classes[sample.label]
        prediction = classify(image, top_k=1)[0]
        if prediction["label"] == target:
            correct.append((image, [target], None))
        else:
            wrong.append((image, target, prediction["label"], prediction["score"]))
    parts = [draw(some, classes) for draw, some in ((draw_image_grid, correct), (draw_mistakes, wrong)) if some]
    grid = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        grid.paste(part, (0, top))
        top += part.height
    return grid


def _spread(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Return evenly spaced samples: folders are sorted by class."""
    number = min(number, len(samples))
    return [samples[i * len(samples) // number] for i in range(number)]


def _load(sample: Sample) -> Image.Image:
    return LazyImage(sample.image).load()
