from .arguments import TrainArguments
from .trainer import train

__all__ = ["TrainArguments", "train"]
