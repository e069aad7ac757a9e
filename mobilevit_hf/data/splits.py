"""Split a validation set off the training samples, stratified by class."""

import hashlib
from collections import Counter, defaultdict

from .sequences import Samples


def split_validation(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Split samples in two, stratified by class.

    An image counts for its class, in detection for the rarest class on it. Each class contributes its fraction,
    rounded such that the total is exact; the only image of a class remains. Images are chosen by a
    hash of the seed and their name: the same on every machine, and nearly the same after images were added.

    Returns:
        The remaining samples, and a fraction (0..1) of the samples, both in the order of `samples`.
    """
    labels = [samples.labels_at(index) for index in range(len(samples))]
    frequencies = Counter(label for image_labels in labels for label in set(image_labels))
    groups: dict[int, list[int]] = defaultdict(list)
    for index, image_labels in enumerate(labels):
        groups[min(image_labels, key=lambda label: (frequencies[label], label), default=-1)].append(index)

    def rank(index: int) -> bytes:
        return hashlib.blake2b(f"{seed} {samples.names[index]}".encode(errors="surrogateescape")).digest()

    counts = _allocate({label: len(indices) for label, indices in groups.items()}, fraction)
    chosen = {index for label, indices in groups.items() for index in sorted(indices, key=rank)[: counts[label]]}
    remaining = [index for index in range(len(samples)) if index not in chosen]
    return samples.select(remaining), samples.select(sorted(chosen))


def _allocate(sizes: dict[int, int], fraction: float) -> dict[int, int]:
    """Return how many samples each group contributes, by the largest remainder method."""
    counts = {label: int(size * fraction) for label, size in sizes.items()}
    total = min(max(round(sum(sizes.values()) * fraction), 1), sum(sizes.values()) - 1)
    by_remainder = sorted(sizes, key=lambda label: (counts[label] - sizes[label] * fraction, label))
    for label in [label for label in by_remainder if sizes[label] > 1][: max(total - sum(counts.values()), 0)]:
        counts[label] += 1
    return counts
