"""Plots of a dataset: numbers by class, sizes and positions of boxes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .colors import class_colors
from .plot_style import (
    DARK,
    FONT_SIZE,
    MAX_NAME_WIDTH,
    RESOLUTION,
    WIDTH,
    format_names,
    new_figure,
    set_title,
    style_axes,
)

ROW = 0.21  # height of a bar's row in inches
MAX_CLASSES = 40  # of more classes, the largest and the smallest are shown
MAX_HISTOGRAMS = 8  # classes with a histogram of their own
SIZE_BINS, POSITION_BINS = 24, 12
LEGEND_COLUMNS = 3


def plot_class_counts(
    counts: Mapping[str, Mapping[str, int]], names: Sequence[str], *, title: str = "", unit: str = "images"
) -> Figure:
    """Plot the number of images or objects of each class, or the percentage of the pixels, in a panel per split.

    Args:
        counts: Numbers by split and class.
        names: All class names, in the order of the model.
        title: Line above the panels.
        unit: What is counted.
    """
    totals = {name: sum(split.get(name, 0) for split in counts.values()) for name in names}
    shown = list(names)
    if len(shown) > MAX_CLASSES:
        by_size = sorted(names, key=lambda name: -totals[name])
        shown = by_size[: MAX_CLASSES // 2] + by_size[-MAX_CLASSES // 2 :]
    figure = new_figure(1.1 + ROW * len(shown))
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    colors = class_colors(names)
    for axes, (split, of_split) in zip(panels, counts.items(), strict=True):
        values, total = [float(of_split.get(name, 0)) for name in shown], sum(of_split.values())
        if is_fraction := unit == "pixels":
            values = [100 * value / max(total, 1) for value in values]
        axes.barh(range(len(shown)), values, color=[tuple(c / 255 for c in colors[name]) for name in shown])
        for position, value in enumerate(values):
            axes.annotate(
                f"{value:.1f}%" if is_fraction else f"{value:.0f}",
                (value, position),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize="small",
            )
        label = "% of the labeled pixels" if is_fraction else unit
        axes.set(xlim=(0, 1.3 * max([*values, 1])), ylim=(len(shown) - 0.4, -0.6), xlabel=label)
        axes.set_title(split if is_fraction else f"{split}: {total}", loc="left", fontsize=FONT_SIZE)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=3)
        style_axes(axes, "x")
    labels, style = format_names(shown, min(MAX_NAME_WIDTH, WIDTH * RESOLUTION / 4))
    panels[0].set_yticks(range(len(shown)), labels, **style)
    if len(shown) < len(names):
        title = f"{title}: the {len(shown) // 2} largest and smallest of {len(names)} classes"
    set_title(figure, title)
    return figure


def plot_boxes(
    boxes: np.ndarray, sizes: np.ndarray, labels: np.ndarray, names: Sequence[str], *, title: str = ""
) -> Figure:
    """Plot histograms of the relative size of boxes, by class if there are few, and of the position of their centers.

    Args:
        boxes: (N, 4) (x1, y1, x2, y2) in pixels.
        sizes: (N, 2) height and width in pixels of the image of each box.
        labels: (N,) class index of each box.
        names: All class names, in the order of the model.
        title: Line above the panels.
    """
    heights, widths = sizes.T
    sides = 100 * np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (heights * widths))
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 / widths, (boxes[:, 1] + boxes[:, 3]) / 2 / heights
    present = np.unique(labels)
    has_legend = len(present) <= MAX_HISTOGRAMS
    figure = new_figure(3.2 + ROW * has_legend * -(-len(present) // LEGEND_COLUMNS))
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0, max(float(sides.max(initial=0)), 1), SIZE_BINS + 1)
    if has_legend:
        colors = class_colors(names)
        shown, style = format_names([names[label] for label in present], 0.8 * MAX_NAME_WIDTH)
        left.hist(
            [sides[labels == label] for label in present],
            bins.tolist(),
            stacked=True,
            color=[tuple(channel / 255 for channel in colors[names[label]]) for label in present],
            label=shown,
        )
        legend = figure.legend(
            loc="outside lower left", ncols=LEGEND_COLUMNS, frameon=False, prop=style["fontproperties"]
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        left.hist(sides, bins.tolist(), color=DARK)
    left.set(xlabel="side of the box, % of the image's:\n√(box area / image area)", ylabel="boxes")
    left.set_title("size", loc="left", fontsize=FONT_SIZE)
    style_axes(left)
    density, _, _ = np.histogram2d(y, x, POSITION_BINS, [[0, 1], [0, 1]])
    image = right.imshow(density, cmap="Blues", extent=(0, 1, 1, 0), aspect="equal", vmin=0)
    figure.colorbar(image, label="boxes", shrink=0.75)
    right.set(xlabel="x of the center / width", ylabel="y of the center / height")
    right.set_title("position", loc="left", fontsize=FONT_SIZE)
    set_title(figure, title)
    return figure
