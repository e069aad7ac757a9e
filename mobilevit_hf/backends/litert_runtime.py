"""LiteRT on the CPU. Requires neither torch nor the packages that write LiteRT files."""

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_stderr_lock = threading.RLock()


class LiteRTRuntime:
    """LiteRT on the CPU. Images run one by one in the exported size.

    Attributes:
        shape: Shape of the input.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with silence_stderr():
            self.interpreter = Interpreter(str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        (image,) = self.interpreter.get_input_details()
        self.input, self.shape = image["index"], tuple(map(int, image["shape"]))
        self.outputs = [output["index"] for output in self.interpreter.get_output_details()]
        self.lock = threading.Lock()

    def __call__(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for (B, H, W, 3) uint8 images or (B, 3, H, W) float32 pixels, as the file takes.

        Raises:
            ValueError: If the images are not of the exported size.
        """
        if inputs.shape[1:] != self.shape[1:]:
            got, expected = ("x".join(map(str, shape[1:])) for shape in (inputs.shape, self.shape))
            raise ValueError(
                f"inputs: got images of {got}, expected {expected}, the size of the LiteRT export. Resize them, or "
                "use openvino or onnx, which take any size."
            )
        with self.lock:
            outputs = [self._run(image) for image in inputs]
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    def _run(self, image: np.ndarray) -> list[np.ndarray]:
        self.interpreter.set_tensor(self.input, image[None])
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]  # copies


@contextmanager
def silence_stderr() -> Generator[None, None, None]:
    """Discard what is written to the file descriptor of stderr: LiteRT's C++ code has no setting for its messages."""
    with _stderr_lock:
        sys.stderr.flush()
        stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(null)
