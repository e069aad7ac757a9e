"""LiteRT files in all precisions, compared with the torch model; also in an app without torch."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backend_support import require_backend
from PIL import Image
from torchvision.ops import box_iou

import mobilevit_hf
from mobilevit_hf.backends import litert
from mobilevit_hf.backends.cache import weights_hash
from mobilevit_hf.backends.image_models import build_module
from mobilevit_hf.backends.litert_runtime import LiteRTRuntime
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.requests import ExportRequest
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.model_sources import load_image_processor

pytestmark = pytest.mark.slow

CLASSIFICATION, DETECTION, SEGMENTATION = "image-classification", "object-detection", "image-segmentation"
APP = Path(__file__).parents[1] / "litert_app.py"
NUM_PHOTOS = 20


@pytest.fixture(scope="module")
def converted():
    """Convert each model once: dtype and quantization only change the converted file."""
    require_backend("litert")
    convert, contents = litert._convert, {}

    def convert_once(request):
        key = (weights_hash(request.model), request.interface)
        if key not in contents:
            contents[key] = convert(request)
        return contents[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "_convert", convert_once)
        yield


@pytest.fixture
def make_request(converted, model_dirs):
    def make(task, interface="image", dtype="float32"):
        model, _ = load_model(task, str(model_dirs[task]))
        processor = load_image_processor(model_dirs[task], trust_remote_code=False)
        pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        return ExportRequest(model, task, processor, pixels, dtype, interface)

    return make


def make_inputs(request):
    """Return a batch of the file's inputs, and what the torch module returns for it."""
    inputs = request.pixels
    if request.interface == "image":
        inputs = (inputs * 255).permute(0, 2, 3, 1).to(torch.uint8)
    with torch.no_grad():
        outputs = [build_module(request)(each[None]) for each in inputs]
    return inputs.numpy(), [torch.cat(parts).numpy() for parts in zip(*outputs, strict=True)]


def read_graph(path):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    return model, model.subgraphs[0], schema


def read_weight_types(path):
    """Return the types of the weights of convolutions and linear layers by the names of their outputs."""
    model, graph, schema = read_graph(path)
    weighted = {getattr(schema.BuiltinOperator, name) for name in litert.WEIGHTED}
    names = {value: name for name, value in vars(schema.TensorType).items()}
    sources = {output: operator for operator in graph.operators for output in operator.outputs}
    types = {}
    for operator in graph.operators:
        if model.operatorCodes[operator.opcodeIndex].builtinCode in weighted:
            weight = operator.inputs[1]
            weight = sources[weight].inputs[0] if weight in sources else weight  # before a conversion to float32
            types[graph.tensors[operator.outputs[0]].name.decode()] = names[graph.tensors[weight].type]
    return types


@pytest.mark.parametrize(
    ("task", "interface"),
    [(CLASSIFICATION, "image"), (CLASSIFICATION, "tensors"), (DETECTION, "image"), (SEGMENTATION, "image")],
)
def test_float32_file_equals_torch_module(make_request, tmp_path, task, interface):
    request = make_request(task, interface)
    litert.write_litert(request, tmp_path / "m.tflite")
    inputs, expected = make_inputs(request)
    runtime = LiteRTRuntime(tmp_path / "m.tflite", 1)
    outputs = runtime(inputs)
    assert len(outputs) == len(expected)
    for output, values in zip(outputs, expected, strict=True):
        assert output.shape == values.shape
        assert output.dtype == values.dtype
        if task == SEGMENTATION:
            assert len(np.unique(values)) > 1
            assert (output == values).mean() > 0.999  # rounding may break a tie differently
        else:
            np.testing.assert_allclose(output, values, atol=1e-5)
    signature = runtime.interpreter.get_signature_list()["serving_default"]
    assert signature["inputs"] == [request.input_name]
    assert sorted(signature["outputs"]) == sorted(request.output_names)


@pytest.mark.parametrize("task", [CLASSIFICATION, DETECTION, SEGMENTATION])
def test_operations_are_those_of_every_litert_runtime(make_request, tmp_path, task):
    """Neither Flex nor custom operations, which an app would have to link, nor tensors above rank 5."""
    litert.write_litert(make_request(task), tmp_path / "m.tflite")
    model, graph, schema = read_graph(tmp_path / "m.tflite")
    codes = {code.builtinCode for code in model.operatorCodes}
    assert not codes & {schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.STABLEHLO_COMPOSITE}
    # Only of the logits: feature maps have the size already.
    assert (schema.BuiltinOperator.RESIZE_BILINEAR in codes) == (task == SEGMENTATION)
    shapes = [tensor.shape for tensor in graph.tensors if tensor.shape is not None]
    assert max(map(len, shapes)) <= 5


@pytest.mark.parametrize("task", [CLASSIFICATION, DETECTION])
def test_float16_is_the_dtype_of_weights(make_request, tmp_path, task):
    request = make_request(task, dtype="float16")
    litert.write_litert(request, tmp_path / "m.tflite")
    types = read_weight_types(tmp_path / "m.tflite")
    assert len(types) > 30
    assert set(types.values()) == {"FLOAT16"}
    inputs, expected = make_inputs(replace(request, dtype="float32"))
    scores = request.output_names.index("scores")
    output = LiteRTRuntime(tmp_path / "m.tflite", 1)(inputs)[scores]
    np.testing.assert_allclose(output, expected[scores], atol=0.01)


