"""YOLO text files: `images/` next to `labels/`, one object per line; classes in `data.yaml` or `classes.txt`."""

import posixpath
import re
from itertools import islice
from typing import Any

import yaml

from ...tasks import TaskName
from ..types import Dataset
from .annotations import AnnotatedImage, make_splits, name_classes
from .folder import SPLIT_NAMES, DataFolder, is_image_name
from .lookup import FileIndex, Reference, match_files, split_of
from .maskfolder import TO_SEGMENT
from .painted import make_painted_dataset
from .yolo_rows import RowParser, parse_numbers

TASKS = ("object-detection", "image-segmentation")
# Files with a class name per line, the preferred ones first. labelImg writes the names that it offers to the last one.
CLASS_FILES = (
    re.compile(r"class(es|_names)?\.txt"),
    re.compile(r".*\.names"),
    re.compile(r"_darknet\.labels"),
    re.compile(r"predefined_classes\.txt"),
)
SPLIT_KEYS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
NO_VALUES = ("", "~", "null", "Null", "NULL", "None", "[]")
DESCRIPTION_KEYS = re.compile(r"^[\"']?(names|train|val|valid)[\"']?\s*[:=]", re.MULTILINE)
MAX_CHARACTERS = 2_000_000  # of a YAML or a label file
MAX_FILES = 200  # files of a kind that are read to recognize the format


def recognizes(folder: DataFolder) -> bool:
    """Return whether a file describes a YOLO dataset, or text files of the same names as images have its rows."""
    description = _find_description(folder)
    if description and len(set(DESCRIPTION_KEYS.findall(_read_text(folder, description)))) > 1:
        return True
    labels = FileIndex(folder, _label_files(folder))
    images = (name for name, kind in folder.walk() if kind == "file" and is_image_name(name)) if labels.names else ()
    stems = {posixpath.splitext(posixpath.basename(name))[0] for name in images}
    named = (name for name in labels.names if posixpath.basename(name)[: -len(".txt")] in stems)
    return any(_has_rows(folder, name) for name in islice(named, MAX_FILES))


def read(folder: DataFolder, file: str | None = None, task: TaskName = "object-detection") -> Dataset:
    """Read YOLO text files.

    See `RowParser` for their rows. Images with an empty label file (reported as a problem) or without one are
    background. Classes and splits are those of `data.yaml` or `obj.data`, or else of `classes.txt` or `obj.names`, and
    of lists (`train.txt`) or folders that are named like splits, such as `images/train`, `train/images` or
    `obj_train_data`. Without names, the numbers are the classes.

    Args:
        folder: Folder of the dataset.
        file: YAML file, instead of the one in the folder.
        task: Whether to read boxes, or polygons, which are painted to masks, see `make_painted_dataset`.

    Raises:
        ValueError: If classes, images, label files or, for masks, polygons are missing, or rows may be keypoints
            without a `kpt_shape`.
    """
    file = file or _find_description(folder)
    content = _load_description(folder, file) if file else {}
    names = _read_names(folder, file, content)
    labels = FileIndex(folder, _label_files(folder))
    images = _images_by_split(folder, labels, file, content)
    if not any(images.values()):
        raise ValueError(f"{folder.root}: got no images, expected images/train next to labels/train, or train/images.")
    label_files = _match_labels(labels, [name for part in images.values() for name in part])
    if not any(label_files.values()):
        advice = "" if names else " and data.yaml or classes.txt with the names"
        raise ValueError(
            f"{folder.root}: got no label files, expected labels/train/a.txt for images/train/a.jpg{advice}."
        )
    for split in [split for split, part in images.items() if not any(label_files[name] for name in part)]:
        if part := images.pop(split):
            folder.notes.append(f"None of the {len(part)} images of {split} has a label file: there is no such split.")
    _note_unmatched(folder, labels, images, label_files)
    is_segmentation = task == "image-segmentation"
    parser = RowParser(_keypoint_values(folder, file, content), keep_polygons=is_segmentation)
    annotated = {
        split: [image for name in part if (image := _read_image(folder, parser, name, label_files[name]))]
        for split, part in images.items()
    }
    _check_rows(folder, file, parser)
    if names is None:
        folder.notes.append("Got no data.yaml or classes.txt with class names: the numbers are the classes.")
        keys = (entry.key for part in annotated.values() for image in part for entry in image.annotations)
        classes, numbers = name_classes(keys)
    else:
        classes = tuple(names[number] for number in sorted(names))
        numbers = {number: label for label, number in enumerate(sorted(names))}
    if is_segmentation:
        if not any(entry.shape for part in annotated.values() for image in part for entry in image.annotations):
            raise ValueError(
                f"{folder.root}: got YOLO label files with boxes only, expected polygons. Export polygons or masks."
            )
        return make_painted_dataset(folder, annotated, classes, "yolo", labels=numbers, is_relative=True)
    if parser.has_polygons:
        folder.notes.append(f"The objects also have masks. {TO_SEGMENT}")
    splits = make_splits(folder, annotated, numbers, is_relative=True)
    return Dataset("object-detection", classes, splits, "yolo")


