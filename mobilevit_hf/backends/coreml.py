"""Core ML packages, for apps on Apple devices; there is no runtime in Python."""

from pathlib import Path

from torch import Tensor, nn

from ..tasks import TASKS, TaskName
from .tracing import INPUT_NAME, trace


def write_coreml(model: nn.Module, task: TaskName, path: Path, pixels: Tensor, dtype: str) -> None:
    """Write a model as a Core ML package for one image of the size of `pixels`; see `export.export_file`."""
    import coremltools as ct

    precision = {"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}[dtype]
    program = trace(model, task, pixels[:1], "float32", dynamic_shapes=False).run_decompositions({})
    ct.convert(
        program,
        inputs=[ct.TensorType(name=INPUT_NAME, shape=pixels[:1].shape)],
        outputs=[ct.TensorType(name=name) for name in TASKS[task].outputs],
        compute_precision=precision,
        minimum_deployment_target=ct.target.iOS16,
    ).save(str(path))
