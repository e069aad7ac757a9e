"""Images in a folder for each class, below folders for the splits or not; or beside a metadata file with boxes."""

from ..types import Dataset
from . import metadata
from .folder import SPLIT_NAMES, DataFolder, is_image_name, split_folders
from .samples import Samples


def recognizes(folder: DataFolder) -> bool:
    """Whether there is a metadata file or a folder; the format of last resort."""
    return bool(metadata.find_files(folder)) or "folder" in folder.entries(".").values()


def read(folder: DataFolder) -> Dataset:
    """Read class folders, or a metadata file where there is one.

    `train/`, `validation/` and `test/` (or `val`, `valid`, `dev`) hold the class folders; without them the folder
    itself does. The classes are the training split's in alphabetical order.

    Raises:
        ValueError: If no image lies in a class folder.
    """
    if metadata.names_classes(folder):
        return metadata.read(folder)
    files = {split: _images_by_class(folder, directory) for split, directory in _splits(folder).items()}
    classes = sorted(files.get("train") or {name for found in files.values() for name in found})
    splits = {}
    for split, found in files.items():
        for name in found.keys() - set(classes):
            for image in found[name]:
                folder.report(image, "unknown class", f"the training split has no class {name!r}")
        labelled = [(image, label) for label, name in enumerate(classes) for image in found.get(name, [])]
        names = [image for image, _ in labelled]
        splits[split] = Samples(names, [folder.path(name) for name in names], [label for _, label in labelled])
    if not any(map(len, splits.values())):
        raise ValueError(
            f"No images in class folders below {folder.root}. "
            "Expected CLASS/IMAGE or train/CLASS/IMAGE; move the images of each class into a folder of its name."
        )
    return Dataset("image-classification", tuple(classes), splits, "imagefolder")


def _splits(folder: DataFolder) -> dict[str, str]:
    """The folders that hold class folders, by split. A folder named like a split may be a class, if train is none."""
    found = split_folders(folder)
    others = [name for name, kind in folder.entries(".").items() if kind == "folder" and name not in found.values()]
    if not found or ("train" not in found and others):
        return {"train": "."}
    if others:
        folder.notes.append(f"Beside the splits lie folders that are not read: {', '.join(others)}.")
    return found


def _images_by_class(folder: DataFolder, directory: str) -> dict[str, list[str]]:
    entries = folder.entries(directory)
    below = "" if directory == "." else f"{directory}/"
    loose = [name for name, kind in entries.items() if kind == "file" and is_image_name(name)]
    if loose:
        folder.notes.append(f"{len(loose)} images lie in no class folder and are not read, such as {below}{loose[0]}.")
    for name, kind in entries.items():
        if kind == "outside":
            folder.report(f"{below}{name}", "missing image", "no file, or a link out of the dataset's folder")
    found = {name: folder.images(f"{below}{name}") for name, kind in entries.items() if kind == "folder"}
    empty = [name for name, images in found.items() if not images and name.lower() not in SPLIT_NAMES]
    if empty:
        folder.notes.append(f"Folders without images, which are no classes: {', '.join(below + n for n in empty)}.")
    return {name: images for name, images in found.items() if images}
