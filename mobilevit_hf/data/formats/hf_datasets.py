"""Datasets of the `datasets` library: on the Hub, saved by `save_to_disk`, Parquet files or WebDataset shards.

`datasets` is imported in functions: the import takes a second, which other formats don't need.
"""

import contextlib
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from ...model_sources import is_hub_reachable
from ...tasks import TaskName
from ..types import Dataset, Problem, Split
from .folder import SPLIT_NAMES, DataFolder
from .mask_classes import find_classes as find_mask_classes
from .mask_values import Encoding, infer_encoding
from .maskfolder import TO_SEGMENT
from .table import Columns, RowSource, SampleStream, find_classes, find_columns, make_samples

TASKS = ("image-classification", "object-detection", "image-segmentation")
SHARD_SUFFIXES = (".parquet", ".tar")  # of WebDataset: an image and its class, such as 0.jpg and 0.cls
SAMPLED_MASKS = 2000  # of a split, whose values are read to find the classes
CLASS_FILES = ("id2label.json", "classes.txt", "label_map.txt", "labelmap.txt", "class_dict.csv")  # on the Hub
LIBRARY_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError)


def recognizes(folder: DataFolder) -> bool:
    """Return whether the folder was written by `save_to_disk`, or contains Parquet files or WebDataset shards."""
    bases = [*folder.entries("."), *folder.entries("data")]
    return _is_saved(folder) or any(base.endswith(SHARD_SUFFIXES) for base in bases)


def read(folder: DataFolder, *, streaming: bool = False, task: TaskName | None = None) -> Dataset:
    """Read a folder written by `save_to_disk`, Parquet files or WebDataset shards. See `read_hub`."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if _is_saved(folder):
            loaded = datasets.load_from_disk(str(folder.root))
        else:
            loaded = datasets.load_dataset(str(folder.root), streaming=streaming)
    except (*LIBRARY_ERRORS, DatasetsError) as error:
        raise ValueError(f"{folder.root} can't be read as a dataset: {_one_line(error)}") from error
    return _convert(loaded, RowSource(str(folder.root), folder.root), folder.problems, folder.notes, task)


def read_hub(
    name: str, *, revision: str | None, token: str | bool | None, streaming: bool, task: TaskName | None = None
) -> Dataset:
    """Read a dataset of the Hub, `user/name`, or `user/name:configuration` if it has several configurations.

    Requires a column of images, and labels in `label`, `labels`, `fine_label` or the only column of classes, objects
    in `objects` with `bbox` as [x, y, w, h] in pixels and `category`, or masks in another column of images, see
    `MASK_COLUMNS`, with the names of their classes in `id2label.json`.

    Raises:
        ValueError: If the dataset is not available, or has no images with labels or boxes.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    if not constants.HF_HUB_OFFLINE and not is_hub_reachable():
        raise ValueError(
            f"{name}: no file or folder of this name, and the Hub can't be reached. Check the connection, pass a "
            "folder, or set HF_HUB_OFFLINE=1 to use a dataset downloaded earlier."
        )
    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(
            repository, configuration or None, revision=revision, token=token, streaming=streaming
        )
    except DatasetNotFoundError:
        reason = (
            f"{name}: no file or folder of this name, and no such dataset on the Hub is accessible"
            f"{f' at revision {revision}' if revision else ''}. If it is private or gated, sign in: hf auth login"
        )
    except (*LIBRARY_ERRORS, DatasetsError) as error:
        reason = f"{name} can't be read from the Hub: {_one_line(error)}"
        if constants.HF_HUB_OFFLINE and isinstance(error, ConnectionError):
            reason = (
                f"{name}: no file or folder of this name, and no such dataset in the Hub's cache. Check the name, or "
                "unset HF_HUB_OFFLINE to download it."
            )
        if "Config name is missing" in str(error):
            reason += f" Name a configuration: {repository}:CONFIGURATION"
    else:
        return _convert(loaded, RowSource(name, None, token), [], [], task)
    raise ValueError(reason.replace(token, "***") if isinstance(token, str) and token else reason)


def _is_saved(folder: DataFolder) -> bool:
    names = folder.entries(".").keys()
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _select_splits(loaded: Any, name: str, notes: list[str]) -> dict[str, Any]:
    """Return the rows by split. A single split of any name is the training split."""
    rows_by_name = loaded if isinstance(loaded, dict) else {"train": loaded}
    default = "train" if len(rows_by_name) == 1 else None
    splits: dict[str, Any] = {}
    skipped = []
    for key, rows in rows_by_name.items():
        split = SPLIT_NAMES.get(key.lower(), default)
        if split is None or split in splits:
            skipped.append(key)
        else:
            splits[split] = rows
    if skipped:
        notes.append(f"Skipped splits of {name}: {', '.join(skipped)}.")
    if not splits:
        raise ValueError(f"{name}: got the splits {', '.join(rows_by_name)}, expected train, validation or test.")
    return splits


