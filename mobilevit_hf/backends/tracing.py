"""Trace a model with torch.export, in the form that the exporters take."""

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..modeling.fused_mobilevit import FusedModel
from ..tasks import TASKS, TaskName

INPUT_NAME = "pixel_values"  # in exported files


def trace(model: nn.Module, task: TaskName, pixels: Tensor, dtype: str, *, dynamic_shapes: bool) -> ExportedProgram:
    """Trace the fused copy of a model.

    Args:
        model: MobileViT model in float32 on the CPU; not modified.
        pixels: (B, 3, H, W) example input.
        dtype: Compute dtype; inputs and outputs stay float32.
        dynamic_shapes: Trace for any batch and image size instead of that of `pixels`.
    """
    shapes = None
    if dynamic_shapes:
        # torch.export specializes on sizes of 1 and on equal height and width at any layer: so the example has two
        # images, is not square, and is larger than the coarsest stride, 256 of a detector.
        pixels = pixels.new_zeros(2, pixels.shape[1], 288, 320)
        shapes = {INPUT_NAME: {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    fused = FusedModel(model, TASKS[task].outputs, getattr(torch, dtype)).eval()
    with torch.no_grad():
        program = torch.export.export(fused, (pixels,), dynamic_shapes=shapes, strict=False)
    if not dynamic_shapes:
        _remove_identity_resizes(program)
    return program


def _remove_identity_resizes(program: ExportedProgram) -> None:
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.upsample_bilinear2d.vec:
            source, *_ = node.args
            if node.meta["val"].shape == source.meta["val"].shape:
                node.replace_all_uses_with(source)
                program.graph.erase_node(node)


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Silence warnings and log messages of the exporters."""
    loggers = [logging.getLogger(name) for name in ("torch", "executorch", "coremltools", "onnxscript", "openvino")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
