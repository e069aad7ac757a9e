"""`mobilevit predict`: classify images or detect objects in them."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import urlsplit

import typer
from rich.text import Text

from ..allocator import tune_allocator
from ..model_sources import DEFAULT_MODEL, builtin, read_task, recommended_threshold, resolve_model
from ..tasks import TaskName
from . import console
from .options import Backend, Device, DeviceOption, Dtype, Quantization

if TYPE_CHECKING:
    from PIL import Image
    from transformers import Pipeline

    from ..backends.precision import Choice
    from ..data.images import UnreadableImageError

runtime_option = partial(typer.Option, rich_help_panel="Runtime")

# Keeps two cores busy; decoded photos stay below half a gigabyte.
BATCH_SIZE = 8

# Options that apply to one task only.
TASK_OPTIONS: dict[TaskName, set[str]] = {
    "image-classification": {"--top-k"},
    "object-detection": {"--threshold", "--save"},
}

SAMPLES_FOLDER = Path("mobilevit-samples")
NEXT_STEPS = {
    "Classify a garment:": "mobilevit predict photo.jpg --model garments",
    "Classify any photo:": f"mobilevit predict photo.jpg --model {DEFAULT_MODEL}",
    "Train on your images:": "mobilevit train images/",
}


@dataclass(frozen=True)
class Options:
    """Options of the command; `runtime` has arguments of `mobilevit_hf.pipeline`, None for its defaults."""

    top_k: int | None
    threshold: float | None
    save: Path | None
    as_json: bool
    device: Device
    runtime: dict[str, Any]


def predict(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES", help="Files, folders, glob patterns or URLs. Default: generated sample images."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Model directory, built-in name or Hub id. Default: {DEFAULT_MODEL}, or the built-in models if no "
            "image is given."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Classification: number of labels per image. Default: 5.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Detection: minimum score of a box. Default: recommended by the model, or 0.5."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Detection: save copies of the images with boxes to DIR."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: one object per image.")] = False,
    device: DeviceOption = Device.auto,
    backend: Annotated[Backend, runtime_option(help="Runtime; all but torch run on the CPU.")] = Backend.torch,
    dtype: Annotated[
        Dtype,
        runtime_option(
            help="Precision; auto: float32, or with openvino the fastest that was verified for the model and that the "
            "processor supports."
        ),
    ] = Dtype.auto,
    quantization: Annotated[Quantization | None, runtime_option(help="Use the quantized file of the model.")] = None,
    threads: Annotated[
        int | None, runtime_option(min=1, help="Number of CPU threads. Default: torch's number of threads.")
    ] = None,
    compile: Annotated[
        bool, runtime_option("--compile", help="Compile the model, for many images; torch only.")
    ] = False,
) -> None:
    """Classify images, or detect objects in them.

    An image that can't be read is reported and skipped; the exit code is then 1.
    """
    runtime = {
        "backend": str(backend),
        "dtype": None if dtype is Dtype.auto and backend is Backend.torch else str(dtype),
        "quantization": quantization and str(quantization),
        "threads": threads,
        "compile": compile or None,
    }
    options = Options(top_k, threshold, save, as_json, device, runtime)
    if not images and model is None:
        _predict_samples(options)
        return
    model = model or DEFAULT_MODEL
    failures, total = _predict_and_print(images or [_sample_image(model)], model, options)
    if failures:
        console.log("warning", f"{failures} of {total} images could not be read.")
        raise typer.Exit(console.EXIT_UNREADABLE)


def _sample_image(model: str) -> str:
    """Return the path of a sample image: generated for a built-in model, otherwise matplotlib's photo."""
    from ..samples import SAMPLES, write_sample

    if model in SAMPLES:
        return str(write_sample(model, SAMPLES_FOLDER))
    from matplotlib.cbook import get_sample_data

    console.log("note", "No image given; using a sample photo. To use your own: mobilevit predict photo.jpg")
    return str(get_sample_data("grace_hopper.jpg", asfileobj=False))


def _predict_samples(options: Options) -> None:
    """Run the built-in models on their sample images and print the next steps."""
    detection = replace(options, top_k=None, save=options.save or SAMPLES_FOLDER / "detections")
    classification = replace(options, threshold=None, save=None)
    for name, task_options in (("blood-cells", detection), ("garments", classification)):
        _predict_and_print([_sample_image(name)], str(builtin(name)), task_options)
    for title, command in NEXT_STEPS.items():
        console.messages.print(f"{title:<24}[bold]{command}[/]", soft_wrap=True, highlight=False)


def _predict_and_print(images: list[str], model: str, options: Options) -> tuple[int, int]:
    """Print the predictions for images; return how many could not be read, and how many there were."""
    from ..data.image_formats import find_images

    sources, missing, notes = find_images(images)
    for note in notes:
        console.log("note", note)
    for source, reason in missing.items():
        _report_unreadable(source, reason, options.as_json)
    failures, total = len(missing), len(sources) + len(missing)
    if not sources:
        return failures, total
    backend = options.runtime["backend"]
    folder = resolve_model(model, folder=None if backend == Backend.torch else backend)
    from ..data.images import UnreadableImageError  # takes seconds: after the model is found

    predictor = _load_pipeline(model, folder, options)
    is_detector = predictor.task == "object-detection"
    threshold = recommended_threshold(predictor.model.config) if options.threshold is None else options.threshold
    arguments = {"threshold": threshold} if is_detector else {"top_k": options.top_k or 5}
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
    results = _predict_ahead(predictor, sources, arguments, keep_images=bool(options.save))
    with console.show_progress(disable=len(sources) <= BATCH_SIZE) as progress:
        for source, image, predictions in progress.track(results, total=len(sources), description="Predicting"):
            if isinstance(image, UnreadableImageError):
                failures += 1
                _report_unreadable(source, str(image), options.as_json)
                continue
            saved = None
            if options.save and image:
                saved = _save_detections(predictor, source, image, predictions, options.save)
            if options.as_json:
                record = {"image": source, "predictions": predictions} | ({"saved": str(saved)} if saved else {})
                console.print_json(record)
            elif is_detector:
                _print_detections(source, predictions, threshold, saved)
            else:
                _print_labels(source, predictions)
    return failures, total