def _files(folder: DataFolder, *suffixes: str) -> list[str]:
    """Return the files with a suffix in all subfolders, those in fewer folders first."""
    names = [name for suffix in suffixes for name in folder.files_by_suffix().get(suffix, ())]
    return sorted(names, key=lambda name: (name.count("/"), name))


def _class_files(folder: DataFolder, pattern: re.Pattern) -> list[str]:
    names = _files(folder, ".txt", ".names", ".labels")
    return [name for name in names if pattern.fullmatch(posixpath.basename(name).lower())]


def _label_files(folder: DataFolder) -> list[str]:
    class_files = {name for pattern in CLASS_FILES for name in _class_files(folder, pattern)}
    return [name for name in _files(folder, ".txt") if name not in class_files]


def _has_rows(folder: DataFolder, name: str) -> bool:
    with open(folder.path(name), encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in islice(file, 100) if line.strip()), "")
    numbers = parse_numbers(first[:10_000]) or []
    return len(numbers) > 4 and numbers[0] % 1 == 0


def _read_text(folder: DataFolder, name: str, errors: str = "replace") -> str:
    with open(folder.path(name), encoding="utf-8-sig", errors=errors) as file:
        text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS and errors == "strict":
        raise ValueError(f"more than {MAX_CHARACTERS} characters")
    return text


def _find_description(folder: DataFolder) -> str | None:
    """Return the YAML file with class names, `data.yaml` first, or darknet's `obj.data`, by a search of its text."""
    names = _files(folder, ".yaml", ".yml", ".data")[:MAX_FILES]
    for name in sorted(names, key=lambda name: posixpath.basename(name) not in ("data.yaml", "obj.data")):
        if "names" in DESCRIPTION_KEYS.findall(_read_text(folder, name)):
            return name
    return None


def _load_description(folder: DataFolder, file: str) -> dict[str, Any]:
    """Return the content of a file with all scalars as text: `no` and `1.0` may be names of classes."""
    path = folder.root / file
    try:
        if file.endswith(".data"):
            pairs = (line.partition("=") for line in folder.read_lines(file))
            return {key.strip(): value.strip() for key, _, value in pairs}
        text = _read_text(folder, file, errors="strict")
        content = yaml.load(text, Loader=yaml.BaseLoader)  # which creates nothing but text
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "text"
        raise ValueError(f"{path}: got {kind}, expected a mapping with `names`, `train` and `val`.")
    return content


def _read_names(folder: DataFolder, file: str | None, content: dict[str, Any]) -> dict[int, str] | None:
    """Return the class names by number, None if there are none."""
    if file and isinstance(names := content.get("names"), str) and names:
        path = _resolve_entry(folder, file, None, names)
        if path and not folder.entries(path):
            return _parse_names(folder, path, _read_class_file(folder, path))
        if not any(_class_files(folder, pattern) for pattern in CLASS_FILES):
            raise ValueError(
                f"{folder.root / file}: got `names: {names}`, expected a list of names, or a file of them."
            )
    elif file:
        names = _parse_names(folder, file, content.get("names"))
        number = content.get("nc")
        if isinstance(number, str) and number.isdecimal() and int(number) != len(names):
            folder.notes.append(f"{file} has {len(names)} names and `nc: {number}`: the names are the classes.")
        return names
    for pattern in CLASS_FILES:
        if files := _class_files(folder, pattern):
            first, *others = files
            names = _read_class_file(folder, first)
            if other := next((other for other in others if _read_class_file(folder, other) != names), None):
                raise ValueError(
                    f"{folder.root}: got different names in {first} and {other}, expected the same numbers for the "
                    "same classes. Number them alike, and remove one file."
                )
            return _parse_names(folder, first, names)
    return None


def _read_class_file(folder: DataFolder, file: str) -> list[str]:
    try:
        return folder.read_lines(file, errors="strict")
    except ValueError as error:
        raise ValueError(f"{folder.root / file}: expected UTF-8 text ({error}). Save it in that encoding.") from error


