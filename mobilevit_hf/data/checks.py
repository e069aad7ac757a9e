"""Check a dataset before training: decode all images, count classes and sizes, and find invalid samples."""

import hashlib
import math
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tasks import TaskName
from .duplicates import MAX_COMPARED, find_near_duplicates, make_thumbnail
from .images import DECODER_ERRORS, LOSSES, UnreadableImageError, load_with_losses, open_header
from .mask_checks import MaskInspection, inspect_mask, validate_mask
from .sequences import LazySequence
from .types import LEAKAGE, Dataset, Problem, ProblemKind, Sample, Split

STREAM_SAMPLES = 1000  # of a stream, which may be endless, that are checked
# Larger images are decoded one at a time in a separate thread: each takes up to 20 bytes per pixel on its way to RGB,
# and the C library keeps for each thread what it once allocated.
LARGE_PIXELS = 25_000_000
MAX_EXAMPLES = 3  # names in a note
EDGE_TOLERANCE = 1.0  # annotation tools differ by up to a pixel in the coordinate of an image's last pixel


class Range(NamedTuple):
    """Minimum, median and maximum of a quantity."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class DatasetReport:
    """Statistics of the valid samples of a dataset, and the problems of the others.

    Attributes:
        task: Task of the annotations.
        classes: Class names, in label order.
        data_format: Key of `DATA_FORMATS`.
        num_samples: Number of valid samples, by split.
        counts: Number of valid samples (classification), objects (detection) or pixels (segmentation), by split and
            class.
        imbalance: Size of the largest class divided by the smallest in the first split; None if a class is empty.
        widths: Widths of the upright images in pixels; None if no image was decoded.
        heights: Heights of the upright images in pixels; None if no image was decoded.
        box_sides: √(box area / image area), 0..1; None without boxes or decoded images.
        boxes_per_image: Number of boxes per image; None in classification.
        notes: `Dataset.notes`, the streams that were checked in part, what decoding loses (`LOSSES`), and images of
            different classes that look alike.
        problems: `Dataset.problems`, then those of the check in the order of the samples.
        invalid_fraction: Fraction of the samples with an error, 0..1, without those that are in a later split, too.
        invalid_samples: Samples to leave out, by split and index: mask (N,) of the valid objects, or None for the
            whole sample, which is invalid or also in a later split.
        validation_cut_off: Whether the validation split was split off the training split.
        pixel_hashes: SHA-256 of the decoded images in order, by split.
        ignored_pixels: Number of pixels without a class, by split; segmentation only.
        mask_hashes: SHA-256 of the masks in order, by split; segmentation only.
    """

    task: TaskName
    classes: tuple[str, ...]
    data_format: str
    num_samples: dict[str, int]
    counts: dict[str, dict[str, int]]
    imbalance: float | None
    widths: Range | None
    heights: Range | None
    box_sides: Range | None
    boxes_per_image: Range | None
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]
    invalid_fraction: float
    invalid_samples: dict[str, dict[int, Tensor | None]]
    validation_cut_off: bool
    pixel_hashes: dict[str, str]
    ignored_pixels: dict[str, int] = field(default_factory=dict)
    mask_hashes: dict[str, str] = field(default_factory=dict)

    @property
    def problem_counts(self) -> dict[ProblemKind, int]:
        """Number of problems of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def class_fractions(self, split: str) -> dict[str, float]:
        """Return the fraction of each class among the counted samples, objects or pixels of a split, 0..1."""
        total = max(1, sum(self.counts[split].values()))
        return {name: number / total for name, number in self.counts[split].items()}

    def ignored_fraction(self, split: str) -> float:
        """Return the fraction of the pixels of masks without a class, 0..1."""
        return self.ignored_pixels[split] / max(1, self.ignored_pixels[split] + sum(self.counts[split].values()))


class _Inspection(NamedTuple):
    sample: Sample  # without its image
    size: tuple[int, int] | None = None  # (width, height), None if it was not decoded
    digest: bytes | None = None  # of the pixels
    thumbnail: np.ndarray | None = None  # (16, 16, 3)
    losses: Sequence[str] = ()  # keys of `LOSSES`
    error: str | None = None
    mask: MaskInspection | None = None  # in segmentation, if it was decoded


