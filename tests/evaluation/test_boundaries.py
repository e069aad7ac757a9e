import numpy as np
import pytest
from scipy import ndimage

from mobilevit_hf.evaluation.boundaries import boundary_mask, count_boundaries


@pytest.mark.parametrize("distance", [1, 3, 40])
@pytest.mark.parametrize("size", [(31, 24), (5, 60), (1, 7)])
def test_boundary_is_each_mask_without_its_erosion(size, distance):
    """Pixels outside the image belong to no mask, as in the paper's code."""
    generator = np.random.default_rng(distance)
    labels = np.kron(generator.integers(0, 3, (6, 8)), np.ones((11, 11), int))[: size[0], : size[1]]
    expected = np.zeros(labels.shape, dtype=bool)
    for label in range(3):
        mask = labels == label
        expected |= mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)
    np.testing.assert_array_equal(boundary_mask(labels, distance), expected)


def test_ignored_pixels_are_a_boundary_of_both_maps():
    """A correct prediction that continues below the ignored pixels has the reference's boundary."""
    reference = np.zeros((100, 100), dtype=int)
    reference[:, 40:] = 1
    reference[:, 40:50] = -1
    prediction = np.where(reference < 0, 1, reference)
    counts = count_boundaries(prediction, reference, 3)
    assert counts.tolist() == [counts[0].tolist()] * 3
    # 3 pixels, 2% of the diagonal of 141, on four sides of 100x40 and 100x50 pixels.
    assert counts[0].tolist() == [100 * 40 - 94 * 34, 100 * 50 - 94 * 44, 0]
