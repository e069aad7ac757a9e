"""`mobilevit predict`: what is on pictures, and where."""

import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from matplotlib.cbook import get_sample_data
from PIL import Image
from rich.markup import escape
from rich.table import Table
from transformers import AutoConfig, Pipeline

from ..allocator import tune_allocator
from ..backends.formats import BACKENDS, DTYPES, QUANTIZATIONS
from ..backends.runners import EngineModel
from ..checkpoints import DEFAULT_MODEL, resolve_model
from ..data.images import UnreadableImageError, find_images, is_url, load_image
from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
from ..pipelines import pipeline
from ..visualization import draw_detections, save_picture
from . import console

# The choices of engine, and the panel of the help that they are in.
Backend = StrEnum("Backend", {name: name for name in BACKENDS})
Dtype = StrEnum("Dtype", {name: name for name in DTYPES})
Quantization = StrEnum("Quantization", {name: name for name in QUANTIZATIONS})
ENGINE = "Engine"

# Enough to keep two cores busy, and few enough that decoded photos stay below half a gigabyte.
BATCH_SIZE = 8

# Where neither the user nor the model says one: that of transformers' pipeline.
DEFAULT_THRESHOLD = 0.5

# What `predict` runs: the task of an architecture by the ending of its name, and the options for this task alone.
TASKS = {"ForImageClassification": "image-classification", "ForObjectDetection": "object-detection"}
TASK_OPTIONS = {"image-classification": {"--top-k"}, "object-detection": {"--threshold", "--save"}}


def predict(
    images: Annotated[
        list[str] | None, typer.Argument(help="Pictures: files, folders, patterns or URLs. Default: a sample photo.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Directory, built-in name or Hub id. Default: {DEFAULT_MODEL}.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Classifier: how many labels to show for each picture. Default: 5.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Detector: show boxes with a score above it. Default: the model's, or 0.5."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Detector: draw boxes on copies of the pictures, in DIR."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line and picture.")] = False,
    device: Annotated[console.Device, typer.Option(help="Where to run.")] = console.Device.auto,
    backend: Annotated[
        Backend, typer.Option(help="What runs the model; all but torch run on the CPU.", rich_help_panel=ENGINE)
    ] = Backend.torch,
    dtype: Annotated[
        Dtype | None, typer.Option(help="What to compute in. Default: float32.", rich_help_panel=ENGINE)
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Take the model's quantized file.", rich_help_panel=ENGINE)
    ] = None,
) -> None:
    """Say what is on pictures; with a detector also where.

    A picture that can't be read is named with the reason, the others are answered, and the exit code is 1.
    """
    if not images:
        images = [str(get_sample_data("grace_hopper.jpg", asfileobj=False))]
        console.messages.print(
            "No picture given: here is matplotlib's sample photo. Yours: mobilevit predict photo.jpg",
            soft_wrap=True,
        )
    sources, missing = find_images(images)
    for source, reason in missing.items():
        _report_unreadable(source, reason, as_json)
    failures = len(missing)
    if sources:
        options = {"--top-k": top_k, "--threshold": threshold, "--save": save}
        given = {option for option, value in options.items() if value is not None}
        engine = {
            "backend": str(backend),
            "dtype": dtype and str(dtype),
            "quantization": quantization and str(quantization),
        }
        predictor = _load_predictor(model or DEFAULT_MODEL, device, given, engine)
        if predictor.task == "object-detection":
            recommended = getattr(predictor.model.config, "recommended_threshold", None) or DEFAULT_THRESHOLD
            arguments = {"threshold": recommended if threshold is None else threshold}
        else:
            arguments = {"top_k": top_k or 5}
        if save:
            save.mkdir(parents=True, exist_ok=True)
        for source, picture, answer in _predict(predictor, sources, arguments):
            if isinstance(picture, UnreadableImageError):
                failures += 1
                _report_unreadable(source, str(picture), as_json)
                continue
            saved = _save_drawing(predictor, source, picture, answer, save) if save else None
            if as_json:
                line = {"image": source, "predictions": answer} | ({"saved": str(saved)} if saved else {})
                print(json.dumps(line), flush=True)
            elif predictor.task == "object-detection":
                _show_boxes(source, answer, arguments["threshold"], saved)
            else:
                _show_labels(source, answer)
    if failures:
        total = len(sources) + len(missing)
        console.messages.print(f"[yellow]{failures} of {total} could not be read.[/]", highlight=False)
        raise typer.Exit(console.EXIT_UNREADABLE)


