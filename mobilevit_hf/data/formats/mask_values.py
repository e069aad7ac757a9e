"""Infer which class each value or color of masks is, from their pixels and the names of the classes."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..masks import COLOR, MAX_CLASSES, MaskEncoding, UnreadableMaskError, count_codes
from ..types import IGNORE_INDEX
from .mask_classes import ClassRow

NAMED_SAMPLE = 300  # masks whose values are read if the classes are named
UNNAMED_SAMPLE = 5000
MATCHED = 0.5  # fraction of the pixels whose colors are those of the classes
VOC_BORDER = 0xE0E0C0  # color of the ignored value 255 in Pascal VOC's palette
NEAR, MIN_NEAR = 16, 3  # by how much the values of a binary mask vary in a JPEG, and how many are close to 255
JPEG_SUFFIXES = (".jpg", ".jpeg")
SHOWN_COLORS = 5  # in a message
MAX_LOSSY_VALUES = 32  # of masks in JPEG files; each class adds about ten at its boundaries
BINARY = ("background", "foreground")
HOW_TO_NAME = "Add a file classes.txt with the name of each class, one per line from value 0"
HOW_TO_COLOR = "Add a file classes.csv with the columns name,r,g,b and a row for each color"

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # values of labelIds


class Encoding(NamedTuple):
    """Classes of masks, how they are stored, and what the user should know about it, as sentences."""

    classes: tuple[str, ...]
    encoding: MaskEncoding
    notes: list[str]


def infer_encoding(masks: Sequence[Any], rows: Sequence[ClassRow], file: str, root: str) -> Encoding:
    """Infer the encoding of masks.

    Args:
        masks: Sources of masks, see `Mask`.
        rows: Classes of `file`, none if the dataset doesn't name them.
        file: Name of the file of classes.
        root: Name of the dataset in messages.

    Raises:
        ValueError: If the masks have colors that no file explains, or more than 255 classes.
    """
    limit = NAMED_SAMPLE if rows else UNNAMED_SAMPLE
    sample = masks[:: -(-len(masks) // limit)] if masks else masks
    if len(rows) > MAX_CLASSES + 1:
        raise ValueError(f"{root}: got {len(rows)} classes in {file}, expected at most {MAX_CLASSES}. Merge some.")
    if rows and all(row.color is not None for row in rows):
        colors = _count(sample, is_color=True)
        known = {row.color for row in rows}
        if sum(number for code, number in colors.items() if code in known) >= MATCHED * colors.total():
            return _encode_colors(rows, colors, file)
    values = _count(sample, is_color=False)
    palette = f"other colors in {file}" if file else "no palette"
    colored = sum(number for code, number in values.items() if code >= COLOR)
    lossy = next((mask for mask in sample if str(mask).lower().endswith(JPEG_SUFFIXES)), None)
    if colored > MATCHED * values.total():
        if lossy:
            cause = f"in JPEG files such as {Path(lossy).name}, whose compression changes colors"
        else:
            cause = f"most often {_show_colors(values)}"
        action = "Save masks as PNG" if lossy else HOW_TO_COLOR
        raise ValueError(
            f"{root}: got color masks and {palette}, {cause}, expected the class of each color. {action}."
        )
    observed = {code: number for code, number in values.items() if code < COLOR}
    if binary := _encode_binary(rows, observed):
        return binary
    if lossy and len(observed) > MAX_LOSSY_VALUES:
        raise ValueError(
            f"{root}: got masks with {len(observed)} different values in JPEG files, such as {Path(lossy).name}, "
            "whose compression changes values, expected one for each class. Save masks as PNG."
        )
    encoding = _encode_named(rows, observed, file) if rows else _encode_unnamed(observed, root)
    if colored:
        encoding.notes.append(f"Some masks have colors, and there is {palette}. {HOW_TO_COLOR}.")
    return encoding


def known_rows(image_names: Sequence[str], mask_names: Sequence[str]) -> tuple[list[ClassRow], str]:
    """Return the classes of Pascal VOC or Cityscapes, whose layouts and names are unique, and the name of it."""
    if all("labeltrainids" in name.lower() for name in mask_names):
        return [ClassRow(name, number) for number, name in enumerate(CITYSCAPES_CLASSES)], "Cityscapes"
    if all("labelids" in name.lower() for name in mask_names):
        rows = [ClassRow(name, number) for name, number in zip(CITYSCAPES_CLASSES, CITYSCAPES_IDS, strict=True)]
        others = (number for number in range(34) if number not in CITYSCAPES_IDS)
        return [*rows, *(ClassRow("unlabeled", number) for number in others)], "Cityscapes"
    in_voc = all("SegmentationClass" in name for name in mask_names) and any("JPEGImages" in n for n in image_names)
    return ([ClassRow(name, number) for number, name in enumerate(VOC_CLASSES)], "Pascal VOC") if in_voc else ([], "")


def _show_colors(codes: Counter[int]) -> str:
    """Return the most frequent colors; codes below `COLOR` are grays."""
    common = [code for code, _ in codes.most_common(SHOWN_COLORS)]
    colors = [(code - COLOR).to_bytes(3, "big") if code >= COLOR else bytes([code] * 3) for code in common]
    return ", ".join(str(tuple(color)) for color in colors)


def _count(masks: Sequence[Any], *, is_color: bool) -> Counter[int]:
    """Return the number of pixels of each value or color; masks that can't be read are reported by a check."""

    def count(source: Any) -> Mapping[int, int]:
        try:
            return count_codes(source, is_color=is_color)
        except UnreadableMaskError:
            return {}

    total: Counter[int] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for counts in pool.map(count, masks):
            total.update(counts)
    return total


