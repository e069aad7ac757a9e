import numpy as np
import pytest
import torch
from drawing_cases import BLACK, GRAY, HOSTILE, WHITE, luminance
from PIL import Image

from mobilevit_hf.visualization import (
    ClassifiedImage,
    ComparedImage,
    LabeledImage,
    Outcome,
    SegmentedPhoto,
    class_colors,
    draw_comparisons,
    draw_image_grid,
    draw_label_maps,
    draw_predictions,
)
from mobilevit_hf.visualization.colors import FALSE_POSITIVE, MISSED, TRUE_POSITIVE
from mobilevit_hf.visualization.grids import CORRECT, TARGET, WRONG

NAMES = ["cat", "dog", "fish"]
BLUE = (0, 0, 255)


def where(pixels, color):
    """Return the columns and rows (x1, y1, x2, y2), all inclusive, that have a color."""
    rows, columns = np.nonzero((pixels == color).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def labeled(size=(200, 100), labels=("dog",), boxes=None, file="a.jpg", color=BLUE):
    return LabeledImage(Image.new("RGB", size, color), file, labels, boxes)


def classified(target="dog", prediction="cat", score=0.93, size=(30, 20), file="a.jpg"):
    return ClassifiedImage(Image.new("RGB", size, BLUE), file, target, prediction, score, 0.05)


def draw(*entries, names=NAMES, **options):
    return np.asarray(draw_predictions(entries, names, **options))


# --- layout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (100, 100)])
def test_tiles_have_the_aspect_ratio_of_the_images(size):
    """No part of a tile is wasted, whatever the size of the images."""
    pixels = np.asarray(draw_image_grid([labeled(size)] * 3, NAMES, width=240))
    x1, y1, x2, y2 = where(pixels, BLUE)
    height = round(240 * size[1] / size[0])
    assert (x2 - x1 + 1, y2 - y1 + 1) == (pixels.shape[1] - 2 * x1, height)
    assert (pixels == BLUE).all(-1).sum() == 3 * 240 * height


def test_one_image_of_another_shape_does_not_change_the_tiles():
    sizes = [(400, 300), (400, 300), (10, 400)]
    pixels = np.asarray(draw_image_grid([labeled(size) for size in sizes], NAMES, width=240))
    assert (pixels == BLUE).all(-1).sum() == 2 * 240 * 180 + 180 * round(180 * 10 / 400)


def test_columns_line_up_in_order():
    shades = range(0, 250, 50)
    entries = [
        ClassifiedImage(Image.new("RGB", (8, 8), (shade, 0, 255)), "a.jpg", "dog", "cat", 0.5, 0.1) for shade in shades
    ]
    grid = draw(*entries, width=80, columns=3)
    corners = [where(grid, (shade, 0, 255))[:2] for shade in shades]
    assert [corner[0] for corner in corners[:3]] == [corner[0] for corner in corners[3:]] + [corners[2][0]]
    assert len({corner[1] for corner in corners[:3]}) == len({corner[1] for corner in corners[3:]}) == 1
    assert np.diff([corner[0] for corner in corners[:3]]).tolist() == [84, 84]


def test_title_is_above_the_images():
    plain, titled = (draw(classified(), title=title) for title in ("", "validation, 12 images"))
    top = where(titled, BLUE)[1]
    assert top > where(plain, BLUE)[1]
    assert (titled[:top] == BLACK).all(-1).any()


def test_file_name_is_on_every_tile():
    """The start and the end of a long name are kept: they differ between files."""
    name = f"validation/shirt/{'x' * 100}1.jpg"
    for draw_grid, entry in [
        (draw_predictions, lambda file: classified(file=file)),
        (draw_image_grid, lambda file: labeled(file=file)),
        (draw_comparisons, lambda file: ComparedImage(Image.new("RGB", (30, 20)), file, [])),
    ]:
        grids = [
            np.asarray(draw_grid([entry("b.jpg"), entry(file)], NAMES))
            for file in (name, name.replace("1.jpg", "2.jpg"), name.replace("xx", "yx", 1))
        ]
        assert (grids[0] != grids[1]).any()
        assert (grids[0] != grids[2]).any()


def test_grid_without_images_is_rejected():
    with pytest.raises(ValueError, match="images: got none"):
        draw_image_grid([], NAMES)


# --- labeled images --------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_at_their_position():
    boxes = torch.tensor([[20.0, 10.0, 100.0, 90.0]])
    grid = np.asarray(draw_image_grid([labeled(boxes=boxes)], ["cat", "dog"], width=400))
    left, top, _, bottom = where(grid, BLUE)
    inside = grid[: bottom + 1]  # above the class name, which has the same color
    assert (
        np.abs(
            np.subtract(where(inside, class_colors(["cat", "dog"])["dog"]), 2 * boxes[0].numpy())
            - (left, top, left, top)
        ).max()
        <= 2
    )


def test_counts_of_objects_are_in_the_caption():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2)
    grids = [
        np.asarray(draw_image_grid([labeled(labels=labels, boxes=boxes)], NAMES))
        for labels in (["dog", "dog"], ["dog", "cat"])
    ]
    caption = where(grids[0], BLUE)[3] + 1
    assert (grids[0][caption:] != grids[1][caption:]).any()
    assert (grids[1][caption:] == class_colors(NAMES)["cat"]).all(-1).any()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (3, 5)])
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_grids_of_hostile_names_and_sizes(name, size):
    image, box = Image.new("RGB", size, BLUE), torch.tensor([[0.0, 0.0, *size]])
    entries = [LabeledImage(image, name, [name], None), LabeledImage(image, name, [name], box)]
    grid = draw_image_grid(entries, [name], title=name, width=64)
    assert grid.width == 4 + 2 * 68
    outcomes = [Outcome(kind, name, (0, 0, *size), 0.5) for kind in ("true positive", "false positive", "missed")]
    assert draw_comparisons([ComparedImage(image, name, outcomes)], [name], title=name, width=64).width == 4 + 68
    assert draw(classified(name, name, size=size, file=name), names=[name], width=64).shape[1] == 4 + 68


