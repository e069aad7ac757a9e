"""Exported Core ML packages: their specification, and their programs, run operation by operation."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from core_ml_program import Package, output_shapes, suppress

import mobilevit_hf
from mobilevit_hf.backends.coreml import (
    CoreMLClassifier,
    CoreMLDetector,
    CoreMLSegmenter,
    unique_labels,
    write_coreml,
)
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.requests import ExportRequest
from mobilevit_hf.backends.tracing import quiet
from mobilevit_hf.model_sources import load_image_processor
from mobilevit_hf.records import read_export_records
from mobilevit_hf.samples import draw_smear, draw_t_shirt

CLASSIFICATION, DETECTION, SEGMENTATION = "image-classification", "object-detection", "image-segmentation"
BUILTIN = {CLASSIFICATION: "garments", DETECTION: "blood-cells"}
MODULES = {CLASSIFICATION: CoreMLClassifier, DETECTION: CoreMLDetector, SEGMENTATION: CoreMLSegmenter}
# Operations of Core ML by those of torch that they correspond to.
COMPUTATIONS = {
    "adaptive_avg_pool2d": ["reduce_mean"],
    "add": ["add"],
    "argmax": ["reduce_argmax"],
    "cat": ["concat"],
    "conv2d": ["conv"],
    "eq": ["equal"],
    "exp": ["exp"],
    "index_select": ["gather"],
    "layer_norm": ["layer_norm"],
    "linear": ["linear"],
    "matmul": ["matmul"],
    "mean": ["reduce_mean"],
    "mul": ["mul"],
    "relu": ["relu"],
    "remainder": ["floor_div", "mul", "sub"],
    "silu": ["silu"],
    "softmax": ["softmax"],
    "topk": ["topk"],
    "upsample_bilinear2d": ["upsample_bilinear"],
}
# Operations without arithmetic, which coremltools moves and merges.
LAYOUT = {"clone", "_unsafe_view", "expand", "getitem", "permute", "select", "slice", "unsqueeze", "view"}
CORE_ML_LAYOUT = {"const", "expand_dims", "reshape", "slice_by_index", "tile", "transpose"}
RESIZES = {"upsample_bilinear2d"}
CONVERSIONS = {"_to_copy", "_assert_tensor_metadata", "cast"}  # of types


def make_request(task, folder, dtype="float32", **processor_fields):
    """Return the request of an image model in a folder, for the size of its image processor."""
    model, _ = load_model(task, str(folder))
    processor = load_image_processor(folder, trust_remote_code=False)
    for name, value in processor_fields.items():
        setattr(processor, name, value)
    size = processor.crop_size if task == CLASSIFICATION else processor.size
    return ExportRequest(
        model.eval(), task, processor, torch.zeros(1, 3, size["height"], size["width"]), dtype, "image"
    )


def export_package(request, folder):
    """Export a model to a folder and return the package."""
    pytest.importorskip("coremltools")
    with quiet():
        write_coreml(request, folder / "model.mlpackage")
    return Package(folder / "model.mlpackage")


@pytest.fixture(scope="module")
def builtin_export(segmenter_dir, tmp_path_factory):
    """Function that exports the built-in model of a task, once, and returns the request and the package.

    The model for segmentation is the tiny one.
    """
    exports = {}

    def export(task, dtype="float32"):
        if (task, dtype) not in exports:
            folder = mobilevit_hf.builtin(BUILTIN[task]) if task in BUILTIN else segmenter_dir
            request = make_request(task, folder, dtype)
            exports[task, dtype] = request, export_package(request, tmp_path_factory.mktemp("coreml"))
        return exports[task, dtype]

    return export


def reference_scores(request, image):
    """Return the torch model's probabilities of the classes, for an image that the image processor does not resize."""
    with torch.no_grad():
        logits = request.model(**request.processor(image, return_tensors="pt")).logits
    return logits[0].softmax(dim=0).numpy()


def reference_detections(request, image, threshold):
    """Return boxes as fractions of the image, scores and labels of the image processor."""
    with torch.no_grad():
        outputs = request.model(**request.processor(image, return_tensors="pt"))
    (detections,) = request.processor.post_process_object_detection(outputs, threshold=threshold)
    return tuple(detections[name].numpy() for name in ("boxes", "scores", "labels"))


