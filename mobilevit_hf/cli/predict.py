"""`mobilevit predict`: what is on images, and where."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from matplotlib.cbook import get_sample_data
from PIL import Image
from rich.markup import escape
from rich.table import Table
from transformers import Pipeline

from ..allocator import tune_allocator
from ..backends.formats import BACKENDS, DTYPES, QUANTIZATIONS
from ..backends.runtime import EngineModel
from ..data.images import UnreadableImageError, find_images, is_url, load_image
from ..model_sources import DEFAULT_MODEL, builtin, read_task, recommended_threshold, resolve_model
from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
from ..pipelines import pipeline
from ..samples import SAMPLES, write_sample
from ..visualization import draw_detections, save_image
from . import console

# The choices of engine, and the panel of the help that they are in.
Backend = StrEnum("Backend", {name: name for name in BACKENDS})
Dtype = StrEnum("Dtype", {name: name for name in DTYPES})
Quantization = StrEnum("Quantization", {name: name for name in QUANTIZATIONS})
ENGINE = "Engine"

# Enough to keep two cores busy, and few enough that decoded photos stay below half a gigabyte.
BATCH_SIZE = 8

# The options for one task alone.
TASK_OPTIONS = {"image-classification": {"--top-k"}, "object-detection": {"--threshold", "--save"}}

# Where the samples are drawn, and with what one goes on from there.
SAMPLES_FOLDER = Path("mobilevit-samples")
FIRST_STEPS = {
    "A garment of yours:": "mobilevit predict photo.jpg --model garments",
    "Any photo (ImageNet):": f"mobilevit predict photo.jpg --model {DEFAULT_MODEL}",
    "Your own classes:": "mobilevit train images/",
}


@dataclass(frozen=True)
class Options:
    """How to answer; the fields are the command's options."""

    top_k: int | None
    threshold: float | None
    save: Path | None
    as_json: bool
    device: console.Device
    engine: Mapping[str, Any]


def predict(
    images: Annotated[
        list[str] | None, typer.Argument(help="Images: files, folders, patterns or URLs. Default: drawn samples.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Directory, built-in name or Hub id. Default: {DEFAULT_MODEL}; without an image, the built-in ones."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Classifier: how many labels to show for each image. Default: 5.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Detector: show boxes with a score above it. Default: the model's, or 0.5."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Detector: draw boxes on copies of the images, in DIR."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line and image.")] = False,
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
    threads: Annotated[
        int | None, typer.Option(min=1, help="How many to use. Default: as the machine has.", rich_help_panel=ENGINE)
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch: compile the model, for many images.", rich_help_panel=ENGINE)
    ] = False,
) -> None:
    """Say what is on images; with a detector also where.

    An image that can't be read is named with the reason, the others are answered, and the exit code is 1.
    """
    engine = {
        "backend": str(backend),
        "dtype": dtype and str(dtype),
        "quantization": quantization and str(quantization),
        "threads": threads,
        "compile": compile or None,
    }
    options = Options(top_k, threshold, save, as_json, device, engine)
    if not images and model is None:
        _answer_samples(options)
        return
    failures, total = _answer(images or [_sample_for(model)], model or DEFAULT_MODEL, options)
    if failures:
        console.messages.print(f"[yellow]{failures} of {total} could not be read.[/]", highlight=False)
        raise typer.Exit(console.EXIT_UNREADABLE)


def _sample_for(model: str) -> str:
    """An image to try a model on: its own if it is built in, or matplotlib's sample photo."""
    if model in SAMPLES:
        return str(write_sample(model, SAMPLES_FOLDER))
    console.say("note", "No image given: here is matplotlib's sample photo. Yours: mobilevit predict photo.jpg")
    return str(get_sample_data("grace_hopper.jpg", asfileobj=False))


def _answer_samples(options: Options) -> None:
    """What the built-in models say of their samples, and how to go on from there."""
    boxes = replace(options, top_k=None, save=options.save or SAMPLES_FOLDER / "found")
    labels = replace(options, threshold=None, save=None)
    for name, fitting in (("blood-cells", boxes), ("garments", labels)):
        _answer([_sample_for(name)], str(builtin(name)), fitting)
    for text, command in FIRST_STEPS.items():
        console.messages.print(f"{text:<24}[bold]{command}[/]", soft_wrap=True, highlight=False)


def _answer(images: list[str], model: str, options: Options) -> tuple[int, int]:
    """Say what is on images; how many could not be read, of how many."""
    sources, missing = find_images(images)
    for source, reason in missing.items():
        _report_unreadable(source, reason, options.as_json)
    failures = len(missing)
    if not sources:
        return failures, failures
    predictor = _load_predictor(model, options)
    if predictor.task == "object-detection":
        recommended = recommended_threshold(predictor.model.config)
        arguments = {"threshold": recommended if options.threshold is None else options.threshold}
    else:
        arguments = {"top_k": options.top_k or 5}
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
    for source, image, answer in _predict(predictor, sources, arguments):
        if isinstance(image, UnreadableImageError):
            failures += 1
            _report_unreadable(source, str(image), options.as_json)
            continue
        saved = _save_drawing(predictor, source, image, answer, options.save) if options.save else None
        if options.as_json:
            line = {"image": source, "predictions": answer} | ({"saved": str(saved)} if saved else {})
            print(json.dumps(line), flush=True)
        elif predictor.task == "object-detection":
            _show_boxes(source, answer, arguments["threshold"], saved)
        else:
            _show_labels(source, answer)
    return failures, len(sources) + len(missing)


def _load_predictor(name: str, options: Options) -> Pipeline:
    """The pipeline for a checkpoint's task, if it has the options that were given. Code in a checkpoint never runs."""
    device, engine = options.device, options.engine
    folder = resolve_model(name, folder=None if engine["backend"] == Backend.torch else engine["backend"])
    task = read_task(name, folder).name
    values = {"--top-k": options.top_k, "--threshold": options.threshold, "--save": options.save}
    given = {option for option, value in values.items() if value is not None}
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
    """Each source with its image, or the reason why there is none, and with what is on it, best first."""
    # Other detectors may take each image in a size of its own, which makes no batch.
    batch_size = BATCH_SIZE if isinstance(predictor.model, MobileViTPreTrainedModel | EngineModel) else 1
    starts = range(0, len(sources), BATCH_SIZE)
    with console.show_progress(disable=len(starts) == 1) as progress:
        for start in progress.track(starts, description="Looking at images"):
            batch = sources[start : start + BATCH_SIZE]
            images = [_load_or_error(source) for source in batch]
            readable = [image for image in images if not isinstance(image, UnreadableImageError)]
            answers = iter(predictor(readable, batch_size=batch_size, **arguments) if readable else [])
            for source, image in zip(batch, images, strict=True):
                answer = [] if isinstance(image, UnreadableImageError) else next(answers)
                yield source, image, sorted(answer, key=lambda prediction: -prediction["score"])


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
    detector: Pipeline, source: str, image: Image.Image, detections: list[dict[str, Any]], folder: Path
) -> Path:
    names = [name for _, name in sorted(detector.model.config.id2label.items())]
    file = urlsplit(source).path if is_url(source) else source
    return save_image(draw_detections(image, detections, names), folder, Path(file).name)


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
    counts = Counter(found["label"] for found in detections)
    summary = ", ".join(f"{number} {console.printable(label)}" for label, number in counts.most_common())
    console.output.print(f" {escape(summary)}", highlight=False)
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
