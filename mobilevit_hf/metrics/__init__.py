"""Modules for `evaluate`: top-k accuracy, COCO's mean average precision and mean IoU.

They load by path, `evaluate.load(path("coco_map"))`, or are used as classes. All work without the network.
"""

from pathlib import Path

from .coco_map.coco_map import CocoMap
from .mean_iou.mean_iou import MeanIoU
from .top_k_accuracy.top_k_accuracy import TopKAccuracy

NAMES = ("top_k_accuracy", "coco_map", "mean_iou")


def path(name: str) -> str:
    """What `evaluate.load` takes to load one of the modules.

    Args:
        name: One of `NAMES`.

    Raises:
        ValueError: If there is no such module.
    """
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(NAMES)}.")
    return str(Path(__file__).parent / name)


__all__ = ["CocoMap", "MeanIoU", "TopKAccuracy", "path"]
