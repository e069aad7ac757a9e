"""Read a dataset by name or path, whatever format it is in."""

import os
import re
from pathlib import Path

from ..io import user_path
from .formats import coco, hub, imagefolder, voc, yolo
from .formats.folder import DataFolder
from .formats.rows import Stream
from .splits import cut_validation
from .types import Dataset

# Modules with `recognizes(folder)` and `read(folder)`, by the format's name.
DATA_FORMATS = {"datasets": hub, "coco": coco, "voc": voc, "yolo": yolo, "imagefolder": imagefolder}
FORMATS_OF_FILES = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
# Datasets that papers call by a shorter name than the Hub.
HUB_NAMES = {"imagenet-1k": "ILSVRC/imagenet-1k"}
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
    """Read a dataset, and cut a validation split off the training split if it has none.

    Args:
        source: A folder, in a format that is found out by what lies in it; a COCO .json or YOLO .yaml file beside
            the images; or the name of a dataset on the Hub, `user/name` or `user/name:configuration`.
        data_format: One of `DATA_FORMATS`, to say it instead.
        validation_fraction: The share of the training split to cut off, class by class; 0 for none. The test split is
            never used for it.
        seed: Another number gives another cut; the same one the same cut everywhere.
        streaming: Read a dataset of the Hub, or of Parquet files, on the way instead of downloading it first.
        revision: Of a dataset on the Hub.
        token: For the Hub; None takes that of the machine's login.

    Returns:
        The dataset, with what was wrong in `problems` and what was decided in `notes`.

    Raises:
        ValueError: If there is nothing by this name, it can't be read, or an argument is wrong.
    """
    if data_format not in (None, *DATA_FORMATS):
        raise ValueError(f"data_format={data_format!r} is none of {', '.join(DATA_FORMATS)}.")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction}: expected at least 0 and less than 1.")
    path = local_path(source)
    if path is not None:
        if revision is not None:
            raise ValueError(f"{source} is on this machine; revision={revision!r} is for datasets on the Hub.")
        dataset = _read_path(path, data_format, streaming)
    elif data_format in (None, "datasets") and HUB_ID.fullmatch(str(source)):
        name = HUB_NAMES.get(str(source), str(source))
        dataset = hub.read_hub(name, revision=revision, token=token, streaming=streaming)
    else:
        raise ValueError(f"There is no file or folder {source}. Pass a folder of images, or a Hub name (user/name).")
    _drop_empty_splits(dataset, str(source))
    if not dataset.classes:
        raise ValueError(f"{source}: the training split has no class on any of its images.")
    if "train" in dataset.splits and "validation" not in dataset.splits:
        _add_validation(dataset, validation_fraction, seed)
    return dataset


def local_path(source: str | Path) -> Path | None:
    """The file or folder of this machine that a dataset is named by; None if there is no such."""
    path = user_path(source)
    return path if os.path.exists(path) else None  # noqa: PTH110, Path's own fails at names that are too long


def _read_path(path: Path, data_format: str | None, streaming: bool) -> Dataset:
    folder = DataFolder(path if path.is_dir() else path.parent)
    file = {}
    if path.is_file():
        data_format = data_format or FORMATS_OF_FILES.get(path.suffix.lower())
        if data_format not in FORMATS_OF_FILES.values():
            raise ValueError(f"{path} is a file. Expected a folder, a COCO .json file or a YOLO .yaml file.")
        file = {"file": path.name}
    data_format = data_format or _find_format(folder)
    if streaming and data_format != "datasets":
        raise ValueError(f"{path} ({data_format}) can't be streamed. Leave it away: images are read on the way.")
    options = {"streaming": True} if streaming else file
    dataset = DATA_FORMATS[data_format].read(folder, **options)
    dataset.root, dataset.notes, dataset.problems = folder.root, folder.notes, folder.problems
    return dataset


def _find_format(folder: DataFolder) -> str:
    found = [name for name, module in DATA_FORMATS.items() if module.recognizes(folder)]
    found = found[:-1] if len(found) > 1 and found[-1] == "imagefolder" else found  # which any folder may be
    if not found:
        raise ValueError(
            f"{folder.root} holds no dataset. Expected a folder for each class, COCO's annotations/*.json, "
            "Pascal VOC's Annotations/*.xml, YOLO's data.yaml or labels, or a dataset of the datasets library."
        )
    if len(found) > 1:
        raise ValueError(f"{folder.root} may be {' or '.join(found)}. Say which it is: data_format={found[0]!r}")
    return found[0]


def _drop_empty_splits(dataset: Dataset, source: str) -> None:
    empty = [
        split for split, samples in dataset.splits.items() if not isinstance(samples, Stream) and not len(samples)
    ]
    for split in empty:
        del dataset.splits[split]
        dataset.notes.append(f"The {split} split has no image that can be used, and is left out.")
    if not dataset.splits:
        first = next((f" The first is {p.name}: {p.kind}, {p.reason}." for p in dataset.problems), "")
        raise ValueError(f"{source} has no image that can be used, and {len(dataset.problems)} problems.{first}")


def _add_validation(dataset: Dataset, fraction: float, seed: int) -> None:
    train = dataset.splits["train"]
    if fraction and isinstance(train, Stream):
        rest, validation = train.cut(fraction, seed)
        cut = f"about {fraction:.1%} of the training images, chosen by a hash of their content"
    elif fraction and len((parts := cut_validation(train, fraction, seed))[1]):
        rest, validation = parts
        cut = f"{len(validation)} of {len(train)} training images ({len(validation) / len(train):.1%}), class by class"
    else:
        dataset.notes.append("There is no validation split, and none was cut off the training split.")
        return
    others = {split: samples for split, samples in dataset.splits.items() if split != "train"}
    dataset.splits = {"train": rest, "validation": validation, **others}
    dataset.notes.append(f"There was no validation split: it is {cut} with seed {seed}.")