def _encode_colors(rows: Sequence[ClassRow], colors: Counter[int], file: str) -> Encoding:
    kept = [row for row in rows if not row.is_ignored]
    classes, notes = [row.name for row in kept], _note_ignored(rows, file)
    labels = {row.color or 0: label for label, row in enumerate(kept)}
    labels |= {row.color or 0: IGNORE_INDEX for row in rows if row.is_ignored}
    if 0 in colors and 0 not in labels:
        classes, labels = (
            [BINARY[0], *classes],
            {color: label + (label < IGNORE_INDEX) for color, label in labels.items()},
        )
        labels[0] = 0
        notes.append(f"Black, which {file} doesn't name, is the class {BINARY[0]}.")
    labels.setdefault(VOC_BORDER, IGNORE_INDEX)
    return Encoding(tuple(classes), MaskEncoding(labels, is_color=True), notes)


def _encode_binary(rows: Sequence[ClassRow], observed: Mapping[int, int]) -> Encoding | None:
    """Return the encoding of masks of 0 and 255 (in a JPEG, of values close to them), where 255 is a class."""
    is_exact = set(observed) == {0, 255}
    near = sum(number for value, number in observed.items() if not NEAR <= value <= 255 - NEAR)
    is_lossy = near >= 0.95 * sum(observed.values()) and len(set(observed) & set(range(256 - NEAR, 255))) >= MIN_NEAR
    if len(rows) > 2 or not (is_exact or is_lossy):
        return None
    names = [row.name for row in rows]
    classes = tuple(names) if len(names) == 2 else (BINARY[0], *(names or BINARY[1:]))
    note = f"Masks have the values 0 ({classes[0]}) and 255 ({classes[1]}), which therefore is not the ignored value."
    if not is_exact:
        note += " Values in between, of lossy compression, are rounded to them. Save masks as PNG to avoid it."
    labels = {value: int(value > 127) for value in range(256)} if not is_exact else {0: 0, 255: 1}
    return Encoding(classes, MaskEncoding(labels), [note])


def _encode_named(rows: Sequence[ClassRow], observed: Mapping[int, int], file: str) -> Encoding:
    numbers = [row.number for row in rows]
    notes = _note_ignored(rows, file)
    values = sorted(value for value in observed if value != IGNORE_INDEX)
    if None in numbers:
        is_shifted = bool(values) and values[-1] == len(rows) and (values[0] >= 1 or len(rows) == 1)
        numbers = [index + is_shifted for index in range(len(rows))]
        if is_shifted:
            notes.append(f"Masks have values up to {len(rows)}: the first name of {file} is that of value 1.")
    labels, classes = {IGNORE_INDEX: IGNORE_INDEX}, []
    by_number = dict(zip(numbers, rows, strict=True))
    after = max(number for number in by_number if number is not None) + 1
    if after in values and values[-1] == after:
        labels[after] = IGNORE_INDEX
        notes.append(
            f"Value {after}, the highest one and right after the classes of {file}, is ignored. If another one is to "
            f"be ignored, write lines such as `1 {rows[0].name}`, with the value of each class."
        )
    if 0 in observed and 0 not in by_number:
        if "objectinfo150" in file.lower():
            labels[0] = IGNORE_INDEX
            notes.append(f"Value 0, which {file} doesn't name, is ignored.")
        else:
            by_number = {0: ClassRow(BINARY[0], 0), **by_number}
            notes.append(
                f"Value 0, which {file} doesn't name, is the class {BINARY[0]}. To ignore it, name it unlabeled."
            )
    for number, row in by_number.items():
        if number not in (None, IGNORE_INDEX):
            labels[number] = IGNORE_INDEX if row.is_ignored else len(classes)
            classes += [] if row.is_ignored else [row.name]
    return Encoding(tuple(classes), MaskEncoding(labels), notes)


def _encode_unnamed(observed: Mapping[int, int], root: str) -> Encoding:
    values = sorted(value for value in observed if value != IGNORE_INDEX)
    if len(values) > MAX_CLASSES // 2:
        raise ValueError(
            f"{root}: got masks with {len(values)} different values, expected one for each class. Save masks as PNG, "
            "without smooth edges, and add classes.txt with the names."
        )
    labels = {value: label for label, value in enumerate(values)} | {IGNORE_INDEX: IGNORE_INDEX}
    classes = tuple(f"class {value}" for value in values)
    note = f"No file names the classes: {', '.join(classes[:3])}, … are the values of the masks. {HOW_TO_NAME}."
    return Encoding(classes, MaskEncoding(labels), [note])


def _note_ignored(rows: Sequence[ClassRow], file: str) -> list[str]:
    names = ", ".join(dict.fromkeys(row.name for row in rows if row.is_ignored))
    return [f"Pixels of {names} ({file}) are ignored: the name says that they are not labeled."] if names else []
