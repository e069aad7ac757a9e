"""Map the classes of a dataset to the classes of a model."""

from collections.abc import Mapping, Sequence

# Class lists of equal length are matched by index where at most this fraction of the names differs in spelling.
MAX_RENAMED = 0.01


def match_classes(id2label: Mapping[int, str], classes: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the model's class index of each class of a dataset.

    Names match if they are equal; else if they differ in case, blanks and underscores only; else if the parts before
    the first comma match, as in "tench" and "tench, Tinca tinca". Among several classes of one name, the one at the
    same index is chosen. Lists of equal length are matched by index if no name matches (`LABEL_0`), or for at most
    one unmatched name in a hundred (another spelling).

    Args:
        id2label: Class names of the model.
        classes: Class names of the dataset, in label order.

    Returns:
        The model's class index of each dataset class, and notes for the user.

    Raises:
        ValueError: If the model lacks some of the classes.
    """
    names = [name for _, name in sorted(id2label.items())]
    indices = [_find_class(names, name, index) for index, name in enumerate(classes)]
    matched = [index for index in indices if index is not None]
    unmatched = [label for label, index in enumerate(indices) if index is None]
    if not unmatched:
        return matched, []
    if len(names) == len(classes):
        if not matched:
            return list(range(len(classes))), [
                f"No class name of the model ({_join(names)}) matches one of the dataset ({_join(classes)}). Assuming "
                f"that both list their {len(names)} classes in the same order."
            ]
        if sum(label != index for label, index in enumerate(indices)) <= MAX_RENAMED * len(classes):
            pairs = _join([f"{classes[label]} = {names[label]}" for label in unmatched])
            return [label if index is None else index for label, index in enumerate(indices)], [
                f"Matched by index, because all other names agree: {pairs}."
            ]
    raise ValueError(
        f"classes: got {len(unmatched)} of {len(classes)} dataset classes that the model lacks "
        f"({_join([classes[label] for label in unmatched])}), expected classes among {_join(names)}. Rename the "
        "dataset's classes, or use a model trained on them."
    )


def _find_class(names: Sequence[str], name: str, index: int) -> int | None:
    """Return the index of a name in `names`, preferably the given one; None if it is missing or ambiguous."""
    for normalize in (str, _fold_name, lambda name: _fold_name(name.split(",")[0])):
        same = [other for other, candidate in enumerate(names) if normalize(candidate) == normalize(name)]
        if index in same or len(same) == 1:
            return index if index in same else same[0]
    return None


def _fold_name(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
