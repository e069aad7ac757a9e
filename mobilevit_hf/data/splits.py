"""A validation split cut off the training split."""

import hashlib
from collections import Counter, defaultdict

from .formats.samples import Samples


def cut_validation(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Set a share of samples apart, class by class.

    Each image counts for its class, in detection for the rarest of those on it, and each class gives its share,
    rounded so that the whole is right; a class's only image stays. Which images of a class it gives is decided by
    a hash of the seed and their names: the same on every machine, and nearly the same after some were added.

    Args:
        samples: What to cut.
        fraction: The share to set apart, 0..1.
        seed: Another number gives another cut.

    Returns:
        The rest and what was set apart, both in the order of the samples.
    """
    labels = [samples.labels_of(place) for place in range(len(samples))]
    frequencies = Counter(label for found in labels for label in set(found))
    groups: dict[int, list[int]] = defaultdict(list)
    for place, found in enumerate(labels):
        groups[min(found, key=lambda label: (frequencies[label], label), default=-1)].append(place)

    def rank(place: int) -> bytes:
        return hashlib.blake2b(f"{seed} {samples.names[place]}".encode(errors="surrogateescape")).digest()

    shares = _shares({label: len(places) for label, places in groups.items()}, fraction)
    chosen = {place for label, places in groups.items() for place in sorted(places, key=rank)[: shares[label]]}
    rest = [place for place in range(len(samples)) if place not in chosen]
    return samples.pick(rest), samples.pick(sorted(chosen))


def _shares(sizes: dict[int, int], fraction: float) -> dict[int, int]:
    """How many each group gives: its share rounded down, and one more for those that lost most by it."""
    shares = {label: int(size * fraction) for label, size in sizes.items()}
    total = min(max(round(sum(sizes.values()) * fraction), 1), sum(sizes.values()) - 1)
    losses = sorted(sizes, key=lambda label: (shares[label] - sizes[label] * fraction, label))
    for label in [label for label in losses if sizes[label] > 1][: max(total - sum(shares.values()), 0)]:
        shares[label] += 1
    return shares