def test_characters_missing_in_the_default_font():
    first, second = (draw(classified(name), names="ⒶⒷ") for name in "ⒶⒷ")
    assert (first != second).any()


# --- predictions -----------------------------------------------------------------------------------------------------


def test_target_is_below_the_image_and_prediction_below_the_target():
    pixels = draw(classified())
    image, target, wrong = (where(pixels, color) for color in (BLUE, TARGET, WRONG))
    assert image[3] < target[1] < target[3] < wrong[1] < wrong[3] < len(pixels)
    assert abs((target[3] - target[1]) - (wrong[3] - wrong[1])) <= 2


def test_correct_and_wrong_predictions_have_different_colors():
    assert (draw(classified("dog", "dog")) == CORRECT).all(-1).any()
    assert not (draw(classified("dog", "dog")) == WRONG).all(-1).any()
    assert not (draw(classified("dog", "cat")) == CORRECT).all(-1).any()


def test_names_and_probabilities_are_in_their_lines():
    pixels = draw(classified())
    target, wrong = where(pixels, TARGET), where(pixels, WRONG)
    for other, line in [
        (classified(target="fish"), target),
        (classified(prediction="fish"), wrong),
        (classified(score=0.13), wrong),
    ]:
        rows = np.flatnonzero((draw(other) != pixels).any(axis=(1, 2)))
        assert line[1] <= rows.min() <= rows.max() <= line[3]


def test_text_contrast():
    for background in (TARGET, CORRECT, WRONG):
        assert (luminance(WHITE) + 0.05) / (luminance(np.array(background)) + 0.05) >= 4.5


@pytest.mark.parametrize("other_score", [0.1, 0.9])
def test_long_class_name_is_truncated_before_its_probability(other_score):
    drawn = [draw(classified("x" * 300, "x" * 300, score), names=["x" * 300]) for score in (0.5, other_score)]
    columns = np.flatnonzero((drawn[0] != drawn[1]).any(axis=(0, 2)))
    assert 150 < columns.min() <= columns.max() < 256


# --- comparisons -----------------------------------------------------------------------------------------------------


def compared(*kinds, size=(200, 160)):
    outcomes = [Outcome(kind, "dog", (40, 60, 120, 140), None if kind == "missed" else 0.5) for kind in kinds]
    return ComparedImage(Image.new("RGB", size, GRAY), "a.jpg", outcomes)


