"""What runtimes share whose files take one image of one size. Importing this module does not import torch."""

import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

_stderr_lock = threading.RLock()


class FixedSizeRuntime(ABC):
    """A runtime in which the images of a batch run one by one in the exported size.

    Attributes:
        title: Name of the runtime.
        shape: Shape of the input.
    """

    title: ClassVar[str]
    shape: tuple[int, ...]

    def __init__(self) -> None:
        self.lock = threading.Lock()  # a run reuses the memory of the previous one

    def __call__(self, inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for (B, 3, H, W) float32 pixels or (B, H, W, 3) uint8 images, as the file takes.

        Raises:
            ValueError: If the images are not of the exported size.
        """
        if inputs.shape[1:] != self.shape[1:]:
            got, expected = ("x".join(map(str, shape[1:])) for shape in (inputs.shape, self.shape))
            raise ValueError(
                f"inputs: got images of {got}, expected {expected}, the size of the {self.title} export. Resize them, "
                "or use openvino or onnx, which take any size."
            )
        with self.lock:
            outputs = [self.run(image) for image in inputs]
        return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

    @abstractmethod
    def run(self, image: np.ndarray) -> list[np.ndarray]:
        """Return copies of the outputs for one image, without its batch dimension."""


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
