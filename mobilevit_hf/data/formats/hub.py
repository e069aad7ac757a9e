"""Datasets of the `datasets` library: on the Hub, saved to disk, or as Parquet files.

`datasets` is imported in the functions: it takes a second, which other formats need not spend.
"""

from typing import Any

from huggingface_hub import constants

from ...model_sources import is_hub_reachable
from ..types import Dataset, Problem
from .folder import SPLIT_NAMES, DataFolder
from .rows import Source, Stream, find_columns, name_row_classes, read_rows

LIBRARY_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError)


def recognizes(folder: DataFolder) -> bool:
    """Whether `save_to_disk` wrote the folder, or it holds Parquet files."""
    top = folder.entries(".")
    return _is_saved(folder) or any(base.endswith(".parquet") for base in [*top, *folder.entries("data")])


def read(folder: DataFolder, *, streaming: bool = False) -> Dataset:
    """Read a folder that `save_to_disk` wrote, or one of Parquet files; see `read_hub`."""
    import datasets

    try:
        if _is_saved(folder):
            loaded = datasets.load_from_disk(str(folder.root))
        else:
            loaded = datasets.load_dataset(str(folder.root), streaming=streaming)
    except (*LIBRARY_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{folder.root} can't be read as a dataset: {_one_line(error)}") from error
    return _convert(loaded, Source(str(folder.root), folder.root), folder.problems, folder.notes)


def read_hub(name: str, *, revision: str | None, token: str | bool | None, streaming: bool) -> Dataset:
    """Read a dataset of the Hub, `user/name`, or `user/name:configuration` where it has several.

    It needs a column of images, and labels in `label`, `labels`, `fine_label` or the only column of classes, or
    objects in `objects` with `bbox` as [x, y, w, h] in pixels and `category`.

    Raises:
        ValueError: If it can't be had, or holds no images with labels or boxes.
    """
    import datasets

    if not constants.HF_HUB_OFFLINE and not is_hub_reachable():
        raise ValueError(
            f"There is no folder {name}, and the Hub can't be reached. Check the connection, or pass a folder; "
            "to use what was downloaded before, set HF_HUB_OFFLINE=1."
        )
    repository, _, configuration = name.partition(":")
    options = {"revision": revision, "token": token, "streaming": streaming}
    try:
        loaded = datasets.load_dataset(repository, configuration or None, **options)
    except datasets.exceptions.DatasetNotFoundError:
        reason = (
            f"There is no folder {name}, and no such dataset on the Hub{f' at {revision}' if revision else ''}, "
            "or not for you. If it is private or gated, sign in: hf auth login"
        )
    except (*LIBRARY_ERRORS, datasets.exceptions.DatasetsError) as error:
        reason = f"{name} can't be read from the Hub: {_one_line(error)}"
        if "Config name is missing" in str(error):
            reason += f" Name one: {repository}:CONFIGURATION"
    else:
        return _convert(loaded, Source(name, None, token), [], [])
    raise ValueError(reason.replace(token, "***") if isinstance(token, str) and token else reason)


def _is_saved(folder: DataFolder) -> bool:
    top = folder.entries(".").keys()
    return "dataset_dict.json" in top or {"state.json", "dataset_info.json"} <= top


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _convert(loaded: Any, source: Source, problems: list[Problem], notes: list[str]) -> Dataset:
    """The splits by the names that folders have, too. Others are left out, unless there is one alone."""
    import datasets

    by_name = loaded if isinstance(loaded, dict) else {"train": loaded}
    split_of = {name: SPLIT_NAMES.get(name.lower()) for name in by_name}
    if len(by_name) == 1 and None in split_of.values():
        split_of = dict.fromkeys(by_name, "train")
    left_out = [
        name
        for place, (name, split) in enumerate(split_of.items())
        if split in [None, *list(split_of.values())[:place]]
    ]
    if left_out:
        notes.append(f"Splits of {source.name} that are not read: {', '.join(left_out)}.")
    all_rows = {split_of[name]: rows for name, rows in by_name.items() if name not in left_out}
    if not all_rows:
        raise ValueError(f"{source.name} has no split train, validation or test, but {', '.join(by_name)}.")
    first = all_rows.get("train", next(iter(all_rows.values())))
    columns = find_columns(source.name, first.features)
    for split, rows in all_rows.items():
        if find_columns(f"{source.name}, {split}", rows.features) != columns:
            raise ValueError(f"{source.name}: its splits differ in their columns or classes. Give them the same.")
    classes, places = name_row_classes(source.name, first, columns)
    splits = {}
    for split in ("train", "validation", "test"):
        if split in all_rows:
            rows = all_rows[split].cast_column(columns.image, datasets.Image(decode=False))
            reader = Stream if isinstance(rows, datasets.IterableDataset) else read_rows
            splits[split] = reader(rows, split, columns, places, source, problems)
    task = "object-detection" if columns.is_detection else "image-classification"
    return Dataset(task, classes, splits, "datasets", source.root, notes, problems)
