"""Exported ONNX files."""

import gc

import pytest
import torch
from backend_support import export_tensors, require_backend

from mobilevit_hf.backends import onnx as onnx_backend
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.requests import ExportRequest


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
