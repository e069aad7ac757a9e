"""Names of classes in the results of all metrics."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def class_names(classes: Sequence[int], id2label: Mapping[int, str] | None) -> list[Any]:
    """Return the keys of `per_class`: unique class names, or the class indices without `id2label`.

    Raises:
        ValueError: If a class has no name.
    """
    if id2label is None:
        return list(classes)
    names = {int(index): name for index, name in id2label.items()}  # in a JSON file the keys are strings
    missing = [index for index in classes if index not in names]
    if missing:
        raise ValueError(f"id2label: got names for {len(names)} classes, and none for {missing}.")
    uses = Counter(names.values())
    return [names[i] if uses[names[i]] == 1 else f"{names[i]} ({i})" for i in classes]
