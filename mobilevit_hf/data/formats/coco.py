"""COCO JSON: `annotations/instances_*.json` next to image folders, a single file, or one file per split folder."""

import gc
import json
import mmap
import posixpath
import re
from pathlib import Path
from typing import Any

from ...tasks import TaskName
from ..types import Dataset
from .annotations import AnnotatedImage, make_splits, note_unused, parse_object
from .folder import SPLIT_NAMES, DataFolder
from .lookup import FileIndex, Reference, match_files, parents, split_of_file
from .maskfolder import TO_SEGMENT
from .painted import make_painted_dataset

TASKS = ("object-detection", "image-segmentation")
MAX_FILES = 100  # JSON files that are searched for COCO's keys
MAX_SIDE = 2**31  # larger annotated sizes are ignored
NUMBER = re.compile(r"[+-]?\d{1,40}(\.0*)?")
# Names of a category that stands for everything else, and is not a class if it has no boxes.
BACKGROUND_NAMES = {"background", "_background_", "__background__", "bg"}


def recognizes(folder: DataFolder) -> bool:
    """Return whether the folder has COCO JSON, whatever its name."""
    return bool(_json_files(folder))


def read(folder: DataFolder, file: str | None = None, task: TaskName = "object-detection") -> Dataset:
    """Read COCO JSON.

    A file belongs to the split that its name or its folder contains as a word, or else to the training split. Images
    are found by their path, or else by their name. Ids may be numbers or strings. The box of an object without one is
    the extent of its polygons. Classes are in ascending order of the category ids of the first file; categories of the
    same name are one class, and a category without boxes that is the background or the parent of another one, as in
    some exports, is not a class.

    Args:
        folder: Folder of the images.
        file: A single annotation file, instead of all in the folder.
        task: Whether to read boxes, or polygons and RLE, which are painted to masks, see `make_painted_dataset`.

    Raises:
        ValueError: If there are no files, they are not COCO JSON, or they differ in their categories.
    """
    files = {"train": file} if file else find_files(folder)
    if not files:
        raise ValueError(
            f"{folder.root}: got no COCO annotations, expected annotations/instances_train.json, "
            "train/_annotations.coco.json or a single .json file."
        )
    collects_cycles = gc.isenabled()
    gc.disable()  # the search for cycles takes almost half of the time of reading millions of entries
    try:
        contents = {split: _load(folder.root / name) for split, name in files.items()}
        names = {split: _read_names(folder, files[split], content) for split, content in contents.items()}
        has_masks = any(entry.get("segmentation") for content in contents.values() for entry in content["annotations"])
        is_segmentation = task == "image-segmentation"
        if is_segmentation and not has_masks:
            raise ValueError(f"{folder.root}: got COCO JSON with boxes only, expected polygons or RLE. Export masks.")
        if has_masks and not is_segmentation:
            folder.notes.append(f"The objects also have masks. {TO_SEGMENT}")
        classes = _find_classes(folder, files, contents, names)
        index = FileIndex.of_images(folder)
        images = {
            split: _read_images(
                index, name, None if file else split, contents.pop(split), names[split], keep_shapes=is_segmentation
            )
            for split, name in files.items()
        }
        note_unused(index, images, f"that {' or '.join(files.values())} doesn't list")
        if is_segmentation:
            return make_painted_dataset(folder, images, classes, "coco")
        splits = make_splits(folder, images, {name: label for label, name in enumerate(classes)})
    finally:
        if collects_cycles:
            gc.enable()
    return Dataset("object-detection", classes, splits, "coco")


def find_files(folder: DataFolder) -> dict[str, str]:
    """Return the annotation files by split; two for the same split are an error."""
    files: dict[str | None, list[str]] = {}
    for name in _json_files(folder) or _only_json(folder):
        files.setdefault(split_of_file(name), []).append(name)
    if "train" not in files and None in files:
        files["train"] = files.pop(None)
    if combined := files.pop(None, None):
        folder.notes.append(f"Skipped {combined[0]}, which belongs to no split, next to {files['train'][0]}.")
    for split, names in files.items():
        if len(names) > 1:  # next to those of other tasks, such as person_keypoints_train.json
            files[split] = names = [n for n in names if posixpath.basename(n).startswith("instances")] or names
        if len(names) > 1:
            no_images = "" if folder.has_images(".") else " and no images"
            raise ValueError(
                f"{folder.root}: got {names[0]} and {names[1]}{no_images}, expected one file for the {split} split"
                f"{no_images and ' and its images'}. Pass the path of one, such as {folder.root / names[0]}."
            )
    return {split: files[split][0] for split in ("train", "validation", "test") if split in files}