def _parse_names(folder: DataFolder, file: str, names: Any) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    is_valid = isinstance(names, dict) and names and all(isinstance(name, str) and name for name in names.values())
    if not is_valid or len(set(names.values())) != len(names) or not all(str(key).isdecimal() for key in names):
        raise ValueError(f"{folder.root / file}: expected `names` as a list of unique names, or by number.")
    return {int(key): name for key, name in names.items()}


def _keypoint_values(folder: DataFolder, file: str | None, content: dict[str, Any]) -> int:
    """Return the number of values of an object's keypoints."""
    shape = content.get("kpt_shape") or []
    if not shape:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(n, str) and n.isdecimal() for n in shape):
        raise ValueError(f"{folder.root / (file or '')}: expected two numbers in `kpt_shape`, such as [17, 3].")
    return int(shape[0]) * int(shape[1])


def _images_by_split(
    folder: DataFolder, labels: FileIndex, file: str | None, content: dict[str, Any]
) -> dict[str, list[str]]:
    """Return the images that a file describes, else those of lists, else those with labels, by their folders."""
    entries = {
        split: next((content[key] for key in keys if content.get(key)), "") for split, keys in SPLIT_KEYS.items()
    }
    entries = {split: value if isinstance(value, list) else [value] for split, value in entries.items()}
    entries = {split: values for split, values in entries.items() if values and values[0] not in NO_VALUES}
    entries = entries or {split: [name] for split, name in _find_lists(folder).items()}
    if not entries:
        return _labeled_images(folder, labels)
    index = FileIndex.of_images(folder)
    images: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for split, values in entries.items():
        if not all(isinstance(value, str) for value in [*values, content.get("path", "")]):
            raise ValueError(
                f"{folder.root / (file or '')}: expected `path` and `{split}` as names of folders or files."
            )
        paths = {value: _resolve_entry(folder, file or "", content.get("path"), value) for value in values}
        absent = [value for value, path in paths.items() if path is None]
        if len(absent) == len(values):
            missing[split] = absent[0]
            continue
        if absent:
            folder.notes.append(f"{absent[0]} of {file} doesn't exist: the other paths of {split} are used.")
        parts = [_images_of_entry(index, path, split) for path in paths.values() if path]
        images[split] = list(dict.fromkeys(name for part in parts for name in part))
    if missing:
        _replace_missing(folder, labels, file or "", images, missing)
    return images


def _find_lists(folder: DataFolder) -> dict[str, str]:
    """Return lists of images by split, such as `train.txt`."""
    lists = {}
    for name in folder.files("."):
        split = SPLIT_NAMES.get(name.removesuffix(".txt").lower()) if name.endswith(".txt") else None
        if split and is_image_name(next(iter(folder.read_lines(name)), "")):
            lists[split] = name
    return lists


