"""Label names of a converted model: from a file, a predefined set or the source."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.models import MobileNet_V3_Small_Weights
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from ..io import user_path
from ..tasks import TaskName
from .rules import summarize_names

_COCO_CATEGORIES = SSDLite320_MobileNet_V3_Large_Weights.DEFAULT.meta["categories"]  # by category id, 0 to 90

# Predefined label names. Those of COCO are the 80 classes in the order of their category ids.
LABEL_SETS: dict[str, list[str]] = {
    "imagenet-1k": list(MobileNet_V3_Small_Weights.DEFAULT.meta["categories"]),
    "coco": [name for name in _COCO_CATEGORIES if name not in ("__background__", "N/A")],
}

# Set suggested for a model of the same number of labels.
SUGGESTED_LABELS: dict[TaskName, str] = {"image-classification": "imagenet-1k", "object-detection": "coco"}


def read_labels(labels: str | Path | Sequence[str]) -> list[str]:
    """Return label names from a text file with one name per line, a key of `LABEL_SETS`, or a sequence."""
    if isinstance(labels, str) and labels in LABEL_SETS:
        return LABEL_SETS[labels]
    if not isinstance(labels, str | Path):
        return _check_names(list(labels))
    path = user_path(labels)
    if not path.is_file():
        names = " or ".join(map(repr, LABEL_SETS))
        raise FileNotFoundError(f"labels: no file {path}. Pass a text file with one name per line, or {names}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"labels: {path} is not UTF-8 text. Pass a text file with one name per line.") from error
    return _check_names(lines)


def _check_names(names: list[str]) -> list[str]:
    """Return the names without surrounding whitespace after checking that none is empty or repeated."""
    invalid = [name for name in names if not isinstance(name, str)]
    if invalid:
        raise ValueError(f"labels: got {invalid[0]!r}, expected text. Pass one name per label.")
    names = [name.strip() for name in names]
    if not names:
        raise ValueError("labels: got no names. Pass one name per line.")
    if "" in names:
        raise ValueError(f"labels: name {names.index('') + 1} of {len(names)} is empty. Remove blank lines.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"labels: {summarize_names(repeated)} given more than once. Pass unique names.")
    return names


def timm_label_names(source_config: Mapping[str, Any], num_labels: int) -> list[str] | None:
    """Return `label_names` of a timm configuration, a list or a dict by index; None without them."""
    names = source_config.get("label_names")
    if not names:
        return None
    if isinstance(names, Mapping):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or len(names) != num_labels:
        count = len(names) if isinstance(names, list) else repr(names)
        raise ValueError(f"label_names in config.json: got {count}, expected {num_labels} names. Pass labels instead.")
    return _check_names(names)


def label_fields(names: list[str], num_labels: int | None, task: TaskName) -> dict[str, Any]:
    """Return `id2label` and `label2id` after checking the number of names."""
    if num_labels is None:
        raise ValueError(f"labels: got {len(names)} names for a backbone without a classifier. Omit labels.")
    if len(names) != num_labels:
        with_background = task == "object-detection" and len(names) == num_labels + 1
        hint = " Omit the background: it is not a label of a detector." if with_background else ""
        raise ValueError(
            f"labels: got {len(names)} names, expected {num_labels}, one per output of the classifier. Pass one name "
            f"per line in the order used in training.{hint}"
        )
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
