import colorsys

import numpy as np
import pytest

from mobilevit_hf.visualization import class_colors
from mobilevit_hf.visualization.colors import FALSE_POSITIVE, MISSED, TRUE_POSITIVE

# Machado et al. 2009, severity 1, on linear RGB.
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]


def to_lab(colors, matrix=None):
    c = np.array(list(colors)) / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    if matrix:
        c = (c @ np.array(matrix).T).clip(0, 1)
    xyz = c @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    x, y, z = np.cbrt(xyz / (0.9505, 1, 1.089)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def nearest(points):
    distances = np.linalg.norm(points[:, None] - points, axis=-1) + 1000 * np.eye(len(points))
    return distances.min()


@pytest.mark.parametrize("count", [1, 2, 8, 20, 80, 300])
def test_no_class_is_red(count):
    """Red stands for errors."""
    for color in class_colors([f"class {i}" for i in range(count)]).values():
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
        is_red = hue < 12 / 360 or hue > 340 / 360
        assert not (is_red and saturation > 0.6 and value > 0.5), color


@pytest.mark.parametrize("matrix", [None, DEUTERANOPIA, PROTANOPIA], ids=["normal", "deuteranopia", "protanopia"])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_classes_stay_apart_for_color_blind_readers(count, matrix):
    colors = class_colors([f"class {i}" for i in range(count)]).values()
    assert nearest(to_lab(colors, matrix)) > 14


@pytest.mark.parametrize("matrix", [None, DEUTERANOPIA, PROTANOPIA], ids=["normal", "deuteranopia", "protanopia"])
def test_outcomes_stay_apart_for_color_blind_readers(matrix):
    assert nearest(to_lab([TRUE_POSITIVE, FALSE_POSITIVE, MISSED], matrix)) > 25


def test_more_classes_keep_the_colors_of_fewer():
    many = list(class_colors([f"class {i}" for i in range(50)]).values())
    for count in (3, 7, 20):
        assert list(class_colors([f"other {i}" for i in range(count)]).values()) == many[:count]
