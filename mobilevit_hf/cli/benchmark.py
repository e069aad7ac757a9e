"""`mobilevit benchmark`: measure the speed and size of a model on each backend."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..backends.formats import BACKENDS, FORMATS, check_backend
from ..environment import describe_hardware
from ..model_sources import load_image_processor, read_task, resolve_model
from ..tasks import EXPORTABLE_TASKS, TaskName
from . import console
from .console import MEGABYTE
from .options import JsonOption, ModelArgument

if TYPE_CHECKING:
    from ..backends.benchmark import Setting, Timing

# `Timing.busy`
BUSY_NOTE = "* p95 is over 1.5 times the median: the machine was busy. Close other programs and measure again."


def benchmark(
    model: ModelArgument,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Backends to measure, comma-separated: {', '.join(BACKENDS)}; with a precision as in "
            "openvino:bfloat16 or litert:int8. Default: all that are installed, in float32.",
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="LIST", help="Batch sizes, comma-separated.")] = "1,8",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Image heights and widths in pixels, comma-separated. Default: the model's size."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of half a second per backend.")] = 10,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads per backend. Default: torch's number of threads.")
    ] = None,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write a chart of the throughput as PNG.")
    ] = None,
) -> None:
    """Measure the speed, memory and file size of a model.

    The network runs on random images, without image processing. Each backend runs in a process of its own; the
    processes take turns.
    """
    if plot:
        console.check_parent("--plot", plot)
    batches, sides = _parse_numbers("--batch", batch), _parse_numbers("--size", size) if size else []
    folder = resolve_model(model)
    from ..backends.benchmark import available_settings, count_macs, measure, parse_setting
    from ..backends.pytorch import load_model
    from ..backends.verify import preprocess, sample_images

    task = read_task(model, folder, EXPORTABLE_TASKS).name
    settings = [parse_setting(name) for name in (backends or "").split(",") if backends]
    if not backends:
        settings = available_settings(task, any_size=bool(sides))
        if left_out := [str(each) for each in available_settings(task) if each not in settings]:
            console.log("note", f"Without {', '.join(left_out)}, which take images of the model's size only.")
    _check_settings(settings, task, model)
    torch_model, _ = load_model(task, str(folder), {"trust_remote_code": False})
    if sides:
        sizes = [(side, side) for side in sides]
    else:
        processor = load_image_processor(folder, trust_remote_code=False)
        height, width = preprocess(sample_images(1), processor).shape[2:]
        sizes = [(height, width)]
    shapes = [(count, *each) for each in sizes for count in batches]
    metadata = {
        "model": model,
        "parameters": torch_model.num_parameters(),
        "macs": {f"{height}x{width}": count_macs(torch_model, height, width) for height, width in sizes},
        "machine": describe_hardware() | ({"threads": threads} if threads else {}),
    }
    with console.messages.status(f"Timing {', '.join(map(str, settings))}"):
        timings = list(measure(task, folder, settings, shapes, rounds, threads))
    if as_json:
        rows = [
            dataclasses.asdict(timing) | {"setting": str(timing.setting), "busy": timing.busy} for timing in timings
        ]
        console.print_json(metadata | {"timings": rows}, indent=2)
    else:
        _print_results(metadata, timings)
    if plot:
        _save_plot(metadata, timings, plot)


def _check_settings(settings: "Sequence[Setting]", task: TaskName, model: str) -> None:
    """Check what each backend supports, and download its exported file from the Hub."""
    for setting in settings:
        if setting.backend != "torch":
            check_backend(setting.backend, task, setting.dtype, setting.quantization)
            folder = resolve_model(model, folder=setting.backend)
            format = FORMATS[setting.backend]
            file = format.path(task, format.pipeline_interface, setting.dtype, setting.quantization)
            if setting.quantization and not (folder / file).is_file():
                raise ValueError(
                    f"{setting}: {model} has no {file}, expected one. Create it: mobilevit export MODEL MODEL --to "
                    f"{setting.backend} --quantization {setting.quantization} --calibration DATA"
                )


def _parse_numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"{option}: got {text!r}, expected positive numbers. Separate them by commas: 1,8")
    return [int(part) for part in parts]


def _save_plot(metadata: dict[str, Any], timings: "Sequence[Timing]", path: Path) -> None:
    from ..visualization import plots

    throughput: dict[str, dict[str, float]] = {}
    for timing in timings:
        backend, precision = timing.setting.backend, timing.setting.quantization or timing.setting.dtype
        name = f"{backend}, {precision}{' *' if timing.busy else ''}"
        throughput.setdefault(_case(timing), {})[name] = timing.images_per_second
    machine = metadata["machine"]
    subtitle = (
        f"{machine['cpu'] or machine['system']}, {machine['cores']} cores, {_count_threads(metadata)} per backend"
    )
    note = BUSY_NOTE if any(timing.busy for timing in timings) else ""
    title = console.printable(Path(metadata["model"]).name)
    plots.save_plot(plots.plot_speed(throughput, title=title, subtitle=subtitle, note=note), path)


def _count_threads(metadata: dict[str, Any]) -> str:
    threads = metadata["machine"]["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _case(timing: "Timing") -> str:
    return f"batch {timing.batch}, {timing.height}x{timing.width}"


def _print_results(metadata: dict[str, Any], timings: "Sequence[Timing]") -> None:
    table = Table("", "backend", box=None, padding=(0, 1))
    for title in ("p50 ms", "p95 ms", "images/s", "peak MiB", "file MB"):
        table.add_column(title, justify="right")
    previous = None
    for timing in timings:
        case = _case(timing)
        table.add_row(
            "" if case == previous else case,
            str(timing.setting),
            f"{timing.p50_ms:.2f}",
            f"{timing.p95_ms:.2f}{' *' if timing.busy else ''}",
            f"{timing.images_per_second:.1f}",
            f"{timing.peak_mib:.0f}",
            f"{timing.file_bytes / MEGABYTE:.1f}",
        )
        previous = case
    console.output.print(table)
    if any(timing.busy for timing in timings):
        console.print_line(BUSY_NOTE)
    console.print_line(f"{metadata['parameters']:,} parameters")
    for size, macs in metadata["macs"].items():
        console.print_line(
            f"{macs / 1e9:.2f} GMACs per {size} image (half of the FLOPs that torch's FlopCounterMode counts in "
            "convolutions and linear layers; attention products excluded)"
        )
    console.print_line(", ".join(f"{name}: {value}" for name, value in metadata["machine"].items()))
