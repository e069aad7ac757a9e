"""What is drawn and written about a training when it has ended."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import Pipeline

from ..data.decoding import LazyImage
from ..data.types import Sample
from ..evaluation import EvaluationResult
from ..hub.metadata import RESULTS_FILE
from ..io import put_in_place, write_text
from ..model_sources import DEFAULT_THRESHOLD
from ..pipelines import pipeline
from ..visualization import draw_detection_mistakes, draw_image_grid, draw_mistakes
from .state import TrainingResult

# How many images the sheets show; a detector's are larger.
SHOWN_MISTAKES, SHOWN_DETECTION_MISTAKES = 24, 8
SHOWN_SAMPLES, SHOWN_DETECTION_SAMPLES = 12, 3
# The side of a detector's samples on the sheet, in pixels: a card shows them above all else.
SAMPLE_SIDE = 320


def write_reports(result: TrainingResult, samples: Sequence[Sample] | None, classes: Sequence[str]) -> list[Path]:
    """Write figures and images about a training into its folder.

    `results.json` holds the figures of the weights that were kept; `curves.png` how they came about;
    `confusion_matrix.png` or `average_precision.png` and `mistakes.png` what the model gets wrong on the validation
    images; `samples.png` what it answers to some of them, from all over the split.

    Args:
        result: Of the training.
        samples: The validation images, None if they can't be looked at again.
        classes: The names of the classes.

    Returns:
        The files.
    """
    from ..visualization import plots  # which takes longer to import than most commands need

    folder, evaluation = result.output_dir, result.evaluation
    figures = {"curves.png": plots.plot_curves(result.history, result.metric)} if result.history else {}
    if evaluation and evaluation.confusion is not None:
        figures["confusion_matrix.png"] = plots.plot_confusion_matrix(evaluation.confusion, classes)
    elif evaluation:
        figures["average_precision.png"] = plots.plot_average_precision(evaluation.metrics["per_class"])
    with put_in_place(folder) as scratch:
        for name, figure in figures.items():
            plots.save_plot(figure, scratch / name)
        if evaluation and samples:
            for name, sheet in _draw(folder, evaluation, samples, classes).items():
                sheet.save(scratch / name)
        written = [folder / file.name for file in sorted(scratch.iterdir())]
    write_text(folder / RESULTS_FILE, json.dumps(_facts(result), indent=2) + "\n")  # last: now all is done
    return [folder / RESULTS_FILE, *written]


def _facts(result: TrainingResult) -> dict[str, Any]:
    facts = {
        "metric": result.metric,
        "best": result.best,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
    }
    if evaluation := result.evaluation:
        facts |= {"split": "validation", "num_images": evaluation.num_images, "metrics": evaluation.metrics}
        facts |= {"intervals": evaluation.intervals, "images_per_second": round(evaluation.images_per_second, 1)}
        if evaluation.best_threshold:
            facts["threshold"] = evaluation.best_threshold.value
            facts["best_threshold"] = dataclasses.asdict(evaluation.best_threshold)
    return facts


def _draw(
    folder: Path, evaluation: EvaluationResult, samples: Sequence[Sample], classes: Sequence[str]
) -> dict[str, Image.Image]:
    """Sheets of answers, by the names of their files."""
    answer = pipeline(evaluation.task, str(folder), trust_remote_code=False)
    unreadable = {problem.name for problem in evaluation.problems}
    readable = [sample for sample in samples if sample.name not in unreadable]
    if evaluation.task == "image-classification":
        sheets = {"samples.png": _draw_answers(answer, _spread(readable, SHOWN_SAMPLES), classes)}
        if evaluation.mistakes:
            entries = ((_load(samples[m.place]), m.right, m.named, m.score) for m in evaluation.mistakes)
            sheets["mistakes.png"] = draw_mistakes(islice(entries, SHOWN_MISTAKES), classes)
        return sheets
    threshold = evaluation.best_threshold.value if evaluation.best_threshold else DEFAULT_THRESHOLD

    def compare(sample: Sample) -> tuple[Any, ...]:
        image, objects = _load(sample), sample.objects
        labels = [classes[label] for label in objects.labels.tolist()]
        return image, objects.boxes, labels, answer(image, threshold=threshold)

    some = map(compare, _spread(readable, SHOWN_DETECTION_SAMPLES))
    sheets = {"samples.png": draw_detection_mistakes(some, classes, side=SAMPLE_SIDE)}
    if evaluation.mistakes:
        worst = (compare(samples[mistake.place]) for mistake in evaluation.mistakes)
        sheets["mistakes.png"] = draw_detection_mistakes(islice(worst, SHOWN_DETECTION_MISTAKES), classes)
    return sheets


def _draw_answers(classify: Pipeline, samples: Sequence[Sample], classes: Sequence[str]) -> Image.Image:
    """What is answered right above what is answered wrong, on one sheet."""
    right, wrong = [], []
    for sample in samples:
        image, name = _load(sample), classes[sample.label]
        answer = classify(image, top_k=1)[0]
        if answer["label"] == name:
            right.append((image, [name], None))
        else:
            wrong.append((image, name, answer["label"], answer["score"]))
    sheets = [draw(some, classes) for draw, some in ((draw_image_grid, right), (draw_mistakes, wrong)) if some]
    both = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), "white")
    for number, sheet in enumerate(sheets):
        both.paste(sheet, (0, sum(above.height for above in sheets[:number])))
    return both


def _spread(samples: Sequence[Sample], number: int) -> list[Sample]:
    """So many from all over: folders are sorted by class."""
    number = min(number, len(samples))
    return [samples[i * len(samples) // number] for i in range(number)]


def _load(sample: Sample) -> Image.Image:
    return LazyImage(sample.image).load()
