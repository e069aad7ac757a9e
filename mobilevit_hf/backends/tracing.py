"""Trace a model with torch.export, in the form that the exporters take."""

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr

import torch
from torch.export import Dim, ExportedProgram

from .image_models import build_module, example_input
from .requests import ExportRequest


def trace(request: ExportRequest, *, dynamic_shapes: bool = False) -> ExportedProgram:
    """Trace the module of a request.

    Args:
        dynamic_shapes: Trace a module of the interface "tensors" for any batch and image size, or one of the interface
            "transformers.js" for any image size, instead of one image of the size of `request.pixels`.
    """
    shapes, example = None, example_input(request)[:1]
    if dynamic_shapes:
        # torch.export specializes on sizes of 1 and on equal height and width at any layer: so the example has two
        # images, is not square, and is larger than the coarsest stride, 256 of a detector.
        batch = 2 if request.interface == "tensors" else 1
        example = example.new_zeros(batch, example.shape[1], 288, 320)
        shapes = {request.input_name: dict.fromkeys((0, 2, 3) if batch > 1 else (2, 3), Dim.DYNAMIC)}
    with torch.no_grad():
        program = torch.export.export(build_module(request), (example,), dynamic_shapes=shapes, strict=False)
    if not dynamic_shapes or request.interface != "tensors":
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
    handlers = logging.root.handlers[:]  # `logging.warning` adds one, which would keep the redirected stream
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
