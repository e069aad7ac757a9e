"""Image folder: one folder per class, optionally within folders for splits, or images with a metadata file."""

import re

from ..types import Dataset, Split
from . import metadata
from .annotations import make_labeled_samples
from .folder import SPLIT_NAMES, DataFolder, is_image_name, join, split_folders
from .lookup import NEUTRAL_WORDS, split_of

MASK_WORDS = {"mask", "masks", "annot", "annots", "annotation", "annotations", "gt", "label", "labels", "seg"}
CONTENT_WORDS = NEUTRAL_WORDS | MASK_WORDS | {"groundtruth", "jpg", "photo", "photos", "pics", "pictures", "png"}


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is a metadata file with annotations, or at least two class folders."""
    if metadata.has_annotations(folder):
        return True
    return any(len(class_folders(folder, directory)) > 1 for directory in _split_directories(folder).values())


def class_folders(folder: DataFolder, directory: str = ".") -> list[str]:
    """Return the names of the folders with images in a directory."""
    entries = folder.entries(directory).items()
    return [base for base, kind in entries if kind == "folder" and folder.has_images(join(directory, base))]


def is_generic(name: str) -> bool:
    """Return whether a folder's name, such as `images` or `train_masks`, is no name of a class."""
    words = re.findall(r"[a-z]+", name.lower())
    return bool(words) and all(word in SPLIT_NAMES or _without_split(word) in CONTENT_WORDS for word in words)


def is_mask_folder(name: str) -> bool:
    """Return whether a folder is named like one of masks or other annotations."""
    return is_generic(name) and any(_without_split(w) in MASK_WORDS for w in re.findall(r"[a-z]+", name.lower()))


def _without_split(word: str) -> str:
    """Return `annot` for `trainannot`."""
    return next((rest for split in SPLIT_NAMES if (rest := word.removeprefix(split)) != word and rest), word)


def read(folder: DataFolder) -> Dataset:
    """Read class folders, or metadata files with labels or boxes.

    Class folders are in `train/`, `validation/` and `test/` (or `val`, `valid`, `dev`), or directly in the folder.
    Classes are those of the training split in alphabetical order.

    Raises:
        ValueError: If there are no images in class folders.
    """
    if metadata.has_annotations(folder):
        return metadata.read(folder)
    directories = _split_directories(folder)
    _note_skipped(folder, directories)
    files = {split: _images_by_class(folder, directory) for split, directory in directories.items()}
    classes = sorted(files.get("train") or {name for by_class in files.values() for name in by_class})
    labels = {name: label for label, name in enumerate(classes)}
    splits: dict[str, Split] = {}
    for split, by_class in files.items():
        images = ((image, name) for name, images in by_class.items() for image in images)
        splits[split] = make_labeled_samples(folder, images, labels)
    if not any(splits.values()):
        raise ValueError(
            f"{folder.root}: got no images in class folders, expected CLASS/IMAGE or train/CLASS/IMAGE. "
            "Move the images of each class into a folder with its name."
        )
    return Dataset("image-classification", tuple(classes), splits, "imagefolder")


def _split_directories(folder: DataFolder) -> dict[str, str]:
    """Return the directories of class folders by split. Without class folders, folders named like splits are classes.

    Without `train`, folders named like splits may be classes, too.
    """
    for splits in (split_folders(folder), _loosely_named_splits(folder)):
        others = [name for name in class_folders(folder) if name not in splits.values()]
        directories = {split: _enter(folder, directory) for split, directory in splits.items()}
        has_classes = any(class_folders(folder, directory) for directory in directories.values())
        if has_classes and ("train" in splits or not others):
            return directories
    return {"train": "."}


def _loosely_named_splits(folder: DataFolder) -> dict[str, str]:
    """Return the folders whose names contain a split, such as `train_set`, if these are all with class folders."""
    names = [name for name in class_folders(folder) if class_folders(folder, _enter(folder, name))]
    splits = {split: name for name in names if (split := split_of(name))}
    return splits if len(splits) == len(names) else {}


def _enter(folder: DataFolder, directory: str) -> str:
    """Return a directory, or the one that it wraps, as in `seg_train/seg_train/CLASS` or `train/images/CLASS`."""
    while not any(map(is_image_name, folder.files(directory))):
        names = class_folders(folder, directory)
        nested = join(directory, names[0]) if len(names) == 1 and is_generic(names[0]) else None
        if nested is None or not class_folders(folder, nested):
            break
        directory = nested
    return directory


def _note_skipped(folder: DataFolder, directories: dict[str, str]) -> None:
    used = {directory.split("/")[0] for directory in directories.values()}
    others = [name for name, kind in folder.entries(".").items() if kind == "folder" and name not in used]
    if used != {"."} and others:
        folder.notes.append(f"Skipped folders next to the splits: {', '.join(others)}.")


def _images_by_class(folder: DataFolder, directory: str) -> dict[str, list[str]]:
    loose = [name for name in folder.files(directory) if is_image_name(name)]
    if loose:
        folder.notes.append(f"Skipped {len(loose)} images outside of class folders, such as {loose[0]}.")
    by_class: dict[str, list[str]] = {}
    for name, kind in folder.entries(directory).items():
        if kind == "outside":
            folder.report_outside(join(directory, name))
        elif kind == "folder":
            by_class[name] = _images_without_masks(folder, join(directory, name))
    empty = [name for name, images in by_class.items() if not images and name.lower() not in SPLIT_NAMES]
    if empty:
        names = ", ".join(join(directory, name) for name in empty)
        folder.notes.append(f"Skipped folders without images: {names}.")
    return {name: images for name, images in by_class.items() if images}


def _images_without_masks(folder: DataFolder, directory: str) -> list[str]:
    """Return the images below a class folder; masks next to a folder of images are skipped with a note."""
    names = class_folders(folder, directory)
    masks = [join(directory, name) for name in names if is_mask_folder(name)]
    images = folder.images(directory)
    if not masks or len(masks) == len(names) or not all(map(is_generic, names)):
        return images
    folder.notes.append(f"Skipped {', '.join(masks)}: masks of the images next to them.")
    return [name for name in images if not name.startswith(tuple(f"{mask}/" for mask in masks))]
