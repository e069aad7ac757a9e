"""Read a dataset by path or Hub id, in any supported format."""

import os
import re
from pathlib import Path
from typing import Any

from ..io import user_path
from ..tasks import TASKS, TaskName
from .archives import is_archive, unpack
from .formats import (
    coco,
    csv_files,
    hf_datasets,
    imagefolder,
    label_studio,
    maskfolder,
    metadata,
    voc,
    yolo,
)
from .formats.folder import DataFolder
from .formats.table import SampleStream
from .formats.unread import EXPORT, identify_tool
from .image_formats import describe_unread
from .recognition import check_class_folders, note_unused_masks, recognize, task_options
from .sequences import Samples
from .splits import is_stratified, split_validation
from .types import Dataset

# Modules with `TASKS`, `recognizes(folder)` and `read(folder)`.
DATA_FORMATS: Any = {
    "datasets": hf_datasets,
    "coco": coco,
    "voc": voc,
    "yolo": yolo,
    "csv": csv_files,
    "imagefolder": imagefolder,
    "maskfolder": maskfolder,
    "label_studio": label_studio,
}
FORMATS_BY_SUFFIX = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"} | dict.fromkeys(csv_files.SUFFIXES, "csv")
SPLITS = ("train", "validation", "test")
HUB_ALIASES = {"imagenet-1k": "ILSVRC/imagenet-1k"}  # names in papers
HUB_ID = re.compile(r"\w[\w.-]{,95}(/\w[\w.-]{,95})?(:[\w.-]+)?")


def load_dataset(
    source: str | Path,
    *,
    task: TaskName | None = None,
    data_format: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    streaming: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Dataset:
    """Load a dataset, and split a validation set off the training split if there is none.

    Args:
        source: A folder, which may wrap the one of the dataset; a COCO .json, YOLO .yaml or .csv file next to the
            images; an archive (.zip, .tar, .tar.gz) of a folder; or a Hub id, `user/name` or
            `user/name:configuration`.
        task: Task whose annotations are read. None: inferred. If a dataset has labels or boxes and masks, the masks
            are not used then, with a note.
        data_format: Key of `DATA_FORMATS`. None: inferred from the files; class folders are then at least two.
        validation_fraction: Fraction of the training split to split off, stratified by class; 0 to disable it. The
            test split is never used for it.
        seed: Seed of the split, which is the same on every machine.
        streaming: Whether to stream a dataset of the Hub, Parquet files or WebDataset shards instead of downloading
            or converting it first.
        revision: Revision of a dataset on the Hub.
        token: Hub token. None: the saved token.

    Returns:
        The dataset, with invalid samples in `problems` and automatic decisions in `notes`.

    Raises:
        ValueError: If the dataset is missing or can't be read, or an argument is invalid.
    """
    if data_format not in (None, *DATA_FORMATS):
        raise ValueError(f"data_format: got {data_format!r}, expected one of {', '.join(DATA_FORMATS)}.")
    if task is not None:
        _check_task(task, data_format)
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction: got {validation_fraction}, expected at least 0 and less than 1.")
    check_source(source, data_format)
    if (path := local_path(source)) is not None:
        if revision is not None:
            raise ValueError(f"revision: got {revision!r} for the local {source}, expected a dataset on the Hub.")
        read = _read_archive if path.is_file() and is_archive(path) else _read_path
        dataset = read(path, data_format, streaming, task)
    else:
        name = HUB_ALIASES.get(str(source), str(source))
        dataset = hf_datasets.read_hub(name, revision=revision, token=token, streaming=streaming, task=task)
    if task not in (None, dataset.task):
        raise ValueError(f"{source}: got annotations for {dataset.task}, expected {task}. Pass another dataset.")
    _drop_empty_splits(dataset, str(source))
    if not dataset.classes:
        raise ValueError(f"{source}: got no class in the training split, expected at least one annotated image.")
    if "train" in dataset.splits and "validation" not in dataset.splits:
        _add_validation(dataset, validation_fraction, seed)
    return dataset


def _check_task(task: str, data_format: str | None) -> None:
    tasks = [name for name, row in TASKS.items() if row.labels]
    if task not in tasks:
        raise ValueError(f"task: got {task!r}, expected one of {', '.join(tasks)}.")
    if data_format and task not in DATA_FORMATS[data_format].TASKS:
        possible = [name for name, module in DATA_FORMATS.items() if task in module.TASKS]
        raise ValueError(f"data_format: got {data_format} for {task}, expected one of {', '.join(possible)}.")


def check_source(source: str | Path, data_format: str | None) -> None:
    """Raise a ValueError if a dataset is neither local nor, by its name and format, on the Hub."""
    is_hub_id = data_format in (None, "datasets") and HUB_ID.fullmatch(str(source))
    if local_path(source) is None and not is_hub_id:
        raise ValueError(f"{source}: no file or folder of this name. Pass a folder of images or a Hub id (user/name).")


def local_path(source: str | Path) -> Path | None:
    """Return the path of a local dataset, None if there is no such file or folder."""
    path = user_path(source)
    return path if os.path.exists(path) else None  # noqa: PTH110, Path's own fails for names that are too long


def _read_archive(path: Path, data_format: str | None, streaming: bool, task: TaskName | None) -> Dataset:
    folder = unpack(path)
    try:
        dataset = _read_path(folder, data_format, streaming, task)
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder), str(path))) from error
    dataset.notes.insert(0, f"Unpacked {path.name} to {folder}.")
    return dataset


