"""Any file a person may point at: decoded to what they see, or one line that says why not."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mobilevit_hf.data import images
from mobilevit_hf.data.images import UnreadableImageError, find_images, load_image

ORIENTATION = 0x0112


def pixels(path):
    return np.asarray(load_image(path)).astype(int)


def close(got, expected, tolerance=1):
    return got.shape == expected.shape and np.abs(got - expected).max() <= tolerance


@pytest.fixture
def colors():
    """A 6x8 RGB array whose corners differ."""
    values = np.full((6, 8, 3), 40, dtype=np.uint8)
    values[:3, :4], values[3:, 4:] = (250, 30, 20), (20, 60, 240)
    return values


def test_rgb_is_as_stored(colors, tmp_path):
    Image.fromarray(colors).save(tmp_path / "a.png")
    assert close(pixels(tmp_path / "a.png"), colors, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_are_undone(colors, tmp_path, orientation):
    # What a camera held in each of the eight ways stores, so that all show the same image.
    stored = {
        1: colors,
        2: colors[:, ::-1],
        3: colors[::-1, ::-1],
        4: colors[::-1],
        5: colors.transpose(1, 0, 2),
        6: np.rot90(colors),
        7: colors[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(colors, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert close(pixels(tmp_path / "a.png"), colors, 0)


def test_transparency_lies_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[1, 1] = (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = pixels(tmp_path / "a.png")
    assert close(got[0, 0], np.array([200, 0, 0]))
    assert close(got[0, 1], np.array([255, 255, 255]))
    assert close(got[1, 1], np.array([127, 127, 127]))


def test_palette_with_a_transparent_color(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert close(pixels(tmp_path / "a.png"), np.array([[[255, 0, 0], [255, 255, 255]]]))


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert close(pixels(tmp_path / "a.png"), np.repeat([[[0], [100], [255]]], 3, axis=2))


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("L", "png"), ("1", "png"), ("LA", "png")])
def test_other_modes_become_rgb(colors, tmp_path, mode, suffix):
    image = Image.fromarray(colors).convert(mode)
    image.save(tmp_path / f"a.{suffix}", quality=100, subsampling=0)
    got = load_image(tmp_path / f"a.{suffix}")
    assert got.mode == "RGB"
    assert got.size == (8, 6)
    expected = np.asarray(image.convert("RGBA" if mode == "LA" else mode).convert("RGB")).astype(int)
    assert close(np.asarray(got).astype(int), expected, 12)


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert close(pixels(tmp_path / "a.gif")[0, 0], np.array([255, 0, 0]))


def claimed_png(width, height):
    """A PNG file that says it is this large and holds next to nothing."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def test_damaged_files_say_why(colors, tmp_path):
    Image.fromarray(np.tile(colors, (40, 40, 1))).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    damaged = {
        "text.jpg": (b"hello, I am no image", "not an image"),
        "empty.png": (b"", "not an image"),
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "huge.png": (claimed_png(20_000, 20_000), "megapixels"),
        "large.png": (claimed_png(12_000, 10_000), "120"),
        "hollow.png": (claimed_png(64, 64), "truncated"),
    }
    for name, (data, reason) in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableImageError, match="floating-point"):
        load_image(tmp_path / "a.tiff")


def test_random_damage_never_escapes(colors, tmp_path):
    """Bit flips and cuts in several formats: decoded or refused, nothing else."""
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tiff"):
        Image.fromarray(np.tile(colors, (8, 8, 1))).save(tmp_path / f"whole.{suffix}")
        whole = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), dtype=np.uint8)
        for _ in range(40):
            data = whole[: rng.integers(1, len(whole) + 1)].copy()
            places = rng.integers(0, len(data), size=3)
            data[places] ^= rng.integers(1, 256, size=3, dtype=np.uint8)
            (tmp_path / f"damaged.{suffix}").write_bytes(data.tobytes())
            with contextlib.suppress(UnreadableImageError):
                assert load_image(tmp_path / f"damaged.{suffix}").mode == "RGB"


def test_find_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    found, missing = find_images([".", "notes.txt", "*.jpg", "odd[1].jpg", "http://host/d.jpg", "gone.jpg", "empty"])
    assert found == ["a.PNG", "b.jpg", "deep/c.webp", "odd[1].jpg", "notes.txt", "http://host/d.jpg"]
    assert set(missing) == {"gone.jpg", "empty"}
    assert "no images" in missing["empty"]


def test_a_download_is_bounded(monkeypatch, served_file):
    url = served_file("a.png", b"x" * 2000)
    with pytest.raises(UnreadableImageError, match="not an image"):
        load_image(url)
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", 1000)
    with pytest.raises(UnreadableImageError, match="to download"):
        load_image(url)


def test_a_url_that_fails_says_so(served_file):
    url = served_file("a.png", b"")
    with pytest.raises(UnreadableImageError, match="can't be fetched"):
        load_image(url.replace("a.png", "b.png"))


def test_a_url_as_a_person_types_it(served_file, colors, tmp_path):
    Image.fromarray(colors).save(tmp_path / "a.png")
    url = served_file("a ä%.png", (tmp_path / "a.png").read_bytes()).replace("%", "%25")
    assert close(pixels(url), colors, 0)
    assert close(pixels(url.replace(" ", "%20")), colors, 0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/a.png", "http://[::1/a.png", "http://", "http://\0/a.png"])
def test_what_is_no_url_says_so(url):
    with pytest.raises(UnreadableImageError, match="can't be fetched"):
        load_image(url)
