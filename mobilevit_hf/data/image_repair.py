"""Remove the metadata of image files, without which some damaged files can be decoded."""

import re
import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf")
WEBP_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"EXIF")
WEBP_PROFILE_FLAG, WEBP_EXIF_FLAG, WEBP_XMP_FLAG = 0x20, 0x08, 0x04
JPEG_START_OF_SCAN = 0xDA
JPEG_METADATA = {*range(0xE0, 0xEE), 0xEF, 0xFE}  # application segments but for Adobe's, on colors; comments
# Entry of EXIF data in the item table of HEIC and AVIF: "infe", version and flags, two numbers, type.
EXIF_ITEM = re.compile(rb"(infe.{8})Exif", re.DOTALL)


def strip_metadata(data: bytes) -> bytes:
    """Return an image file without metadata but for the orientation, unchanged if the format is not supported.

    Pillow rejects files for metadata that is damaged, truncated or too large, whatever the state of their pixels.
    The pixels of JPEG, PNG, WebP, HEIC and AVIF are copied unchanged.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _strip_jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return _strip_png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _strip_webp(data)
    if data[4:8] == b"ftyp":  # the orientation is a property of the image
        return EXIF_ITEM.sub(rb"\1skip", data)
    return data


def _strip_jpeg(data: bytes) -> bytes:
    parts, offset = [data[:2]], 2
    while offset + 4 <= len(data) and data[offset] == 0xFF and data[offset + 1] != JPEG_START_OF_SCAN:
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if data[offset + 1] not in JPEG_METADATA or data[offset + 4 : offset + 8] == b"Exif":
            parts.append(data[offset:end])
        offset = end
    return b"".join([*parts, data[offset:]])


def _strip_png(data: bytes) -> bytes:
    parts, offset = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if kind == b"IDAT" and end > len(data):
            return b"".join([*parts, data[offset:]])  # truncated pixels
        chunk = data[offset:end]
        is_valid = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4])) or kind != b"eXIf"
        if kind in PNG_CHUNKS and is_valid:
            parts.append(chunk)
        offset = end
    return b"".join([*parts, struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))])


def _strip_webp(data: bytes) -> bytes:
    parts, offset = [b"WEBP"], 12
    flags = WEBP_PROFILE_FLAG | WEBP_XMP_FLAG | WEBP_EXIF_FLAG
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, offset)
        end = offset + 8 + length + length % 2
        is_complete = end <= len(data)
        if kind in WEBP_CHUNKS and (is_complete or kind != b"EXIF"):
            parts.append(data[offset:end])
            flags &= ~WEBP_EXIF_FLAG if kind == b"EXIF" else ~0
        offset = end
    if len(parts) > 1 and parts[1].startswith(b"VP8X"):
        parts[1] = parts[1][:8] + bytes([parts[1][8] & ~flags]) + parts[1][9:]
    content = b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content
