"""Measure a model on pictures whose answers are known: what `pipeline` answers, counted as papers count it."""

import copy
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature, PreTrainedModel

from .data.dataset import Objects, Problem, Sample, Task
from .data.images import UnreadableImageError, load_image
from .metrics import CocoMap, TopKAccuracy
from .modeling.modeling_mobilevit import MobileViTPreTrainedModel
from .pipelines import fold_batch_norm

BATCH_SIZE = 8
# Decoding and resizing are quick beside the network on a CPU; a GPU waits for all threads there are.
MAX_THREADS = 8

RESAMPLES = 1000
LEVEL = 0.95

# COCO's: a found box is right above such an overlap (IoU), precision is averaged over such recalls, and of each class
# on a picture so many detections count.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100

# Two lists of class names are one list in two spellings if no larger share of their places differs.
MAX_RENAMED = 0.01


@dataclass(frozen=True)
class BestThreshold:
    """The threshold of a detector that gives the highest F1 at an IoU of 0.5, all classes counted together.

    Attributes:
        value: Scores above it are detections.
        f1, precision, recall: What that gives, 0..1.
    """

    value: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class EvaluationResult:
    """How good a model is.

    Attributes:
        task: What it does.
        metrics: What `TopKAccuracy` or `CocoMap` returns, with `per_class` by the model's names of the classes.
        intervals: By metric the ends of its 95 % confidence interval: a bootstrap over the pictures.
        best_threshold: Of a detector that found anything, else None.
        images_per_second: From the file to the answer: decoding, processing, the network and what makes detections
            of its outputs; without the metrics.
        num_pictures: How many were measured.
        problems: The pictures that could not be read.
        notes: Plain sentences about decisions to tell the user.
    """

    task: Task
    metrics: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    best_threshold: BestThreshold | None
    images_per_second: float
    num_pictures: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
) -> EvaluationResult:
    """Measure an image classifier or object detector on samples.

    Pictures go through the image processor, the network and the post-processing as in transformers' pipeline, so the
    figures are those of its answers; only boxes stay as the processor gives them, where the pipeline cuts them to
    whole pixels. A detector's boxes enter the metric above the processor's own `score_threshold`, or all of them if
    it has none. Memory does not grow with the number of pictures but by what is found on them.

    Args:
        model: It is left as it is and runs where it is, in evaluation mode; a MobileViT with its batch normalisations
            folded.
        processor: What makes the model's inputs; for a detector also detections of its outputs.
        samples: Pictures with a label or objects; a stream will do.
        classes: The names that labels stand for, matched with the model's by `match_classes`.
        batch_size: How many pictures run together, if the processor gives them one size.
        max_bad: The largest share of pictures that may be unreadable.
        resamples: How often the pictures are drawn anew for the confidence intervals; 0 leaves them out.
        seed: Of these draws.
        progress: Called after each batch with how many pictures are done, and of how many if that is known.

    Raises:
        ValueError: If the classes don't match, the model does something else or the samples are for something else,
            too many pictures are unreadable, or there are none.
    """
    task = _task_of(model)
    targets, notes = match_classes(model.config.id2label, classes)
    measure = _Detection(processor, targets) if task == "object-detection" else _Classification(targets)
    model = fold_batch_norm(model) if isinstance(model, MobileViTPreTrainedModel) else copy.deepcopy(model).eval()
    total = len(samples) if isinstance(samples, Sequence) else None
    problems, count, seconds, start = [], 0, 0.0, time.perf_counter()
    # Set here once for all threads: the filters that `load_image` sets and restores belong to the whole process.
    with warnings.catch_warnings(action="ignore"):
        for batch in _batches(_prepare_ahead(processor, samples, 2 * batch_size), batch_size):
            good = [prepared for prepared in batch if isinstance(prepared, _Prepared)]
            problems += [prepared for prepared in batch if isinstance(prepared, Problem)]
            answers = [(group, measure.answer(_forward(model, group), group)) for group in _same_shapes(good)]
            seconds += time.perf_counter() - start
            for group, answer in answers:
                measure.add(answer, [prepared.sample for prepared in group])
            count += len(good)
            if len(problems) > max_bad * (total or math.inf):
                break
            if progress:
                progress(count + len(problems), total)
            start = time.perf_counter()
    _check_share(problems, count, max_bad)
    metrics = measure.compute(model.config.id2label)
    if metrics.get("accuracy") == 1:
        possible = 1 - (1 - LEVEL) ** (1 / count)
        notes.append(
            f"All {count} pictures are right, so drawing them anew shows no doubt. An error rate of {possible:.1%} "
            f"would still give that in {1 - LEVEL:.0%} of such tests."
        )
    return EvaluationResult(
        task=task,
        metrics=metrics,
        intervals=measure.intervals(metrics, resamples, np.random.default_rng(seed)) if resamples else {},
        best_threshold=measure.best_threshold(),
        images_per_second=count / seconds,
        num_pictures=count,
        problems=problems,
        notes=notes,
    )


