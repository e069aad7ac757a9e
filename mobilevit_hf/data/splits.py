"""Split a validation set off the training samples, or all samples into folds, stratified by class."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from .sequences import Samples

MAX_READ_MASKS = 1000  # some seconds


def split_validation(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Split samples in two, stratified by class.

    An image counts for its class, in detection and segmentation for the rarest class on it; more than
    `MAX_READ_MASKS` masks are not read, and the split is random. Each class contributes its fraction,
    rounded such that the total is exact, but at least one image if it has two or more; the only image of a class
    remains. Images are chosen by a hash of the seed and their name: the same on every machine, and nearly the same
    after images were added.

    Returns:
        The remaining samples, and a fraction (0..1) of the samples, both in the order of `samples`.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(_rarest_labels(_read_labels(samples))):
        groups[label].append(index)

    def rank(index: int) -> bytes:
        return _hash(seed, samples.names[index])

    counts = _allocate({label: len(indices) for label, indices in groups.items()}, fraction)
    chosen = {index for label, indices in groups.items() for index in sorted(indices, key=rank)[: counts[label]]}
    remaining = [index for index in range(len(samples)) if index not in chosen]
    return samples.select(remaining), samples.select(sorted(chosen))


def is_stratified(samples: Samples) -> bool:
    """Return whether `split_validation` knows the classes of samples, of which masks must be read."""
    return len(samples) <= MAX_READ_MASKS or not samples.has_unread_masks()


def _read_labels(samples: Samples) -> list[list[int]]:
    if not is_stratified(samples):
        return [[]] * len(samples)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(samples.labels_at, range(len(samples))))


def assign_folds(
    labels: Sequence[Sequence[int]],
    names: Sequence[str],
    num_folds: int,
    *,
    seed: int = 0,
    duplicates: Iterable[tuple[int, int]] = (),
) -> list[int]:
    """Assign images to the folds of a cross-validation, stratified by class as in `split_validation`.

    Args:
        labels: Labels of each image: one in classification, those of its objects in detection.
        names: Name of each image; with the seed, it determines the fold.
        num_folds: Number of folds, 2 or more.
        seed: Random seed.
        duplicates: Pairs of indices of images that look alike. They are assigned to the same fold.

    Returns:
        Fold of each image, 0..num_folds-1. The folds are of equal size, up to one image per class without duplicates.
    """
    strata = _rarest_labels(labels)
    groups = _connect(len(names), duplicates)
    # The largest groups first: single images then balance the folds.
    groups.sort(key=lambda group: (-len(group), strata[group[0]], _hash(seed, names[group[0]])))
    folds, sizes = [0] * len(names), Counter[int]()
    stratum_sizes: dict[int, Counter[int]] = defaultdict(Counter)
    for group in groups:
        in_stratum = stratum_sizes[strata[group[0]]]
        fold = min(range(num_folds), key=lambda fold: (in_stratum[fold], sizes[fold]))
        in_stratum[fold] += len(group)
        sizes[fold] += len(group)
        for index in group:
            folds[index] = fold
    return folds


def _connect(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of the graph of `count` nodes with some pairs as edges."""
    component = [[index] for index in range(count)]
    for first, second in pairs:
        if component[first] is not component[second]:
            component[first] += component[second]
            for index in component[second]:
                component[index] = component[first]
    return [sorted(nodes) for index, nodes in enumerate(component) if min(nodes) == index]


def _rarest_labels(labels: Sequence[Sequence[int]]) -> list[int]:
    """Return the label of each image that occurs on the fewest images, -1 for an image without labels."""
    frequencies = Counter(label for image_labels in labels for label in set(image_labels))
    return [min(some, key=lambda label: (frequencies[label], label), default=-1) for some in labels]


def _hash(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed} {name}".encode(errors="surrogateescape")).digest()


def _allocate(sizes: dict[int, int], fraction: float) -> dict[int, int]:
    """Return how many samples each group contributes, by the largest remainder method: one or more of two or more."""
    counts = {label: max(int(size * fraction), int(size > 1)) for label, size in sizes.items()}
    total = min(max(round(sum(sizes.values()) * fraction), 1), sum(sizes.values()) - 1)
    by_remainder = sorted(sizes, key=lambda label: (counts[label] - sizes[label] * fraction, label))
    for label in [label for label in by_remainder if sizes[label] > 1][: max(total - sum(counts.values()), 0)]:
        counts[label] += 1
    return counts
