"""What is known of an image before it is decoded, and the region of it that training takes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from mobilevit_hf.data.decoding import LazyImage, _simple_jpeg_size
from mobilevit_hf.data.images import load_image
from mobilevit_hf.data.transforms import choose_region


def jpeg(mode="RGB", size=(37, 21), **options):
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True, "quality": 30}),
        ("RGB", {"subsampling": 0, "comment": b"\xff\xd8 no marker", "restart_marker_blocks": 1}),
        ("RGB", {"icc_profile": b"x" * 70_000}),
        ("L", {}),
    ],
    ids=["baseline", "progressive", "comment", "profile", "gray"],
)
def test_size_of_a_simple_jpeg(mode, options):
    data = jpeg(mode, **options)
    assert _simple_jpeg_size(data) == Image.open(io.BytesIO(data)).size == (37, 21)
    assert np.array_equal(np.asarray(LazyImage(data).load()), np.asarray(load_image(data)))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "data",
    [jpeg(exif=turned()), jpeg("CMYK"), b"", b"\xff\xd8\xff", b"GIF89a" + bytes(20), jpeg()[:20]],
    ids=["exif", "cmyk", "empty", "marker", "gif", "truncated"],
)
def test_anything_else_is_left_to_pillow(data):
    assert _simple_jpeg_size(data) is None


def test_a_turned_jpeg_is_upright():
    assert (LazyImage(jpeg(exif=turned())).width, LazyImage(jpeg(exif=turned())).height) == (21, 37)


@pytest.mark.parametrize("size", [(240, 320), (50, 400), (7, 5)], ids=str)
def test_regions_are_those_of_torchvision(size):
    """The same shares, ratios and places, by their quartiles over many draws."""
    canvas = tv_tensors.BoundingBoxes(torch.empty(0, 4), format="XYXY", canvas_size=size)
    crop = v2.RandomResizedCrop(1)

    def quartiles(draw):
        torch.manual_seed(0)
        regions = torch.tensor([draw() for _ in range(3000)], dtype=torch.float64)
        tops, lefts, heights, widths = regions.unbind(1)
        assert (tops >= 0).all()
        assert (lefts >= 0).all()
        assert (tops + heights <= size[0]).all()
        assert (lefts + widths <= size[1]).all()
        return torch.quantile(regions / torch.tensor([*size, *size]), torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)

    def draw_theirs():
        params = crop.make_params([canvas])
        return [params[name] for name in ("top", "left", "height", "width")]

    theirs = quartiles(draw_theirs)
    ours = quartiles(lambda: list(choose_region(*size, (0.08, 1.0), (3 / 4, 4 / 3))))
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)
