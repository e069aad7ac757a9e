"""What models say of images, and how fast: what the page shows, without the page."""

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import Pipeline

from ..backends.benchmark import possible_settings
from ..backends.formats import FORMATS
from ..data.images import load_image
from ..model_sources import read_task, resolve_model
from ..pipelines import pipeline

DETECTION = "object-detection"
SHOWN_LABELS = 5
# Pipelines that are kept.
KEPT = 8
# How often a call is timed, unless that takes longer.
TIMED_CALLS, TIMED_SECONDS = 5, 1.0

# What a model says of an image, best first, as its pipeline returns it.
Found = list[dict[str, Any]]


class Table(NamedTuple):
    """A table with text and numbers."""

    headers: list[str]
    rows: list[list[Any]]


def backend_titles() -> dict[str, str]:
    """The engines that are installed, with their names."""
    backends = [setting.backend for setting in possible_settings(DETECTION)]
    return {backend: FORMATS[backend].title if backend in FORMATS else "PyTorch" for backend in backends}


@lru_cache(KEPT)
def load_predictor(model: str, backend: str) -> Pipeline:
    """The pipeline of a model on an engine, made once. Code in a checkpoint never runs.

    Args:
        model: A classifier or detector, as `resolve_model` takes it.
        backend: As `pipeline` takes it.

    Raises:
        ValueError, OSError: If there is no such model, or the engine can't run it.
    """
    folder = resolve_model(model, folder=None if backend == "torch" else backend)
    return pipeline(read_task(model, folder).name, str(folder), backend=backend, trust_remote_code=False)


def answer(predictor: Pipeline, image: Image.Image, threshold: float) -> Found:
    """What a classifier or a detector says of an image.

    Args:
        predictor: Theirs.
        image: RGB.
        threshold: Of a detector: the boxes' scores are above it.
    """
    options = {"threshold": threshold} if predictor.task == DETECTION else {"top_k": SHOWN_LABELS}
    return sorted(predictor(image, **options), key=lambda found: -found["score"])


def answer_timed(predictor: Pipeline, image: Image.Image, threshold: float) -> tuple[Found, float, int]:
    """As `answer`, with the median milliseconds of some more calls, from the decoded image, and how many."""
    found, seconds = answer(predictor, image, threshold), []
    while len(seconds) < TIMED_CALLS and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        answer(predictor, image, threshold)
        seconds.append(time.perf_counter() - start)
    return found, 1000 * statistics.median(seconds), len(seconds)


def count(found: Found) -> dict[str, int]:
    """How many boxes there are of each class, the most first."""
    return dict(Counter(one["label"] for one in found).most_common())


def describe(task: str, found: Found, threshold: float) -> str:
    """An answer in a line."""
    if task != DETECTION:
        return f"{found[0]['label']} {found[0]['score']:.1%}"
    return ", ".join(f"{number} {label}" for label, number in count(found).items()) or f"nothing above {threshold:g}"


def compare_backends(model: str, image: Image.Image, threshold: float) -> Iterator[Table]:
    """A row for each engine that is installed: its time and its answer, or why it has none; again after each row."""
    table = Table(["backend", "ms", "answer"], [])
    for backend, title in backend_titles().items():
        try:
            predictor = load_predictor(model, backend)
            found, milliseconds, _ = answer_timed(predictor, image, threshold)
            row = [title, f"{milliseconds:.1f}", describe(predictor.task, found, threshold)]
        except (ValueError, OSError) as error:
            row = [title, "", str(error)]
        table.rows.append(row)
        yield table


def answer_files(predictor: Pipeline, paths: Iterable[Path], threshold: float) -> Table:
    """A row for each file: the best label and its score, or how many boxes of each class; or why it can't be read."""
    answers: list[tuple[str, Found | None, str]] = []
    for path in paths:
        try:
            answers.append((path.name, answer(predictor, load_image(path), threshold), ""))
        except ValueError as error:
            answers.append((path.name, None, str(error)))
    if predictor.task == DETECTION:
        columns: Sequence[str] = list(count([one for _, found, _ in answers for one in found or []]))
        values = [[count(found or []).get(label, 0) for label in columns] for _, found, _ in answers]
    else:
        columns = ["label", "score"]
        values = [[found[0]["label"], round(found[0]["score"], 4)] if found else [] for _, found, _ in answers]
    rows = [
        [name, *(value if found is not None else [""] * len(columns)), problem]
        for (name, found, problem), value in zip(answers, values, strict=True)
    ]
    if any(problem for _, _, problem in answers):
        return Table(["file", *columns, "problem"], rows)
    return Table(["file", *columns], [row[:-1] for row in rows])
