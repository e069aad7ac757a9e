"""Size, colors and fonts that all plots share.

Figures are created without pyplot, whose global state is not thread-safe, and without a display.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from ..io import write_atomically
from .text import LabelFont

RESOLUTION = 160  # pixels per inch
FONT_SIZE = 9  # points of 1/72 inch
WIDTH = 5.2  # inches: narrow enough that a phone shows legible text
MAX_NAME_WIDTH = 210  # pixels; longer names are truncated

LIGHT, DARK, ACCENT = "#9ecae1", "#08519c", "#d94801"
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # background of numbers, so that no line crosses them


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of a size in inches, whose contents don't overlap."""
    return Figure(figsize=(width, height), dpi=RESOLUTION, layout="constrained")


def save_plot(figure: Figure, path: Path) -> None:
    """Save a figure as PNG at its own resolution, atomically. Overwrites an existing file."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=figure.dpi))


def style_axes(axes: Axes, grid: Literal["x", "y", "both"] = "both") -> None:
    """Draw a light grid below the data, and no frame on the top and right."""
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def format_names(names: Sequence[str], width: float = MAX_NAME_WIDTH) -> tuple[list[str], dict[str, Any]]:
    """Return names as labels, and a text style with a font that has their characters and without math."""
    font = LabelFont(names, round(FONT_SIZE * RESOLUTION / 72))
    style = {"fontproperties": FontProperties(fname=font.file, size=FONT_SIZE), "parse_math": False, "usetex": False}
    return [font.fit(name, width) for name in names], style


def set_title(target: Figure | Axes, title: str) -> None:
    """Set the title of a figure or of axes: any text, without math; nothing for an empty one."""
    if not title:
        return
    (text,), style = format_names([title], width=(WIDTH - 0.4) * RESOLUTION)
    if isinstance(target, Figure):
        target.suptitle(text, x=0.01, ha="left", **style)
    else:
        target.set_title(text, loc="left", **style)
