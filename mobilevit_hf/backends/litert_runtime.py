"""LiteRT on the CPU. Requires neither torch nor the packages that write LiteRT files."""

from pathlib import Path

import numpy as np

from .fixed_size import FixedSizeRuntime, silence_stderr


class LiteRTRuntime(FixedSizeRuntime):
    """LiteRT on the CPU."""

    title = "LiteRT"

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        from ai_edge_litert.interpreter import Interpreter

        with silence_stderr():
            self.interpreter = Interpreter(str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        (image,) = self.interpreter.get_input_details()
        self.input, self.shape = image["index"], tuple(map(int, image["shape"]))
        self.outputs = [output["index"] for output in self.interpreter.get_output_details()]

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for one image."""
        self.interpreter.set_tensor(self.input, image[None])
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]  # copies
