"""The table of export formats, and checks of what each of them supports.

Importing this module does not import torch: command-line options list the formats.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..environment import pip_command
from ..tasks import EXPORTABLE_TASKS, TaskName

if TYPE_CHECKING:
    import torch

# File name suffixes by precision; those of transformers.js where it defines one.
SUFFIXES = {"float32": "", "bfloat16": "_bf16", "float16": "_fp16", "int8": "_int8"}


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Attributes:
        title: Name of the runtime.
        packages: Packages that export and inference require.
        file: Path relative to the model directory, with `{suffix}` for the precision.
        write: Function (model, task, path, pixels, dtype) that writes a file, as `module:name`; see
            `export.export_file`.
        runtime: Class (path, threads) that runs a file on the CPU, as `module:name`; None for an export-only format.
            Its calls, possible from several threads at once, return the outputs for (B, 3, H, W) float32 pixels as
            arrays that later calls do not overwrite.
        dynamic_shapes: Whether one file takes any batch and image size.
    """

    title: str
    packages: tuple[str, ...]
    file: str
    dtypes: tuple[str, ...]
    tasks: tuple[TaskName, ...]
    write: str
    runtime: str | None = None
    dynamic_shapes: bool = False
    quantizations: tuple[str, ...] = ()

    def path(self, dtype: str, quantization: str | None) -> str:
        """Return the file's path relative to the model directory."""
        return self.file.format(suffix=SUFFIXES[quantization or dtype])

    @property
    def paths(self) -> set[str]:
        """Paths of all precisions, relative to the model directory."""
        return {self.file.format(suffix=SUFFIXES[name]) for name in (*self.dtypes, *self.quantizations)}


FORMATS: dict[str, Format] = {
    "onnx": Format(
        title="ONNX Runtime",
        packages=("onnx", "onnxscript", "onnxruntime"),
        file="onnx/model{suffix}.onnx",
        dtypes=("float32", "float16"),
        tasks=EXPORTABLE_TASKS,
        write="mobilevit_hf.backends.onnx:write_onnx",
        runtime="mobilevit_hf.backends.onnx:OnnxRuntime",
        dynamic_shapes=True,
    ),
    "openvino": Format(
        title="OpenVINO",
        packages=("openvino", "onnx", "onnxscript"),
        file="openvino/openvino_model{suffix}.xml",
        dtypes=("float32", "bfloat16"),
        tasks=EXPORTABLE_TASKS,
        write="mobilevit_hf.backends.openvino:write_openvino",
        runtime="mobilevit_hf.backends.openvino:OpenVINORuntime",
        dynamic_shapes=True,
        quantizations=("int8",),
    ),
    "executorch": Format(
        title="ExecuTorch",
        packages=("executorch",),
        file="executorch/model{suffix}.pte",
        dtypes=("float32",),
        tasks=("image-classification", "object-detection"),
        write="mobilevit_hf.backends.executorch:write_executorch",
        runtime="mobilevit_hf.backends.executorch:ExecuTorchRuntime",
    ),
    "coreml": Format(
        title="Core ML",
        packages=("coremltools",),
        file="coreml/model{suffix}.mlpackage",
        dtypes=("float32", "float16"),
        tasks=("image-classification", "object-detection"),
        write="mobilevit_hf.backends.coreml:write_coreml",
    ),
}
# Backends of `pipeline`: torch, which needs no export, and the formats with a runtime.
BACKENDS = ("torch", *(name for name, format in FORMATS.items() if format.runtime))
DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"  # dtype that `precision.choose_precision` chooses
QUANTIZATIONS = ("int8",)
QUANTIZATION_PACKAGES = ("nncf",)  # for export only
EXTRA = "backends"  # of this package, with the packages of all formats


def check_backend(backend: str, task: str, dtype: str, quantization: str | None) -> None:
    """Check that a backend supports a request.

    Raises:
        ValueError: If it is unknown, does not support the task, dtype or quantization, or is not installed.
    """
    if backend not in FORMATS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(FORMATS)}.")
    format = FORMATS[backend]
    if task not in format.tasks:
        others = [name for name, other in FORMATS.items() if task in other.tasks]
        hint = f"Use {' or '.join(others)}." if others else f"Pass a model for {' or '.join(EXPORTABLE_TASKS)}."
        raise ValueError(f"task: {task} can't be exported to {backend}. {hint}")
    if dtype not in (AUTO, *format.dtypes):
        raise ValueError(f"dtype: got {dtype}, expected {' or '.join(format.dtypes)} for {backend}.")
    if quantization is not None and quantization not in format.quantizations:
        supported = [name for name, other in FORMATS.items() if quantization in other.quantizations]
        expected = f"None; only {', '.join(supported)} supports it" if supported else " or ".join(QUANTIZATIONS)
        raise ValueError(f"quantization: got {quantization!r} for {backend}, expected {expected}. Leave it out.")
    check_packages(f"backend: {backend!r}", format.packages)


def check_packages(feature: str, packages: Sequence[str]) -> None:
    """Check that packages are installed.

    Raises:
        ValueError: If not, with the commands that install those that are missing, or all that backends need.
    """
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        *others, last = missing
        names = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
        raise ValueError(
            f"{feature} requires {names} not installed. Run: pip install {' '.join(missing)} (or, for all backends: "
            f"{pip_command(EXTRA)})"
        )


def dtype_name(dtype: "str | torch.dtype | None") -> str:
    """Return the name of a compute dtype, or "auto"; float32 for None.

    Raises:
        ValueError: If it is neither "auto" nor one of `DTYPES`.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in (AUTO, *DTYPES):
        raise ValueError(f"dtype: got {name}, expected one of {', '.join((*DTYPES, AUTO))}.")
    return name
