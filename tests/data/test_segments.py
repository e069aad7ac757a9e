import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api
from scipy.ndimage import gaussian_filter

from mobilevit_hf.data.segments import encode_rle, make_label_map, resize_to_labels, sort_segments, trace_polygons
from mobilevit_hf.data.shapes import fill_shape


def make_masks():
    """Return boolean masks by name: noise, regions with holes and islands, lines, one pixel, all pixels, none."""
    rng = np.random.default_rng(0)
    rings = np.add.outer(np.square(np.arange(-30, 31)), np.square(np.arange(-40, 41)))
    masks = {f"noise {fraction}": rng.random((50, 71)) < fraction for fraction in (0.05, 0.5, 0.95)}
    masks |= {
        "blobs": gaussian_filter(rng.standard_normal((120, 90)), 4) > 0,
        "rings": np.sqrt(rings).astype(int) // 5 % 2 == 1,
        "row": rng.random((1, 9)) < 0.5,
        "column": rng.random((9, 1)) < 0.5,
        "pixel": np.ones((1, 1), bool),
        "all": np.ones((13, 20), bool),
        "none": np.zeros((13, 20), bool),
    }
    return masks


MASKS = make_masks()
every_mask = pytest.mark.parametrize("name", MASKS)


def to_image(mask):
    return Image.fromarray(mask.astype(np.uint8) * 255)


@every_mask
def test_rle_is_decoded_by_pycocotools_and_here(name):
    mask = MASKS[name]
    rle = encode_rle(to_image(mask))
    np.testing.assert_array_equal(mask_api.decode(rle) > 0, mask)
    canvas = np.zeros(mask.shape, np.uint8)
    fill_shape(canvas, rle, 1)
    np.testing.assert_array_equal(canvas > 0, mask)


@every_mask
def test_polygons_have_the_pixels_of_the_mask_in_pycocotools(name):
    mask = MASKS[name]
    polygons = trace_polygons(to_image(mask))
    assert all(len(polygon) >= 6 for polygon in polygons)
    if name == "none":
        assert polygons == []
        return
    rles = mask_api.frPyObjects(polygons, *mask.shape)
    np.testing.assert_array_equal(mask_api.decode(mask_api.merge(rles)) > 0, mask)


def test_straight_edges_have_no_points_between_their_ends():
    mask = np.zeros((50, 80), bool)
    mask[10:40, 5:60] = True
    (polygon,) = trace_polygons(to_image(mask))
    assert len(polygon) == 2 * 8  # each corner is cut between the centers of two edges of a pixel


@pytest.mark.parametrize("num_classes", [1, 5, 300])
def test_resized_labels_are_the_argmax_of_the_interpolated_logits(num_classes):
    logits = torch.randn(num_classes, 7, 9, generator=torch.Generator().manual_seed(0))
    labels = resize_to_labels(logits, (50, 31))
    expected = torch.nn.functional.interpolate(logits[None], size=(50, 31), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(labels, expected[0].argmax(dim=0))
    assert labels.dtype == (np.uint8 if num_classes <= 256 else np.int32)


def test_tied_pixels_are_those_of_the_first_class():
    logits = torch.stack([torch.zeros(3, 4), torch.ones(3, 4), torch.ones(3, 4)])
    assert (resize_to_labels(logits, (8, 8)) == 1).all()


def test_segments_are_sorted_by_size_and_joined_to_a_label_map():
    label_map = np.array([[2, 2, 2, 0], [2, 2, 1, 1]])
    classes = ["a", "b", "c"]
    outputs = [
        {"score": None, "label": name, "mask": to_image(label_map == index)} for index, name in enumerate(classes)
    ]
    segments = sort_segments(outputs)
    assert [(each["label"], each["fraction"]) for each in segments] == [("c", 0.625), ("b", 0.25), ("a", 0.125)]
    np.testing.assert_array_equal(make_label_map(segments, classes), label_map)
