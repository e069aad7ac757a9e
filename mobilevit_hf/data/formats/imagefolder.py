"""Image folder: one folder per class, optionally within folders for splits, or images with a metadata file."""

from ..sequences import Samples
from ..types import Dataset, Split
from . import metadata
from .folder import SPLIT_NAMES, DataFolder, is_image_name, split_folders


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
    splits: dict[str, Split] = {}
    count = 0
    for split, by_class in files.items():
        for name in by_class.keys() - set(classes):
            for image in by_class[name]:
                folder.report(image, "unknown class", f"class {name!r} is not in the training split")
        labeled = [(image, label) for label, name in enumerate(classes) for image in by_class.get(name, [])]
        names = [image for image, _ in labeled]
        splits[split] = Samples(names, [folder.path(name) for name in names], [label for _, label in labeled])
        count += len(names)
    if not count:
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
    entries = folder.entries(directory)
    prefix = "" if directory == "." else f"{directory}/"
    loose = [name for name, kind in entries.items() if kind == "file" and is_image_name(name)]
    if loose:
        folder.notes.append(f"Skipped {len(loose)} images outside of class folders, such as {prefix}{loose[0]}.")
    for name, kind in entries.items():
        if kind == "outside":
            folder.report_outside(f"{prefix}{name}")
    by_class = {name: folder.images(f"{prefix}{name}") for name, kind in entries.items() if kind == "folder"}
    empty = [name for name, images in by_class.items() if not images and name.lower() not in SPLIT_NAMES]
    if empty:
        folder.notes.append(f"Skipped folders without images: {', '.join(prefix + name for name in empty)}.")
    return {name: images for name, images in by_class.items() if images}
