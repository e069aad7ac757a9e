"""Brush strokes and polygons in the exports JSON and JSON-MIN of Label Studio."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .folder import DataFolder
from .unread import identify_tool

MAX_BYTES = 512 * 2**20
IMAGE_KEYS = ("image", "img", "image_url", "url")
LABEL_KEYS = ("brushlabels", "polygonlabels", "labels")
SHAPE_MARKERS = (b'"rle"', b'"polygonlabels"')


@dataclass
class Regions:
    """Annotated regions of an image.

    Attributes:
        shapes: Label and shape of each region, see `fill_shape`, in the order in which they were drawn.
        size: (width, height) of the image, None without a region.
        skipped: Number of regions without an area or a label by their kind, such as `keypointlabels`.
    """

    shapes: list[tuple[str, Any]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    skipped: Counter[str] = field(default_factory=Counter)


def find_exports(folder: DataFolder) -> list[str]:
    """Return the JSON files that contain brush strokes or polygons."""
    names = folder.files_by_suffix().get(".json", ())
    return [name for name in names if identify_tool(folder, name) == "Label Studio" and _has_shapes(folder, name)]


def _has_shapes(folder: DataFolder, name: str) -> bool:
    path = Path(folder.path(name))
    if path.stat().st_size > MAX_BYTES:
        return False
    content = path.read_bytes()
    return any(marker in content for marker in SHAPE_MARKERS)


def read_tasks(folder: DataFolder, name: str) -> list[dict[str, Any]]:
    """Return the tasks of a JSON file, none if it is no export."""
    path = Path(folder.path(name))
    try:
        content: Any = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_BYTES else []
    except (OSError, ValueError, RecursionError):
        return []
    entries = content if isinstance(content, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int)]


def find_image(task: Mapping[str, Any]) -> str:
    """Return the path or URL of the image of a task, empty if it has none."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    return next((data[key] for key in IMAGE_KEYS if isinstance(data.get(key), str)), "")


def find_annotations(task: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the regions of each annotation of a task, without canceled ones.

    Raises:
        ValueError: If they are malformed.
    """
    try:
        if "annotations" in task:
            return [part.get("result") or [] for part in task["annotations"] if not part.get("was_cancelled")]
        # JSON-MIN: a list of regions by the name of the control.
        parts = [part for part in task.values() if isinstance(part, list)]
        return [[{"value": region} | region for part in parts for region in part if isinstance(region, dict)]]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"malformed annotations: {error}") from error


def parse_regions(regions: list[dict[str, Any]]) -> Regions:
    """Parse the regions of an annotation.

    Raises:
        ValueError: If one is malformed.
    """
    result = Regions()
    try:
        for region, label in _label_regions(regions):
            value = region["value"]
            is_shape = "rle" in value or "points" in value
            if not (is_shape and label):
                result.skipped[str(region.get("type", "regions"))] += 1
                continue
            result.size = width, height = int(region["original_width"]), int(region["original_height"])
            if "rle" in value:
                shape: Any = bytes(value["rle"])
            else:  # in percent of the image
                shape = [[c for x, y in value["points"] for c in (x * width / 100, y * height / 100)]]
            result.shapes.append((label, shape))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"malformed region: {type(error).__name__}: {error}") from error
    return result


def _label_regions(regions: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield regions with their label; a shape without one is left out if another region of its id has the label."""
    labels = [next((str(r["value"][key][0]) for key in LABEL_KEYS if r["value"].get(key)), "") for r in regions]
    labeled = {region.get("id") for region, label in zip(regions, labels, strict=True) if label}
    for region, label in zip(regions, labels, strict=True):
        if label or region.get("id") not in labeled:
            yield region, label