@pytest.mark.parametrize(
    ("kind", "color"), [("true positive", TRUE_POSITIVE), ("false positive", FALSE_POSITIVE), ("missed", MISSED)]
)
def test_outcome_has_its_color_at_its_position(kind, color):
    grid = np.asarray(draw_comparisons([compared(kind)], NAMES, width=400))
    left, top, right, bottom = where(grid, GRAY)
    assert (right - left + 1, bottom - top + 1) == (400, 320)
    image = grid[top : bottom + 1, left : right + 1]
    np.testing.assert_allclose(where(image[119:], color), (80, 0, 240, 161), atol=2)
    for other in {TRUE_POSITIVE, FALSE_POSITIVE, MISSED} - {color}:
        assert not (image == other).all(-1).any()


def test_outcomes_differ_in_line_style_too():
    """Readers who can't tell the colors apart see solid, dashed and dotted lines."""
    dashes = {}
    for kind, color in (("true positive", TRUE_POSITIVE), ("false positive", FALSE_POSITIVE), ("missed", MISSED)):
        grid = np.asarray(draw_comparisons([compared(kind)], NAMES, width=400))
        left, top, right, bottom = where(grid, GRAY)
        row = (grid[top : bottom + 1, left : right + 1] == color).all(-1)[279, 80:240]
        dashes[kind] = int(row.sum()), int(np.diff(row.astype(int)).clip(0).sum())
    assert dashes["true positive"] == (160, 0)
    assert 80 < dashes["false positive"][0] < 130
    assert dashes["missed"][0] < dashes["false positive"][0]
    assert dashes["missed"][1] > dashes["false positive"][1] > 3


def test_numbers_of_outcomes_are_below_the_image():
    kinds = ["true positive", "false positive", "missed"]
    grids = [np.asarray(draw_comparisons([compared(*kinds[:n])], NAMES)) for n in range(4)]
    bottom = where(grids[0], GRAY)[3] + 20
    for previous, grid, color in zip(grids, grids[1:], (TRUE_POSITIVE, FALSE_POSITIVE, MISSED), strict=False):
        assert (previous[bottom:] != grid[bottom:]).any()
        assert (grid[bottom:] == color).all(-1).any()


def test_legend_is_above_the_images():
    grid = np.asarray(draw_comparisons([compared()], NAMES))
    top = where(grid, GRAY)[1]
    for color in (TRUE_POSITIVE, FALSE_POSITIVE, MISSED):
        assert (grid[:top] == color).all(-1).any()


# --- label maps ------------------------------------------------------------------------------------------------------


def segmented(prediction, color):
    """Return a photo of one color with a mask of a dog at the left, ignored at the bottom, and a label map."""
    target = np.zeros((60, 90), np.uint8)
    target[:, :45] = 1
    target[50:] = 255
    return SegmentedPhoto(Image.new("RGB", (360, 240), color), "a.jpg", target, prediction, 0.5, 0.75)


def test_panels_of_an_image_are_a_row():
    prediction, green = np.ones((60, 90), np.uint8), (20, 120, 30)
    pixels = np.asarray(draw_label_maps([segmented(prediction, green), segmented(prediction, BLUE)], NAMES, width=360))
    colors = class_colors(NAMES)
    left, top, *_ = where(pixels, green)
    assert where(pixels, BLUE)[0] == left
    assert where(pixels, BLUE)[1] >= top + 240
    columns = range(left + 1, left + 4 * 372, 372)  # a padding of 12

    def at(column, x, y):
        return pixels[top + y, columns[column] + x].astype(int)

    def blend(name):
        return 0.45 * np.array(green) + 0.55 * np.array(colors[name])

    assert tuple(at(0, 50, 100)) == green
    assert at(1, 50, 100) == pytest.approx(blend("dog"), abs=1)
    assert at(1, 300, 100) == pytest.approx(blend("cat"), abs=1)
    assert tuple(at(1, 300, 230)) == green
    assert at(2, 300, 100) == pytest.approx(blend("dog"), abs=1)
    assert tuple(at(3, 300, 100)) == FALSE_POSITIVE
    assert (at(3, 50, 100) < 60).all()
    legend = pixels[:top].reshape(-1, 3)
    assert [bool((legend == colors[name]).all(1).any()) for name in NAMES] == [True, True, False]