def check_dataset(
    dataset: Dataset, *, decode: bool = True, progress: Callable[[int, int | None], None] | None = None
) -> DatasetReport:
    """Decode every image, on all cores, and find samples that would impair training or evaluation.

    These are images that can't be decoded completely, boxes without area or outside of their image, masks of another
    size than their image or without a class, unknown labels or values, and images with equal pixels in two splits, or
    in a split with different classes, whatever their files. Of a stream, only the first `STREAM_SAMPLES` are checked.

    Args:
        dataset: Dataset to check.
        decode: Whether to decode the images. If False, images, sizes and masks are not checked, which is faster.
        progress: Callback that receives the number of checked samples and the total, None if it is unknown.
    """
    lengths = [len(split) if isinstance(split, Sequence) else None for split in dataset.splits.values()]
    total = None if None in lengths else sum(filter(None, lengths))
    inspections: dict[str, list[_Inspection]] = {name: [] for name in dataset.splits}
    notes: list[str] = []
    with (
        warnings.catch_warnings(action="ignore"),  # for all threads: the filters belong to the whole process
        ThreadPoolExecutor(os.cpu_count()) as pool,
        ThreadPoolExecutor(max_workers=1) as large_image_pool,
    ):

        def submit(sample: Sample, with_thumbnail: bool) -> Future[_Inspection]:
            chosen_pool = large_image_pool if decode and _is_large(sample.image) else pool
            return chosen_pool.submit(_inspect, sample, decode, with_thumbnail)

        for name, split in dataset.splits.items():
            is_stream = not isinstance(split, Sequence)
            step = 1 if is_stream else math.ceil(len(split) / MAX_COMPARED) or 1
            with_thumbnail = (index % step == 0 for index in count())
            futures = map(submit, islice(split, STREAM_SAMPLES if is_stream else None), with_thumbnail)
            for inspection in _results_in_order(futures, ahead=4 * (os.cpu_count() or 1)):
                inspections[name].append(inspection)
                if progress:
                    progress(sum(map(len, inspections.values())), total)
            if is_stream:
                notes.append(f"{name} is streamed: only its first {len(inspections[name])} samples were checked.")
    return _create_report(dataset, inspections, notes)


def drop_invalid(dataset: Dataset, report: DatasetReport, max_bad: float = 0.05) -> Dataset:
    """Return the dataset without its invalid samples, and without the invalid boxes of images that have valid ones.

    An image in two splits stays in the later one, so that evaluation results stay comparable. Streams are unchanged.

    Raises:
        ValueError: If more than a fraction `max_bad` (0..1) of the samples is invalid, or a split has none left.
    """
    if report.invalid_fraction > max_bad:
        errors = [p for p in report.problems if p.is_error and p.kind != LEAKAGE]
        problems = [f"{p.name}: {p.kind} ({p.reason})" for p in errors[:5]]
        if len(errors) > len(problems):
            problems.append(f"and {len(errors) - len(problems)} more")
        raise ValueError(
            f"max_bad: got {report.invalid_fraction:.1%} invalid samples, expected at most {max_bad:.1%}: "
            f"{'; '.join(problems)}. Fix them (`mobilevit check-data` lists all), or raise the limit to skip them."
        )
    if empty := [name for name, count in report.num_samples.items() if not count]:
        duplicates = report.problem_counts.get(LEAKAGE)
        others = f" but {duplicates} images that another split contains, too" if duplicates else ""
        raise ValueError(
            f"split {', '.join(empty)}: got no valid sample{others}, expected at least one. Fix or remove it."
        )
    return replace(dataset, splits=valid_splits(dataset, report))


def valid_splits(dataset: Dataset, report: DatasetReport) -> dict[str, Split]:
    """Return the splits without invalid samples, however many there are. Streams are unchanged."""
    return {
        name: _ValidSamples(split, invalid)
        if (invalid := report.invalid_samples[name]) and isinstance(split, Sequence)
        else split
        for name, split in dataset.splits.items()
    }


class _ValidSamples(LazySequence):
    """Valid samples of a split. See `DatasetReport.invalid_samples`."""

    def __init__(self, samples: Sequence[Sample], invalid: dict[int, Tensor | None]) -> None:
        self.samples = samples
        self.masks = {index: mask for index, mask in invalid.items() if mask is not None}
        self.indices = [index for index in range(len(samples)) if index not in invalid or index in self.masks]

    def __len__(self) -> int:
        return len(self.indices)

    def _item(self, index: int) -> Sample:
        index = self.indices[index]
        sample = self.samples[index]
        if sample.objects is None or index not in self.masks:
            return sample
        return replace(sample, objects=sample.objects.select(self.masks[index]))


def _inspect(sample: Sample, decode: bool, with_thumbnail: bool) -> _Inspection:
    annotation = replace(sample, image=None)
    if not decode:
        return _Inspection(annotation)
    try:
        image, losses = load_with_losses(sample.image)
    except UnreadableImageError as error:
        return _Inspection(annotation, error=str(error))
    digest = hashlib.sha256(image.tobytes()).digest()
    thumbnail = make_thumbnail(image) if with_thumbnail and sample.label is not None else None
    mask = inspect_mask(sample.mask, image.size) if sample.mask else None
    return _Inspection(annotation, image.size, digest, thumbnail, losses, mask=mask)


