"""Run an exported file as a model that transformers' pipelines accept."""

import copy
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.utils import ModelOutput

from ..modeling.finite import check_finite_outputs
from ..modeling.modeling_mobilevit import check_pixel_values
from ..tasks import TASKS, TaskName
from .files import exported_bytes
from .formats import FORMATS
from .image_runtime import ImageRuntime, Runtime
from .interfaces import Interface
from .precision import Choice

RunFile = Callable[[np.ndarray], list[np.ndarray]]  # pixels → outputs of the torch model


class ExportedModel:
    """An exported model with the call interface of the torch model.

    Inputs and outputs are float32 tensors on the CPU, whatever the precision of the file.

    Attributes:
        outputs: Names of the outputs, in order.
        interface: Interface of the file. The outputs of an "image" file are converted to those of the torch model: its
            probabilities to logits; a detector has as many boxes as the file.
        file_bytes: Size of the file, weights included.
        choice: Precision that `dtype="auto"` chose, None if it was given.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    device, dtype = torch.device("cpu"), torch.float32
    choice: Choice | None = None
    interface: Interface = "tensors"

    def __init__(self, config: PreTrainedConfig, task: TaskName, runtime: RunFile, file_bytes: int) -> None:
        self.config, self.runtime, self.file_bytes = config, runtime, file_bytes
        self.outputs, self.output_class = TASKS[task].outputs, TASKS[task].output_class

    def __call__(self, pixel_values: Tensor | None = None, **kwargs: Any) -> ModelOutput:
        """Return the task's output for (B, 3, H, W) pixels.

        Raises:
            ValueError: If the pixels don't fit the model, an output is requested that was not exported, or an output
                is not finite.
        """
        if unsupported := [name for name, value in kwargs.items() if value not in (None, False)]:
            raise ValueError(
                f"{unsupported[0]}: not supported by an exported model, which returns {', '.join(self.outputs)}. "
                "Use the torch backend."
            )
        pixels = check_pixel_values(pixel_values, getattr(self.config, "backbone_config", self.config))
        arrays = self.runtime(pixels.detach().to("cpu", torch.float32).contiguous().numpy())
        outputs = dict(zip(self.outputs, map(torch.from_numpy, arrays), strict=True))
        check_finite_outputs(outputs, self.outputs)
        return self.output_class(**outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ExportedModel":
        """Return the model itself: it is immutable, and evaluation copies models."""
        return self

    def to(self, device: Any = None, **kwargs: Any) -> "ExportedModel":
        """Return the model itself.

        Raises:
            ValueError: If the device is not the CPU.
        """
        check_device(device)
        return self

    def eval(self) -> "ExportedModel":
        """Return the model itself."""
        return self

    def can_generate(self) -> bool:
        """Return False."""
        return False

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError: there are no weights to save."""
        raise ValueError("save_pretrained: got an exported model, expected a torch model. Save its torch model.")


def processor_of_outputs(model: Any, processor: Any) -> Any:
    """Return the image processor that converts a model's outputs to detections.

    Boxes of a file that applies NMS are clipped, which increases their IoU: they must not go through NMS again.
    """
    if getattr(model, "interface", "tensors") == "tensors" or not hasattr(processor, "nms_iou_threshold"):
        return processor
    processor = copy.copy(processor)
    processor.nms_iou_threshold = 1.0
    return processor


def check_device(device: Any) -> None:
    """Raise a ValueError for any device but the CPU, which transformers also encodes as -1."""
    if device not in (None, -1) and torch.device(device).type != "cpu":
        raise ValueError(f"device: got {device}, expected cpu for an exported model. Use the torch backend.")


def load_exported_model(
    path: Path,
    config: PreTrainedConfig,
    task: TaskName,
    backend: str,
    threads: int | None = None,
    *,
    interface: Interface = "tensors",
    processor: BaseImageProcessor | None = None,
) -> ExportedModel:
    """Load an exported file.

    Args:
        path: File written by `export.export_file`.
        config: Configuration of the model it was exported from.
        threads: Number of threads. Default: torch's number of threads.
        interface: Interface of the file.
        processor: Image processor of the model, which may be None for the interface "tensors".

    Raises:
        ValueError: If the runtime can't read the file.
    """
    if (runtime_class := FORMATS[backend].runtime) is None:
        raise ValueError(f"backend: {backend} files can't be run in Python. Use one of the other backends.")
    try:
        loaded: Runtime = pkgutil.resolve_name(runtime_class)(path, threads or torch.get_num_threads())
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backend: {backend} can't be imported ({reason}). Install it again.") from error
    except Exception as error:  # each library has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: {backend} can't read it ({reason}). Remove it and export again.") from error
    runtime: RunFile = loaded
    if interface != "tensors":
        runtime = ImageRuntime(loaded, task, interface, processor, len(config.id2label or {}))
    # transformers' pipelines look up the class name in their tables of supported models.
    model_class = type(TASKS[task].architecture, (ExportedModel,), {})
    model = model_class(config, task, runtime, exported_bytes(path))
    model.interface = interface
    return model
