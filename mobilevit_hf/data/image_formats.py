"""Formats of images that are read, the reasons for those that are not, and the search for image files."""

import contextlib
import glob
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

with contextlib.suppress(ImportError):  # no wheel for this platform: HEIC files are counted as not read
    import pillow_heif

    pillow_heif.register_heif_opener()

# Formats that Pillow may detect from the content of any file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "ICO", "ICNS", "QOI", "DDS")

# Formats of Pillow that are never read: for PostScript it would start another program, others hold no photos or share
# their suffix with other kinds of files.
_EXCLUDED_FORMATS = {
    *("EPS", "WMF", "PSD", "PDF", "MPEG", "FLI", "FITS", "HDF5", "GRIB", "BUFR", "MCIDAS", "SPIDER", "IPTC", "PALM"),
    *("GBR", "BLP", "FTEX", "XVTHUMB", "IM", "MSP", "PCD", "PIXAR"),
}

# Suffixes that browsers and scanners give to JPEG files, and that Pillow doesn't register.
_OTHER_SUFFIXES = dict.fromkeys((".jif", ".pjp", ".pjpeg"), "JPEG")

# Format by suffix. Formats outside of `FORMATS`, whose content has a short signature or none, are tried only for files
# of their own suffix: TGA would accept arbitrary bytes.
FORMATS_BY_SUFFIX = {
    suffix: image_format
    for suffix, image_format in (Image.registered_extensions() | _OTHER_SUFFIXES).items()
    if image_format not in _EXCLUDED_FORMATS
}
IMAGE_SUFFIXES = frozenset(FORMATS_BY_SUFFIX)

_REASONS = {
    "camera raw; develop it to JPEG": (
        ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw "
        ".rw2 .rwl .sr2 .srf .srw .x3f"
    ),
    "video or animation; extract its frames": (
        ".3gp .avi .flc .fli .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv"
    ),
    "vector graphics; render it to PNG": ".ai .cdr .emf .eps .ps .svg .svgz .wmf",
    "document; export its images": ".djvu .pdf",
    "layers of an image editor; export it to PNG": ".afphoto .kra .ora .psb .psd .xcf",
    "measurements of any range; convert it to 8-bit PNG": (
        ".bufr .czi .dcm .dicom .exr .fit .fits .grib .h5 .hdf .hdr .mha .mhd .nd2 .nii .nrrd .svs"
    ),
    "HEIC; install pillow-heif to read it": ".heic .heics .heif .heifs .hif",  # not reached if it is installed
    "not supported; convert it to PNG or JPEG": (
        ".blp .bpg .ftc .ftu .gbr .hdp .iim .im .jls .jng .jxl .jxr .mng .palm .pcd .pict .pxr .wbmp .wdp"
    ),
}
UNREAD_SUFFIXES = {
    suffix: reason
    for reason, suffixes in _REASONS.items()
    for suffix in suffixes.split()
    if suffix not in IMAGE_SUFFIXES
}


def describe_unread(names: Iterable[str]) -> str | None:
    """Describe the files with suffixes of images that are not read, by suffix; None if there are none."""
    by_suffix = defaultdict(list)
    for name in names:
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122, many names
        if suffix in UNREAD_SUFFIXES:
            by_suffix[suffix].append(name)
    if not by_suffix:
        return None
    counts = [
        f"{len(names)} {suffix} ({UNREAD_SUFFIXES[suffix]}), such as {names[0]}"
        for suffix, names in sorted(by_suffix.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return f"Skipped files that are not read as images: {'; '.join(counts)}."


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL."""
    return source.startswith(("http://", "https://"))


def find_images(sources: Iterable[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Resolve files, folders, glob patterns and URLs to images.

    Args:
        sources: Files of any suffix, http(s) URLs, glob patterns (`"photos/*.jpg"`, `**` for subfolders), or folders,
            of which all files below with a suffix in `IMAGE_SUFFIXES` are returned in alphabetical order.

    Returns:
        The unique paths and URLs in the order of the sources, the reason for each source without any image, and notes
        on the files in folders that are not read.
    """
    images: dict[str, None] = {}
    missing: dict[str, str] = {}
    notes: list[str] = []
    for source in sources:
        path = Path(source)
        if is_url(source) or path.is_file():
            images[source] = None
            continue
        if path.is_dir():
            files = [str(p) for p in sorted(path.rglob("*")) if p.is_file()]
            matches = [file for file in files if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES]  # noqa: PTH122
            unread = describe_unread(files)
            reason = "no images in this folder" + (f". {unread.rstrip('.')}" if unread else "")
            notes += [unread] if matches and unread else []
        else:
            matches = [match for match in sorted(glob.glob(source, recursive=True)) if os.path.isfile(match)]  # noqa: PTH207, PTH113
            reason = "no such file or folder"
        images.update(dict.fromkeys(matches))
        if not matches:
            missing[source] = reason
    return list(images), missing, notes
