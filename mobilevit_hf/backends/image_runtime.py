"""Run a file that takes an image and returns predictions as one that takes tensors."""

from typing import Any, Protocol

import numpy as np
from transformers import BaseImageProcessor

from ..tasks import TaskName
from .image_models import DUMMY_COLUMNS, Scaling
from .interfaces import Interface

TINY = np.float32(1e-30)  # instead of 0, whose logarithm is not finite


class Runtime(Protocol):
    """A runtime with a loaded file; see `formats.Format`.

    Attributes:
        shape: Shape of the input; names or None for dimensions of any size.
    """

    shape: tuple[Any, ...]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for a batch of images in the form of the interface."""
        ...


class ImageRuntime:
    """A file of the interface "image" or "transformers.js", with the inputs and outputs of the torch model.

    The outputs of the image processor are scaled bytes, from which the bytes are computed exactly. Logits are the
    logarithms of the probabilities; a detector has as many boxes as the file. Labels of pixels become one-hot logits
    of their size.
    """

    def __init__(
        self,
        runtime: Runtime,
        task: TaskName,
        interface: Interface,
        processor: BaseImageProcessor | None,
        num_labels: int,
    ) -> None:
        self.runtime, self.task, self.interface, self.num_labels = runtime, task, interface, num_labels
        self.scaling = Scaling.from_processor(processor)
        self.shape = ("batch", 3, *(runtime.shape[1:3] if interface == "image" else runtime.shape[2:]))

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for (B, 3, H, W) float32 pixels.

        Raises:
            ValueError: If the images are not of the exported size.
        """
        if all(isinstance(side, int) for side in self.shape[2:]) and pixels.shape[2:] != self.shape[2:]:
            raise ValueError(
                f"pixel_values: got images of {pixels.shape[2]}x{pixels.shape[3]} pixels, expected "
                f"{self.shape[2]}x{self.shape[3]}, the size of the exported file. Resize them, or use torch."
            )
        outputs = self.runtime(self._to_input(pixels))
        if self.task == "image-classification":
            return [np.log(np.maximum(outputs[0], TINY))] if self.interface == "image" else outputs
        if self.task == "image-segmentation":
            return [self._one_hot(outputs[0])] if self.interface == "image" else outputs
        convert = self._from_image if self.interface == "image" else self._from_transformers_js
        scores, boxes = convert(*outputs)
        background = 1 - scores.sum(axis=-1, keepdims=True)
        return [np.log(np.maximum(np.concatenate((background, scores), axis=-1), TINY)), boxes]

    def _to_input(self, pixels: np.ndarray) -> np.ndarray:
        image = self.scaling.to_image(pixels)
        return image if self.interface == "image" else image.transpose(0, 3, 1, 2) / np.float32(255)

    def _one_hot(self, labels: np.ndarray) -> np.ndarray:
        """Return logits (B, K, H, W), 1 for the labels (B, H, W) and else 0."""
        return (labels[:, None] == np.arange(self.num_labels).reshape(-1, 1, 1)).astype(np.float32)

    def _from_image(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (B, N, K) and boxes (B, N, 4) (cx, cy, w, h)."""
        is_label = labels[..., None] == np.arange(self.num_labels)
        top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
        centers = np.concatenate(((top_left + bottom_right) / 2, bottom_right - top_left), axis=-1)
        return np.where(is_label, scores[..., None], np.float32(0)), centers

    def _from_transformers_js(self, logits: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (B, N, K) and boxes (B, N, 4) (cx, cy, w, h)."""
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = exponentials[..., : -DUMMY_COLUMNS - 1] / exponentials.sum(axis=-1, keepdims=True)
        return scores, boxes
