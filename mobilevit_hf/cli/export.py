"""`mobilevit export`: a model as a file for other engines."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from torch import Tensor
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from ..backends import cache
from ..backends.export import make_openvino, program_bytes, program_files, remove_program, save_openvino
from ..backends.formats import FORMATS, check_request
from ..backends.loader import check_pixels, export_checked
from ..backends.runtime import load_program
from ..backends.verify import LATENCY_BATCHES, TIE, compare, measure_latency
from ..environment import describe_hardware
from ..io import SCRATCH, put_in_place
from ..model_sources import has_weights, read_task, resolve_model
from ..pipelines import load_model
from ..tasks import EXPORTABLE_TASKS
from . import console
from .cache import MEGABYTE
from .predict import Dtype, Quantization

if TYPE_CHECKING:
    from ..backends.quantization import CalibrationImages

Backend = StrEnum("Backend", {name: name for name in FORMATS})

# What an app reads beside the program.
CONFIG_FILES = ("config.json", "preprocessor_config.json")


def export(
    model: Annotated[str, typer.Argument(help="Directory, built-in name or Hub id.")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="The folder to write, or the model's own.")],
    to: Annotated[list[Backend], typer.Option(help="For which engines, such as --to onnx openvino.")],
    more: Annotated[list[Backend] | None, typer.Argument(hidden=True)] = None,
    dtype: Annotated[Dtype, typer.Option(help="What the engine computes in.")] = Dtype.float32,
    quantization: Annotated[Quantization | None, typer.Option(help="Smaller and faster; needs --calibration.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images like those it will see, to check on and to quantize with."),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="How much of its accuracy quantization may cost.")
    ] = 1.0,
) -> None:
    """Export a model to ONNX, OpenVINO, ExecuTorch or Core ML.

    Each file is checked against the model: a program that answers otherwise than the model is not kept. What was
    measured goes to export.json.
    """
    if quantization and not calibration:
        raise ValueError("--quantization: got no images to do it with. Say where some are: --calibration DATA")
    names = [str(backend) for backend in dict.fromkeys([*to, *(more or [])])]
    folder = resolve_model(model)
    task = read_task(model, folder, EXPORTABLE_TASKS).name
    for name in names:
        check_request(name, task, str(dtype), quantization and str(quantization))
    loaded, _ = load_model(task, str(folder), {"trust_remote_code": False})
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    images = _read_images(calibration, task, processor) if calibration else None
    job = Export(loaded, task, processor, str(dtype), check_pixels(task, processor), images, folder, out)
    entries: list[dict[str, Any]] = []
    try:
        for name in names:
            with console.messages.status(f"Exporting for {FORMATS[name].title}"):
                entries.append(job.quantize(name, max_drop) if quantization else job.run(name))
    finally:
        if entries:
            console.output.print(_table(entries))
    console.output.print(str(out), soft_wrap=True, highlight=False, markup=False)


def _read_images(source: str, task: str, processor: BaseImageProcessor) -> "CalibrationImages":
    """The user's own; those that can't be read are named."""
    from ..backends.quantization import read_images

    images = read_images(source, task, processor)
    for problem in images.problems:
        console.say("unreadable", f"{problem.name}: {problem.reason}", color="red")
    return images


@dataclass
class Export:
    """What is the same for all files of one export."""

    model: PreTrainedModel
    task: str
    processor: BaseImageProcessor
    dtype: str
    pixels: Tensor
    images: "CalibrationImages | None"
    folder: Path
    out: Path

    def run(self, backend: str) -> dict[str, Any]:
        """Write a file, put down what was measured, and return that."""
        file = FORMATS[backend].path(self.dtype, None)
        with _scratch_for(self.out / file) as path:
            # On real images a model is sure: nothing counts as a tie.
            pixels, tie = (self.images.calibration, 0.0) if self.images else (self.pixels, TIE)
            found = export_checked(self.model, self.task, self.processor, backend, path, pixels, self.dtype, tie)
            measured = {**found._asdict(), **self._measure(path, backend)} if found else {"verified": False}
            return self._record(path, backend, None, measured)

    def quantize(self, backend: str, max_drop: float) -> dict[str, Any]:
        """Like `run`, for an int8 file that is worth its model's accuracy."""
        from ..backends.quantization import check_drop, measure_drop, quantize_openvino

        images = self.images
        full = make_openvino(self.model, self.task, self.pixels)
        program = quantize_openvino(full, (batch.numpy() for batch in images.calibration.split(1)))
        with _scratch_for(self.out / FORMATS[backend].path(self.dtype, "int8")) as path:
            save_openvino(program, path, self.dtype)
            runner = load_program(path, self.model.config, self.task, backend, None)
            drop = measure_drop(self.model, runner, self.task, self.processor, images)
            check_drop(drop, max_drop)
            found = compare(self.model, runner, images.calibration, self.task, self.processor)
            measured = {**found._asdict(), "drop": drop._asdict(), **self._measure(path, backend)}
            return self._record(path, backend, "int8", measured)

    def _measure(self, path: Path, backend: str) -> dict[str, Any]:
        program = load_program(path, self.model.config, self.task, backend, None)
        return {"latency_ms": measure_latency(program, self.pixels)}

    def _record(self, path: Path, backend: str, quantization: str | None, measured: dict[str, Any]) -> dict[str, Any]:
        file = FORMATS[backend].path(self.dtype, quantization)
        entry = {
            "backend": backend,
            "dtype": self.dtype,
            "quantization": quantization,
            "file": file,
            "bytes": program_bytes(path),
            **measured,
            "size": list(self.pixels.shape[2:]),
            "weights": cache.weights_hash(self.model),
            "versions": cache.versions(FORMATS[backend]),
            "machine": describe_hardware(),
        }
        # A folder is one model's: what was made of other weights is forgotten.
        others = cache.read_record(self.out / cache.RECORD)
        kept = [other for other in others if other.get("file") != file and other.get("weights") == entry["weights"]]
        with put_in_place(self.out) as scratch:
            (scratch / cache.RECORD).write_text(json.dumps([*kept, entry], indent=2) + "\n")
            for name in CONFIG_FILES:
                is_theirs = has_weights(self.out) and (self.out / name).exists()
                if (self.folder / name).is_file() and not is_theirs:
                    shutil.copyfile(self.folder / name, scratch / name)
        return entry


@contextmanager
def _scratch_for(file: Path) -> Iterator[Path]:
    """Where to write a program that is moved to its place once it is whole and checked; otherwise nothing is left."""
    made = [folder for folder in file.parents if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=file.parent) as scratch:
            path = Path(scratch) / file.name
            yield path
            remove_program(file)
            for part in program_files(path):
                part.rename(file.parent / part.name)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # something else is in it
                folder.rmdir()
        raise


def _table(entries: list[dict[str, Any]]) -> Table:
    """What was measured of each file; what could not be is left empty."""
    table = Table("file", "MB", "largest error", "agreement", box=None, padding=(0, 1))
    table.columns[0].overflow = "fold"
    for batch in LATENCY_BATCHES:
        table.add_column(f"ms, batch {batch}", justify="right")
    for entry in entries:
        latency = entry.get("latency_ms", {})
        table.add_row(
            entry["file"],
            f"{entry['bytes'] / MEGABYTE:.1f}",
            f"{entry['max_error']:.1g}" if "max_error" in entry else "not run here",
            f"{entry['agreement']:.1%}" if "agreement" in entry else "",
            *(f"{latency[batch]:.1f}" if latency else "" for batch in LATENCY_BATCHES),
        )
    return table
