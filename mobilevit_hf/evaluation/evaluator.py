"""Evaluate a model on a dataset, in one or several processes."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import numpy as np
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.types import Problem, Sample
from ..modeling.finite import check_finite_weights
from ..modeling.fused_mobilevit import fold_batch_norm
from ..modeling.modeling_mobilevit import MobileViTPreTrainedModel
from ..modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from ..tasks import TaskName, find_task
from ..threads import one_torch_thread
from .class_mapping import match_classes
from .classification import ClassificationMetrics
from .detection import DetectionMetrics
from .inference import Prepared, Unreadable, forward, group_by_shape, make_batches, prepare_ahead
from .results import EvaluationResult
from .segmentation import SegmentationMetrics
from .task_metrics import TaskMetrics

BATCH_SIZE = 8
RESAMPLES = 1000
THRESHOLD_DIGITS = 3  # of a selected threshold, which is saved with the model

Gather = Callable[[list[Any]], list[Any]]
Progress = Callable[[int, int | None], None]

TASK_METRICS: dict[TaskName, type[TaskMetrics]] = {
    "image-classification": ClassificationMetrics,
    "object-detection": DetectionMetrics,
    "image-segmentation": SegmentationMetrics,
}


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
    select_threshold: bool = False,
    progress: Progress | None = None,
    rank: int = 0,
    num_replicas: int = 1,
    gather: Gather | None = None,
) -> EvaluationResult:
    """Evaluate an image classifier, object detector or semantic segmentation model.

    Images pass the image processor, the network and the post-processing as in transformers' pipeline, so the metrics
    are those of its predictions; only boxes are not rounded to whole pixels. All boxes of a detector above the
    processor's `score_threshold` enter the metrics, or all boxes if it has none. Label maps are compared at the
    resolution of the masks. The predictions of all images are kept, in about 100 bytes per image of a classifier and
    38 bytes per detection, and of label maps the numbers of pixels; neither images nor logits are.

    Several processes share the work if each calls this function with the same arguments except `rank`. Each evaluates
    every `num_replicas`-th sample and, unless the arguments are invalid, calls `gather` exactly once, also after an
    error. Then all processes return the same result, up to the network's rounding in batches of other sizes, or all
    raise.

    Args:
        model: Model on any device, left unchanged. A copy runs in evaluation mode; the batch normalizations of a
            MobileViT are folded.
        processor: Image processor of the model; for a detector with `post_process_object_detection`.
        samples: Images with a label, objects or a mask, or a stream of them; all of them in every process.
        classes: Class names of the dataset, in label order, matched with the model's by `match_classes`.
        batch_size: Number of images per batch, if the processor resizes them to one size.
        max_bad: Maximum fraction of unreadable images.
        resamples: Number of bootstrap resamples for the confidence intervals; with 0, only proportions have one.
        seed: Random seed of the resamples.
        select_threshold: Whether the best threshold of a detector, rounded, takes the place of the recommended one, as
            on the validation split in training.
        progress: Callback after each batch, with the number of images done by this process, and their total number,
            None for a stream.
        rank, num_replicas: Index of this process, and number of processes.
        gather: Function that concatenates the lists of all processes in every process, such as
            `accelerate.utils.gather_object`. The items can be pickled.

    Raises:
        ValueError: If the classes don't match, model or samples are of another task, there are too many unreadable
            images or no images, weights or outputs are not finite, or `rank`, `num_replicas` and `gather` are
            inconsistent.
        RuntimeError: If another process failed with an error other than a ValueError.
    """
    if not 0 <= rank < num_replicas or (num_replicas > 1 and gather is None):
        raise ValueError(
            f"rank: got rank={rank}, num_replicas={num_replicas} and gather={gather}, expected a rank from 0 to "
            "num_replicas - 1. With several processes, pass a gather, such as accelerate.utils.gather_object."
        )
    task, metrics, notes = _make_metrics(model, processor, classes)
    step = slice(rank, None, num_replicas)
    shards = _gather_shards(
        lambda: _evaluate_shard(
            model, processor, *_select_shard(samples, step), metrics, batch_size, max_bad, progress
        ),
        gather,
    )
    problems = _merge_shards(shards, metrics, max_bad)
    if select_threshold and (best := metrics.best_threshold()):
        metrics.recommended = round(best.value, THRESHOLD_DIGITS)
    seconds = max(shard.seconds for shard in shards)
    return _compute_result(task, metrics, notes, shards, problems, seconds, resamples, seed)


def evaluate_folds(
    folds: Iterable[tuple[PreTrainedModel, BaseImageProcessor, Sequence[int]]],
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    max_bad: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
    recommended_threshold: float | None = None,
) -> EvaluationResult:
    """Evaluate the models of a cross-validation, each on its own fold, as one evaluation of all samples.

    Args:
        folds: Model, image processor and indices of the samples of each fold; the models have the same classes.
        samples: Images of all folds.
        classes: Class names of the dataset, in label order.
        batch_size, max_bad, resamples, seed: See `evaluate_model`.
        recommended_threshold: Score threshold of a detector in place of the models' own ones.

    Raises:
        ValueError: As `evaluate_model`.
    """
    shards, measured, total = [], [], len(samples)
    for model, processor, indices in folds:
        measured.append(_make_metrics(model, processor, classes))
        shard = ((index, samples[index]) for index in indices)
        metrics = measured[-1][1]
        shards.append(_evaluate_shard(model, processor, shard, total, None, metrics, batch_size, max_bad, None))
    task, metrics, notes = measured[0]
    problems = _merge_shards(shards, metrics, max_bad)
    metrics.recommended = recommended_threshold
    seconds = sum(shard.seconds for shard in shards)
    return _compute_result(task, metrics, notes, shards, problems, seconds, resamples, seed)


def _make_metrics(
    model: PreTrainedModel, processor: BaseImageProcessor, classes: Sequence[str]
) -> tuple[TaskName, TaskMetrics, list[str]]:
    """Return the task, its metrics, and notes on how the classes were matched."""
    task = find_task({"architectures": [type(model).__name__]}, "model", TASK_METRICS).name
    id2label = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
    targets, notes = match_classes(id2label, classes)
    threshold = getattr(model.config, "recommended_threshold", None)
    return task, TASK_METRICS[task](processor, id2label, targets, threshold), notes


def _compute_result(
    task: TaskName,
    metrics: TaskMetrics,
    notes: list[str],
    shards: Sequence["_ShardResult"],
    problems: list[Problem],
    seconds: float,
    resamples: int,
    seed: int,
) -> EvaluationResult:
    """Compute the metrics, into which the shards are merged."""
    values, count = metrics.compute(), sum(shard.count for shard in shards)
    return EvaluationResult(
        task=task,
        metrics=values,
        intervals=metrics.confidence_intervals(values, resamples, np.random.default_rng(seed)),
        best_threshold=metrics.best_threshold(),
        images_per_second=count / seconds,
        num_images=count,
        problems=problems,
        notes=notes,
        confusion=metrics.confusion_matrix(),
        predictions=metrics.predictions(),
        losses=metrics.losses(),
        classes=[metrics.id2label[index] for index in sorted(metrics.id2label)],
        class_intervals=metrics.class_intervals(),
        recommended_threshold=metrics.recommended_threshold(),
    )


@dataclass
class _ShardResult:
    """Result of one process, sent to the others."""

    state: Any = None  # see `TaskMetrics`
    unreadable: list[Unreadable] = field(default_factory=list)
    count: int = 0
    seconds: float = 0.0  # without the metrics
    error: Exception | None = None


def _gather_shards(evaluate: Callable[[], _ShardResult], gather: Gather | None) -> list[_ShardResult]:
    """Evaluate a shard and gather the results of all processes. Raise this process's error, or else another's."""
    failure = None
    try:
        shard = evaluate()
    except Exception as error:  # raised after `gather`, because the other processes wait for it
        failure, shard = error, _ShardResult(error=_make_picklable(error))
    shards = gather([shard]) if gather else [shard]
    if error := failure or next((shard.error for shard in shards if shard.error), None):
        raise error
    return shards


def _evaluate_shard(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    samples: Iterable[tuple[int, Sample]],
    total: float,
    own_total: int | None,
    metrics: TaskMetrics,
    batch_size: int,
    max_bad: float,
    progress: Progress | None,
) -> _ShardResult:
    """Evaluate the samples of one process, with their indices.

    Stop once its unreadable images exceed `max_bad` of the `total` of all processes.
    """
    is_exported = not isinstance(model, nn.Module)
    if not is_exported:
        check_finite_weights(model, type(model).__name__)
    is_mobilevit = isinstance(model, MobileViTPreTrainedModel)
    folded: Any = fold_batch_norm(model) if is_mobilevit else copy.deepcopy(model).eval()
    label = metrics.label if isinstance(model, MobileViTSSDLiteForObjectDetection) else lambda group: None
    result, start = _ShardResult(), time.perf_counter()
    with warnings.catch_warnings(action="ignore"), one_torch_thread() if is_exported else nullcontext():
        for batch in make_batches(prepare_ahead(processor, samples, 2 * batch_size), batch_size):
            readable = [image for image in batch if isinstance(image, Prepared)]
            result.unreadable += [image for image in batch if isinstance(image, Unreadable)]
            groups = group_by_shape(readable)
            predictions = [metrics.postprocess(forward(folded, group, label(group)), group) for group in groups]
            result.seconds += time.perf_counter() - start
            for group, prediction in zip(groups, predictions, strict=True):
                metrics.update(prediction, group)
            result.count += len(readable)
            if len(result.unreadable) > max_bad * total:
                break
            if progress:
                progress(result.count + len(result.unreadable), own_total)
            start = time.perf_counter()
    result.state = metrics.state
    return result


def _select_shard(samples: Iterable[Sample], step: slice) -> tuple[Iterator[tuple[int, Sample]], float, int | None]:
    """Return the samples of a process with their indices, and the numbers of all samples and of its own."""
    if isinstance(samples, Sequence):
        indices = range(len(samples))[step]
        return ((index, samples[index]) for index in indices), len(samples), len(indices)
    return islice(enumerate(samples), step.start, None, step.step), math.inf, None


def _make_picklable(error: Exception) -> Exception:
    """Return an error as a built-in class, which every process can unpickle."""
    if isinstance(error, ValueError):
        return ValueError(str(error))
    return RuntimeError(f"Another process failed: {type(error).__name__}: {error}")


def _merge_shards(shards: Sequence[_ShardResult], metrics: TaskMetrics, max_bad: float) -> list[Problem]:
    """Merge the states of the shards into the metrics; return the unreadable images, after a check of their number."""
    unreadable = sorted(chain(*(shard.unreadable for shard in shards)), key=attrgetter("index"))
    problems = [image.problem for image in unreadable]
    _check_unreadable(problems, sum(shard.count for shard in shards), max_bad)
    metrics.merge(shard.state for shard in shards)
    return problems


def _check_unreadable(problems: Sequence[Problem], count: int, max_bad: float) -> None:
    total = len(problems) + count
    if not total:
        raise ValueError("samples: got no images, expected at least one. Choose a split with images.")
    if not count or len(problems) > max_bad * total:
        first = problems[0]
        raise ValueError(
            f"max_bad: got {len(problems)} unreadable images of {total}, expected at most {max_bad:.0%}, such as "
            f"{first.name}: {first.reason}. Fix them, or allow more."
        )
