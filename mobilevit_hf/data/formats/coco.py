"""COCO's JSON: `annotations/instances_*.json` beside folders of images, one file, or one in each split's folder."""

import gc
import json
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..types import Dataset
from .boxes import Annotated, make_samples
from .folder import SPLIT_NAMES, DataFolder, split_folders
from .metadata import add_box

ROBOFLOW_NAME = "_annotations.coco.json"
STEM = re.compile(r"(?:instances_)?(.*?)[_-]?\d*")


MAX_SIDE = 2**31  # a stated size beyond it is none


def recognizes(folder: DataFolder) -> bool:
    """Whether there are files where this format has them, the first of which starts like it."""
    names = list(find_files(folder).values())
    return bool(names) and _starts_like_coco(folder.root / names[0])


def find_files(folder: DataFolder) -> dict[str, str]:
    """The annotation files by split.

    Raises:
        ValueError: If two are for the same split.
    """
    in_splits = {split: f"{directory}/{ROBOFLOW_NAME}" for split, directory in split_folders(folder).items()}
    in_splits = {split: name for split, name in in_splits.items() if folder.locate([name])[0]}
    if in_splits:
        return in_splits
    for directory in ("annotations", "."):
        names = [base for base, kind in folder.entries(directory).items() if kind == "file" and base.endswith(".json")]
        found: dict[str, str] = {}
        for base in names:
            split = SPLIT_NAMES.get(_split_word(base).lower())
            if split in found:
                raise ValueError(
                    f"{folder.root} holds {found[split]} and {base}, both of the {split} split. Keep one."
                )
            if split:
                found[split] = posixpath.normpath(f"{directory}/{base}")
        if found or len(names) == 1:
            return found or {"train": posixpath.normpath(f"{directory}/{names[0]}")}
    return {}


def read(folder: DataFolder, file: str | None = None) -> Dataset:
    """Read COCO's JSON.

    Category ids are made contiguous in their order. A category without boxes that is only the parent of others, as
    some exports have it, is no class.

    Args:
        folder: Where the images are.
        file: The one annotation file to read instead of those in the usual places.

    Raises:
        ValueError: If there is no such file, it isn't COCO's, or two files number the classes differently.
    """
    files = {"train": file} if file else find_files(folder)
    if not files:
        raise ValueError(
            f"No COCO annotations in {folder.root}. Expected annotations/instances_train.json, "
            f"train/{ROBOFLOW_NAME} or a single .json file."
        )
    with _without_collector():
        contents = {split: _load(folder.root / name) for split, name in files.items()}
        names = _classes(folder, contents, files)
        places = {category: place for place, category in enumerate(names)}
        splits = {
            split: make_samples(folder, _read_file(folder, split, name, contents.pop(split)), places)
            for split, name in files.items()
        }
    return Dataset("object-detection", tuple(names.values()), splits, "coco")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector looks for cycles again and again as millions of entries come in: almost half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _split_word(base: str) -> str:
    """The part of a file's name that may name a split: `train` of `instances_train2017.json`."""
    return STEM.fullmatch(base.removesuffix(".json"))[1]


def _starts_like_coco(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            start = file.read(4096)
    except (OSError, ValueError):
        return False
    return re.search(r'"(images|annotations|categories|info|licenses)"\s*:', start) is not None


def _load(path: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from error
    keys = ("images", "annotations", "categories")
    for key in keys:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{path}: `{key}` is no list of objects. Expected COCO's JSON, with {', '.join(keys)}.")
    return content


def _classes(folder: DataFolder, contents: dict[str, dict], files: dict[str, str]) -> dict[int, str]:
    """The classes' names by category id, in order."""
    names: dict[int, str] = {}
    parents = set()
    used = {a.get("category_id") for c in contents.values() for a in c["annotations"] if _is_id(a.get("category_id"))}
    for split, content in contents.items():
        path = folder.root / files[split]
        for entry in content["categories"]:
            category, name = entry.get("id"), entry.get("name")
            if not isinstance(category, int) or not isinstance(name, str):
                raise ValueError(f"{path}: a category needs an integer `id` and a `name`, got {entry}.")
            if names.setdefault(category, name) != name:
                raise ValueError(
                    f"{path} names category {category} {name!r}, another file {names[category]!r}. Give them one list."
                )
            if isinstance(entry.get("supercategory"), str) and entry["supercategory"] != name:
                parents.add(entry["supercategory"])
    dropped = [category for category, name in names.items() if name in parents and category not in used]
    for category in dropped:
        folder.notes.append(
            f"The category {names.pop(category)!r} is the parent of others, has no boxes and is no class."
        )
    if len(set(names.values())) != len(names) or not names:
        raise ValueError(f"{path}: the categories need names that differ, got {list(names.values())}.")
    return dict(sorted(names.items()))


def _read_file(folder: DataFolder, split: str, file: str, content: dict[str, Any]) -> list[Annotated]:
    places = _image_folders(folder, split, file)
    images: dict[int | str, Annotated | None] = {}  # None is one that was reported
    for entry in content["images"]:
        image_id, file_name = entry.get("id"), entry.get("file_name")
        if not _is_id(image_id) or not isinstance(file_name, str) or image_id in images:
            reason = f"image {image_id!r}: expected an `id` of its own and a `file_name`, got {file_name!r}"
            folder.report(file, "unreadable annotation", reason)
            continue
        name, reason = folder.locate(posixpath.join(place, file_name) for place in places)
        if name is None:
            folder.report(file_name, "missing image", f"image {image_id} of {file}: {reason}")
        size = (entry.get("width"), entry.get("height"))
        is_stated = all(isinstance(side, int | float) and 0 < side < MAX_SIDE for side in size)
        images[image_id] = Annotated(name, size if is_stated else None) if name else None
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if not _is_id(image_id) or image_id not in images:
            reason = f"annotation {annotation.get('id')!r}: no image has the id {image_id!r}"
            folder.report(file, "unreadable annotation", reason)
        elif image := images[image_id]:
            area, iscrowd = annotation.get("area"), annotation.get("iscrowd")
            add_box(image, annotation.get("bbox"), annotation.get("category_id"), area, iscrowd)
    return [image for image in images.values() if image]


def _image_folders(folder: DataFolder, split: str, file: str) -> list[str]:
    """Where the images of a file may be, the places of its split first."""
    words = [_split_word(posixpath.basename(file)), posixpath.basename(file).removesuffix(".json")]
    words = [words[1].removeprefix("instances_"), words[0], *(w for w, name in SPLIT_NAMES.items() if name == split)]
    beside = posixpath.dirname(file) or "."
    folders = [f"{parent}{word}" for word in words for parent in ("", "images/")] + [
        beside,
        f"{beside}/images",
        "images",
        ".",
    ]
    return [place for place in dict.fromkeys(folders) if folder.entries(place)]


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)
