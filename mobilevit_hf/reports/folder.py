"""Folder of a report while it is written, and the images that it shows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..data.images import UnreadableImageError, load_image
from ..data.types import Sample
from .page import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

PHOTO_SIDE = 720  # of photos in memory, in pixels
COMPRESSION = 3  # of grids as PNG: 2% larger than with the default of 6, in half the time


@dataclass(frozen=True)
class ReportFolder:
    """Folder into which figures are saved."""

    path: Path

    def save_plot(self, file: str, plot: "Plot", alt: str, caption: str) -> Figure:
        """Save a plot and return its block of the page."""
        from ..visualization import plots  # imports matplotlib's figures

        plots.save_plot(plot, self.path / file)
        width, height = (round(side) for side in plot.get_size_inches() * plot.dpi)
        return Figure(file, alt, caption, (width, height))

    def save_image(self, file: str, image: Image.Image) -> None:
        """Save an image grid."""
        image.save(self.path / file, compress_level=COMPRESSION)


@dataclass(frozen=True)
class Photo:
    """A photo, reduced to at most `PHOTO_SIDE` pixels, and its scale relative to the original."""

    image: Image.Image
    scale: float


def load_photos(samples: Iterable[Sample] | None, indices: Iterable[int]) -> dict[int, Photo]:
    """Load the images of some samples, by index; none without samples. A stream is read up to the last of them.

    Images that can't be read any more are left out.
    """
    photos: dict[int, Photo] = {}
    if samples is None:
        return photos
    for index, sample in _select(samples, set(indices)):
        try:
            image = load_image(sample.image)
        except UnreadableImageError:
            continue
        width = image.width
        image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        photos[index] = Photo(image, image.width / width)
    return photos


def _select(samples: Iterable[Sample], wanted: set[int]) -> Iterable[tuple[int, Sample]]:
    if isinstance(samples, Sequence):
        yield from ((index, samples[index]) for index in sorted(wanted))
    elif wanted:
        last = max(wanted)
        for index, sample in enumerate(samples):
            if index in wanted:
                yield index, sample
            if index == last:
                return
