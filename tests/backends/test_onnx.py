"""Exported ONNX files."""

import gc
import json

import numpy as np
import pytest
import torch
from backend_support import export_tensors, require_backend

from mobilevit_hf.backends import onnx as onnx_backend
from mobilevit_hf.backends.export import export_file
from mobilevit_hf.backends.formats import FORMATS
from mobilevit_hf.backends.image_models import DUMMY_COLUMNS
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.requests import ExportRequest
from mobilevit_hf.model_sources import load_image_processor

MAX_RANK = 5  # of LiteRT and Core ML
FILES = [(task, interface) for task, interfaces in FORMATS["onnx"].interfaces.items() for interface in interfaces]
TENSORS = ["batch", 3, "height", "width"]


def expected_shapes(task, interface, num_labels):
    """Return the shapes of the inputs and outputs for 64x64 pixels."""
    return {
        ("image-classification", "tensors"): [TENSORS, ["batch", num_labels]],
        ("image-classification", "image"): [[1, 64, 64, 3], [1, num_labels]],
        ("image-classification", "transformers.js"): [[1, 3, "height", "width"], [1, num_labels]],
        ("object-detection", "tensors"): [TENSORS, ["batch", "anchors", 1 + num_labels], ["batch", "anchors", 4]],
        ("object-detection", "image"): [[1, 64, 64, 3], [1, 200, 4], [1, 200], [1, 200]],
        ("object-detection", "transformers.js"): [
            [1, 3, "height", "width"],
            [1, 200, num_labels + DUMMY_COLUMNS + 1],
            [1, 200, 4],
        ],
        ("image-segmentation", "tensors"): [TENSORS, ["batch", num_labels, "mask_height", "mask_width"]],
        ("image-segmentation", "image"): [[1, 64, 64, 3], [1, 64, 64]],
        ("image-segmentation", "transformers.js"): [[1, 3, "height", "width"], [1, num_labels, 4, 4]],
    }[task, interface]


