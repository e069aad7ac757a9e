"""`mobilevit predict` on large datasets: in several processes or on a cluster, with an output of parts."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn

from ..io import count_noun, read_json
from ..model_sources import IMAGE_PROCESSOR_FILE, read_task, resolve_model
from ..tasks import EXPORTABLE_TASKS
from . import console
from .options import PredictionFormat

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from ..batch.types import BatchProgress

FORMATS = (PredictionFormat.parquet, PredictionFormat.jsonl)
MAX_REPORTED = 20  # unreadable images; all are in the output
LOG_SECONDS = 60  # between lines about the progress, without a terminal

CENTER_CROP = (
    "The model's image processor crops images to their center, and masks are stretched to the whole image, as in "
    "transformers. For masks that match: do_center_crop false, size height and width in preprocessor_config.json."
)


@dataclass(frozen=True)
class BatchOptions:
    """Options for large datasets, None or False if they are not given."""

    workers: int | None
    ray: str | None
    embeddings: bool
    chunk_size: int | None

    @property
    def are_given(self) -> bool:
        """Whether one of them is given."""
        return any((self.workers, self.ray, self.embeddings, self.chunk_size))


def is_batch(images: Sequence[str], output: str | None, prediction_format: PredictionFormat | None) -> bool:
    """Return whether a source or an output is one of large datasets, also without their options."""
    from ..batch.filesystems import is_remote
    from ..batch.output import JOB_FILE
    from ..batch.sources import PARQUET_SUFFIX, TAR_SUFFIXES

    paths = [*images, output or ""]
    return (
        prediction_format is PredictionFormat.parquet
        or any(map(is_remote, paths))
        or any(Path(path).is_file() and path.lower().endswith((PARQUET_SUFFIX, *TAR_SUFFIXES)) for path in images)
        or bool(output and Path(output, JOB_FILE).is_file())
    )


def check_options(
    images: Sequence[str], output: str | None, prediction_format: PredictionFormat | None, other: Sequence[str]
) -> None:
    """Check the options of a large dataset.

    Args:
        images, output, prediction_format: See `predict`.
        other: Names of options that are given and only apply to single images.

    Raises:
        ValueError: If one is missing or does not apply.
    """
    if other:
        advice = "Leave it out, or predict single images." if len(other) == 1 else "Leave them out."
        raise ValueError(
            f"{', '.join(other)}: not for large datasets, whose predictions are parts of a folder. {advice}"
        )
    if not images:
        raise ValueError("--output: got no images, expected files, folders or URLs.")
    if output is None:
        raise ValueError("--output: got none, expected a folder for the parts. Pass --output DIR.")
    if prediction_format and prediction_format not in FORMATS:
        raise ValueError(f"--format: got {prediction_format}, expected parquet or jsonl for large datasets.")
    if Path(output).suffix.lower() in (".csv", ".json", ".jsonl", ".ndjson", ".parquet"):
        raise ValueError(f"--output: got the file {output}, expected a folder for the parts. Pass --output DIR.")


def predict_batch(
    images: Sequence[str],
    model: str,
    output: str,
    prediction_format: PredictionFormat | None,
    options: BatchOptions,
    arguments: dict[str, Any],
) -> None:
    """Predict a dataset with a progress bar.

    Args:
        images, model, output, prediction_format: See `predict`.
        options: The options for large datasets.
        arguments: Other arguments of `batch.predict_dataset`, and `compile`.

    Raises:
        typer.Exit: With `EXIT_UNREADABLE` if an image could not be read.
    """
    backend = arguments["backend"]
    folder = resolve_model(model, folder=None if backend == "torch" else backend)
    is_cropped = read_json(folder / IMAGE_PROCESSOR_FILE).get("do_center_crop")
    if is_cropped and read_task(model, folder, EXPORTABLE_TASKS).name == "image-segmentation":
        console.log("note", CENTER_CROP)
    from ..batch import predict_dataset

    arguments = {name: value for name, value in arguments.items() if name != "compile"}
    with _show_progress(output) as report:
        summary = predict_dataset(
            images,
            output,
            model,
            workers=options.workers,
            ray=options.ray,
            output_format="jsonl" if prediction_format is PredictionFormat.jsonl else "parquet",
            embeddings=options.embeddings,
            chunk_size=options.chunk_size,
            on_progress=report,
            **arguments,
        )
    for note in summary.notes:
        console.log("note", note)
    counts = " in ".join(count_noun(n, noun) for n, noun in ((summary.images, "image"), (summary.parts, "part")))
    speed = f", {summary.images_per_second:.1f} images/s" if summary.resumed_parts < summary.parts else ""
    console.log("saved", f"{summary.output} ({counts}{speed})", color="green")
    if summary.unreadable:
        unreadable = f"{summary.unreadable} of {summary.images} images could not be read"
        console.log("warning", f"{unreadable}; the column error has the reasons.")
        raise typer.Exit(console.EXIT_UNREADABLE)


@contextmanager
def _show_progress(output: str) -> "Generator[Progress]":
    """Show a progress bar; log how to continue after Ctrl-C."""
    columns = (
        TextColumn("Predicting"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.fields[of]} images, {task.fields[speed]:.1f} images/s"),
        TextColumn("[red]{task.fields[unreadable]}"),
        TimeRemainingColumn(),
    )
    with console.show_progress(*columns) as bar:
        try:
            yield Progress(bar, output)
        except KeyboardInterrupt:
            console.log("note", f"interrupted; --resume continues {output}.")
            raise


class Progress:
    """Reports the progress of a job on the bar, and in lines where there is no terminal.

    Args:
        bar: The bar.
        output: Name of the output.
    """

    def __init__(self, bar: "RichProgress", output: str) -> None:
        self._bar, self._output = bar, output
        self._task: TaskID | None = None
        self._reported, self._logged = 0, time.monotonic()

    def __call__(self, progress: "BatchProgress") -> None:
        """Report the progress after a chunk."""
        unreadable = f"{progress.unreadable} unreadable" if progress.unreadable else ""
        of = progress.total_images or "?"
        fields: dict[str, Any] = {"of": of, "speed": progress.images_per_second, "unreadable": unreadable}
        if self._task is None:
            self._task = self._bar.add_task("", total=progress.total_images, **fields)
            if progress.images:
                console.log("note", f"{progress.images} of {of} images are in {self._output} already.")
        self._bar.update(self._task, completed=progress.images, **fields)
        for name, reason in progress.examples:
            self._reported += 1
            if self._reported <= MAX_REPORTED:
                console.log("unreadable", f"{name}: {reason}", color="red")
        if self._bar.disable and time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            done = f"{progress.images} of {of} images, {progress.images_per_second:.1f} images/s"
            console.log("progress", ", ".join(filter(None, (done, unreadable))), color="cyan")