def _read_path(path: Path, data_format: str | None, streaming: bool, task: TaskName | None) -> Dataset:
    options: dict[str, Any] = {"streaming": True} if streaming else {}
    is_inferred = data_format is None
    if path.is_file():
        folder = outer = DataFolder(path.parent)
        data_format = _file_format(folder, path, data_format)
        options["file"] = path.name
    else:
        outer = DataFolder(path)
        folder, data_format = recognize(outer, DATA_FORMATS, data_format, task)
    if streaming and data_format != "datasets":
        raise ValueError(
            f"streaming: got {path} in the format {data_format}, expected a Hub id, Parquet files or WebDataset "
            "shards (.tar). Disable it: images of local folders are always read on access."
        )
    options |= task_options(DATA_FORMATS[data_format], task)
    try:
        dataset = DATA_FORMATS[data_format].read(folder, **options)
    except ValueError as error:
        suggestion = "" if is_inferred or path.is_file() else _suggest_format(path, data_format)
        raise ValueError(f"{error}{suggestion}") from error
    if unread := describe_unread(name for name, kind in folder.walk() if kind == "file"):
        folder.notes.append(unread)
    if is_inferred and data_format == "imagefolder" and not metadata.has_annotations(folder):
        check_class_folders(outer, folder, dataset)
    if is_inferred and task is None and path.is_dir():
        note_unused_masks(folder, dataset)
    dataset.splits = {split: dataset.splits[split] for split in SPLITS if split in dataset.splits}
    dataset.root, dataset.notes, dataset.problems = folder.root, folder.notes, folder.problems
    return dataset


def _suggest_format(path: Path, data_format: str) -> str:
    """Return a sentence about the format that a folder has instead of the one that was set, empty if there is none."""
    try:
        _, inferred = recognize(DataFolder(path), DATA_FORMATS, None)
    except ValueError:
        return ""
    return "" if inferred == data_format else f' The folder looks like data_format="{inferred}".'


def _file_format(folder: DataFolder, path: Path, data_format: str | None) -> str:
    """Return the format of a single file."""
    if tool := identify_tool(folder, path.name):
        raise ValueError(f"{path}: got annotations of {tool}, which are not read. {EXPORT}")
    data_format = data_format or FORMATS_BY_SUFFIX.get(path.suffix.lower())
    if data_format is None or data_format not in FORMATS_BY_SUFFIX.values():
        raise ValueError(
            f"{path} is a file, expected a folder, a COCO .json, a YOLO .yaml, a .csv file or an archive (.zip, .tar)."
        )
    return data_format


def _drop_empty_splits(dataset: Dataset, source: str) -> None:
    for split in [split for split, samples in dataset.splits.items() if isinstance(samples, Samples) and not samples]:
        del dataset.splits[split]
        dataset.notes.append(f"Skipped the {split} split, which has no valid image.")
    if not dataset.splits:
        first = next((f" First problem: {p.name}: {p.kind}, {p.reason}." for p in dataset.problems), "")
        are_missing = dataset.root and all(problem.kind == "missing image" for problem in dataset.problems)
        action = (
            f" Add the images: they are found by their names in any folder of {dataset.root}." if are_missing else ""
        )
        raise ValueError(f"{source}: got no valid image and {len(dataset.problems)} problems.{first}{action}")


def _add_validation(dataset: Dataset, fraction: float, seed: int) -> None:
    train = dataset.splits["train"]
    if fraction and isinstance(train, SampleStream):
        remaining, validation = train.split_off(fraction, seed)
        description = f"about {fraction:.1%} of the training images, by a hash of their content"
    elif fraction and isinstance(train, Samples) and len((parts := split_validation(train, fraction, seed))[1]):
        remaining, validation = parts
        size, total = len(validation), len(train)
        how = "stratified by class" if is_stratified(train) else "at random"
        description = f"{size} of {total} training images ({size / total:.1%}), {how}"
    else:
        dataset.notes.append("No validation split, and none was split off the training split.")
        return
    others = {split: samples for split, samples in dataset.splits.items() if split != "train"}
    dataset.splits = {"train": remaining, "validation": validation, **others}
    dataset.validation_cut_off = True
    dataset.notes.append(f"No validation split: split off {description}, with seed {seed}.")
