"""The names of a converted model's labels: read from a file, known sets, told by the source, or refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.models import MobileNet_V3_Small_Weights
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from ..io import user_path
from ..tasks import TaskName
from .rules import listing

# COCO's numbers from 0 to 90 that stand for no class of objects.
_NO_COCO_CLASS = ("__background__", "N/A")

# Names that need no file. COCO's are the 80 classes in the order of their numbers.
LABEL_SETS: dict[str, list[str]] = {
    "imagenet-1k": list(MobileNet_V3_Small_Weights.DEFAULT.meta["categories"]),
    "coco": [
        name for name in SSDLite320_MobileNet_V3_Large_Weights.DEFAULT.meta["categories"] if name not in _NO_COCO_CLASS
    ],
}

# The set that a model with as many labels is likely trained on.
SUGGESTED_LABELS: dict[TaskName, str] = {"image-classification": "imagenet-1k", "object-detection": "coco"}


def read_labels(labels: str | Path | Sequence[str]) -> list[str]:
    """The labels' names from a file with one a line, a key of `LABEL_SETS`, or a sequence.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a name is empty or comes twice, or the file is not text.
    """
    if isinstance(labels, str) and labels in LABEL_SETS:
        return LABEL_SETS[labels]
    if not isinstance(labels, str | Path):
        return _check_names(list(labels))
    path = user_path(labels)
    if not path.is_file():
        known = " or ".join(map(repr, LABEL_SETS))
        raise FileNotFoundError(f"labels: no file {path}. Give a text file with one name a line, or {known}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"labels: {path} is not UTF-8 text. Give a text file with one name a line.") from error
    return _check_names(lines)


def _check_names(names: list[str]) -> list[str]:
    """The names without surrounding blanks, after checking that each is there and comes once."""
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"labels: got {wrong[0]!r}, expected text. Give one name for each label.")
    names = [name.strip() for name in names]
    if not names:
        raise ValueError("labels: got no names. Give one name a line.")
    if "" in names:
        raise ValueError(f"labels: name {names.index('') + 1} of {len(names)} is empty. Remove blank lines.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"labels: {listing(repeated)} given more than once. Give every label its own name.")
    return names


def told_names(facts: Mapping[str, Any], num_labels: int) -> list[str] | None:
    """The names that a timm configuration gives its labels, as a list or by number.

    Raises:
        ValueError: If they are not names, or not as many as labels.
    """
    names = facts.get("label_names")
    if not names:
        return None
    if isinstance(names, Mapping):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or len(names) != num_labels:
        count = len(names) if isinstance(names, list) else repr(names)
        raise ValueError(f"label_names in config.json: got {count}, expected {num_labels} names. Pass labels instead.")
    return _check_names(names)


def name_fields(names: list[str], num_labels: int | None, task: TaskName) -> dict[str, Any]:
    """The configuration's fields for named labels.

    Raises:
        ValueError: If there are not as many names as labels.
    """
    if num_labels is None:
        raise ValueError(f"labels: got {len(names)} names for a backbone without a classifier. Leave them out.")
    if len(names) != num_labels:
        with_background = task == "object-detection" and len(names) == num_labels + 1
        hint = " A detector's background has no name: leave it out." if with_background else ""
        raise ValueError(
            f"labels: got {len(names)} names, expected {num_labels}, one for each output of the classifier. Give one "
            f"name a line in the order the model was trained with.{hint}"
        )
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
