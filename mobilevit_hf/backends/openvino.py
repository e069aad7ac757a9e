"""OpenVINO files and runtime."""

import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .onnx import write_onnx
from .requests import ExportRequest
from .telemetry import import_openvino
from .tracing import quiet

if TYPE_CHECKING:
    import openvino

# The file stores its compute precision, which the runtime needs as an option: its own default is bfloat16 on
# processors that support it.
PRECISION_KEY = ["runtime_options", "INFERENCE_PRECISION_HINT"]
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

# A model compiled for one image size is 10 % faster. This many sizes get their own, all others share a dynamic one.
MAX_SIZES = 4


def write_openvino(request: ExportRequest, path: Path) -> None:
    """Write a model as an OpenVINO file; see `export.export_file`."""
    save_openvino(convert_openvino(request), path, request.dtype)


def convert_openvino(request: ExportRequest) -> "openvino.Model":
    """Convert a model to an `openvino.Model` for any batch and image size; see `export.export_file`."""
    openvino = import_openvino()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        # Through ONNX: the same operations as converting directly, in a fraction of the time.
        onnx_file = Path(folder) / "model.onnx"
        write_onnx(replace(request, dtype="float32"), onnx_file)
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
    """OpenVINO on the CPU, in the precision that the file was exported for.

    Attributes:
        shape: Shape of the input; None for dimensions of any size.

    All threads share a single image, and each takes other images of a batch, which is faster by a tenth.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.openvino = import_openvino()
        self.core = self.openvino.Core()
        self.model = self.core.read_model(path)
        dimensions = self.model.input().get_partial_shape()
        self.shape = tuple(None if each.is_dynamic else each.get_length() for each in dimensions)
        self.threads = threads
        self.options = {
            "INFERENCE_NUM_THREADS": threads,
            PRECISION_KEY[-1]: self.model.get_rt_info(PRECISION_KEY).astype(str),
        }
        # By the number of images at a time and the image size; the size None is the dynamic one.
        self.compiled: dict[tuple[int, tuple[int, ...] | None], Any] = {}
        self.lock, self.thread_local = threading.Lock(), threading.local()

    def __call__(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for (B, 3, H, W) float32 pixels or (B, H, W, 3) uint8 images, as the file takes.

        They are copied because the next image reuses their memory.
        """
        outputs: list[list[np.ndarray]] = [[]] * len(inputs)

        def copy(request: Any, index: int) -> None:
            outputs[index] = [tensor.data.copy() for tensor in request.output_tensors]

        requests = self._requests(1 if len(inputs) == 1 else self.threads, inputs.shape[1:])
        requests.set_callback(copy)
        for index in range(len(inputs)):
            tensor = self.openvino.Tensor(inputs[index : index + 1], shared_memory=True)
            requests.start_async(tensor, userdata=index)
        requests.wait_all()
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    def _requests(self, streams: int, size: tuple[int, ...]) -> Any:
        """Return this thread's queue of requests for images of a size, `streams` of which run at a time."""
        with self.lock:
            sizes = {known for _, known in self.compiled}
            key = (streams, size if size in sizes or len(sizes) < MAX_SIZES else None)
            if key not in self.compiled:
                self.compiled[key] = self._compile(*key)
        queues = self.thread_local.__dict__.setdefault("queues", {})
        if key not in queues:
            # A further request per stream waits while outputs are copied.
            queues[key] = self.openvino.AsyncInferQueue(self.compiled[key], 2 * streams)
        return queues[key]

    def _compile(self, streams: int, size: tuple[int, ...] | None) -> Any:
        model = self.model.clone()
        if size:
            model.reshape([1, *size])
            _remove_identity_resizes(model)
        mode = {"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}
        return self.core.compile_model(model, "CPU", self.options | mode)


def _remove_identity_resizes(model: "openvino.Model") -> None:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate":
            source, result = node.input(0), node.output(0)
            if source.get_partial_shape() == result.get_partial_shape():
                result.replace(source.get_source_output())
