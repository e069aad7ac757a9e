"""Sequences that create samples on access."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from .masks import Mask
from .types import Objects, Sample

TARGET_FIELDS: dict[type, str] = {Objects: "objects", Mask: "mask"}  # field of `Sample` by type; others are labels


class LazySequence(Sequence):
    """A sequence whose items are created by `_item(index)`, with 0 <= index < length. A slice is a list."""

    def __getitem__(self, index: Any) -> Any:
        indices = range(len(self))
        return [self._item(i) for i in indices[index]] if isinstance(index, slice) else self._item(indices[index])

    def _item(self, index: int) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Subset(LazySequence):
    """Items of a sequence at some indices."""

    items: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def _item(self, index: int) -> Any:
        return self.items[self.indices[index]]


@dataclass(frozen=True)
class ConcatSequence(LazySequence):
    """Concatenation of sequences."""

    parts: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _item(self, index: int) -> Any:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


@dataclass(frozen=True)
class ObjectTable(LazySequence):
    """Objects of P images in one set of tensors: small and fast to create for large datasets."""

    objects: Objects  # of all images
    offsets: Sequence[int]  # (P + 1): index of the first object of each image, and the total number of objects

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _item(self, index: int) -> Objects:
        """Return copies of an image's objects: views would carry the whole table into another process."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return Objects(**{f.name: getattr(self.objects, f.name)[rows].clone() for f in fields(Objects)})

    def labels_at(self, index: int) -> list[int]:
        """Return the labels of an image's objects."""
        return self.objects.labels[self.offsets[index] : self.offsets[index + 1]].tolist()


@dataclass(frozen=True)
class Samples(LazySequence):
    """Samples from three columns of equal length, see `Sample`."""

    names: Sequence[str]
    images: Sequence[Any]
    targets: Sequence[int] | Sequence[Objects] | Sequence[Mask]

    def __len__(self) -> int:
        return len(self.names)

    def _item(self, index: int) -> Sample:
        target = self.targets[index]
        field = next((name for kind, name in TARGET_FIELDS.items() if isinstance(target, kind)), "label")
        values: dict[str, Any] = {field: target}
        return Sample(self.names[index], self.images[index], **values)

    def labels_at(self, index: int) -> list[int]:
        """Return the labels of an image without reading it; those of a mask are read from it."""
        if isinstance(self.targets, ObjectTable):
            return self.targets.labels_at(index)
        target = self.targets[index]
        if isinstance(target, Mask):
            return target.labels()
        return target.labels.tolist() if isinstance(target, Objects) else [target]

    def has_unread_masks(self) -> bool:
        """Return whether the labels of the images are known only after their masks are read."""
        target = self.targets[0] if len(self.targets) else None
        return isinstance(target, Mask) and not target.is_painted

    def select(self, indices: Sequence[int]) -> "Samples":
        """Return the samples at some indices."""
        return Samples(Subset(self.names, indices), Subset(self.images, indices), Subset(self.targets, indices))
