"""OpenVINO files and runtime."""

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ..tasks import TaskName
from .onnx import write_onnx
from .telemetry import import_openvino
from .tracing import quiet

if TYPE_CHECKING:
    import openvino

# The file stores its compute precision, which the runtime needs as an option: its own default is bfloat16 on
# processors that support it.
PRECISION_KEY = ["runtime_options", "INFERENCE_PRECISION_HINT"]
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

# A model compiled for one input shape is 10 % faster. This many shapes get their own, all others share a dynamic one.
MAX_SHAPES = 4


def write_openvino(model: nn.Module, task: TaskName, path: Path, pixels: Tensor, dtype: str) -> None:
    """Write a model as an OpenVINO file; see `export.export_file`."""
    save_openvino(convert_openvino(model, task, pixels), path, dtype)


def convert_openvino(model: nn.Module, task: TaskName, pixels: Tensor) -> "openvino.Model":
    """Convert a model to an `openvino.Model` for any batch and image size; see `export.export_file`."""
    openvino = import_openvino()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        # Through ONNX: the same operations as converting directly, in a fraction of the time.
        onnx_file = Path(folder) / "model.onnx"
        write_onnx(model, task, onnx_file, pixels, "float32")
        return openvino.convert_model(onnx_file)


def save_openvino(model: "openvino.Model", path: Path, dtype: str) -> None:
    """Write an OpenVINO model together with its compute precision.

    Raises:
        OSError: If the file can't be written.
    """
    openvino = import_openvino()
    model.set_rt_info(PRECISIONS[dtype], PRECISION_KEY)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # gives no reason
        raise OSError(f"{path}: can't be written ({error}). Check the free disk space.") from error


class OpenVINORuntime:
    """OpenVINO on the CPU, in the precision that the file was exported for."""

    def __init__(self, path: Path, threads: int) -> None:
        self.openvino = import_openvino()
        self.core = self.openvino.Core()
        self.model = self.core.read_model(path)
        self.options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            PRECISION_KEY[-1]: self.model.get_rt_info(PRECISION_KEY).astype(str),
        }
        # By input shape; None is the dynamic one.
        self.compiled: dict[tuple[int, ...] | None, Any] = {}
        self.lock, self.thread_local = threading.Lock(), threading.local()

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for (B, 3, H, W) float32 pixels, copied because the next call reuses their memory."""
        request = self._infer_request(pixels.shape)
        request.set_input_tensor(self.openvino.Tensor(pixels, shared_memory=True))
        request.infer()
        return [request.get_output_tensor(i).data.copy() for i in range(len(self.model.outputs))]

    def _infer_request(self, shape: tuple[int, ...]) -> Any:
        """Return this thread's request of the compiled model for an input shape."""
        with self.lock:
            key = shape if shape in self.compiled or len(self.compiled) < MAX_SHAPES else None
            if key not in self.compiled:
                self.compiled[key] = self._compile(key)
        requests = self.thread_local.__dict__.setdefault("requests", {})
        if key not in requests:
            requests[key] = self.compiled[key].create_infer_request()
        return requests[key]

    def _compile(self, shape: tuple[int, ...] | None) -> Any:
        model = self.model.clone()
        if shape:
            model.reshape(list(shape))
            _remove_identity_resizes(model)
        return self.core.compile_model(model, "CPU", self.options)


def _remove_identity_resizes(model: "openvino.Model") -> None:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate":
            source, result = node.input(0), node.output(0)
            if source.get_partial_shape() == result.get_partial_shape():
                result.replace(source.get_source_output())
