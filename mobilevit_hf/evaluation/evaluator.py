"""Measure a model, by one process or several."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import numpy as np
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.types import Problem, Sample
from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
from ..pipelines import fold_batch_norm
from ..tasks import TaskName
from .class_mapping import match_classes
from .classification import Classification
from .confidence_intervals import LEVEL
from .detection import Detection
from .inference import Prepared, Unreadable, forward, group_by_shape, make_batches, prepare_ahead
from .results import EvaluationResult

BATCH_SIZE = 8
RESAMPLES = 1000


def evaluate_model(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    samples: Iterable[Sample],
    classes: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    max_bad: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    rank: int = 0,
    num_replicas: int = 1,
    gather: Callable[[list[Any]], list[Any]] | None = None,
) -> EvaluationResult:
    """Measure an image classifier or object detector on samples.

    Images go through the image processor, the network and the post-processing as in transformers' pipeline, so the
    figures are those of its answers; only boxes stay as the processor gives them, where the pipeline cuts them to
    whole pixels. A detector's boxes enter the metric above the processor's own `score_threshold`, or all of them if
    it has none. Of images, logits and boxes nothing is kept: a classifier's answers are counted, and of a detector's
    there are a score, a class and ten bytes for each detection.

    Several processes share the work if each calls this with the same arguments but `rank`. Each measures every
    `num_replicas`-th sample and, unless the arguments are wrong, calls `gather` once, whatever happens. Then all
    return the same, but for what the network rounds otherwise in other batches, or all raise.

    Args:
        model: It is left as it is and runs where it is, in evaluation mode; a MobileViT with its batch normalizations
            folded.
        processor: What makes the model's inputs; for a detector also detections of its outputs.
        samples: Images with a label or objects; a stream will do. Every process gets all.
        classes: The names that labels stand for, matched with the model's by `match_classes`.
        batch_size: How many images run together, if the processor gives them one size.
        max_bad: The largest share of images that may be unreadable.
        resamples: How often the images are drawn anew for the confidence intervals; 0 leaves them out.
        seed: Of these draws.
        progress: Called after each batch with how many of this process's images are done, and of how many if that
            is known.
        rank: Which of the processes this is, from 0.
        num_replicas: How many there are.
        gather: Given a list of this process, returns in every process those of all as one list, such as
            `accelerate.utils.gather_object`. What is in the list can be pickled.

    Raises:
        ValueError: If the classes don't match, the model does something else or the samples are for something else,
            too many images are unreadable, there are none, or several processes can't be told apart or joined.
        RuntimeError: If another process failed by anything but a ValueError.
    """
    if not 0 <= rank < num_replicas or (num_replicas > 1 and gather is None):
        raise ValueError(
            f"got rank={rank}, num_replicas={num_replicas} and gather={gather}, expected a rank from 0 to "
            "num_replicas - 1 and with several processes a gather, such as accelerate.utils.gather_object."
        )
    task, id2label = _task_of(model), model.config.id2label
    targets, notes = match_classes(id2label, classes)
    measure = (
        Detection(processor, id2label, targets) if task == "object-detection" else Classification(id2label, targets)
    )
    share = _Share(samples, rank, num_replicas)
    failure = None
    try:
        part = _measure(model, processor, share, measure, batch_size, max_bad, progress)
    except Exception as error:  # raised below, as the other processes wait for this one
        failure, part = error, _Part(error=_without_class(error))
    parts = gather([part]) if gather else [part]
    if error := failure or next((part.error for part in parts if part.error), None):
        raise error
    unreadable = sorted(chain(*(part.unreadable for part in parts)), key=attrgetter("place"))
    problems, count = [image.problem for image in unreadable], sum(part.count for part in parts)
    _check_share(problems, count, max_bad)
    measure.join(part.known for part in parts)
    metrics = measure.compute()
    if metrics.get("accuracy") == 1:
        possible = 1 - (1 - LEVEL) ** (1 / count)
        notes.append(
            f"All {count} images are right, so drawing them anew shows no doubt. An error rate of {possible:.1%} "
            f"would still give that in {1 - LEVEL:.0%} of such tests."
        )
    return EvaluationResult(
        task=task,
        metrics=metrics,
        intervals=measure.intervals(metrics, resamples, np.random.default_rng(seed)) if resamples else {},
        best_threshold=measure.best_threshold(),
        images_per_second=count / max(part.seconds for part in parts),
        num_images=count,
        problems=problems,
        notes=notes,
        confusion=measure.confusion(),
        mistakes=measure.mistakes(),
    )


def _task_of(model: PreTrainedModel) -> TaskName:
    name = type(model).__name__
    if name.endswith("ForImageClassification"):
        return "image-classification"
    if name.endswith("ForObjectDetection"):
        return "object-detection"
    raise ValueError(f"model: got {name}, expected an image classifier or an object detector.")


class _Share:
    """The samples that one process measures, each with its place among all.

    Attributes:
        total: How many samples there are, None if nobody knows.
        own_total: How many of them are this process's.
    """

    def __init__(self, samples: Iterable[Sample], rank: int, num_replicas: int) -> None:
        self.samples = samples
        self.step = slice(rank, None, num_replicas)
        self.total = len(samples) if isinstance(samples, Sequence) else None
        self.own_total = None if self.total is None else len(range(self.total)[self.step])

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        if self.total is None:
            return islice(enumerate(self.samples), self.step.start, None, self.step.step)
        return ((place, self.samples[place]) for place in range(self.total)[self.step])


@dataclass
class _Part:
    """What one process tells the others.

    Attributes:
        known: What `Classification` or `Detection` knows of the answers.
        unreadable: The images that can't be read.
        count: How many images could be.
        seconds: What that took.
        error: Why it stopped, if it did; the rest is then empty.
    """

    known: Any = None
    unreadable: list[Unreadable] = field(default_factory=list)
    count: int = 0
    seconds: float = 0.0
    error: Exception | None = None


def _measure(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    share: _Share,
    measure: Classification | Detection,
    batch_size: int,
    max_bad: float,
    progress: Callable[[int, int | None], None] | None,
) -> _Part:
    """What one process does by itself. It stops early where its own unreadable images are too many of all."""
    model = fold_batch_norm(model) if isinstance(model, MobileViTPreTrainedModel) else copy.deepcopy(model).eval()
    part, start = _Part(), time.perf_counter()
    # Set here once for all threads: the filters that `load_image` sets and restores belong to the whole process.
    with warnings.catch_warnings(action="ignore"):
        for batch in make_batches(prepare_ahead(processor, share, 2 * batch_size), batch_size):
            good = [prepared for prepared in batch if isinstance(prepared, Prepared)]
            part.unreadable += [prepared for prepared in batch if isinstance(prepared, Unreadable)]
            answers = [(group, measure.answer(forward(model, group), group)) for group in group_by_shape(good)]
            part.seconds += time.perf_counter() - start
            for group, answer in answers:
                measure.add(answer, group)
            part.count += len(good)
            if len(part.unreadable) > max_bad * (share.total or math.inf):
                break
            if progress:
                progress(part.count + len(part.unreadable), share.own_total)
            start = time.perf_counter()
    part.known = measure.known
    return part


def _without_class(error: Exception) -> Exception:
    """The same as one of Python's own errors, which any process can read."""
    if isinstance(error, ValueError):
        return ValueError(str(error))
    return RuntimeError(f"Another process failed: {type(error).__name__}: {error}")


def _check_share(problems: Sequence[Problem], count: int, max_bad: float) -> None:
    total = len(problems) + count
    if not total:
        raise ValueError("There are no images to measure on: the split is empty.")
    if not count or len(problems) > max_bad * total:
        first = problems[0]
        raise ValueError(
            f"{len(problems)} of {total} images can't be read, more than {max_bad:.0%}, such as {first.name}: "
            f"{first.reason}. Mend them, or allow more bad ones."
        )
