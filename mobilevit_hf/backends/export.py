"""Turn a model into another engine's program."""

import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..modeling.fused_mobilevit import FusedModel
from .formats import DTYPES, OUTPUTS

INPUT = "pixel_values"
# Where an OpenVINO file says what it is to compute in. The engine has to be told again when it compiles it: on its own
# it takes bfloat16 wherever the processor has it.
OPENVINO_PRECISION = ["runtime_options", "INFERENCE_PRECISION_HINT"]
OPENVINO_NAMES = {"float32": "f32", "bfloat16": "bf16"}


def export_program(model: nn.Module, task: str, backend: str, path: Path, pixels: Tensor, dtype: str) -> None:
    """Write the program of a model for one engine.

    Args:
        model: A model of this package in float32, on the CPU; left as it is.
        task: A key of `formats.OUTPUTS`.
        backend: A key of `formats.FORMATS`.
        path: The file to write, in a folder that is there; OpenVINO's weights go beside it as .bin.
        pixels: (B, 3, H, W) what the image processor returns. ExecuTorch's and Core ML's programs take one image of
            this size, the others batches and images of any.
        dtype: What it computes in, a key of `formats.DTYPES`.
    """
    with quiet():
        WRITERS[backend](model, task, path, pixels, dtype)


def _write_onnx(model: nn.Module, task: str, path: Path, pixels: Tensor, dtype: str) -> None:
    import onnx

    program = torch.onnx.export(
        _trace(model, task, _odd_batch(pixels), dtype, any_size=True),
        input_names=[INPUT],
        output_names=list(OUTPUTS[task]),
        dynamo=True,
        external_data=False,
        verbose=False,
    ).model_proto
    graph = program.graph
    # Stack traces with paths of this machine, several times as large as the rest of the graph.
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info, graph, program):
        del part.metadata_props[:]
    # ONNX Runtime's quantizer takes an initializer's shape that is said twice for a contradiction.
    weights = {initializer.name for initializer in graph.initializer}
    known = [info for info in graph.value_info if info.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(known)
    onnx.save(program, path)


def _write_openvino(model: nn.Module, task: str, path: Path, pixels: Tensor, dtype: str) -> None:
    save_openvino(make_openvino(model, task, pixels), path, dtype)


def make_openvino(model: nn.Module, task: str, pixels: Tensor) -> Any:
    """The `openvino.Model` of a model, for batches and images of all sizes; see `export_program`."""
    import openvino

    with quiet(), tempfile.TemporaryDirectory() as folder:
        # By way of ONNX it is the same program, made in a fraction of the time.
        source = Path(folder) / "model.onnx"
        _write_onnx(model, task, source, pixels, "float32")
        return openvino.convert_model(source)


def save_openvino(program: Any, path: Path, dtype: str) -> None:
    """Write an OpenVINO model with what it is to compute in.

    Raises:
        OSError: If it can't be written.
    """
    import openvino

    program.set_rt_info(OPENVINO_NAMES[dtype], OPENVINO_PRECISION)
    try:
        openvino.save_model(program, path, compress_to_fp16=False)
    except RuntimeError as error:  # which does not say why
        raise OSError(f"{path}: can't be written ({error}). Is there room on the disk?") from error


def _write_executorch(model: nn.Module, task: str, path: Path, pixels: Tensor, dtype: str) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = _trace(model, task, pixels[:1], dtype, any_size=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def _write_coreml(model: nn.Module, task: str, path: Path, pixels: Tensor, dtype: str) -> None:
    import coremltools as ct

    precision = {"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}[dtype]
    program = _trace(model, task, pixels[:1], "float32", any_size=False).run_decompositions({})
    ct.convert(
        program,
        inputs=[ct.TensorType(name=INPUT, shape=pixels[:1].shape)],
        outputs=[ct.TensorType(name=name) for name in OUTPUTS[task]],
        compute_precision=precision,
        minimum_deployment_target=ct.target.iOS16,
    ).save(str(path))


WRITERS: dict[str, Callable[[nn.Module, str, Path, Tensor, str], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "executorch": _write_executorch,
    "coreml": _write_coreml,
}


def _odd_batch(pixels: Tensor) -> Tensor:
    """Two images to trace a program for all sizes with.

    Wherever a size is 1 at some layer, or height and width are alike, that would pass for a fact about all images:
    so they are not square, and larger than the coarsest stride, a detector's 256.
    """
    return pixels.new_zeros(2, pixels.shape[1], 288, 320)


def _trace(model: nn.Module, task: str, pixels: Tensor, dtype: str, *, any_size: bool) -> ExportedProgram:
    lean = FusedModel(model, OUTPUTS[task], DTYPES[dtype]).eval()
    sizes = {INPUT: {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}} if any_size else None
    with torch.no_grad():
        program = torch.export.export(lean, (pixels,), dynamic_shapes=sizes, strict=False)
    for node in list(program.graph.nodes):
        # A resize to the size that is there already, which only a program for all sizes needs.
        if node.target is torch.ops.aten.upsample_bilinear2d.vec and not any_size:
            (source, *_) = node.args
            if node.meta["val"].shape == source.meta["val"].shape:
                node.replace_all_uses_with(source)
                program.graph.erase_node(node)
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks on their own workings from the user."""
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


def program_files(path: Path) -> list[Path]:
    """The files of a program: OpenVINO's weights lie beside it, Core ML's package is a folder."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def program_bytes(path: Path) -> int:
    """The size of a program on disk, with its weights."""
    files = [file for part in program_files(path) for file in ([part] if part.is_file() else part.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def remove_program(path: Path) -> None:
    """Delete a program and what lies beside it."""
    for part in program_files(path):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
