"""CSV and text files with one row per image or box, at any level of the folder, such as `labels.csv`."""

import csv
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ..types import Dataset
from . import metadata
from .annotations import INVALID_BOX, AnnotatedImage, Annotation, make_dataset
from .folder import SPLIT_NAMES, DataFolder, is_image_name, text_encoding
from .lookup import FileIndex, Reference, match_files, split_of, split_of_file
from .unread import SUBMISSION

TASKS = ("image-classification", "object-detection")
SUFFIXES = (".csv", ".tsv", ".txt")
MAX_GROUP = 20  # files of the same suffix in a directory; more belong to one image each
SAMPLE_ROWS = 50  # from which the columns are inferred
FEW_ROWS = 10  # of which each may have a class of its own
MAX_LABEL = 100  # characters; a longer text is a description

# Normalized names of columns, names of classes before their numbers.
LABEL_COLUMNS = (
    *("labelname", "classname", "categoryname", "class", "label", "category", "labels", "classes", "categories"),
    *("breed", "species", "variety", "diagnosis", "dx", "disease", "finding", "pathology", "choice", "target"),
    *("classid", "labelid", "categoryid"),
)
SPLIT_COLUMNS = ("split", "set", "subset", "dataset", "datasplit", "partition", "usage")
BOX_COLUMNS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
    ("xtl", "ytl", "xbr", "ybr"),
)
# Of boxes that are not read, as x and y may be a corner or the center.
POINT_COLUMNS = (("x", "y"), ("cx", "cy"), ("xcenter", "ycenter"), ("left", "top"))
EXTENT_COLUMNS = (("w", "h"), ("width", "height"))
BOX_TEXT_COLUMNS = ("bbox", "box", "boundingbox")  # of "[x, y, width, height]"
NO_LABEL_COLUMNS = ("source",)
MASK_COLUMNS = ("rlemask", "rle", "encodedpixels", "encodedmask")  # of run lengths
ONLY_CLASS = "object"  # of boxes without classes
SIZE_COLUMNS = ("width", "height")
EXPECTED_COLUMNS = "Name its columns file_name and label, and the corners of boxes xmin, ymin, xmax and ymax"
HEADLESS_BOX = ("image", "x1", "y1", "x2", "y2", "class")  # keras-retinanet's format


@dataclass
class Table:
    """A file whose rows name images of an index, and its columns; `targets` are several for one-hot labels."""

    name: str
    index: FileIndex
    columns: Sequence[str]
    has_header: bool
    image: int
    targets: list[int] = field(default_factory=list)
    box: list[int] = field(default_factory=list)  # x1, y1, x2, y2; or one with the text [x, y, width, height]
    size: list[int] = field(default_factory=list)
    has_one_class: bool = False  # whether no column may be a class of its boxes
    split: int | None = None

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line number and the cells of each row."""
        for number, row in enumerate(read_rows(self.index.folder, self.name), start=1):
            if number > self.has_header and any(row):
                yield number, row + [""] * (len(self.columns) - len(row))

    def match_images(self) -> dict[str, tuple[str | None, str]]:
        """Return the image of each value in the column of images, or None and the reason."""
        return _match(self.index, self.name, [row[self.image] for _, row in self.rows()])

    def label(self, row: list[str]) -> str:
        """Return the label of a row, empty if it has none."""
        if not self.targets:
            return ONLY_CLASS
        if len(self.targets) == 1:
            return row[self.targets[0]]
        chosen = [self.columns[index] for index in self.targets if _is_one(row[index])]
        return chosen[0] if len(chosen) == 1 else ""


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is a file with a column of images and a column of labels."""
    return bool(find_tables(folder)[0])


def find_tables(folder: DataFolder) -> tuple[list[Table], list[Table]]:
    """Return the files that name images of the folder: those with labels, and those without."""
    candidates = _candidates(folder)
    if not candidates or metadata.has_annotations(folder):
        return [], []
    index = FileIndex.of_images(folder)
    tables = [table for name in candidates if (table := _infer_table(folder, name, index))]
    readable = [table for table in tables if table.targets or table.has_one_class]
    return readable, [table for table in tables if table not in readable]


