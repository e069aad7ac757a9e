"""Exponential moving average (EMA) of a model's weights."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a model's weights and batch-norm statistics; integer counters are copied.

    The paper evaluates such an average (section 4.1), with a momentum of 5e-4: a decay of 0.9995. Not torch's
    `AveragedModel`: it moves its step counter to the GPU on each update, which waits for the GPU, and takes the first
    update for the average instead of the initial weights.

    Args:
        model: Model on its final device.
        decay: Fraction of the average that an update keeps, 0..1.
        warmup: Limit the decay of update n to (1 + n) / (10 + n), for short runs.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        self.decay, self.warmup, self.num_updates = decay, warmup, 0
        self._current = model.state_dict()  # shares memory with the model
        self._averages = {name: value.clone() for name, value in self._current.items()}
        floating = [name for name, value in self._current.items() if value.is_floating_point()]
        self._floating = [[values[name] for name in floating] for values in (self._averages, self._current)]
        self._counters = self._current.keys() - floating

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's current weights, after each optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        torch._foreach_lerp_(*self._floating, 1 - decay)
        for name in self._counters:
            self._averages[name].copy_(self._current[name])

    @contextmanager
    @torch.no_grad()
    def swap(self) -> Generator[None, None, None]:
        """Put the average into the model inside the context, and the model's own weights back afterwards."""
        weights = {name: value.clone() for name, value in self._current.items()}
        _copy(self._averages, self._current)
        try:
            yield
        finally:
            _copy(weights, self._current)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        return {"averages": self._averages, "num_updates": self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned for the same model."""
        _copy(state["averages"], self._averages)
        self.num_updates = state["num_updates"]


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