def _resolve_entry(folder: DataFolder, file: str, base: Any, entry: str) -> str | None:
    """Return the path of an entry, whose first folders may exist only on the machine that wrote the file."""
    parent = posixpath.dirname(file)
    entry = entry.replace("\\", "/")
    parts = [part for part in entry.split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    ends = [end for end in ends if split_of(end) == split_of(ends[0])]  # test/images/ is not images/
    for candidate in (posixpath.join(parent, base or "", entry), posixpath.join(parent, entry), entry, *ends):
        path = folder.normalize(candidate)
        if path and (folder.entries(path) or folder.locate([path])[0]):
            if candidate in ends[1:]:
                folder.notes.append(f"{entry} of {file} doesn't exist here: {path} is used.")
            return path
    return None


def _images_of_entry(index: FileIndex, path: str, split: str) -> list[str]:
    """Return the images of a folder or of a list."""
    folder = index.folder
    if folder.entries(path):
        return folder.images(path)
    lines = list(dict.fromkeys(folder.read_lines(path)))
    parent = posixpath.dirname(path)
    references = [Reference([posixpath.join(parent, line), line], [line]) for line in lines]
    note = f"paths of {path} don't exist here: images of the same name are used"
    matches = match_files(index, references, note)
    if split != "train" and not any(name for name, _ in matches):
        folder.notes.append(f"No image of {path} exists: there is no {split} split.")
        return []
    names = []
    for line, (name, reason) in zip(lines, matches, strict=True):
        if name is None:
            folder.report(line, "missing image", f"listed in {path}: {reason}")
        else:
            names.append(name)
    return names


def _replace_missing(
    folder: DataFolder, labels: FileIndex, file: str, images: dict[str, list[str]], missing: dict[str, str]
) -> None:
    """Add the images of splits whose paths don't exist from folders that are named like them, with a note."""
    found = _labeled_images(folder, labels)
    if not images and any(found.values()):
        images |= found
        folder.notes.append(f"No path of {file} exists, such as {next(iter(missing.values()))}: all folders are used.")
        return
    listed = {name for part in images.values() for name in part}
    for split, entry in missing.items():
        names = [n for n in found.get(split, ()) if n not in listed and split_of(posixpath.dirname(n)) == split]
        if names:
            images[split] = names
            folder.notes.append(f"{entry} of {file} doesn't exist: {posixpath.dirname(names[0])} is used for {split}.")
        elif split == "train":
            raise ValueError(
                f"{folder.root / file}: `{split}: {entry}` is not in the dataset's folder {folder.root}. "
                "Pass the folder that contains all files, and use paths relative to it."
            )
        else:
            folder.notes.append(f"{entry} of {file} doesn't exist: there is no {split} split.")


def _labeled_images(folder: DataFolder, labels: FileIndex) -> dict[str, list[str]]:
    """Return the images in folders with any labeled image, by the split that the folders are named after."""
    images = folder.images(".")
    matched = _match_labels(labels, images)
    folders = {posixpath.dirname(name) for name, label in matched.items() if label}
    splits: dict[str, list[str]] = {}
    skipped = []
    for name in images:
        if posixpath.dirname(name) in folders:
            splits.setdefault(split_of(posixpath.dirname(name)) or "train", []).append(name)
        else:
            skipped.append(name)
    if skipped and folders:
        folder.notes.append(f"Skipped {len(skipped)} images in folders without labels, such as {skipped[0]}.")
    return splits if folders else {"train": images}


def _match_labels(labels: FileIndex, images: list[str]) -> dict[str, str | None]:
    """Return the label file of each image: its path with `labels` for the last folder `images`, or next to it."""
    references = []
    for name in images:
        stem = posixpath.splitext(name)[0]
        before, separator, after = f"/{stem}".rpartition("/images/")
        mirrored = f"{before}/labels/{after}"[1:] if separator else f"labels/{stem}"
        references.append(Reference([f"{path.lstrip('/')}.txt" for path in (mirrored, stem)], [f"{stem}.txt"]))
    matches = match_files(labels, references)
    return {name: file for name, (file, _) in zip(images, matches, strict=True)}


def _note_unmatched(
    folder: DataFolder, labels: FileIndex, images: dict[str, list[str]], label_files: dict[str, str | None]
) -> None:
    """Note images without a label file, and label files without an image."""
    for split, part in images.items():
        if unlabeled := [name for name in part if label_files[name] is None]:
            folder.notes.append(
                f"{len(unlabeled)} images of {split} without a label file are used as background, such as "
                f"{unlabeled[0]}."
            )
    folders = {posixpath.dirname(name) for name in label_files.values() if name}
    stems = {posixpath.splitext(posixpath.basename(name))[0] for name in folder.images(".")}
    unused = [
        name
        for name in labels.names
        if posixpath.dirname(name) in folders and posixpath.basename(name)[: -len(".txt")] not in stems
    ]
    if unused := [name for name in unused if _has_rows(folder, name)]:
        folder.notes.append(f"Skipped {len(unused)} label files without an image, such as {unused[0]}.")


def _read_image(folder: DataFolder, parser: RowParser, name: str, file: str | None) -> AnnotatedImage | None:
    if file is None:
        return AnnotatedImage(name)
    try:
        lines = _read_text(folder, file, errors="strict").split("\n")
        rows = [(number, row.strip()) for number, row in enumerate(lines, start=1) if row.strip()]
    except (OSError, ValueError) as error:
        folder.report(file, "unreadable annotation", " ".join(str(error).split()))
        return None
    if not rows:
        folder.report(file, "empty label file", "no objects; the image is used as background")
    return AnnotatedImage(name, [parser.parse(row, f"{file}, line {number}") for number, row in rows])


def _check_rows(folder: DataFolder, file: str | None, parser: RowParser) -> None:
    if position := parser.find_keypoints():
        raise ValueError(
            f"{folder.root / position}: got values that look like a box and keypoints (pose), expected `kpt_shape` in "
            f"{file or 'data.yaml'}. Add the number of keypoints and of the values of each, such as "
            "`kpt_shape: [17, 3]`."
        )
    if parser.num_objects and parser.num_large == parser.num_objects:
        raise ValueError(
            f"{folder.root}: got label files with coordinates in pixels, expected fractions of the image size. Divide "
            "them by the width and height of their image."
        )
    if parser.fifth_values:
        low, high = parser.fifth_values
        if low < 0 or high > 1:
            raise ValueError(
                f"{folder.root}: got label files with a sixth column of {low:g} to {high:g}, expected a confidence "
                "(0..1) or none. Remove it, or convert rotated boxes to four points."
            )
        folder.notes.append("Some boxes have a confidence as the last value, which is not used.")