def _results_in_order(futures: Iterable[Future[_Inspection]], ahead: int) -> Iterator[_Inspection]:
    """Yield results with at most `ahead` pending futures: the map of a pool would create all samples first."""
    futures = iter(futures)
    pending = deque(islice(futures, ahead))
    while pending:
        pending.extend(islice(futures, 1))
        yield pending.popleft().result()


def _is_large(image: Any) -> bool:
    """Return whether an image has more than `LARGE_PIXELS`; an unreadable header is reported when it is decoded."""
    try:
        with open_header(image) as opened:
            return opened.width * opened.height > LARGE_PIXELS
    except (*DECODER_ERRORS, AttributeError):
        return False


def _create_report(dataset: Dataset, inspections: dict[str, list[_Inspection]], notes: list[str]) -> DatasetReport:
    classes = dataset.classes
    problems: list[Problem] = []
    names, invalid_names = set(), {problem.name for problem in dataset.problems if problem.is_error}
    invalid: dict[str, dict[int, Tensor | None]] = {split: {} for split in inspections}
    num_samples = dict.fromkeys(inspections, 0)
    counts = {split: dict.fromkeys(classes, 0) for split in inspections}
    ignored = dict.fromkeys(inspections, 0) if dataset.task == "image-segmentation" else {}
    sizes, box_sides, box_counts = [], [], []
    duplicates = _find_duplicates(inspections, classes)
    for split, inspected in inspections.items():
        problems += _find_conflicts(inspected, classes)
        notes += _describe_near_duplicates(split, inspected, classes)
        for index, inspection in enumerate(inspected):
            sample = inspection.sample
            names.add(sample.name)
            mask, sample_problems = _validate(inspection, duplicates.get((split, index)), classes)
            if sample_problems:
                problems += sample_problems
                if any(problem.is_error and problem.kind != LEAKAGE for problem in sample_problems):
                    invalid_names.add(sample.name)
                invalid[split][index] = mask
            if mask is None:
                continue
            num_samples[split] += 1
            if sample.objects is not None:
                objects = sample.objects.select(mask)
                box_counts.append(len(objects.labels))
                for label in objects.labels.tolist():
                    counts[split][classes[label]] += 1
                if inspection.size:
                    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]) / torch.tensor(inspection.size)
                    box_sides += sides.prod(dim=1).sqrt().tolist()
            elif sample.label is not None:
                counts[split][classes[sample.label]] += 1
            elif inspection.mask:
                ignored[split] += inspection.mask.ignored
                for label, number in inspection.mask.pixels.items():
                    counts[split][classes[label]] += number
            if inspection.size:
                sizes.append(inspection.size)
    first_counts = list(next(iter(counts.values()), {}).values())
    return DatasetReport(
        task=dataset.task,
        classes=classes,
        data_format=dataset.data_format,
        num_samples=num_samples,
        counts=counts,
        imbalance=max(first_counts) / min(first_counts) if first_counts and min(first_counts) else None,
        widths=_range([width for width, _ in sizes]),
        heights=_range([height for _, height in sizes]),
        box_sides=_range(box_sides),
        boxes_per_image=_range(box_counts),
        notes=(*dataset.notes, *notes, *_describe_losses(inspections)),
        problems=(*dataset.problems, *problems),
        invalid_fraction=len(invalid_names) / max(1, len(names | invalid_names)),
        invalid_samples=invalid,
        validation_cut_off=dataset.validation_cut_off,
        pixel_hashes={
            split: _hash(inspection.digest for inspection in inspected) for split, inspected in inspections.items()
        },
        ignored_pixels=ignored,
        mask_hashes={
            split: _hash(inspection.mask and inspection.mask.digest for inspection in inspections[split])
            for split in ignored
        },
    )


def _hash(digests: Iterable[bytes | None]) -> str:
    return hashlib.sha256(b"".join(digest or b"-" for digest in digests)).hexdigest()


def _find_duplicates(inspections: dict[str, list[_Inspection]], classes: Sequence[str]) -> dict[tuple[str, int], str]:
    """Find images that a later split contains too: by split and index, the later split, name and other class."""
    seen: dict[tuple, tuple[str, str]] = {}
    duplicates = {}
    for split, inspected in reversed(inspections.items()):
        pixels = [(inspection.size, inspection.digest) for inspection in inspected]
        names = [_class_names(inspection.sample, classes) for inspection in inspected]
        for index, (key, name) in enumerate(zip(pixels, names, strict=True)):
            if key in seen:
                other, other_name = seen[key]
                differ = f"; their classes differ: {name} and {other_name}" if name != other_name else ""
                duplicates[split, index] = f"{other}{differ}"
        for key, name, inspection in zip(pixels, names, inspected, strict=True):
            if inspection.digest:
                seen[key] = (f"{split}: {inspection.sample.name}", name)
    return duplicates


