"""`mobilevit export`: export a model for other runtimes."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.formats import FORMATS
from ..backends.interfaces import DESCRIPTIONS
from ..model_sources import resolve_model
from . import console
from .console import MEGABYTE
from .options import Dtype, ExportFormat, FileInterface, ModelArgument, Quantization

if TYPE_CHECKING:
    from rich.table import Table

    from ..backends.export import Step
    from ..records import ExportRecord


def export(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", file_okay=False, help="Output directory; may be the model's own.")
    ],
    to: Annotated[
        list[ExportFormat],
        typer.Option(
            help="Formats, such as --to onnx litert. "
            + " ".join(f"{name}: {format.purpose}." for name, format in FORMATS.items())
            + " all: those that are installed and support the model.",
        ),
    ],
    more: Annotated[list[ExportFormat] | None, typer.Argument(metavar="TO", hidden=True)] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Compute dtype of the exported model; auto: float32, and also bfloat16 if that is verified with "
            "--calibration and the processor supports it."
        ),
    ] = Dtype.auto,
    quantization: Annotated[
        Quantization | None,
        typer.Option(help="Quantize weights and, except in onnx, activations; requires --calibration."),
    ] = None,
    interface: Annotated[
        FileInterface | None,
        typer.Option(
            help="What a file takes and returns. image: the image as uint8 RGB, predictions; tensors: output of "
            "the image processor, output of the model; transformers.js: for that library, in onnx. Default: image for "
            "litert and coreml, image and transformers.js for detectors and segmentation models in onnx, else tensors."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Dataset or folder of images for verification and quantization; no labels needed."
        ),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, metavar="POINTS", help="Maximum accuracy drop by quantization, in percentage points."),
    ] = 1.0,
) -> None:
    """Export a model for phones, browsers and other runtimes.

    Each exported file is compared with the model and kept only if the predictions agree. Size, error and latency are
    written to export.json in the output directory.
    """
    resolve_model(model)
    records: list[ExportRecord] = []
    backends = [str(backend) for backend in (*to, *(more or []))]
    try:
        with _show_steps() as on_step:
            from ..backends.export import export_model  # takes seconds: after the model is found

            export_model(
                model,
                out,
                backends,
                dtype=str(dtype),
                quantization=quantization and str(quantization),
                interface=interface and str(interface),
                calibration=calibration,
                max_drop=max_drop,
                log=partial(console.log, "unreadable", color="red"),
                progress=records.append,
                note=partial(console.log, "note"),
                on_step=on_step,
            )
    finally:
        if records:  # also those that were written before an error
            console.output.print(_table(records))
            for record in records:
                console.print_line(f"{record.file}: {_describe(record)}")
    console.print_line(str(out))


@contextlib.contextmanager
def _show_steps() -> "Generator[Callable[[Step], None]]":
    """Yield a function that shows a step and the remaining time: as a bar on a terminal, else as a line."""
    start = time.monotonic()
    with console.show_progress() as progress:
        task = progress.add_task("load", total=None)

        def show(step: "Step") -> None:
            remaining = (time.monotonic() - start) * (1 - step.fraction) / step.fraction if step.fraction else None
            eta = "" if remaining is None else f", about {remaining:.0f} s left"
            text = f"{step.file}: {step.name}" if step.file else step.name
            progress.update(task, description=f"{text}{eta}", completed=step.fraction, total=1)
            if progress.disable:
                console.log("export", f"step {step.number} of {step.total}, {text}{eta}", color="green")

        yield show


def _describe(record: "ExportRecord") -> str:
    """Return what a file is for."""
    title, purpose = FORMATS[record.backend].title, FORMATS[record.backend].purpose
    return f"{title}, for {purpose}; {DESCRIPTIONS[record.interface]}"


def _table(records: "Sequence[ExportRecord]") -> "Table":
    from ..backends.verify import LATENCY_BATCH_SIZES

    latencies = (f"ms, batch {batch_size}" for batch_size in LATENCY_BATCH_SIZES)
    table = console.make_table("file", "MB", "max error", "agreement", *latencies)
    for record in records:
        latency = record.latency_ms or {}
        table.add_row(
            record.file,
            "" if record.bytes is None else f"{record.bytes / MEGABYTE:.1f}",
            "not verified" if record.max_error is None else f"{record.max_error:.1g}",
            "" if record.agreement is None else f"{record.agreement:.1%}",
            *(f"{latency[str(batch_size)]:.1f}" if latency else "" for batch_size in LATENCY_BATCH_SIZES),
        )
    return table
