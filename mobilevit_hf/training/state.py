"""Where a training is, who is told, and what comes of it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..evaluation import EvaluationResult


class Listener:
    """Who is told how a training goes. This one keeps it to itself."""

    def say(self, text: str, kind: str = "note") -> None:
        """A sentence for the user; `kind` is "note" or that of a problem."""

    def update(self, status: "Status") -> None:
        """Where the training is, after each step."""


@dataclass(frozen=True)
class Status:
    """Where a training is.

    Attributes:
        progress: How much is done, 0..1.
        step: Optimizer steps so far.
        epoch: Times through the data so far.
        loss: Mean over the last steps.
        learning_rate: Of the last step.
        images_per_second: Of all processes together, over the last steps.
        seconds_left: As far as one can tell.
    """

    progress: float
    step: int
    epoch: float
    loss: float
    learning_rate: float
    images_per_second: float
    seconds_left: float


@dataclass
class State:
    """Where a training is, as its checkpoints keep it.

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs begun, less one.
        batch: Batches of this epoch done, by each process.
        epoch_progress: How much of the training was done when the epoch began, 0..1.
        seconds: How long it has run.
        evaluations: How many are done.
        saves: How many checkpoints were written on schedule.
        best: The best value of the chosen metric, None before the first.
        best_step: When that was.
        misses: Evaluations since.
        evaluation_seconds: How long the last evaluation took.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_progress: float = 0.0
    seconds: float = 0.0
    evaluations: int = 0
    saves: int = 0
    best: float | None = None
    best_step: int = 0
    misses: int = 0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Attributes:
        output_dir: The folder of the model, which `from_pretrained` and `pipeline` read.
        metric: The name of the metric that chose the best weights.
        best: Its value on the validation split; None without one.
        steps: How many steps were trained.
        seconds: How long it took.
        evaluation: Of the weights that were kept; None without a validation split.
        history: The lines of `metrics.jsonl`.
    """

    output_dir: Path
    metric: str
    best: float | None
    steps: int
    seconds: float
    evaluation: EvaluationResult | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class Window:
    """Losses and times since the last line was written."""

    def __init__(self) -> None:
        self.mean_loss, self.images_per_second, self.waiting = math.nan, 0.0, 0.0
        self.saved = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._loss, self._batches, self._images, self._waited = 0.0, 0, 0, 0.0
        self._started = time.monotonic()
        self._pending: tuple[torch.Tensor, Callable[[], None]] | None = None

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; how long they are waited for is counted."""
        iterator = iter(batches)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def add(self, loss: torch.Tensor, images: int, fail: Callable[[], None]) -> None:
        """Count a batch. Its loss is looked at when the next one runs: a GPU need not be waited for.

        Raises:
            ValueError: If the loss of the batch before is not a number, by its `fail`.
        """
        self._look()
        self._pending = (loss, fail)
        self._images += images

    def _look(self) -> None:
        if self._pending:
            loss, fail = self._pending
            self._pending = None
            value = loss.item()
            if not math.isfinite(value):
                fail()
            self._loss += value
            self._batches += 1

    def close(self) -> None:
        """Work out the figures, and begin anew."""
        self._look()
        if self._batches:
            seconds = max(time.monotonic() - self._started, 1e-9)
            self.mean_loss = self._loss / self._batches
            self.images_per_second = self._images / seconds
            self.waiting = self._waited / seconds
        self._clear()

    def skip(self) -> None:
        """What was done since the figures were worked out is no training: count from now on."""
        self._started = time.monotonic()