def _convert(
    loaded: Any, source: RowSource, problems: list[Problem], notes: list[str], task: TaskName | None
) -> Dataset:
    import datasets

    rows_by_split = _select_splits(loaded, source.name, notes)
    first = rows_by_split["train" if "train" in rows_by_split else next(iter(rows_by_split))]
    columns = find_columns(source.name, first.features, task)
    for split, rows in rows_by_split.items():
        if find_columns(f"{source.name}, {split}", rows.features, task) != columns:
            raise ValueError(f"{source.name}: the splits differ in their columns or classes. Use the same in all.")
    if columns.unused_masks:
        notes.append(f"The column {columns.unused_masks} of masks is not used. {TO_SEGMENT}")
    rows_by_split = {
        split: _disable_decoding(rows_by_split[split], columns)
        for split in ("train", "validation", "test")
        if split in rows_by_split
    }
    labels: Mapping[Hashable, int] = {}
    if columns.is_segmentation:
        classes, encoding, encoding_notes = _find_encoding(rows_by_split, columns, source)
        notes += encoding_notes
    else:
        if columns.classes is None and isinstance(first, datasets.IterableDataset):
            columns = replace(columns, classes=_read_classes(source))
        (classes, labels), encoding = find_classes(source.name, first, columns), None
        if columns.classes is None and list(labels) == list(range(len(classes))):
            names = _read_classes(source) or ()
            if len(names) >= len(classes):
                numbers: dict[Hashable, int] = {label: label for label in range(len(names))}
                classes, labels = names, numbers
    splits: dict[str, Split] = {}
    for split, rows in rows_by_split.items():
        make_split = SampleStream if isinstance(rows, datasets.IterableDataset) else make_samples
        splits[split] = make_split(rows, split, columns, labels, source, problems, encoding)
    return Dataset(columns.task, classes, splits, "datasets", source.root, notes, problems)


def _disable_decoding(rows: Any, columns: Columns) -> Any:
    import datasets

    for column in (columns.image, *([columns.target] if columns.is_segmentation else ())):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _find_encoding(rows_by_split: Mapping[str, Any], columns: Columns, source: RowSource) -> Encoding:
    """Return the classes of masks, from a file next to the rows or in the Hub's repository, or else their values."""
    import datasets

    folder = _class_files(source)
    names, file = find_mask_classes(folder) if folder else ([], "")
    masks: list[str | bytes] = []
    for rows in rows_by_split.values():
        is_stream = isinstance(rows, datasets.IterableDataset)
        if is_stream and not names:
            raise ValueError(
                f"{source.name}: got masks without the names of their classes, which streaming requires. Add "
                'id2label.json, such as {"0": "road", "1": "car"}, or load it without streaming.'
            )
        step = 1 if is_stream else max(1, -(-len(rows) // SAMPLED_MASKS))
        selected = rows.take(SAMPLED_MASKS) if is_stream else rows.select(range(0, len(rows), step))
        for row in selected.select_columns([columns.target]):
            with contextlib.suppress(OSError, ValueError):  # reported when the samples are created
                masks.append(source.resolve(row[columns.target]))
    return infer_encoding(masks, names, file, source.name)


def _read_classes(source: RowSource) -> tuple[str, ...] | None:
    """Return the class names of a file such as `classes.txt`, in the order of their numbers; None without one."""
    folder = _class_files(source)
    rows, _ = find_mask_classes(folder) if folder else ([], "")
    if all(row.number is not None for row in rows):
        rows.sort(key=lambda row: row.number or 0)
    return tuple(row.name for row in rows) or None


def _class_files(source: RowSource) -> DataFolder | None:
    """Return the folder of a local dataset, or one with the files of the Hub's repository that may name classes."""
    if source.root is not None:
        return DataFolder(source.root)
    repository = source.name.partition(":")[0]
    try:
        path = snapshot_download(
            repository, repo_type="dataset", token=source.token, allow_patterns=[*CLASS_FILES], dry_run=False
        )
    except (OSError, ValueError):  # offline, without them in the cache
        return None
    return DataFolder(Path(path))
