"""`mobilevit predict`: classify or segment images, or detect objects in them."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from ..allocator import tune_allocator
from ..data.segments import to_json
from ..data.writers.destination import Destination, find_destination
from ..model_sources import DEFAULT_MODEL, builtin, read_task, recommended_threshold, resolve_model
from ..tasks import EXPORTABLE_TASKS, TaskName
from . import console
from .options import Backend, Device, DeviceOption, Dtype, PredictionFormat, Quantization, check_device
from .predict_batch import CENTER_CROP, BatchOptions, check_options, is_batch, predict_batch

if TYPE_CHECKING:
    from PIL import Image
    from transformers import Pipeline

    from ..backends.precision import Choice
    from ..batch.prediction import Prediction
    from .predict_outputs import LoadedImage

Result = TypeVar("Result")

file_option = partial(typer.Option, rich_help_panel="Files")
runtime_option = partial(typer.Option, rich_help_panel="Runtime")
batch_option = partial(typer.Option, rich_help_panel="Large datasets")

MIN_TRACKED = 9  # images; fewer are predicted before a progress bar would be read

# Options that apply to one task only.
TASK_OPTIONS: dict[TaskName, set[str]] = {
    "image-classification": {"--top-k", "--sort"},
    "object-detection": {"--threshold"},
    "image-segmentation": set(),
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
    as_json: bool
    destination: Destination | None
    save: Path | None
    sort: bool
    device: Device
    runtime: dict[str, Any]


def predict(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders, glob patterns or URLs; with the options for large datasets also Parquet files, "
            "WebDataset shards, hf://, s3:// and gs://. Default: generated sample images.",
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: one object per image.")] = False,
    output: Annotated[
        str | None,
        file_option(
            metavar="PATH",
            help="Write predictions to a .csv, .jsonl or .json (COCO) file, or to a folder in the format of --format; "
            "a COCO, YOLO, VOC or PNG folder has copies of the images, one of a large dataset has parts.",
        ),
    ] = None,
    prediction_format: Annotated[
        PredictionFormat | None,
        file_option(
            "--format",
            help="Format of --output: yolo and voc for boxes, png and coco-polygons for masks, parquet or jsonl for "
            "large datasets. Default: that of its ending; for large datasets parquet.",
        ),
    ] = None,
    resume: Annotated[
        bool, file_option("--resume", help="Continue an existing --output, which is an error otherwise.")
    ] = False,
    save: Annotated[
        Path | None,
        file_option(
            metavar="DIR", file_okay=False, help="Save copies of the images with boxes, labels or masks to DIR."
        ),
    ] = None,
    sort: Annotated[
        bool,
        file_option("--sort", help="Classification: save unchanged copies, in a folder of DIR per predicted class."),
    ] = False,
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
    workers: Annotated[
        int | None,
        batch_option(
            min=1,
            help="Number of processes; with --ray at most this many. They write parts to the folder --output; "
            "--resume continues a killed job.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        batch_option(
            metavar="[ADDRESS]",
            help="Run on a Ray cluster: HOST:PORT, or auto for the one of this machine, or a new one. Default: auto.",
        ),
    ] = None,
    embeddings: Annotated[
        bool, batch_option("--embeddings", help="Also write the pooled output of the encoder; torch only.")
    ] = False,
    chunk_size: Annotated[
        int | None, batch_option(min=1, help="Maximum number of images per part. Default: 500.")
    ] = None,
) -> None:
    """Classify or segment images, or detect objects in them.

    An image that can't be read is reported and skipped, or in parts a row with the reason; the exit code is then 1.
    """
    runtime = {
        "backend": str(backend),
        "dtype": None if dtype is Dtype.auto and backend is Backend.torch else str(dtype),
        "quantization": quantization and str(quantization),
        "threads": threads,
        "compile": compile or None,
    }
    batch = BatchOptions(workers, ray, embeddings, chunk_size)
    if batch.are_given or is_batch(images or [], output, prediction_format):
        other = {"--save": save, "--sort": sort, "--json": as_json, "--compile": compile}
        check_options(images or [], output, prediction_format, [name for name, value in other.items() if value])
        arguments = runtime | {"device": str(device), "top_k": top_k, "threshold": threshold, "resume": resume}
        predict_batch(images or [], model or DEFAULT_MODEL, output or "", prediction_format, batch, arguments)
        return
    destination = _find_destination(Path(output) if output else None, prediction_format, images, resume=resume)
    if sort and save is None:
        raise ValueError("--sort: got no folder for the copies. Pass --save DIR.")
    options = Options(top_k, threshold, as_json, destination, save, sort, device, runtime)
    if not images and model is None:
        _predict_samples(options)
        return
    model = model or DEFAULT_MODEL
    failures, total = _predict_and_print(images or [_sample_image(model)], model, options)
    if failures:
        console.log("warning", f"{failures} of {total} images could not be read.")
        raise typer.Exit(console.EXIT_UNREADABLE)


def _find_destination(
    output: Path | None, prediction_format: PredictionFormat | None, images: list[str] | None, *, resume: bool
) -> Destination | None:
    """Return the destination of --output, if it can be written and, unless resumed, does not exist."""
    if output is None:
        if prediction_format or resume:
            raise ValueError(f"--{'format' if prediction_format else 'resume'}: got no output. Pass --output PATH.")
        return None
    if not images:
        raise ValueError("--output: got no images, expected files, folders or URLs.")
    destination = find_destination(output, prediction_format and str(prediction_format))
    if destination.path == output and not destination.is_dataset:
        console.check_parent("--output", output)
    from .predict_outputs import check_inputs

    check_inputs(destination, images)
    if not resume:
        destination.check_new()
    return destination


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
    detection = replace(options, top_k=None, sort=False, save=options.save or SAMPLES_FOLDER / "detections")
    classification = replace(options, threshold=None)
    for name, task_options in (("blood-cells", detection), ("garments", classification)):
        _predict_and_print([_sample_image(name)], str(builtin(name)), task_options)
    for title, command in NEXT_STEPS.items():
        console.messages.print(f"{title:<24}[bold]{command}[/]", soft_wrap=True, highlight=False)


def _predict_and_print(images: list[str], model: str, options: Options) -> tuple[int, int]:
    """Print the predictions for images; return how many could not be read, and how many there were."""
    from ..data.image_formats import find_images
    from .predict_outputs import Saver, open_recorder, print_predictions

    destination = options.destination
    outputs = [options.save, destination.path if destination and destination.is_dataset else None]
    sources, missing, notes = find_images(images, [path for path in outputs if path])
    for note in notes:
        console.log("note", note)
    for source, reason in missing.items():
        _report_unreadable(source, reason, options.as_json)
    failures, total = len(missing), len(sources) + len(missing)
    if not sources:
        return failures, total
    backend = options.runtime["backend"]
    folder = resolve_model(model, folder=None if backend == Backend.torch else backend)
    task = _check_task(model, folder, options)
    from ..data.images import UnreadableImageError  # takes seconds: after the model is found

    predictor = _load_pipeline(task, folder, options)
    if task == "image-segmentation" and getattr(predictor.image_processor, "do_center_crop", False):
        console.log("note", CENTER_CROP)
    config, top_k = predictor.model.config, options.top_k or 5
    threshold = recommended_threshold(config) if options.threshold is None else options.threshold
    classes = [name for _, name in sorted((config.id2label or {}).items())]
    saver = recorder = None
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        saver = Saver(options.save, task, classes, options.sort)
    if destination:
        recorder = open_recorder(destination, task, classes, top_k, images, sources)
        sources = recorder.select_pending(sources)
    call_arguments: dict[TaskName, dict[str, Any]] = {
        "image-classification": {"top_k": top_k},
        "object-detection": {"threshold": threshold},
    }
    results = _predict_sources(predictor, sources, call_arguments.get(task, {}), options)
    with recorder.finish_or_note(task) if recorder else nullcontext():
        for result in _track(results, len(sources)):
            source, image, predictions = result.item, result.loaded, result.predictions
            if isinstance(image, UnreadableImageError):
                failures += 1
                _report_unreadable(source, str(image), options.as_json)
                continue
            if image.is_animated:
                console.log("note", f"{source}: animated; predicted on its first frame.")
            saved = saver.save(source, image, predictions) if saver else None
            if recorder:
                recorder.write(source, image, predictions)
            if options.as_json:
                record = {"image": source, "predictions": to_json(predictions)}
                record |= {"saved": str(saved)} if saved else {}
                console.print_json(record)
            elif not recorder:
                print_predictions(source, predictions, saved, task, threshold)
    return failures, total


def _track(results: Iterator[Result], total: int) -> Iterator[Result]:
    """Yield results with a progress bar, if there are many."""
    with console.show_progress(disable=total < MIN_TRACKED) as progress:
        yield from progress.track(results, total=total, description="Predicting")


def _check_task(name: str, folder: Path, options: Options) -> TaskName:
    """Return the task of a checkpoint, after checking that the options apply to it."""
    task = read_task(name, folder, EXPORTABLE_TASKS).name
    values = {"--top-k": options.top_k, "--sort": options.sort or None, "--threshold": options.threshold}
    wrong = {option for option, value in values.items() if value is not None} - TASK_OPTIONS[task]
    if wrong:
        raise ValueError(
            f"{', '.join(sorted(wrong))}: not for {task}, the task of {name}. Leave it out, or pass another --model."
        )
    if options.destination:
        options.destination.check_task(task)
    return task


def _load_pipeline(task: TaskName, folder: Path, options: Options) -> "Pipeline":
    """Return the pipeline for a checkpoint. Code in a checkpoint is never executed."""
    from ..pipelines import pipeline

    device, backend = options.device, options.runtime["backend"]
    tune_allocator()
    arguments = {key: value for key, value in options.runtime.items() if value is not None}
    if backend == Backend.torch:
        return pipeline(task, str(folder), device=console.pick_device(device), trust_remote_code=False, **arguments)
    check_device(device, Backend(backend))
    with console.messages.status(f"Preparing the model for {backend}"):
        predictor = pipeline(task, str(folder), trust_remote_code=False, **arguments)
    choice: Choice | None = cast("Any", predictor.model).choice
    if choice and choice.reason:
        exact = "" if choice.dtype == "float32" and not choice.quantization else " Exact: --dtype float32."
        console.log("note", choice.describe(backend) + exact)
    return predictor


def _predict_sources(
    predictor: "Pipeline", sources: list[str], arguments: dict[str, Any], options: Options
) -> "Iterator[Prediction[str, LoadedImage]]":
    """Yield the predictions for each path or URL.

    Args:
        predictor: The pipeline.
        sources: Paths and URLs.
        arguments: Of the pipeline's call.
        options: Options, which determine whether the pixels of images and the content of URLs are kept.
    """
    from ..batch.prediction import BATCH_SIZE, predict_images
    from ..data.images import download, is_url, load_first_frame
    from .predict_outputs import LoadedImage

    draws = bool(options.save) and not options.sort
    copies = options.sort or bool(options.destination and options.destination.is_dataset)

    def load(source: str) -> "tuple[Image.Image, LoadedImage]":
        content = download(source) if is_url(source) else Path(source)
        image, is_animated = load_first_frame(content)
        return image, LoadedImage(image.size, is_animated, image if draws else None, content if copies else b"")

    return predict_images(predictor, sources, load, arguments, pad=len(sources) > BATCH_SIZE)


def _report_unreadable(source: str, reason: str, as_json: bool) -> None:
    if as_json:
        console.print_json({"image": source, "error": reason})
    else:
        console.log("unreadable", f"{source}: {reason}", color="red")
