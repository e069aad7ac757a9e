"""`mobilevit check-data`: count what is in a dataset and report invalid samples."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import console
from .options import DataArgument, DataFormatOption, JsonOption, TaskOption

if TYPE_CHECKING:
    from ..data.checks import DatasetReport, Range
    from ..data.types import Sample
    from ..tasks import TaskName
    from ..visualization import LabeledImage

GRID_IMAGES = 36
GRID_CANDIDATES = 10_000  # samples the grid's images are chosen from


def check_data(
    data: DataArgument,
    task: TaskOption = None,
    data_format: DataFormatOption = None,
    as_json: JsonOption = False,
    image_grid: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", dir_okay=False, help="Save a grid of labeled images of all classes."),
    ] = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of invalid samples above which training would abort.")
    ] = 0.05,
) -> None:
    """Check a dataset for invalid images and annotations.

    Counts classes, sizes, boxes and pixels of masks, and reports every invalid file. All images are decoded. The exit
    code is 1 if anything is invalid.
    """
    from ..data.checks import check_dataset, valid_splits
    from ..data.reading import load_dataset

    if image_grid:
        console.check_parent("--image-grid", image_grid)
    dataset = load_dataset(data, task=cast("TaskName | None", task and task.value), data_format=data_format)
    with console.show_progress() as progress:
        bar = progress.add_task("Checking images")
        report = check_dataset(dataset, progress=lambda done, total: progress.update(bar, completed=done, total=total))
    saved = None
    if image_grid:
        saved = _save_grid(next(iter(valid_splits(dataset, report).values()), []), report.classes, image_grid)
    if as_json:
        console.print_json({"path": data} | _to_json(report) | ({"image_grid": str(saved)} if saved else {}))
    else:
        _print_report(data, report)
        if saved:
            console.print_line(f"image grid → {saved}")
        if report.invalid_fraction > max_bad:
            console.print_line(
                f"Training would abort: more than {max_bad:.1%} are invalid. Fix them, or raise --max-bad to skip "
                "them.",
                "red",
            )
    if report.problems:
        raise typer.Exit(console.EXIT_UNREADABLE)


def _to_json(report: "DatasetReport") -> dict[str, Any]:
    def to_dict(values: "Range | None") -> dict[str, float] | None:
        return values and values._asdict()

    return {
        "task": report.task,
        "format": report.data_format,
        "splits": {
            name: {"samples": number, "classes": report.counts[name]} | _pixels_to_json(report, name)
            for name, number in report.num_samples.items()
        },
        "imbalance": report.imbalance,
        "widths": to_dict(report.widths),
        "heights": to_dict(report.heights),
        "box_sides": to_dict(report.box_sides),
        "boxes_per_image": to_dict(report.boxes_per_image),
        "notes": [*map(console.name_options, report.notes)],
        "bad": [{"name": p.name, "kind": p.kind, "reason": p.reason} for p in report.problems],
        "bad_by_kind": report.problem_counts,
        "bad_fraction": report.invalid_fraction,
    }


def _pixels_to_json(report: "DatasetReport", split: str) -> dict[str, Any]:
    """Return the pixels of masks: fractions by class of those with a class, and the number of the ignored ones."""
    if split not in report.ignored_pixels:
        return {}
    return {"fractions": report.class_fractions(split), "ignored_pixels": report.ignored_pixels[split]}


def _print_report(data: str, report: "DatasetReport") -> None:
    line = console.print_line
    line(f"{data}: {report.task}, {report.data_format}", "bold")
    table = console.make_table("class", *report.num_samples)
    fractions = {split: report.class_fractions(split) for split in report.ignored_pixels}
    for name in report.classes:
        counts = [
            f"{fractions[split][name]:.2%}" if fractions else str(report.counts[split][name])
            for split in report.num_samples
        ]
        table.add_row(console.make_cell(name), *counts)
    if fractions:
        table.add_row("ignored, of all pixels", *(f"{report.ignored_fraction(split):.2%}" for split in fractions))
    table.add_row("total images", *map(str, report.num_samples.values()), style="bold")
    console.output.print(table)
    if report.imbalance:
        line(f"largest class / smallest class: {report.imbalance:.1f}")
    if report.widths and report.heights:
        line(f"width: {_format_range(report.widths, ' px')}, height: {_format_range(report.heights, ' px')}")
    if report.boxes_per_image:
        line(f"boxes per image: {_format_range(report.boxes_per_image)}")
    if report.box_sides:
        line(f"relative box size (√(box area / image area)): {_format_range(report.box_sides, number_format='.1%')}")
    for note in report.notes:
        line(f"note: {console.name_options(note)}")
    for kind, number in report.problem_counts.items():
        line(f"{kind}: {number}", "bold red")
        for problem in report.problems:
            if problem.kind == kind:
                line(f"  {problem.name}: {problem.reason}")
    if report.invalid_fraction:
        line(f"{report.invalid_fraction:.1%} of the samples are invalid.", "yellow")


def _format_range(values: Sequence[float], unit: str = "", number_format: str = ".4g") -> str:
    smallest, median, largest = (format(value, number_format) for value in values)
    return f"{smallest} to {largest}{unit} (median {median})"


def _save_grid(samples: "Iterable[Sample]", classes: Sequence[str], file: Path) -> Path | None:
    from ..visualization import draw_image_grid, save_image

    chosen = _choose_by_class(samples) if isinstance(samples, Sequence) else list(islice(samples, GRID_IMAGES))
    if not chosen:
        console.log("note", "No valid image for the image grid.")
        return None
    grid = draw_image_grid((_to_tile(sample, classes) for sample in chosen), classes)
    return save_image(grid, file.parent, file.name)


def _choose_by_class(samples: "Sequence[Sample]") -> "list[Sample]":
    """Return up to `GRID_IMAGES` samples, taken from the classes in turn; with masks, evenly spaced."""
    if samples and samples[0].mask:
        return [samples[index] for index in range(0, len(samples), -(-len(samples) // GRID_IMAGES))]
    by_class = defaultdict(list)
    for index in range(0, len(samples), 1 + len(samples) // GRID_CANDIDATES):
        sample = samples[index]
        labels = [sample.label] if sample.objects is None else sample.objects.labels[:1].tolist()
        by_class[*labels].append(index)
    turns = chain.from_iterable(zip_longest(*by_class.values()))
    return [samples[index] for index in islice((index for index in turns if index is not None), GRID_IMAGES)]


def _to_tile(sample: "Sample", classes: Sequence[str]) -> "LabeledImage":
    from ..data.images import load_image
    from ..visualization import LabeledImage

    image, objects = load_image(sample.image), sample.objects
    if sample.mask:
        names = [classes[label] for label in sample.mask.labels()]
        return LabeledImage(image, sample.name, names, label_map=sample.mask.read())
    if objects is None:
        return LabeledImage(image, sample.name, [classes[sample.label]] if sample.label is not None else [])
    return LabeledImage(image, sample.name, [classes[label] for label in objects.labels.tolist()], objects.boxes)
