"""Finding and decoding images."""

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from dataset_files import jpeg_bytes, noise_image, orientation_exif, png_bytes
from hostile_files import HEIC, damaged_metadata, noise, unusual_images
from PIL import Image
from torchvision.transforms import v2
from transformers.image_utils import load_image as stock_load_image

from mobilevit_hf.data import images
from mobilevit_hf.data.image_formats import find_images, walk_files
from mobilevit_hf.data.images import (
    LazyImage,
    Region,
    UnreadableImageError,
    load_image,
    load_with_losses,
)

SMALL_IMAGE = noise_image(0, 37, 21)


def load_pixels(path):
    return np.asarray(load_image(path)).astype(int)


def is_close(got, expected, tolerance=1):
    return got.shape == expected.shape and np.abs(got - expected).max() <= tolerance


@pytest.fixture
def corner_colors():
    """RGB array (6, 8, 3) with corners of different colors."""
    values = np.full((6, 8, 3), 40, dtype=np.uint8)
    values[:3, :4], values[3:, 4:] = (250, 30, 20), (20, 60, 240)
    return values


def test_rgb_is_unchanged(corner_colors, tmp_path):
    Image.fromarray(corner_colors).save(tmp_path / "a.png")
    assert is_close(load_pixels(tmp_path / "a.png"), corner_colors, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(corner_colors, tmp_path, orientation):
    # Stored pixels of the same image for each of the eight orientations of a camera.
    stored = {
        1: corner_colors,
        2: corner_colors[:, ::-1],
        3: corner_colors[::-1, ::-1],
        4: corner_colors[::-1],
        5: corner_colors.transpose(1, 0, 2),
        6: np.rot90(corner_colors),
        7: corner_colors[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(corner_colors, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(tmp_path / "a.png", exif=orientation_exif(orientation))
    assert is_close(load_pixels(tmp_path / "a.png"), corner_colors, 0)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("L", "png"), ("1", "png"), ("LA", "png")])
def test_other_modes_are_converted_to_rgb(corner_colors, tmp_path, mode, suffix):
    image = Image.fromarray(corner_colors).convert(mode)
    image.save(tmp_path / f"a.{suffix}", quality=100, subsampling=0)
    got = load_image(tmp_path / f"a.{suffix}")
    assert got.mode == "RGB"
    assert got.size == (8, 6)
    expected = np.asarray(image.convert("RGBA" if mode == "LA" else mode).convert("RGB")).astype(int)
    assert is_close(np.asarray(got).astype(int), expected, 12)


def test_animation_returns_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert is_close(load_pixels(tmp_path / "a.gif")[0, 0], np.array([255, 0, 0]))


def png_with_claimed_size(width, height):
    """Return a PNG file with a size in its header and almost no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def test_damaged_files_raise_the_reason(corner_colors, tmp_path):
    Image.fromarray(np.tile(corner_colors, (40, 40, 1))).save(tmp_path / "intact.jpg")
    intact = (tmp_path / "intact.jpg").read_bytes()
    damaged = {
        "text.jpg": (b"not an image file", "not an image"),
        "empty.png": (b"", "not an image"),
        "cut.jpg": (intact[: len(intact) // 2], "truncated"),
        "huge.png": (png_with_claimed_size(20_000, 20_000), "megapixels"),
        "large.png": (png_with_claimed_size(12_000, 10_000), "120"),
        "hollow.png": (png_with_claimed_size(64, 64), "truncated"),
    }
    for name, (data, reason) in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)


SAVED_SUFFIXES = (
    *("jpg", "jpe", "jfif", "png", "apng", "webp", "bmp", "dib", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
    *("avif", "jp2", "j2k", "jpx", "tga", "ico", "icns", "pcx", "sgi", "qoi", "dds", "mpo", "TGA", "JFIF", "pjpeg"),
)


@pytest.mark.parametrize("suffix", SAVED_SUFFIXES)
def test_all_photo_formats_of_pillow_are_read(suffix, image, tmp_path):
    path = tmp_path / f"a.{suffix}"
    image.resize((32, 32)).save(path, Image.registered_extensions().get(path.suffix.lower(), "JPEG"))
    assert find_images([str(tmp_path)])[0] == [str(path)]
    expected = stock_load_image(str(path))
    assert np.array_equal(load_image(path), expected)
    lazy = LazyImage(str(path))
    assert (lazy.width, lazy.height) == expected.size


def test_broken_link_is_found_as_an_image_that_cannot_be_read(tmp_path):
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "missing.png")
    assert find_images([str(tmp_path)])[0] == [str(link)]
    with pytest.raises(UnreadableImageError):
        load_image(link)


def test_heic_is_read(tmp_path):
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    for source in (str(tmp_path / "IMG_1.HEIC"), tmp_path / "IMG_1.HEIC", HEIC):
        expected = [[(20, 40, 220)] * 8] * 8 + [[(200, 30, 20)] * 8] * 8
        assert is_close(load_pixels(source), np.array(expected), 12)
    assert find_images([str(tmp_path)])[0] == [str(tmp_path / "IMG_1.HEIC")]


@pytest.mark.parametrize("name", [name for name in unusual_images(np.random.default_rng(0)) if name != "photo.HEIC"])
def test_pixels_equal_those_of_transformers(name, tmp_path):
    (tmp_path / name).write_bytes(unusual_images(np.random.default_rng(0))[name])
    expected = np.asarray(stock_load_image(str(tmp_path / name)))
    for source in (tmp_path / name, (tmp_path / name).read_bytes(), Image.open(tmp_path / name)):
        loaded = load_image(source)
        assert np.array_equal(loaded, expected)
        assert np.array_equal(stock_load_image(loaded), expected)  # a second pass must not rotate it again
        assert np.array_equal(LazyImage(source).load(), expected)


@pytest.mark.parametrize("name", damaged_metadata(np.random.default_rng(0)))
def test_damaged_metadata_is_ignored(name, tmp_path):
    damaged, intact = damaged_metadata(np.random.default_rng(0))[name]
    assert damaged != intact
    (tmp_path / name).write_bytes(damaged)
    expected = stock_load_image(Image.open(io.BytesIO(intact)))
    for source in (damaged, tmp_path / name):
        assert np.array_equal(load_image(source), expected)
        lazy = LazyImage(source)
        assert (lazy.width, lazy.height) == expected.size


def test_losses():
    rng = np.random.default_rng(0)
    transparent = ("rgba.png", "rgba.webp", "la.png", "palette.png", "transparent.gif", "transparent color.png")
    expected = {name: ["transparency"] for name in transparent}
    expected |= {name: ["depth"] for name in ("16 bit.png", "16 bit.tiff", "float.tif")}
    expected |= {"animated.gif": ["frames"], "cmyk.jpg": ["colors"], "cmyk.tif": ["colors"]}
    found = {name: load_with_losses(data)[1] for name, data in unusual_images(rng).items()}
    assert {name: losses for name, losses in found.items() if losses} == expected

    opaque = noise(rng).convert("RGBA")
    assert load_with_losses(png_bytes(opaque))[1] == []
    assert load_with_losses(png_bytes(Image.fromarray(np.full((4, 4), 255, dtype=np.uint16))))[1] == []


def test_random_damage_raises_no_other_error(corner_colors, tmp_path):
    """Flipped bits and truncation in several formats."""
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tiff"):
        Image.fromarray(np.tile(corner_colors, (8, 8, 1))).save(tmp_path / f"intact.{suffix}")
        intact = np.frombuffer((tmp_path / f"intact.{suffix}").read_bytes(), dtype=np.uint8)
        for _ in range(40):
            data = intact[: rng.integers(1, len(intact) + 1)].copy()
            offsets = rng.integers(0, len(data), size=3)
            data[offsets] ^= rng.integers(1, 256, size=3, dtype=np.uint8)
            (tmp_path / f"damaged.{suffix}").write_bytes(data.tobytes())
            with contextlib.suppress(UnreadableImageError):
                assert load_image(tmp_path / f"damaged.{suffix}").mode == "RGB"


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("in/1.png", "in/sub/2.png", "out/3.png", "out/deep/4.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    links = {"a": "out", "b": "out/deep", "inside": "in/sub", "self": "in", "up": ".", "out/back": "in"}
    for name, target in links.items():
        (tmp_path / ("" if "/" in name else "in") / name).symlink_to(tmp_path / target)
    (tmp_path / "in/circle").symlink_to("circle")
    files = [os.path.realpath(file) for file in walk_files(str(tmp_path / "in"))]
    names = ["in/1.png", "in/circle", "in/sub/2.png", "out/3.png", "out/deep/4.png"]
    assert set(files) == {str(tmp_path / name) for name in names}
    assert files.count(str(tmp_path / "out/3.png")) == files.count(str(tmp_path / "in/1.png")) == 1


def test_find_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    sources = [".", "notes.txt", "*.jpg", "odd[1].jpg", "http://host/d.jpg", "gone.jpg", "empty"]
    found, missing, notes = find_images(sources)
    assert found == ["a.PNG", "b.jpg", "deep/c.webp", "odd[1].jpg", "notes.txt", "http://host/d.jpg"]
    assert set(missing) == {"gone.jpg", "empty"}
    assert "no images" in missing["empty"]
    assert notes == []


def test_files_that_are_not_read_are_counted_by_suffix(tmp_path):
    for name in ("a.jpg", "a.MOV", "b.mov", "deep/c.cr2", "note.txt", "c.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, missing, (note,) = find_images([str(tmp_path)])
    assert found == [str(tmp_path / "a.jpg")]
    assert list(missing) == [str(tmp_path / "a.MOV"), str(tmp_path / "b.mov")]
    assert all(reason.startswith(".mov is not read: video") for reason in missing.values())
    assert ".mov" not in note.lower()
    for count in ("1 .cr2 (camera raw", "1 .svg (vector"):
        assert count in note
    assert ".txt" not in note
    (_, missing, notes), folder = find_images([str(tmp_path / "deep")]), str(tmp_path / "deep")
    assert "1 .cr2 (camera raw" in missing[folder]
    assert notes == []
    with pytest.raises(UnreadableImageError, match="camera raw"):
        load_image(tmp_path / "deep/c.cr2")


def test_download_size_is_limited(monkeypatch, served_file):
    url = served_file("a.png", b"x" * 2000)
    with pytest.raises(UnreadableImageError, match="not an image"):
        load_image(url)
    monkeypatch.setattr(images, "MAX_DOWNLOAD_BYTES", 1000)
    with pytest.raises(UnreadableImageError, match="to download"):
        load_image(url)


def test_missing_url_raises(served_file):
    url = served_file("a.png", b"")
    with pytest.raises(UnreadableImageError, match="can't be fetched"):
        load_image(url.replace("a.png", "b.png"))


def test_url_is_percent_encoded(served_file, corner_colors, tmp_path):
    Image.fromarray(corner_colors).save(tmp_path / "a.png")
    url = served_file("a ä%.png", (tmp_path / "a.png").read_bytes()).replace("%", "%25")
    assert is_close(load_pixels(url), corner_colors, 0)
    assert is_close(load_pixels(url.replace(" ", "%20")), corner_colors, 0)


@pytest.fixture
def redirect_url():
    """Return a function that serves a redirect to a location and returns its URL."""
    location = None

    class RedirectHandler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", location)
            self.end_headers()

        def log_message(self, *args):
            pass

    def redirect_to(target):
        nonlocal location
        location = target
        return f"http://127.0.0.1:{server.server_port}/a.png"

    with ThreadingHTTPServer(("127.0.0.1", 0), RedirectHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield redirect_to
        server.shutdown()
        thread.join()


def test_redirects_are_followed_to_http_only(served_file, redirect_url, corner_colors, tmp_path):
    Image.fromarray(corner_colors).save(tmp_path / "a.png")
    url = served_file("a.png", (tmp_path / "a.png").read_bytes())
    assert is_close(load_pixels(redirect_url(url)), corner_colors, 0)
    with pytest.raises(UnreadableImageError, match="can't be fetched"):
        load_image(redirect_url(f"file://{tmp_path}/a.png"))


def test_slow_download_raises(monkeypatch, served_file):
    monkeypatch.setattr(images, "MAX_DOWNLOAD_SECONDS", 0)
    with pytest.raises(UnreadableImageError, match="took more than 0 s"):
        load_image(served_file("a.png", b"x" * 2000))


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/a.png", "http://[::1/a.png", "http://", "http://\0/a.png"])
def test_invalid_url_raises(url):
    with pytest.raises(UnreadableImageError, match="can't be fetched"):
        load_image(url)


def image_files(image):
    """Return the image in several file formats and modes."""
    gray_16_bit = Image.fromarray(np.linspace(0, 65535, 96 * 128).reshape(96, 128).astype(np.uint16))
    return {
        "jpeg": jpeg_bytes(image),
        "progressive": jpeg_bytes(image, progressive=True),
        "gray": jpeg_bytes(image.convert("L")),
        "rgb jpeg": jpeg_bytes(image, keep_rgb=True),
        "cmyk": jpeg_bytes(image.convert("CMYK")),
        **{f"orientation {n}": jpeg_bytes(image, exif=orientation_exif(n)) for n in (1, 3, 6, 8)},
        "rgba": png_bytes(image.convert("RGBA").rotate(20)),
        "palette": png_bytes(image.convert("P")),
        "16 bits": png_bytes(gray_16_bit),
    }


def test_lazy_image_equals_load_image(image, tmp_path):
    for name, data in image_files(image).items():
        (tmp_path / "file").write_bytes(data)
        expected = load_image(tmp_path / "file")
        width, height = expected.size
        array = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        for source in (data, tmp_path / "file", str(tmp_path / "file"), Image.open(tmp_path / "file")):
            lazy = LazyImage(source)
            assert (lazy.height, lazy.width) == (height, width), name
            whole = lazy.read(Region(0, 0, height, width), (height, width))
            assert (whole.int() - array.int()).abs().max() <= 1, name
            part = lazy.read(Region(10, 20, 30, 40), (30, 40))
            assert (part.int() - array[:, 10:40, 20:60].int()).abs().max() <= 1, name
            assert np.array_equal(np.array(lazy.load()), np.array(expected)), name


@pytest.mark.parametrize(("factor", "reduction"), [(1.9, 1), (2, 2), (3.9, 2), (4, 4), (9, 8), (20, 8)])
def test_large_jpeg_is_decoded_at_reduced_size(factor, reduction, image):
    large = image.resize((1280, 961), Image.Resampling.BICUBIC)
    data = jpeg_bytes(large, quality=90)
    size = (int(961 / factor), int(1280 / factor))
    pixels = LazyImage(data).read(Region(0, 0, 961, 1280), size)
    assert pixels.shape == (3, round(961 / reduction), round(1280 / reduction))
    expected = v2.functional.resize(torch.from_numpy(np.array(large)).permute(2, 0, 1), size, antialias=True)
    difference = (v2.functional.resize(pixels, size, antialias=True).int() - expected.int()).abs().float()
    assert difference.mean() < 1.5


def test_lazy_image_raises_for_unreadable_files(image, tmp_path):
    data = jpeg_bytes(image.resize((640, 480)), quality=90)
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    for size in ((480, 640), (60, 80)):
        with pytest.raises(UnreadableImageError):
            LazyImage(tmp_path / "a.jpg").read(Region(0, 0, 480, 640), size)
    with pytest.raises(UnreadableImageError):
        LazyImage(tmp_path / "b.jpg")
    with pytest.raises(UnreadableImageError):
        LazyImage(b"no image")


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
def test_jpeg_size_is_parsed_from_the_header(mode, options):
    data = jpeg_bytes(SMALL_IMAGE.convert(mode), **options)
    assert images._parse_jpeg_size(data) == Image.open(io.BytesIO(data)).size == (37, 21)
    assert np.array_equal(np.asarray(LazyImage(data).load()), np.asarray(load_image(data)))


@pytest.mark.parametrize(
    "data",
    [
        jpeg_bytes(SMALL_IMAGE, exif=orientation_exif(6)),
        jpeg_bytes(SMALL_IMAGE.convert("CMYK")),
        b"",
        b"\xff\xd8\xff",
        b"GIF89a" + bytes(20),
        jpeg_bytes(SMALL_IMAGE)[:20],
    ],
    ids=["exif", "cmyk", "empty", "marker", "gif", "truncated"],
)
def test_other_files_are_left_to_pillow(data):
    assert images._parse_jpeg_size(data) is None


def test_rotated_jpeg_has_upright_size():
    image = LazyImage(jpeg_bytes(SMALL_IMAGE, exif=orientation_exif(6)))
    assert (image.width, image.height) == (21, 37)


def test_threads_ignore_the_warnings_of_decoders_and_restore_the_filters():
    encoded = list(unusual_images(np.random.default_rng(0)).values())
    with warnings.catch_warnings(action="error"):
        filters = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(load_image, encoded * 4))) == 4 * len(encoded)
        assert warnings.filters == filters
