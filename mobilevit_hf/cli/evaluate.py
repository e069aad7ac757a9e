"""`mobilevit evaluate`: how good a model is on images whose answers are known."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from transformers import Pipeline

from ..allocator import tune_allocator
from ..data.formats.samples import Joined
from ..data.reading import DATA_FORMATS, load_dataset, local_path
from ..data.types import Dataset, Problem, Sample
from ..evaluation import BATCH_SIZE, EvaluationResult, evaluate_model
from ..model_sources import read_task, resolve_model
from ..pipelines import pipeline
from . import console

# Which split is measured if none is asked for, and what stands for all of them together.
SPLITS = ("validation", "test", "train")
ALL = "all"

# How many classes the table has room for.
SHOWN_CLASSES = 20

# Of how many classes --json has the confusion matrix.
MAX_CONFUSION = 100

TITLES = {
    "accuracy": "accuracy",
    "top_5_accuracy": "top-5 accuracy",
    "macro_f1": "macro F1",
    "map": "mAP",
    "map_50": "mAP at IoU 0.50",
    "map_75": "mAP at IoU 0.75",
    "map_small": "mAP, small",
    "map_medium": "mAP, medium",
    "map_large": "mAP, large",
    "mar_100": "recall, 100 boxes",
}


def evaluate(
    model: Annotated[str, typer.Argument(help="Directory, built-in name or Hub id.")],
    data: Annotated[str, typer.Argument(help="The dataset: a folder or file, or a Hub id.")],
    split: Annotated[
        str | None, typer.Option(help=f"Which part of the data, or {ALL}. Default: the first of {', '.join(SPLITS)}.")
    ] = None,
    data_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help=f"{', '.join(DATA_FORMATS)}. Default: found out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="How many images run together.")] = BATCH_SIZE,
    device: Annotated[console.Device, typer.Option(help="Where to run.")] = console.Device.auto,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of bad images above which it stops.")] = 0.05,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many images, from all over the split; of a stream the first.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download a Hub dataset whole, and keep it, instead of streaming it.")
    ] = False,
) -> None:
    """Measure accuracy, or a detector's mean average precision.

    What is measured is what predict and transformers' pipeline answer. An image that can't be read is named with the
    reason, the others are measured, and the exit code is 1.

    The paper's figures: mobilevit evaluate apple/mobilevit-small imagenet-1k gives its accuracy on ImageNet (78.4 %);
    mobilevit convert FILE OUT --labels coco, then mobilevit evaluate OUT COCO, the mAP of an official detector, where
    COCO is a folder with annotations/instances_val2017.json and val2017.
    """
    folder = resolve_model(model)
    task = read_task(model, folder).name
    dataset = _load(data, data_format, download)
    if dataset.task != task:
        raise ValueError(f"{data} is for {dataset.task}, and {model} does {task}. Pass a model and data for one task.")
    name, samples = _pick_split(dataset, split, data)
    _check_share(_problems_of(dataset, name), samples, max_bad)
    predictor = _load_predictor(task, folder, device)
    with console.show_progress(disable=False) as progress:
        bar = progress.add_task("Looking at images")
        result = evaluate_model(
            predictor.model,
            predictor.image_processor,
            _spread(samples, limit),
            dataset.classes,
            batch_size=batch_size,
            max_bad=max_bad,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    damaged = _problems_of(dataset, name)  # those of a stream come as it is read
    problems = [*damaged, *result.problems]
    for note in (*dataset.notes, *result.notes):
        console.say("note", note)
    if as_json:
        heading = {"model": model, "data": data, "split": name}
        print(json.dumps(heading | _to_json(dataclasses.replace(result, problems=problems))))
    else:
        for problem in problems:
            console.say(problem.kind, f"{problem.name}: {problem.reason}", color="red")
        _show(result, f"{model} on {data}, {name}: {result.num_images} images")
    if problems:
        total = result.num_images + len(result.problems)
        unreadable = f"{len(result.problems)} of {total} could not be read"
        left_out = f", {len(damaged)} left out when the data was read" if damaged else ""
        console.messages.print(f"[yellow]{unreadable}{left_out}.[/]", highlight=False)
        raise typer.Exit(console.EXIT_UNREADABLE)


def _load(data: str, data_format: str | None, download: bool) -> Dataset:
    """Of a Hub dataset that is streamed only the split is fetched that is measured, and nothing is kept on disk."""
    return load_dataset(data, data_format=data_format, streaming=not (download or local_path(data)))


def _pick_split(dataset: Dataset, wanted: str | None, data: str) -> tuple[str, Sequence[Sample] | Iterable[Sample]]:
    """The split's name and its samples.

    Raises:
        ValueError: If there is no such split.
    """
    splits = dataset.splits
    name = wanted or next((name for name in SPLITS if name in splits), "")
    if name == ALL:
        sized = all(isinstance(part, Sequence) for part in splits.values())
        return ALL, Joined(tuple(splits.values())) if sized else chain(*splits.values())
    if name not in splits:
        raise ValueError(f"--split: got {name}, expected one that {data} has: {', '.join([*splits, ALL])}.")
    return name, splits[name]


def _problems_of(dataset: Dataset, split: str) -> list[Problem]:
    """What was found wrong with a split when it was read; an image that is in no split may have been in this one."""
    elsewhere = {
        sample.name
        for name, samples in dataset.splits.items()
        if dataset.problems and split not in (name, ALL) and isinstance(samples, Sequence)
        for sample in samples
    }
    return [problem for problem in dataset.problems if problem.name not in elsewhere]


def _check_share(problems: Sequence[Problem], samples: Sequence[Sample] | Iterable[Sample], max_bad: float) -> None:
    """That not too much of a split fell away when it was read; of a stream nobody knows."""
    if not problems or not isinstance(samples, Sequence):
        return
    bad = {problem.name: problem for problem in problems if problem.is_bad}
    total = len(bad.keys() | {sample.name for sample in samples})
    if len(bad) > max_bad * total:
        name, first = next(iter(bad.items()))
        raise ValueError(
            f"{len(bad)} of {total} samples are bad, more than {max_bad:.0%}, such as {name}: {first.kind}, "
            f"{first.reason}. mobilevit check-data names all; mend them, or raise --max-bad."
        )


def _spread(samples: Sequence[Sample] | Iterable[Sample], limit: int | None) -> Sequence[Sample] | Iterable[Sample]:
    """So many of the samples. Folders are sorted by class: the first would be of the first classes only."""
    if limit is None:
        return samples
    if not isinstance(samples, Sequence):
        return islice(samples, limit)
    count = min(limit, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _load_predictor(task: str, folder: Path, device: console.Device) -> Pipeline:
    """Code in a checkpoint never runs."""
    tune_allocator()
    return pipeline(task, str(folder), device=console.pick_device(device), trust_remote_code=False)


def _to_json(result: EvaluationResult) -> dict[str, Any]:
    """The confusion matrix of many classes is left out."""
    content = dataclasses.asdict(result)
    confusion = content.pop("confusion")
    if confusion is not None and len(confusion) <= MAX_CONFUSION:
        content["confusion"] = confusion.tolist()
    return content


def _show(result: EvaluationResult, heading: str) -> None:
    console.output.print(f"[bold]{escape(console.printable(heading))}[/]", soft_wrap=True, highlight=False)
    table = Table(box=None, padding=(0, 1), show_header=False)
    for name, title in TITLES.items():
        if name in result.metrics:
            ends = result.intervals.get(name)
            table.add_row(
                title, _percent(result.metrics[name]), f"95 %: {' to '.join(map(_percent, ends))}" if ends else ""
            )
    console.output.print(table)
    best = result.best_threshold
    if best:
        console.output.print(
            f" best threshold {best.value:.3f}: F1 {_percent(best.f1)}, precision {_percent(best.precision)}, "
            f"recall {_percent(best.recall)} (IoU 0.50, all classes together)",
            soft_wrap=True,
            highlight=False,
        )
    console.output.print(f" {result.images_per_second:.1f} images a second", highlight=False)
    _show_classes(result)


def _show_classes(result: EvaluationResult) -> None:
    """A row for each class; of many the worst."""
    rows = {name: row if isinstance(row, dict) else {"map": row} for name, row in result.metrics["per_class"].items()}
    if not rows:  # a detector found nothing where nothing is
        return
    key = "map" if result.task == "object-detection" else "f1"
    shown = list(rows.items())
    if len(shown) > SHOWN_CLASSES:
        shown = sorted(shown, key=lambda item: item[1][key])[:SHOWN_CLASSES]
        console.output.print(f" the {SHOWN_CLASSES} worst of {len(rows)} classes; --json has all:", highlight=False)
    table = Table(box=None, padding=(0, 1))
    table.add_column("class", overflow="fold", min_width=20)
    columns = list(shown[0][1])
    for column in columns:
        table.add_column({"f1": "F1", "map": "mAP", "support": "images"}.get(column, column), justify="right")
    for name, row in shown:
        table.add_row(escape(console.printable(name)), *map(_cell, row.values()))
    console.output.print(table)


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, int) else _percent(value)


def _percent(value: float) -> str:
    """COCO's -1 stands for nothing to find."""
    return "-" if value < 0 else f"{value:.1%}"
