"""The exponential moving average of a model's weights while it is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """An average of the weights of all steps so far, in which old steps count less and less.

    Statistics of batch normalization are averaged like weights; counters are copied. The paper evaluates such an
    average (section 4.1), with a momentum of 5e-4: a decay of 0.9995.

    Args:
        model: Where it is and stays: its tensors are read at every update.
        decay: How much of the average an update keeps, 0..1.
        warmup: Keep less in the first updates, (1 + n) / (10 + n) at most, so that a short training forgets its start.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        self.decay, self.warmup, self.num_updates = decay, warmup, 0
        self._current = model.state_dict()  # tensors that share their memory with the model's
        self._averages = {name: value.clone() for name, value in self._current.items()}
        floating = [name for name, value in self._current.items() if value.is_floating_point()]
        self._lerped = [[values[name] for name in floating] for values in (self._averages, self._current)]
        self._copied = [name for name in self._current if name not in set(floating)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model as it is now; to be called after every step of the optimizer."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        torch._foreach_lerp_(*self._lerped, 1 - decay)
        for name in self._copied:
            self._averages[name].copy_(self._current[name])

    @contextmanager
    @torch.no_grad()
    def swap(self) -> Iterator[None]:
        """The model is the average inside, and what it was before again afterwards."""
        kept = {name: value.clone() for name, value in self._current.items()}
        _copy(self._averages, self._current)
        try:
            yield
        finally:
            _copy(kept, self._current)

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many updates made them."""
        return {"averages": self._averages, "num_updates": self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` returned for the same model."""
        _copy(state["averages"], self._averages)
        self.num_updates = state["num_updates"]


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