def _only_json(folder: DataFolder) -> list[str]:
    """Return the only JSON file in one of the usual places, so that its fault is reported."""
    names = [name for directory in ("annotations", ".") for name in folder.files(directory) if name.endswith(".json")]
    return names if len(names) == 1 else []


def _json_files(folder: DataFolder) -> list[str]:
    """Return the COCO files, by a search for their keys. Annotations of single images, as of LabelMe, are none."""
    names = sorted(folder.files_by_suffix().get(".json", ()), key=lambda name: (name.count("/"), name))
    return [name for name in names[:MAX_FILES] if _has_coco_keys(folder.path(name))]


def _has_coco_keys(path: str) -> bool:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            contains = [text.find(b'"%s"' % key) >= 0 for key in (b"images", b"annotations", b"segments_info")]
            is_panoptic = contains.pop()
            return all(contains) and not is_panoptic and re.search(rb'"(categories|category_id)"', text) is not None
    except (OSError, ValueError):  # unreadable or empty
        return False


def _load(path: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key, [] if key == "categories" else None) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"{path}: expected COCO JSON with lists of objects in `images`, `annotations` and `categories`, got "
                f"another value in `{key}`."
            )
    if content["annotations"] and not any("bbox" in a or "segmentation" in a for a in content["annotations"]):
        raise ValueError(
            f"{path}: got annotations without `bbox` and `segmentation`, expected boxes. To train a classifier, put "
            "the images into one folder per class."
        )
    return content


def _read_names(folder: DataFolder, file: str, content: dict[str, list[dict]]) -> dict[int | str, str]:
    """Return the names of a file's categories by id."""
    names: dict[int | str, str] = {}
    for entry in content.get("categories", []):
        category, name = _parse_id(entry.get("id")), entry.get("name")
        if category is None or not isinstance(name, str | int) or category in names:
            raise ValueError(
                f"{folder.root / file}: got the category {entry}, expected a unique `id`, a number or string, and a "
                "`name`."
            )
        names[category] = str(name).strip()
    if not names:
        ids = (_parse_id(annotation.get("category_id")) for annotation in content["annotations"])
        names = {category: str(category) for category in ids if category is not None}
        folder.notes.append(f"{file} has no categories: the ids are used as names.")
    for name in sorted({name for name in names.values() if list(names.values()).count(name) > 1}):
        same = [str(category) for category in names if names[category] == name]
        folder.notes.append(f"The categories {' and '.join(same)} of {file} are one class: both are named {name!r}.")
    return names


def _find_classes(
    folder: DataFolder, files: dict[str, str], contents: dict[str, dict], names: dict[str, dict[int | str, str]]
) -> tuple[str, ...]:
    """Return the class names, ordered by the id of their first category, and check that the files agree."""
    ids: dict[str, int | str] = {}
    for split, own in names.items():
        by_id = {category: name for name, category in ids.items()}
        for category, name in own.items():
            if name not in ids and by_id.get(category, name) != name:
                raise ValueError(
                    f"{folder.root / files[split]}: got the name {name!r} for category {category}, expected "
                    f"{by_id[category]!r} as in another file. Use the same categories in all files."
                )
            ids.setdefault(name, category)
    entries = [entry for content in contents.values() for entry in content.get("categories", [])]
    placeholders = {str(e.get("supercategory")).strip() for e in entries if e.get("supercategory") != e.get("name")}
    used = {
        names[split].get(category) if (category := _parse_id(annotation.get("category_id"))) is not None else None
        for split, content in contents.items()
        for annotation in content["annotations"]
    }
    for name in [name for name in ids if name not in used]:
        if len(ids) > 1 and (name in placeholders or name.lower() in BACKGROUND_NAMES):
            del ids[name]
            folder.notes.append(
                f"The category {name!r} is the background or the parent of others and has no boxes: it is not a class."
            )
    return tuple(sorted(ids, key=lambda name: _order_id(ids[name])))


