"""Malformed, unusual and malicious image files."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PACKER = zlib.compressobj(1)
ZEROS = b"".join(PACKER.compress(bytes(2**20)) for _ in range(100)) + PACKER.flush()  # 100 MiB
SUFFIXES = ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm")
FILE_NAMES = [
    "two\nlines",
    "\x1b[2J\x1b[31mred",
    "\udcff\udcfe bytes",
    "-rf",
    "--json",
    "[bold]markup[",
    ":dog:",
    "$HOME `id` $(id)",
    "\u202egpj",
    "猫 кошка",
    " spaces ",
    "x" * 240,
    "dots...",
    "a\\..\\b",
    "100%s {0}",
    "\x7f\x9b",
]


def noise(rng, width=48, height=40):
    return Image.fromarray(rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8))


def encode(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[f".{suffix}"], **options)
    return file.getvalue()


def png(width, height, *chunks, data=b""):
    """Return a PNG file whose header claims an 8-bit RGB image of this size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def decompression_bombs(rng):
    """Return small files that claim large images, by name; none is readable."""
    jpeg = encode(noise(rng), "jpg")
    sizes = jpeg.index(b"\xff\xc0") + 5
    return {
        "huge.png": png(30_000, 30_000),
        "huger.png": png(2**31 - 1, 2**31 - 1),
        "empty.png": png(0, 0),
        "below the limit.png": png(9_999, 9_999),
        "text.png": png(8, 8, (b"zTXt", b"Comment\0\0" + ZEROS), data=bytes(8)),
        "profile.png": png(8, 8, (b"iCCP", b"icc\0\0" + ZEROS), data=bytes(8)),
        "huge.jpg": jpeg[:sizes] + struct.pack(">HH", 65_500, 65_500) + jpeg[sizes + 4 :],
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + encode(noise(rng), "gif")[13:],
        "huge.ppm": b"P6 99999 99999 255\n" + bytes(99),
        "huge.bmp": b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, 50_000, 50_000, 1, 24) + bytes(24),
        "negative.bmp": b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, -5, 5, 1, 24) + bytes(24),
        "huge.tif": encode(Image.new("1", (20_000, 20_000)), "tif", compression="group4"),
        "huge.webp": encode(noise(rng), "webp", lossless=True)[:21] + b"\xff" * 4 + bytes(99),
    }


def unusual_images(rng):
    """Return readable images of rare formats, by name."""
    image = noise(rng)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    deep = Image.fromarray(rng.integers(0, 2**16, size=(40, 48), dtype=np.uint16))
    return {
        "cmyk.jpg": encode(image.convert("CMYK"), "jpg"),
        "gray.jpg": encode(image.convert("L"), "jpg"),
        "progressive.jpeg": encode(image, "jpg", progressive=True),
        "16 bit.png": encode(deep, "png"),
        "16 bit.tiff": encode(deep, "tif"),
        "float.tif": encode(Image.fromarray(rng.random((40, 48), dtype=np.float32)), "tif"),
        "rgba.png": encode(image.convert("RGBA"), "png"),
        "rgba.webp": encode(image.convert("RGBA"), "webp"),
        "la.png": encode(image.convert("LA"), "png"),
        "palette.png": encode(image.convert("P"), "png", transparency=3),
        "1 bit.png": encode(image.convert("1"), "png"),
        "cmyk.tif": encode(image.convert("CMYK"), "tif"),
        "turned.jpg": encode(image, "jpg", exif=exif),
        "animated.gif": encode(image, "gif", save_all=True, append_images=[noise(rng)]),
        "long.png": encode(Image.new("RGB", (20_000, 3), "red"), "png"),
        "high.jpg": encode(Image.new("RGB", (2, 20_000), "red"), "jpg"),
        "pixel.gif": encode(image.resize((1, 1)), "gif"),
        "really a png.jpg": encode(image, "png"),
        "really a bmp.PNG": encode(image, "bmp"),
    }


def non_images(rng):
    """Return files with image suffixes that are not images, by name."""
    return {
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "page.png": b"<html><svg xmlns='http://www.w3.org/2000/svg'/></html>",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n{} loop\n",
        "zeros.png": bytes(1000),
        "noise.webp": rng.bytes(1000),
    }


def corrupted_image(rng, suffix):
    """Return an image file with flipped bits, truncated, both, or with a repeated part."""
    data = np.frombuffer(encode(noise(rng), suffix), dtype=np.uint8).copy()
    kind = rng.integers(4)
    if kind != 1:
        indices = rng.integers(0, min(len(data), 200 if rng.integers(2) else len(data)), size=rng.integers(1, 12))
        data[indices] ^= (1 << rng.integers(0, 8, size=len(indices))).astype(np.uint8)
    if kind in (1, 2):
        data = data[: rng.integers(1, len(data))]
    if kind == 3:
        start, end = np.sort(rng.integers(0, len(data), size=2))
        data = np.concatenate([data[:end], data[start:]])
    return data.tobytes()


def write_hostile_files(folder, count, seed=0):
    """Write hostile files to two class folders; return their paths relative to the folder."""
    rng = np.random.default_rng(seed)
    files = decompression_bombs(rng) | unusual_images(rng) | non_images(rng)
    files |= {f"{name}.png": encode(noise(rng), "png") for name in FILE_NAMES[::2]}
    files |= {f"{name}.jpg": b"no image" for name in FILE_NAMES[1::2]}
    for i in range(count - len(files)):
        suffix = SUFFIXES[i % len(SUFFIXES)]
        wrong = SUFFIXES[rng.integers(len(SUFFIXES))]
        files[f"{i}.{wrong if i % 5 == 0 else suffix}"] = corrupted_image(rng, suffix)
    names = set()
    for i, (name, data) in enumerate(files.items()):
        path = folder / ("good", "-bad")[i % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        names.add(str(path.relative_to(folder)))
    assert len(names) == count
    return names
