"""ONNX files and ONNX Runtime."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from .cache import weights_hash
from .requests import ExportRequest
from .telemetry import import_onnxruntime
from .tracing import trace

if TYPE_CHECKING:
    from onnx import ModelProto

# The last graph of each model, by the hash of its weights, its precision and its interface. An OpenVINO file is
# converted from the same float32 graph, and tracing it takes 15 CPU seconds.
_graphs: "WeakKeyDictionary[nn.Module, tuple[tuple[str, str, str], ModelProto]]" = WeakKeyDictionary()


def write_onnx(request: ExportRequest, path: Path) -> None:
    """Write a model as a single ONNX file; see `export.export_file`."""
    import onnx

    onnx.save(convert_onnx(request), path)


def convert_onnx(request: ExportRequest) -> "ModelProto":
    """Convert a model to an ONNX graph; the same graph again while its weights are.

    With the interface "tensors", the graph takes any batch and image size.
    """
    model = request.model
    key = (weights_hash(model), request.dtype, request.interface)
    if model not in _graphs or _graphs[model][0] != key:
        _graphs[model] = key, _convert(request)
    return _graphs[model][1]


def _convert(request: ExportRequest) -> "ModelProto":
    exported = torch.onnx.export(
        trace(request, dynamic_shapes=request.interface == "tensors"),
        input_names=[request.input_name],
        output_names=list(request.output_names),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert exported is not None  # None only without dynamo
    proto = exported.model_proto
    graph = proto.graph
    # Stack traces with local paths, several times the size of the rest of the graph.
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info, graph, proto):
        del part.metadata_props[:]
    # ONNX Runtime's quantizer rejects an initializer whose shape is also in value_info.
    weights = {initializer.name for initializer in graph.initializer}
    activations = [info for info in graph.value_info if info.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(activations)
    return proto


class OnnxRuntime:
    """ONNX Runtime on the CPU: all threads share a single image, and each takes other images of a batch.

    Threads that share an image meet after each operator, which takes a quarter more time per image.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.session = _create_session(path, threads)
        self.input, self.shape = self.session.get_inputs()[0].name, tuple(self.session.get_inputs()[0].shape)
        self.image_session = _create_session(path, 1) if threads > 1 else self.session
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for a batch of images in the form of the interface."""
        if len(images) == 1:
            return self.session.run(None, {self.input: images})
        outputs = self.pool.map(lambda image: self.image_session.run(None, {self.input: image[None]}), images)
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def _create_session(path: Path, threads: int) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
