"""Fine-tuning and training from scratch: arguments, tasks, and the engine that runs them."""

from .arguments import TrainArguments
from .engine import train

__all__ = ["TrainArguments", "train"]
