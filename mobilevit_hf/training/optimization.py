"""The optimizer and its learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine (SGDR, arXiv 1608.03983, without restarts).

    The cosine begins with the training, not behind the warm-up, as in the official code: the lower of the two counts.

    Args:
        learning_rate: The highest.
        min_lr_rate: The share of it at the end, 0..1.
        warmup_steps: How many steps the warm-up takes; below 1 the share of the training.
        warmup_lr_rate: The share of the highest learning rate that the warm-up begins with, 0..1.
    """

    learning_rate: float
    min_lr_rate: float = 0.0
    warmup_steps: float = 0.0
    warmup_lr_rate: float = 0.0

    def __call__(self, step: int, progress: float) -> float:
        """The learning rate of a step.

        Args:
            step: From 0.
            progress: How much of the training lies behind, 0..1.
        """
        cosine = self.min_lr_rate + (1 - self.min_lr_rate) * (1 + math.cos(math.pi * min(progress, 1))) / 2
        warmed = 1.0
        if self.warmup_steps:
            warmed = min(1, (step if self.warmup_steps >= 1 else progress) / self.warmup_steps)
        ramp = self.warmup_lr_rate + (1 - self.warmup_lr_rate) * warmed
        return self.learning_rate * min(ramp, cosine)


def make_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    decay_norms_and_biases: bool = True,
) -> torch.optim.AdamW:
    """AdamW for the parameters of a model that are trained.

    Args:
        model: Parameters without `requires_grad` are left out.
        learning_rate: To begin with.
        weight_decay: How fast weights shrink, in learning rates.
        betas: AdamW's.
        decay_norms_and_biases: Whether the weights of normalizations and all biases shrink too, as in the paper.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # What has one dimension is the scale of a normalization or a bias.
    groups = [
        {"params": [p for p in trained if p.ndim > 1 or decay_norms_and_biases], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1 and not decay_norms_and_biases], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], learning_rate, betas, fused=True)