def agree_with_folders(tables: Sequence[Table]) -> bool:
    """Return whether labels are one to one with the folders of their images, or their column is not named so."""
    if any(table.box for table in tables):
        return False
    if not any(_is_label_column(table.columns[number]) for table in tables for number in table.targets[:1]):
        return True
    labels, folders = defaultdict(set), defaultdict(set)
    for table in tables:
        images = table.match_images()
        for _, row in table.rows():
            if name := images[row[table.image]][0]:
                class_folder = posixpath.basename(posixpath.dirname(name))
                labels[class_folder].add(table.label(row))
                folders[table.label(row)].add(class_folder)
    return all(len(values) == 1 for values in (*labels.values(), *folders.values()))


def read(folder: DataFolder, file: str | None = None) -> Dataset:
    """Read CSV files, or text files with an image and a label per line.

    The column of images is the one whose values are paths or names of images in the folder, with or without suffix.
    Labels are in a column named `label`, `class` or the like, in the only other column, or in a column per class with
    a single 1 per row. Columns such as `xmin`, `ymin`, `xmax` and `ymax`, or a column `bbox` of `[x, y, width,
    height]`, are boxes, in pixels or, if none is above 1, relative to the image size; without any column that may be
    their class, they are of one class. The split of a row is that of a column `split`, of the file's name or of the
    image's folder. Classes are those of the training split, in alphabetical or numerical order.

    Args:
        folder: Folder of the dataset.
        file: A single file, instead of all.

    Raises:
        ValueError: If no file has a column of images and one of labels.
    """
    tables, unclear = find_tables(folder)
    if file:
        tables, unclear = ([table for table in part if table.name == file] for part in (tables, unclear))
    if not tables:
        columns = "".join(f" {table.name} has the columns {', '.join(table.columns)}." for table in unclear[:1])
        raise ValueError(
            f"{folder.root}{f'/{file}' if file else ''}: got no table of labels, expected a column with the file "
            f"names of images and a column `label`.{columns} {EXPECTED_COLUMNS}."
        )
    tables = _select_tables(folder, tables)
    is_detection = any(table.box for table in tables)
    if is_detection and not all(table.box for table in tables):
        names = ", ".join(table.name for table in tables)
        raise ValueError(f"{folder.root}: got tables with and without boxes: {names}. Pass one file instead.")
    images = _read_images(folder, tables)
    chosen = images.get("train") or {name: image for part in images.values() for name, image in part.items()}
    keys = {annotation.key for image in chosen.values() for annotation in image.annotations} - {None}
    classes = tuple(sorted(map(str, keys), key=lambda key: (0, int(key), "") if key.isdecimal() else (1, 0, key)))
    labels = {name: number for number, name in enumerate(classes)}
    parts = {split: images[split].values() for split in ("train", "validation", "test") if split in images}
    is_relative = is_detection and _are_relative(images)
    return make_dataset(folder, parts, labels, classes, "csv", is_detection=is_detection, is_relative=is_relative)