def find_task(name: str, folder: Path, tasks: Mapping[str, str] = TASKS) -> str:
    """What the checkpoint in a folder does.

    Args:
        name: What to call it.
        folder: Where it is.
        tasks: The tasks that are possible, by the ending of an architecture's name.

    Raises:
        ValueError: If it is neither a classifier nor a detector.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    architecture = (config.architectures or ["a model of unknown class"])[0]
    task = next((task for ending, task in tasks.items() if architecture.endswith(ending)), None)
    if task is None:
        raise ValueError(
            f"{name} is {architecture}, expected an image classifier or an object detector. Pass another model."
        )
    return task


def _load_predictor(name: str, device: console.Device, given: set[str], engine: dict[str, Any]) -> Pipeline:
    """The pipeline for a checkpoint's task, if it has the options that were given. Code in a checkpoint never runs."""
    folder = resolve_model(name, folder=None if engine["backend"] == Backend.torch else engine["backend"])
    task = find_task(name, folder)
    if wrong := given - TASK_OPTIONS[task]:
        raise ValueError(
            f"{', '.join(sorted(wrong))}: not for {task}, which is what {name} does. Leave it out, or pass another "
            "model with --model."
        )
    tune_allocator()
    arguments = {name: value for name, value in engine.items() if value is not None}
    if engine["backend"] == Backend.torch:
        return pipeline(task, str(folder), device=console.pick_device(device), trust_remote_code=False, **arguments)
    if device not in (console.Device.auto, console.Device.cpu):
        raise ValueError(
            f"--device {device}: {engine['backend']} runs on the CPU. Leave it out, or use --backend torch."
        )
    with console.messages.status(f"Preparing the model for {engine['backend']}, once"):
        return pipeline(task, str(folder), trust_remote_code=False, **arguments)


def _predict(
    predictor: Pipeline, sources: list[str], arguments: dict[str, Any]
) -> Iterator[tuple[str, Image.Image | UnreadableImageError, list[dict[str, Any]]]]:
    """Each source with its picture, or the reason why there is none, and with what is on it, best first."""
    # Other detectors may take each picture in a size of its own, which makes no batch.
    batch_size = BATCH_SIZE if isinstance(predictor.model, MobileViTPreTrainedModel | EngineModel) else 1
    starts = range(0, len(sources), BATCH_SIZE)
    with console.show_progress(disable=len(starts) == 1) as progress:
        for start in progress.track(starts, description="Looking at pictures"):
            batch = sources[start : start + BATCH_SIZE]
            pictures = [_load_or_error(source) for source in batch]
            readable = [picture for picture in pictures if not isinstance(picture, UnreadableImageError)]
            answers = iter(predictor(readable, batch_size=batch_size, **arguments) if readable else [])
            for source, picture in zip(batch, pictures, strict=True):
                answer = [] if isinstance(picture, UnreadableImageError) else next(answers)
                yield source, picture, sorted(answer, key=lambda prediction: -prediction["score"])


def _load_or_error(source: str) -> Image.Image | UnreadableImageError:
    try:
        return load_image(source)
    except UnreadableImageError as error:
        return error


def _report_unreadable(source: str, reason: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"image": source, "error": reason}), flush=True)
    else:
        console.say("unreadable", f"{source}: {reason}", color="red")


def _save_drawing(
    detector: Pipeline, source: str, picture: Image.Image, detections: list[dict[str, Any]], folder: Path
) -> Path:
    names = [name for _, name in sorted(detector.model.config.id2label.items())]
    file = urlsplit(source).path if is_url(source) else source
    return save_picture(draw_detections(picture, detections, names), folder, Path(file).name)


def _show_labels(source: str, predictions: list[dict[str, Any]]) -> None:
    console.output.print(f"[bold]{escape(console.printable(source))}[/]", soft_wrap=True, highlight=False)
    table = _table(show_header=False)
    table.add_column()
    for prediction in predictions:
        score = prediction["score"]
        table.add_row(escape(console.printable(prediction["label"])), f"{score:.1%}", "█" * round(20 * score))
    console.output.print(table)


def _show_boxes(source: str, detections: list[dict[str, Any]], threshold: float, saved: Path | None) -> None:
    where = f" → {escape(console.printable(str(saved)))}" if saved else ""
    console.output.print(f"[bold]{escape(console.printable(source))}[/]{where}", soft_wrap=True, highlight=False)
    if not detections:
        console.output.print(f" nothing above {threshold:g}", highlight=False)
        return
    table = _table(show_header=True)
    edges = ("xmin", "ymin", "xmax", "ymax")
    for edge in edges:
        table.add_column(edge, justify="right")
    for found in detections:
        box = [str(found["box"][edge]) for edge in edges]
        table.add_row(escape(console.printable(found["label"])), f"{found['score']:.3f}", *box)
    console.output.print(table)


def _table(*, show_header: bool) -> Table:
    """A table with columns for a label and its score."""
    table = Table(show_header=show_header, box=None, padding=(0, 1))
    table.add_column("label", overflow="fold", min_width=20)
    table.add_column("score", justify="right")
    return table
