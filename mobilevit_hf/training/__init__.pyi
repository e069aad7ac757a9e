from .arguments import TrainArguments
from .callbacks import TrainerCallback, TrainingProgress
from .signals import StoppedError
from .state import TrainingResult
from .trainer import train

__all__ = ["StoppedError", "TrainArguments", "TrainerCallback", "TrainingProgress", "TrainingResult", "train"]