def _find_conflicts(inspected: Sequence[_Inspection], classes: Sequence[str]) -> list[Problem]:
    """Find images of a split that it also contains with other classes."""
    problems, first_by_pixels = [], {}
    for inspection in inspected:
        sample, names = inspection.sample, _class_names(inspection.sample, classes)
        if inspection.digest:
            first, first_names = first_by_pixels.setdefault((inspection.size, inspection.digest), (sample, names))
            if names != first_names:
                reason = f"its class is {names}; equal to {first.name}, whose class is {first_names}"
                problems.append(Problem(sample.name, "same image in two classes", reason))
    return problems


def _class_names(sample: Sample, classes: Sequence[str]) -> str:
    labels = [sample.label] if sample.objects is None else sorted(set(sample.objects.labels.tolist()))
    return ", ".join(classes[label] for label in labels if label in range(len(classes))) or "none"


def _describe_near_duplicates(split: str, inspected: Sequence[_Inspection], classes: Sequence[str]) -> list[str]:
    compared = [inspection for inspection in inspected if inspection.thumbnail is not None]
    names = [_class_names(inspection.sample, classes) for inspection in compared]
    pairs = [
        [f"{compared[index].sample.name} ({names[index]})" for index in pair]
        for pair in find_near_duplicates([inspection.thumbnail for inspection in compared], names)
        if compared[pair[0]].digest != compared[pair[1]].digest
    ]
    if not pairs:
        return []
    among = "" if len(compared) == len(inspected) else f"of {len(compared)} compared images "
    examples = "; ".join(" and ".join(pair) for pair in pairs[:MAX_EXAMPLES])
    return [f"Pairs {among}in {split} that look alike but have different classes: {len(pairs)}, such as {examples}."]


def _describe_losses(inspections: dict[str, list[_Inspection]]) -> list[str]:
    names = {loss: [] for loss in LOSSES}
    for inspection in chain(*inspections.values()):
        for loss in inspection.losses:
            names[loss].append(inspection.sample.name)
    total = sum(map(len, inspections.values()))
    return [
        f"{fact} in {len(names[loss])} of {total} images, such as {', '.join(names[loss][:MAX_EXAMPLES])}. "
        f"To avoid it, {fix}."
        for loss, (fact, fix) in LOSSES.items()
        if names[loss]
    ]


def _validate(
    inspection: _Inspection, duplicate: str | None, classes: Sequence[str]
) -> tuple[Tensor | None, list[Problem]]:
    """Return a mask (N,) of a sample's valid objects, None if the whole sample is invalid, and its problems."""
    sample, size, num_classes = inspection.sample, inspection.size, len(classes)
    if inspection.error:
        return None, [Problem(sample.name, "unreadable image", inspection.error)]
    if duplicate:
        return None, [Problem(sample.name, LEAKAGE, f"equal to {duplicate}")]
    objects = sample.objects
    if sample.mask:
        problems = validate_mask(sample.name, sample.mask, inspection.mask, classes) if inspection.mask else []
        is_usable = not any(problem.is_error for problem in problems)
        return torch.ones(0, dtype=torch.bool) if is_usable else None, problems
    if objects is None:
        if sample.label in range(num_classes):
            return torch.ones(0, dtype=torch.bool), []
        return None, [Problem(sample.name, "unknown class", f"label {sample.label}, expected 0..{num_classes - 1}")]

    starts, ends = objects.boxes.split(2, dim=1)
    limits = torch.tensor(size or (float("inf"), float("inf"))) + EDGE_TOLERANCE
    conditions: dict[ProblemKind, Tensor] = {
        "box without area": (ends > starts).all(dim=1),
        "box outside the image": (starts >= -EDGE_TOLERANCE).all(dim=1) & (ends <= limits).all(dim=1),
        "unknown class": (objects.labels >= 0) & (objects.labels < num_classes),
    }
    image_size = f", image {size[0]}x{size[1]}" if size else ""
    valid = torch.ones(len(objects.boxes), dtype=torch.bool)
    problems = []
    for kind, passed in conditions.items():
        for i in (valid & ~passed).nonzero()[:, 0].tolist():
            corners = ", ".join(f"{edge:g}" for edge in objects.boxes[i].tolist())
            problems.append(Problem(sample.name, kind, f"box ({corners}), label {int(objects.labels[i])}{image_size}"))
        valid &= passed
    return (None if problems and not valid.any() else valid), problems


def _range(values: Sequence[float]) -> Range | None:
    return Range(min(values), float(np.median(values)), max(values)) if values else None
