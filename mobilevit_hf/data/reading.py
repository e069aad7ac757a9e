"""Read a dataset by path or Hub id, in any supported format."""

import os
import re
from pathlib import Path
from typing import Any

from ..io import user_path
from .formats import coco, hf_datasets, imagefolder, voc, yolo
from .formats.folder import DataFolder
from .formats.table import SampleStream
from .sequences import Samples
from .splits import split_validation
from .types import Dataset

# Modules with `recognizes(folder)` and `read(folder)`.
DATA_FORMATS: Any = {"datasets": hf_datasets, "coco": coco, "voc": voc, "yolo": yolo, "imagefolder": imagefolder}
FORMATS_BY_SUFFIX = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
HUB_ALIASES = {"imagenet-1k": "ILSVRC/imagenet-1k"}  # names in papers
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")


def load_dataset(
    source: str | Path,
    *,
    data_format: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    streaming: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Dataset:
    """Load a dataset, and split a validation set off the training split if there is none.

    Args:
        source: A folder; a COCO .json or YOLO .yaml file next to the images; or a Hub id, `user/name` or
            `user/name:configuration`.
        data_format: Key of `DATA_FORMATS`. None: inferred from the files.
        validation_fraction: Fraction of the training split to split off, stratified by class; 0 to disable it. The
            test split is never used for it.
        seed: Seed of the split, which is the same on every machine.
        streaming: Whether to stream a dataset of the Hub, or Parquet files, instead of downloading it first.
        revision: Revision of a dataset on the Hub.
        token: Hub token. None: the saved token.

    Returns:
        The dataset, with invalid samples in `problems` and automatic decisions in `notes`.

    Raises:
        ValueError: If the dataset is missing or can't be read, or an argument is invalid.
    """
    if data_format not in (None, *DATA_FORMATS):
        raise ValueError(f"data_format: got {data_format!r}, expected one of {', '.join(DATA_FORMATS)}.")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction: got {validation_fraction}, expected at least 0 and less than 1.")
    path = local_path(source)
    if path is not None:
        if revision is not None:
            raise ValueError(f"revision: got {revision!r} for the local {source}, expected a dataset on the Hub.")
        dataset = _read_path(path, data_format, streaming)
    elif data_format in (None, "datasets") and HUB_ID.fullmatch(str(source)):
        name = HUB_ALIASES.get(str(source), str(source))
        dataset = hf_datasets.read_hub(name, revision=revision, token=token, streaming=streaming)
    else:
        raise ValueError(f"{source}: no file or folder of this name. Pass a folder of images or a Hub id (user/name).")
    _drop_empty_splits(dataset, str(source))
    if not dataset.classes:
        raise ValueError(f"{source}: got no class in the training split, expected at least one annotated image.")
    if "train" in dataset.splits and "validation" not in dataset.splits:
        _add_validation(dataset, validation_fraction, seed)
    return dataset


def local_path(source: str | Path) -> Path | None:
    """Return the path of a local dataset, None if there is no such file or folder."""
    path = user_path(source)
    return path if os.path.exists(path) else None  # noqa: PTH110, Path's own fails for names that are too long


def _read_path(path: Path, data_format: str | None, streaming: bool) -> Dataset:
    folder = DataFolder(path if path.is_dir() else path.parent)
    options: dict[str, Any] = {"streaming": True} if streaming else {}
    if path.is_file():
        data_format = data_format or FORMATS_BY_SUFFIX.get(path.suffix.lower())
        if data_format not in FORMATS_BY_SUFFIX.values():
            raise ValueError(f"{path} is a file, expected a folder, a COCO .json file or a YOLO .yaml file.")
        options["file"] = path.name
    data_format = data_format or _infer_format(folder)
    if streaming and data_format != "datasets":
        raise ValueError(
            f"streaming: got {path} in the format {data_format}, expected a Hub id or Parquet files. Disable "
            "streaming: images of local folders are always read on access."
        )
    dataset = DATA_FORMATS[data_format].read(folder, **options)
    dataset.root, dataset.notes, dataset.problems = folder.root, folder.notes, folder.problems
    return dataset


def _infer_format(folder: DataFolder) -> str:
    names = [name for name, module in DATA_FORMATS.items() if module.recognizes(folder)]
    if len(names) > 1 and names[-1] == "imagefolder":  # which recognizes any folder
        names.pop()
    if not names:
        raise ValueError(
            f"{folder.root}: got no dataset, expected a folder for each class, COCO's annotations/*.json, "
            "Pascal VOC's Annotations/*.xml, YOLO's data.yaml or labels, or a dataset of the datasets library."
        )
    if len(names) > 1:
        raise ValueError(f"{folder.root}: could be {' or '.join(names)}. Set data_format, such as {names[0]}.")
    return names[0]


def _drop_empty_splits(dataset: Dataset, source: str) -> None:
    for split in [split for split, samples in dataset.splits.items() if isinstance(samples, Samples) and not samples]:
        del dataset.splits[split]
        dataset.notes.append(f"Skipped the {split} split, which has no valid image.")
    if not dataset.splits:
        first = next((f" First problem: {p.name}: {p.kind}, {p.reason}." for p in dataset.problems), "")
        raise ValueError(f"{source}: got no valid image and {len(dataset.problems)} problems.{first}")


def _add_validation(dataset: Dataset, fraction: float, seed: int) -> None:
    train = dataset.splits["train"]
    if fraction and isinstance(train, SampleStream):
        remaining, validation = train.split_off(fraction, seed)
        description = f"about {fraction:.1%} of the training images, by a hash of their content"
    elif fraction and isinstance(train, Samples) and len((parts := split_validation(train, fraction, seed))[1]):
        remaining, validation = parts
        size, total = len(validation), len(train)
        description = f"{size} of {total} training images ({size / total:.1%}), stratified by class"
    else:
        dataset.notes.append("No validation split, and none was split off the training split.")
        return
    others = {split: samples for split, samples in dataset.splits.items() if split != "train"}
    dataset.splits = {"train": remaining, "validation": validation, **others}
    dataset.validation_cut_off = True
    dataset.notes.append(f"No validation split: split off {description}, with seed {seed}.")
