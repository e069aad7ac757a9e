"""Post-training int8 quantization for OpenVINO by NNCF, on images without labels.

Two settings preserve the accuracy of MobileViT:

- Activation ranges minimize the error on a histogram of all values. NNCF's default, the mean of the minima and maxima
  per image, clips values that occur in half of the images; the global extremes waste quantization steps.
- Operations behind the last layer with weights stay in float32: int8 would round a detector's decoded boxes to 1/256
  of the image.

Depthwise convolutions are quantized per channel by default, which folded batch normalization requires: its scales
differ strongly between channels.
"""

import io
import logging
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .formats import FORMATS, check_packages
from .openvino import convert_openvino, save_openvino
from .requests import ExportRequest
from .telemetry import import_openvino
from .tracing import quiet

if TYPE_CHECKING:
    import openvino

# Layers with weights: their inputs are quantized, and nothing behind the last of them.
WEIGHTED_LAYERS = ("Convolution", "GroupConvolution", "MatMul")


def write_openvino_int8(request: ExportRequest, path: Path, images: Tensor) -> None:
    """Write a model as an int8 OpenVINO file, quantized on (N, 3, H, W) outputs of the image processor."""
    save_openvino(quantize_openvino(convert_openvino(request), [images.numpy()]), path, request.dtype)


def quantize_openvino(model: "openvino.Model", batches: Iterable[np.ndarray]) -> "openvino.Model":
    """Return a copy of an OpenVINO model with int8 weights and activations.

    Args:
        model: Float32 model with folded batch normalization and one input.
        batches: Calibration images without labels, (B, 3, H, W) float32 outputs of the image processor. Some hundred
            suffice; all are kept in memory.

    Raises:
        ValueError: If NNCF is not installed.
    """
    check_packages("quantization: 'int8'", FORMATS["openvino"].int8_packages, FORMATS["openvino"].extra)
    images = [image[None] for batch in batches for image in np.asarray(batch, dtype=np.float32)]
    with quiet(), redirect_stdout(io.StringIO()):  # log messages and progress bars
        nncf = import_openvino("nncf")
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        level = nncf.nncf_logger.level
        nncf.set_log_level(logging.ERROR)
        try:
            return nncf.quantize(
                model.clone(),
                nncf.Dataset(images),
                subset_size=len(images),
                preset=nncf.QuantizationPreset.MIXED,  # asymmetric activations: SiLU's values are mostly positive
                ignored_scope=nncf.IgnoredScope(names=_unweighted_outputs(model), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM
                ),
            )
        finally:
            nncf.set_log_level(level)


def _unweighted_outputs(model: "openvino.Model") -> list[str]:
    """Return the names of the operations that no layer with weights depends on."""
    inputs: set[str] = set()
    pending = [node for node in model.get_ops() if node.get_type_name() in WEIGHTED_LAYERS]
    while pending:
        node = pending.pop()
        if node.get_friendly_name() not in inputs:
            inputs.add(node.get_friendly_name())
            pending += [value.get_node() for value in node.input_values()]
    return [node.get_friendly_name() for node in model.get_ops() if node.get_friendly_name() not in inputs]
