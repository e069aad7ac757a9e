"""ONNX files and ONNX Runtime."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ..tasks import TaskName
from .cache import weights_hash
from .requests import ExportRequest
from .telemetry import import_onnxruntime
from .tracing import trace

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

# Names of dimensions of any size. The exporter names them s99, and those of outputs by expressions of such names.
INPUT_DIMENSIONS = ("batch", "channels", "height", "width")
OUTPUT_DIMENSIONS: dict[TaskName, tuple[str, ...]] = {
    "image-classification": ("batch", "labels"),
    "object-detection": ("batch", "anchors", "labels"),
    "image-segmentation": ("batch", "labels", "mask_height", "mask_width"),
}
WEIGHTED_LAYERS = ("Conv", "Gemm", "MatMul")  # with weights as the second input
INT8_MAX = 127

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
        trace(request, dynamic_shapes=request.interface != "image"),
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
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, proto):
        del part.metadata_props[:]
    # Shapes of activations, with expressions as dimensions; runtimes infer them.
    del graph.value_info[:]
    for value in graph.input:
        _name_dimensions(value, INPUT_DIMENSIONS)
    for value in graph.output:
        _name_dimensions(value, OUTPUT_DIMENSIONS[request.task])
    for key, text in request.metadata.items():
        proto.metadata_props.add(key=key, value=text)
    return proto


def _name_dimensions(value: "ValueInfoProto", names: tuple[str, ...]) -> None:
    for dimension, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
        if dimension.dim_param:
            dimension.dim_param = name


def write_onnx_int8(request: ExportRequest, path: Path, images: Tensor) -> None:
    """Write a model as an ONNX file with int8 weights, a quarter of the size; see `quantize_weights`.

    `images` are not used: rounded weights need no calibration.
    """
    import onnx

    onnx.save(quantize_weights(convert_onnx(request)), path)


def quantize_weights(proto: "ModelProto") -> "ModelProto":
    """Return a copy of a graph with int8 weights, one scale per output channel, and activations as before.

    A runtime computes the weights once, when it loads the file and folds constants, and then runs as fast as with the
    original file, on every device. `DequantizeLinear` instead of the product would not be folded.

    With int8 activations, the built-in detector takes 1.7 times as long in ONNX Runtime with NNCF's settings for
    OpenVINO, and 1.5 times with ONNX Runtime's dynamic quantization; in Chromium, all take the same time. The accuracy
    of `garments` on its test set is 86.3%, 85.8% by NNCF, 86.6% by dynamic quantization and 86.0% in float32; the mAP
    of `blood-cells` 57.5%, 57.3%, 57.2% and 57.6%.
    """
    from onnx import helper, numpy_helper

    quantized = type(proto)()
    quantized.CopyFrom(proto)
    graph = quantized.graph
    initializers = {each.name: each for each in graph.initializer}
    layers = [node for node in graph.node if node.op_type in WEIGHTED_LAYERS and node.input[1] in initializers]
    nodes = []
    for name, axis in {node.input[1]: _channel_axis(node) for node in layers}.items():
        weight, dtype = numpy_helper.to_array(initializers[name]), initializers[name].data_type
        others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
        scale = np.abs(weight).max(axis=others, keepdims=True) / weight.dtype.type(INT8_MAX)
        scale = np.maximum(scale, np.finfo(weight.dtype).tiny)  # of a channel of zeros
        integers, floats, scales = f"{name}.int8", f"{name}.float", f"{name}.scale"
        initializers[name].CopyFrom(numpy_helper.from_array((weight / scale).round().astype(np.int8), integers))
        graph.initializer.append(numpy_helper.from_array(scale, scales))
        nodes.append(helper.make_node("Cast", [integers], [floats], to=dtype))
        nodes.append(helper.make_node("Mul", [floats, scales], [name]))
    nodes += graph.node  # in topological order
    del graph.node[:]
    graph.node.extend(nodes)
    return quantized


def _channel_axis(layer: "NodeProto") -> int:
    """Return the axis of the output channels in the weights of a layer."""
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
    return 0 if layer.op_type == "Conv" or is_transposed else -1


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
