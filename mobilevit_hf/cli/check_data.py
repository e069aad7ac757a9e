"""`mobilevit check-data`: what is in a dataset, and what is wrong with it."""

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..data.checks import DatasetReport, Range, check_dataset, good_splits
from ..data.images import load_image
from ..data.reading import DATA_FORMATS, load_dataset
from ..data.types import Sample
from ..visualization import draw_image_grid, save_image
from . import console

# So many images a sheet shows, and so many samples of a split it picks them from.
SHEET_IMAGES = 36
SHEET_CANDIDATES = 10_000


def check_data(
    path: Annotated[str, typer.Argument(help="The dataset: a folder or file, or a Hub id.")],
    data_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help=f"{', '.join(DATA_FORMATS)}. Default: found out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", dir_okay=False, help="Draw samples of all classes, in FILE.png.")
    ] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of bad samples above which training stops.")] = (
        0.05
    ),
) -> None:
    """Say what is in a dataset, and name every bad file in it.

    Every image is decoded. The exit code is 1 if anything is bad.
    """
    dataset = load_dataset(path, data_format=data_format)
    with console.show_progress(disable=False) as progress:
        bar = progress.add_task("Looking at images")
        report = check_dataset(dataset, progress=lambda done, total: progress.update(bar, completed=done, total=total))
    saved = _save_sheet(next(iter(good_splits(dataset, report).values()), []), report, sheet) if sheet else None
    if as_json:
        print(json.dumps({"path": path} | _as_json(report) | ({"sheet": str(saved)} if saved else {})))
    else:
        _show(path, report)
        if saved:
            _line(f"sheet → {saved}")
        if report.bad_share > max_bad:
            _line(f"Training would stop: more than {max_bad:.1%} are bad.", "red")
    if report.problems:
        raise typer.Exit(console.EXIT_UNREADABLE)


def _as_json(report: DatasetReport) -> dict[str, Any]:
    def spread(values: Range | None) -> dict[str, float] | None:
        return values and values._asdict()

    return {
        "task": report.task,
        "format": report.data_format,
        "splits": {
            name: {"samples": number, "classes": report.counts[name]} for name, number in report.samples.items()
        },
        "imbalance": report.imbalance,
        "widths": spread(report.widths),
        "heights": spread(report.heights),
        "box_sides": spread(report.box_sides),
        "boxes_per_image": spread(report.boxes_per_image),
        "notes": report.notes,
        "bad": [{"name": p.name, "kind": p.kind, "reason": p.reason} for p in report.problems],
        "bad_by_kind": report.problem_counts,
        "bad_share": report.bad_share,
    }


def _show(path: str, report: DatasetReport) -> None:
    _line(f"{path}: {report.task}, {report.data_format}", "bold")
    table = Table(box=None, padding=(0, 1))
    table.add_column("class", overflow="fold")
    for split in report.samples:
        table.add_column(Text(split), justify="right")
    for name in report.classes:
        table.add_row(_text(name), *(str(report.counts[split][name]) for split in report.samples))
    table.add_row("images", *map(str, report.samples.values()), style="bold")
    console.output.print(table)
    if report.imbalance:
        _line(f"largest class / smallest: {report.imbalance:.1f}")
    if report.widths and report.heights:
        _line(f"width: {_spread(report.widths, ' px')}, height: {_spread(report.heights, ' px')}")
    if report.boxes_per_image:
        _line(f"boxes an image: {_spread(report.boxes_per_image)}")
    if report.box_sides:
        percents = Range(*(100 * side for side in report.box_sides))
        _line(f"√(box area / image area): {_spread(percents, ' %')}")
    for note in report.notes:
        _line(f"note: {note}")
    for kind, number in report.problem_counts.items():
        _line(f"{kind}: {number}", "bold red")
        for problem in report.problems:
            if problem.kind == kind:
                _line(f"  {problem.name}: {problem.reason}")
    if report.problems:
        _line(f"{report.bad_share:.1%} of the samples are bad.", "yellow")


def _spread(values: Range, unit: str = "") -> str:
    return f"{values.min:.4g} to {values.max:.4g}{unit} (median {values.median:.4g})"


def _text(text: str, style: str = "") -> Text:
    """Text that holds no markup and no emoji codes, whatever a file's name looks like."""
    return Text(console.printable(text), style)


def _line(text: str, style: str = "") -> None:
    console.output.print(_text(text, style), soft_wrap=True)


def _save_sheet(split: Sequence[Sample], report: DatasetReport, file: Path) -> Path | None:
    picked = _pick(split)
    if not picked:
        console.say("note", "no image for the sheet")
        return None
    sheet = draw_image_grid((_annotated(sample, report.classes) for sample in picked), report.classes)
    file.parent.mkdir(parents=True, exist_ok=True)
    return save_image(sheet, file.parent, file.name)


def _pick(split: Sequence[Sample]) -> list[Sample]:
    """Samples of all classes in turn, as far as there is room for them."""
    by_class = defaultdict(list)
    for place in range(0, len(split), 1 + len(split) // SHEET_CANDIDATES):
        sample = split[place]
        labels = [sample.label] if sample.objects is None else sample.objects.labels[:1].tolist()
        by_class[*labels].append(place)
    turns = chain.from_iterable(zip_longest(*by_class.values()))
    return [split[place] for place in islice((place for place in turns if place is not None), SHEET_IMAGES)]


def _annotated(sample: Sample, classes: Sequence[str]) -> tuple[Image.Image, list[str], Tensor | None]:
    if sample.objects is None:
        return load_image(sample.image), [classes[sample.label]], None
    labels = [classes[label] for label in sample.objects.labels.tolist()]
    return load_image(sample.image), labels, sample.objects.boxes
