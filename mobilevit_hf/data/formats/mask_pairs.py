"""Find the mask of each image by their names: in parallel folders, or in the same one with a suffix."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .folder import SPLIT_NAMES, DataFolder, is_image_name
from .imagefolder import MASK_WORDS, PART_WORDS
from .lookup import NEUTRAL_WORDS, split_of
from .mask_content import find_mask_folders

# Names of folders of masks and of images whose words don't say so, in lower case.
MASK_FOLDERS = (
    *("segmentationclass", "segmentationclassraw", "segmentationclassaug", "gtfine", "gtcoarse", "trimap", "trimaps"),
    *("masks_machine", "masks_human", "stuffthingmaps", "labeledapproved_full", "gt_fine", "segmentationobject"),
    *("segmaps", "label_maps", "labelmaps", "masks_png", "seg_maps", "indexlabel"),
)
IMAGE_FOLDERS = ("leftimg8bit", "jpegimages", "701_stillsraw_full", "rgb", "input", "inputs", "original", "raw")
IMAGE_WORDS = {"image", "images", "img", "imgs", "photo", "photos", "pics", "jpegimages"}
NOT_USED = ("segmentationobject", "masks_human", "_color", "_instanceids", "_instancetrainids")
# Endings of names that mean a mask, the first of several for the same image.
MASK_ENDINGS = (
    *("_gtfine_labeltrainids", "_gtfine_labelids", "_gtcoarse_labelids", "_labeltrainids", "_labelids", "_mask"),
    *("-mask", "_masks", "_segmentation", "_seg", "_groundtruth", "_gt", "_label", "_labels", "_lbl", "_trimap", "_l"),
    *("_gtfine_color", "_gtfine_instanceids", "_gtfine_instancetrainids", "_gtcoarse_color", "_gtcoarse_instanceids"),
)
IMAGE_ENDINGS = ("_leftimg8bit", "_image", "_img", "_sat", "_rgb")
BEGINNINGS = re.compile(r"^(?:masks?|images?|img|labels?|seg|gt)[_-](?=.)")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
PRESENT = 0.5  # fraction of a folder's images with a mask; below, the others are not part of the dataset


class Pair(NamedTuple):
    """Names of an image and its mask."""

    image: str
    mask: str


@dataclass
class Pairs:
    """Images with masks.

    Attributes:
        pairs: Pairs, in the order of the images.
        unmatched_images: Images without a mask.
        unmatched_masks: Masks without an image.
        other_masks: Further masks of images that have one.
        are_in_classes: Whether the folders of images and masks are in folders that may be classes.
        by_content: Folders of masks, each with that of its images, that were recognized by content only.
    """

    pairs: list[Pair] = field(default_factory=list)
    unmatched_images: list[str] = field(default_factory=list)
    unmatched_masks: list[str] = field(default_factory=list)
    other_masks: list[str] = field(default_factory=list)
    are_in_classes: bool = False
    by_content: dict[str, str] = field(default_factory=dict)


class _File(NamedTuple):
    name: str
    key: tuple[str, ...]  # folders, without words for images and masks
    stem: str
    is_mask: bool  # by its folder
    is_in_class: bool  # whether a folder that may be a class contains that of the images or masks


def has_mask_role(directory: str) -> bool:
    """Return whether a folder, or one that contains it, is named like masks."""
    return any(_split_role(part)[1] == "mask" for part in directory.split("/"))


def find_pairs(folder: DataFolder) -> Pairs:
    """Find the mask of each image of a folder, by names, or else by the content of folders with the same names."""
    pairs = _pair_by_name(folder)
    if not pairs.pairs and (by_content := find_mask_folders(folder)):
        image_of = {}
        for name in folder.images("."):
            directory, base = posixpath.split(name)
            image_of[directory, posixpath.splitext(base)[0]] = name
        for (directory, stem), name in image_of.items():
            if directory in by_content:
                pairs.pairs.append(Pair(image_of[by_content[directory], stem], name))
        pairs.unmatched_images, pairs.by_content = [], by_content
    return pairs


def _pair_by_name(folder: DataFolder) -> Pairs:
    names = [name for name, kind in folder.walk() if kind == "file" and is_image_name(name)]
    common = _common_folders(names)
    files = [_classify(name, common) for name in names]
    by_key: dict[tuple[tuple[str, ...], str], list[_File]] = defaultdict(list)
    by_stem: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        if not file.is_mask:
            for stem in dict.fromkeys(_stems(file.stem, IMAGE_ENDINGS)):
                by_key[file.key, stem].append(file)
                by_stem[stem].append(file)
    masks: dict[str, list[tuple[int, _File]]] = defaultdict(list)  # by image
    result = Pairs()
    for file in files:
        ending = next((ending for ending in MASK_ENDINGS if file.stem.endswith(ending)), None)
        if not (file.is_mask or ending):
            continue
        image = _find_image(file, by_key, by_stem)
        if image:
            masks[image.name].append((_rank(file, ending), file))
        elif file.is_mask and not any(part in file.name.lower() for part in NOT_USED):
            result.unmatched_masks.append(file.name)
    named = {file.name for ranked in masks.values() for _, file in ranked}
    for file in files:
        if file.name in masks and file.name not in named:
            (rank, mask), *others = sorted(masks[file.name], key=lambda entry: entry[0])
            if rank < len(MASK_ENDINGS) + 1:
                result.pairs.append(Pair(file.name, mask.name))
                result.are_in_classes |= mask.is_in_class
            result.other_masks += [other.name for _, other in others]
        elif not file.is_mask and file.name not in named:
            result.unmatched_images.append(file.name)
    return result


def _classify(name: str, common: int) -> _File:
    directory, base = posixpath.split(name)
    parts = directory.split("/")[common:] if directory else []
    key: list[str] = []
    role, is_in_class = "", False
    for part in parts:
        rest, own = _split_role(part)
        if own:
            role, is_in_class = own, any(word not in SPLIT_NAMES.values() for word in key)
        key += rest
    stem = posixpath.splitext(base)[0].lower()
    is_class = is_in_class or (not role and any(word not in SPLIT_NAMES.values() for word in key))
    return _File(name, tuple(key), stem, role == "mask", is_class)


def _split_role(part: str) -> tuple[list[str], str]:
    """Return the words of a folder's name that tell it from others of its kind, and "mask", "image" or ""."""
    lower = part.lower()
    if lower in MASK_FOLDERS:
        return [], "mask"
    if lower in IMAGE_FOLDERS:
        return [], "image"
    words, rest, role = [word.lower() for word in WORD.findall(part)], [], ""
    for word in words:
        split = next((split for split in SPLIT_NAMES if word.startswith(split) and word != split), "")
        if word not in SPLIT_NAMES and split and word.removeprefix(split) in MASK_WORDS | IMAGE_WORDS:  # trainannot
            rest.append(SPLIT_NAMES[split])
            word = word.removeprefix(split)
        if word in SPLIT_NAMES:
            rest.append(SPLIT_NAMES[word])
        elif word in MASK_WORDS:
            role = "mask"
        elif word in IMAGE_WORDS:
            role = role or "image"
        elif word not in NEUTRAL_WORDS | PART_WORDS:
            rest.append(word)
    return rest, role


