"""`mobilevit evaluate`: measure accuracy, mean average precision or mean IoU on a labeled dataset."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..allocator import tune_allocator
from ..io import user_path
from ..model_sources import read_task, resolve_model
from ..records import RESULTS_FILE
from ..reports.files import check_report_folder
from ..tasks import METRICS, TASKS, TaskName
from . import console
from .options import DataArgument, DataFormatOption, Device, DeviceOption, JsonOption, ModelArgument

if TYPE_CHECKING:
    from ..data.types import Dataset, Split
    from ..evaluation import EvaluationResult

SHOWN_CLASSES = 20  # rows of the table of classes
# Columns of the table of classes, which fits into 80 characters. A count error is the mean of |detections - objects|.
CLASS_COLUMNS: dict[TaskName, dict[str, str]] = {
    "image-classification": {"precision": "precision", "recall": "recall", "f1": "F1", "support": "images"},
    "object-detection": {
        "map": "mAP",
        "map_50": "mAP50",
        "precision": "precision",
        "recall": "recall",
        "count_error": "count error",
        "support": "objects",
    },
    "image-segmentation": {"iou": "IoU", "dice": "Dice", "accuracy": "accuracy", "pixels": "pixels"},
}
# Column by which the worst classes are chosen.
CLASS_SCORES: dict[TaskName, str] = {
    "image-classification": "f1",
    "object-detection": "map",
    "image-segmentation": "iou",
}
MAX_CONFUSION = 100  # classes for which --json prints the confusion matrix


def evaluate(
    model: ModelArgument,
    data: DataArgument,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split, or all. Default: validation (without one, the part that training splits off), or test."
        ),
    ] = None,
    data_format: DataFormatOption = None,
    as_json: JsonOption = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 8,
    device: DeviceOption = Device.auto,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Abort if more than this fraction of the images is invalid.")
    ] = 0.05,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of images: evenly spaced, or the first of a stream."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a report to DIR, a new folder or one with an earlier report: report.html, figures, "
            "predictions.csv and results.json.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download a Hub dataset and cache it, instead of streaming it.")
    ] = False,
) -> None:
    """Measure accuracy, mAP or mean IoU on labeled images.

    The predictions are those of transformers' pipeline; label maps are compared at the size of the masks. An image
    that can't be read is reported and skipped; the exit code is then 1.

    To reproduce the paper: mobilevit evaluate apple/mobilevit-small imagenet-1k (78.4%); mobilevit evaluate
    apple/deeplabv3-mobilevit-small VOC2012 --split validation (mean IoU 79.1%), where VOC2012 contains
    ImageSets/Segmentation, JPEGImages and SegmentationClass; or mobilevit convert FILE OUT --labels coco and mobilevit
    evaluate OUT COCO, where COCO contains annotations/instances_val2017.json and val2017.
    """
    if save:
        save = user_path(save)
        check_report_folder(save)
    if not Path(model, "config.json").is_file() and Path(data, "config.json").is_file():
        raise ValueError(f"MODEL: got {model}, and the model {data} as DATA, expected the model first. Swap them.")
    folder = resolve_model(model)
    task = read_task(model, folder).name

    from ..data.reading import load_dataset, local_path
    from ..evaluation import evaluate_model, take_whole_images
    from ..evaluation.selection import check_problems, limit_samples, select_split, split_problems
    from ..pipelines import pipeline

    # Streaming a Hub dataset fetches only the evaluated split and keeps nothing on disk.
    dataset = load_dataset(
        data,
        # Without a task, boxes and labels take precedence over masks.
        task=task if TASKS[task].labels == "mask" else None,
        data_format=data_format,
        streaming=not (download or local_path(data)),
    )
    if dataset.task != task:
        raise ValueError(f"{data}: got data for {dataset.task}, expected {task}, the task of {model}.")
    name, samples = select_split(dataset, split)
    check_problems(split_problems(dataset, name), samples, max_bad)
    tune_allocator()
    predictor = pipeline(task, str(folder), device=console.pick_device(device), trust_remote_code=False)
    processor: Any = predictor.image_processor
    if task == "image-segmentation":
        processor, notes = take_whole_images(processor)
        dataset.notes += notes
    with console.show_progress() as progress:
        bar = progress.add_task("Evaluating")
        result = evaluate_model(
            predictor.model,
            processor,
            limit_samples(samples, limit),
            dataset.classes,
            batch_size=batch_size,
            max_bad=max_bad,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    skipped = split_problems(dataset, name)  # after the evaluation: a stream reports problems while it is read
    problems = [*skipped, *result.problems]
    if split is None and dataset.validation_cut_off:
        dataset.notes.append(f"Measured on the {result.num_images} images that training holds out. All: --split all.")
    for note in (*dataset.notes, *result.notes):
        console.log("note", note)
    content = {"model": model, "data": data, "split": name}
    content |= _to_json(dataclasses.replace(result, problems=problems))
    if as_json:
        console.print_json(content)
    else:
        for problem in problems:
            console.log(problem.kind, f"{problem.name}: {problem.reason}", color="red")
        _print_result(result, f"{model} on {data}, {name}: {result.num_images} images")
    if save:
        evaluated = limit_samples(select_split(dataset, split)[1], limit)  # a stream is read again
        page = _write_report(save, result, dataset, evaluated, content)
        if as_json:
            console.log("report", str(page), color="green")
        else:
            console.print_line(f"report: {page}")
    if problems:
        total = result.num_images + len(result.problems)
        unreadable = f"{len(result.problems)} of {total} images could not be read"
        invalid = f", {len(skipped)} skipped when the dataset was read" if skipped else ""
        console.log("warning", f"{unreadable}{invalid}.")
        raise typer.Exit(console.EXIT_UNREADABLE)


def _write_report(
    folder: Path, result: "EvaluationResult", dataset: "Dataset", samples: "Split", content: dict[str, Any]
) -> Path:
    """Write the report and `results.json`; return the path of the page."""
    from ..data.reading import local_path
    from ..hub.licenses import public_name
    from ..reports import count_classes, write_report

    def public(source: str, path: Path | None) -> str | None:
        return public_name(path) if path else source

    model, data = content["model"], content["data"]
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        page, *_ = write_report(
            folder,
            result,
            samples,
            title=public(model, local_path(model)) or "Model",
            split=content["split"],
            dataset=public(data, local_path(data)),
            counts=count_classes(dataset, result.classes),
            texts={RESULTS_FILE: console.format_json(content, indent=2) + "\n"},
        )
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return page


def _to_json(result: "EvaluationResult") -> dict[str, Any]:
    content = dataclasses.asdict(dataclasses.replace(result, predictions=[]))
    del content["predictions"]
    content["mistakes"] = [dataclasses.asdict(mistake) for mistake in result.mistakes]
    confusion = content.pop("confusion")
    if confusion is not None and len(confusion) <= MAX_CONFUSION:
        content["confusion"] = confusion.tolist()
    return content


def _print_result(result: "EvaluationResult", heading: str) -> None:
    console.print_line(heading, "bold")
    table = Table(box=None, padding=(0, 1), show_header=False)
    for name, metric in METRICS.items():
        if name in result.metrics:
            interval = result.intervals.get(name)
            ends = f"95% CI: {' to '.join(map(_format_percent, interval))}" if interval else ""
            table.add_row(metric.title, _format_percent(result.metrics[name]), ends)
    console.output.print(table)
    for name, threshold in (("recommended", result.recommended_threshold), ("best", result.best_threshold)):
        if threshold:
            values = (_format_percent(value) for value in (threshold.f1, threshold.precision, threshold.recall))
            text = "F1 {}, precision {}, recall {} (IoU 0.50, over all classes)".format(*values)
            console.print_line(f" {name} threshold {threshold.value:.3f}: {text}")
    if result.losses:
        console.print_line(" " + ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items()))
    console.print_line(f" {result.images_per_second:.1f} images/s")
    _print_classes(result)


def _print_classes(result: "EvaluationResult") -> None:
    """Print the metrics of each class, or of the `SHOWN_CLASSES` worst."""
    rows = result.metrics["per_class_metrics" if result.task == "object-detection" else "per_class"]
    if not rows:  # neither objects nor detections
        return
    key, columns = CLASS_SCORES[result.task], CLASS_COLUMNS[result.task]
    shown = list(rows.items())
    if len(shown) > SHOWN_CLASSES:
        shown = sorted(shown, key=lambda item: item[1][key])[:SHOWN_CLASSES]
        console.print_line(f" the {SHOWN_CLASSES} worst of {len(rows)} classes; --json prints all:")
    table = console.make_table("class", *columns.values())
    for name, row in shown:
        table.add_row(console.make_cell(name), *(_format_cell(column, row[column]) for column in columns))
    console.output.print(table)


def _format_cell(column: str, value: float) -> str:
    if column == "count_error":
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else _format_percent(value)


def _format_percent(value: float) -> str:
    return "-" if value < 0 else f"{value:.1%}"  # COCO's -1: no objects
