"""LiteRT files (.tflite) in float32, with float16 weights, or quantized to int8.

Convolutions, linear layers and their SiLU are quantized, with one scale per output channel for weights. In float32 are

- attention, layer normalization and residual connections of the transformers: LiteRT's XNNPACK delegate has int8
  kernels for few of their operations, and with those of LiteRT itself the whole file takes twice as long as in
  float32;
- `FLOAT32_MODULES`.

The built-in classifier runs 1.65 times as fast as in float32, the detector 1.4 times (the attention scores of its
first transformer take 40% of the time), classifiers of 256 px 1.5 (XXS) and 1.9 times (S).
"""

import io
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..tasks import TaskName
from .fixed_size import silence_stderr
from .image_models import Scaling, example_input
from .requests import ExportRequest
from .tracing import quiet, trace

if TYPE_CHECKING:
    from ai_edge_quantizer.quantizer import Quantizer

SIGNATURE, INPUT = "serving_default", "args_0"  # of converted files
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# Quantized operations by a pattern of the path of modules that their output is named after.
TRANSFORMER, CONVOLUTIONS = "FusedTransformer_", "ConvLayer_|InvertedResidual_|MobileViTLayer_|FusedASPP_"
INT8_OPERATIONS = {
    f"^(?!.*{TRANSFORMER}).*({CONVOLUTIONS})": (
        *("CONV_2D", "DEPTHWISE_CONV_2D", "LOGISTIC", "MUL", "ADD", "PAD", "CONCATENATION"),
    ),
    TRANSFORMER: ("FULLY_CONNECTED",),
    f"{TRANSFORMER}.*SiLU_": ("LOGISTIC", "MUL"),
}
# Patterns of modules that stay in float32.
FLOAT32_MODULES = {
    # Their activations differ by an order of magnitude between the channels, which share one scale. The KL divergence
    # from float32 is 0.001 nats; with them in int8, 0.003 nats, and the built-in classifier is 1.8 times as fast.
    "image-classification": "conv_stem|MobileNetLayer_0/|MobileNetLayer_1/[^/]*InvertedResidual_0/",
    # The offsets of the boxes would share a scale with the logits.
    "object-detection": "_predictor/",
    # With the inverted residuals in int8, a model trained on street scenes has 56% of the labels of float32 (89% with
    # those of the first stage in float32), with none 99.5%; they take 0.3 ms of 6 ms.
    "image-segmentation": "conv_stem|InvertedResidual_|DeepLabV3_segmentation_head/[^/]*ConvLayer_classifier/",
}
# Ranges of activations exclude the extremes of this fraction of the images at each end. With the extremes of all
# images, or with the quantizer's moving average, the KL divergence is up to a third larger.
EXCLUDED_FRACTION = 0.1
MAX_CALIBRATION_IMAGES = 100  # more do not lower it


def write_litert(request: ExportRequest, path: Path) -> None:
    """Write a model as a LiteRT file; see `export.export_file`. float16 is the dtype of the weights only."""
    content = _convert(request)
    if request.dtype == "float16":
        content = _store_float16(content)
    _write(content, request, path)


def write_litert_int8(request: ExportRequest, path: Path, images: Tensor) -> None:
    """Write a model as a LiteRT file quantized on (N, 3, H, W) float32 outputs of the image processor."""
    inputs = images[:MAX_CALIBRATION_IMAGES].numpy()
    if request.interface == "image":
        inputs = Scaling.from_processor(request.processor).to_image(inputs)
    _write(_quantize(_convert(request), inputs, request.task), request, path)


def _convert(request: ExportRequest) -> bytes:
    """Convert a model to a LiteRT file in float32, with tensors named by their modules."""
    with _silence():
        import litert_torch

        program = trace(replace(request, dtype="float32"))
        return litert_torch.convert(program.module(), (example_input(request)[:1],)).model_content()


def _store_float16(content: bytes) -> bytes:
    """Store the weights of a float32 file in float16; runtimes without float16 convert them when they load it."""
    with _silence():
        from ai_edge_quantizer.algorithm_manager import AlgorithmName

        quantizer = _quantizer(content)
        for operation in WEIGHTED:
            quantizer.add_weight_only_config(".*", operation, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
        return bytes(quantizer.quantize().quantized_model)


def _quantize(content: bytes, inputs: np.ndarray, task: TaskName) -> bytes:
    """Quantize a float32 file, with ranges of activations measured on a batch of inputs."""
    with _silence():
        from ai_edge_quantizer.algorithm_manager import AlgorithmName

        quantizer = _quantizer(content)
        for modules, operations in INT8_OPERATIONS.items():
            for operation in operations:
                quantizer.add_static_config(modules, operation, activation_num_bits=8, weight_num_bits=8)
        quantizer.update_quantization_recipe(FLOAT32_MODULES[task], "*", algorithm_key=AlgorithmName.NO_QUANTIZE)
        ranges = _measure_ranges(content, inputs, quantizer.get_quantization_recipe())
        return bytes(quantizer.quantize(ranges).quantized_model)


def _measure_ranges(content: bytes, inputs: np.ndarray, recipe: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the range of each activation that a recipe quantizes, by the tensor's name."""
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager

    manager = RecipeManager()
    manager.load_quantization_recipe(recipe)
    calibrator = Calibrator(
        content,
        num_threads=1,
        mode=CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS,
        qsv_update_func=lambda old, new: {key: np.append(old[key], new[key]) for key in new} if old else new,
    )
    calibrator.calibrate({SIGNATURE: [{INPUT: each[None]} for each in inputs]}, manager)
    fractions = {"min": EXCLUDED_FRACTION, "max": 1 - EXCLUDED_FRACTION}
    return {
        name: {key: np.quantile(extremes[key], [fraction]).astype(np.float32) for key, fraction in fractions.items()}
        for name, extremes in calibrator.get_model_qsvs().items()
    }


def _quantizer(content: bytes) -> "Quantizer":
    from ai_edge_quantizer.quantizer import Quantizer

    return Quantizer(content)


def _write(content: bytes, request: ExportRequest, path: Path) -> None:
    from .litert_metadata import add_metadata

    path.write_bytes(add_metadata(content, request))


@contextmanager
def _silence() -> Generator[None, None, None]:
    """Discard messages, warnings and progress of the converter and the quantizer."""
    with quiet(), silence_stderr(), redirect_stdout(io.StringIO()):
        yield
