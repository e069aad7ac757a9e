"""State, result and throughput of a training run."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..evaluation import EvaluationResult
from ..evaluation.confidence_intervals import PROPORTIONS, wilson_interval
from ..records import CrossValidationRecord

T = TypeVar("T")


@dataclass
class TrainerState:
    """Counters that checkpoints store."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # of each process, since `start`
    start: int = 0  # position at which the current number of processes took over, see `TrainingDataLoader.position`
    position: int = 0  # of the checkpoint
    order_processes: int = 0  # number of processes that the epoch began with, if it was another than the current
    lanes: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)  # see `TrainingDataLoader.positions`
    step_offset: float = 0.0  # steps of the current size that the run has done less or more than `step`
    epoch_progress: float = 0.0  # completed fraction of the training at the start of the current epoch
    seconds: float = 0.0  # without interruptions
    evaluations: int = 0
    saves: int = 0
    best: float | None = None  # value of the selected metric
    best_step: int = 0
    misses: int = 0  # evaluations since the best one
    evaluation_seconds: float = 0.0  # of the last evaluation


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        output_dir: Directory of the model, for `from_pretrained` and `pipeline`.
        metric: Metric that selected the saved weights.
        best: Its value on the validation split; None without one.
        evaluation: Evaluation of the saved weights on the validation split; None without one.
        test: Evaluation of the saved weights on the test split, the only one; None without one.
        cross_validation: Metrics of the folds, if the model is trained on all folds of a cross-validation.
        pooled: Predictions of its folds as one evaluation, each image by the model that is not trained on it.
        history: Lines of `metrics.jsonl`.
    """

    output_dir: Path
    metric: str
    best: float | None
    steps: int
    seconds: float
    evaluation: EvaluationResult | None = None
    test: EvaluationResult | None = None
    cross_validation: CrossValidationRecord | None = None
    pooled: EvaluationResult | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_evaluations(self) -> int:
        """Number of evaluations on the validation split, of which `best` is the best."""
        return sum(f"eval_{self.metric}" in line for line in self.history)

    @property
    def fold_intervals(self) -> dict[str, tuple[float, float]]:
        """95% intervals of the mean proportions over the folds, on all their images; empty without folds."""
        folds = self.cross_validation
        if not folds:
            return {}
        means = {name: statistics.fmean(folds.metrics[name]) for name in PROPORTIONS if name in folds.metrics}
        total = sum(folds.num_images)
        return {name: wilson_interval(mean * total, total) for name, mean in means.items()}


class ThroughputMeter:
    """Mean losses, throughput and data waiting time of a logging interval.

    Attributes:
        losses: Mean of the `loss` and its parts, by name, in the last complete interval; empty before.
        images_per_second: Throughput of this process in it; 0 before.
        waiting: Fraction of its time spent waiting for batches, 0..1.
    """

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}
        self.images_per_second, self.waiting = 0.0, 0.0
        self._start_interval()

    def _start_interval(self) -> None:
        self._sums: Counter[str] = Counter()
        self._batches, self._images, self._waited = 0, 0, 0.0
        self._started = time.monotonic()
        self._pending: tuple[dict[str, Tensor], Callable[[], None]] | None = None

    @property
    def mean_loss(self) -> float:
        """Mean loss of the last complete interval; NaN before."""
        return self.losses.get("loss", math.nan)

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches and measure the time spent waiting for them."""
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, Tensor], images: int, fail: Callable[[], None]) -> None:
        """Count a batch; its losses are read while the next one runs, which avoids waiting for a GPU.

        `fail` raises the error for a loss that is not finite.
        """
        self._read_losses()
        self._pending = (losses, fail)
        self._images += images

    def _read_losses(self) -> None:
        if self._pending:
            losses, fail = self._pending
            self._pending = None
            values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
            if not all(map(math.isfinite, values.values())):
                fail()
            self._sums.update(values)
            self._batches += 1

    def close(self) -> None:
        """Compute the interval's figures and start the next one."""
        self._read_losses()
        if self._batches:
            seconds = max(time.monotonic() - self._started, 1e-9)
            self.losses = {name: value / self._batches for name, value in self._sums.items()}
            self.images_per_second = self._images / seconds
            self.waiting = self._waited / seconds
        self._start_interval()

    def skip(self) -> None:
        """Restart the clock: exclude the time since `close`, such as an evaluation."""
        self._started = time.monotonic()
