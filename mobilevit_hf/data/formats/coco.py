"""COCO JSON: `annotations/instances_*.json` next to image folders, a single file, or one file per split folder."""

import gc
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from ..types import Dataset, Split
from .annotations import AnnotatedImage, make_samples, parse_object
from .folder import SPLIT_NAMES, DataFolder, split_folders

ROBOFLOW_NAME = "_annotations.coco.json"
# The part of a file name that may be a split: `train` of `instances_train2017.json`.
SPLIT_IN_NAME = re.compile(r"(?:instances_)?(.*?)[_-]?\d*\.json")
MAX_SIDE = 2**31  # larger annotated sizes are ignored


def recognizes(folder: DataFolder) -> bool:
    """Return whether the folder has COCO JSON in one of the usual places."""
    for name in find_files(folder).values():
        try:
            with open(folder.path(name), encoding="utf-8") as file:
                start = file.read(4096)
        except (OSError, ValueError):
            return False
        return re.search(r'"(images|annotations|categories|info|licenses)"\s*:', start) is not None
    return False


def find_files(folder: DataFolder) -> dict[str, str]:
    """Return the annotation files by split; two for the same split are an error."""
    in_splits = {split: f"{directory}/{ROBOFLOW_NAME}" for split, directory in split_folders(folder).items()}
    in_splits = {split: name for split, name in in_splits.items() if folder.locate([name])[0]}
    if in_splits:
        return in_splits
    for directory in ("annotations", "."):
        names = [name for name in folder.files(directory) if name.endswith(".json")]
        files: dict[str, str] = {}
        for name in names:
            base = posixpath.basename(name)
            split = SPLIT_NAMES.get(_split_word(base).lower())
            if split in files:
                raise ValueError(
                    f"{folder.root}: got {files[split]} and {base}, expected one file for the {split} split. "
                    "Remove or rename one."
                )
            if split:
                files[split] = name
        if files or len(names) == 1:
            return files or {"train": names[0]}
    return {}


def read(folder: DataFolder, file: str | None = None) -> Dataset:
    """Read COCO JSON.

    Labels are the category ids in ascending order, made contiguous. A category without boxes that is the parent
    of another category, as in some exports, is not a class.

    Args:
        folder: Folder of the images.
        file: A single annotation file, instead of those in the usual places.

    Raises:
        ValueError: If there are no files, they are not COCO JSON, or they differ in their categories.
    """
    files = {"train": file} if file else find_files(folder)
    if not files:
        raise ValueError(
            f"{folder.root}: got no COCO annotations, expected annotations/instances_train.json, "
            f"train/{ROBOFLOW_NAME} or a single .json file."
        )
    collects_cycles = gc.isenabled()
    gc.disable()  # the search for cycles takes almost half of the time of reading millions of entries
    try:
        contents = {split: _load(folder.root / name) for split, name in files.items()}
        names = _read_classes(folder, contents, files)
        labels = {category: label for label, category in enumerate(names)}
        splits: dict[str, Split] = {}
        for split, name in files.items():
            splits[split] = make_samples(folder, _read_images(folder, split, name, contents.pop(split)), labels)
    finally:
        if collects_cycles:
            gc.enable()
    return Dataset("object-detection", tuple(names.values()), splits, "coco")


def _split_word(base: str) -> str:
    match = SPLIT_IN_NAME.fullmatch(base)
    return match[1] if match else ""


def _load(path: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"{path}: expected COCO JSON with lists of objects in `images`, `annotations` and `categories`, got "
                f"another value in `{key}`."
            )
    return content


def _read_classes(folder: DataFolder, contents: dict[str, dict], files: dict[str, str]) -> dict[int, str]:
    """Return the class names by category id, in ascending order."""
    names: dict[int, str] = {}
    parents = set()
    used = {a.get("category_id") for c in contents.values() for a in c["annotations"] if _is_id(a.get("category_id"))}
    for split, content in contents.items():
        path = folder.root / files[split]
        for entry in content["categories"]:
            category, name = entry.get("id"), entry.get("name")
            if not isinstance(category, int) or not isinstance(name, str):
                raise ValueError(f"{path}: got the category {entry}, expected an integer `id` and a `name`.")
            if names.setdefault(category, name) != name:
                raise ValueError(
                    f"{path}: got the name {name!r} for category {category}, expected {names[category]!r} as in "
                    "another file. Use the same categories in all files."
                )
            if isinstance(entry.get("supercategory"), str) and entry["supercategory"] != name:
                parents.add(entry["supercategory"])
    for category in [category for category, name in names.items() if name in parents and category not in used]:
        folder.notes.append(
            f"The category {names.pop(category)!r} is the parent of others and has no boxes: it is not a class."
        )
    if len(set(names.values())) != len(names) or not names:
        path = folder.root / next(iter(files.values()))
        raise ValueError(f"{path}: got the categories {list(names.values())}, expected unique names.")
    return dict(sorted(names.items()))


def _read_images(folder: DataFolder, split: str, file: str, content: dict[str, Any]) -> list[AnnotatedImage]:
    directories = _image_folders(folder, split, file)
    images: dict[int | str, AnnotatedImage | None] = {}  # None for an image with a problem
    for entry in content["images"]:
        image_id, file_name = entry.get("id"), entry.get("file_name")
        if not _is_id(image_id) or not isinstance(file_name, str) or image_id in images:
            reason = f"image {image_id!r}: expected a unique `id` and a `file_name`, got {file_name!r}"
            folder.report(file, "unreadable annotation", reason)
            continue
        name, reason = folder.locate(posixpath.join(directory, file_name) for directory in directories)
        if name is None:
            folder.report(file_name, "missing image", f"image {image_id} of {file}: {reason}")
        size = (entry.get("width"), entry.get("height"))
        has_size = all(isinstance(side, int | float) and 0 < side < MAX_SIDE for side in size)
        images[image_id] = AnnotatedImage(name, size=size if has_size else None) if name else None
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if not _is_id(image_id) or image_id not in images:
            reason = f"annotation {annotation.get('id')!r}: no image with the id {image_id!r}"
            folder.report(file, "unreadable annotation", reason)
        elif image := images[image_id]:
            values = (annotation.get(key) for key in ("bbox", "category_id", "area", "iscrowd"))
            image.annotations.append(parse_object(*values))
    return [image for image in images.values() if image]


def _image_folders(folder: DataFolder, split: str, file: str) -> list[str]:
    """Return the directories that may contain the images of an annotation file, those of its split first."""
    base = posixpath.basename(file)
    words = [base.removesuffix(".json").removeprefix("instances_"), _split_word(base)]
    words += [word for word, name in SPLIT_NAMES.items() if name == split]
    parent = posixpath.dirname(file) or "."
    candidates = [f"{prefix}{word}" for word in words for prefix in ("", "images/")]
    candidates += [parent, f"{parent}/images", "images", "."]
    return [directory for directory in dict.fromkeys(candidates) if folder.entries(directory)]


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)
