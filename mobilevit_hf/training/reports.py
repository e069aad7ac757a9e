"""What is drawn and written about a training when it has ended."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.dataset import Sample
from ..data.decoding import Picture
from ..evaluation import EvaluationResult, Mistake
from ..files import put_in_place, write_text
from ..pipelines import pipeline
from ..visualization import draw_detection_mistakes, draw_mistakes
from .status import TrainingResult

RESULTS_FILE = "results.json"
# How many pictures the sheets show; a detector's are larger.
SHOWN_MISTAKES, SHOWN_DETECTION_MISTAKES = 24, 8


def write_reports(result: TrainingResult, samples: Sequence[Sample] | None, classes: Sequence[str]) -> list[Path]:
    """Write figures and pictures about a training into its folder.

    `results.json` holds the figures of the weights that were kept; `curves.png` how they came about;
    `confusion_matrix.png` or `average_precision.png` and `mistakes.png` what the model gets wrong on the validation
    pictures.

    Args:
        result: Of the training.
        samples: The validation pictures, None if they can't be looked at again.
        classes: The names of the classes.

    Returns:
        The files.
    """
    from ..visualization import plots  # which takes longer to import than most commands need

    folder, evaluation = result.output_dir, result.evaluation
    figures = {"curves.png": plots.plot_curves(result.history, f"eval_{result.metric}")} if result.history else {}
    if evaluation and evaluation.confusion is not None:
        figures["confusion_matrix.png"] = plots.plot_confusion_matrix(evaluation.confusion, classes)
    elif evaluation:
        figures["average_precision.png"] = plots.plot_average_precision(evaluation.metrics["per_class"])
    with put_in_place(folder) as scratch:
        for name, figure in figures.items():
            plots.save_plot(figure, scratch / name)
        if evaluation and evaluation.mistakes and samples is not None:
            _draw(folder, evaluation, samples, classes).save(scratch / "mistakes.png")
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
        facts |= {"split": "validation", "num_pictures": evaluation.num_pictures, "metrics": evaluation.metrics}
        if evaluation.best_threshold:
            facts["threshold"] = evaluation.best_threshold.value
    return facts


def _draw(
    folder: Path, evaluation: EvaluationResult, samples: Sequence[Sample], classes: Sequence[str]
) -> Image.Image:
    def load(mistake: Mistake) -> Image.Image:
        return Picture(samples[mistake.place].image).load()

    if evaluation.task == "image-classification":
        entries = ((load(m), m.right, m.named, m.score) for m in evaluation.mistakes[:SHOWN_MISTAKES])
        return draw_mistakes(entries, classes)
    detector = pipeline("object-detection", str(folder), trust_remote_code=False)
    threshold = evaluation.best_threshold.value if evaluation.best_threshold else 0.5

    def compare(mistake: Mistake) -> tuple[Any, ...]:
        picture, objects = load(mistake), samples[mistake.place].objects
        labels = [classes[label] for label in objects.labels.tolist()]
        return picture, objects.boxes, labels, detector(picture, threshold=threshold)

    return draw_detection_mistakes(map(compare, evaluation.mistakes[:SHOWN_DETECTION_MISTAKES]), classes)
