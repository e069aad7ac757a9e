"""Recognize the format of a local dataset by the content of its folder, and the folder that contains it."""

import inspect
import posixpath
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tasks import TaskName
from .archives import is_archive
from .formats import csv_files, imagefolder, maskfolder, metadata
from .formats.annotations import find_difference
from .formats.folder import DataFolder, is_image_name, is_run, join
from .formats.maskfolder import TO_SEGMENT
from .formats.unread import UnreadAnnotations, find_unread
from .image_formats import describe_unread
from .types import Dataset, UnlabeledImagesError

MAX_WRAPPERS = 16  # folders around a dataset that are entered
SHOWN = 3  # annotations and classes in a message
MASK_ENDINGS = ("_mask", "_masks", "_seg", "_gt", "_label", "-mask")
NO_ANNOTATIONS = "no annotations"
NAME_MASKS = "Give each mask the name of its image, in a folder masks/ next to images/."
# Formats with a recognizer that any folder of images may satisfy.
FALLBACKS = ("csv", "imagefolder", "maskfolder")


def recognize(
    folder: DataFolder, formats: Mapping[str, Any], data_format: str | None, task: TaskName | None = None
) -> tuple[DataFolder, str]:
    """Return the folder that contains the dataset, which others may wrap, and its format.

    Args:
        folder: Folder of the user.
        formats: Modules with `TASKS`, `recognizes(folder)` and `read(folder)`, by name.
        data_format: Format of the user, whose folder is searched. None: inferred.
        task: Task that the format must have annotations for. None: any.

    Raises:
        UnlabeledImagesError: If there is no dataset but images.
        ValueError: If there is no dataset, or several formats or folders are possible.
    """
    candidates = {data_format: formats[data_format]} if data_format else dict(formats)
    candidates = {name: module for name, module in candidates.items() if task is None or task in module.TASKS}
    path, current = ".", folder
    fallback: tuple[str, DataFolder] | None = None  # with one class, or folders that may not be classes
    for _ in range(MAX_WRAPPERS):
        if names := _recognized(current, candidates):
            _note_entered(folder, current, path)
            return current, _choose(current, names, formats, task)
        if imagefolder.class_names(current):
            fallback = path, current
        name = _find_inner(current, candidates)
        if name is None:
            break
        path, current = join(path, name), current.subfolder(name)
    if fallback and "imagefolder" in candidates:
        path, current = fallback
        _note_entered(folder, current, path)
        return current, "imagefolder"
    if data_format:
        return folder, data_format
    raise _missing_error(folder, task)


def check_class_folders(outer: DataFolder, folder: DataFolder, dataset: Dataset) -> None:
    """Check that class folders are what the dataset is about, as any folders of images may be read as classes.

    Args:
        outer: Folder of the user, which may contain annotations, too.
        folder: Folder of the dataset.
        dataset: Dataset with folders as classes.

    Raises:
        ValueError: If there are less than two classes, their names say that they are none, the folders in them may be
            classes, too, or there are annotations that are not read.
        UnlabeledImagesError: If there are less than two classes and no annotations.
    """
    classes, error = dataset.classes, ValueError
    tables = [table.name for table in csv_files.find_tables(outer)[0]]  # which agree with the folders
    unread = [annotations for annotations in find_unread(outer) if not set(tables) & set(annotations.names)]
    certain = [annotations for annotations in unread if annotations.is_certain]
    shown = ", ".join(classes[:SHOWN]) + ", …" * (len(classes) > SHOWN)
    if not imagefolder.are_classes(classes):
        found, action = _explain_missing_classes(outer, certain or _find_tables(outer) or unread)
        kind = "one folder of images" if len(classes) == 1 else "folders that are not named after classes"
        got, expected = f"{kind} ({shown}) and {found}", "at least two classes"
        error = UnlabeledImagesError if found == NO_ANNOTATIONS else ValueError
    elif certain:
        got = f"class folders ({shown}) and annotations that are not read: {_list(certain)}"
        expected, action = "one of them", certain[0].action
    elif inner := imagefolder.shared_subfolders(folder, classes):
        got, expected = f"the folders {shown} with {len(inner)} folders of the same names in each", "classes"
        action = f"Pass one of them, such as {folder.root / classes[0]}."
    else:
        if unread:
            folder.notes.append(f"Skipped annotations that are not read: {_list(unread)}.")
        return
    raise error(
        f"{folder.root}: got {got}, expected {expected}. {action.rstrip('.')}, or set "
        f'data_format="imagefolder" to use the folders as classes.'
    )


