"""Mask folders: images and masks in parallel folders or next to each other, as of Pascal VOC, Cityscapes or CamVid."""

import posixpath
from collections.abc import Sequence

from ..masks import Mask
from ..sequences import Samples
from ..types import Dataset
from .folder import SPLIT_NAMES, DataFolder, is_image_name
from .lookup import FileIndex, Reference, match_files, split_of
from .mask_classes import find_classes
from .mask_content import find_mask_folders
from .mask_pairs import Pair, Pairs, find_missing_masks, find_pairs, has_mask_role
from .mask_values import infer_encoding, known_rows

TASKS = ("image-segmentation",)
# What to do to use the masks of a dataset that also has other annotations.
TO_SEGMENT = 'To train on them: task="image-segmentation".'
SPLITS = ("train", "validation", "test")
LIST_FOLDER = "ImageSets/Segmentation"
LISTED = 0.5  # fraction of a list's lines that are images, so that it is one


def recognizes(folder: DataFolder) -> bool:
    """Return whether most images of a folder in it have a mask."""
    pairs = find_pairs(folder)
    return _is_dataset(pairs)


def recognizes_parallel(folder: DataFolder) -> bool:
    """Return whether there is a folder of masks, and none around it that may be a class."""
    directories = {posixpath.dirname(name) for names in folder.files_by_suffix().values() for name in names}
    if not any(map(has_mask_role, directories)):  # quick, also for millions of images
        return bool(find_mask_folders(folder))
    pairs = find_pairs(folder)
    return _is_dataset(pairs) and not pairs.are_in_classes


def _is_dataset(pairs: Pairs) -> bool:
    return bool(pairs.pairs) and 2 * len(find_missing_masks(pairs)) <= len(pairs.pairs)


def read(folder: DataFolder) -> Dataset:
    """Read images and masks.

    Masks are in a folder that is named like masks (`masks`, `labels`, `annotations`, `SegmentationClass`, `gtFine`)
    next to one of images, in `trainannot` next to `train`, or have names such as `1_mask.png`, and are matched with
    images by folder and name. Splits are lists such as `train.txt`, with names of images and perhaps of masks, or else
    folders named like splits, or else all images are the training split. Classes are those of a file such as
    `classes.txt`, `labelmap.txt` or `id2label.json`, see `find_classes`, or else the values of the masks.

    Raises:
        ValueError: If there are no masks, or colors whose classes no file names.
    """
    pairs = find_pairs(folder)
    listed = _read_lists(folder, pairs)
    splits = listed or _split_by_folder(pairs)
    if not any(splits.values()):
        raise ValueError(
            f"{folder.root}: got no images with masks, expected images/ next to masks/ with the same names, or names "
            "such as 1.jpg and 1_mask.png."
        )
    for masks, images in pairs.by_content.items():
        folder.notes.append(
            f"Read {masks} as the masks of {images}: the same names, and few colors. If both are classes, set "
            'data_format="imagefolder".'
        )
    _report_unmatched(folder, pairs, find_missing_masks(pairs) if not listed else [])
    rows, file = find_classes(folder)
    names = [pair for part in splits.values() for pair in part]
    if not rows:
        rows, file = known_rows([pair.image for pair in names], [pair.mask for pair in names])
    masks = [folder.path(pair.mask) for pair in names]
    classes, encoding, notes = infer_encoding(masks, rows, file, str(folder.root))
    folder.notes += notes
    samples = {
        split: Samples(
            [pair.image for pair in part],
            [folder.path(pair.image) for pair in part],
            [Mask(folder.path(pair.mask), encoding) for pair in part],
        )
        for split, part in splits.items()
    }
    return Dataset("image-segmentation", classes, dict(samples), "maskfolder")


def _split_by_folder(pairs: Pairs) -> dict[str, list[Pair]]:
    splits: dict[str, list[Pair]] = {}
    for pair in pairs.pairs:
        directory = posixpath.dirname(pair.image)
        split = split_of(directory) or split_of(posixpath.dirname(pair.mask)) or "train"
        splits.setdefault(split, []).append(pair)
    return {split: splits[split] for split in SPLITS if split in splits}


