"""Formats of images that are read, the reasons for those that are not, and the search for image files."""

import contextlib
import glob
import os
from collections.abc import Collection, Iterable, Iterator
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

VIDEO = "video or animation; extract its frames"
_REASONS = {
    "camera raw; develop it to JPEG": (
        ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw "
        ".rw2 .rwl .sr2 .srf .srw .x3f"
    ),
    VIDEO: (".3gp .avi .flc .fli .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv"),
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


class UnreadFiles:
    """Counts the files with suffixes of images that are not read."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, str]] = {}  # number and first name, by suffix

    def add(self, name: str) -> None:
        """Count a file, if it is one."""
        suffix = _suffix(name)
        if suffix in UNREAD_SUFFIXES:
            count, first = self._files.get(suffix, (0, name))
            self._files[suffix] = count + 1, first

    def describe(self) -> str | None:
        """Describe the files by suffix; None if there are none."""
        if not self._files:
            return None
        counts = [
            f"{count} {suffix} ({UNREAD_SUFFIXES[suffix]}), such as {first}"
            for suffix, (count, first) in sorted(self._files.items(), key=lambda item: (-item[1][0], item[0]))
        ]
        return f"Skipped files that are not read as images: {'; '.join(counts)}."


def describe_unread(names: Iterable[str]) -> str | None:
    """Describe the files with suffixes of images that are not read, by suffix; None if there are none."""
    unread = UnreadFiles()
    for name in names:
        unread.add(name)
    return unread.describe()


def describe_format(name: str) -> str | None:
    """Return why a file with this suffix is not read, None if it may be."""
    reason = UNREAD_SUFFIXES.get(_suffix(name))
    return reason and f"{_suffix(name)} is not read: {reason}"


def is_video(name: str) -> bool:
    """Return whether a file name has the suffix of a video."""
    return UNREAD_SUFFIXES.get(_suffix(name)) == VIDEO


def is_url(source: str) -> bool:
    """Return whether a source is an http(s) URL."""
    return source.startswith(("http://", "https://"))


def find_images(sources: Iterable[str], outputs: Iterable[Path] = ()) -> tuple[list[str], dict[str, str], list[str]]:
    """Resolve files, folders, glob patterns and URLs to images.

    Args:
        sources: Files of any suffix, http(s) URLs, glob patterns (`"photos/*.jpg"`, `**` for subfolders), or folders,
            of which all files below with a suffix in `IMAGE_SUFFIXES` are returned in alphabetical order; see
            `walk_files` for links.
        outputs: Folders for output, which are left out where they are inside a folder of the sources.

    Returns:
        The unique paths and URLs in the order of the sources; the reason for each video, and each source without
        any image; and notes on the other files in folders that are not read.
    """
    images: dict[str, str] = {}  # by their absolute path
    missing: dict[str, str] = {}
    notes: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_file() and is_video(source):
            missing[source] = describe_format(source) or ""
            continue
        if is_url(source) or path.is_file():
            images.setdefault(_identify(source), source)
            continue
        root, excluded = input_folder(source), [os.path.abspath(output) for output in outputs]  # noqa: PTH100
        excluded = [f"{folder}{os.sep}" for folder in excluded if folder.startswith(f"{root}{os.sep}")]
        if path.is_dir():
            files = [str(file) for file in sorted(map(Path, walk_files(str(path))))]
            files = [file for file in files if not _identify(file).startswith(tuple(excluded))]
            matches = [file for file in files if _suffix(file) in IMAGE_SUFFIXES]
            videos = {file: describe_format(file) or "" for file in files if is_video(file)}
            unread = describe_unread(file for file in files if file not in videos)
            reason = "no images in this folder" + (f". {unread.rstrip('.')}" if unread else "")
            notes += [unread] if matches and unread else []
            missing |= videos
        else:
            matches = [match for match in sorted(glob.glob(source, recursive=True)) if os.path.isfile(match)]  # noqa: PTH207, PTH113
            matches = [match for match in matches if not _identify(match).startswith(tuple(excluded))]
            videos, reason = {}, "no such file or folder"
        for match in matches:
            images.setdefault(_identify(match), match)
        if not matches and not videos:
            missing[source] = reason
    return list(images.values()), missing, notes


def walk_files(folder: str, excluded: Collection[str] = ()) -> Iterator[str]:
    """Yield the paths of the files below a folder in the order of the directories, without a list of them.

    A link to a folder outside is followed once, unless that folder contains this one. A broken link is a file, which
    can't be read.

    Args:
        folder: Path of the folder.
        excluded: Paths of folders below it that are left out.
    """
    pending, followed = [folder], [os.path.realpath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                is_link = entry.is_symlink()
                if is_link and os.path.isdir(entry.path):  # noqa: PTH112
                    target = os.path.realpath(entry.path)
                    is_followed = any(is_inside(target, other) for other in followed)
                    if entry.path not in excluded and not is_followed and not is_inside(followed[0], target):
                        followed.append(target)
                        pending.append(entry.path)
                elif is_link or entry.is_file():
                    yield entry.path
                elif entry.is_dir() and entry.path not in excluded:
                    pending.append(entry.path)


def is_inside(path: str, folder: str) -> bool:
    """Return whether a normalized path is that of a folder, or of a file below it."""
    return f"{path}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def input_folder(source: str) -> str:
    """Return the absolute path of a folder, or of the one that contains a file or all matches of a glob pattern."""
    path = Path(os.path.abspath(source))  # noqa: PTH100, links are not followed
    if path.is_dir():
        return str(path)
    parents = [parent for parent in path.parents if path.is_file() or not glob.has_magic(str(parent))]
    return str(parents[0])


def _identify(source: str) -> str:
    return source if is_url(source) else os.path.abspath(source)  # noqa: PTH100


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122, many names