def _explain_missing_classes(folder: DataFolder, unread: list[UnreadAnnotations]) -> tuple[str, str]:
    """Return what the folder contains instead of class folders, and what to do."""
    if unread:
        return f"unread annotations: {_list(unread)}", unread[0].action
    if masks := _find_masks(folder):
        action = TO_SEGMENT if maskfolder.recognizes(folder) else NAME_MASKS
        return f"mask images in {', '.join(masks)}", action
    if archives := _find_archives(folder):
        return f"archives that are not read: {', '.join(archives[:SHOWN])}", "Unpack them."
    action = "Move the images of each class into a folder with its name, or add their annotations."
    return NO_ANNOTATIONS, action


def _recognized(folder: DataFolder, formats: Mapping[str, Any]) -> list[str]:
    """Return the names of the formats in a folder, a format of last resort only if there is no other."""
    names = [name for name, module in formats.items() if name not in FALLBACKS and module.recognizes(folder)]
    is_segmentation = "maskfolder" in formats and "imagefolder" not in formats
    if names in (["coco"], ["yolo"]) and is_segmentation and maskfolder.recognizes(folder):
        source = {"coco": "COCO JSON", "yolo": "label files"}[names[0]]
        folder.notes.append(
            f"Read the masks, which have a class for each pixel, and not the objects of the {source}. To paint those: "
            f'data_format="{names[0]}".'
        )
        return ["maskfolder"]
    if names:
        return names
    tables = csv_files.find_tables(folder)[0] if "csv" in formats else []
    has_masks = "maskfolder" in formats and not tables and not metadata.has_annotations(folder)
    if has_masks and maskfolder.recognizes_parallel(folder):
        return ["maskfolder"]
    is_imagefolder = "imagefolder" in formats and imagefolder.recognizes(folder)
    if tables:
        if not is_imagefolder or not csv_files.agree_with_folders(tables):
            return ["csv"]
        skipped = ", ".join(table.name for table in tables)
        folder.notes.append(f"Skipped {skipped}: the folders of the images are their classes.")
    if is_imagefolder:
        return ["imagefolder"]
    return ["maskfolder"] if has_masks and maskfolder.recognizes(folder) else []


def _find_inner(folder: DataFolder, formats: Mapping[str, Any]) -> str | None:
    """Return the subfolder that contains the dataset: the only one with images, or the only one with annotations."""
    names = imagefolder.class_folders(folder)
    names = names or [name for name, kind in folder.entries(".").items() if kind == "folder"]
    for part in (names, imagefolder.class_names(folder)):
        if len(part) == 1:
            return part[0]
    specific = {name: module for name, module in formats.items() if name not in FALLBACKS}
    found = [name for name in names if _recognized(folder.subfolder(name), specific)]
    if not found and "imagefolder" in formats:
        found = imagefolder.find_datasets(folder)
    if len(found) > 1:
        raise ValueError(
            f"{folder.root}: got several datasets, in {', '.join(found)}, expected one. Pass the folder of one."
        )
    return found[0] if found else None


def _note_entered(folder: DataFolder, inner: DataFolder, path: str) -> None:
    """Add to the notes that the dataset is in a folder within the user's, and what is skipped outside of it."""
    if path == ".":
        return
    images = [name for name, kind in folder.walk() if kind == "file" and is_image_name(name)]
    others = [image for image in images if not image.startswith(f"{path}/")]
    skipped = f" Skipped {len(others)} images elsewhere, such as {others[0]}." if others else ""
    inner.notes[:0] = [*folder.notes, f"Read the folder {path}, which contains the dataset.{skipped}"]


def _choose(folder: DataFolder, names: list[str], formats: Mapping[str, Any], task: TaskName | None) -> str:
    """Return the only format of several that can be read, or the first of those that agree."""
    if len(names) == 1:
        return names[0]
    datasets = {name: dataset for name in names if (dataset := _try_read(folder, formats[name], task))}
    difference = find_difference(*datasets.values()) if datasets else None
    if not datasets or difference:
        choices = " or ".join(f'data_format="{name}"' for name in datasets or names)
        which = f", which differ in {difference}" if difference else ""
        raise ValueError(f"{folder.root}: could be {' or '.join(datasets or names)}{which}. Set {choices}.")
    chosen, *same = datasets
    if same:
        folder.notes.append(f"Read as {chosen}; the files of {' and '.join(same)} describe the same objects.")
    if others := [name for name in names if name not in datasets]:
        folder.notes.append(f"Read as {chosen}; files as in {', '.join(others)} can't be read.")
    return chosen


