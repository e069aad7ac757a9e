"""Select the samples of a dataset to evaluate on."""

from collections.abc import Sequence
from itertools import chain, islice

from ..data.sequences import ConcatSequence
from ..data.types import Dataset, Problem, Split

SPLITS = ("validation", "test", "train")
ALL_SPLITS = "all"


def select_split(dataset: Dataset, split: str | None = None) -> tuple[str, Split]:
    """Return the name and the samples of a split ("all": of all splits; default: the first of `SPLITS` it has).

    Raises:
        ValueError: If the dataset has no such split.
    """
    splits = dataset.splits
    name = split or next((name for name in SPLITS if name in splits), "")
    if name == ALL_SPLITS:
        sequences = [samples for samples in splits.values() if isinstance(samples, Sequence)]
        return name, ConcatSequence(sequences) if len(sequences) == len(splits) else chain(*splits.values())
    if name not in splits:
        raise ValueError(f"split: got {name or None}, expected one of {', '.join([*splits, ALL_SPLITS])}.")
    return name, splits[name]


def split_problems(dataset: Dataset, split: str) -> list[Problem]:
    """Return the problems found while reading a split, with those that can't be assigned to any split."""
    elsewhere = {
        sample.name
        for name, samples in dataset.splits.items()
        if dataset.problems and split not in (name, ALL_SPLITS) and isinstance(samples, Sequence)
        for sample in samples
    }
    return [problem for problem in dataset.problems if problem.name not in elsewhere]


def check_problems(problems: Sequence[Problem], samples: Split, max_bad: float) -> None:
    """Check the fraction of samples that were invalid when a split was read; a stream has none to count.

    Raises:
        ValueError: If it exceeds `max_bad`.
    """
    if not problems or not isinstance(samples, Sequence):
        return
    invalid = {problem.name: problem for problem in problems if problem.is_error}
    total = len(invalid.keys() | {sample.name for sample in samples})
    if len(invalid) > max_bad * total:
        name, first = next(iter(invalid.items()))
        raise ValueError(
            f"max_bad: got {len(invalid)} of {total} samples invalid, expected at most {max_bad:.0%}, such as {name}: "
            f"{first.kind}, {first.reason}. Fix them (mobilevit check-data lists all), or raise the limit."
        )


def limit_samples(samples: Split, limit: int | None) -> Split:
    """Return at most `limit` samples: evenly spaced, as folders are sorted by class; the first of a stream."""
    if limit is None:
        return samples
    if not isinstance(samples, Sequence):
        return islice(samples, limit)
    count = min(limit, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]
