"""COCO JSON: a file, or a dataset of `annotations/instances_train.json` next to copies of the images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...io import read_json, write_text
from ..segments import count_pixels, encode_rle, trace_polygons
from .base import PredictedImage, PredictionWriter, box_corners, copy_image
from .json_lines import JsonLinesWriter

ANNOTATIONS, IMAGES = "annotations/instances_train.json", "images"
# Of the file with the annotations so far, as JSON lines.
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class AnnotationKind:
    """What the annotations contain.

    Attributes:
        types: Fields besides ids, and their types.
        make: Function that returns these fields for a prediction.
    """

    types: dict[str, type | tuple[type, ...]]
    make: Callable[[dict[str, Any]], dict[str, Any]]


def _annotate_box(prediction: dict[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = box_corners(prediction)
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "score": prediction["score"],
    }


def _annotate_mask(prediction: dict[str, Any], segmentation: Any) -> dict[str, Any]:
    mask = prediction["mask"]
    left, top, right, bottom = mask.getbbox()
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": count_pixels(mask),
        "iscrowd": 0,
        "segmentation": segmentation,
    }


COMMON_TYPES: dict[str, type | tuple[type, ...]] = {"bbox": list, "area": (int, float), "iscrowd": int}
BOXES = AnnotationKind(COMMON_TYPES | {"score": (int, float)}, _annotate_box)
# One annotation per class and image.
RLE = AnnotationKind(COMMON_TYPES | {"segmentation": dict}, lambda p: _annotate_mask(p, encode_rle(p["mask"])))
POLYGONS = AnnotationKind(
    COMMON_TYPES | {"segmentation": list}, lambda p: _annotate_mask(p, trace_polygons(p["mask"]))
)


class CocoWriter(PredictionWriter):
    """Writer of a COCO JSON file, from JSON lines with the annotations in a file next to it until the end.

    Ids start at 1; categories are in the order of the model.

    Args:
        path, classes: See `PredictionWriter`.
        kind: What the annotations contain.
    """

    def __init__(self, path: Path, classes: Sequence[str], kind: AnnotationKind = BOXES) -> None:
        super().__init__(path, classes)
        self._kind = kind
        partial = partial_file(path)
        if path.exists() and not partial.exists():  # finished
            records = _read_records(path, classes, kind)
            write_text(partial, "".join(f"{json.dumps(record)}\n" for record in records))
        self._lines = JsonLinesWriter(partial, classes)

    def is_written(self, name: str) -> bool:
        """Return whether the predictions of an image are in the output."""
        return self._lines.is_written(name)

    def write(self, image: PredictedImage) -> None:
        """Write the predictions of an image."""
        annotations = [{"label": p["label"], **self._kind.make(p)} for p in image.predictions]
        self._lines.write(replace(image, predictions=annotations))

    def finish(self) -> None:
        """Write the COCO file."""
        self._lines.finish()
        content = _make_content(self._lines.read(), self.classes)
        write_text(self.path, f"{json.dumps(content, allow_nan=False)}\n")
        self._lines.path.unlink()


class CocoDatasetWriter(CocoWriter):
    """Writer of a COCO file and copies of the images in a folder."""

    def __init__(self, path: Path, classes: Sequence[str], kind: AnnotationKind = BOXES) -> None:
        self._folder = path
        path.joinpath(ANNOTATIONS).parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path / ANNOTATIONS, classes, kind)

    def write(self, image: PredictedImage) -> None:
        """Copy an image and write its predictions."""
        copy_image(image.content, self._folder / IMAGES / image.name)
        super().write(image)


def partial_file(path: Path) -> Path:
    """Return the file with the annotations so far of a COCO file."""
    return path.with_name(f"{path.name}{PARTIAL_SUFFIX}")


def _make_content(records: list[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Convert the records of `JsonLinesWriter` to COCO's format."""
    images, annotations = [], []
    for image_id, record in enumerate(records, start=1):
        images.append(
            {"id": image_id, "file_name": record["image"], "width": record["width"], "height": record["height"]}
        )
        for annotation in record["predictions"]:
            category_id = classes.index(annotation.pop("label")) + 1
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
            annotations.append(ids | annotation)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _read_records(path: Path, classes: Sequence[str], kind: AnnotationKind) -> list[dict[str, Any]]:
    """Convert a COCO file of this writer to the records of `JsonLinesWriter`.

    Raises:
        ValueError: If it is another file, or one of other classes or annotations.
    """
    content = read_json(path)
    try:
        names = [category["name"] for category in content["categories"]]
        records = {
            image["id"]: {"image": image["file_name"], "width": image["width"], "height": image["height"]}
            for image in content["images"]
        }
        for record in records.values():
            record["predictions"] = []
        for annotation in content["annotations"]:
            fields = {name: annotation[name] for name in kind.types}
            if not all(isinstance(fields[name], expected) for name, expected in kind.types.items()):
                raise ValueError("got other annotations")
            prediction = {"label": names[annotation["category_id"] - 1], **fields}
            records[annotation["image_id"]]["predictions"].append(prediction)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: got no COCO file of such predictions. Pass another file.") from error
    if names != list(classes):
        raise ValueError(f"{path}: got predictions of other classes, expected those of the model. Pass another file.")
    return list(records.values())
