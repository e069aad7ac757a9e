"""The table of export formats, and checks of what each of them supports."""

import importlib.util
from typing import TYPE_CHECKING

from ..tasks import EXPORTABLE_TASKS
from . import coreml, executorch, onnx, openvino
from .base import Format

if TYPE_CHECKING:
    import torch

FORMATS: dict[str, Format] = {
    "onnx": onnx.FORMAT,
    "openvino": openvino.FORMAT,
    "executorch": executorch.FORMAT,
    "coreml": coreml.FORMAT,
}
# Backends of `pipeline`: torch, which needs no export, and the formats with a runtime.
BACKENDS = ("torch", *(name for name, format in FORMATS.items() if format.runtime))
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8",)


def check_backend(backend: str, task: str, dtype: str, quantization: str | None) -> Format:
    """Return the format of a backend.

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
    if dtype not in format.dtypes:
        raise ValueError(f"dtype: got {dtype}, expected {' or '.join(format.dtypes)} for {backend}.")
    if quantization is not None and quantization not in format.quantizations:
        supported = [name for name, other in FORMATS.items() if quantization in other.quantizations]
        expected = f"None; only {', '.join(supported)} supports it" if supported else " or ".join(QUANTIZATIONS)
        raise ValueError(f"quantization: got {quantization!r} for {backend}, expected {expected}. Leave it out.")
    missing = [package for package in format.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"backend: {backend} needs {', '.join(missing)}, which is not installed. "
            f"Install it: pip install {' '.join(missing)}"
        )
    return format


def dtype_name(dtype: "str | torch.dtype | None") -> str:
    """Return the name of a compute dtype; float32 for None and "auto".

    Raises:
        ValueError: If it is not one of `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return "float32"
    if name not in DTYPES:
        raise ValueError(f"dtype: got {name}, expected one of {', '.join(DTYPES)}.")
    return name
