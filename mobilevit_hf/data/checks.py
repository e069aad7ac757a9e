"""Look at every image of a dataset before it is trained on: what is there, what is bad, and what is left."""

import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tasks import TaskName
from .decoding import LazyImage
from .formats.samples import LazySequence
from .images import DECODER_ERRORS, UnreadableImageError, open_header
from .types import Dataset, Objects, Problem, ProblemKind, Sample

# Of a stream, which may have no end, the first samples stand for all.
STREAM_SAMPLES = 1000

# Images above it are decoded one at a time, in a thread of their own: each takes up to 20 bytes a pixel on its way
# to RGB, and the C library keeps for each thread what it once took.
LARGE_PIXELS = 25_000_000

# What annotation tools differ by in where an image's last pixel ends.
EDGE_TOLERANCE = 1.0

# How many of the bad samples an error shows.
SHOWN_PROBLEMS = 5


class Range(NamedTuple):
    """The smallest, the middle and the largest of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class DatasetReport:
    """What is in a dataset, counted without what is bad.

    Attributes:
        task: As in `Dataset`, like the next two.
        classes: The classes' names.
        data_format: The name of its format.
        samples: For each split how many samples are good.
        counts: For each split and class how many of these (classification) or of their objects (detection) there are.
        imbalance: The largest class by the smallest one of the first split; None if one of them is empty.
        widths: Of the upright images in pixels; None if none was decoded.
        heights: The same.
        box_sides: √(box area / image area), 0..1; None without boxes or decoded images.
        boxes_per_image: None in classification.
        notes: Those from reading, and what was left unchecked.
        problems: Those from reading, then those found here, in the samples' order.
        bad_share: Of how many of all samples something was left out, 0..1.
        left_out: For each split and place of a bad sample a mask (N,) of its good objects, None if all of it is bad.
    """

    task: TaskName
    classes: tuple[str, ...]
    data_format: str
    samples: dict[str, int]
    counts: dict[str, dict[str, int]]
    imbalance: float | None
    widths: Range | None
    heights: Range | None
    box_sides: Range | None
    boxes_per_image: Range | None
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]
    bad_share: float
    left_out: dict[str, dict[int, Tensor | None]]

    @property
    def problem_counts(self) -> dict[ProblemKind, int]:
        """How many problems of each kind there are, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())


class _Look(NamedTuple):
    """What a look at one sample's image gave."""

    sample: Sample  # without its image
    size: tuple[int, int] | None = None  # (width, height), None if it wasn't decoded
    digest: bytes | None = None  # of its pixels
    error: str | None = None


def check_dataset(
    dataset: Dataset, *, decode: bool = True, progress: Callable[[int, int | None], None] | None = None
) -> DatasetReport:
    """Decode every image, on all cores, and look for what would spoil training or its evaluation.

    Found are images that can't be decoded whole, boxes without area or outside their image, labels that are no
    class, and images of one split that a later split has too, with equal pixels in whatever file. Of a stream only
    the first `STREAM_SAMPLES` are looked at.

    Args:
        decode: False leaves the images closed, for a quick count: it tells nothing of them and their sizes.
        progress: Called after each sample with how many are done, and of how many if that is known.
    """
    streams = [name for name, split in dataset.splits.items() if not isinstance(split, Sequence)]
    lengths = [len(split) for name, split in dataset.splits.items() if name not in streams]
    total = None if streams else sum(lengths)
    digests_wanted = len(dataset.splits) > 1

    def look(sample: Sample) -> _Look:
        bare = replace(sample, image=None)
        if not decode:
            return _Look(bare)
        try:
            image = LazyImage(sample.image).load()
            digest = hashlib.sha256(image.tobytes()).digest() if digests_wanted else None
            return _Look(bare, image.size, digest)
        except UnreadableImageError as error:
            return _Look(bare, error=str(error))

    looks: dict[str, list[_Look]] = {}
    done = 0
    # Set here once for all threads: the filters that decoding sets and restores belong to the whole process.
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        ThreadPoolExecutor(max_workers=1) as pool_of_one,
    ):
        warnings.simplefilter("ignore")

        def submit(sample: Sample) -> Future[_Look]:
            return (pool_of_one if decode and _is_large(sample.image) else pool).submit(look, sample)

        for name, split in dataset.splits.items():
            looks[name] = []
            samples = islice(split, STREAM_SAMPLES) if name in streams else split
            for found in _results_in_order(map(submit, samples), ahead=4 * (os.cpu_count() or 1)):
                looks[name].append(found)
                done += 1
                if progress:
                    progress(done, total)
    notes = [f"{name}: a stream, of which the first {len(looks[name])} samples were checked" for name in streams]
    return _report(dataset, looks, notes)