def match_classes(id2label: Mapping[int, str], classes: Sequence[str]) -> tuple[list[int], list[str]]:
    """Which of a model's classes each class of a data set is, by name.

    Names are the same if they are equal; else if they differ in case, blanks and underscores only; else if what is
    before the first comma is the same, as in "tench" and "tench, Tinca tinca". Of several classes with one name it is
    the one at the same place. Lists of equal length are matched by place if no name agrees (`LABEL_0`), or where one
    name in a hundred at most does not (another spelling).

    Args:
        id2label: The model's names by class.
        classes: The data set's, in the order of its labels.

    Returns:
        The model's class for each, and notes for the user.

    Raises:
        ValueError: If the model does not know some of the classes.
    """
    names = [name for _, name in sorted(id2label.items())]
    found = [_find_class(names, name, place) for place, name in enumerate(classes)]
    unknown = [place for place, index in enumerate(found) if index is None]
    in_place = sum(place == index for place, index in enumerate(found))
    if not unknown:
        return found, []
    if len(names) == len(classes) and len(unknown) == len(classes):
        return list(range(len(classes))), [
            f"The model calls its {len(names)} classes {_listing(names)}, the data set {_listing(classes)}: no name "
            "agrees, so they are taken to be in the same order."
        ]
    if len(names) == len(classes) and len(classes) - in_place <= MAX_RENAMED * len(classes):
        pairs = _listing([f"{classes[place]} = {names[place]}" for place in unknown])
        return [place if index is None else index for place, index in enumerate(found)], [
            f"Matched by their place in the list, as all other names agree: {pairs}."
        ]
    raise ValueError(
        f"The model does not know {len(unknown)} of the data set's {len(classes)} classes: "
        f"{_listing([classes[place] for place in unknown])}. It knows {_listing(names)}. Give the data set's classes "
        "the model's names, or take a model trained on them."
    )


def _find_class(names: Sequence[str], name: str, place: int) -> int | None:
    """The place in `names` of a name, at best the given place; None if it is not there, or several times elsewhere."""
    for read in (str, _fold_name, lambda name: _fold_name(name.split(",")[0])):
        same = [index for index, other in enumerate(names) if read(other) == read(name)]
        if place in same or len(same) == 1:
            return place if place in same else same[0]
    return None