def _load_pipeline(name: str, folder: Path, options: Options) -> "Pipeline":
    """Return the pipeline for a checkpoint's task. Code in a checkpoint is never executed."""
    from ..pipelines import pipeline

    device, backend = options.device, options.runtime["backend"]
    task = read_task(name, folder).name
    values = {"--top-k": options.top_k, "--threshold": options.threshold, "--save": options.save}
    wrong = {option for option, value in values.items() if value is not None} - TASK_OPTIONS[task]
    if wrong:
        raise ValueError(
            f"{', '.join(sorted(wrong))}: not for {task}, the task of {name}. Leave it out, or pass another --model."
        )
    tune_allocator()
    arguments = {key: value for key, value in options.runtime.items() if value is not None}
    if backend == Backend.torch:
        return pipeline(task, str(folder), device=console.pick_device(device), trust_remote_code=False, **arguments)
    if device not in (Device.auto, Device.cpu):
        raise ValueError(f"--device {device}: {backend} runs on the CPU. Leave it out, or use --backend torch.")
    with console.messages.status(f"Preparing the model for {backend}"):
        predictor = pipeline(task, str(folder), trust_remote_code=False, **arguments)
    choice: Choice | None = cast("Any", predictor.model).choice
    if choice and choice.reason:
        exact = "" if choice.dtype == "float32" and not choice.quantization else " Exact: --dtype float32."
        console.log("note", choice.describe(backend) + exact)
    return predictor


def _predict_ahead(
    predictor: "Pipeline", sources: list[str], arguments: dict[str, Any], keep_images: bool
) -> "Iterator[tuple[str, Image.Image | UnreadableImageError | None, list[dict[str, Any]]]]":
    """Yield each source with the error or, if kept, its image, and its predictions by descending score."""
    from torch import nn

    from ..data.images import UnreadableImageError, load_image
    from ..modeling.finite import NonFiniteOutputError
    from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
    from ..threads import map_ahead, num_workers

    def load_or_error(source: str) -> "Image.Image | UnreadableImageError":
        try:
            return load_image(source)
        except UnreadableImageError as error:
            return error

    drawn: deque[tuple[str, Image.Image | UnreadableImageError | None]] = deque()

    def readable_images() -> "Iterator[Image.Image]":
        for source, image in zip(sources, map_ahead(load_or_error, sources, num_workers()), strict=True):
            is_readable = not isinstance(image, UnreadableImageError)
            drawn.append((source, image if keep_images or not is_readable else None))
            if is_readable:
                yield image

    # Other detectors may resize each image to another size, which can't be batched. An exported model is no module.
    is_other = isinstance(predictor.model, nn.Module) and not isinstance(predictor.model, MobileViTPreTrainedModel)
    batch_size = 1 if is_other else BATCH_SIZE
    try:
        for predictions in predictor(readable_images(), batch_size=batch_size, **arguments):
            while isinstance(drawn[0][1], UnreadableImageError):
                yield *drawn.popleft(), []
            yield *drawn.popleft(), sorted(predictions, key=lambda prediction: -prediction["score"])
    except NonFiniteOutputError as error:
        batch = [source for source, image in drawn.copy() if not isinstance(image, UnreadableImageError)]
        raise ValueError(f"{batch[error.index]}: {error.reason}") from error
    yield from ((source, error, []) for source, error in drawn)


def _report_unreadable(source: str, reason: str, as_json: bool) -> None:
    if as_json:
        console.print_json({"image": source, "error": reason})
    else:
        console.log("unreadable", f"{source}: {reason}", color="red")


def _save_detections(
    predictor: "Pipeline", source: str, image: "Image.Image", detections: list[dict[str, Any]], folder: Path
) -> Path:
    from ..data.image_formats import is_url
    from ..visualization import draw_detections, save_image

    names = [name for _, name in sorted((predictor.model.config.id2label or {}).items())]
    file = urlsplit(source).path if is_url(source) else source
    return save_image(draw_detections(image, detections, names), folder, Path(file).name)


def _print_labels(source: str, predictions: list[dict[str, Any]]) -> None:
    console.print_line(source, "bold")
    table = console.make_table("label", "score", show_header=False)
    table.add_column()
    for prediction in predictions:
        score = prediction["score"]
        table.add_row(console.make_cell(prediction["label"]), f"{score:.1%}", "█" * round(20 * score))
    console.output.print(table)


def _print_detections(source: str, detections: list[dict[str, Any]], threshold: float, saved: Path | None) -> None:
    where = f" → {console.printable(str(saved))}" if saved else ""
    console.output.print(Text.assemble((console.printable(source), "bold"), where), soft_wrap=True)
    if not detections:
        console.print_line(f" nothing above {threshold:g}")
        return
    counts = Counter(detection["label"] for detection in detections)
    console.print_line(" " + ", ".join(f"{number} {label}" for label, number in counts.most_common()))
    edges = ("xmin", "ymin", "xmax", "ymax")
    table = console.make_table("label", "score", *edges)
    for detection in detections:
        box = [str(detection["box"][edge]) for edge in edges]
        table.add_row(console.make_cell(detection["label"]), f"{detection['score']:.3f}", *box)
    console.output.print(table)