def drop_bad(dataset: Dataset, report: DatasetReport, max_bad: float = 0.05) -> Dataset:
    """The dataset without what the report found bad: the samples, or of an image with some good boxes the bad ones.

    An image in two splits stays in the later one, so that what is measured there keeps its meaning. Streams stay as
    they are: what reads them meets what no check has seen.

    Raises:
        ValueError: If more than the share `max_bad` (0..1) of all samples is bad, or a split has none left.
    """
    if report.bad_share > max_bad:
        shown = [f"{p.name}: {p.kind} ({p.reason})" for p in report.problems[:SHOWN_PROBLEMS]]
        if len(report.problems) > len(shown):
            shown.append(f"and {len(report.problems) - len(shown)} more")
        raise ValueError(
            f"{report.bad_share:.1%} of the samples are bad, expected at most {max_bad:.1%}: {'; '.join(shown)}. "
            "Mend them (mobilevit check-data names all), or raise max_bad to train on the others."
        )
    if empty := [name for name, count in report.samples.items() if not count]:
        raise ValueError(f"split {', '.join(empty)}: got no good sample, expected some. Mend or remove its files.")
    return replace(dataset, splits=good_splits(dataset, report))


def good_splits(dataset: Dataset, report: DatasetReport) -> dict[str, Sequence[Sample] | Iterable[Sample]]:
    """The splits without what the report found bad, however much that is. Streams stay as they are."""
    return {
        name: _Kept(split, report.left_out[name]) if isinstance(split, Sequence) and report.left_out[name] else split
        for name, split in dataset.splits.items()
    }


class _Kept(LazySequence):
    """The samples of a split that are good."""

    def __init__(self, samples: Sequence[Sample], left_out: dict[int, Tensor | None]) -> None:
        self.samples = samples
        self.masks = {place: mask for place, mask in left_out.items() if mask is not None}
        self.places = [place for place in range(len(samples)) if place not in left_out or place in self.masks]

    def __len__(self) -> int:
        return len(self.places)

    def item(self, place: int) -> Sample:
        place = self.places[place]
        sample = self.samples[place]
        if place not in self.masks:
            return sample
        return replace(sample, objects=_select(sample.objects, self.masks[place]))


def _select(objects: Objects, mask: Tensor) -> Objects:
    return Objects(objects.boxes[mask], objects.labels[mask], objects.iscrowd[mask], objects.areas[mask])


