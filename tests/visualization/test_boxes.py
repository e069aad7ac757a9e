import numpy as np
import pytest
from drawing_cases import BLACK, GRAY, HOSTILE, WHITE, detection, luminance
from PIL import Image

from mobilevit_hf.visualization import class_colors, draw_detections

NAMES = ["cat", "dog", "fish"]


def draw(size, *detections, names=NAMES):
    return np.asarray(draw_detections(Image.new("RGB", size, GRAY), detections, names))


def changed(pixels):
    """Return the columns and rows (x1, y1, x2, y2), all inclusive, that differ from the background."""
    rows, columns = np.nonzero((pixels != GRAY).any(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def lab(color):
    """Return CIE L*a*b*, in which distances are perceptual; 2.3 is just noticeable."""
    c = np.array(color) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ c
    x, y, z = np.cbrt(xyz / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_box_has_its_position_and_class_color():
    pixels = draw((200, 160), detection("dog", 40, 60, 120, 140))
    color = pixels[140, 80]
    assert tuple(color) not in (GRAY, BLACK, WHITE)
    for edge in (pixels[60, 40:121], pixels[140, 40:121], pixels[60:141, 40], pixels[60:141, 120]):
        assert (edge == color).all()
    assert (pixels[61:140, 41:120] == GRAY).all()
    x1, y1, x2, y2 = changed(pixels)
    assert (x1, x2, y2) == (40, 120, 140)
    assert 60 - 16 <= y1 < 60  # the label


def test_image_is_copied(image):
    before = image.copy()
    copy = draw_detections(image, [detection("cat", 5, 20, 60, 80)], NAMES)
    assert image == before
    assert copy != before
    empty = draw_detections(image, [], NAMES)
    assert empty == before
    assert empty is not image


def test_class_has_the_same_color_on_all_images():
    one = draw((200, 160), detection("fish", 40, 60, 120, 140))
    all_classes = draw((300, 160), *(detection(name, 90 * i, 60, 90 * i + 70, 140) for i, name in enumerate(NAMES)))
    assert (one[140, 80] == all_classes[140, 220]).all()
    assert len({tuple(all_classes[140, 40 + 90 * i]) for i in range(3)}) == 3


def test_colors_of_eighty_classes_are_distinguishable():
    colors = class_colors([f"class {i}" for i in range(80)])
    assert len(set(colors.values())) == 80
    points = np.array([lab(color) for color in colors.values()])
    distances = np.linalg.norm(points[:, None] - points, axis=-1) + 1000 * np.eye(80)
    assert np.median(distances.min(axis=1)) > 10
    assert np.diagonal(distances, offset=1).min() > 10  # consecutive classes are often similar


def test_highest_score_is_on_top():
    worse, better = detection("cat", 30, 60, 120, 140, score=0.6), detection("dog", 30, 60, 120, 140, score=0.9)
    alone = draw((200, 160), better)
    assert (draw((200, 160), worse, better)[140, 30:121] == alone[140, 30:121]).all()
    assert (draw((200, 160), better, worse) == draw((200, 160), worse, better)).all()


@pytest.mark.parametrize("size", [(1, 1), (200, 3), (3, 200), (64, 48)])
@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 10, 5, 40), (5, 10, 40, 10), (-9, -9, 300, 300), (60, 44, 64, 48)])
def test_boxes_without_area_or_outside_the_image(size, box):
    assert draw(size, detection("dog", *box)).shape == (size[1], size[0], 3)


def test_all_edges_of_a_box_as_large_as_the_image_are_visible():
    pixels = draw((200, 160), detection("dog", 0, 0, 200, 160))
    assert (pixels[159] == pixels[159, 0]).all()
    assert (pixels[80:, 199] == pixels[159, 0]).all()
    assert tuple(pixels[159, 0]) != GRAY


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [0, 100, 199])
@pytest.mark.parametrize("y", [0, 3, 80, 159])
def test_label_is_inside_the_image(x, y):
    """The text has as many pixels, with antialiased edges, as for a box in the middle of the image."""

    def num_text_pixels(box):
        pixels = draw((200, 160), detection("dog", *box))
        color = class_colors(NAMES)["dog"]
        return ((pixels != GRAY).any(-1) & (pixels != color).any(-1)).sum()

    assert num_text_pixels((x, y, x, y)) == num_text_pixels((60, 60, 90, 90)) > 50


def test_text_contrast_on_every_class_color():
    names = [f"HI {i}" for i in range(80)]
    for name in names:
        pixels = draw((120, 60), detection(name, 5, 30, 100, 50), names=names)
        color = tuple(pixels[50, 50])
        text_colors = {BLACK, WHITE} & set(map(tuple, pixels.reshape(-1, 3).tolist()))
        assert len(text_colors) == 1
        light, dark = sorted([luminance(text_colors.pop()), luminance(color)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_lines_and_text_scale_with_the_image():
    def measure(scale):
        pixels = draw((400 * scale, 300 * scale), detection("dog", *(n * scale for n in (100, 100, 300, 200))))
        line = (pixels[150 * scale, : 200 * scale] != GRAY).any(-1).sum()
        return line, 100 * scale - changed(pixels)[1]

    (line, label), (big_line, big_label) = measure(1), measure(8)
    assert 6 <= big_line / line <= 12
    assert 6 <= big_label / label <= 10


def test_long_name_is_truncated_before_its_score():
    images = [draw((200, 160), detection("x" * 300, 90, 60, 150, 140, score=s), names=["x" * 300]) for s in (0.1, 0.9)]
    x1, _, x2, _ = changed(images[0])
    assert x1 >= 0
    assert x2 >= 190
    rows, columns = np.nonzero((images[0] != images[1]).any(-1))
    assert columns.min() > 160
    assert columns.max() < 199
    assert rows.max() < 60


@pytest.mark.parametrize("name", ["", "two\nlines", "кошка", "قطة", "猫", "😀", "[bold]"])
def test_label_of_any_name_is_one_line(name):
    pixels = draw((200, 160), detection(name, 40, 60, 120, 140), names=[name])
    height = 60 - changed(pixels)[1]
    assert 8 < height < 20  # one line


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_label_of_a_hostile_name_is_one_line(name):
    pixels = draw((200, 160), detection(name, 40, 60, 120, 140), names=[name])
    assert 8 < 60 - changed(pixels)[1] < 20


def test_directional_override_does_not_reverse_the_score():
    overridden, replaced = (
        draw((200, 160), detection(f"dog{c}", 40, 60, 120, 140, score=0.12), names=[f"dog{c}"])
        for c in ("\N{RIGHT-TO-LEFT OVERRIDE}", "\N{WHITE SQUARE}")
    )
    assert (overridden == replaced).all()


def test_characters_missing_in_the_default_font_are_drawn():
    """STIX of matplotlib has them. In a font that lacks both, they would look the same."""
    first, second = (draw((200, 160), detection(name, 40, 60, 120, 140), names=[name]) for name in "ⒶⒷ")
    assert (first != second).any()


def test_unknown_label_is_rejected():
    with pytest.raises(ValueError, match="'bird'"):
        draw((200, 160), detection("bird", 40, 60, 120, 140))
