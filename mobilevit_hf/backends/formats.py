"""The engines a model can run on: what each needs, where its files lie in a model's folder, what it can do."""

import importlib.util
from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a file's name ends with; those of transformers.js where it has one.
ENDINGS = {"float32": "", "bfloat16": "_bf16", "float16": "_fp16", "int8": "_int8"}
QUANTIZATIONS = ("int8",)

# The tensors a task's model returns.
OUTPUTS = {
    "image-classification": ("logits",),
    "object-detection": ("logits", "pred_boxes"),
    "image-segmentation": ("logits",),
}


@dataclass(frozen=True)
class Format:
    """What an engine reads.

    Args:
        title: The engine's name.
        packages: What must be installed to export and run.
        file: Path in a model's folder, with `{ending}` for precision.
        dtypes: What it can compute in.
        tasks: What can be exported.
        any_size: Whether one file takes batches and images of all sizes.
        quantizations: How it can be quantized.
    """

    title: str
    packages: tuple[str, ...]
    file: str
    dtypes: tuple[str, ...]
    tasks: tuple[str, ...]
    any_size: bool = False
    quantizations: tuple[str, ...] = ()

    def path(self, dtype: str, quantization: str | None) -> str:
        """Where the file lies in a model's folder."""
        return self.file.format(ending=ENDINGS[quantization or dtype])


FORMATS = {
    "onnx": Format(
        "ONNX Runtime",
        ("onnx", "onnxscript", "onnxruntime"),
        "onnx/model{ending}.onnx",
        ("float32", "float16"),
        tuple(OUTPUTS),
        any_size=True,
    ),
    "openvino": Format(
        "OpenVINO",
        ("openvino", "onnx", "onnxscript"),
        "openvino/openvino_model{ending}.xml",
        ("float32", "bfloat16"),
        tuple(OUTPUTS),
        any_size=True,
        quantizations=("int8",),
    ),
    "executorch": Format(
        "ExecuTorch",
        ("executorch",),
        "executorch/model{ending}.pte",
        ("float32",),
        ("image-classification", "object-detection"),
    ),
    "coreml": Format(
        "Core ML",
        ("coremltools",),
        "coreml/model{ending}.mlpackage",
        ("float32", "float16"),
        ("image-classification", "object-detection"),
    ),
}
# What `pipeline` runs on; "torch" needs no export, and Core ML only runs in an app.
BACKENDS = ("torch", "onnx", "openvino", "executorch")


def check_request(backend: str, task: str, dtype: str, quantization: str | None) -> Format:
    """The format, once it is known to do what is wanted and to be installed.

    Raises:
        ValueError: In one line, with what can be done instead.
    """
    if backend not in FORMATS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(FORMATS)}.")
    format = FORMATS[backend]
    if task not in format.tasks:
        others = [name for name, other in FORMATS.items() if task in other.tasks]
        hint = f"Use {' or '.join(others)}." if others else f"It can be one of {', '.join(OUTPUTS)}."
        raise ValueError(f"task: {task} can't be exported for {backend}. {hint}")
    if dtype not in format.dtypes:
        raise ValueError(f"dtype: got {dtype}, expected {' or '.join(format.dtypes)} for {backend}.")
    if quantization is not None and quantization not in format.quantizations:
        possible = [name for name, other in FORMATS.items() if quantization in other.quantizations]
        hint = f"{quantization} is offered for {', '.join(possible)}" if possible else f"there is {QUANTIZATIONS[0]}"
        raise ValueError(f"quantization: got {quantization!r} for {backend}; {hint}. Leave it out, or change it.")
    missing = [package for package in format.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"backend {backend} needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}"
        )
    return format


def dtype_name(dtype: str | torch.dtype | None) -> str:
    """The name of what to compute in; float32 where nothing is said.

    Raises:
        ValueError: If it is none of `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return "float32"
    if name not in DTYPES:
        raise ValueError(f"dtype: got {name}, expected one of {', '.join(DTYPES)}.")
    return name
