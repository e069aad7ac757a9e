"""Samples from the rows of a dataset of the `datasets` library, one by one or as a stream.

`datasets` and what comes with it is imported in the functions: it takes a second, which other formats need not spend.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from huggingface_hub import constants

from ..images import DECODER_ERRORS
from ..types import Problem, Sample
from .boxes import Annotated, check_boxes
from .folder import read_size
from .metadata import CATEGORY_KEYS, add_box, name_classes, read_objects
from .samples import LazySequence, Picked, Samples

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Source:
    """Where rows come from, which says which files and addresses they may name.

    Attributes:
        name: For messages.
        root: The folder, None for the Hub.
        token: For images that a stream fetches.
    """

    name: str
    root: Path | None = None
    token: str | bool | None = field(default=None, repr=False)

    def image(self, value: Any) -> Any:
        """What `load_image` reads of a value {"bytes", "path"} of an image column.

        Raises:
            ValueError: If the value is empty, or its path leads elsewhere or to no file.
            OSError: If it can't be fetched.
        """
        data, path = ((value or {}).get(key) for key in ("bytes", "path"))
        if data is not None or path is None:
            if not data:
                raise ValueError("its row holds no image")
            return data
        *archives, file = path.split("::")
        # Of what fsspec takes, other protocols in front would open any file of this machine, or any address.
        if file.startswith("hf://") and all(archive.startswith("zip://") for archive in archives):
            with fsspec.open(path, "rb", hf={"token": self.token}) as opened:
                return opened.read()
        import datasets

        caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
        allowed = [Path(folder).resolve() for folder in (*caches, self.root) if folder is not None]
        place = Path(self.root or "", path).resolve()
        if not any(place.is_relative_to(folder) for folder in allowed):
            raise ValueError(f"{path} leads out of the dataset, which is not followed")
        if not place.is_file():
            raise ValueError(f"no such file: {path}")
        return str(place)


@dataclass(frozen=True)
class ImageColumn(LazySequence):
    """The images of rows, read when asked for."""

    rows: "datasets.Dataset"
    column: str
    source: Source

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, place: int) -> Any:
        """What `load_image` reads."""
        return self.source.image(self.rows[place][self.column])


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        image: The images.
        truth: Their labels or objects.
        is_detection: Whether it is objects.
        names: The classes' names, None if the column doesn't say.
        size: The columns of width and height, if there are such.
    """

    image: str
    truth: str
    is_detection: bool
    names: tuple[str, ...] | None
    size: tuple[str, ...]

    def annotated(self, name: str, row: Mapping[str, Any]) -> Annotated:
        """What a row says of the objects on its image.

        Raises:
            ValueError: If it can't be read.
        """
        stated = tuple(row[column] or 0 for column in self.size)
        image = Annotated(name, stated if stated and min(stated) > 0 else None)
        for entry in read_objects(row[self.truth]):
            add_box(image, *entry)
        return image


def find_columns(name: str, features: Mapping[str, Any] | None) -> Columns:
    """The columns of images and of labels or objects.

    Args:
        name: Of the dataset, for messages.
        features: What `datasets` knows of its columns.

    Raises:
        ValueError: If there are none, or it can't be told which.
    """
    import datasets

    features = features or {}
    images = [key for key, feature in features.items() if _is_image(feature)]
    named = [key for key in IMAGE_COLUMNS if key in images] or images
    if not images or (len(images) > 1 and named == images and images[0] not in IMAGE_COLUMNS):
        raise ValueError(f"{name}: expected one column of images, got {_describe(features)}. Rename it to image.")
    size = ("width", "height") if {"width", "height"} <= features.keys() else ()
    if "objects" in features:
        fields = _element_features(features["objects"])
        categories = [fields[key] for key in CATEGORY_KEYS if key in fields]
        if "bbox" not in fields or not categories:
            raise ValueError(
                f"{name}: expected `bbox` and `category` in `objects`, got {', '.join(fields) or 'none'}."
            )
        return Columns(named[0], "objects", True, _names(categories[0]), size)
    class_columns = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = [key for key in LABEL_COLUMNS if isinstance(features.get(key), datasets.ClassLabel | datasets.Value)]
    if not labels and len(class_columns) != 1:
        raise ValueError(
            f"{name}: expected a column `label` or `objects`, got {_describe(features)}. Rename the one that is it."
        )
    truth = (labels or class_columns)[0]
    return Columns(named[0], truth, False, _names(features[truth]), size)


def name_row_classes(
    name: str, rows: "datasets.Dataset", columns: Columns
) -> tuple[tuple[str, ...], dict[Hashable, int]]:
    """The classes' names and the label of each key, found in the rows if the column doesn't say.

    Raises:
        ValueError: If it takes a look at all rows of a stream.
    """
    if columns.names is not None:
        return columns.names, {label: label for label in range(len(columns.names))}
    if not hasattr(rows, "num_rows"):
        raise ValueError(f"{name}: its column {columns.truth} doesn't name the classes, so it can't be a stream.")
    keys = set()
    for value in rows.select_columns([columns.truth])[:][columns.truth]:
        try:
            keys |= {key for _, key, _, _ in read_objects(value)} if columns.is_detection else {value}
        except (TypeError, ValueError):  # reported when the row is read
            continue
    return name_classes(keys - {None, -1})


