"""Results per class, by class name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def class_names(classes: Sequence[int], id2label: Mapping[int, str] | None) -> list[Any]:
    """Return the keys of `per_class`: unique class names, or the class indices without `id2label`."""
    if id2label is None:
        return list(classes)
    names = {int(index): name for index, name in id2label.items()}  # in a JSON file the keys are strings
    missing = [index for index in classes if index not in names]
    if missing:
        raise ValueError(f"id2label: got names for {len(names)} classes, and none for {missing}.")
    uses = Counter(names.values())
    return [names[i] if uses[names[i]] == 1 else f"{names[i]} ({i})" for i in classes]


def per_class_table(
    columns: Mapping[str, np.ndarray], classes: Sequence[int], id2label: Mapping[int, str] | None
) -> dict[Any, dict[str, Any]]:
    """Return the row of each class, a dict of its values in all columns (N,)."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    names = class_names(classes, id2label)
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(names, rows, strict=True)}