def read_rows(folder: DataFolder, name: str) -> Iterator[list[str]]:
    """Yield the stripped cells of each line; a line of a text file ends with its label."""
    try:
        path = folder.path(name)
        with open(path, encoding=text_encoding(path), errors="replace", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t|", key=first.count)
            if first.count(delimiter):
                for row in csv.reader(file, delimiter=delimiter, skipinitialspace=True):
                    yield [cell.strip() for cell in row]
            else:
                for line in file:
                    yield line.strip().rsplit(maxsplit=1)
    except (OSError, csv.Error) as error:
        raise ValueError(f"{folder.root / name} can't be read: {error}") from error


def _candidates(folder: DataFolder) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for suffix in SUFFIXES:
        for name in folder.files_by_suffix().get(suffix, ()):
            if SUBMISSION not in name.lower():
                groups[posixpath.dirname(name), suffix].append(name)
    return sorted(name for names in groups.values() if len(names) <= MAX_GROUP for name in names)


def _infer_table(folder: DataFolder, name: str, index: FileIndex) -> Table | None:
    """Return the table in a file, None if no column names at least half of its images."""
    rows = [row for row in islice(read_rows(folder, name), SAMPLE_ROWS) if any(row)]
    width = max(map(len, rows), default=0)
    rows = [row + [""] * (width - len(row)) for row in rows]
    matches = [_match(index, name, [row[column] for row in rows]) for column in range(width)]
    found = [[row for row in rows if matches[column][row[column]][0]] for column in range(width)]
    if not any(found):
        return None
    # Numbers may equal the names of some images: file names first, then the column that names the most images.
    scores = [
        (sum(is_image_name(row[column]) for row in part), len({row[column] for row in part}))
        for column, part in enumerate(found)
    ]
    image = scores.index(max(scores))
    if 2 * len(found[image]) < len(rows) - 1:
        return None
    has_header = matches[image][rows[0][image]][0] is None
    if has_header:
        columns, rows = rows[0], rows[1:]
    else:
        columns = HEADLESS_BOX if width == len(HEADLESS_BOX) else [f"column {n + 1}" for n in range(width)]
    table = Table(name, index, columns, has_header, image)
    _infer_columns(table, rows)
    return table


def _match(index: FileIndex, table: str, values: Sequence[str]) -> dict[str, tuple[str | None, str]]:
    """Return the image of each path or name in a table, or None and the reason."""
    unique = [value for value in dict.fromkeys(values) if value]
    references = []
    for path in (value.replace("\\", "/") for value in unique):
        references.append(Reference([posixpath.join(posixpath.dirname(table), path), path], [path]))
    matches = match_files(index, references, split=split_of_file(table))
    return {"": (None, "no file name"), **dict(zip(unique, matches, strict=True))}


def _infer_columns(table: Table, rows: list[list[str]]) -> None:
    places = {_normalize(column): number for number, column in enumerate(table.columns)}
    places = {column: number for column, number in places.items() if number != table.image}
    boxes = [names for names in BOX_COLUMNS if set(names) <= places.keys()]
    texts = [places[column] for column in BOX_TEXT_COLUMNS if column in places]
    texts = [n for n in texts if rows and all(len(_numbers(row[n])) == 4 for row in rows if row[n])]
    table.box = [places[column] for column in boxes[0]] if boxes else texts[:1]
    table.size = [places[column] for column in SIZE_COLUMNS if column in places]
    table.split = next((places[column] for column in SPLIT_COLUMNS if column in places), None)
    if not table.box and _has_unclear_boxes(places):
        return
    named = [places[column] for column in LABEL_COLUMNS if column in places]
    masks = [places[column] for column in MASK_COLUMNS if column in places]
    used = {table.image, table.split, *table.box, *table.size, *masks}
    others = [number for number, column in enumerate(table.columns) if number not in used and column]
    one_hot = [n for n in others if rows and all(re.fullmatch(r"[01](\.0+)?", row[n]) for row in rows)]
    if named and (table.box or _are_labels(rows, named[0])):
        table.targets = named[:1]
    elif len(others) == 1 and not table.box and len(rows) > 1 and _are_labels(rows, others[0]):
        table.targets = others
    elif len(one_hot) > 1 and all(sum(_is_one(row[number]) for number in one_hot) == 1 for row in rows):
        table.targets = one_hot
    elif table.box:
        others = [n for n in others if _normalize(table.columns[n]) not in NO_LABEL_COLUMNS]
        table.has_one_class = not any(_are_labels(rows, n) and not _are_numbers(rows, n) for n in others)


def _has_unclear_boxes(columns: Iterable[str]) -> bool:
    names = {re.sub("^b?box", "", column) for column in columns}
    return all(any(set(pair) <= names for pair in pairs) for pairs in (POINT_COLUMNS, EXTENT_COLUMNS))


def _normalize(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _is_label_column(column: str) -> bool:
    return _normalize(column) in LABEL_COLUMNS


def _are_labels(rows: list[list[str]], column: int) -> bool:
    """Return whether the values of a column may be classes, and not an index, fractions, descriptions or files."""
    values = [row[column] for row in rows]
    is_text = any(len(value) > MAX_LABEL or value.startswith(("[", "{")) for value in values)
    is_fraction = any(re.fullmatch(r"-?\d*\.\d*[1-9]\d*", value) for value in values)
    is_index = len(set(values)) == len(values) and (len(values) > FEW_ROWS or all(map(str.isdecimal, values)))
    is_file = all(map(is_image_name, values))  # such as the masks of a list of images
    return any(values) and not (is_text or is_fraction or is_index or is_file)


def _are_numbers(rows: list[list[str]], column: int) -> bool:
    return all(re.fullmatch(r"-?[\d.]+", row[column]) for row in rows if row[column])


def _numbers(text: str) -> list[float]:
    """Return the numbers in the text of a list, such as `[1.0, 2]`; none if it has other text."""
    words = re.split(r"[\s,;]+", text.strip("[]() "))
    return list(map(float, words)) if all(re.fullmatch(r"-?\d+(\.\d*)?(e[-+]?\d+)?", word) for word in words) else []


def _is_one(value: str) -> bool:
    return re.fullmatch(r"1(\.0+)?", value) is not None


def _select_tables(folder: DataFolder, tables: list[Table]) -> list[Table]:
    """Return the tables of splits, or else the only table."""
    with_split = [table for table in tables if split_of_file(table.name) or table.split is not None]
    rest = [table for table in tables if table not in with_split]
    if rest and any(split_of_file(table.name) in (None, "train") for table in with_split):
        folder.notes.append(f"Skipped {', '.join(t.name for t in rest)}, next to {with_split[0].name} for a split.")
        return with_split
    if len(rest) > 1:
        names = ", ".join(table.name for table in rest)
        raise ValueError(f"{folder.root}: got several tables of labels, {names}. Pass one of the files instead.")
    return tables


def _read_images(folder: DataFolder, tables: list[Table]) -> dict[str, dict[str, AnnotatedImage]]:
    """Return the annotated images by split and name."""
    images: dict[str, dict[str, AnnotatedImage]] = {}
    for table in tables:
        names = ", ".join(f"`{table.columns[number]}`" for number in table.targets[:3])
        names += f" and {len(table.targets) - 3} more" if len(table.targets) > 3 else ""
        if table.has_one_class:
            names = f"no column: all boxes are of one class, {ONLY_CLASS}"
        box = f" boxes [x, y, width, height] from `{table.columns[table.box[0]]}`," if len(table.box) == 1 else ""
        image = table.columns[table.image]
        folder.notes.append(f"Read {table.name}: images from `{image}`,{box} labels from {names}.")
        matches = table.match_images()
        for number, row in table.rows():
            name, reason = matches[row[table.image]]
            if name is None:
                folder.report(row[table.image], "missing image", f"line {number} of {table.name}: {reason}")
                continue
            part = images.setdefault(_row_split(table, row, name), {})
            if table.box:
                _add_box(table, row, part.setdefault(name, AnnotatedImage(name)))
            elif reason := _add_label(table.label(row), name, part):
                folder.report(name, "unreadable annotation", f"line {number} of {table.name}: {reason}")
    unlisted = sorted(set(tables[0].index.names).difference(*images.values()))
    if unlisted:
        folder.notes.append(f"Skipped {len(unlisted)} images in no row, such as {unlisted[0]}.")
    return images


def _add_label(label: str, name: str, images: dict[str, AnnotatedImage]) -> str | None:
    """Add an image with a label, or return the reason if there is none or another one."""
    if not label:
        return "no label, or several"
    image = images.setdefault(name, AnnotatedImage(name, [Annotation(label)]))
    other = image.annotations[0].key
    return None if other == label else f"label {label!r}, but {other!r} in another row"


def _row_split(table: Table, row: list[str], image: str) -> str:
    if table.split is not None and (split := SPLIT_NAMES.get(row[table.split].lower())):
        return split
    return split_of_file(table.name) or split_of(posixpath.dirname(image)) or "train"


def _add_box(table: Table, row: list[str], image: AnnotatedImage) -> None:
    """Add the box of a row; a row without coordinates is an image without objects."""
    values = [row[number] for number in table.box]
    if not any(values):
        return
    try:
        box = tuple(map(float, values)) if len(values) == 4 else _corners(values[0])
        size = tuple(float(row[number]) for number in table.size)
    except ValueError:
        box, size = INVALID_BOX, ()
    image.annotations.append(Annotation(table.label(row) or None, box))
    if len(size) == 2 and min(size) > 0:
        image.size = size


def _corners(text: str) -> tuple[float, ...]:
    """Return (x1, y1, x2, y2) of the text of a list (x, y, width, height)."""
    x, y, width, height = _numbers(text)
    return x, y, x + width, y + height


def _are_relative(images: dict[str, dict[str, AnnotatedImage]]) -> bool:
    boxes = (a.box for part in images.values() for image in part.values() for a in image.annotations)
    return all(max(box) <= 1 for box in boxes if box is not INVALID_BOX)
