"""Images that look alike."""

import io

import pytest
from dataset_files import jpeg_bytes, make_images, noise_image
from PIL import Image, ImageDraw

from mobilevit_hf.data.duplicates import BLOCK, find_near_duplicates, make_thumbnail

CHANGES = {
    "none": lambda image: image,
    "compressed": lambda image: Image.open(io.BytesIO(jpeg_bytes(image, quality=60))).convert("RGB"),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "odd size": lambda image: image.resize((67, 81)),
    "one pixel": lambda image: Image.composite(image, Image.new("RGB", image.size), _mask(image.size)),
}


def _mask(size):
    mask = Image.new("L", size, 255)
    mask.putpixel((3, 4), 0)
    return mask


def find(images, classes):
    return list(find_near_duplicates([make_thumbnail(image) for image in images], classes))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("source", ["smooth", "noise"])
def test_copies_with_other_classes_are_found(change, source):
    images = list(make_images(20)) if source == "smooth" else [noise_image(i, 80, 60) for i in range(20)]
    copies = [change(image) for image in images[:3]]
    found = find([*images, *copies], [*["cat"] * 20, "dog", "cat", "dog"])
    assert found == [(0, 20), (2, 22)]


def test_similar_images_are_no_duplicates():
    """Objects of other shapes, colors and places on a plain background, and images without content."""
    images = []
    for shape in ("ellipse", "rectangle"):
        for color in ("red", "blue", "black"):
            for x in range(5, 41, 7):
                images.append(Image.new("RGB", (80, 80), "white"))
                getattr(ImageDraw.Draw(images[-1]), shape)((x, 10, x + 35, 45), fill=color)
    images += [Image.new("RGB", (80, 80), color) for color in ("white", "white", "black", (250, 250, 250))]
    assert find(images, list(map(str, range(len(images))))) == []


def test_pairs_are_found_across_blocks():
    first = noise_image(0, 40, 40)
    images = [first, *(noise_image(1, 40, 40),) * BLOCK, first]
    assert find(images, ["cat"] * (BLOCK + 1) + ["dog"]) == [(0, BLOCK + 1)]
