"""The stages of a pipeline, one by one: preprocess an image, run a batch, convert the outputs of an image."""

import base64
import contextlib
import io
import json
from collections.abc import Hashable, Mapping
from itertools import chain
from typing import Any, cast

import torch
from PIL import Image
from transformers import Pipeline

from ..modeling.finite import NonFiniteOutputError
from ..tasks import TaskName

Tensors = Mapping[str, Any]  # tensors of one image (1, ...), and lists of one element


class Predictor:
    """Runs a pipeline of `mobilevit_hf.pipeline` with the same results as its calls.

    Args:
        pipeline: The pipeline.

    Attributes:
        task: Task of the model.
        threads: Number of batches to run at a time. On a CPU, torch runs each in one thread: its threads would wait
            for each other after every layer, and hundreds of times longer if they share the cores with other threads
            or processes. Other runtimes and GPUs run one batch at a time on all of their threads.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.task = pipeline, cast("TaskName", pipeline.task)
        on_cpu = isinstance(pipeline.model, torch.nn.Module) and pipeline.device.type == "cpu"
        self.threads = torch.get_num_threads() if on_cpu else 1

    def preprocess(self, image: bytes) -> Tensors:
        """Return the model's inputs for the content of an image file.

        Raises:
            UnreadableImageError: If it can't be decoded.
        """
        return self.pipeline.preprocess(image, **self.pipeline._preprocess_params)

    def forward(self, inputs: list[Tensors]) -> list[Tensors]:
        """Return the model's outputs for images whose inputs have equal keys, see `batch_key`.

        Raises:
            NonFiniteOutputError: If an output of an image is not finite.
        """
        batch = {name: _concatenate([image[name] for image in inputs]) for name in inputs[0]}
        outputs = self.pipeline.forward(batch, **self.pipeline._forward_params)
        return [
            type(outputs)({name: values[index : index + 1] for name, values in outputs.items() if values is not None})
            for index in range(len(inputs))
        ]

    def postprocess(self, outputs: Tensors, parameters: dict[str, Any]) -> bytes:
        """Return the pipeline's predictions for an image as JSON; masks are PNG files in base64.

        Args:
            outputs: Outputs of the model for the image.
            parameters: Arguments of the pipeline's call.
        """
        _, _, arguments = self.pipeline._sanitize_parameters(**parameters)
        predictions = self.pipeline.postprocess(cast("Any", outputs), **self.pipeline._postprocess_params | arguments)
        return json.dumps(predictions, default=_encode_mask, allow_nan=False).encode()

    def warm_up(self, batch_size: int) -> None:
        """Run a blank image, alone and in a batch: the first calls of some runtimes take longer."""
        blank = io.BytesIO()
        Image.new("RGB", (256, 256), "gray").save(blank, "PNG")
        inputs = self.preprocess(blank.getvalue())
        for size in (1, batch_size):
            with contextlib.suppress(NonFiniteOutputError):  # other images may have finite outputs
                self.postprocess(self.forward([inputs] * size)[0], {})


def batch_key(inputs: Tensors) -> Hashable:
    """Return the shapes of an image's tensors. Those of a batch are equal."""
    return tuple((name, values.shape) for name, values in inputs.items() if isinstance(values, torch.Tensor))


def _concatenate(values: list[Any]) -> Any:
    return torch.cat(values) if isinstance(values[0], torch.Tensor) else list(chain.from_iterable(values))


def _encode_mask(mask: Any) -> str:
    if not isinstance(mask, Image.Image):
        raise TypeError(f"predictions: got {type(mask).__name__}, expected JSON or an image.")
    file = io.BytesIO()
    mask.save(file, "PNG", compress_level=1)  # large areas of one value: hardly larger, in half of the time
    return base64.b64encode(file.getvalue()).decode()
