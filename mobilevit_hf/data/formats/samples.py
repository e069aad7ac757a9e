"""Sequences that make a sample only when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..types import Objects, Sample


class LazySequence(Sequence):
    """A sequence whose items `item(place)` makes, for places 0..N-1; a slice is a list."""

    def __getitem__(self, place: int | slice) -> Any:
        places = range(len(self))[place]
        return [self.item(at) for at in places] if isinstance(place, slice) else self.item(places)

    def item(self, place: int) -> Any:
        """The item at a place."""
        raise NotImplementedError


@dataclass(frozen=True)
class Picked(LazySequence):
    """The items of another sequence at some places."""

    items: Sequence[Any]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def item(self, place: int) -> Any:
        """What the other sequence has there."""
        return self.items[self.places[place]]


@dataclass(frozen=True)
class Joined(LazySequence):
    """The items of several sequences, one after the other."""

    parts: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def item(self, place: int) -> Any:
        """What that sequence has there in which the place is."""
        for part in self.parts:
            if place < len(part):
                return part[place]
            place -= len(part)


@dataclass(frozen=True)
class ObjectTable(LazySequence):
    """The objects of many images, end to end, which is small for a large dataset and quick to make.

    Attributes:
        objects: Those of all images.
        starts: (P + 1) ints: where those of each of P images start, and the end.
    """

    objects: Objects
    starts: Sequence[int]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def item(self, place: int) -> Objects:
        """Those of one image; copies, since a view would take the whole table along into another process."""
        rows = slice(self.starts[place], self.starts[place + 1])
        return Objects(**{f.name: getattr(self.objects, f.name)[rows].clone() for f in fields(Objects)})

    def labels_of(self, place: int) -> list[int]:
        """The classes of one image's, without the rest."""
        return self.objects.labels[self.starts[place] : self.starts[place + 1]].tolist()


@dataclass(frozen=True)
class Samples(LazySequence):
    """Samples from three sequences of equal length.

    Attributes:
        names: Each sample's name.
        images: What `load_image` reads.
        truths: The label of each, or its `Objects`.
    """

    names: Sequence[str]
    images: Sequence[Any]
    truths: Sequence[int] | Sequence[Objects]

    def __len__(self) -> int:
        return len(self.names)

    def item(self, place: int) -> Sample:
        """The sample at a place."""
        truth = self.truths[place]
        known = {"objects": truth} if isinstance(truth, Objects) else {"label": truth}
        return Sample(self.names[place], self.images[place], **known)

    def labels_of(self, place: int) -> list[int]:
        """The classes on the image at a place, which asks for no image."""
        if isinstance(self.truths, ObjectTable):
            return self.truths.labels_of(place)
        truth = self.truths[place]
        return truth.labels.tolist() if isinstance(truth, Objects) else [truth]

    def pick(self, places: Sequence[int]) -> "Samples":
        """Some of the samples."""
        return Samples(*(Picked(column, places) for column in (self.names, self.images, self.truths)))
