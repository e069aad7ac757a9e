"""Fine-tuning and training from scratch: arguments, tasks, and the engine that runs them."""

from .arguments import TrainArguments
from .trainer import train

__all__ = ["TrainArguments", "train"]
