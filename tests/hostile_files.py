"""Malformed, unusual and malicious image files."""

import base64
import io
import struct
import zlib

import numpy as np
from dataset_files import orientation_exif
from PIL import Image

PACKER = zlib.compressobj(1)
ZEROS = b"".join(PACKER.compress(bytes(2**20)) for _ in range(100)) + PACKER.flush()  # 100 MiB
# 8x16 pixels, blue above red, stored as 16x8 with a rotation. Pillow can't write HEIC without an encoder.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAA"
    "AERAAAIAAQAAAAAB6wABAAAAAAAAADYAAgAAAAACIQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZl"
    "AgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/"
    "/wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xy"
    "bmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAIAAAAAf///9AAAAAC////yAAAAAIAAAAQcGl4aQAAAAAD"
    "CAgIAAAACWlyb3QDAAAAGWlwbWEAAAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAAAYm1kYXQAAAAyKAGvUhcmJPKS"
    "bv8p+QxGR2EvH1oawfcGNGgpXhG+AXX087H3aOZKQK6EPzTkqSdq/UAAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA="
)
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
    """Return readable images of rare formats, all of different pixels, by name."""

    def image():
        return noise(rng)

    def transparent():
        pixels = image()
        pixels.putalpha(pixels.convert("L"))
        return pixels

    def deep():
        return Image.fromarray(rng.integers(0, 2**16, size=(40, 48), dtype=np.uint16))

    return {
        "cmyk.jpg": encode(image().convert("CMYK"), "jpg"),
        "gray.jpg": encode(image().convert("L"), "jpg"),
        "progressive.jpeg": encode(image(), "jpg", progressive=True),
        "16 bit.png": encode(deep(), "png"),
        "16 bit.tiff": encode(deep(), "tif"),
        "float.tif": encode(Image.fromarray(300 * rng.random((40, 48), dtype=np.float32) - 20), "tif"),
        "rgba.png": encode(transparent(), "png"),
        "rgba.webp": encode(transparent(), "webp", lossless=True),
        "transparent color.png": encode(Image.new("RGB", (9, 5), (1, 2, 3)), "png", transparency=(1, 2, 3)),
        "la.png": encode(transparent().convert("LA"), "png"),
        "palette.png": encode(image().quantize(64), "png", transparency=rng.bytes(64)),
        "transparent.gif": encode(image().quantize(64), "gif", transparency=3),
        "1 bit.png": encode(image().convert("1"), "png"),
        "cmyk.tif": encode(image().convert("CMYK"), "tif"),
        **{f"turned {i}.jpg": encode(image(), "jpg", exif=orientation_exif(i)) for i in range(1, 9)},
        "turned.png": encode(image(), "png", exif=orientation_exif(6)),
        "turned.webp": encode(image(), "webp", exif=orientation_exif(8)),
        "turned.avif": encode(image(), "avif", exif=orientation_exif(6)),
        "animated.gif": encode(image(), "gif", save_all=True, append_images=[image()]),
        "long.png": encode(Image.new("RGB", (20_000, 3), "red"), "png"),
        "high.jpg": encode(Image.new("RGB", (2, 20_000), "red"), "jpg"),
        "pixel.gif": encode(image().resize((1, 1)), "gif"),
        "really a png.jpg": encode(image(), "png"),
        "really a bmp.PNG": encode(image(), "bmp"),
        "photo.HEIC": HEIC,
    }


def damaged_metadata(rng):
    """Return image files with metadata that versions of Pillow reject, and the same images without it, by name."""
    image = noise(rng)
    jpeg, webp, avif = (encode(image, suffix) for suffix in ("jpg", "webp", "avif"))
    mpo = encode(image, "mpo", save_all=True, append_images=[image])
    second = mpo.index(b"\xff\xd8\xff", 10)
    compressed = b"\0\0" + zlib.compress(bytes(3 * 2**20))
    text, profile = (b"zTXt", b"Comment" + compressed), (b"iCCP", b"icc" + compressed)
    pixels = b"".join(b"\0" + row.tobytes() for row in np.asarray(image))
    intact = png(48, 40, data=pixels)
    exif = Image.Exif()
    exif[0x010F] = "maker"

    def with_segment(marker, content):
        return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]

    return {
        "exif.jpg": (with_segment(0xE1, b"Exif\0\0" + bytes(20)), jpeg),
        "xmp.jpg": (with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff<tiff:Orientation>9"), jpeg),
        "photoshop.jpg": (with_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\x80\xff"), jpeg),
        "profile.jpg": (with_segment(0xE2, b"ICC_PROFILE\0\x05\x09" + bytes(50)), jpeg),
        "index.jpg": (with_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"), jpeg),
        "short.jpg": (with_segment(0xE0, b"JFIF"), jpeg),
        "second frame.mpo": (mpo[:second] + bytes(50), jpeg),
        "no second frame.mpo": (mpo[:second], jpeg),
        "text.png": (png(48, 40, text, data=pixels), intact),
        "profile.png": (png(48, 40, profile, data=pixels), intact),
        "exif.png": (png(48, 40, (b"eXIf", b"garbage"), data=pixels), intact),
        "checksum.png": (png(48, 40, (b"tEXt", b"a\0good"), data=pixels).replace(b"a\0good", b"a\0bad!"), intact),
        "cut text.png": (intact[:-12] + struct.pack(">I4s", 1000, b"tEXt") + b"Comment\0 cut", intact),
        "cut.webp": (encode(image, "webp", exif=orientation_exif(3))[:-20], webp),
        "exif.avif": (encode(image, "avif", exif=exif).replace(b"II*\0", bytes(4)), avif),
        "exif.heic": (HEIC.replace(b"MM\0*", bytes(4)), HEIC),
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