def _try_read(folder: DataFolder, module: Any, task: TaskName | None) -> Dataset | None:
    """Return the dataset in a format, None if it has no samples or can't be read."""
    try:
        dataset = module.read(DataFolder(folder.root), **task_options(module, task))
    except (ValueError, OSError):
        return None
    return dataset if any(map(len, dataset.splits.values())) else None


def _list(annotations: list[UnreadAnnotations]) -> str:
    more = f" and {len(annotations) - SHOWN} other kinds" if len(annotations) > SHOWN else ""
    return ", ".join(map(str, annotations[:SHOWN])) + more


def _find_tables(folder: DataFolder) -> list[UnreadAnnotations]:
    _, tables = csv_files.find_tables(folder)
    action = f"{csv_files.EXPECTED_COLUMNS}, or use COCO JSON, YOLO or Pascal VOC."
    return [UnreadAnnotations([t.name], f"columns {', '.join(t.columns)}", action) for t in tables]


def _find_archives(folder: DataFolder) -> list[str]:
    return [name for name, kind in folder.walk() if kind == "file" and is_archive(Path(name))]


def _find_masks(folder: DataFolder) -> list[str]:
    """Return the folders of masks, by their names, by files such as `1_mask.png`, or by files named like images."""
    images = [name for name, kind in folder.walk() if kind == "file" and is_image_name(name)]
    stems = {posixpath.splitext(name)[0] for name in images}
    by_folder: dict[str, set[str]] = defaultdict(set)
    for stem in stems:
        by_folder[posixpath.dirname(stem)].add(posixpath.basename(stem))
    masks = {name for name in by_folder if imagefolder.is_mask_folder(posixpath.basename(name))}
    masks |= {posixpath.dirname(stem) for stem in stems for end in MASK_ENDINGS if f"{stem}{end}" in stems}
    for base in filter(lambda name: imagefolder.is_container(posixpath.basename(name)), by_folder):
        masks |= {name for name in by_folder if name != base and by_folder[name] <= by_folder[base]}
    return sorted(masks)


def task_options(module: Any, task: TaskName | None) -> dict[str, Any]:
    """Return the task as an argument of a format's `read`, if its files may have annotations for several."""
    return {"task": task} if task and "task" in inspect.signature(module.read).parameters else {}


def note_unused_masks(folder: DataFolder, dataset: Dataset) -> None:
    """Add to the notes of a dataset of another task that its folder has masks, too."""
    if dataset.task != "image-segmentation" and maskfolder.recognizes(folder):
        folder.notes.append(f"The images also have masks. {TO_SEGMENT}")


def _missing_error(folder: DataFolder, task: TaskName | None) -> ValueError:
    """Return the error of a folder without a dataset."""
    is_segmentation = task == "image-segmentation"
    if is_run(str(folder.root)):
        return ValueError(
            f"{folder.root}: got the output of a training run, expected a dataset. Pass the folder of its images."
        )
    files = [name for name, kind in folder.walk() if kind == "file"]
    expected = (
        "images/ next to masks/ with the same names, COCO JSON or YOLO labels with polygons, or a dataset of the "
        "datasets library"
        if is_segmentation
        else "a folder for each class, COCO JSON, Pascal VOC XML, YOLO labels, a CSV file with file names and labels, "
        "images/ next to masks/, or a dataset of the datasets library"
    )
    unread = find_unread(folder)
    error = ValueError
    if archives := _find_archives(folder):
        got, action = f"no images but {', '.join(archives[:SHOWN])}", "Unpack them."
    elif unread := [kind for kind in unread if kind.is_certain] or _find_tables(folder) or unread:
        got, action = f"annotations that are not read: {_list(unread)}", unread[0].action
    elif images := [name for name in files if is_image_name(name)]:
        error = UnlabeledImagesError
        got = f"no dataset but {len(images)} images without labels, such as {images[0]}"
        action = NAME_MASKS if is_segmentation else "Move the images of each class into a folder with its name."
    elif unread_images := describe_unread(files):
        got, action = "no images that are read", unread_images
    else:
        return ValueError(f"{folder.root}: got no dataset, expected {expected}.")
    return error(f"{folder.root}: got {got}, expected {expected}. {action}")
