"""Check masks: their size, values that are no classes, and masks without any class."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .masks import COLOR, Mask, MaskSizeError, UnreadableMaskError
from .types import IGNORE_INDEX, Problem, ProblemKind

BACKGROUND_NAMES = ("background", "_background_", "__background__", "bg", "class 0")
MAX_CODES = 3  # values or colors in a reason


class MaskInspection(NamedTuple):
    """Content of a mask.

    Attributes:
        pixels: Number of pixels of each class.
        ignored: Number of ignored pixels.
        unknown: Number of pixels of each raw value or color without a class, which are ignored.
        error: Kind of the problem that makes the mask unusable, and the reason.
        digest: SHA-256 of the classes.
    """

    pixels: Mapping[int, int] = {}
    ignored: int = 0
    unknown: Mapping[int, int] = {}
    error: tuple[ProblemKind, str] | None = None
    digest: bytes = b""


def inspect_mask(mask: Mask, size: tuple[int, int]) -> MaskInspection:
    """Read the mask of an image of `size` (width, height)."""
    try:
        labels, unknown = mask.inspect(size=size[::-1])
    except MaskSizeError as error:
        return MaskInspection(error=("mask of another size", str(error)))
    except UnreadableMaskError as error:
        return MaskInspection(error=("unreadable mask", str(error)))
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
    pixels = {label: int(counts[label]) for label in np.flatnonzero(counts[:IGNORE_INDEX]).tolist()}
    digest = hashlib.sha256(labels.tobytes()).digest()
    return MaskInspection(pixels, int(counts[IGNORE_INDEX]), unknown, digest=digest)


def validate_mask(name: str, mask: Mask, inspection: MaskInspection, classes: Sequence[str]) -> list[Problem]:
    """Return the problems of a mask. The sample is usable if none of them is an error."""
    if inspection.error:
        return [Problem(name, *inspection.error)]
    problems = []
    unknown = dict(inspection.unknown)
    total = sum(inspection.pixels.values()) + inspection.ignored
    if beyond := {label: count for label, count in inspection.pixels.items() if label >= len(classes)}:
        problems.append(
            Problem(name, "unknown class", f"{_describe(mask, beyond, total)}, expected 0..{len(classes) - 1}")
        )
    if unknown and mask.encoding and not mask.encoding.is_color and max(unknown) >= COLOR:
        reason = f"{_describe(mask, unknown, total)}, in a dataset without the colors of its classes"
        return [Problem(name, "color mask without a palette", reason)]
    if unknown:
        reason = f"{_describe(mask, unknown, total)}: no class of the dataset, and ignored"
        problems.append(Problem(name, "value outside the classes", reason))
    if not inspection.pixels:
        problems.append(Problem(name, "mask of ignored pixels", "no pixel has a class"))
    elif set(inspection.pixels) == {0} and classes[0].lower() in BACKGROUND_NAMES:
        problems.append(Problem(name, "empty mask", f"all pixels are {classes[0]}"))
    return problems


def _describe(mask: Mask, counts: Mapping[int, int], total: int) -> str:
    """Describe the most frequent of some raw values or colors, and how many pixels all of them have."""
    most = sorted(counts, key=lambda code: -counts[code])
    shown = ", ".join(mask.encoding.describe(code) if mask.encoding else f"value {code}" for code in most[:MAX_CODES])
    more = f" and {len(most) - MAX_CODES} more" if len(most) > MAX_CODES else ""
    number = sum(counts.values())
    return f"{shown}{more} in {number} pixel{'s' * (number > 1)} ({number / total:.2%})"
