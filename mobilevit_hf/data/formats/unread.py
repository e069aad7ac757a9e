"""Find annotations that no format reads: those of other tools, and files named like the images."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..image_formats import IMAGE_SUFFIXES
from .folder import DataFolder, is_image_name

HEAD_BYTES = 2**16  # of a file that are searched
FILES_PER_DIRECTORY = 3  # of the same suffix that are searched
EXPORT = "Export COCO JSON, YOLO or Pascal VOC from it (for a classifier, CSV with file names and labels)."
CONVERT = "Convert it to COCO JSON, YOLO, Pascal VOC or, for a classifier, CSV with columns file_name and label."
BINARY = ("TFRecord", "MXNet", "MATLAB", "Excel")

# (tool, pattern of file names, pattern of the start of a file).
TOOLS = (
    ("Label Studio", r"\.json$", rb'"(?:result|completions)"\s*:'),
    ("Label Studio", r"\.json$", rb'"(?:annotator|(?:rectangle|polygon|keypoint|brush)labels)"\s*:'),
    ("Label Studio", r"\.csv$", rb"(?:rectangle|polygon|keypoint|brush)labels"),
    ("LabelMe", r"\.json$", rb'"shapes"\s*:'),
    ("VGG Image Annotator", r"\.json$", rb'"(?:_via_settings|region_attributes|shape_attributes)"\s*:'),
    ("VGG Image Annotator", r"\.csv$", rb"region_shape_attributes"),
    ("Datumaro", r"\.json$", rb'"(?:dm_format_version|items)"\s*:'),
    ("Supervisely", r"\.json$", rb'"classTitle"\s*:'),
    ("CreateML", r"\.json$", rb'"coordinates"\s*:'),
    ("Scalabel", r"\.json$", rb'"box2d"\s*:'),
    ("Labelbox", r"\.(?:nd)?json$", rb'"(?:data_row|Labeled Data)"\s*:'),
    ("CVAT", r"\.xml$", rb"<image\s[^>]*\bid="),
    ("TFRecord", r"\.(?:tfrecords?|tfrec|record)(?:-\d+.*)?$", None),
    ("MXNet", r"\.(?:rec|lst)$", None),
    ("MATLAB", r"\.mat$", None),
    ("Excel", r"\.xlsx?$", None),
)
ANNOTATION_NAME = re.compile(r"\.(?:(?:nd)?jsonl?|manifest|xml|txt|csv|tsv)$")
SUBMISSION = "submission"  # in the names of files of a competition, whose labels are examples
YOLO_ROW = re.compile(rb"\s*\d+(?:\s+[\d.eE+-]+){4,}\s*(?:\n|$)")


@dataclass(frozen=True)
class UnreadAnnotations:
    """Annotation files of one kind, and what to do about them."""

    names: Sequence[str]
    kind: str
    action: str
    is_certain: bool = True  # whether they annotate the images of the folder

    def __str__(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{more} ({self.kind})"


def find_unread(folder: DataFolder) -> list[UnreadAnnotations]:
    """Return the annotations of other tools, and files that are named like the images or name them."""
    images, by_group = [], defaultdict(list)
    for suffix, names in folder.files_by_suffix().items():
        if suffix in IMAGE_SUFFIXES:
            images += names
        else:
            for name in names:
                by_group[posixpath.dirname(name), suffix].append(name)
    stems = {posixpath.splitext(posixpath.basename(name))[0] for name in images} if by_group else set()
    found: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for names in by_group.values():
        if identified := _identify(folder, names, stems):
            found[identified] += names
    return [UnreadAnnotations(sorted(names), *identified) for identified, names in found.items()]


def identify_tool(folder: DataFolder, name: str) -> str | None:
    """Return the tool that wrote a file, None if it is unknown."""
    matching = [(tool, content) for tool, pattern, content in TOOLS if re.search(pattern, name.lower())]
    head = _head(folder, name) if any(content for _, content in matching) else b""
    return next((tool for tool, content in matching if content is None or re.search(content, head)), None)


def _identify(folder: DataFolder, names: list[str], stems: set[str]) -> tuple[str, str, bool] | None:
    """Return kind, action and certainty of files of the same directory and suffix."""
    for name in names[:FILES_PER_DIRECTORY]:
        if tool := identify_tool(folder, name):
            return tool, CONVERT if tool in BINARY else EXPORT, tool not in BINARY
    texts = [name for name in names[:FILES_PER_DIRECTORY] if name.lower().endswith(".txt")]
    has_rows = any(YOLO_ROW.match(_head(folder, name)) for name in texts)
    if not stems:
        return ("rows of numbers as in YOLO", "Add the images.", False) if has_rows else None
    if not ANNOTATION_NAME.search(names[0].lower()) or SUBMISSION in names[0].lower():
        return None
    matching = [name for name in names if posixpath.splitext(posixpath.basename(name))[0] in stems]
    if matching and 2 * len(matching) >= len(names):
        if YOLO_ROW.match(_head(folder, matching[0])):
            return "rows of numbers as in YOLO", "Add their class names as classes.txt or data.yaml.", True
        return "named like the images", "Convert them to COCO JSON, YOLO or Pascal VOC.", True
    if len(names) <= FILES_PER_DIRECTORY:
        words = re.split(r"""[\s"'/\\,;:<>]+""", _head(folder, names[0]).decode(errors="replace"))
        if len(stems & {_stem(word) for word in words}) > 1:
            return "names the images", CONVERT, False
    return ("rows of numbers as in YOLO", "Give each label file the name of its image.", False) if has_rows else None


def _stem(word: str) -> str:
    return posixpath.splitext(word)[0] if is_image_name(word) else word


def _head(folder: DataFolder, name: str) -> bytes:
    with open(folder.path(name), "rb") as file:
        return file.read(HEAD_BYTES)
