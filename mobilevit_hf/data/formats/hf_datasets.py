"""Datasets of the `datasets` library: on the Hub, saved by `save_to_disk`, or Parquet files.

`datasets` is imported in functions: the import takes a second, which other formats don't need.
"""

from typing import Any

from huggingface_hub import constants

from ...model_sources import is_hub_reachable
from ...tasks import TaskName
from ..types import Dataset, Problem, Split
from .folder import SPLIT_NAMES, DataFolder
from .table import RowSource, SampleStream, find_classes, find_columns, make_samples

TASKS = ("image-classification", "object-detection", "image-segmentation")
LIBRARY_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError)


def recognizes(folder: DataFolder) -> bool:
    """Return whether the folder was written by `save_to_disk`, or contains Parquet files."""
    bases = [*folder.entries("."), *folder.entries("data")]
    return _is_saved(folder) or any(base.endswith(".parquet") for base in bases)


def read(folder: DataFolder, *, streaming: bool = False, task: TaskName | None = None) -> Dataset:
    """Read a folder written by `save_to_disk`, or Parquet files. See `read_hub`."""
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

    Requires a column of images, and labels in `label`, `labels`, `fine_label` or the only column of classes, or
    objects in `objects` with `bbox` as [x, y, w, h] in pixels and `category`.

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
    columns = find_columns(source.name, first.features)
    for split, rows in rows_by_split.items():
        if find_columns(f"{source.name}, {split}", rows.features) != columns:
            raise ValueError(f"{source.name}: the splits differ in their columns or classes. Use the same in all.")
    classes, labels = find_classes(source.name, first, columns)
    splits: dict[str, Split] = {}
    for split in sorted(rows_by_split, key=["train", "validation", "test"].index):
        rows = rows_by_split[split].cast_column(columns.image, datasets.Image(decode=False))
        make_split = SampleStream if isinstance(rows, datasets.IterableDataset) else make_samples
        splits[split] = make_split(rows, split, columns, labels, source, problems)
    task = "object-detection" if columns.is_detection else "image-classification"
    return Dataset(task, classes, splits, "datasets", source.root, notes, problems)
