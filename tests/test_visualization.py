"""What is drawn: seen in the pixels, whatever the code thinks it did."""

import numpy as np
import pytest
from PIL import Image

from mobilevit_hf.visualization import class_colors, draw_detections, save_picture

NAMES = ["cat", "dog", "fish"]
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


def test_a_box_is_where_it_should_be_in_its_class_colour():
    pixels = draw((200, 160), detection("dog", 40, 60, 120, 140))
    color = pixels[140, 80]
    assert tuple(color) not in (GREY, BLACK, WHITE)
    for edge in (pixels[60, 40:121], pixels[140, 40:121], pixels[60:141, 40], pixels[60:141, 120]):
        assert (edge == color).all()
    assert (pixels[61:140, 41:120] == GREY).all()
    x1, y1, x2, y2 = changed(pixels)
    assert (x1, x2, y2) == (40, 120, 140)
    assert 60 - 16 <= y1 < 60  # the label


def test_the_picture_itself_stays_as_it_is(picture):
    before = picture.copy()
    copy = draw_detections(picture, [detection("cat", 5, 20, 60, 80)], NAMES)
    assert picture == before
    assert copy != before
    empty = draw_detections(picture, [], NAMES)
    assert empty == before
    assert empty is not picture


def test_a_class_has_one_colour_on_all_pictures():
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


def test_the_far_edges_of_a_box_as_large_as_the_picture_are_seen():
    pixels = draw((200, 160), detection("dog", 0, 0, 200, 160))
    assert (pixels[159] == pixels[159, 0]).all()
    assert (pixels[80:, 199] == pixels[159, 0]).all()
    assert tuple(pixels[159, 0]) != GREY


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [0, 100, 199])
@pytest.mark.parametrize("y", [0, 3, 80, 159])
def test_all_of_a_label_is_inside_the_picture(x, y):
    """The letters, and their soft edges on the label's colour, are as many as for a box amid the picture."""

    def letters(box):
        pixels = draw((200, 160), detection("dog", *box))
        color = class_colors(NAMES)["dog"]
        return ((pixels != GREY).any(-1) & (pixels != color).any(-1)).sum()

    assert letters((x, y, x, y)) == letters((60, 60, 90, 90)) > 50


def test_letters_are_legible_on_every_class_colour():
    names = [f"HI {i}" for i in range(80)]
    for name in names:
        pixels = draw((120, 60), detection(name, 5, 30, 100, 50), names=names)
        color = tuple(pixels[50, 50])
        inks = {BLACK, WHITE} & set(map(tuple, pixels.reshape(-1, 3).tolist()))
        assert len(inks) == 1
        light, dark = sorted([luminance(inks.pop()), luminance(color)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_lines_and_letters_grow_with_the_picture():
    def measure(scale):
        pixels = draw((400 * scale, 300 * scale), detection("dog", *(n * scale for n in (100, 100, 300, 200))))
        line = (pixels[150 * scale, : 200 * scale] != GREY).any(-1).sum()
        return line, 100 * scale - changed(pixels)[1]

    (line, label), (big_line, big_label) = measure(1), measure(8)
    assert 6 <= big_line / line <= 12
    assert 6 <= big_label / label <= 10


def test_a_name_too_long_for_the_picture_is_cut_and_its_score_stays():
    pictures = [
        draw((200, 160), detection("x" * 300, 90, 60, 150, 140, score=s), names=["x" * 300]) for s in (0.1, 0.9)
    ]
    x1, _, x2, _ = changed(pictures[0])
    assert x1 >= 0
    assert x2 >= 190
    rows, columns = np.nonzero((pictures[0] != pictures[1]).any(-1))
    assert columns.min() > 160
    assert columns.max() < 199
    assert rows.max() < 60


@pytest.mark.parametrize("name", ["", "two\nlines", "кошка", "قطة", "猫", "😀", "[bold]"])
def test_names_of_all_kinds(name):
    pixels = draw((200, 160), detection(name, 40, 60, 120, 140), names=[name])
    height = 60 - changed(pixels)[1]
    assert 8 < height < 20  # one line


def test_characters_that_the_default_font_lacks():
    """They are in STIX, which comes with matplotlib too. In a font that lacks both they would look the same."""
    first, second = (draw((200, 160), detection(name, 40, 60, 120, 140), names=[name]) for name in "ⒶⒷ")
    assert (first != second).any()


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match="'bird'"):
        draw((200, 160), detection("bird", 40, 60, 120, 140))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [
        ("a.jpg", "a.jpg", "JPEG"),
        ("a.JPEG", "a.JPEG", "JPEG"),
        ("a.png", "a.png", "PNG"),
        ("a.b.webp", "a.b.png", "PNG"),
        ("a", "a.png", "PNG"),
        ("", "picture.png", "PNG"),
    ],
)
def test_a_saved_picture_keeps_its_name(picture, tmp_path, name, file, kind):
    path = save_picture(picture, tmp_path, name)
    assert path == tmp_path / file
    with Image.open(path) as saved:
        assert saved.format == kind
        assert saved.size == picture.size
        difference = np.abs(np.asarray(saved).astype(int) - np.asarray(picture))
    assert difference.max() == 0 if kind == "PNG" else difference.mean() < 2
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_never_written_over(picture, tmp_path):
    (tmp_path / "a.jpg").write_text("precious")
    paths = [save_picture(picture, tmp_path, "a.jpg") for _ in range(2)]
    assert [path.name for path in paths] == ["a-2.jpg", "a-3.jpg"]
    assert (tmp_path / "a.jpg").read_text() == "precious"


def test_a_picture_is_written_whole_or_not_at_all(picture, tmp_path, monkeypatch):
    def break_off(self, file, *args, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(OSError, match="disk full"):
        save_picture(picture, tmp_path, "a.jpg")
    assert list(tmp_path.iterdir()) == []
