"""What is drawn: seen in the pixels, whatever the code thinks it did."""

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_hf.visualization import (
    class_colors,
    draw_detection_mistakes,
    draw_detections,
    draw_image_grid,
    draw_mistakes,
    save_image,
)

NAMES = ["cat", "dog", "fish"]
# Undecodable bytes, control characters, a tower of accents, and more text than Pillow takes.
HOSTILE = ["\udc80", "\x00\x07", "\x1b[31m", "\u202eabc", "z" + "\u0301" * 500, "x" * 3_000_000, " " * 3_000_000]
GREY = (128, 128, 128)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def detection(label, *box, score=0.5):
    return {"score": score, "label": label, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}


def draw(size, *detections, names=NAMES):
    return np.asarray(draw_detections(Image.new("RGB", size, GREY), detections, names))


def changed(pixels):
    """Columns and rows (x1, y1, x2, y2), all inclusive, of what isn't background."""
    rows, columns = np.nonzero((pixels != GREY).any(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def luminance(color):
    """As WCAG 2 defines it."""
    c = np.array(color) / 255
    return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


def lab(color):
    """CIE L*a*b*, in which distances are about what an eye makes of them; 2.3 is just noticeable."""
    c = np.array(color) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ c
    x, y, z = np.cbrt(xyz / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_is_where_it_should_be_in_its_class_color():
    pixels = draw((200, 160), detection("dog", 40, 60, 120, 140))
    color = pixels[140, 80]
    assert tuple(color) not in (GREY, BLACK, WHITE)
    for edge in (pixels[60, 40:121], pixels[140, 40:121], pixels[60:141, 40], pixels[60:141, 120]):
        assert (edge == color).all()
    assert (pixels[61:140, 41:120] == GREY).all()
    x1, y1, x2, y2 = changed(pixels)
    assert (x1, x2, y2) == (40, 120, 140)
    assert 60 - 16 <= y1 < 60  # the label


def test_the_image_itself_stays_as_it_is(image):
    before = image.copy()
    copy = draw_detections(image, [detection("cat", 5, 20, 60, 80)], NAMES)
    assert image == before
    assert copy != before
    empty = draw_detections(image, [], NAMES)
    assert empty == before
    assert empty is not image


def test_a_class_has_one_color_on_all_images():
    few = draw((200, 160), detection("fish", 40, 60, 120, 140))
    many = draw((300, 160), *(detection(name, 90 * i, 60, 90 * i + 70, 140) for i, name in enumerate(NAMES)))
    assert (few[140, 80] == many[140, 220]).all()
    assert len({tuple(many[140, 40 + 90 * i]) for i in range(3)}) == 3


def test_eighty_classes_can_mostly_be_told_apart():
    colors = class_colors([f"class {i}" for i in range(80)])
    assert len(set(colors.values())) == 80
    points = np.array([lab(color) for color in colors.values()])
    distances = np.linalg.norm(points[:, None] - points, axis=-1) + 1000 * np.eye(80)
    assert np.median(distances.min(axis=1)) > 10
    assert np.diagonal(distances, offset=1).min() > 10  # classes that follow each other are often relatives


def test_the_best_is_on_top():
    worse, better = detection("cat", 30, 60, 120, 140, score=0.6), detection("dog", 30, 60, 120, 140, score=0.9)
    alone = draw((200, 160), better)
    assert (draw((200, 160), worse, better)[140, 30:121] == alone[140, 30:121]).all()
    assert (draw((200, 160), better, worse) == draw((200, 160), worse, better)).all()


@pytest.mark.parametrize("size", [(1, 1), (200, 3), (3, 200), (64, 48)])
@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 10, 5, 40), (5, 10, 40, 10), (-9, -9, 300, 300), (60, 44, 64, 48)])
def test_boxes_without_area_or_past_the_edge(size, box):
    assert draw(size, detection("dog", *box)).shape == (size[1], size[0], 3)


