"""Predicted segments of an image, the mask of each class: as label map, COCO RLE and polygons.

A segment is a dict with `label`, `mask` (PIL image of the size of the image, 255 where the class is predicted, else 0)
and `fraction` of the image's pixels, 0..1.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

Segment = dict[str, Any]


def resize_to_labels(logits: "Tensor", size: tuple[int, int]) -> "np.ndarray":
    """Return the class index of each pixel: (K, h, w) logits → (H, W) uint8, or int32 for more than 256 classes.

    The result is that of bilinear interpolation to `size` (H, W) and argmax. One class at a time needs memory for two
    of the K resized planes, and less than half of the time: argmax over the first dimension is slow in torch.
    """
    import torch
    from torch.nn import functional as F

    labels = torch.zeros(size, dtype=torch.uint8 if len(logits) <= 256 else torch.int32)
    best = None
    for index, plane in enumerate(logits):
        resized = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        if best is None:
            best = resized
        else:
            labels.masked_fill_(resized > best, index)
            torch.maximum(best, resized, out=best)
    return labels.numpy()


def split_label_map(label_map: "np.ndarray", id2label: Mapping[int, str]) -> list[Segment]:
    """Return the output of transformers' image-segmentation pipeline for a label map (H, W)."""
    import numpy as np
    from PIL import Image

    return [
        {
            "score": None,
            "label": id2label[index],
            "mask": Image.fromarray((label_map == index).view(np.uint8) * np.uint8(255)),
        }
        for index in np.flatnonzero(np.bincount(label_map.ravel())).tolist()
    ]


def sort_segments(outputs: Iterable[Segment]) -> list[Segment]:
    """Return the outputs of the image-segmentation pipeline with their fraction of the pixels, largest first."""
    segments = []
    for output in outputs:
        mask = output["mask"]
        fraction = count_pixels(mask) / (mask.width * mask.height)
        segments.append({"label": output["label"], "fraction": fraction, "mask": mask})
    return sorted(segments, key=lambda segment: -segment["fraction"])


def count_pixels(mask: "Image.Image") -> int:
    """Return the number of pixels of a mask."""
    return mask.histogram()[255]


def make_label_map(segments: Sequence[Segment], classes: Sequence[str]) -> "np.ndarray":
    """Return the class index of each pixel, (H, W) int32; every pixel is part of a segment."""
    import numpy as np

    indices = {name: index for index, name in enumerate(classes)}
    width, height = segments[0]["mask"].size
    label_map = np.zeros((height, width), np.int32)
    for segment in segments:
        label_map[np.asarray(segment["mask"]) > 0] = indices[segment["label"]]
    return label_map


def to_json(predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return predictions with their masks, if they have any, as COCO RLE."""
    return [p | {"mask": encode_rle(p["mask"])} if "mask" in p else p for p in predictions]


def encode_rle(mask: "Image.Image") -> dict[str, Any]:
    """Encode a mask as COCO's compressed RLE: `size`, [height, width], and `counts`, a string."""
    import numpy as np
    from faster_coco_eval.core.mask import encode

    rle = encode(np.asfortranarray(np.asarray(mask) > 0, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode()}


def trace_polygons(mask: "Image.Image") -> list[list[float]]:
    """Return the outlines of a mask's regions as COCO polygons [x1, y1, x2, y2, ...], in pixels.

    Painted as pycocotools does, they have exactly the pixels of the mask. COCO's polygons have no holes: a hole is
    part of the outline, to and from which two coinciding lines lead.
    """
    import numpy as np
    from contourpy import contour_generator

    box = mask.getbbox()
    if box is None:
        return []
    # The outline passes halfway between the centers of pixels inside and outside.
    values = np.pad(np.asarray(mask.crop(box)) > 0, 1).astype(np.float64)
    generator = contour_generator(z=values, fill_type="OuterOffset")
    polygons = []
    outlines: Iterable[tuple[np.ndarray, np.ndarray]] = zip(*cast("Any", generator.filled(0.5, 2)), strict=True)
    for points, offsets in outlines:  # an outer ring and those of its holes
        rings = [_simplify(points[start : end - 1]) for start, end in pairwise(offsets)]
        polygon = _join_holes(rings[0], rings[1:]) + np.array(box[:2]) - 0.5
        polygons.append(polygon.ravel().tolist())
    return polygons


def _simplify(ring: "np.ndarray") -> "np.ndarray":
    """Remove the points (N, 2) of a closed ring that are on the line between their neighbors."""
    import numpy as np

    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _join_holes(outline: "np.ndarray", holes: Iterable["np.ndarray"]) -> "np.ndarray":
    """Return one ring (N, 2) with holes: at the point next to a hole, it goes there, around it and back."""
    import numpy as np

    for hole in holes:
        nearest = np.square(outline - hole[0]).sum(axis=1).argmin()
        outline = np.concatenate([outline[: nearest + 1], hole, hole[:1], outline[nearest:]])
    return outline
