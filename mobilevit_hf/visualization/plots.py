"""Plots of how a training went and of what a model confuses: without a display, from any thread.

Nothing here knows of pyplot, which keeps what it draws in global state.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import ImageFont

from ..io import write_whole
from .text import fit_label, font_file

# Pixels an inch, of which a point of a font's size is 1/72.
RESOLUTION = 120
FONT_SIZE = 9

# In pixels. A longer name is cut.
MAX_NAME_WIDTH = 160

# A matrix of more classes shows those with the most confusions, and one of this many has colors only.
MAX_CLASSES = 30
MAX_CLASSES_WITH_COUNTS = 20

# A list of more classes than both shows so many of the best and so many of the worst.
MAX_BEST = MAX_WORST = 20

# The sides of a matrix's cells and the rows of a list, in inches.
CELL = 0.4
ROW = 0.21

# A curve of no more points than this shows them.
MAX_POINTS = 50

# Behind numbers, so that no line crosses them.
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1}

LIGHT, DARK, BEST = "#9ecae1", "#08519c", "#d94801"


def save_plot(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, in the place of a file that is there.

    Args:
        figure: Its own resolution counts.
        path: A file in an existing directory.
    """
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=figure.dpi))


# --- a training over time --------------------------------------------------------------------------------------------


def plot_curves(history: Sequence[Mapping[str, float]], metric: str) -> Figure:
    """Training loss, an evaluation's metric and the learning rate over the steps, each as far as it is there.

    The loss is shown raw, and smoothed: its mean over a twentieth of the training around each step. The best
    evaluation is the one with the highest value; if the metric is a loss, with the lowest.

    Args:
        history: Lines of a training's log, which have `step` and some of `loss`, `learning_rate` and `eval_{metric}`.
            Of several values for a step, as where a training was resumed, the last one counts.
        metric: The metric's name without `eval_`.

    Raises:
        ValueError: If the history has none of the three.
    """
    panels = {
        "loss": ("training loss", _plot_loss),
        f"eval_{metric}": (metric, partial(_plot_metric, lowest=metric.endswith("loss"))),
        "learning_rate": ("learning rate", partial(_plot_line, color=DARK)),
    }
    curves = {name: curve for name in panels if len((curve := _read_curve(history, name))[0])}
    if not curves:
        raise ValueError(
            f"history: got {len(history)} lines, none with a step and one of {', '.join(panels)}. Plot a training "
            "that has logged something."
        )
    figure = Figure(figsize=(8, 0.4 + 2.4 * len(curves)), dpi=RESOLUTION, layout="constrained")
    column = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (name, (steps, values)) in zip(column, curves.items(), strict=True):
        label, plot = panels[name]
        plot(axes, steps, values)
        (label,), style = _make_drawable([label])
        axes.set_ylabel(label, **style)
        _tidy(axes)
    column[-1].set_xlabel("step")
    column[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    return figure


def _read_curve(history: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (N,), ascending, and values (N,), NaN where they are not finite."""
    found = {line["step"]: line[name] for line in history if "step" in line and line.get(name) is not None}
    steps = np.array(sorted(found))
    values = np.array([found[step] for step in steps.tolist()], dtype=float)
    return steps, np.where(np.isfinite(values), values, np.nan)


def _plot_loss(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    _plot_line(axes, steps, values, color=LIGHT, label="raw")
    axes.plot(steps, _smooth(values), color=DARK, label="smoothed")
    axes.legend(frameon=False)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean (N,) of those of the values (N,) around each that are not NaN."""
    window = np.ones(1 + 2 * (len(values) // 40))
    sums, counts = (np.convolve(v, window, "same") for v in (np.nan_to_num(values), np.isfinite(values).astype(float)))
    return np.divide(sums, counts, where=counts > 0, out=np.full(len(values), np.nan))


def _plot_metric(axes: Axes, steps: np.ndarray, values: np.ndarray, *, lowest: bool) -> None:
    _plot_line(axes, steps, values, color=DARK)
    if np.isfinite(values).any():
        best = np.nanargmin(values) if lowest else np.nanargmax(values)
        axes.plot(steps[best], values[best], color=BEST, marker="o", linestyle="none")
        left = steps[best] < steps.mean()
        axes.annotate(
            f"{values[best]:.4g} at step {steps[best]}",
            (steps[best], values[best]),
            xytext=(0, -8 if lowest else 8),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top" if lowest else "bottom",
            color=BEST,
        )
        axes.margins(y=0.2)


def _plot_line(axes: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    axes.plot(steps, values, marker="." if len(steps) <= MAX_POINTS else None, **style)


# --- classes ---------------------------------------------------------------------------------------------------------


def plot_confusion_matrix(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """What images of each class were taken for: as colors, and with few classes also as numbers of images.

    A color is a share of the right class's images; where it has none the row is blank. Of many classes those are
    shown that take part in the most confusions, in their order.

    Args:
        confusion: (K, K) numbers of images, by right class (rows) and named class (columns).
        names: Of the K classes.

    Raises:
        ValueError: If there are not as many names as rows and columns, or none.
    """
    confusion, count = np.asarray(confusion), len(names)
    if not count or confusion.shape != (count, count):
        raise ValueError(f"confusion: got shape {confusion.shape} and {count} names, expected (K, K) and K from 1.")
    shown = np.arange(count)
    if count > MAX_CLASSES:
        confusions = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
        shown = np.sort(np.argsort(-confusions, kind="stable")[:MAX_CLASSES])
    images, totals = confusion[np.ix_(shown, shown)], confusion.sum(axis=1)[shown, None]
    shares = np.divide(images, totals, where=totals > 0, out=np.full(images.shape, np.nan))

    side = CELL * max(len(shown), 6)
    margin = MAX_NAME_WIDTH / RESOLUTION
    figure = Figure(figsize=(side + margin + 1.5, side + margin + 0.5), dpi=RESOLUTION, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the right class", shrink=0.7, aspect=30)
    if count <= MAX_CLASSES_WITH_COUNTS:
        digits = len(f"{images.max():.0f}")
        for row, column in np.argwhere(images):
            axes.text(
                *(column, row, f"{images[row, column]:.0f}"),
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.5 else "black",
                fontsize=min(FONT_SIZE, 1.4 * 72 * side / len(shown) / digits),
            )
    labels, style = _make_drawable([names[index] for index in shown])
    axes.set_xticks(range(len(shown)), labels, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(range(len(shown)), labels, **style)
    axes.set(xlabel="named class", ylabel="right class")
    if count > len(shown):
        axes.set_title(f"{len(shown)} of {count} classes: those with the most confusions")
    return figure


def plot_average_precision(per_class: Mapping[Any, float]) -> Figure:
    """Average precision of each class, the best first; of many classes, of the best and the worst.

    Args:
        per_class: By name or index, as `CocoMap` returns it; negative for a class without objects, which is the first
            to be left out where there are too many.

    Raises:
        ValueError: If there are no classes.
    """
    if not per_class:
        raise ValueError("per_class: got no classes. Plot an evaluation on images with objects.")
    rows = sorted(((str(name), value) for name, value in per_class.items()), key=lambda row: -row[1])
    measured = [value for _, value in rows if value >= 0]
    left_out = max(0, len(measured) - MAX_BEST - MAX_WORST)
    del rows[MAX_BEST : MAX_BEST + left_out]
    del rows[MAX_BEST + MAX_WORST :]
    places = np.arange(len(rows))
    if left_out:
        places[MAX_BEST:] += 1

    figure = Figure(figsize=(8, 1 + ROW * (places[-1] + 1)), dpi=RESOLUTION, layout="constrained")
    axes = figure.subplots()
    axes.barh(places, [max(value, 0) for _, value in rows], color=DARK)
    for place, (_, value) in zip(places, rows, strict=True):
        text = f"{value:.3f}" if value >= 0 else "-"
        axes.text(max(value, 0) + 0.01, place, text, va="center", fontsize=FONT_SIZE, bbox=CLEAR)
    if left_out:
        axes.text(0.01, MAX_BEST, f"… {left_out} more …", va="center", fontsize=FONT_SIZE, color="0.4", bbox=CLEAR)
    labels, style = _make_drawable([name for name, _ in rows])
    axes.set_yticks(places, labels, **style)
    axes.set(xlabel="average precision", xlim=(0, 1), ylim=(places[-1] + 0.6, -0.6))
    if measured:
        mean = np.mean(measured)
        axes.axvline(mean, color=BEST, linestyle="--", zorder=0.9)
        axes.set_title(f"mean {mean:.3f}", color=BEST)
    _tidy(axes, "x")
    return figure


# --- speed -----------------------------------------------------------------------------------------------------------


def plot_speed(speeds: Mapping[str, Mapping[str, float]]) -> Figure:
    """Images a second of each engine, in a panel for each size of batch and image.

    Args:
        speeds: By panel, such as "batch 1, 256x256", and by engine.

    Raises:
        ValueError: If there are none.
    """
    if not speeds:
        raise ValueError("speeds: got none. Plot what was measured.")
    rows = max(map(len, speeds.values()))
    height = len(speeds) * (0.7 + 1.5 * ROW * rows)
    figure = Figure(figsize=(8, 0.3 + height), dpi=RESOLUTION, layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(len(speeds), squeeze=False)[:, 0], speeds.items(), strict=True):
        places, values, best = np.arange(len(panel)), list(panel.values()), max(panel.values())
        axes.barh(places, values, color=[BEST if value == best else DARK for value in values])
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.1f}", (value, place), (4, 0), textcoords="offset points", va="center")
        labels, style = _make_drawable(list(panel))
        axes.set_yticks(places, labels, **style)
        axes.set(xlabel="images a second", title=title, xlim=(0, 1.12 * best), ylim=(len(panel) - 0.4, -0.6))
        _tidy(axes, "x")
    return figure


def _tidy(axes: Axes, lines: Literal["x", "y", "both"] = "both") -> None:
    axes.grid(axis=lines, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _make_drawable(names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Names as labels, and the style they are drawn in: in letters of the font, and none is a formula."""
    font = ImageFont.truetype(font_file("".join(names)), FONT_SIZE * RESOLUTION / 72)
    style = {"fontproperties": FontProperties(fname=font.path, size=FONT_SIZE), "parse_math": False, "usetex": False}
    return [fit_label(name, font, MAX_NAME_WIDTH) for name in names], style