def _stems(stem: str, endings: Sequence[str]) -> Iterator[str]:
    """Yield a name in lower case, and without an image suffix, an ending or a beginning that says what it is."""
    stem = posixpath.splitext(stem)[0] if is_image_name(stem) else stem
    yield stem
    for ending in endings:
        if stem.endswith(ending):
            yield stem.removesuffix(ending)
            break
    if match := BEGINNINGS.match(stem):
        yield stem[match.end() :]


def _find_image(
    mask: _File,
    by_key: dict[tuple[tuple[str, ...], str], list[_File]],
    by_stem: dict[str, list[_File]],
) -> _File | None:
    """Return the image of a mask: in the corresponding folder, or the only one of its name in its split."""
    for stem in _stems(mask.stem, MASK_ENDINGS):
        images = [image for image in by_key.get((mask.key, stem), ()) if image.name != mask.name]
        if images:
            return images[0]
    split = split_of(posixpath.dirname(mask.name))
    for stem in _stems(mask.stem, MASK_ENDINGS) if mask.is_mask else ():
        images = [
            image
            for image in by_stem.get(stem, ())
            if split is None or split_of(posixpath.dirname(image.name)) in (None, split)
        ]
        if len(images) == 1 and images[0].name != mask.name:
            return images[0]
    return None


def _rank(file: _File, ending: str | None) -> int:
    if any(part in file.name.lower() for part in NOT_USED):
        return len(MASK_ENDINGS) + 1
    return len(MASK_ENDINGS) if ending is None else MASK_ENDINGS.index(ending)


def _common_folders(names: Sequence[str]) -> int:
    """Return the number of outer folders that contain all files."""
    directories = [posixpath.dirname(name).split("/") for name in names]
    shortest = min(map(len, directories), default=0)
    first = next((i for i in range(shortest) if len({parts[i] for parts in directories}) > 1), shortest)
    return first if directories else 0


def find_missing_masks(pairs: Pairs) -> list[str]:
    """Return the images whose mask is missing: those in folders where most images have one."""
    used = Counter(posixpath.dirname(pair.image) for pair in pairs.pairs)
    without = Counter(posixpath.dirname(name) for name in pairs.unmatched_images)
    partial = {name for name in without if used[name] >= PRESENT * (used[name] + without[name])}
    return [name for name in pairs.unmatched_images if posixpath.dirname(name) in partial]
