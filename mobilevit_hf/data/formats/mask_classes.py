"""Class names, values and colors of masks, from files such as `classes.txt`, `labelmap.txt` or `id2label.json`."""

import csv
import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import yaml

from .folder import DataFolder, text_encoding

MAX_DEPTH = 3  # of the file in the dataset's folder
MAX_BYTES = 2**20
# Letters and digits of the names of files with classes, without suffix.
FILE_STEMS = {
    *("classes", "classnames", "class", "classdict", "classmap", "classcolors", "labels", "labelnames", "labelmap"),
    *("labelcolors", "labelcolor", "labelclassdict", "names", "categories", "codes", "palette", "colormap", "colors"),
    *("id2label", "label2id", "id2color", "objclasstomachinecolor", "objectinfo150", "objnames", "obj", "meta"),
    *("config", "data", "dataset"),
}
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".pbtxt", ".yaml", ".yml", ".names")
NAME_COLUMNS = ("name", "class", "classname", "label", "labelname", "category", "title")
NUMBER_COLUMNS = ("pixelvalue", "value", "id", "index", "idx", "classid", "labelid", "pixel", "number")
COLOR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
# Names of what is annotated as not to be learned.
IGNORED_NAMES = {
    *("unlabelled", "unlabeled", "void", "ignore", "ignored", "ignoreregion", "ignorelabel", "dontcare", "nodata"),
}
CVAT_ROW = re.compile(r"^(?P<name>[^:]+):(?P<color>\d+,\s*\d+,\s*\d+):[^:]*:[^:]*$")
COLOR_NAME_ROW = re.compile(r"^(?P<color>\d+[\s,]+\d+[\s,]+\d+)[\s,:]+(?P<name>\D.*)$")
NAME_COLOR_ROW = re.compile(r"^(?P<name>.*\D)[\s,:;]+[\[(]?(?P<color>\d+[\s,]+\d+[\s,]+\d+)[\])]?$")
NUMBER_COLOR_ROW = re.compile(r"^(?P<number>\d+)[\s,:]+(?P<name>[^\d\s,].*?)[\s,:]+(?P<color>\d+[\s,]+\d+[\s,]+\d+)$")
NUMBER_ROW = re.compile(r"^(?P<number>\d+)\s*[\s,:;=\t]\s*(?P<name>\D.*)$")
ROW_PATTERNS = (CVAT_ROW, NUMBER_COLOR_ROW, COLOR_NAME_ROW, NAME_COLOR_ROW, NUMBER_ROW)
MAX_NUMBERS = 256  # lines of numbers that may be names of classes
ITEM = re.compile(r"item\s*\{(.*?)\}", re.DOTALL)


class ClassRow(NamedTuple):
    """A class of a file, in the order of the file."""

    name: str
    number: int | None = None  # value in masks, None if the file has no values
    color: int | None = None  # 0xRRGGBB, None if the file has no colors

    @property
    def is_ignored(self) -> bool:
        """Whether the name says that its pixels are not to be learned."""
        return re.sub(r"[\W_]", "", self.name.lower()) in IGNORED_NAMES


def find_classes(folder: DataFolder) -> tuple[list[ClassRow], str]:
    """Return the classes of the file next to the masks that names them, and its name; ([], "") if there is none.

    Of several files, one with colors comes first, then the outermost.
    """
    found = []
    for suffix in SUFFIXES:
        for name in folder.files_by_suffix().get(suffix, ()):
            stem = re.sub(r"[\W_]", "", posixpath.basename(name).lower().removesuffix(suffix))
            if stem in FILE_STEMS and name.count("/") < MAX_DEPTH and (rows := _read(folder, name)):
                has_colors = all(row.color is not None for row in rows)
                found.append((not has_colors, name.count("/"), SUFFIXES.index(suffix), name, rows))
    if not found:
        return [], ""
    *_, name, rows = min(found, key=lambda entry: entry[:4])
    return rows, name


def _read(folder: DataFolder, name: str) -> list[ClassRow]:
    """Return the classes of a file, none if it doesn't name classes."""
    path = folder.path(name)
    try:
        with open(path, encoding=text_encoding(path)) as file:
            text = file.read(MAX_BYTES)
        rows = parse_classes(text, posixpath.splitext(name)[1].lower())
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError, csv.Error):
        return []
    names = [row.name for row in rows]
    numbers = [row.number for row in rows if row.number is not None]
    is_valid = len(set(names)) == len(names) and len(set(numbers)) == len(numbers) and all(names)
    return rows if is_valid and len(numbers) in (0, len(rows)) else []


