"""Callback of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training run.

    Attributes:
        progress: Completed fraction, 0..1.
        step: Completed optimizer steps.
        loss: Mean training loss of the last logging interval; NaN before the first ends.
        images_per_second: Throughput of all processes together in the last logging interval; 0 before the first ends.
        part: Current training of a cross-validation, such as "fold 1 of 5"; empty for a single training.
    """

    progress: float
    step: int
    epoch: float
    loss: float
    learning_rate: float
    images_per_second: float
    seconds_left: float
    part: str = ""


class TrainerCallback:
    """Receives messages and progress from a training run, in the main process only; does nothing by default."""

    def on_start(self, summary: Mapping[str, str]) -> None:
        """Receive the summary of the run before the first step: values by title."""

    def on_message(self, text: str, kind: str = "note") -> None:
        """Receive a sentence for the user; `kind` is "note", "warning", "validation", "test" or a `ProblemKind`."""

    def on_progress(self, progress: TrainingProgress) -> None:
        """Receive the progress after each optimizer step."""
