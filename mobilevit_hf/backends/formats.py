"""The table of export formats, and checks of what each of them supports.

Importing this module does not import torch: command-line options list the formats.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..environment import pip_command
from ..tasks import EXPORTABLE_TASKS, TaskName
from .interfaces import Interface

if TYPE_CHECKING:
    import torch

# File name suffixes by precision.
SUFFIXES = {"float32": "", "bfloat16": "_bf16", "float16": "_fp16", "int8": "_int8"}
# Those of transformers.js, which calls int8 q8.
ONNX_SUFFIXES = {**SUFFIXES, "int8": "_quantized"}


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Attributes:
        title: Name of the runtime.
        purpose: What its files are for, in a few words.
        packages: Packages that export and inference require.
        runtime_packages: Those of them that inference requires.
        extra: Extra of this package with those packages.
        file: Path relative to the model directory, with `{suffix}` for the interface and the precision.
        interfaces: Supported interfaces by task. The first one has no suffix in the file name; those before "tensors"
            are exported by default.
        pipeline_interface: Interface of the files that `pipeline` runs.
        write: Function (`ExportRequest`, path) that writes a file, as `module:name`.
        write_int8: Function (`ExportRequest`, path, images) that writes a file quantized on (N, 3, H, W) float32
            outputs of the image processor, as `module:name`.
        int8_packages: Packages that `write_int8` requires.
        int8_weights_only: Whether a quantized file is smaller but not faster: it computes in float32.
        runtime: Class (path, threads) that runs a file on the CPU, as `module:name`; None for an export-only format.
            Its calls, possible from several threads at once, take a batch and return the outputs as arrays that later
            calls do not overwrite. Images of a batch run one by one if the file takes one image.
        dynamic_shapes: Whether a file of the interface "tensors" takes any batch and image size.
    """

    title: str
    purpose: str
    packages: tuple[str, ...]
    runtime_packages: tuple[str, ...]
    file: str
    dtypes: tuple[str, ...]
    interfaces: Mapping[TaskName, tuple[Interface, ...]]
    write: str
    pipeline_interface: Interface = "tensors"
    runtime: str | None = None
    dynamic_shapes: bool = False
    write_int8: str | None = None
    int8_packages: tuple[str, ...] = ()
    int8_weights_only: bool = False
    extra: str = "backends"
    suffixes: Mapping[str, str] = field(default_factory=lambda: SUFFIXES)

    @property
    def tasks(self) -> tuple[TaskName, ...]:
        """Supported tasks."""
        return tuple(self.interfaces)

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Supported quantizations."""
        return QUANTIZATIONS if self.write_int8 else ()

    def default_interfaces(self, task: TaskName) -> tuple[Interface, ...]:
        """Return the interfaces that are exported by default."""
        interfaces = self.interfaces[task]
        return interfaces[: max(1, interfaces.index("tensors"))]

    def path(self, task: TaskName, interface: Interface, dtype: str, quantization: str | None = None) -> str:
        """Return the file's path relative to the model directory."""
        suffix = "" if interface == self.interfaces[task][0] else f"_{interface}"
        return self.file.format(suffix=suffix + self.suffixes[quantization or dtype])

    @property
    def paths(self) -> set[str]:
        """Paths of all files, relative to the model directory."""
        return {
            self.path(task, interface, name)
            for task, interfaces in self.interfaces.items()
            for interface in interfaces
            for name in (*self.dtypes, *self.quantizations)
        }


