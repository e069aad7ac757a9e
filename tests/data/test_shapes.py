"""Polygons and RLE are painted with the pixels of pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from mobilevit_hf.data.shapes import decode_rle, fill_polygon, fill_shape


def random_shapes(count):
    """Yield sizes (height, width) and polygons, some of which exceed the image, have edges that cross, or no area."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        height, width = rng.integers(1, 60, 2).tolist()
        polygon = rng.uniform(-10, 70, 2 * rng.integers(3, 9)).round(rng.integers(0, 3)).tolist()
        yield height, width, polygon


def test_polygons_match_pycocotools():
    for height, width, polygon in random_shapes(300):
        expected = mask_api.decode(mask_api.frPyObjects([polygon], height, width))[..., 0]
        np.testing.assert_array_equal(fill_polygon(polygon, height, width), expected.astype(bool))


def test_rle_matches_pycocotools():
    rng = np.random.default_rng(1)
    for height, width, _ in random_shapes(100):
        mask = rng.random((height, width)) < rng.random()
        encoded = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (encoded["counts"], encoded["counts"].decode()):
            shape = {"size": [height, width], "counts": counts}
            np.testing.assert_array_equal(decode_rle(shape, (height, width)), mask)


def test_later_shapes_cover_earlier_ones():
    canvas = np.zeros((8, 8), np.uint8)
    fill_shape(canvas, [[0, 0, 8, 0, 8, 8, 0, 8]], 1)
    fill_shape(canvas, {"size": [8, 8], "counts": [0, 16, 48]}, 2)
    assert (canvas[:, :2] == 2).all()
    assert (canvas[:, 2:] == 1).all()


@pytest.mark.parametrize("shape", [{"size": [4, 4], "counts": [16]}, {"size": [8, 8], "counts": [1, 2]}, {}])
def test_rle_of_another_size_raises(shape):
    with pytest.raises(ValueError, match=r"expected that of the image, \[8, 8\]"):
        fill_shape(np.zeros((8, 8), np.uint8), shape, 1)
