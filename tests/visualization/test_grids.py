import numpy as np
import pytest
import torch
from drawing_cases import GRAY, HOSTILE, WHITE, detection, luminance
from PIL import Image

from mobilevit_hf.visualization import class_colors, draw_detection_mistakes, draw_image_grid, draw_mistakes

NAMES = ["cat", "dog", "fish"]

# --- image grid ------------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_at_their_position():
    image = Image.new("RGB", (200, 100), "white")
    boxes = torch.tensor([[20.0, 10.0, 100.0, 90.0]])
    images = [(image, ["dog"], boxes), (image, [], boxes[:0])]
    grid = np.asarray(draw_image_grid(images, ["cat", "dog"], side=400, columns=1))
    rows, columns = np.nonzero((grid == class_colors(["cat", "dog"])["dog"]).all(-1))
    top = 20 + 200  # the padding, and the empty half of the tile
    inside = rows < top + 200  # above the name
    assert abs(rows[inside].min() - (top + 20)) <= 2
    assert abs(rows[inside].max() - (top + 180)) <= 2
    assert abs(columns[inside].min() - (20 + 40)) <= 2
    assert abs(columns[inside].max() - (20 + 200)) <= 2


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (3, 5)])
@pytest.mark.parametrize("name", ["", "two\nlines", "猫", "x" * 300, "\x1b[31m"])
def test_images_of_any_size_and_name(size, name):
    image = Image.new("RGB", size, "red")
    boxes = torch.tensor([[0.0, 0.0, *size], [0.0, 0.0, 0.4, 0.4]])
    images = [(image, [name], None), (image, [name, name], boxes), (image, [], boxes[:0])]
    grid = draw_image_grid(images, [name], side=64, columns=2)
    assert grid.width == 3 * 3 + 2 * 64
    assert (np.asarray(grid)[:70] == (255, 0, 0)).all(-1).any()


# --- mistakes --------------------------------------------------------------------------------------------------------

BLUE = (0, 0, 255)


def rows_where(pixels, is_color):
    """Return the first and last row with a pixel of a color."""
    rows = np.flatnonzero(is_color(*np.moveaxis(pixels.astype(int), -1, 0)).any(axis=1))
    return rows.min(), rows.max()


def is_blue(r, g, b):
    return (r == 0) & (g == 0) & (b == 255)


def is_greenish(r, g, b):
    return (g > 1.5 * r) & (g > 1.5 * b)


def is_reddish(r, g, b):
    return (r > 1.5 * g) & (r > 1.5 * b)


def mistake(target="shirt", prediction="dress", score=0.93, size=(30, 20)):
    return Image.new("RGB", size, BLUE), target, prediction, score


def draw(*entries, names=("shirt", "dress"), **options):
    return np.asarray(draw_mistakes(entries, names, **options))


def test_target_is_below_the_image_and_prediction_below_the_target():
    pixels = draw(mistake(), side=240)
    image, target, wrong = (rows_where(pixels, color) for color in (is_blue, is_greenish, is_reddish))
    assert image == (80, 239)  # 3 : 2
    assert 239 < target[0] < target[1] < wrong[0] < wrong[1] < len(pixels)
    assert abs((target[1] - target[0]) - (wrong[1] - wrong[0])) <= 2


def test_names_and_probability_of_a_mistake_are_in_their_lines():
    pixels = draw(mistake(), side=240)
    top = rows_where(pixels, is_reddish)[0]
    for other, first, last in [
        (mistake(target="dress"), 240, top),
        (mistake(prediction="shirt"), top, 300),
        (mistake(score=0.13), top, 300),
    ]:
        rows = np.flatnonzero((draw(other, side=240) != pixels).any(axis=(1, 2)))
        assert first <= rows.min() <= rows.max() < last


def test_text_contrast_of_mistakes():
    pixels = draw(mistake())
    for color in (is_greenish, is_reddish):
        first, last = rows_where(pixels, color)
        background = pixels[last - 1, 1]
        assert (pixels[first + 2 : last - 2] == WHITE).all(-1).any()  # the text
        assert (luminance(WHITE) + 0.05) / (luminance(background) + 0.05) >= 4.5


def test_mistakes_are_in_order():
    shades = range(0, 250, 50)
    entries = [(Image.new("RGB", (8, 8), (shade, 0, 255)), "shirt", "dress", 0.5) for shade in shades]
    grid = draw(*entries, side=80, columns=3)
    padding, row = 4, len(grid) // 2
    assert grid.shape[1] == 3 * 80 + 4 * padding
    for index, shade in enumerate(shades):
        x, y = index % 3 * (80 + padding), index // 3 * row
        assert tuple(grid[y + 40, x + 40]) == (shade, 0, 255)


