"""The description of an export format, the interface of a runtime, and the files of an exported model.

Importing this module, the format modules and their table does not import torch: command-line options list the formats.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..io import TEMP_PREFIX
from ..tasks import TaskName

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

# Name of the input tensor in exported files.
INPUT_NAME = "pixel_values"
# File name suffixes by precision; those of transformers.js where it defines one.
SUFFIXES = {"float32": "", "bfloat16": "_bf16", "float16": "_fp16", "int8": "_int8"}


class Runtime(Protocol):
    """Runs an exported file on the CPU; may be called from several threads at once."""

    def __init__(self, path: Path, threads: int) -> None: ...

    def __call__(self, pixels: "np.ndarray") -> "list[np.ndarray]":
        """Return the outputs for (B, 3, H, W) float32 pixels as arrays that later calls do not overwrite."""
        ...


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        title: Name of the runtime.
        packages: Packages that export and inference require.
        file: Path relative to the model directory, with `{suffix}` for the precision.
        dtypes: Supported compute dtypes.
        tasks: Tasks that can be exported.
        write: Writes the file of a model: (model, task, path, pixels, dtype), as in `export.export_file`.
        runtime: Class that runs the file; None for an export-only format.
        dynamic_shapes: Whether one file takes any batch and image size.
        quantizations: Supported quantizations.
    """

    title: str
    packages: tuple[str, ...]
    file: str
    dtypes: tuple[str, ...]
    tasks: tuple[TaskName, ...]
    write: "Callable[[nn.Module, TaskName, Path, Tensor, str], None]"
    runtime: type[Runtime] | None = None
    dynamic_shapes: bool = False
    quantizations: tuple[str, ...] = ()

    def path(self, dtype: str, quantization: str | None) -> str:
        """Return the file's path relative to the model directory."""
        return self.file.format(suffix=SUFFIXES[quantization or dtype])


def exported_files(path: Path) -> list[Path]:
    """Return the files of an exported model: OpenVINO stores weights in a second file, Core ML a folder."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def exported_bytes(path: Path) -> int:
    """Return the size of an exported model on disk in bytes, weights included."""
    files = [file for part in exported_files(path) for file in ([part] if part.is_file() else part.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextlib.contextmanager
def replace_exported(path: Path) -> Generator[Path, None, None]:
    """Yield a scratch path; on success its files replace those at `path`, on failure nothing is left behind."""
    created = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=path.parent) as folder:
            scratch = Path(folder) / path.name
            yield scratch
            for part in exported_files(path):
                shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            for part in exported_files(scratch):
                part.rename(path.parent / part.name)
    except BaseException:
        for folder in created:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise
