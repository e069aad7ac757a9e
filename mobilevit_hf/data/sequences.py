"""Sequences that create samples on access."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from .types import Objects, Sample


class LazySequence(Sequence):
    """A sequence whose items are created by `item(index)`, with 0 <= index < length. A slice is a list."""

    def __getitem__(self, index: Any) -> Any:
        indices = range(len(self))
        return [self.item(i) for i in indices[index]] if isinstance(index, slice) else self.item(indices[index])

    def item(self, index: int) -> Any:
        """Create an item."""
        raise NotImplementedError


@dataclass(frozen=True)
class Subset(LazySequence):
    """Items of a sequence at some indices."""

    items: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, index: int) -> Any:
        """Return the item of the sequence."""
        return self.items[self.indices[index]]


@dataclass(frozen=True)
class ConcatSequence(LazySequence):
    """Concatenation of sequences."""

    parts: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def item(self, index: int) -> Any:
        """Return the item of the sequence that contains the index."""
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


@dataclass(frozen=True)
class ObjectTable(LazySequence):
    """Objects of P images in one set of tensors: small and fast to create for large datasets.

    Attributes:
        objects: Concatenated objects of all images.
        offsets: (P + 1) ints: index of the first object of each image, and the total number of objects.
    """

    objects: Objects
    offsets: Sequence[int]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def item(self, index: int) -> Objects:
        """Return copies of an image's objects. Views would carry the whole table into another process."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return Objects(**{f.name: getattr(self.objects, f.name)[rows].clone() for f in fields(Objects)})

    def labels_at(self, index: int) -> list[int]:
        """Return the labels of an image's objects."""
        return self.objects.labels[self.offsets[index] : self.offsets[index + 1]].tolist()


@dataclass(frozen=True)
class Samples(LazySequence):
    """Samples from three columns of equal length.

    Attributes:
        names: Name of each sample.
        images: Source of each image, see `Sample`.
        targets: Label or `Objects` of each image.
    """

    names: Sequence[str]
    images: Sequence[Any]
    targets: Sequence[int] | Sequence[Objects]

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int) -> Sample:
        """Create a sample."""
        target = self.targets[index]
        if isinstance(target, Objects):
            return Sample(self.names[index], self.images[index], objects=target)
        return Sample(self.names[index], self.images[index], label=target)

    def labels_at(self, index: int) -> list[int]:
        """Return the labels of an image without reading it."""
        if isinstance(self.targets, ObjectTable):
            return self.targets.labels_at(index)
        target = self.targets[index]
        return target.labels.tolist() if isinstance(target, Objects) else [target]

    def select(self, indices: Sequence[int]) -> "Samples":
        """Return the samples at some indices."""
        return Samples(Subset(self.names, indices), Subset(self.images, indices), Subset(self.targets, indices))
