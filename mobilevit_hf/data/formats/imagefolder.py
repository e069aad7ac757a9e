"""Image folder: one folder per class, optionally within folders for splits, or images with a metadata file."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import chain

from ..types import Dataset, Split
from . import metadata
from .annotations import make_labeled_samples
from .folder import SPLIT_NAMES, DataFolder, is_image_name, join, split_folders
from .lookup import NEUTRAL_WORDS, split_of

TASKS = ("image-classification", "object-detection")
# Words of the names of folders that say what is in them, and not what is on the images.
MASK_WORDS = {
    *("annot", "annots", "annotation", "annotations", "groundtruth", "gt", "label", "labels", "mask", "masks", "seg"),
    *("segmentation", "segmentations"),
}
PART_WORDS = {"batch", "folder", "jpeg", "jpg", "part", "photo", "photos", "pics", "png", "pred"}
# Words of the names of folders that illustrate a repository, where they are no classes.
DOCUMENTATION_WORDS = {
    *("asset", "assets", "banner", "demo", "demos", "doc", "docs", "documentation", "example", "examples", "fig"),
    *("figs", "figure", "figures", "icon", "icons", "logo", "logos", "media", "output", "outputs", "plot", "plots"),
    *("preview", "previews", "readme", "result", "results", "sample", "samples", "screenshot", "screenshots"),
    *("static", "thumbnail", "thumbnails"),
}
MAX_ILLUSTRATIONS = 50  # images in such a folder; with more, it may be a class
REPOSITORY_FILES = ("readme.md", "readme.rst", "license", "license.md", "license.txt")
CODE_SUFFIXES = (".py", ".ipynb", ".js", ".ts", ".java", ".c", ".cpp", ".h", ".html", ".css", ".sh", ".m", ".swift")
CONTAINERS = ("images", "imgs", "jpegimages", "data", "dataset", "datasets")  # never a class
PASCAL_MASKS = re.compile(r"Segmentation(?:Class|Object)\w*")
MAIN_SHARE = 0.9  # of a repository's images in the folder of its dataset
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def recognizes(folder: DataFolder) -> bool:
    """Return whether there is a metadata file with annotations, or at least two class folders."""
    if metadata.has_annotations(folder):
        return True
    return _has_classes(folder) and not find_datasets(folder)


def find_datasets(folder: DataFolder) -> list[str]:
    """Return the folders that contain class folders of their own, if those of this level are no classes.

    They are none if one of them has splits, a name such as `data`, or almost all images of a repository, or if another
    is named like all images: classes are seldom so different. Of several datasets, the one with splits is returned, or
    else the one with most images.
    """
    if _split_directories(folder) != {"train": "."}:
        return []
    names = class_names(folder)
    inner = {name: folder.subfolder(name) for name in names if not _holds_images(folder, name)}
    inner = {name: part for name, part in inner.items() if not is_mask_folder(name) and _has_classes(part)}
    if not inner:
        return []
    with_splits = [name for name, part in inner.items() if _split_directories(part) != {"train": "."}]
    sizes = {name: len(folder.images(name)) for name in names}
    main = [name for name in inner if sizes[name] >= MAIN_SHARE * sum(sizes.values())]
    is_main = bool(main) and len(inner) == 1 and _is_repository(folder)
    if not (with_splits or is_main or any(map(is_generic, inner)) or any(map(is_container, names))):
        return []
    return next((part for part in (with_splits, main) if len(part) == 1), list(inner))


def class_names(folder: DataFolder) -> list[str]:
    """Return the names of the folders with images that may be classes: not those of documentation and of code.

    A folder with a name such as `figures` is of documentation only if it has few images: it may be a class.
    """
    names = class_folders(folder)
    if _is_repository(folder) or not all(_holds_images(folder, name) for name in names):
        names = [name for name in names if not _is_documentation(folder, name)]
    return [name for name in names if not _is_code(folder, name)]


def _has_classes(folder: DataFolder) -> bool:
    return any(are_classes(_class_names(folder, directory)) for directory in _split_directories(folder).values())


def _class_names(folder: DataFolder, directory: str) -> list[str]:
    return class_names(folder) if directory == "." else class_folders(folder, directory)


def _holds_images(folder: DataFolder, directory: str) -> bool:
    """Return whether a directory holds images itself, and not only in its folders."""
    return any(map(is_image_name, folder.files(directory)))


def _is_repository(folder: DataFolder) -> bool:
    names = [name.lower() for name, kind in folder.entries(".").items() if kind == "file"]
    return any(name in REPOSITORY_FILES or name.endswith(CODE_SUFFIXES) for name in names)


def _is_documentation(folder: DataFolder, directory: str) -> bool:
    """Return whether a folder, or all of its folders with images, are named like those of documentation."""
    words = _words(posixpath.basename(directory))
    if not DOCUMENTATION_WORDS.isdisjoint(words):
        is_named = all(word in DOCUMENTATION_WORDS or _is_generic(word) for word in words)
    else:
        inner = [] if _holds_images(folder, directory) else class_folders(folder, directory)
        is_named = bool(inner) and all(_is_documentation(folder, join(directory, name)) for name in inner)
    return is_named and len(folder.images(directory)) <= MAX_ILLUSTRATIONS  # last: walks the folder


def _is_code(folder: DataFolder, directory: str) -> bool:
    """Return whether a folder holds at least as many files of code as images, or a tenth of them in its folders."""
    by_suffix = folder.files_by_suffix()
    code = [name for suffix in CODE_SUFFIXES for name in by_suffix.get(suffix, ()) if name.startswith(f"{directory}/")]
    weight = 1 if _holds_images(folder, directory) else 10
    return bool(code) and weight * len(code) >= len(folder.images(directory))


def class_folders(folder: DataFolder, directory: str = ".") -> list[str]:
    """Return the names of the folders with images in a directory."""
    entries = folder.entries(directory).items()
    return [base for base, kind in entries if kind == "folder" and folder.has_images(join(directory, base))]


def are_classes(names: Collection[str]) -> bool:
    """Return whether folders are named after at least two classes, and not all after their content or splits.

    `images` and `masks` are not, nor are `cars_train` and `cars_test`, or `photos_part_1` and `photos_part_2`.
    """
    subjects = {tuple(word for word in _words(name) if not _is_generic(word)) for name in names}
    has_generic = all(any(map(_is_generic, _words(name))) for name in names)
    return len(names) > 1 and not (len(subjects) == 1 and has_generic) and not any(map(is_container, names))


def is_container(name: str) -> bool:
    """Return whether a folder's name, such as `images`, is that of all images of a dataset."""
    return name.lower() in CONTAINERS