def _read_lists(folder: DataFolder, pairs: Pairs) -> dict[str, list[Pair]]:
    """Return the pairs by the lists that contain them, {} without any list of images."""
    images = FileIndex(folder, [pair.image for pair in pairs.pairs])
    mask_of = dict(pairs.pairs)
    unmatched = FileIndex(folder, pairs.unmatched_images)
    lists: dict[str, list[Pair]] = {}
    for name in _find_lists(folder):
        lines = list(dict.fromkeys(folder.read_lines(name)))
        references = [_make_reference(name, line) for line in lines]
        matches = [found for found, _ in match_files(images, references)]
        explicit = _match_columns(folder, lines, name) if not any(matches) else {}
        found = [
            explicit.get(line) or (Pair(m, mask_of[m]) if m else None) for line, m in zip(lines, matches, strict=True)
        ]
        if not lines or sum(pair is not None for pair in found) < LISTED * len(lines):
            continue
        lists[name] = [pair for pair in found if pair]
        for line, reference, pair in zip(lines, references, found, strict=True):
            if pair is None:
                image, _ = match_files(unmatched, [reference])[0]
                kind = "missing mask" if image else "missing image"
                folder.report(
                    image or line, kind, f"listed in {name}: no {kind.removeprefix('missing ')} of this name"
                )
    return _combine(folder, lists, pairs)


def _find_lists(folder: DataFolder) -> list[str]:
    """Return the files that are named like splits: those in `ImageSets/Segmentation`, or else the outermost."""
    texts = [name for name in folder.files_by_suffix().get(".txt", ()) if _list_split(name)]
    own = [name for name in texts if f"/{posixpath.dirname(name)}".endswith(f"/{LIST_FOLDER}")]
    depth = min((name.count("/") for name in texts), default=0)
    return own or [name for name in texts if name.count("/") == depth]


def _list_split(name: str) -> str | None:
    stem = posixpath.basename(name).removesuffix(".txt").lower()
    return "trainval" if stem == "trainval" else SPLIT_NAMES.get(stem)


def _make_reference(name: str, line: str) -> Reference:
    """Return the possible images of a line: a path or a name without suffix, perhaps followed by that of the mask."""
    first = line if is_image_name(line) and not _has_two_names(line) else line.replace(",", " ").split()[0]
    parent = posixpath.dirname(name)
    return Reference([posixpath.normpath(posixpath.join(parent, first.lstrip("/"))), first.lstrip("/")], [first])


def _has_two_names(line: str) -> bool:
    words = line.replace(",", " ").split()
    return len(words) == 2 and all(map(is_image_name, words))


def _match_columns(folder: DataFolder, lines: Sequence[str], name: str) -> dict[str, Pair]:
    """Return the pairs of lines with the names of an image and a mask that don't correspond to each other."""
    index = FileIndex.of_images(folder)
    rows = {line: line.replace(",", " ").split() for line in lines if _has_two_names(line)}
    found = {}
    for line, words in rows.items():
        (image, _), (mask, _) = match_files(index, [_make_reference(name, word) for word in words])
        if image and mask:
            found[line] = Pair(image, mask)
    return found


def _combine(folder: DataFolder, lists: dict[str, list[Pair]], pairs: Pairs) -> dict[str, list[Pair]]:
    """Return the pairs by split. Pairs that only `trainval` lists go to the split without a list of its own."""
    splits: dict[str, list[Pair]] = {}
    for name, part in lists.items():
        splits[_list_split(name) or "train"] = part
    combined = splits.pop("trainval", [])
    listed = {pair for part in splits.values() for pair in part}
    if others := [pair for pair in combined if pair not in listed]:
        split = "validation" if "train" in splits and "validation" not in splits else "train"
        splits[split] = [*splits.get(split, ()), *others]
        folder.notes.append(f"Added {len(others)} images that only trainval.txt lists to the {split} split.")
    listed = {pair for part in splits.values() for pair in part}
    if splits and (rest := [pair.image for pair in pairs.pairs if pair not in listed]):
        if not splits.get("train"):
            splits["train"] = [pair for pair in pairs.pairs if pair not in listed]
            folder.notes.append(f"No list of the training split: the {len(rest)} images in no list are used.")
        else:
            folder.notes.append(f"Skipped {len(rest)} images with masks in no list of a split, such as {rest[0]}.")
    return {split: splits[split] for split in SPLITS if splits.get(split)}


def _report_unmatched(folder: DataFolder, pairs: Pairs, missing: Sequence[str]) -> None:
    """Report images whose mask is `missing`, and masks without an image; note images that are not of the dataset."""
    for name in missing:
        folder.report(name, "missing mask", "no mask of this name")
    reported = {problem.name for problem in folder.problems}
    for name in pairs.unmatched_masks:
        folder.report(name, "missing image", "a mask without an image of its name")
    if others := [name for name in pairs.unmatched_images if name not in reported]:
        folder.notes.append(f"Skipped {len(others)} images without a mask, such as {others[0]}.")
    if pairs.other_masks:
        folder.notes.append(
            f"Skipped {len(pairs.other_masks)} further masks of the same images, such as {pairs.other_masks[0]}."
        )
