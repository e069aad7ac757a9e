"""Rows of YOLO label files: boxes, polygons, oriented boxes and keypoints."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .annotations import Annotation

TOLERANCE = 0.1  # by which keypoints may lie outside of their box, as a fraction of its size
LARGE = 2.0  # a relative coordinate that no rounding explains
ROTATED_BOX = 8  # number of the coordinates of four points
MAX_POLYGON_ROWS = 100  # rows that are searched for edges that cross


@dataclass
class RowParser:
    """Parser of label rows, with statistics of all of them.

    Attributes:
        keypoint_values: Number of values of an object's keypoints, 0 for a dataset without `kpt_shape`.
        keep_polygons: Whether to return polygons as shapes, whose coordinates are relative, too.
        num_objects: Number of rows with a box or a polygon.
        num_large: Number of those with a coordinate that is far from 0..1.
        has_polygons: Whether a row is a polygon of more or less than four points, which are a rotated box.
        fifth_values: Smallest and largest of the values behind boxes, which are confidences in saved predictions.
    """

    keypoint_values: int = 0
    keep_polygons: bool = False
    num_objects: int = 0
    num_large: int = 0
    has_polygons: bool = False
    fifth_values: tuple[float, float] | None = None
    _length: int = 0  # of all rows that are not boxes
    _may_be_keypoints: bool = True
    _rows: int = 0
    _example: str = ""  # position of a row that is not a polygon

    def parse(self, row: str, position: str) -> Annotation:
        """Parse `class cx cy w h`, with keypoints if there are any, or `class x1 y1 x2 y2 x3 y3 ...` of a polygon.

        All coordinates are relative to the image (0..1). A rotated box is a polygon of four points. The box of a
        polygon is its extent. Values may be separated by commas, and a box may be followed by its confidence.
        """
        values = parse_numbers(row)
        if values is None:
            return Annotation(None, fault=f" of {position}: got {row[:60]!r}, expected numbers")
        number, *values = values
        key = int(number) if number % 1 == 0 else None
        count = len(values)
        if count in (4, 5) or (self.keypoint_values and count == 4 + self.keypoint_values):
            x, y, width, height = values[:4]
            self._count(values[:4])
            if count == 5:
                low, high = self.fifth_values or (values[4], values[4])
                self.fifth_values = min(low, values[4]), max(high, values[4])
            return Annotation(key, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        if count > 5 and not self.keypoint_values:
            self._compare(values, position)
            if count % 2 == 0:
                self._count(values)
                self.has_polygons |= count != ROTATED_BOX
                box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
                return Annotation(key, box, shape=values if self.keep_polygons else None)
        expected = (
            f"4 or {4 + self.keypoint_values}" if self.keypoint_values else "4, or 2 for each point of a polygon"
        )
        return Annotation(key, fault=f" of {position}: got {count} values after the class, expected {expected}")

    def find_keypoints(self) -> str:
        """Return the position of a row if all rows that are not boxes look like a box and keypoints, else ""."""
        return self._example if self._may_be_keypoints else ""

    def _count(self, coordinates: Sequence[float]) -> None:
        self.num_objects += 1
        self.num_large += max(map(abs, coordinates)) > LARGE

    def _compare(self, values: Sequence[float], position: str) -> None:
        """Compare a row with the previous ones: the number of points of polygons varies, that of keypoints doesn't."""
        self._length = self._length or len(values)
        self._may_be_keypoints &= len(values) == self._length and _are_box_and_keypoints(values)
        self._rows += 1
        if self._may_be_keypoints and not self._example and self._rows <= MAX_POLYGON_ROWS and not _is_polygon(values):
            self._example = position


def parse_numbers(row: str) -> list[float] | None:
    """Return the class and at least one value, separated by blanks or commas, None if they are not numbers."""
    words = row.split()
    has_decimal_commas = len(words) > 4 and any("," in word.strip(",") for word in words)
    words = (
        [word.replace(",", ".") for word in words]
        if has_decimal_commas
        else re.split(r"[\s,;]+", row.strip("\t\r\n ,;"))
    )
    try:
        return [float(word) for word in words] if len(words) > 1 else None
    except ValueError:
        return None


def _are_box_and_keypoints(values: Sequence[float]) -> bool:
    """Return whether values could be a box with keypoints x, y and perhaps their visibility (0, 1 or 2)."""
    x, y, width, height = values[:4]
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if min(width, height) <= 0 or min(edges) < -0.01 or max(edges) > 1.01:
        return False
    half_width, half_height = width * (0.5 + TOLERANCE), height * (0.5 + TOLERANCE)
    rest = values[4:]
    for size in (3, 2):
        points = [rest[start : start + size] for start in range(0, len(rest), size)]
        if len(rest) % size or any(point[2] not in (0, 1, 2) for point in points if size == 3):
            continue
        visible = [point for point in points if (point[2] if size == 3 else any(point))]
        if visible and all(abs(p[0] - x) <= half_width and abs(p[1] - y) <= half_height for p in visible):
            return True
    return False


def _is_polygon(values: Sequence[float]) -> bool:
    """Return whether values are points of a polygon whose edges don't cross."""
    if len(values) % 2 or max(values) > 1.01:
        return False
    points = list(zip(values[::2], values[1::2], strict=True))
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    for i, (a, b) in enumerate(edges):
        for c, d in edges[i + 2 : len(edges) - (i == 0)]:
            if _side(a, b, c) * _side(a, b, d) < 0 and _side(c, d, a) * _side(c, d, b) < 0:
                return False
    return True


def _side(a: Sequence[float], b: Sequence[float], point: Sequence[float]) -> float:
    """Return a value whose sign tells on which side of the line through two points another one is."""
    return (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0])