def run_detector(package, image, threshold=None):
    """Return boxes clipped to the image, scores and labels after NMS."""
    outputs = package.run(image)
    candidates = (outputs[name].numpy() for name in ("candidate_confidence", "candidate_coordinates"))
    boxes, scores, labels = suppress(*candidates, package.models[1].nonMaximumSuppression, threshold)
    return boxes.clip(0, 1), scores, labels


def sample_image(task, request):
    """Return a drawn image of the model's size."""
    image = draw_t_shirt() if task == CLASSIFICATION else draw_smear()
    return image.convert("RGB").resize(request.size[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_classifier_package_takes_an_rgb_image_and_returns_labels(dtype, builtin_export):
    request, package = builtin_export(CLASSIFICATION, dtype)
    description = package.spec.description
    (image,) = description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 128, 128)
    assert image.type.imageType.ColorSpace.Name(image.type.imageType.colorSpace) == "RGB"
    assert [(each.name, each.type.WhichOneof("Type")) for each in description.output] == [
        ("classLabel", "stringType"),
        ("classLabel_probs", "dictionaryType"),
    ]
    assert (description.predictedFeatureName, description.predictedProbabilitiesName) == (
        "classLabel",
        "classLabel_probs",
    )
    classify = package.program[-1]
    assert classify.type == "classify"
    assert package.read_inputs(classify, Values())["classes"] == request.labels
    assert package.spec.specificationVersion == 7  # iOS 16
    assert list(json.loads(description.metadata.userDefined["names"]).values()) == request.labels
    assert float(description.metadata.userDefined["crop_pct"]) == pytest.approx(128 / 144, abs=1e-5)


class Values(dict):
    """Values by name, with a placeholder for those that were not computed."""

    def __missing__(self, name):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_detector_package_is_a_pipeline_of_model_and_nms(dtype, builtin_export):
    request, package = builtin_export(DETECTION, dtype)
    assert [model.WhichOneof("Type") for model in package.models] == ["mlProgram", "nonMaximumSuppression"]
    image, *thresholds = package.spec.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 320, 320)
    assert image.type.imageType.ColorSpace.Name(image.type.imageType.colorSpace) == "RGB"
    assert [(each.name, each.type.WhichOneof("Type"), each.type.isOptional) for each in thresholds] == [
        ("iouThreshold", "doubleType", True),
        ("confidenceThreshold", "doubleType", True),
    ]
    columns = {
        each.name: [(size.lowerBound, size.upperBound) for size in each.type.multiArrayType.shapeRange.sizeRanges]
        for each in package.spec.description.output
    }
    assert columns == {"confidence": [(0, -1), (3, 3)], "coordinates": [(0, -1), (4, 4)]}
    nms = package.models[1].nonMaximumSuppression
    assert list(nms.stringClassLabels.vector) == ["Platelets", "RBC", "WBC"]
    assert nms.iouThreshold == request.processor.nms_iou_threshold == 0.5
    assert nms.confidenceThreshold == request.model.config.recommended_threshold == 0.43
    produced = [output.name for output in package.models[0].description.output]
    assert produced == [nms.confidenceInputFeatureName, nms.coordinatesInputFeatureName]
    assert {value.name for value in package.models[1].description.input} == {
        *produced,
        nms.iouThresholdInputFeatureName,
        nms.confidenceThresholdInputFeatureName,
    }
    assert package.spec.description.metadata.userDefined["recommended_threshold"] == "0.43"