def is_generic(name: str) -> bool:
    """Return whether a folder's name, such as `images` or `train_masks`, says nothing about a class."""
    return bool(_words(name)) and all(map(_is_generic, _words(name)))


def is_mask_folder(name: str) -> bool:
    """Return whether a folder is named like one of masks."""
    return is_generic(name) and any(_without_split(word) in MASK_WORDS for word in _words(name))


def shared_subfolders(folder: DataFolder, names: Collection[str]) -> list[str]:
    """Return the folders that all class folders contain instead of images, if there are several."""
    if any(is_image_name(file) for name in names for file in folder.files(name)):
        return []
    inner = {tuple(class_folders(folder, name)) for name in names}
    shared = inner.pop() if len(inner) == 1 else ()
    return list(shared) if len(shared) > 1 and are_classes(shared) else []


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORD.findall(PASCAL_MASKS.sub("masks", name))]


def _is_generic(word: str) -> bool:
    return word in SPLIT_NAMES or _without_split(word) in NEUTRAL_WORDS | MASK_WORDS | PART_WORDS


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
    files = _choose_level(folder, directories, files)
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
    """Return the folders whose names contain a split, such as `train_set`, unless others contain class folders too."""
    splits: dict[str, str] = {}
    for name in class_folders(folder):
        classes = class_folders(folder, _enter(folder, name))
        split = split_of(name)
        if split in splits or (split is None and are_classes(classes)):
            return {}
        if split and classes:
            splits[split] = name
    return splits


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
    if used != {"."}:
        others = [name for name, kind in folder.entries(".").items() if kind == "folder" and name not in used]
        kind = "next to the splits"
    else:
        others, kind = sorted({*class_folders(folder)} - {*class_names(folder)}), "of documentation or code"
    if others:
        folder.notes.append(f"Skipped folders {kind}: {', '.join(others)}.")


def _choose_level(
    folder: DataFolder, directories: Mapping[str, str], files: dict[str, dict[str, list[str]]]
) -> dict[str, dict[str, list[str]]]:
    """Return the images by innermost folder instead if these are classes in groups, as in `fruit/apple`, `fruit/pear`.

    They are if the splits share them: a folder for a video or a patient would be in one split.
    """
    if any(_holds_images(folder, join(directories[split], name)) for split, part in files.items() for name in part):
        return files
    inner: dict[str, dict[str, list[str]]] = {}
    for split, by_class in files.items():
        for image in chain(*by_class.values()):
            path = posixpath.dirname(image.removeprefix(f"{directories[split]}/"))
            inner.setdefault(split, {}).setdefault(path, []).append(image)
    paths = sorted(set(chain(*inner.values())))
    groups = sorted({path.split("/")[0] for path in paths})
    names = {posixpath.basename(path) for path in paths}
    is_unique = len({(path.split("/")[0], posixpath.basename(path)) for path in paths}) == len(names)
    if not (1 < len(groups) < len(names) and is_unique):
        return files
    train, others = set(inner.get("train", ())), set(chain(*(inner[split] for split in inner if split != "train")))
    outer_level = f"the {len(groups)} outer folders, such as {groups[0]}"
    inner_level = f"the {len(names)} innermost folders, such as {paths[0]}"
    if not others or 2 * len(others & train) < len(others):
        folder.notes.append(f"Classes are {outer_level}, and not {inner_level}. Move these up to use them as classes.")
        return files
    folder.notes.append(f"Classes are {inner_level}, which the splits share, and not {outer_level}.")
    chosen: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in inner}
    for split, part in inner.items():
        for path, images in part.items():
            chosen[split][posixpath.basename(path)] += images
    return chosen


def _images_by_class(folder: DataFolder, directory: str) -> dict[str, list[str]]:
    loose = [name for name in folder.files(directory) if is_image_name(name)]
    if loose:
        folder.notes.append(f"Skipped {len(loose)} images outside of class folders, such as {loose[0]}.")
    skipped = {*class_folders(folder, directory)} - {*_class_names(folder, directory)}
    by_class: dict[str, list[str]] = {}
    for name, kind in folder.entries(directory).items():
        if kind == "outside":
            folder.report_outside(join(directory, name))
        elif kind == "folder" and name not in skipped:
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