def read_rows(
    rows: "datasets.Dataset",
    split: str,
    columns: Columns,
    places: Mapping[Hashable, int],
    source: Source,
    problems: list[Problem],
) -> Samples:
    """The samples of a split, whose images are read when asked for.

    Args:
        rows: With images that are not decoded.
        split: Its name.
        columns: Which columns hold what.
        places: The label of each key.
        source: Where the rows come from.
        problems: Takes what is wrong with rows.
    """
    names = [f"{split}[{place}]" for place in range(len(rows))]
    images = ImageColumn(rows.select_columns([columns.image]), columns.image, source)
    bad = dict(_missing_images(images))
    problems += [Problem(names[place], "missing image", reason) for place, reason in bad.items()]
    truths = rows.select_columns([columns.truth, *(columns.size if columns.is_detection else ())])[:]
    kept = [place for place in range(len(rows)) if place not in bad]
    if columns.is_detection:
        annotated = {}
        for place in kept:
            row = {key: values[place] for key, values in truths.items()}
            found = _measured(columns, names[place], row, images, place)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                annotated[place] = found
        good, table = check_boxes(list(annotated.values()), places, problems)
        kept = [list(annotated)[place] for place in good]
        return Samples(Picked(names, kept), Picked(images, kept), table)
    labels = truths[columns.truth]
    unlabelled = [place for place in kept if labels[place] not in places]
    if len(unlabelled) < len(kept):  # a test split without labels is left out as a whole, without a problem each
        problems += [Problem(names[place], "unknown class", f"its label is {labels[place]!r}") for place in unlabelled]
    kept = [place for place in kept if labels[place] in places]
    return Samples(Picked(names, kept), Picked(images, kept), [places[labels[place]] for place in kept])


@dataclass(frozen=True)
class Stream:
    """The samples of a split as they come in; what is wrong with rows joins the problems on the way.

    Attributes:
        rows: With images that are not decoded.
        split: Its name.
        columns: Which columns hold what.
        places: The label of each key.
        source: Where the rows come from.
        problems: Takes what is wrong with rows, each once.
        part: Which share of the rows to take, by a hash of the image: (from, to, seed) with 0 <= from < to <= 1.
    """

    rows: "datasets.IterableDataset"
    split: str
    columns: Columns
    places: Mapping[Hashable, int]
    source: Source
    problems: list[Problem]
    part: tuple[float, float, int] = (0.0, 1.0, 0)

    def __iter__(self) -> Iterator[Sample]:
        for number, row in enumerate(self.rows):
            name = f"{self.split}[{number}]"
            try:
                image = self.source.image(row[self.columns.image])
            except (OSError, ValueError) as error:
                self._report([Problem(name, "missing image", str(error))])
                continue
            if not self._takes(image):
                continue
            sample = (
                self._detection(name, row, image) if self.columns.is_detection else self._labelled(name, row, image)
            )
            if sample is not None:
                yield sample

    def cut(self, fraction: float, seed: int) -> tuple["Stream", "Stream"]:
        """The rest and a share of the rows; equal images go to the same, however the rows are handed out."""
        return replace(self, part=(fraction, 1.0, seed)), replace(self, part=(0.0, fraction, seed))

    def _takes(self, image: str | bytes) -> bool:
        start, end, seed = self.part
        data = image if isinstance(image, bytes) else image.encode()
        digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
        return start <= int.from_bytes(digest) / 2**64 < end or (start, end) == (0.0, 1.0)

    def _labelled(self, name: str, row: Mapping[str, Any], image: str | bytes) -> Sample | None:
        label = row[self.columns.truth]
        if label in self.places:
            return Sample(name, image, label=self.places[label])
        return self._report([Problem(name, "unknown class", f"its label is {label!r}")])

    def _detection(self, name: str, row: Mapping[str, Any], image: str | bytes) -> Sample | None:
        annotated = _measured(self.columns, name, row, [image], 0)
        if isinstance(annotated, Problem):
            return self._report([annotated])
        found: list[Problem] = []
        kept, table = check_boxes([annotated], self.places, found)
        self._report(found)
        return Sample(name, image, objects=table[0]) if kept else None

    def _report(self, found: list[Problem]) -> None:
        self.problems.extend(problem for problem in found if problem not in self.problems)


def _measured(
    columns: Columns, name: str, row: Mapping[str, Any], images: Sequence[Any], place: int
) -> Annotated | Problem:
    """What a row says of its image, with the size read from it where the row doesn't say it."""
    try:
        image = columns.annotated(name, row)
    except (TypeError, ValueError) as error:
        return Problem(name, "unreadable annotation", str(error))
    try:
        if image.boxes and image.size is None:
            stored, is_turned = read_size(images[place])
            image.size = stored[::-1] if is_turned else stored
    except DECODER_ERRORS as error:
        return Problem(name, "unreadable image", " ".join(str(error).split()))
    return image


def _missing_images(images: ImageColumn) -> Iterator[tuple[int, str]]:
    """The rows without an image that may be read; only those that hold a path are looked at one by one."""
    import pyarrow.compute

    column = images.rows.with_format("arrow")[:].column(images.column)
    has_bytes = pyarrow.compute.is_valid(pyarrow.compute.struct_field(column, "bytes"))
    for place in np.flatnonzero(~has_bytes.to_numpy()).tolist():
        try:
            images.item(place)
        except (OSError, ValueError) as error:
            yield place, str(error)


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def _element_features(feature: Any) -> dict[str, Any]:
    """The features of an object, of a list of dictionaries or a dictionary of lists."""
    inner = getattr(feature, "feature", feature)
    return {key: getattr(value, "feature", value) if inner is feature else value for key, value in dict(inner).items()}


def _names(feature: Any) -> tuple[str, ...] | None:
    names = getattr(feature, "names", None)
    return tuple(names) if names else None


def _describe(features: Mapping[str, Any]) -> str:
    return ", ".join(features) or "no columns"
