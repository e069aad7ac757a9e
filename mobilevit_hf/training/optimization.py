"""Optimizer and learning rate schedule."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay (SGDR, arXiv 1608.03983, without restarts).

    The cosine starts with the training, not after the warm-up, as in the official code: the lower of the two applies.

    Args:
        learning_rate: Peak learning rate.
        min_lr_rate: Final learning rate, as a fraction of the peak, 0..1.
        warmup_steps: Steps of the warm-up; below 1, a fraction of the training.
        warmup_lr_rate: Initial learning rate of the warm-up, as a fraction of the peak, 0..1.
    """

    learning_rate: float
    min_lr_rate: float = 0.0
    warmup_steps: float = 0.0
    warmup_lr_rate: float = 0.0

    def __call__(self, step: int, progress: float) -> float:
        """Return the learning rate of a step; `progress` is the completed fraction of the training."""
        cosine = self.min_lr_rate + (1 - self.min_lr_rate) * (1 + math.cos(math.pi * min(progress, 1))) / 2
        warmed = 1.0
        if self.warmup_steps:
            warmed = min(1, (step if self.warmup_steps >= 1 else progress) / self.warmup_steps)
        ramp = self.warmup_lr_rate + (1 - self.warmup_lr_rate) * warmed
        return self.learning_rate * min(ramp, cosine)


def create_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    decay_norms_and_biases: bool = True,
) -> torch.optim.AdamW:
    """Create AdamW for the trainable parameters of a model; the paper decays norms and biases too."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Parameters of one dimension are biases and normalization weights.
    groups = [
        {"params": [p for p in trainable if p.ndim > 1 or decay_norms_and_biases], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1 and not decay_norms_and_biases], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], learning_rate, betas, fused=True)