def _read_images(
    index: FileIndex,
    file: str,
    split: str | None,
    content: dict[str, Any],
    names: dict[int | str, str],
    *,
    keep_shapes: bool,
) -> list[AnnotatedImage]:
    """Return the images of a file with their objects, none if it is of a split for evaluation without any image."""
    folder = index.folder
    entries: dict[int | str, dict] = {}
    for entry in content["images"]:
        image_id, file_name = _parse_id(entry.get("id")), entry.get("file_name")
        if image_id is None or not isinstance(file_name, str) or not file_name or image_id in entries:
            reason = f"image {entry.get('id')!r}: expected a unique `id` and a `file_name`, got {file_name!r}"
            folder.report(file, "unreadable annotation", reason)
            continue
        entries[image_id] = entry
    is_optional = split in ("validation", "test")
    split = split or split_of_file(file)
    directories = _image_folders(folder, file, split)
    references = [
        Reference([posixpath.join(directory, path) for directory in directories], [posixpath.join(parent, path)])
        for parent in [posixpath.dirname(file)]
        for path in (entry["file_name"].strip().replace("\\", "/") for entry in entries.values())
    ]
    note = f"paths of {file} don't exist here: images of the same name are used"
    matches = match_files(index, references, note, split)
    if is_optional and not any(name for name, _ in matches):
        folder.notes.append(f"None of the {len(matches)} images of {file} exists: there is no {split} split.")
        return []
    images: dict[int | str, AnnotatedImage | None] = {}  # None for an image with a problem
    by_name: dict[str, AnnotatedImage] = {}
    for (image_id, entry), (name, reason) in zip(entries.items(), matches, strict=True):
        if name is None:
            folder.report(entry["file_name"], "missing image", f"image {image_id} of {file}: {reason}")
            images[image_id] = None
            continue
        sides = [entry.get(key) for key in ("width", "height")]
        width, height = (side if isinstance(side, int | float) and 0 < side < MAX_SIDE else 0 for side in sides)
        size = (width, height) if width and height else None
        images[image_id] = by_name.setdefault(name, AnnotatedImage(name, size=size))
    if repeated := sum(image is not None for image in images.values()) - len(by_name):
        folder.notes.append(f"{file} lists {repeated} images more than once: their boxes are combined.")
    _read_objects(folder, file, content["annotations"], images, names, keep_shapes=keep_shapes)
    return list(by_name.values())


def _read_objects(
    folder: DataFolder,
    file: str,
    annotations: list[dict],
    images: dict[int | str, AnnotatedImage | None],
    names: dict[int | str, str],
    *,
    keep_shapes: bool,
) -> None:
    """Add the objects to their images."""
    largest = 0.0
    for annotation in annotations:
        image_id = _parse_id(annotation.get("image_id"))
        if image_id is None or image_id not in images:
            value = annotation.get("image_id")
            reason = f"annotation {annotation.get('id')!r}: no image with the id {value!r}"
            folder.report(file, "unreadable annotation", reason)
        elif image := images[image_id]:
            category = _parse_id(annotation.get("category_id"))
            key = None if category is None else names.get(category, category)
            values = (annotation.get(name) for name in ("bbox", "area", "iscrowd", "segmentation"))
            bbox, area, iscrowd, segmentation = values
            annotated = parse_object(bbox, key, area, iscrowd, segmentation)
            image.annotations.append(annotated._replace(shape=segmentation) if keep_shapes else annotated)
            largest = max(largest, *image.annotations[-1].box[2:])
    if 0 < largest <= 1:
        raise ValueError(
            f"{folder.root / file}: got boxes within 0..1, expected pixels. Multiply them by the size of their image."
        )


def _image_folders(folder: DataFolder, file: str, split: str | None) -> list[str]:
    """Return the directories that may contain the images of an annotation file, those of its split first."""
    base = posixpath.basename(file)
    words = [base.removesuffix(".json").removeprefix("instances_")]
    words += [word for word, name in SPLIT_NAMES.items() if name == split]
    candidates = [f"{prefix}{word}" for word in words for prefix in ("", "images/")]
    own = posixpath.dirname(file) or "."
    candidates += [own, f"{own}/images", f"{own}/data", "images", "data", "."]
    candidates += [f"{parent}/{word}" for parent in parents(own) for word in (*candidates, "images", ".")]
    candidates = [posixpath.normpath(directory) for directory in candidates]
    return [directory for directory in dict.fromkeys(candidates) if folder.entries(directory)]


def _parse_id(value: Any) -> int | str | None:
    """Return an id, which may be a number in one place and a string in another, None if it is neither."""
    if isinstance(value, str):
        value = value.strip()
        return int(value.partition(".")[0]) if NUMBER.fullmatch(value) else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def _order_id(value: int | str) -> tuple[bool, int | str]:
    return isinstance(value, str), value