@pytest.mark.slow
def test_onnx_export_is_one_file_with_the_input_and_output_names_of_transformers_js(model_dirs, tmp_path):
    require_backend("onnx")
    import onnx

    model, _ = load_model("object-detection", str(model_dirs["object-detection"]))
    path = tmp_path / "model.onnx"
    export_tensors(model, "object-detection", "onnx", path)
    assert list(tmp_path.iterdir()) == [path]
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert [value.name for value in proto.graph.input] == ["pixel_values"]
    assert [value.name for value in proto.graph.output] == ["logits", "pred_boxes"]
    sizes = [dimension.dim_value for dimension in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [0, 3, 0, 0]  # 0 is a dynamic dimension
    assert {entry.domain for entry in proto.opset_import} == {""}


def test_graph_is_converted_once_per_weights(model_dirs, monkeypatch):
    model, _ = load_model("image-classification", str(model_dirs["image-classification"]))
    converted = []

    def convert(request):
        converted.append(request.dtype)
        return object()

    def make_request(model, dtype):
        return ExportRequest(model, "image-classification", None, torch.rand(1, 3, 64, 64), dtype)

    monkeypatch.setattr(onnx_backend, "_convert", convert)
    graph = onnx_backend.convert_onnx(make_request(model, "float32"))
    assert onnx_backend.convert_onnx(make_request(model, "float32")) is graph
    onnx_backend.convert_onnx(make_request(model, "float16"))
    with torch.no_grad():
        model.classifier.bias += 1
    onnx_backend.convert_onnx(make_request(model, "float16"))
    assert converted == ["float32", "float16", "float16"]
    del model
    gc.collect()
    assert not onnx_backend._graphs


def read_shape(value):
    return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module", params=FILES, ids=" ".join)
def exported(request, model_dirs, tmp_path_factory):
    """Task, interface, model and ONNX file of a tiny model."""
    require_backend("onnx")
    task, interface = request.param
    model, _ = load_model(task, str(model_dirs[task]))
    processor = load_image_processor(model_dirs[task], trust_remote_code=False)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    pixels = torch.rand(1, 3, 64, 64)
    export_file(ExportRequest(model, task, processor, pixels, interface=interface), "onnx", path)
    return task, interface, model, path


@pytest.mark.slow
def test_dimensions_of_any_size_have_a_name(exported):
    import onnx

    task, interface, model, path = exported
    graph = onnx.load(path).graph
    shapes = [read_shape(value) for value in (*graph.input, *graph.output)]
    assert shapes == expected_shapes(task, interface, model.config.num_labels)
    assert not graph.value_info


@pytest.mark.slow
def test_tensors_have_at_most_five_dimensions(exported):
    import onnx

    proto = onnx.load(exported[-1])
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    shapes = [read_shape(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)]
    assert len(shapes) > len(proto.graph.node) / 2  # else nothing was inferred
    assert max(map(len, (*shapes, *(initializer.dims for initializer in proto.graph.initializer)))) <= MAX_RANK


@pytest.mark.slow
def test_onnxruntime_reads_the_class_names(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    task, interface, model, path = exported
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert (metadata["task"], metadata["interface"]) == (task, interface)
    names = {int(index): name for index, name in json.loads(metadata["names"]).items()}
    assert names == model.config.id2label
    if task == "object-detection":
        assert float(metadata["recommended_threshold"]) == 0.5
    else:
        assert "recommended_threshold" not in metadata


def make_layers(dtype=np.float32):
    """Return an ONNX graph with one layer of each type with weights, and a further product without."""
    from onnx import helper, numpy_helper

    generator = np.random.default_rng(0)
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    scales = 10.0 ** np.arange(-2, 2)  # of the output channels: one scale for all would lose the small ones
    weights = {
        "conv": generator.normal(size=(4, 3, 2, 2)) * scales[:, None, None, None],
        "gemm": generator.normal(size=(4, 4)) * scales[:, None],
        "matmul": generator.normal(size=(4, 4)) * scales,
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["maps"], strides=[2, 2]),
        helper.make_node("ReduceMean", ["maps", "axes"], ["features"], keepdims=0),
        helper.make_node("Gemm", ["features", "gemm"], ["hidden"], transB=1),
        helper.make_node("MatMul", ["hidden", "matmul"], ["logits"]),
        helper.make_node("MatMul", ["maps", "maps"], ["products"]),
    ]
    inputs = [helper.make_tensor_value_info("x", element_type, ["batch", 3, 8, 8])]
    outputs = [
        helper.make_tensor_value_info("logits", element_type, ["batch", 4]),
        helper.make_tensor_value_info("products", element_type, ["batch", 4, 4, 4]),
    ]
    initializers = [numpy_helper.from_array(weight.astype(dtype), name) for name, weight in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), scales


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_quantized_weights_are_rounded_per_output_channel(dtype):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    proto, scales = make_layers(dtype)
    before = proto.SerializeToString()
    quantized = onnx_backend.quantize_weights(proto)
    onnx.checker.check_model(quantized, full_check=True)
    assert proto.SerializeToString() == before
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in quantized.graph.initializer}
    assert {each.size for each in stored.values() if each.dtype == np.int8} == {48, 16}
    assert not [each for each in stored.values() if each.dtype == dtype and each.size > 4]
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(dtype)
    expected, actual = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, {"x": x}) for each in (proto, quantized)
    )
    # Each channel of the last layer within a hundredth of its own range.
    for i in range(len(scales)):
        np.testing.assert_allclose(actual[0][:, i], expected[0][:, i], atol=0.02 * np.abs(expected[0][:, i]).max())
    assert any((a != e).any() for a, e in zip(actual, expected, strict=True))


@pytest.mark.filterwarnings("error")  # such as of a division by zero
def test_channel_of_zeros_stays_zero_when_quantized():
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    proto, _ = make_layers()
    weight = next(each for each in proto.graph.initializer if each.name == "matmul")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 1] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "matmul"))
    session = onnxruntime.InferenceSession(onnx_backend.quantize_weights(proto).SerializeToString())
    logits, _ = session.run(None, {"x": np.ones((1, 3, 8, 8), dtype=np.float32)})
    assert logits[0, 1] == 0
    assert np.isfinite(logits).all()