@pytest.mark.parametrize(
    ("task", "float32"),
    [(CLASSIFICATION, "conv_stem|encoder/0/|encoder/1/0/|classifier"), (DETECTION, "/predictor/")],
)
def test_int8_quantizes_weights_but_of_some_layers(make_request, tmp_path, task, float32):
    request = make_request(task)
    litert.write_litert_int8(request, tmp_path / "m.tflite", request.pixels)
    types = read_weight_types(tmp_path / "m.tflite")
    for name, dtype in types.items():
        assert dtype == ("FLOAT32" if re.search(float32, name) else "INT8"), name
    inputs, expected = make_inputs(request)
    scores = request.output_names.index("scores")
    output = LiteRTRuntime(tmp_path / "m.tflite", 1)(inputs)[scores]
    np.testing.assert_allclose(output, expected[scores], atol=0.1)


def test_int8_segmentation_model_keeps_inverted_residuals_and_the_classifier_in_float32(make_request, tmp_path):
    request = make_request(SEGMENTATION)
    litert.write_litert_int8(request, tmp_path / "m.tflite", request.pixels)
    types = read_weight_types(tmp_path / "m.tflite")
    floats = {name for name, dtype in types.items() if dtype == "FLOAT32"}
    float32 = r"conv_stem|/(expand_1x1|conv_3x3|reduce_1x1)/|segmentation_head/classifier"
    assert floats == {name for name in types if re.search(float32, name)}
    assert 0 < len(floats) < len(types)
    inputs, (expected,) = make_inputs(request)
    (output,) = LiteRTRuntime(tmp_path / "m.tflite", 1)(inputs)
    assert (output == expected).mean() > 0.9


@pytest.fixture(scope="module")
def builtin_dir(tmp_path_factory):
    """Function that exports a built-in model and returns the folder."""
    require_backend("litert")
    folders = {}

    def export(model):
        if model not in folders:
            folders[model] = tmp_path_factory.mktemp(model)
            mobilevit_hf.export_model(model, folders[model], "litert", note=str, log=str)
        return folders[model]

    return export


def sample_photos(folder):
    photos = [Path(sample.image) for sample in load_dataset(str(folder)).splits["test"]]
    return random.Random(0).sample(photos, NUM_PHOTOS)


def run_app(run_python, file, photos):
    """Run `litert_app.py` in a process in which neither this package nor torch can be imported."""
    code = f"""
        import runpy

        sys.modules |= dict.fromkeys(("torch", "transformers", "tensorflow", "litert_torch"))
        sys.argv = {["litert_app.py", str(file), *map(str, photos)]!r}
        runpy.run_path({str(APP)!r}, run_name="__main__")
    """
    return json.loads(run_python(code, without_package=True))


def test_app_without_torch_classifies_photos_as_the_pipeline(builtin_dir, run_python, reference_data):
    photos = sample_photos(reference_data / "data" / "clothing")
    results = run_app(run_python, builtin_dir("garments") / "litert/model.tflite", photos)
    pipe = mobilevit_hf.pipeline(CLASSIFICATION, "garments")
    for photo, rows in zip(photos, results, strict=True):
        expected, actual = pipe(str(photo))[0], max(rows, key=lambda row: row["scores"])
        assert actual["labels"] == expected["label"], photo
        assert actual["scores"] == pytest.approx(expected["score"], abs=0.01)


def test_app_without_torch_detects_the_boxes_of_the_pipeline(builtin_dir, run_python, reference_data):
    photos = sample_photos(reference_data / "data" / "bccd")
    results = run_app(run_python, builtin_dir("blood-cells") / "litert/model.tflite", photos)
    pipe = mobilevit_hf.pipeline(DETECTION, "blood-cells")
    for photo, rows in zip(photos, results, strict=True):
        width, height = Image.open(photo).size
        rows = [row for row in rows if row["scores"] > pipe.model.config.recommended_threshold]
        expected = pipe(str(photo))
        assert [row["labels"] for row in rows] == [each["label"] for each in expected], photo
        # The pipeline truncates boxes to pixels.
        boxes = (torch.tensor([row["boxes"] for row in rows]) * torch.tensor([width, height] * 2)).int().float()
        ious = box_iou(boxes, torch.tensor([list(each["box"].values()) for each in expected]).float()).diagonal()
        assert ious.min() >= 0.95, photo


@pytest.mark.parametrize(("model", "data"), [("garments", "clothing"), ("blood-cells", "bccd")])
def test_int8_costs_less_than_a_point(tmp_path, reference_data, model, data):
    require_backend("litert")
    (record,) = mobilevit_hf.export_model(
        model,
        tmp_path,
        "litert",
        quantization="int8",
        calibration=str(reference_data / "data" / data),
        note=str,
        log=str,
    )
    assert record.drop.num_images > 80
    assert 100 * (record.drop.model - record.drop.exported) <= 1
    assert record.bytes < 2.2e6
    pipe = mobilevit_hf.pipeline(
        {"garments": CLASSIFICATION, "blood-cells": DETECTION}[model],
        str(tmp_path),
        backend="litert",
        quantization="int8",
    )
    assert pipe(Image.new("RGB", (90, 60))) is not None
