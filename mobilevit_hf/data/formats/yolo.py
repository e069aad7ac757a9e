"""YOLO text files: `images/` next to `labels/`, one object per line; classes in `data.yaml` or `classes.txt`."""

import posixpath
from typing import Any

import yaml

from ..types import Dataset, Split
from .annotations import AnnotatedImage, Annotation, make_samples
from .folder import DataFolder, split_folders

CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
SPLIT_KEYS = {"train": "train", "validation": "val", "test": "test"}


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is a YAML file with `names`, or a folder `labels`."""
    parents = [".", *split_folders(folder).values()]
    return _find_yaml(folder) is not None or any("labels" in folder.entries(parent) for parent in parents)


def read(folder: DataFolder, file: str | None = None) -> Dataset:
    """Read YOLO text files.

    A line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` of a polygon, which is converted to its bounding box;
    all coordinates relative to the upright image (0..1). Images with an empty label file (reported as a problem) or
    without one are background. Classes and splits are those of `data.yaml`, or else `classes.txt` and the folders
    `images/train` or `train/images`, or else all images in `images` are the training split.

    Args:
        folder: Folder of the dataset.
        file: YAML file, instead of the one in the folder.

    Raises:
        ValueError: If classes, images or label files are missing.
    """
    file = file or _find_yaml(folder)
    if file:
        content = _load_yaml(folder, file)
        classes = _parse_classes(folder, file, content.get("names"))
        names = {s: _listed_images(folder, file, content, key) for s, key in SPLIT_KEYS.items() if content.get(key)}
    else:
        classes, names = _read_class_file(folder), {}
    names = names or {split: folder.images(directory) for split, directory in _image_folders(folder).items()}
    if not any(names.values()):
        raise ValueError(f"{folder.root}: got no images, expected images/train next to labels/train, or train/images.")
    unlabeled = {
        split: [name for name in images if _find_label_file(folder, name) is None] for split, images in names.items()
    }
    if unlabeled == names:
        raise ValueError(f"{folder.root}: got no label files, expected labels/train/a.txt for images/train/a.jpg.")
    for split, images in unlabeled.items():
        if images:
            folder.notes.append(
                f"{len(images)} images of {split} without a label file are used as background, such as {images[0]}."
            )
    labels = {number: number for number in range(len(classes))}
    splits: dict[str, Split] = {}
    for split, part in names.items():
        annotated = [image for name in part if (image := _read_image(folder, name))]
        splits[split] = make_samples(folder, annotated, labels, is_relative=True)
    return Dataset("object-detection", classes, splits, "yolo")


def _find_yaml(folder: DataFolder) -> str | None:
    """Return the YAML file with class names, `data.yaml` first, by a search of its text."""
    names = [name for name in folder.files(".") if name.endswith((".yaml", ".yml"))]
    for name in sorted(names, key=lambda name: (name != "data.yaml", name)):
        with open(folder.path(name), encoding="utf-8", errors="replace") as opened:
            if any(line.startswith("names:") for line in opened):
                return name
    return None


def _load_yaml(folder: DataFolder, file: str) -> dict[str, Any]:
    try:
        with open(folder.path(file), encoding="utf-8") as opened:
            content = yaml.safe_load(opened)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{folder.root / file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{folder.root / file}: got {type(content).__name__}, expected a mapping with `names`, `train` and `val`."
        )
    return content


def _read_class_file(folder: DataFolder) -> tuple[str, ...]:
    file = next((name for name in CLASS_FILES if folder.locate([name])[0]), None)
    if file is None:
        raise ValueError(f"{folder.root}: got no class names, expected data.yaml with `names`, or classes.txt.")
    return _parse_classes(folder, file, folder.read_lines(file))


def _parse_classes(folder: DataFolder, file: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, dict):
        names = [names.get(number) for number in range(len(names))]
    is_valid = isinstance(names, list) and names and all(isinstance(name, str | int) for name in names)
    if not is_valid or len(set(map(str, names))) != len(names):
        raise ValueError(f"{folder.root / file}: expected `names` as a list of unique names, or by number from 0.")
    return tuple(map(str, names))


def _listed_images(folder: DataFolder, file: str, content: dict[str, Any], key: str) -> list[str]:
    """Return the images of `train`, `val` or `test` of a YAML file: one or more folders, or lists of files."""
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    if not all(isinstance(entry, str) for entry in [*entries, content.get("path") or ""]):
        raise ValueError(f"{folder.root / file}: expected `path` and `{key}` as names of folders or files.")
    images: dict[str, None] = {}
    for entry in entries:
        path = _resolve_entry(folder, content.get("path"), entry)
        if path is None:
            raise ValueError(
                f"{folder.root / file}: `{key}: {entry}` is not in the dataset's folder {folder.root}. "
                "Pass the folder that contains all files, and use paths relative to it."
            )
        if folder.entries(path):
            images.update(dict.fromkeys(folder.images(path)))
            continue
        for line in folder.read_lines(path):
            name, reason = folder.locate([posixpath.join(posixpath.dirname(path), line), line])
            if name is None:
                folder.report(line, "missing image", f"listed in {path}: {reason}")
            else:
                images[name] = None
    return list(images)


def _resolve_entry(folder: DataFolder, base: Any, entry: str) -> str | None:
    """Return the path of an entry. `path` and leading `..` may be valid only on the machine that wrote the file."""
    stripped = entry.replace("\\", "/")
    while stripped.startswith(("../", "./")):
        stripped = stripped.split("/", 1)[1]
    for candidate in (posixpath.join(str(base or "."), entry), entry, stripped):
        path = folder.normalize(candidate)
        if path and (folder.entries(path) or folder.locate([path])[0]):
            return path
    return None


def _image_folders(folder: DataFolder) -> dict[str, str]:
    """Return the image folders by split, for a dataset without a YAML file."""
    in_splits = {split: f"{directory}/images" for split, directory in split_folders(folder).items()}
    return (
        split_folders(folder, "images")
        or {split: directory for split, directory in in_splits.items() if folder.entries(directory)}
        or {"train": "images" if folder.entries("images") else "."}
    )


def _find_label_file(folder: DataFolder, image: str) -> str | None:
    """Return an image's label file: its path with `labels` for the last folder `images`, or next to it."""
    stem = posixpath.splitext(image)[0]
    before, separator, after = f"/{stem}".rpartition("/images/")
    candidates = [f"{before}/labels/{after}"[1:] if separator else f"labels/{stem}", stem]
    return folder.locate(f"{candidate.lstrip('/')}.txt" for candidate in candidates)[0]


def _read_image(folder: DataFolder, name: str) -> AnnotatedImage | None:
    file = _find_label_file(folder, name)
    if file is None:
        return AnnotatedImage(name)
    try:
        lines = folder.read_lines(file, errors="strict")
    except (OSError, ValueError) as error:
        folder.report(file, "unreadable annotation", " ".join(str(error).split()))
        return None
    if not lines:
        folder.report(file, "empty label file", "no objects; the image is used as background")
    return AnnotatedImage(name, [_parse_line(line.split()) for line in lines])


def _parse_line(words: list[str]) -> Annotation:
    """Parse a class and a relative box or polygon."""
    try:
        number, *values = map(float, words)
        key = int(number) if number % 1 == 0 else None
    except (ValueError, OverflowError):
        return Annotation(None)
    if len(values) == 4:
        x, y, width, height = values
        return Annotation(key, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    if len(values) >= 6 and len(values) % 2 == 0:
        return Annotation(key, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])))
    return Annotation(key)