def test_the_far_edges_of_a_box_as_large_as_the_image_are_seen():
    pixels = draw((200, 160), detection("dog", 0, 0, 200, 160))
    assert (pixels[159] == pixels[159, 0]).all()
    assert (pixels[80:, 199] == pixels[159, 0]).all()
    assert tuple(pixels[159, 0]) != GREY


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [0, 100, 199])
@pytest.mark.parametrize("y", [0, 3, 80, 159])
def test_all_of_a_label_is_inside_the_image(x, y):
    """The letters, and their soft edges on the label's color, are as many as for a box amid the image."""

    def letters(box):
        pixels = draw((200, 160), detection("dog", *box))
        color = class_colors(NAMES)["dog"]
        return ((pixels != GREY).any(-1) & (pixels != color).any(-1)).sum()

    assert letters((x, y, x, y)) == letters((60, 60, 90, 90)) > 50


def test_letters_are_legible_on_every_class_color():
    names = [f"HI {i}" for i in range(80)]
    for name in names:
        pixels = draw((120, 60), detection(name, 5, 30, 100, 50), names=names)
        color = tuple(pixels[50, 50])
        inks = {BLACK, WHITE} & set(map(tuple, pixels.reshape(-1, 3).tolist()))
        assert len(inks) == 1
        light, dark = sorted([luminance(inks.pop()), luminance(color)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_lines_and_letters_grow_with_the_image():
    def measure(scale):
        pixels = draw((400 * scale, 300 * scale), detection("dog", *(n * scale for n in (100, 100, 300, 200))))
        line = (pixels[150 * scale, : 200 * scale] != GREY).any(-1).sum()
        return line, 100 * scale - changed(pixels)[1]

    (line, label), (big_line, big_label) = measure(1), measure(8)
    assert 6 <= big_line / line <= 12
    assert 6 <= big_label / label <= 10


def test_a_name_too_long_for_the_image_is_cut_and_its_score_stays():
    images = [draw((200, 160), detection("x" * 300, 90, 60, 150, 140, score=s), names=["x" * 300]) for s in (0.1, 0.9)]
    x1, _, x2, _ = changed(images[0])
    assert x1 >= 0
    assert x2 >= 190
    rows, columns = np.nonzero((images[0] != images[1]).any(-1))
    assert columns.min() > 160
    assert columns.max() < 199
    assert rows.max() < 60


@pytest.mark.parametrize("name", ["", "two\nlines", "кошка", "قطة", "猫", "😀", "[bold]"])
def test_names_of_all_kinds(name):
    pixels = draw((200, 160), detection(name, 40, 60, 120, 140), names=[name])
    height = 60 - changed(pixels)[1]
    assert 8 < height < 20  # one line


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_that_mean_harm(name):
    pixels = draw((200, 160), detection(name, 40, 60, 120, 140), names=[name])
    assert 8 < 60 - changed(pixels)[1] < 20


def test_a_name_does_not_turn_the_score_around():
    turned, unknown = (
        draw((200, 160), detection(f"dog{c}", 40, 60, 120, 140, score=0.12), names=[f"dog{c}"])
        for c in ("\N{RIGHT-TO-LEFT OVERRIDE}", "\N{REPLACEMENT CHARACTER}")
    )
    assert (turned == unknown).all()


def test_characters_that_the_default_font_lacks():
    """They are in STIX, which comes with matplotlib too. In a font that lacks both they would look the same."""
    first, second = (draw((200, 160), detection(name, 40, 60, 120, 140), names=[name]) for name in "ⒶⒷ")
    assert (first != second).any()


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match="'bird'"):
        draw((200, 160), detection("bird", 40, 60, 120, 140))


# --- mistakes --------------------------------------------------------------------------------------------------------

BLUE = (0, 0, 255)


def rows_where(pixels, is_color):
    """First and last row in which some pixel is of a color."""
    rows = np.flatnonzero(is_color(*np.moveaxis(pixels.astype(int), -1, 0)).any(axis=1))
    return rows.min(), rows.max()


def is_blue(r, g, b):
    return (r == 0) & (g == 0) & (b == 255)


def is_greenish(r, g, b):
    return (g > 1.5 * r) & (g > 1.5 * b)


def is_reddish(r, g, b):
    return (r > 1.5 * g) & (r > 1.5 * b)


def mistake(right="shirt", named="dress", score=0.93, size=(30, 20)):
    return Image.new("RGB", size, BLUE), right, named, score


def mistakes(*entries, names=("shirt", "dress"), **options):
    return np.asarray(draw_mistakes(entries, names, **options))


def test_below_a_mistake_is_what_it_is_and_below_that_what_was_named():
    pixels = mistakes(mistake(), side=240)
    image, right, wrong = (rows_where(pixels, color) for color in (is_blue, is_greenish, is_reddish))
    assert image == (80, 239)  # 3 : 2
    assert 239 < right[0] < right[1] < wrong[0] < wrong[1] < len(pixels)
    assert abs((right[1] - right[0]) - (wrong[1] - wrong[0])) <= 2


def test_names_and_probability_of_a_mistake_are_in_their_lines():
    pixels = mistakes(mistake(), side=240)
    top = rows_where(pixels, is_reddish)[0]
    for other, first, last in [
        (mistake(right="dress"), 240, top),
        (mistake(named="shirt"), top, 300),
        (mistake(score=0.13), top, 300),
    ]:
        rows = np.flatnonzero((mistakes(other, side=240) != pixels).any(axis=(1, 2)))
        assert first <= rows.min() <= rows.max() < last


def test_colors_below_a_mistake_are_legible():
    pixels = mistakes(mistake())
    for color in (is_greenish, is_reddish):
        first, last = rows_where(pixels, color)
        background = pixels[last - 1, 1]
        assert (pixels[first + 2 : last - 2] == WHITE).all(-1).any()  # the letters
        assert (luminance(WHITE) + 0.05) / (luminance(background) + 0.05) >= 4.5


def test_mistakes_are_on_a_sheet_in_their_order():
    shades = range(0, 250, 50)
    entries = [(Image.new("RGB", (8, 8), (shade, 0, 255)), "shirt", "dress", 0.5) for shade in shades]
    sheet = mistakes(*entries, side=80, columns=3)
    padding, row = 4, len(sheet) // 2
    assert sheet.shape[1] == 3 * 80 + 4 * padding
    for place, shade in enumerate(shades):
        x, y = place % 3 * (80 + padding), place // 3 * row
        assert tuple(sheet[y + 40, x + 40]) == (shade, 0, 255)


@pytest.mark.parametrize("draw_again", [0.1, 0.9])
def test_a_long_name_of_a_mistake_is_cut_and_its_probability_stays(draw_again):
    drawn = [mistakes(mistake("x" * 300, "x" * 300, score), names=["x" * 300]) for score in (0.5, draw_again)]
    columns = np.flatnonzero((drawn[0] != drawn[1]).any(axis=(0, 2)))
    assert 150 < columns.min() <= columns.max() < 240


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_sheets_of_hostile_names(name, size):
    plain = mistakes(mistake("a", "b", size=size), names="ab", side=64)
    assert mistakes(mistake(name, name, size=size), names=[name], side=64).shape == plain.shape
    image, box = Image.new("RGB", size, BLUE), torch.tensor([[0.0, 0.0, *size]])
    assert draw_image_grid([(image, [name], box)], [name], side=64).size == (64, 72)
    both = draw_detection_mistakes([(image, box, [name], [detection(name, 0, 0, *size)])], [name], side=64)
    assert both.width == 2 * 64 + 3 * 3


def test_mistakes_in_letters_that_the_default_font_lacks():
    first, second = (mistakes(mistake(name), names="ⒶⒷ") for name in "ⒶⒷ")
    assert (first != second).any()


def edges(pixels, color):
    """Columns and rows (x1, y1, x2, y2), all inclusive, of the longest lines of a color."""
    match = (pixels == color).all(-1)
    columns = np.flatnonzero(match.sum(axis=0) > 0.8 * match.sum(axis=0).max())
    rows = np.flatnonzero(match.sum(axis=1) > 0.8 * match.sum(axis=1).max())
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_what_is_there_is_left_of_what_was_found():
    """On an image of 400 x 200 at half its size, below one that is 100 high there."""
    empty = (Image.new("RGB", (400, 200), BLUE), torch.zeros(0, 4), [], [])
    entry = (
        Image.new("RGB", (400, 200), GREY),
        torch.tensor([[40.0, 60.0, 240.0, 180.0]]),
        ["dog"],
        [detection("fish", 80, 80, 360, 190)],
    )
    sheet = np.asarray(draw_detection_mistakes([empty, entry], NAMES, side=200))
    assert sheet.shape[1] == 2 * 200 + 3 * 10
    rows, columns = np.nonzero((sheet == BLUE).all(-1))
    assert (rows.min(), rows.max()) == (10, 109)
    assert set(columns) == {*range(10, 210), *range(220, 420)}
    top = np.nonzero((sheet == GREY).all(-1))[0].min()
    assert top > 110
    colors = class_colors(NAMES)
    left, right = sheet[top : top + 100, 10:210], sheet[top : top + 100, 220:420]
    np.testing.assert_allclose(edges(left, colors["dog"]), (20, 30, 120, 90), atol=1)
    np.testing.assert_allclose(edges(right, colors["fish"]), (40, 40, 180, 95), atol=1)
    assert not (left == colors["fish"]).all(-1).any()
    assert not (right == colors["dog"]).all(-1).any()


def test_rows_are_as_high_as_their_images():
    heights = {}
    for size in [(100, 100), (100, 50), (50, 100)]:
        entries = [(Image.new("RGB", size, BLUE), torch.zeros(0, 4), [], [])]
        sheet = np.asarray(draw_detection_mistakes(entries, NAMES, side=200))
        heights[size] = len(sheet)
        assert sheet.shape[1] == 430
        assert (sheet == BLUE).all(-1).sum() == 2 * size[0] * size[1] * (200 / max(size)) ** 2
    assert heights[100, 100] == heights[50, 100] == heights[100, 50] + 100


def test_a_score_is_written_on_what_was_found_only():
    def sheet(score):
        entry = (
            Image.new("RGB", (200, 160), GREY),
            torch.tensor([[40.0, 60.0, 120.0, 140.0]]),
            ["dog"],
            [detection("dog", 40, 60, 120, 140, score=score)],
        )
        return np.asarray(draw_detection_mistakes([entry], NAMES, side=200))

    columns = np.flatnonzero((sheet(0.1) != sheet(0.9)).any(axis=(0, 2)))
    assert columns.min() > 220
    left, right = sheet(0.5)[10:170, 10:210], sheet(0.5)[10:170, 220:420]
    assert (left[66:] == right[66:]).all()
    width = [np.ptp(np.nonzero((half[:58] != GREY).any(-1))[1]) for half in (left, right)]
    assert 10 < width[0] < width[1]  # "dog" and "dog 0.50"


@pytest.mark.parametrize(("there", "found"), [(["bird"], []), ([], [detection("bird", 1, 1, 5, 5)])])
def test_a_mistake_with_a_label_that_is_no_class_is_refused(there, found):
    boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0]])[: len(there)]
    with pytest.raises(ValueError, match="'bird'"):
        draw_detection_mistakes([(Image.new("RGB", (9, 9)), boxes, there, found)], NAMES)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [
        ("a.jpg", "a.jpg", "JPEG"),
        ("a.JPEG", "a.JPEG", "JPEG"),
        ("a.png", "a.png", "PNG"),
        ("a.b.webp", "a.b.png", "PNG"),
        ("a", "a.png", "PNG"),
        ("", "image.png", "PNG"),
    ],
)
def test_a_saved_image_keeps_its_name(image, tmp_path, name, file, kind):
    path = save_image(image, tmp_path, name)
    assert path == tmp_path / file
    with Image.open(path) as saved:
        assert saved.format == kind
        assert saved.size == image.size
        difference = np.abs(np.asarray(saved).astype(int) - np.asarray(image))
    assert difference.max() == 0 if kind == "PNG" else difference.mean() < 2
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_never_written_over(image, tmp_path):
    (tmp_path / "a.jpg").write_text("precious")
    paths = [save_image(image, tmp_path, "a.jpg") for _ in range(2)]
    assert [path.name for path in paths] == ["a-2.jpg", "a-3.jpg"]
    assert (tmp_path / "a.jpg").read_text() == "precious"


def test_a_image_is_written_whole_or_not_at_all(image, tmp_path, monkeypatch):
    def break_off(self, file, *args, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(OSError, match="disk full"):
        save_image(image, tmp_path, "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_is_cut_between_characters(image, tmp_path):
    path = save_image(image, tmp_path, "猫" * 80 + ".png")
    assert path.name == "猫" * 66 + ".png"  # three bytes each, of 200