def parse_classes(text: str, suffix: str) -> list[ClassRow]:
    """Parse the content of a file with a suffix of `SUFFIXES`, [] if it doesn't name classes."""
    if suffix == ".json":
        return _parse_value(json.loads(text))
    if suffix in (".yaml", ".yml"):
        content = yaml.safe_load(text)
        return _parse_value(content["names"]) if isinstance(content, dict) and "names" in content else []
    if suffix == ".pbtxt":
        items = [dict(re.findall(r"(\w+)\s*:\s*['\"]?([^'\"\n]+)", item)) for item in ITEM.findall(text)]
        return [ClassRow((i.get("display_name") or i["name"]).strip(), int(i["id"])) for i in items if "id" in i]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rows = [line for line in lines if not line.startswith("#")]
    return _parse_table(rows) or _parse_rows(rows) or _parse_names(lines)


def _parse_table(lines: Sequence[str]) -> list[ClassRow]:
    """Parse rows under a header with a column of names."""
    if not lines:
        return []
    delimiter = next((mark for mark in "\t,;" if mark in lines[0]), None)
    if delimiter is None:
        return []
    header, *rows = csv.reader(lines, delimiter=delimiter)
    columns = [re.sub(r"[\W_]", "", cell.lower()) for cell in header]
    name = next((columns.index(column) for column in NAME_COLUMNS if column in columns), None)
    number = next((columns.index(column) for column in NUMBER_COLUMNS if column in columns), None)
    colors = next(([columns.index(c) for c in part] for part in COLOR_COLUMNS if set(part) <= set(columns)), None)
    color = next((columns.index(column) for column in ("color", "rgb", "colorrgb") if column in columns), None)
    if name is None or (number is colors is color is None):
        return []
    return [
        ClassRow(
            row[name].strip(),
            None if number is None else int(row[number]),
            _parse_color([row[i] for i in colors]) if colors else None if color is None else _parse_color(row[color]),
        )
        for row in rows
        if len(row) == len(header)
    ]


def _parse_rows(lines: Sequence[str]) -> list[ClassRow]:
    """Parse lines of a name with a number or a color."""
    for pattern in ROW_PATTERNS:
        matches = [pattern.match(line) for line in lines]
        if lines and all(matches):
            parts = [match.groupdict() for match in matches if match]
            return [
                ClassRow(
                    part["name"].strip(" \t,:;\"'"),
                    int(part["number"]) if part.get("number") else None,
                    _parse_color(part["color"]) if part.get("color") else None,
                )
                for part in parts
            ]
    return []


def _parse_names(lines: Sequence[str]) -> list[ClassRow]:
    """Parse lines with a name, which may be a number, or start with `#` but for `# ` of a comment."""
    names = [line for line in lines if not re.match(r"#(\s|$)", line)]
    if len(names) > MAX_NUMBERS and all(map(str.isdigit, names)):
        return []  # numbers of something else
    if names and names[0] == str(len(names) - 1):  # the number of classes
        names = names[1:]
    return [ClassRow(name.strip("\"'")) for name in names]


def _parse_value(content: Any) -> list[ClassRow]:
    """Parse the classes of JSON or YAML."""
    if isinstance(content, list):
        return [_parse_entry(entry) for entry in content]
    if not isinstance(content, dict):
        return []
    for key in ("id2label", "categories", "classes", "labels", "names", "label2id"):
        if isinstance(content.get(key), dict | list):
            return _parse_value(content[key])
    rows = []
    for key, value in content.items():
        is_number = str(key).isdigit()
        if isinstance(value, dict):
            row = _parse_entry({"name": key} | value)
            rows.append(row._replace(number=int(key)) if is_number and row.number is None else row)
        elif is_number and isinstance(value, str):
            rows.append(ClassRow(value.strip(), int(key)))
        elif isinstance(value, int):
            rows.append(ClassRow(str(key), value))
        else:
            rows.append(ClassRow(str(key), color=_parse_color(value)))
    return sorted(rows, key=lambda row: (row.number is None, row.number or 0))


def _parse_entry(entry: Any) -> ClassRow:
    if not isinstance(entry, dict):
        return ClassRow(str(entry).strip())
    name = next((entry[key] for key in ("name", "title", "label", "readable") if entry.get(key) is not None), "")
    number = next(
        (entry[key] for key in ("id", "value", "index", "label_id") if isinstance(entry.get(key), int)), None
    )
    color = next((entry[key] for key in ("color", "color_rgb", "rgb") if entry.get(key)), None)
    is_supervisely = "shape" in entry  # its ids are those of a database
    return ClassRow(
        str(name).strip(), None if is_supervisely else number, None if color is None else _parse_color(color)
    )


def _parse_color(value: Any) -> int:
    """Return a color, `#RRGGBB` or three numbers, as 0xRRGGBB."""
    if isinstance(value, str) and (match := re.fullmatch(r"#([0-9a-fA-F]{6})", value.strip())):
        return int(match[1], 16)
    parts: Iterable[Any] = re.findall(r"\d+", value) if isinstance(value, str) else value
    red, green, blue = map(int, list(parts)[:3])
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"got color {value!r}, expected three values of 0..255")
    return red << 16 | green << 8 | blue
