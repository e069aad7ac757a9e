"""Where `mobilevit predict` leaves predictions: the terminal, copies of the images, and a file or dataset."""

import os
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from rich.text import Text

from ..data.image_formats import input_folder, is_url
from ..data.segments import make_label_map
from ..data.writers.base import PredictedImage, PredictionWriter, copy_image
from ..data.writers.destination import Destination
from ..data.writers.names import class_folders, file_names, relative_names, safe_name
from ..tasks import TaskName
from . import console

if TYPE_CHECKING:
    from PIL import Image

Predictions = list[dict[str, Any]]


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image, as far as the outputs use it.

    Attributes:
        size: Width and height in pixels.
        is_animated: Whether the file has further frames.
        pixels: The image, None if it is not drawn on.
        content: Its file, or the content of a URL; empty if it is not copied.
    """

    size: tuple[int, int]
    is_animated: bool
    pixels: "Image.Image | None"
    content: Path | bytes


@dataclass(frozen=True)
class Saver:
    """Saves copies of images in a folder: with their predictions drawn, or sorted by their predicted class."""

    folder: Path
    task: TaskName
    classes: Sequence[str]
    sort: bool

    def save(self, source: str, image: LoadedImage, predictions: Predictions) -> Path:
        """Save a copy of an image under an unused name; return its path."""
        from ..visualization.image_files import save_image, unused_path

        name = Path(urlsplit(source).path if is_url(source) else source).name
        if self.sort:
            folder = self.folder / class_folders(self.classes)[predictions[0]["label"]]
            path = unused_path(folder, safe_name(name))
            copy_image(image.content, path)
            return path
        return save_image(self._draw(cast("Image.Image", image.pixels), predictions), self.folder, name)

    def _draw(self, image: "Image.Image", predictions: Predictions) -> "Image.Image":
        from ..visualization.boxes import draw_detections
        from ..visualization.labels import draw_label
        from ..visualization.masks import draw_overlay

        if self.task == "object-detection":
            return draw_detections(image, predictions, self.classes)
        if self.task == "image-segmentation":
            return draw_overlay(image, make_label_map(predictions, self.classes), dict(enumerate(self.classes)))
        return draw_label(image, predictions[0]["label"], predictions[0]["score"], self.classes)


class Recorder:
    """Writes predictions to a destination, and counts them."""

    def __init__(self, destination: Destination, writer: PredictionWriter, names: dict[str, str]) -> None:
        self._destination, self._writer, self._names = destination, writer, names
        self._done = self._images = self._boxes = 0

    def select_pending(self, sources: Sequence[str]) -> list[str]:
        """Return the images that are not in the output yet, and log how many are."""
        pending = [source for source in sources if not self._writer.is_written(self._names[source])]
        if done := len(sources) - len(pending):
            self._done = done
            console.log("note", f"{done} of {len(sources)} images are in {self._destination.path} already.")
        return pending

    def write(self, source: str, image: LoadedImage, predictions: Predictions) -> None:
        """Write the predictions of an image."""
        self._writer.write(PredictedImage(self._names[source], image.size, predictions, image.content))
        self._images += 1
        self._boxes += sum("box" in prediction for prediction in predictions)

    @contextmanager
    def finish_or_note(self, task: TaskName) -> Generator[None]:
        """Complete the output at the end and log its path, or log how to continue after Ctrl-C."""
        try:
            yield
        except KeyboardInterrupt:
            console.log("note", f"interrupted; --resume continues {self._destination.path}.")
            raise
        self._writer.finish()
        counts = f"{self._images} {'more ' if self._done else ''}{'image' if self._images == 1 else 'images'}"
        counts += f", {self._boxes} {'box' if self._boxes == 1 else 'boxes'}" if task == "object-detection" else ""
        console.log("saved", f"{self._destination.path} ({counts})", color="green")


def check_inputs(destination: Destination, inputs: Iterable[str]) -> None:
    """Check that no input is in the output folder, where copies of the images would replace it.

    Raises:
        ValueError: If one is.
    """
    folder = Path(os.path.abspath(destination.path))  # noqa: PTH100, links are not followed
    for source in inputs if destination.is_dataset else ():
        if not is_url(source) and Path(input_folder(source)).is_relative_to(folder):
            raise ValueError(f"output: got {destination.path}, the folder of the images. Pass another folder.")


def open_recorder(
    destination: Destination,
    task: TaskName,
    classes: Sequence[str],
    top_k: int,
    inputs: Iterable[str],
    sources: Iterable[str],
) -> Recorder:
    """Create or continue the output for the predictions of images.

    Args:
        destination, task, classes, top_k: See `Destination.open`.
        inputs: Arguments of the command.
        sources: Paths and URLs of their images.
    """
    names = relative_names(inputs, sources)
    writer = destination.open(task, classes, top_k)
    return Recorder(destination, writer, file_names(names) if destination.is_dataset else names)


def print_predictions(
    source: str, predictions: Predictions, saved: Path | None, task: TaskName, threshold: float
) -> None:
    """Print the predictions of an image as a table.

    Args:
        source: Path or URL.
        predictions: Output of the pipeline.
        saved: Copy of the image that was saved.
        task: Task of the model.
        threshold: Minimum score of detections.
    """
    where = f" → {console.printable(str(saved))}" if saved else ""
    console.output.print(Text.assemble((console.printable(source), "bold"), where), soft_wrap=True)
    if task == "image-segmentation":
        _print_labels(predictions, "fraction")
    elif task != "object-detection":
        _print_labels(predictions, "score")
    elif predictions:
        _print_detections(predictions)
    else:
        console.print_line(f" nothing above {threshold:g}")


def _print_labels(predictions: Predictions, field: str) -> None:
    """Print labels with a field in 0..1, their score or their fraction of the pixels."""
    table = console.make_table("label", field, show_header=False)
    table.add_column()
    for prediction in predictions:
        value = prediction[field]
        table.add_row(console.make_cell(prediction["label"]), f"{value:.1%}", "█" * round(20 * value))
    console.output.print(table)


def _print_detections(detections: Predictions) -> None:
    counts = Counter(detection["label"] for detection in detections)
    console.print_line(" " + ", ".join(f"{number} {label}" for label, number in counts.most_common()))
    edges = ("xmin", "ymin", "xmax", "ymax")
    table = console.make_table("label", "score", *edges)
    for detection in detections:
        box = [str(detection["box"][edge]) for edge in edges]
        table.add_row(console.make_cell(detection["label"]), f"{detection['score']:.3f}", *box)
    console.output.print(table)
