"""LiteRT files (.tflite) in float32, with float16 weights, or quantized to int8.

Quantized are convolutions, linear layers and SiLU, with one scale per output channel for weights. In float32 stay

- attention, layer normalization and residual connections of the transformers: LiteRT's XNNPACK delegate has no int8
  kernels for most of their operations, and the others of LiteRT take longer than those of float32;
- the last layers, and what follows: a detector's offsets and logits would share one scale.

With all supported operations in int8 the files are twice as slow as in float32.
"""

import io
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .image_models import Scaling, example_input
from .litert_runtime import silence_stderr
from .requests import ExportRequest
from .tracing import quiet, trace

if TYPE_CHECKING:
    from ai_edge_quantizer.quantizer import Quantizer

SIGNATURE, INPUT = "serving_default", "args_0"  # of converted files
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# Quantized operations by the path of modules that their output is named after; a later row adds to an earlier one.
TRANSFORMER, CONVOLUTIONS = "FusedTransformer_", "ConvLayer_|InvertedResidual_|MobileViTLayer_"
INT8_OPERATIONS = (
    (
        f"^(?!.*{TRANSFORMER})(?!.*_predictor).*({CONVOLUTIONS})",
        ("CONV_2D", "DEPTHWISE_CONV_2D", "LOGISTIC", "MUL", "ADD", "PAD", "CONCATENATION"),
    ),
    (TRANSFORMER, ("FULLY_CONNECTED",)),
    (f"{TRANSFORMER}.*SiLU_", ("LOGISTIC", "MUL")),
)


def write_litert(request: ExportRequest, path: Path) -> None:
    """Write a model as a LiteRT file; see `export.export_file`. float16 is the dtype of the weights only."""
    content = _convert(request)
    if request.dtype == "float16":
        content = _store_float16(content)
    _write(content, request, path)


def write_litert_int8(request: ExportRequest, path: Path, images: Tensor) -> None:
    """Write a model as a LiteRT file quantized on (N, 3, H, W) float32 outputs of the image processor."""
    inputs = images.numpy()
    if request.interface == "image":
        inputs = Scaling.from_processor(request.processor).to_image(inputs)
    _write(_quantize(_convert(request), inputs), request, path)


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


def _quantize(content: bytes, inputs: np.ndarray) -> bytes:
    """Quantize a float32 file, with ranges of activations measured on a batch of inputs."""
    with _silence():
        from ai_edge_quantizer.calibrator import CalibrationMode

        quantizer = _quantizer(content)
        for modules, operations in INT8_OPERATIONS:
            for operation in operations:
                quantizer.add_static_config(modules, operation, activation_num_bits=8, weight_num_bits=8)
        samples = [{INPUT: each[None]} for each in inputs]
        # In Python, the other mode takes four times as long.
        ranges = quantizer.calibrate({SIGNATURE: samples}, mode=CalibrationMode.CALIBRATION_PROFILER_BASED)
        return bytes(quantizer.quantize(ranges).quantized_model)


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
