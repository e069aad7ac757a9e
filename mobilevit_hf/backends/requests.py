"""What an exporter needs to write a file."""

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..model_sources import recommended_threshold
from ..tasks import TaskName
from .interfaces import Interface, input_name, output_names


@dataclass(frozen=True)
class ExportRequest:
    """A model, and how to export it.

    Attributes:
        model: MobileViT model in float32 on the CPU; not modified.
        processor: Its image processor; may be None for the interface "tensors".
        pixels: (B, 3, H, W) example outputs of the image processor.
        dtype: Compute dtype.
    """

    model: PreTrainedModel
    task: TaskName
    processor: BaseImageProcessor | None
    pixels: Tensor
    dtype: str = "float32"
    interface: Interface = "tensors"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image processor's outputs in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def labels(self) -> list[str]:
        """Class names by index."""
        names = self.model.config.id2label or {}
        return [name for _, name in sorted((int(index), name) for index, name in names.items())]

    @property
    def input_name(self) -> str:
        """Name of the input."""
        return input_name(self.interface)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return output_names(self.task, self.interface)

    @property
    def metadata(self) -> dict[str, str]:
        """What an app has to know about a file.

        `names` is a JSON object of class names by index. `crop_pct` is the height of the crop around the center that
        the model takes, as a fraction of the image's shorter side; without it, the model takes the whole image.
        """
        metadata = {
            "task": self.task,
            "interface": self.interface,
            "names": json.dumps(dict(enumerate(self.labels)), ensure_ascii=False),
        }
        if self.task == "object-detection":
            metadata["recommended_threshold"] = str(recommended_threshold(self.model.config))
        processor: Any = self.processor
        if getattr(processor, "do_center_crop", False) and processor.size.get("shortest_edge"):
            metadata["crop_pct"] = f"{processor.crop_size['height'] / processor.size['shortest_edge']:.6g}"
        return metadata