@pytest.mark.slow
@pytest.mark.parametrize("task", MODULES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_have_at_most_five_dimensions_and_the_dtype(task, dtype, builtin_export):
    _, package = builtin_export(task, dtype)
    types = [output.type.tensorType for operation in package.program for output in operation.outputs]
    assert max(len(type.dimensions) for type in types) == 5
    computed = {
        package.dtype_name(output.type.tensorType.dataType)
        for operation in package.program
        if operation.type in ("conv", "linear", "matmul", "softmax", "layer_norm")
        for output in operation.outputs
    }
    assert computed == {"FLOAT32" if dtype == "float32" else "FLOAT16"}


def sort_sizes(shapes):
    """Return the sizes of each shape in ascending order: coremltools moves transpositions."""
    return [sorted(shape) for shape in shapes]


def list_computations(request):
    """Return names, in Core ML's terms, and sizes of the torch program's computations that depend on the image.

    The parameters of convolutions and linear layers follow: lists of (weight, bias) arrays.
    """
    module = MODULES[request.task](request).eval()
    image = torch.zeros(1, 3, *request.size)
    program = torch.export.export(module, (image,), strict=False).run_decompositions({})
    (image_name,) = program.graph_signature.user_inputs
    parameters = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    state = {**program.state_dict, **program.constants}
    depends, computations, weights = {image_name}, [], []
    for node in program.graph.nodes:
        if node.op != "call_function" or not any(source.name in depends for source in node.all_input_nodes):
            continue
        depends.add(node.name)
        name = node.target.__name__.split(".")[0]
        if name in LAYOUT | CONVERSIONS:
            continue
        if name in RESIZES and node.args[0].meta["val"].shape == node.meta["val"].shape:  # left out by coremltools
            continue
        values = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
        computations += [(each, sort_sizes(value.shape for value in values)) for each in COMPUTATIONS[name]]
        if name in ("conv2d", "linear"):
            bias = node.args[2] if len(node.args) > 2 else None
            weights.append([state[parameters[each.name]].detach().numpy() for each in (node.args[1], bias) if each])
    return computations, weights


@pytest.mark.slow
@pytest.mark.parametrize("task", MODULES)
def test_operations_and_weights_are_those_of_the_torch_program(task, builtin_export):
    request, package = builtin_export(task)
    expected, expected_weights = list_computations(request)
    skipped = CORE_ML_LAYOUT | CONVERSIONS | {"classify"}
    program = [operation for operation in package.program if operation.type not in skipped]
    computations = [(operation.type, sort_sizes(output_shapes(operation))) for operation in program]
    assert computations == expected
    constants = Values(package.read_constants())
    layers = [operation for operation in program if operation.type in ("conv", "linear")]
    assert Counter(operation.type for operation in layers)["conv"] > 30
    for layer, arrays in zip(layers, expected_weights, strict=True):
        inputs = package.read_inputs(layer, constants)
        bias = inputs.get("bias")
        np.testing.assert_array_equal(inputs["weight"], arrays[0])
        if len(arrays) == 1:
            assert bias is None or not bias.any()
        else:
            np.testing.assert_array_equal(bias, arrays[1])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 0.01)])
def test_classifier_program_equals_the_torch_model(dtype, tolerance, builtin_export):
    request, package = builtin_export(CLASSIFICATION, dtype)
    image = sample_image(CLASSIFICATION, request)
    request.processor.do_resize = request.processor.do_center_crop = False
    expected = reference_scores(request, image)
    outputs = package.run(image)
    assert outputs["classLabel"] == request.labels[expected.argmax()]
    assert list(outputs["classLabel_probs"]) == request.labels
    np.testing.assert_allclose(list(outputs["classLabel_probs"].values()), expected, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 0.005)])
