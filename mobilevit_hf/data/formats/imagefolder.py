"""Image folder: one folder per class, optionally within folders for splits, or images with a metadata file."""

from ..types import Dataset, Split
from . import metadata
from .annotations import make_labeled_samples
from .folder import SPLIT_NAMES, DataFolder, is_image_name, join, split_folders


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is a metadata file or any subfolder. Use it as the last format."""
    return bool(metadata.find_files(folder)) or "folder" in folder.entries(".").values()


def read(folder: DataFolder) -> Dataset:
    """Read class folders, or metadata files with labels or boxes.

    Class folders are in `train/`, `validation/` and `test/` (or `val`, `valid`, `dev`), or directly in the folder.
    Classes are those of the training split in alphabetical order.

    Raises:
        ValueError: If there are no images in class folders.
    """
    if metadata.has_annotations(folder):
        return metadata.read(folder)
    files = {split: _images_by_class(folder, directory) for split, directory in _split_directories(folder).items()}
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
    """Return the directories of class folders by split. Without `train`, folders named like splits may be classes."""
    splits = split_folders(folder)
    others = [name for name, kind in folder.entries(".").items() if kind == "folder" and name not in splits.values()]
    if not splits or ("train" not in splits and others):
        return {"train": "."}
    if others:
        folder.notes.append(f"Skipped folders next to the splits: {', '.join(others)}.")
    return splits


def _images_by_class(folder: DataFolder, directory: str) -> dict[str, list[str]]:
    loose = [name for name in folder.files(directory) if is_image_name(name)]
    if loose:
        folder.notes.append(f"Skipped {len(loose)} images outside of class folders, such as {loose[0]}.")
    by_class: dict[str, list[str]] = {}
    for name, kind in folder.entries(directory).items():
        if kind == "outside":
            folder.report_outside(join(directory, name))
        elif kind == "folder":
            by_class[name] = folder.images(join(directory, name))
    empty = [name for name, images in by_class.items() if not images and name.lower() not in SPLIT_NAMES]
    if empty:
        names = ", ".join(join(directory, name) for name in empty)
        folder.notes.append(f"Skipped folders without images: {names}.")
    return {name: images for name, images in by_class.items() if images}