def _fold_name(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _listing(names: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _task_of(model: PreTrainedModel) -> Task:
    name = type(model).__name__
    if name.endswith("ForImageClassification"):
        return "image-classification"
    if name.endswith("ForObjectDetection"):
        return "object-detection"
    raise ValueError(f"model: got {name}, expected an image classifier or an object detector.")


def _check_share(problems: Sequence[Problem], count: int, max_bad: float) -> None:
    total = len(problems) + count
    if not total:
        raise ValueError("There are no pictures to measure on: the split is empty.")
    if not count or len(problems) > max_bad * total:
        first = problems[0]
        raise ValueError(
            f"{len(problems)} of {total} pictures can't be read, more than {max_bad:.0%}, such as {first.name}: "
            f"{first.reason}. Mend them, or allow more bad ones."
        )


# --- running the model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    """A picture as the model takes it.

    Attributes:
        sample: Where it comes from.
        inputs: The processor's, for a batch of one.
        size: Height and width of the picture in pixels.
    """

    sample: Sample
    inputs: BatchFeature
    size: tuple[int, int]


def _prepare(processor: BaseImageProcessor, sample: Sample) -> _Prepared | Problem:
    """One picture by itself, as the pipeline does it: of a batch some processors make something else."""
    try:
        picture = load_image(sample.image)
    except UnreadableImageError as error:
        return Problem(sample.name, "unreadable picture", str(error))
    return _Prepared(sample, processor(images=[picture], return_tensors="pt"), (picture.height, picture.width))


def _prepare_ahead(
    processor: BaseImageProcessor, samples: Iterable[Sample], ahead: int
) -> Iterator[_Prepared | Problem]:
    """Prepare samples in threads while the model runs, in order, so many before they are asked for."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    pending = deque()
    try:
        for sample in samples:
            pending.append(pool.submit(_prepare, processor, sample))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _same_shapes(batch: Sequence[_Prepared]) -> list[list[_Prepared]]:
    """The pictures by the shapes of their inputs: other detectors take each picture in a size of its own."""
    groups: dict[tuple[Any, ...], list[_Prepared]] = {}
    for prepared in batch:
        groups.setdefault(tuple(value.shape for value in prepared.inputs.values()), []).append(prepared)
    return list(groups.values())


@torch.inference_mode()
def _forward(model: PreTrainedModel, group: Sequence[_Prepared]) -> Any:
    inputs = {name: torch.cat([prepared.inputs[name] for prepared in group]) for name in group[0].inputs}
    return model(**BatchFeature(inputs).to(model.device, model.dtype))


# --- classification --------------------------------------------------------------------------------------------------


class _Classification:
    """What there is to know of a classifier's answers."""

    def __init__(self, targets: Sequence[int]) -> None:
        self.targets = targets
        self.metric = TopKAccuracy(keep_in_memory=True)
        self.answers: list[tuple[int, int]] = []  # the class named first and the right one
        self.num_classes = 0

    def answer(self, outputs: Any, group: Sequence[_Prepared]) -> Tensor:
        """(B, K) logits."""
        return outputs.logits.float().cpu()

    def add(self, logits: Tensor, samples: Sequence[Sample]) -> None:
        right = [self._right_class(sample) for sample in samples]
        self.num_classes = logits.shape[1]
        self.metric.add_batch(predictions=logits, references=right)
        self.answers += zip(logits.argmax(dim=1).tolist(), right, strict=True)

    def _right_class(self, sample: Sample) -> int:
        if sample.label is None:
            raise ValueError(
                f"{sample.name} has no label: the model is a classifier, and this data set is not for one."
            )
        return self.targets[sample.label]

    def compute(self, id2label: Mapping[int, str]) -> dict[str, Any]:
        # With no more than five classes the right one is always among the first five.
        return self.metric.compute(k=(1, 5) if self.num_classes > 5 else 1, id2label=id2label)

    def intervals(
        self, metrics: Mapping[str, Any], resamples: int, generator: np.random.Generator
    ) -> dict[str, tuple[float, float]]:
        """Drawing N pictures anew is drawing how many of them have each pair of answers: a multinomial number."""
        count = len(self.answers)
        pairs, uses = np.unique(self.answers, axis=0, return_counts=True)
        found: dict[str, list[np.ndarray]] = {"accuracy": [], "macro_f1": []}
        for size in _chunks(resamples, len(pairs)):
            draws = generator.multinomial(count, uses / count, size=size)
            right = draws * (pairs[:, 0] == pairs[:, 1])
            found["accuracy"].append(right.sum(axis=1) / count)
            found["macro_f1"].append(_macro_f1(pairs, draws, right))
        values = {name: np.concatenate(parts) for name, parts in found.items()}
        if "top_5_accuracy" in metrics:
            values["top_5_accuracy"] = generator.binomial(count, metrics["top_5_accuracy"], resamples) / count
        return {name: _interval(numbers) for name, numbers in values.items()}

    def best_threshold(self) -> None:
        return None


def _macro_f1(pairs: np.ndarray, draws: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of a named and a right class, how many there are (R, P) and are right → (R,) mean F1 of classes."""
    _, places = np.unique(pairs, return_inverse=True)
    named, present = places.reshape(-1, 2).T
    hits, occurrences = (np.zeros((places.max() + 1, len(draws))) for _ in range(2))
    np.add.at(hits, present, right.T)
    np.add.at(occurrences, present, draws.T)
    np.add.at(occurrences, named, draws.T)
    return (2 * hits / np.maximum(occurrences, 1)).sum(axis=0) / (occurrences > 0).sum(axis=0)


# --- detection -------------------------------------------------------------------------------------------------------


class _Detection:
    """What there is to know of a detector's answers."""

    def __init__(self, processor: BaseImageProcessor, targets: Sequence[int]) -> None:
        self.processor = processor
        self.targets = torch.tensor(targets)
        self.threshold = getattr(processor, "score_threshold", 0.0)
        self.metric = CocoMap(keep_in_memory=True)
        self.pictures: list[_Matches] = []

    def answer(self, outputs: Any, group: Sequence[_Prepared]) -> list[dict[str, Tensor]]:
        """The detections of each picture, of the classes that the data set has: of others it says nothing."""
        sizes = torch.tensor([prepared.size for prepared in group], device=outputs.logits.device)
        answers = self.processor.post_process_object_detection(outputs, self.threshold, sizes)
        found = [{name: value.float().cpu() for name, value in answer.items()} for answer in answers]
        known = [torch.isin(answer["labels"], self.targets.float()) for answer in found]
        return [
            {name: answer[name][keep] for name in ("boxes", "scores", "labels")}
            for answer, keep in zip(found, known, strict=True)
        ]

    def add(self, answers: Sequence[dict[str, Tensor]], samples: Sequence[Sample]) -> None:
        references = [self._reference(sample) for sample in samples]
        self.metric.add_batch(predictions=answers, references=references)
        self.pictures += [_match(*pair) for pair in zip(answers, references, strict=True)]

    def _reference(self, sample: Sample) -> dict[str, Tensor]:
        objects: Objects | None = sample.objects
        if objects is None:
            raise ValueError(f"{sample.name} has no boxes: the model is a detector, and this data set is not for one.")
        labels = self.targets[objects.labels]
        return {"boxes": objects.boxes, "labels": labels, "iscrowd": objects.iscrowd, "area": objects.areas}

    def compute(self, id2label: Mapping[int, str]) -> dict[str, Any]:
        return self.metric.compute(id2label=id2label)

    def intervals(
        self, metrics: Mapping[str, Any], resamples: int, generator: np.random.Generator
    ) -> dict[str, tuple[float, float]]:
        if metrics["map"] < 0:  # nothing to find
            return {}
        matches = _by_class(self.pictures)
        count, values = len(self.pictures), []
        longest = max(len(found.pictures) for found in matches)
        for size in _chunks(resamples, max(longest, count)):
            draws = generator.multinomial(count, np.full(count, 1 / count), size=size).T.copy()
            values.append(_average_precision(matches, draws))
        precision = np.concatenate(values, axis=-1)  # (classes, thresholds, resamples)
        with np.errstate(invalid="ignore"):
            return {
                "map": _interval(np.nanmean(precision, axis=(0, 1))),
                "map_50": _interval(np.nanmean(precision[:, 0], axis=0)),
            }

    def best_threshold(self) -> BestThreshold | None:
        scores = np.concatenate([picture.scores for picture in self.pictures])
        hits = np.concatenate([picture.hits[:, 0] for picture in self.pictures])
        counted = ~np.concatenate([picture.ignored[:, 0] for picture in self.pictures])
        present = sum(len(picture.present) for picture in self.pictures)
        order = np.argsort(-scores[counted])
        scores, right = scores[counted][order], np.cumsum(hits[counted][order])
        if not len(scores) or not present:
            return None
        detected = np.arange(1, len(scores) + 1)
        f1 = 2 * right / (detected + present)
        # A threshold lies between two scores: of equal ones all are detections or none.
        last = np.flatnonzero(np.diff(scores, append=-1))
        best = last[f1[last].argmax()]
        below = scores[best + 1] if best + 1 < len(scores) else self.threshold
        return BestThreshold(
            value=float((scores[best] + below) / 2),
            f1=float(f1[best]),
            precision=float(right[best] / detected[best]),
            recall=float(right[best] / present),
        )


@dataclass(frozen=True)
class _Matches:
    """Which detections on a picture are right, by COCO's rules.

    Attributes:
        scores, labels: (n,) of the detections, by class and from the best, those that count.
        hits: (n, 10) whether one is right at each of `IOU_THRESHOLDS`.
        ignored: (n, 10) whether it is neither right nor wrong, as it lies in a crowd.
        present: (m,) the classes of the objects to find.
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    present: np.ndarray


def _match(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> _Matches:
    """Give each detection, from the best, the object it overlaps most of those that no better one has."""
    boxes, scores, labels = (found[name].double().numpy() for name in ("boxes", "scores", "labels"))
    order = np.lexsort((-scores, labels))
    order = order[_ranks(labels[order]) < MAX_DETECTIONS]
    boxes, scores, labels = boxes[order], scores[order], labels[order].astype(np.int64)
    crowd = reference["iscrowd"].numpy().astype(bool)
    objects, classes = reference["boxes"].double().numpy(), reference["labels"].numpy()
    hits, ignored = (np.zeros((len(scores), len(IOU_THRESHOLDS)), dtype=bool) for _ in range(2))
    for label in np.intersect1d(labels, classes):
        of_class = np.flatnonzero(classes == label)
        is_crowd = crowd[of_class]
        places = np.flatnonzero(labels == label)
        overlaps = _overlaps(boxes[places], objects[of_class], is_crowd)
        taken = np.zeros((len(IOU_THRESHOLDS), len(of_class)), dtype=bool)
        for place, overlap in zip(places, overlaps, strict=True):
            if overlap.max() < IOU_THRESHOLDS[0]:
                continue
            possible = (overlap >= IOU_THRESHOLDS[:, None]) & ~(taken & ~is_crowd)
            # A crowd only takes what fits nothing else; of equal overlaps the last counts.
            rank = np.where(possible, overlap + 2 * ~is_crowd, -1)
            best = rank.shape[1] - 1 - rank[:, ::-1].argmax(axis=1)
            matched = possible.any(axis=1)
            taken[matched, best[matched]] = True
            hits[place], ignored[place] = matched & ~is_crowd[best], matched & is_crowd[best]
    return _Matches(scores, labels, hits, ignored, classes[~crowd])


def _ranks(labels: np.ndarray) -> np.ndarray:
    """Sorted labels (n,) → how many equal ones come before each."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def _overlaps(boxes: np.ndarray, objects: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) (x1, y1, x2, y2) → (n, m) IoU; with a crowd the share of the box that lies in it."""
    corners = np.minimum(boxes[:, None, 2:], objects[:, 2:]) - np.maximum(boxes[:, None, :2], objects[:, :2])
    common = np.where((corners > 0).all(axis=-1), corners.prod(axis=-1), 0)
    areas, object_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, objects))
    union = np.where(is_crowd, areas[:, None], areas[:, None] + object_areas - common)
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


@dataclass(frozen=True)
class _ClassMatches:
    """The detections of one class on all pictures, from the best.

    Attributes:
        pictures: (n,) which picture each is on.
        hits, ignored: (n, 10), see `_Matches`.
        present: (N,) how many objects of the class are on each picture.
    """

    pictures: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    present: np.ndarray


def _by_class(pictures: Sequence[_Matches]) -> list[_ClassMatches]:
    """For each class that there is to find."""
    numbers = np.repeat(np.arange(len(pictures)), [len(picture.scores) for picture in pictures])
    objects_on = np.repeat(np.arange(len(pictures)), [len(picture.present) for picture in pictures])
    scores, labels, hits, ignored, present = (
        np.concatenate([getattr(picture, name) for picture in pictures])
        for name in ("scores", "labels", "hits", "ignored", "present")
    )
    order = np.lexsort((-scores, labels))
    starts, ends = (np.searchsorted(labels[order], np.unique(present), side=side) for side in ("left", "right"))
    return [
        _ClassMatches(
            numbers[places],
            hits[places],
            ignored[places],
            np.bincount(objects_on[present == label], minlength=len(pictures)),
        )
        for label, places in (
            (label, order[start:end]) for label, start, end in zip(np.unique(present), starts, ends, strict=True)
        )
    ]


def _average_precision(matches: Sequence[_ClassMatches], draws: np.ndarray) -> np.ndarray:
    """COCO's average precision on pictures drawn anew.

    A picture drawn twice brings each of its detections twice in a row, so one pass over the detections with the draws
    as weights gives what COCO's evaluation of the drawn pictures would (up to the order of equal scores).

    Args:
        matches: By class.
        draws: (N, R) how often each picture is drawn.

    Returns:
        (classes, thresholds, R), NaN where none of a class is there to find.
    """
    precision = np.full((len(matches), len(IOU_THRESHOLDS), draws.shape[1]), np.nan)
    for found, of_class in zip(matches, precision, strict=True):
        present = found.present @ draws
        weights = draws[found.pictures]
        detected = weights.cumsum(axis=0)
        for threshold, of_threshold in enumerate(of_class):
            hits = np.flatnonzero(found.hits[:, threshold])
            ignored = np.flatnonzero(found.ignored[:, threshold])
            left_out = np.concatenate([np.zeros_like(detected[:1]), weights[ignored].cumsum(axis=0)])
            counted = detected[hits] - left_out[np.searchsorted(ignored, hits)] if len(ignored) else detected[hits]
            right = weights[hits].cumsum(axis=0)
            # At a recall the precision is the best at that or a higher one.
            reached = np.maximum.accumulate((right / np.maximum(counted, 1))[::-1], axis=0)[::-1]
            recalls = np.searchsorted(RECALLS, right / np.maximum(present, 1), side="right")
            steps = np.diff(recalls, axis=0, prepend=0)
            of_threshold[:] = np.where(present > 0, (reached * steps).sum(axis=0) / len(RECALLS), np.nan)
    return precision


# --- confidence ------------------------------------------------------------------------------------------------------


def _chunks(resamples: int, width: int, numbers: int = 2**22) -> list[int]:
    """How many resamples to make at a time, with so many numbers each, for arrays of at most `numbers`."""
    size = max(1, min(resamples, numbers // max(1, width)))
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Between which the figure lies in `LEVEL` of the resamples."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