def test_detector_program_and_nms_equal_the_image_processor(dtype, tolerance, builtin_export):
    request, package = builtin_export(DETECTION, dtype)
    image = sample_image(DETECTION, request)
    expected = reference_detections(request, image, request.model.config.recommended_threshold)
    assert len(expected[0]) == 20  # cells on the smear
    for actual, wanted in zip(run_detector(package, image), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_segmentation_package_takes_an_rgb_image_and_returns_an_array_of_labels(dtype, builtin_export):
    request, package = builtin_export(SEGMENTATION, dtype)
    description = package.spec.description
    (value,), (labels,) = description.input, description.output
    assert (value.name, value.type.imageType.width, value.type.imageType.height) == ("image", 96, 64)
    assert value.type.imageType.ColorSpace.Name(value.type.imageType.colorSpace) == "RGB"
    assert (labels.name, labels.type.multiArrayType.ArrayDataType.Name(labels.type.multiArrayType.dataType)) == (
        "labels",
        "INT32",
    )
    assert list(labels.type.multiArrayType.shape) == [1, 64, 96]
    assert list(json.loads(description.metadata.userDefined["names"]).values()) == request.labels


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "min_agreement"), [("float32", 0.9995), ("float16", 0.98)])
def test_segmentation_program_equals_the_image_processor(dtype, min_agreement, builtin_export, image):
    request, package = builtin_export(SEGMENTATION, dtype)
    image = image.resize(request.size[::-1])
    with torch.no_grad():
        outputs = request.model(**request.processor(image, return_tensors="pt"))
    (expected,) = request.processor.post_process_semantic_segmentation(outputs, target_sizes=[request.size])
    (labels,) = package.run(image)["labels"]
    assert len(expected.unique()) > 1
    assert (labels == expected).float().mean() >= min_agreement  # rounding may break a tie differently


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"do_flip_channel_order": False},
        {"do_flip_channel_order": True},
        {
            "do_flip_channel_order": True,
            "do_normalize": True,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.3, 0.25],
        },
        {"rescale_factor": 1 / 127.5},
    ],
    ids=["rgb", "bgr", "bgr-normalized", "scaled"],
)
def test_detector_preprocessing_is_that_of_the_image_processor(fields, detector_dir, image, tmp_path):
    request = make_request(DETECTION, detector_dir, **fields)
    image = image.resize((64, 64))
    expected = reference_detections(request, image, 0.2)
    actual = run_detector(export_package(request, tmp_path), image, 0.2)
    assert len(set(expected[2])) > 1
    for values, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(values, wanted, atol=1e-4)


@pytest.mark.slow
def test_image_may_have_another_aspect_ratio_and_an_odd_number_of_patches(tmp_path):
    folder = mobilevit_hf.builtin("blood-cells")
    request = make_request(DETECTION, folder, size={"height": 224, "width": 320})  # 7 x 10 at the last stage
    package = export_package(request, tmp_path)
    image = package.spec.description.input[0].type.imageType
    assert (image.width, image.height) == (320, 224)
    smear = sample_image(DETECTION, request)
    expected = reference_detections(request, smear, 0.2)
    assert len(expected[0]) == 20
    for actual, wanted in zip(run_detector(package, smear, 0.2), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)


@pytest.mark.slow
def test_classifier_for_bgr_takes_rgb_and_has_one_score_per_class(checkpoints, image, tmp_path):
    request = make_request(CLASSIFICATION, checkpoints[CLASSIFICATION], do_flip_channel_order=True)
    request.model.config.id2label = {0: "crane", 1: "dog", 2: "fish", 3: "crane"}
    image = image.resize((64, 64))
    request.processor.do_resize = request.processor.do_center_crop = False
    outputs = export_package(request, tmp_path).run(image)
    assert list(outputs["classLabel_probs"]) == ["crane (0)", "dog", "fish", "crane (3)"]
    expected = reference_scores(request, image)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(list(outputs["classLabel_probs"].values()), expected, atol=1e-5)


@pytest.mark.slow
def test_exported_files_are_recorded_as_not_verified(model_dirs, tmp_path, mobilevit):
    pytest.importorskip("coremltools")
    code, stdout, _ = mobilevit("export", model_dirs[DETECTION], tmp_path / "export", "--to", "coreml")
    assert code == 0
    assert "not verified" in stdout
    (record,) = read_export_records(tmp_path / "export" / "export.json")
    assert record.file == "coreml/model.mlpackage"
    assert record.verified is False
    assert record.max_error is None
    package = Package(tmp_path / "export" / record.file)
    assert [value.name for value in package.spec.description.output] == ["confidence", "coordinates"]


@pytest.mark.slow
def test_tensors_interface_takes_pixel_values_and_returns_outputs_of_the_torch_model(model_dirs, tmp_path):
    pytest.importorskip("coremltools")
    (record,) = mobilevit_hf.export_model(model_dirs[DETECTION], tmp_path, "coreml", interface="tensors")
    assert record.file == "coreml/model_tensors.mlpackage"
    description = Package(tmp_path / record.file).spec.description
    assert [value.name for value in description.input] == ["pixel_values"]
    assert [value.name for value in description.output] == ["logits", "pred_boxes"]


def test_repeated_labels_get_their_index():
    assert unique_labels(["crane", "dog", "crane"]) == ["crane (0)", "dog", "crane (2)"]
