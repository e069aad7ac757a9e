"""Rows of YOLO label files."""

import math

import pytest

from mobilevit_hf.data.formats.yolo_rows import RowParser


@pytest.mark.parametrize(
    "row",
    [
        "1 0.5 0.4 0.2 0.6",
        "1\t0.5\t0.4\t0.2\t0.6",
        "1,0.5,0.4,0.2,0.6",
        "1, 0.5, 0.4, 0.2, 0.6,",
        "1;0.5;0.4;0.2;0.6",
        "1 0,5 0,4 0,2 0,6",  # decimal commas
        "1.0 5e-1 .4 0.20 0.600000",
        "1 0.5 0.4 0.2 0.6 0.93",  # with a confidence
        "1 0.4 0.1 0.6 0.1 0.6 0.7 0.4 0.7",  # rotated box
        "1 0.4 0.4 0.5 0.1 0.6 0.4 0.5 0.7 0.45 0.5",  # polygon
        "  1   0.5 0.4 0.2 0.6 \r\n",
    ],
)
def test_box(row):
    annotation = RowParser().parse(row, "a.txt, line 1")
    assert annotation.key == 1
    assert annotation.box == pytest.approx([0.4, 0.1, 0.6, 0.7])


@pytest.mark.parametrize(
    ("row", "keypoint_values", "fault"),
    [
        ("0 0.5 0.5 0.2", 0, "got 3 values after the class, expected 4, or"),
        ("0 0.5 0.5 0.2 0.2 0.5 0.5 0.1", 0, "got 7 values"),
        ("0 0.5 0.5 0.2 0.2 0.5 0.5", 6, "got 6 values after the class, expected 4 or 10"),
        ("0 0.4 0.1 0.6 0.1 0.6 0.7 0.4 0.7", 6, "got 8 values"),
        ("cat 0.5 0.5 0.2 0.2", 0, "got 'cat 0.5 0.5 0.2 0.2', expected numbers"),
        ("0", 0, "expected numbers"),
    ],
)
def test_unexpected_row_names_file_and_line(row, keypoint_values, fault):
    annotation = RowParser(keypoint_values).parse(row, "a.txt, line 3")
    assert all(map(math.isnan, annotation.box))
    assert annotation.fault.startswith(" of a.txt, line 3: ")
    assert fault in annotation.fault


@pytest.mark.parametrize(("rest", "size"), [("0.4 0.3 0.6 0.7", 4), ("0.4 0.3 2 0.6 0.7 1", 6), ("", 6)])
def test_keypoints_are_skipped(rest, size):
    assert RowParser(size).parse(f"0 0.5 0.4 0.2 0.6 {rest}", "").box == pytest.approx([0.4, 0.1, 0.6, 0.7])


@pytest.mark.parametrize("number", ["0.5", "nan", "inf", "1e400"])
def test_class_that_is_no_integer(number):
    assert RowParser().parse(f"{number} 0.5 0.4 0.2 0.6", "").key is None


TWO_KEYPOINTS = ["0 0.7 0.3 0.2 0.2 0.65 0.25 0.75 0.38 0.7 0.3", "0 0.3 0.3 0.2 0.2 0.25 0.25 0.35 0.35 0.32 0.25"]
RECTANGLES = ["0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6", "1 0.3 0.3 0.7 0.4 0.6 0.6 0.2 0.5"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (TWO_KEYPOINTS, True),
        (["0 0.5 0.5 0.4 0.4 0.4 0.4 2 0.6 0.6 1 0 0 0"], True),
        (["0 0.5 0.5 0.4 0.4 0.4 0.4 2 0.6 0.6 1 0.5 0.6 2 0 0 0"], True),  # a visibility of 2 is no coordinate
        ([*TWO_KEYPOINTS, "0 0.5 0.5 0.4 0.4"], True),
        ([*TWO_KEYPOINTS, "0 0.2 0.2 0.6 0.2 0.6 0.6"], False),  # the number of points varies
        ([*TWO_KEYPOINTS, "0 0.1 0.1 0.4 0.1 0.5 0.4 0.3 0.6 0.1 0.4"], False),  # points outside of the box
        ([*TWO_KEYPOINTS, "0 0.5 0.5 0.4 0.4 0.45 0.5 0.55 0.5 0.5 0.6 0.5 0.4"], False),
        (RECTANGLES, False),
        (RECTANGLES[:1], False),  # in the box that the first four values would be, but no edges cross
        (["0 0.5 0.4 0.2 0.6 0.9"] * 3, False),
        ([], False),
    ],
)
def test_keypoints_without_a_shape_are_found(rows, expected):
    parser = RowParser()
    for row in rows:
        parser.parse(row, "a.txt, line 1")
    assert bool(parser.find_keypoints()) == expected
