"""Metric modules for `evaluate`: top-k accuracy, COCO mean average precision and mean IoU.

Load them by path, `evaluate.load(path("coco_map"))`, or use the classes. Neither needs network access.
"""

from pathlib import Path

from .coco_map.coco_map import CocoMap
from .mean_iou.mean_iou import MeanIoU
from .top_k_accuracy.top_k_accuracy import TopKAccuracy

NAMES = ("top_k_accuracy", "coco_map", "mean_iou")


def path(name: str) -> str:
    """Return the path with which `evaluate.load` loads a metric, one of `NAMES`.

    Raises:
        ValueError: If there is no metric of this name.
    """
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(NAMES)}.")
    return str(Path(__file__).parent / name)


__all__ = ["CocoMap", "MeanIoU", "TopKAccuracy", "path"]
