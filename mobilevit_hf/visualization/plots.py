"""Plots of training curves, confusion matrices, average precision and speed.

Figures are created without pyplot, whose global state is not thread-safe, and without a display.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from ..io import write_atomically
from .text import LabelFont

RESOLUTION = 120  # pixels per inch
FONT_SIZE = 9  # points of 1/72 inch
MAX_NAME_WIDTH = 160  # pixels; longer names are truncated
MAX_CLASSES = 30  # a larger confusion matrix shows the classes with the most confusions
MAX_CLASSES_WITH_COUNTS = 20
MAX_BEST = MAX_WORST = 20  # a longer list of classes shows this number of the best and of the worst
CELL, ROW = 0.4, 0.21  # side of a matrix's cells and height of a list's rows, in inches
MAX_POINTS_WITH_MARKERS = 50

LIGHT, DARK, BEST = "#9ecae1", "#08519c", "#d94801"
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # background of numbers, so that no line crosses them


def save_plot(figure: Figure, path: Path) -> None:
    """Save a figure as PNG at its own resolution, atomically. Overwrites an existing file."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=figure.dpi))


def plot_curves(history: Sequence[Mapping[str, float]], metric: str) -> Figure:
    """Plot training loss, evaluation metric and learning rate over the steps, as far as the history has them.

    The loss is plotted raw and smoothed, as the mean over a twentieth of the training around each step. The best
    evaluation is marked: the highest value, or the lowest if the metric is a loss.

    Args:
        history: Lines of the training log, with `step` and some of `loss`, `learning_rate` and `eval_{metric}`. Of
            several values for one step, as after resuming, the last one is used.
        metric: Name of the metric without `eval_`.

    Raises:
        ValueError: If the history has none of the three curves.
    """
    panels = {
        "loss": ("training loss", _plot_loss),
        f"eval_{metric}": (metric, partial(_plot_metric, lowest=metric.endswith("loss"))),
        "learning_rate": ("learning rate", partial(_plot_line, color=DARK)),
    }
    curves = {name: curve for name in panels if len((curve := _read_curve(history, name))[0])}
    if not curves:
        raise ValueError(
            f"history: got {len(history)} lines, expected at least one with a step and one of {', '.join(panels)}. "
            "Plot a training run that has logged values."
        )
    figure = Figure(figsize=(8, 0.4 + 2.4 * len(curves)), dpi=RESOLUTION, layout="constrained")
    column = figure.subplots(len(curves), sharex=True, squeeze=False)[:, 0]
    for axes, (name, (steps, values)) in zip(column, curves.items(), strict=True):
        label, plot = panels[name]
        plot(axes, steps, values)
        (label,), style = _format_names([label])
        axes.set_ylabel(label, **style)
        _style_axes(axes)
    column[-1].set_xlabel("step")
    column[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    return figure


def _read_curve(history: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending steps (N,) and values (N,), NaN where they are not finite."""
    points = {line["step"]: line[name] for line in history if "step" in line and line.get(name) is not None}
    steps = np.array(sorted(points))
    values = np.array([points[step] for step in steps.tolist()], dtype=float)
    return steps, np.where(np.isfinite(values), values, np.nan)


def _plot_loss(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    _plot_line(axes, steps, values, color=LIGHT, label="raw")
    axes.plot(steps, _smooth(values), color=DARK, label="smoothed")
    axes.legend(frameon=False)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average (N,) of values (N,), NaN ignored."""
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
    axes.plot(steps, values, marker="." if len(steps) <= MAX_POINTS_WITH_MARKERS else None, **style)


def plot_confusion_matrix(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """Plot a confusion matrix: fractions as colors, and with few classes also numbers of images.

    A color is a fraction of the target class's images; the row of a class without images is blank. For many classes,
    those with the most confusions are shown, in their order.

    Args:
        confusion: (K, K) numbers of images by target class (rows) and predicted class (columns).
        names: K class names.

    Raises:
        ValueError: If the shape does not match the number of names, or there are no classes.
    """
    confusion, count = np.asarray(confusion), len(names)
    if not count or confusion.shape != (count, count):
        raise ValueError(
            f"confusion: got shape {confusion.shape} and {count} names, expected (K, K) and K ≥ 1 names. Pass the "
            "class names of the model."
        )
    shown = np.arange(count)
    if count > MAX_CLASSES:
        confusions = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * confusion.diagonal()
        shown = np.sort(np.argsort(-confusions, kind="stable")[:MAX_CLASSES])
    images, totals = confusion[np.ix_(shown, shown)], confusion.sum(axis=1)[shown, None]
    fractions = np.divide(images, totals, where=totals > 0, out=np.full(images.shape, np.nan))

    side = CELL * max(len(shown), 6)
    outer = side + MAX_NAME_WIDTH / RESOLUTION
    figure = Figure(figsize=(outer + 1.5, outer + 0.5), dpi=RESOLUTION, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="fraction of the target class", shrink=0.7, aspect=30)
    if count <= MAX_CLASSES_WITH_COUNTS:
        _write_counts(axes, images, fractions, cell=72 * side / len(shown))
    labels, style = _format_names([names[index] for index in shown])
    axes.set_xticks(range(len(shown)), labels, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(range(len(shown)), labels, **style)
    axes.set(xlabel="predicted class", ylabel="target class")
    if count > len(shown):
        axes.set_title(f"{len(shown)} of {count} classes: those with the most confusions")
    return figure


def _write_counts(axes: Axes, images: np.ndarray, fractions: np.ndarray, cell: float) -> None:
    """Write the number of images into each cell, whose side is in points."""
    digits = len(f"{images.max():.0f}")
    for row, column in np.argwhere(images):
        axes.text(
            *(column, row, f"{images[row, column]:.0f}"),
            ha="center",
            va="center",
            color="white" if fractions[row, column] > 0.5 else "black",
            fontsize=min(FONT_SIZE, 1.4 * cell / digits),
        )


def plot_average_precision(per_class: Mapping[Any, float]) -> Figure:
    """Plot the average precision of each class, best first; for many classes, of the best and the worst.

    Args:
        per_class: Average precision by class name or index, as in `CocoMap`; negative for a class without objects,
            which is omitted first if there are too many classes.

    Raises:
        ValueError: If there are no classes.
    """
    if not per_class:
        raise ValueError(
            "per_class: got no classes, expected at least one. Plot an evaluation of images with objects."
        )
    rows = sorted(((str(name), value) for name, value in per_class.items()), key=lambda row: -row[1])
    measured = [value for _, value in rows if value >= 0]
    omitted = max(0, len(measured) - MAX_BEST - MAX_WORST)
    del rows[MAX_BEST : MAX_BEST + omitted]
    del rows[MAX_BEST + MAX_WORST :]
    positions = np.arange(len(rows))
    if omitted:
        positions[MAX_BEST:] += 1
    figure = Figure(figsize=(8, 1 + ROW * (positions[-1] + 1)), dpi=RESOLUTION, layout="constrained")
    axes = figure.subplots()
    axes.barh(positions, [max(value, 0) for _, value in rows], color=DARK)
    for position, (_, value) in zip(positions, rows, strict=True):
        text = f"{value:.3f}" if value >= 0 else "-"
        axes.text(max(value, 0) + 0.01, position, text, va="center", fontsize=FONT_SIZE, bbox=CLEAR)
    if omitted:
        axes.text(0.01, MAX_BEST, f"… {omitted} more …", va="center", fontsize=FONT_SIZE, color="0.4", bbox=CLEAR)
    labels, style = _format_names([name for name, _ in rows])
    axes.set_yticks(positions, labels, **style)
    axes.set(xlabel="average precision", xlim=(0, 1), ylim=(positions[-1] + 0.6, -0.6))
    if measured:
        mean = float(np.mean(measured))
        axes.axvline(mean, color=BEST, linestyle="--", zorder=0.9)
        axes.set_title(f"mean {mean:.3f}", color=BEST)
    _style_axes(axes, "x")
    return figure


def plot_speed(speeds: Mapping[str, Mapping[str, float]]) -> Figure:
    """Plot the images per second of each backend, in a panel per batch and image size.

    Args:
        speeds: Images per second by panel, such as "batch 1, 256x256", and by backend.

    Raises:
        ValueError: If there are no panels.
    """
    if not speeds:
        raise ValueError("speeds: got no panels, expected at least one. Plot a benchmark with measurements.")
    height = len(speeds) * (0.7 + 1.5 * ROW * max(map(len, speeds.values())))
    figure = Figure(figsize=(8, 0.3 + height), dpi=RESOLUTION, layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(len(speeds), squeeze=False)[:, 0], speeds.items(), strict=True):
        positions, values, best = np.arange(len(panel)), list(panel.values()), max(panel.values())
        axes.barh(positions, values, color=[BEST if value == best else DARK for value in values])
        for position, value in zip(positions, values, strict=True):
            axes.annotate(f"{value:.1f}", (value, position), (4, 0), textcoords="offset points", va="center")
        labels, style = _format_names(list(panel))
        axes.set_yticks(positions, labels, **style)
        axes.set(xlabel="images per second", title=title, xlim=(0, 1.12 * best), ylim=(len(panel) - 0.4, -0.6))
        _style_axes(axes, "x")
    return figure


def _style_axes(axes: Axes, grid: Literal["x", "y", "both"] = "both") -> None:
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _format_names(names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return names as labels, and a text style with a font that has their characters and without math."""
    font = LabelFont(names, round(FONT_SIZE * RESOLUTION / 72))
    style = {"fontproperties": FontProperties(fname=font.file, size=FONT_SIZE), "parse_math": False, "usetex": False}
    return [font.fit(name, MAX_NAME_WIDTH) for name in names], style
