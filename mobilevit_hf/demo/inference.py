"""Predictions and latencies for the demo page."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import Pipeline

from ..backends.benchmark import available_settings
from ..backends.formats import FORMATS
from ..data.images import UnreadableImageError, load_image
from ..data.segments import sort_segments
from ..model_sources import read_task, resolve_model
from ..pipelines import pipeline
from ..tasks import EXPORTABLE_TASKS, TaskName
from .turns import in_turn
from .uploads import count_pixels, read_upload

DETECTION: TaskName = "object-detection"
SEGMENTATION: TaskName = "image-segmentation"
# Classes in the summary of an image.
SUMMARIZED_CLASSES = 3
# Timed calls per measurement, fewer if they take longer than this.
TIMED_CALLS, TIMED_SECONDS = 5, 1.0

# Function (model, backend) that returns a pipeline.
Load = Callable[[str, str], Pipeline]
# Output of a pipeline for one image, sorted by descending score; of segmentation, by descending size, see `segments`.
Predictions = list[dict[str, Any]]


class Table(NamedTuple):
    """A table of text and numbers."""

    headers: list[str]
    rows: list[list[Any]]


def backend_titles() -> dict[str, str]:
    """Return the installed backends with their titles."""
    backends = [setting.backend for setting in available_settings(DETECTION)]
    return {backend: FORMATS[backend].title if backend in FORMATS else "PyTorch" for backend in backends}


@lru_cache(maxsize=8)
def load_pipeline(model: str, backend: str) -> Pipeline:
    """Return the pipeline of a model on a backend, cached. Code in a checkpoint is never executed.

    Raises:
        ValueError, OSError: If the model does not exist, or the backend can't run it.
    """
    folder = resolve_model(model, folder=None if backend == "torch" else backend)
    return pipeline(
        read_task(model, folder, EXPORTABLE_TASKS).name, str(folder), backend=backend, trust_remote_code=False
    )


def predict(pipeline: Pipeline, image: Image.Image, threshold: float) -> Predictions:
    """Predict the classes, objects or segments of an RGB image; `threshold` is the minimum score of detections."""
    if pipeline.task == SEGMENTATION:
        return sort_segments(pipeline(image))
    options: dict[str, Any] = {"threshold": threshold} if pipeline.task == DETECTION else {"top_k": 5}
    return sorted(pipeline(image, **options), key=lambda prediction: -prediction["score"])


def predict_timed(pipeline: Pipeline, image: Image.Image, threshold: float) -> tuple[Predictions, float, int]:
    """Return the predictions, the median latency of further calls in ms (image decoding excluded) and their number."""
    predictions, seconds = predict(pipeline, image, threshold), []
    while len(seconds) < TIMED_CALLS and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        predict(pipeline, image, threshold)
        seconds.append(time.perf_counter() - start)
    return predictions, 1000 * statistics.median(seconds), len(seconds)


def predict_upload(pipeline: Pipeline, path: str, threshold: float) -> tuple[Image.Image, Predictions, float, int]:
    """Return the decoded image of an uploaded file, and the results of `predict_timed`."""
    image = load_image(read_upload(path))
    return image, *predict_timed(pipeline, image, threshold)


def count_labels(predictions: Predictions) -> dict[str, int]:
    """Return the number of predictions by label, most frequent first."""
    return dict(Counter(prediction["label"] for prediction in predictions).most_common())


def list_fractions(segments: Predictions) -> dict[str, float]:
    """Return the fraction of the pixels by label, rounded."""
    return {segment["label"]: round(segment["fraction"], 4) for segment in segments}


# Function that returns a number by label, by task.
NUMBERS: dict[str, Callable[[Predictions], Mapping[str, float]]] = {
    DETECTION: count_labels,
    SEGMENTATION: list_fractions,
}


def summarize(task: str, predictions: Predictions, threshold: float) -> str:
    """Return predictions in one line."""
    if task == SEGMENTATION:
        largest = predictions[:SUMMARIZED_CLASSES]
        return ", ".join(f"{segment['label']} {segment['fraction']:.1%}" for segment in largest)
    if task != DETECTION:
        return f"{predictions[0]['label']} {predictions[0]['score']:.1%}"
    counts = ", ".join(f"{number} {label}" for label, number in count_labels(predictions).items())
    return counts or f"no objects above {threshold:g}"


def compare_backends(load: Load, model: str, path: str, threshold: float) -> Iterator[Table]:
    """Yield a table of installed backends after each added row: latency and prediction, or an error message.

    Raises:
        UnreadableImageError: If the uploaded file can't be read.
    """
    table = Table(["Backend", "Latency (ms)", "Prediction"], [])
    for backend, title in backend_titles().items():
        try:
            pipeline = load(model, backend)
            _, predictions, milliseconds, _ = in_turn(count_pixels(path), predict_upload, pipeline, path, threshold)
            row = [title, f"{milliseconds:.1f}", summarize(pipeline.task, predictions, threshold)]
        except UnreadableImageError:
            raise
        except (ValueError, OSError) as error:
            row = [title, "", str(error)]
        table.rows.append(row)
        yield table


def _predict_file(pipeline: Pipeline, path: str, threshold: float) -> Predictions:
    return predict(pipeline, load_image(Path(path)), threshold)


def predict_files(pipeline: Pipeline, paths: Iterable[str], threshold: float) -> Table:
    """Return a table with a row per uploaded file: the best label and its score, or a number per class.

    It is the number of objects, or the fraction of the pixels. The column "error" is present if at least one file
    can't be read.
    """
    results: list[tuple[str, Predictions, str]] = []
    pixels = 0
    for path in paths:
        pixels += count_pixels(path)
        try:
            results.append((Path(path).name, in_turn(pixels, _predict_file, pipeline, path, threshold), ""))
        except ValueError as error:
            results.append((Path(path).name, [], str(error)))
    columns = ["label", "score"]
    if pipeline.task in NUMBERS:
        columns = list(count_labels([prediction for _, predictions, _ in results for prediction in predictions]))
    rows = []
    for name, predictions, error in results:
        if error:
            values: list[Any] = [""] * len(columns)
        elif pipeline.task in NUMBERS:
            numbers = NUMBERS[pipeline.task](predictions)
            values = [numbers.get(label, 0) for label in columns]
        else:
            values = [predictions[0]["label"], round(predictions[0]["score"], 4)]
        rows.append([name, *values, error])
    if any(error for _, _, error in results):
        return Table(["file", *columns, "error"], rows)
    return Table(["file", *columns], [row[:-1] for row in rows])