FORMATS: dict[str, Format] = {
    "onnx": Format(
        title="ONNX Runtime",
        purpose="servers, browsers and apps",
        packages=("onnx", "onnxscript", "onnxruntime"),
        runtime_packages=("onnxruntime",),
        file="onnx/model{suffix}.onnx",
        dtypes=("float32", "float16"),
        interfaces={
            "image-classification": ("tensors", "image", "transformers.js"),
            "object-detection": ("transformers.js", "image", "tensors"),
            "image-segmentation": ("transformers.js", "image", "tensors"),
        },
        write="mobilevit_hf.backends.onnx:write_onnx",
        runtime="mobilevit_hf.backends.onnx:OnnxRuntime",
        write_int8="mobilevit_hf.backends.onnx:write_onnx_int8",
        int8_weights_only=True,
        dynamic_shapes=True,
        suffixes=ONNX_SUFFIXES,
    ),
    "openvino": Format(
        title="OpenVINO",
        purpose="Intel processors",
        packages=("openvino", "onnx", "onnxscript"),
        runtime_packages=("openvino",),
        file="openvino/openvino_model{suffix}.xml",
        dtypes=("float32", "bfloat16"),
        interfaces={
            "image-classification": ("tensors",),
            "object-detection": ("tensors",),
            "image-segmentation": ("tensors", "image"),
        },
        write="mobilevit_hf.backends.openvino:write_openvino",
        runtime="mobilevit_hf.backends.openvino:OpenVINORuntime",
        dynamic_shapes=True,
        write_int8="mobilevit_hf.backends.nncf_quantization:write_openvino_int8",
        int8_packages=("nncf",),
    ),
    "executorch": Format(
        title="ExecuTorch",
        purpose="phones, in apps built with PyTorch",
        packages=("executorch",),
        runtime_packages=("executorch",),
        file="executorch/model{suffix}.pte",
        dtypes=("float32",),
        interfaces={
            "image-classification": ("tensors",),
            "object-detection": ("tensors",),
            "image-segmentation": ("tensors", "image"),
        },
        write="mobilevit_hf.backends.executorch:write_executorch",
        runtime="mobilevit_hf.backends.executorch:ExecuTorchRuntime",
    ),
    "litert": Format(
        title="LiteRT",
        purpose="Android phones and small boards",
        packages=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
        runtime_packages=("ai_edge_litert",),
        file="litert/model{suffix}.tflite",
        dtypes=("float32", "float16"),
        interfaces=dict.fromkeys(EXPORTABLE_TASKS, ("image", "tensors")),
        extra="litert",
        write="mobilevit_hf.backends.litert:write_litert",
        pipeline_interface="image",
        runtime="mobilevit_hf.backends.litert_runtime:LiteRTRuntime",
        write_int8="mobilevit_hf.backends.litert:write_litert_int8",
    ),
    "coreml": Format(
        title="Core ML",
        purpose="iPhones, iPads and Macs",
        packages=("coremltools",),
        runtime_packages=(),
        file="coreml/model{suffix}.mlpackage",
        dtypes=("float32", "float16"),
        interfaces=dict.fromkeys(EXPORTABLE_TASKS, ("image", "tensors")),
        write="mobilevit_hf.backends.coreml:write_coreml",
    ),
}
# Backends of `pipeline`: torch, which needs no export, and the formats with a runtime.
BACKENDS = ("torch", *(name for name, format in FORMATS.items() if format.runtime))
DTYPES = ("float32", "bfloat16", "float16")
ALL = "all"  # all formats that are installed and support a request
AUTO = "auto"  # dtype that `precision.choose_precision` chooses
QUANTIZATIONS = ("int8",)


def check_backend(
    backend: str,
    task: str,
    dtype: str,
    quantization: str | None,
    interface: str | None = None,
    *,
    exports: bool = True,
) -> None:
    """Check that a backend supports a request.

    Args:
        exports: Whether a file is exported, not only run.

    Raises:
        ValueError: If it is unknown, does not support the task, dtype, quantization or interface, or is not installed.
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
        expected = f"None; {', '.join(supported)} have it" if supported else " or ".join(QUANTIZATIONS)
        raise ValueError(f"quantization: got {quantization!r} for {backend}, expected {expected}. Leave it out.")
    if interface is not None and interface not in (interfaces := format.interfaces[task]):
        known = f"{' or '.join(interfaces)} for {backend} and {task}"
        raise ValueError(f"interface: got {interface!r}, expected {known}. Leave it out for the default.")
    packages = format.packages if exports else format.runtime_packages
    check_packages(f"backend: {backend!r}", packages, format.extra)


def check_packages(feature: str, packages: Sequence[str], extra: str) -> None:
    """Check that packages are installed.

    Args:
        extra: Extra of this package with all of them.

    Raises:
        ValueError: If not, with the commands that install those that are missing, or the extra.
    """
    if missing := [package.replace("_", "-") for package in packages if importlib.util.find_spec(package) is None]:
        *others, last = missing
        names = f"{', '.join(others)} and {last}, which are" if others else f"{last}, which is"
        raise ValueError(
            f"{feature} requires {names} not installed. Run: pip install {' '.join(missing)} (or, with all "
            f"packages of the extra {extra}: {pip_command(extra)})"
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