@pytest.mark.parametrize("other_score", [0.1, 0.9])
def test_long_name_of_a_mistake_is_truncated_before_its_probability(other_score):
    drawn = [draw(mistake("x" * 300, "x" * 300, score), names=["x" * 300]) for score in (0.5, other_score)]
    columns = np.flatnonzero((drawn[0] != drawn[1]).any(axis=(0, 2)))
    assert 150 < columns.min() <= columns.max() < 240


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_grids_of_hostile_names_and_sizes(name, size):
    plain = draw(mistake("a", "b", size=size), names="ab", side=64)
    assert draw(mistake(name, name, size=size), names=[name], side=64).shape == plain.shape
    image, box = Image.new("RGB", size, BLUE), torch.tensor([[0.0, 0.0, *size]])
    assert draw_image_grid([(image, [name], box)], [name], side=64).size == (64, 72)
    comparison = draw_detection_mistakes([(image, box, [name], [detection(name, 0, 0, *size)])], [name], side=64)
    assert comparison.width == 2 * 64 + 3 * 3


def test_mistakes_with_characters_missing_in_the_default_font():
    first, second = (draw(mistake(name), names="ⒶⒷ") for name in "ⒶⒷ")
    assert (first != second).any()


# --- detection mistakes ----------------------------------------------------------------------------------------------


def edges(pixels, color):
    """Return the columns and rows (x1, y1, x2, y2), all inclusive, of the longest lines of a color."""
    match = (pixels == color).all(-1)
    columns = np.flatnonzero(match.sum(axis=0) > 0.8 * match.sum(axis=0).max())
    rows = np.flatnonzero(match.sum(axis=1) > 0.8 * match.sum(axis=1).max())
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_ground_truth_is_left_of_the_detections():
    """The image of 400 x 200 pixels is drawn at half its size, below one that is then 100 pixels high."""
    empty = (Image.new("RGB", (400, 200), BLUE), torch.zeros(0, 4), [], [])
    entry = (
        Image.new("RGB", (400, 200), GRAY),
        torch.tensor([[40.0, 60.0, 240.0, 180.0]]),
        ["dog"],
        [detection("fish", 80, 80, 360, 190)],
    )
    grid = np.asarray(draw_detection_mistakes([empty, entry], NAMES, side=200))
    assert grid.shape[1] == 2 * 200 + 3 * 10
    rows, columns = np.nonzero((grid == BLUE).all(-1))
    assert (rows.min(), rows.max()) == (10, 109)
    assert set(columns) == {*range(10, 210), *range(220, 420)}
    top = np.nonzero((grid == GRAY).all(-1))[0].min()
    assert top > 110
    colors = class_colors(NAMES)
    left, right = grid[top : top + 100, 10:210], grid[top : top + 100, 220:420]
    np.testing.assert_allclose(edges(left, colors["dog"]), (20, 30, 120, 90), atol=1)
    np.testing.assert_allclose(edges(right, colors["fish"]), (40, 40, 180, 95), atol=1)
    assert not (left == colors["fish"]).all(-1).any()
    assert not (right == colors["dog"]).all(-1).any()


def test_rows_are_as_high_as_their_images():
    heights = {}
    for size in [(100, 100), (100, 50), (50, 100)]:
        entries = [(Image.new("RGB", size, BLUE), torch.zeros(0, 4), [], [])]
        grid = np.asarray(draw_detection_mistakes(entries, NAMES, side=200))
        heights[size] = len(grid)
        assert grid.shape[1] == 430
        assert (grid == BLUE).all(-1).sum() == 2 * size[0] * size[1] * (200 / max(size)) ** 2
    assert heights[100, 100] == heights[50, 100] == heights[100, 50] + 100


def test_only_detections_have_scores():
    def grid(score):
        entry = (
            Image.new("RGB", (200, 160), GRAY),
            torch.tensor([[40.0, 60.0, 120.0, 140.0]]),
            ["dog"],
            [detection("dog", 40, 60, 120, 140, score=score)],
        )
        return np.asarray(draw_detection_mistakes([entry], NAMES, side=200))

    columns = np.flatnonzero((grid(0.1) != grid(0.9)).any(axis=(0, 2)))
    assert columns.min() > 220
    left, right = grid(0.5)[10:170, 10:210], grid(0.5)[10:170, 220:420]
    assert (left[66:] == right[66:]).all()
    width = [np.ptp(np.nonzero((half[:58] != GRAY).any(-1))[1]) for half in (left, right)]
    assert 10 < width[0] < width[1]  # "dog" and "dog 0.50"


@pytest.mark.parametrize(("labels", "detections"), [(["bird"], []), ([], [detection("bird", 1, 1, 5, 5)])])
def test_unknown_label_of_a_mistake_is_rejected(labels, detections):
    boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0]])[: len(labels)]
    with pytest.raises(ValueError, match="'bird'"):
        draw_detection_mistakes([(Image.new("RGB", (9, 9)), boxes, labels, detections)], NAMES)
