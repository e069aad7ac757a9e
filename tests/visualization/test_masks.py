import numpy as np
import pytest
from drawing_cases import HOSTILE
from PIL import Image

from mobilevit_hf.visualization import class_colors, draw_overlay, save_palette_png
from mobilevit_hf.visualization.masks import ERROR, IGNORED, draw_errors, draw_legend

NAMES = {0: "background", 1: "cat", 2: "dog"}
COLORS = class_colors(list(NAMES.values()))
GRAY = (90, 90, 90)


@pytest.fixture
def photo():
    return Image.new("RGB", (400, 300), GRAY)


@pytest.fixture
def label_map():
    """Background, a cat at the left, a dog at the right, and pixels to ignore at the bottom."""
    labels = np.zeros((300, 400), np.uint8)
    labels[50:250, 20:180] = 1
    labels[50:250, 220:380] = 2
    labels[280:] = 255
    return labels


def test_overlay_blends_classes_and_keeps_background(photo, label_map):
    drawn = np.asarray(draw_overlay(photo, label_map, NAMES, 0.25, legend=False))
    assert drawn.shape == (300, 400, 3)
    assert drawn[150, 100] == pytest.approx(0.75 * np.array(GRAY) + 0.25 * np.array(COLORS["cat"]), abs=1)
    assert drawn[150, 300] == pytest.approx(0.75 * np.array(GRAY) + 0.25 * np.array(COLORS["dog"]), abs=1)
    for untouched in (drawn[20, 20], drawn[290, 100], drawn[150, 200]):
        assert tuple(untouched) == GRAY
    assert tuple(drawn[150, 20]) == COLORS["cat"]  # line around the region
    assert photo.getcolors() == [(400 * 300, GRAY)]


def test_legend_is_below_and_has_the_classes_of_the_image(photo, label_map):
    label_map[label_map == 2] = 0
    drawn = np.asarray(draw_overlay(photo, label_map, NAMES))
    assert drawn.shape[0] > 300
    assert drawn.shape[1] == 400
    legend = drawn[300:].reshape(-1, 3)
    assert (legend == COLORS["cat"]).all(1).any()
    assert not (legend == COLORS["dog"]).all(1).any()


def test_label_map_of_another_size_is_resized_and_small_images_have_a_legible_legend(label_map):
    small = label_map[::10, ::10]
    drawn = np.asarray(draw_overlay(Image.new("RGB", (80, 60), GRAY), small, NAMES, 1.0))
    assert drawn.shape[1] == 300
    assert tuple(drawn[30, 20]) == COLORS["cat"]
    assert tuple(drawn[30, 60]) == COLORS["dog"]


def test_legend_wraps_and_truncates_names():
    entries = [(name, " 5%") for name in ("wall", *HOSTILE)]
    names = [name for name, _ in entries]
    narrow, wide = (draw_legend(entries, names, width, 14) for width in (200, 1500))
    assert (narrow.width, wide.width) == (200, 1500)
    assert narrow.height > wide.height
    last = np.asarray(narrow)[:, -3:]
    assert (last == 255).all()


def test_errors_are_vermillion_and_ignored_pixels_light(photo, label_map):
    prediction = label_map.copy()
    prediction[100:120, 100:120] = 2
    prediction[290:] = 1
    drawn = np.asarray(draw_errors(photo, label_map, prediction, 3))
    is_error = (drawn == ERROR).all(-1)
    assert is_error.sum() == 400
    assert is_error[100:120, 100:120].all()
    assert ((drawn == IGNORED).all(-1) == (label_map == 255)).all()
    assert drawn[10, 10].max() < GRAY[0]


def test_palette_png_has_class_indices_and_colors(tmp_path, label_map):
    path = tmp_path / "mask.png"
    save_palette_png(path, label_map, NAMES)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), label_map)
        colors = np.asarray(image.convert("RGB"))
    assert tuple(colors[150, 300]) == COLORS["dog"]
    assert tuple(colors[290, 0]) == IGNORED


def test_palette_png_of_too_many_classes_raises(tmp_path):
    with pytest.raises(ValueError, match=r"got labels 0\.\.300, expected 0\.\.255"):
        save_palette_png(tmp_path / "mask.png", np.array([[0, 300]]), {})
    assert not list(tmp_path.iterdir())
