"""HTML page of a report: one file with its styles and images, without scripts and network."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ..visualization.colors import Color, text_color
from ..visualization.grids import median_aspect
from .files import DESCRIPTIONS

# Largest side of an embedded photo in pixels, also of photos with boxes.
TILE_SIDE, WIDE_TILE_SIDE = 480, 720
TILE_QUALITY = 85  # of its JPEG


@dataclass(frozen=True)
class Figure:
    """A PNG of the report's folder.

    Attributes:
        file: File name.
        alt: Description for readers who can't see it.
        caption: Text below it: split, number of images and how to read it.
        size: Width and height in pixels.
    """

    kind: ClassVar[str] = "figure"
    file: str
    alt: str
    caption: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Table:
    """A table; numbers are texts, so that a column has one format.

    Attributes:
        columns: Titles of the columns.
        rows: Cells by row.
        caption: Text above it.
        num_labels: Number of columns of text at the left; the others are numbers, aligned to the right.
        is_code: Show the first column as code: file names to copy.
        is_prose: The columns of text are sentences, shown whole; otherwise they are names, truncated if they are long.
        bars: Length 0..1 of the bar in the first column of numbers, by row; none if empty.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    num_labels: int = 1
    is_code: bool = False
    is_prose: bool = False
    bars: Sequence[float] = ()


@dataclass(frozen=True)
class Fact:
    """A line below a tile: a text, and a style class of the page or a background color.

    The style classes are "target", "correct", "wrong" and "missed".
    """

    text: str
    style: str = ""
    color: Color | None = None

    @property
    def css(self) -> str:
        """Return declarations of the background and of a text color with contrast."""
        return f"background: rgb{self.color}; color: {text_color(self.color)}" if self.color else ""


@dataclass(frozen=True)
class PhotoTile:
    """A photo with its file name and facts."""

    image: Image.Image
    file: str
    alt: str
    facts: Sequence[Fact]

    def uri(self, side: int) -> str:
        """Return the photo, reduced to a side in pixels, as a data URI."""
        buffer = io.BytesIO()
        photo = self.image.copy()
        photo.thumbnail((side, side))
        photo.save(buffer, "JPEG", quality=TILE_QUALITY)
        return data_uri(buffer.getvalue(), "image/jpeg")


@dataclass(frozen=True)
class Gallery:
    """Photos in a grid.

    Attributes:
        tiles: The photos.
        caption: Text above them.
        file: PNG of the report's folder that shows the same.
        is_wide: Larger tiles.
        has_legend: Show the legend of a detector's outcomes.
        classes: Legend of the colors of classes.
        is_panels: Four tiles per row, of one image; two per row on a narrow screen.
    """

    kind: ClassVar[str] = "gallery"
    tiles: Sequence[PhotoTile]
    caption: str = ""
    file: str = ""
    is_wide: bool = False
    has_legend: bool = False
    classes: Sequence[Fact] = ()
    is_panels: bool = False

    @property
    def side(self) -> int:
        """Largest side of the photos in pixels."""
        return WIDE_TILE_SIDE if self.is_wide else TILE_SIDE

    @property
    def aspect(self) -> float:
        """Width / height of all tiles, so that their texts line up."""
        return round(median_aspect([tile.image for tile in self.tiles]), 3) if self.tiles else 1.0


@dataclass(frozen=True)
class Section:
    """A section of the page: title, introduction, a command at its end, and figures, tables and galleries."""

    title: str
    blocks: Sequence[Figure | Table | Gallery]
    text: str = ""
    command: str = ""

    @property
    def anchor(self) -> str:
        """Id for links to the section."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Page:
    """Contents of a report.

    Attributes:
        title: Name of the model.
        subtitle: What was evaluated, on which images.
        headline: Headline metric: title, value, and its interval.
        facts: Further facts by name.
        notes: Sentences below the headline.
        warnings: Reasons for caution.
        sections: In the order of the page.
        files: Other files than PNGs and `results.json`, with a description.
    """

    title: str
    subtitle: str
    headline: tuple[str, str, str] | None
    sections: Sequence[Section]
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def render_page(page: Page, images: Mapping[str, bytes], others: Iterable[str] = ()) -> str:
    """Return the HTML of a report.

    Args:
        page: Contents; all texts are escaped.
        images: Content of each PNG of its figures, by file name.
        others: Names of further files to list.
    """
    uris = {name: data_uri(content, "image/png") for name, content in images.items()}
    shown = {block.file for section in page.sections for block in section.blocks if not isinstance(block, Table)}
    files = {**page.files, **{name: text for name, text in DESCRIPTIONS.items() if name in shown.union(others)}}
    return _environment().get_template("report.html.jinja").render(page=page, uris=uris, files=files)


def data_uri(content: bytes, media_type: str) -> str:
    """Return a file's content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(str(__package__)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