def _results_in_order(futures: Iterable[Future[_Look]], ahead: int) -> Iterator[_Look]:
    """The results, with few of the futures made ahead: a pool's own map would first make all samples."""
    waiting: deque[Future[_Look]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _is_large(image: Any) -> bool:
    """By what the file says of itself; `LazyImage` says what is wrong with a file that says nothing."""
    try:
        with open_header(image) as opened:
            return opened.width * opened.height > LARGE_PIXELS
    except (*DECODER_ERRORS, AttributeError):
        return False


def _report(dataset: Dataset, looks: dict[str, list[_Look]], notes: list[str]) -> DatasetReport:
    names = dataset.classes
    problems, bad = [], {problem.name for problem in dataset.problems if problem.is_bad}
    left_out: dict[str, dict[int, Tensor | None]] = {}
    counts = {split: dict.fromkeys(names, 0) for split in looks}
    sizes, box_sides, box_numbers = [], [], []
    known = set()
    later = _later_copies(looks)
    for split, found in looks.items():
        left_out[split] = {}
        for place, look in enumerate(found):
            known.add(look.sample.name)
            mask, reasons = _judge(look, later.get((split, place)), len(names))
            if reasons:
                problems += reasons
                bad.add(look.sample.name)
                left_out[split][place] = mask
                if mask is None:
                    continue
            if look.sample.objects is None:
                labels = [look.sample.label]
            else:
                objects = _select(look.sample.objects, mask)
                labels = objects.labels.tolist()
                box_numbers.append(len(labels))
                if look.size:
                    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]) / torch.tensor(look.size)
                    box_sides += sides.prod(dim=1).sqrt().tolist()
            for label in labels:
                counts[split][names[label]] += 1
            if look.size:
                sizes.append(look.size)
    first = list(next(iter(counts.values()), {}).values())
    return DatasetReport(
        task=dataset.task,
        classes=names,
        data_format=dataset.data_format,
        samples={
            split: len(found) - sum(mask is None for mask in left_out[split].values())
            for split, found in looks.items()
        },
        counts=counts,
        imbalance=max(first) / min(first) if first and min(first) else None,
        widths=_range([width for width, _ in sizes]),
        heights=_range([height for _, height in sizes]),
        box_sides=_range(box_sides),
        boxes_per_image=_range(box_numbers),
        notes=(*dataset.notes, *notes),
        problems=(*dataset.problems, *problems),
        bad_share=len(bad) / max(1, len(known | bad)),
        left_out=left_out,
    )


def _later_copies(looks: dict[str, list[_Look]]) -> dict[tuple[str, int], str]:
    """For each image, by split and place, that a later split has too: the split and name of that one."""
    seen: dict[tuple, str] = {}
    copies = {}
    for split, found in reversed(looks.items()):
        for place, look in enumerate(found):
            if (look.size, look.digest) in seen:
                copies[split, place] = seen[look.size, look.digest]
        seen |= {(look.size, look.digest): f"{split}: {look.sample.name}" for look in found if look.digest}
    return copies


def _judge(look: _Look, copy: str | None, num_classes: int) -> tuple[Tensor | None, list[Problem]]:
    """A mask (N,) of a sample's good objects, None if the whole sample is bad, and what is wrong with it."""
    name = look.sample.name
    if look.error:
        return None, [Problem(name, "unreadable image", look.error)]
    if copy:
        return None, [Problem(name, "same image in two splits", f"equal to {copy}")]
    objects = look.sample.objects
    if objects is None:
        if look.sample.label in range(num_classes):
            return torch.ones(0, dtype=torch.bool), []
        return None, [Problem(name, "unknown class", f"label {look.sample.label}, expected 0..{num_classes - 1}")]

    good = torch.ones(len(objects.boxes), dtype=torch.bool)
    problems = []
    limits = torch.tensor(look.size or (float("inf"), float("inf"))) + EDGE_TOLERANCE
    inside = (objects.boxes[:, :2] >= -EDGE_TOLERANCE).all(dim=1) & (objects.boxes[:, 2:] <= limits).all(dim=1)
    tests: list[tuple[ProblemKind, Tensor]] = [
        ("box without area", (objects.boxes[:, 2:] > objects.boxes[:, :2]).all(dim=1)),
        ("box outside the image", inside),
        ("unknown class", (objects.labels >= 0) & (objects.labels < num_classes)),
    ]
    for kind, passed in tests:
        for i in (good & ~passed).nonzero()[:, 0].tolist():
            corners = ", ".join(f"{edge:g}" for edge in objects.boxes[i].tolist())
            size = f", image {look.size[0]}x{look.size[1]}" if look.size else ""
            problems.append(Problem(name, kind, f"box ({corners}), label {int(objects.labels[i])}{size}"))
        good &= passed
    return (None if problems and not good.any() else good), problems


def _range(values: Sequence[float]) -> Range | None:
    return Range(min(values), float(np.median(values)), max(values)) if values else None
