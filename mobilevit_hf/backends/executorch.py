"""ExecuTorch files with the XNNPACK delegate, and the ExecuTorch runtime."""

import threading
from pathlib import Path

import numpy as np
import torch

from .litert_runtime import silence_stderr
from .requests import ExportRequest
from .tracing import trace


def write_executorch(request: ExportRequest, path: Path) -> None:
    """Write a model as an ExecuTorch file for one image of the size of `request.pixels`; see `export.export_file`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = trace(request)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


class ExecuTorchRuntime:
    """ExecuTorch on the CPU. Images run one by one in the exported size; the number of threads can't be set."""

    def __init__(self, path: Path, threads: int) -> None:
        from executorch.runtime import Runtime

        with silence_stderr():  # C++ messages about the processor
            self.program = Runtime.get().load_program(path)
            self.method = self.program.load_method("forward")
        self.shape = tuple(self.method.metadata.input_tensor_meta(0).sizes())
        self.lock = threading.Lock()

    def __call__(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for (B, 3, H, W) float32 pixels or (B, H, W, 3) uint8 images, as the file takes.

        Raises:
            ValueError: If the images are not of the exported size.
        """
        if inputs.shape[1:] != self.shape[1:]:
            got, expected = ("x".join(map(str, shape[1:])) for shape in (inputs.shape, self.shape))
            raise ValueError(
                f"inputs: got images of {got}, expected {expected}, the size of the ExecuTorch export. Resize them, "
                "or use openvino or onnx, which take any size."
            )
        with self.lock:  # a run reuses the memory of the previous outputs
            outputs = [[t.numpy().copy() for t in self.method.execute([torch.from_numpy(i[None])])] for i in inputs]
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
