"""Checks for NaN and infinity in weights and outputs."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class NonFiniteOutputError(ValueError):
    """An output contains NaN or infinity.

    Attributes:
        index: Index of the first such image in its batch.
        reason: The fact without the image's name.
    """

    def __init__(self, index: int, name: str, values: Tensor) -> None:
        self.index = index
        self.reason = f"got {_describe(values)} in {name}, expected finite outputs. Use float32, or another model."
        super().__init__(f"image {index} of the batch: {self.reason}")


def check_finite_weights(model: nn.Module, source: str) -> None:
    """Check that all parameters and buffers are finite; `source` names the model in the message.

    Raises:
        ValueError: If one contains NaN or infinity.
    """
    tensors = {
        name: tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        # Tensors of other types are quantized or have no values.
        if type(tensor.data) is Tensor and tensor.is_floating_point() and not tensor.is_meta
    }
    invalid = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if invalid:
        others = f" and {len(invalid) - 1} more" if len(invalid) > 1 else ""
        raise ValueError(
            f"{source}: got {_describe(tensors[invalid[0]])} in {invalid[0]}{others}, expected finite weights. "
            "Use weights that were saved before the training diverged, or download them again."
        )


def check_finite_outputs(outputs: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Check the outputs of a batch, (B, ...) each; names that are missing or None are ignored.

    Raises:
        NonFiniteOutputError: If the output of an image contains NaN or infinity.
    """
    for name in names:
        values = outputs.get(name)
        if values is None or (is_finite := values.isfinite()).all():
            continue
        index = int((~is_finite).flatten(1).any(dim=1).nonzero()[0])
        raise NonFiniteOutputError(index, name, values[index])


def _describe(values: Tensor) -> str:
    return "NaN" if torch.isnan(values).any() else "infinity"


__all__ = ["NonFiniteOutputError", "check_finite_outputs", "check_finite_weights"]
