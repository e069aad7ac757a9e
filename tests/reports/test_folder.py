import numpy as np
from detection_cases import make_detected_image
from PIL import Image
from report_cases import detection_result, make_samples

from mobilevit_hf.data.types import Sample
from mobilevit_hf.reports import write_report
from mobilevit_hf.reports.folder import load_photos
from mobilevit_hf.visualization.colors import TRUE_POSITIVE


def test_large_photos_are_reduced_with_their_scale():
    photos = load_photos(make_samples(["a", "b"], (1440, 300)), [1])
    assert photos.keys() == {1}
    assert (photos[1].image.size, photos[1].scale) == ((720, 150), 0.5)


def test_boxes_fit_a_reduced_photo(tmp_path):
    """The box around the lower right quarter of the image is drawn around that quarter."""
    image = make_detected_image([([720, 720, 1438, 1438], 0, 0.9)], [([720, 720, 1438, 1438], 0)])
    write_report(tmp_path, detection_result([image]), make_samples(["0.jpg"], (1440, 1440)), title="Model")
    grid = np.asarray(Image.open(tmp_path / "samples.png"))
    background = (grid == (0, 90, 90)).all(-1)
    rows, columns = np.nonzero(background)
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
    rows, columns = np.nonzero((grid[top : bottom + 1, left : right + 1] == TRUE_POSITIVE).all(-1))
    size = bottom - top + 1
    np.testing.assert_allclose([columns.min() / size, columns.max() / size, rows.max() / size], [0.5, 1, 1], atol=0.03)


def test_unreadable_photo_is_left_out():
    samples = [Sample("broken", b"broken"), *make_samples(["a"])]
    assert load_photos(samples, [0, 1]).keys() == {1}
    assert not load_photos(None, [0])
