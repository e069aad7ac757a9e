"""ExecuTorch files with the XNNPACK delegate, and the ExecuTorch runtime."""

from pathlib import Path

import numpy as np
import torch

from .fixed_size import FixedSizeRuntime, silence_stderr
from .requests import ExportRequest
from .tracing import trace


def write_executorch(request: ExportRequest, path: Path) -> None:
    """Write a model as an ExecuTorch file for one image of the size of `request.pixels`; see `export.export_file`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = trace(request)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


class ExecuTorchRuntime(FixedSizeRuntime):
    """ExecuTorch on the CPU; the number of threads can't be set."""

    title = "ExecuTorch"

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        from executorch.runtime import Runtime

        with silence_stderr():  # C++ messages about the processor
            self.program = Runtime.get().load_program(path)
            self.method = self.program.load_method("forward")
        self.shape = tuple(self.method.metadata.input_tensor_meta(0).sizes())

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for one image."""
        return [output.numpy().copy() for output in self.method.execute([torch.from_numpy(image[None])])]
