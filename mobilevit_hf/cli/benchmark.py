"""`mobilevit benchmark`: how fast a model is on each engine, and how large."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from transformers import AutoImageProcessor

from ..backends.benchmark import (
    Timing,
    count_macs,
    count_parameters,
    measure,
    parse_setting,
    possible_settings,
)
from ..backends.formats import check_request
from ..backends.verify import draw_images, prepare
from ..environment import describe_hardware
from ..model_sources import read_task, resolve_model
from ..pipelines import load_model
from ..tasks import EXPORTABLE_TASKS
from . import console
from .cache import MEGABYTE


def benchmark(
    model: Annotated[str, typer.Argument(help="Directory, built-in name or Hub id.")],
    backends: Annotated[
        str | None,
        typer.Option(
            help="With commas: torch, onnx, openvino, executorch; openvino:bfloat16 and openvino:int8 for less than "
            "float32. Default: all that are installed, in float32."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images in a call, with commas.")] = "1,8",
    size: Annotated[
        str | None, typer.Option(help="Side of the images in pixels, with commas. Default: the model's own.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of half a second for each engine.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each engine. Default: by the machine.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="A chart, as PNG.")] = None,
) -> None:
    """Time a model on each engine.

    Random images go in, the network's outputs come out. Each engine has a process of its own, and they take turns.
    """
    if plot and not plot.parent.is_dir():
        raise ValueError(f"--plot: there is no folder {plot.parent}. Make it, or name another.")
    folder = resolve_model(model)
    task = read_task(model, folder, EXPORTABLE_TASKS).name
    settings = [parse_setting(name) for name in backends.split(",")] if backends else possible_settings(task)
    for setting in settings:
        if setting.backend != "torch":
            check_request(setting.backend, task, setting.dtype, setting.quantization)
            resolve_model(model, folder=setting.backend)  # a Hub model's ready files
    loaded, _ = load_model(task, str(folder), {"trust_remote_code": False})
    if size is None:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        sizes = [tuple(prepare(draw_images(1), processor).shape[2:])]
    else:
        sizes = [(side, side) for side in _numbers("--size", size)]
    shapes = [(count, *sides) for sides in sizes for count in _numbers("--batch", batch)]
    facts = {
        "model": model,
        "parameters": count_parameters(loaded),
        "macs": {f"{height}x{width}": count_macs(loaded, height, width) for height, width in sizes},
        "machine": describe_hardware(),
    }
    with console.messages.status(f"Timing {', '.join(map(str, settings))}"):
        timings = list(measure(task, folder, settings, shapes, rounds, threads))
    if as_json:
        rows = [dataclasses.asdict(timing) | {"setting": str(timing.setting)} for timing in timings]
        typer.echo(json.dumps(facts | {"timings": rows}, indent=2))
    else:
        _show(facts, timings)
    if plot:
        _plot(timings, plot)


def _numbers(option: str, text: str) -> list[int]:
    """Positive numbers with commas between them."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"{option}: got {text!r}, expected positive numbers with commas between them, such as 1,8.")
    return [int(part) for part in parts]


def _plot(timings: Sequence[Timing], path: Path) -> None:
    from ..visualization import plots  # which takes longer to import than most commands need

    speeds: dict[str, dict[str, float]] = {}
    for timing in timings:
        speeds.setdefault(_case(timing), {})[str(timing.setting)] = timing.images_per_second
    plots.save_plot(plots.plot_speed(speeds), path)


def _case(timing: Timing) -> str:
    return f"batch {timing.batch}, {timing.height}x{timing.width}"


def _show(facts: dict[str, Any], timings: Sequence[Timing]) -> None:
    table = Table(box=None, padding=(0, 1))
    for title in ("", "engine"):
        table.add_column(title, no_wrap=True)
    for title in ("p50 ms", "p95 ms", "images/s", "peak MiB", "file MB"):
        table.add_column(title, justify="right")
    before = None
    for timing in timings:
        numbers = (
            f"{timing.p50_ms:.2f}",
            f"{timing.p95_ms:.2f}",
            f"{timing.images_per_second:.1f}",
            f"{timing.peak_mib:.0f}",
            f"{timing.file_bytes / MEGABYTE:.1f}",
        )
        case = _case(timing)
        table.add_row("" if case == before else case, str(timing.setting), *numbers)
        before = case
    console.output.print(table)
    say = console.output.print
    say(f"{facts['parameters']:,} parameters", highlight=False)
    for size, macs in facts["macs"].items():
        say(
            f"{macs / 1e9:.2f} G multiply-accumulates for an image of {size} (convolutions and linear layers)",
            highlight=False,
            soft_wrap=True,
        )
    say(", ".join(f"{name}: {value}" for name, value in facts["machine"].items()), highlight=False, soft_wrap=True)
