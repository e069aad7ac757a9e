"""Plots of confusion matrices, calibration, average precision and speed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .curves import plot_curves
from .plot_style import (
    ACCENT,
    CLEAR,
    DARK,
    FONT_SIZE,
    LIGHT,
    MAX_NAME_WIDTH,
    RESOLUTION,
    format_names,
    new_figure,
    save_plot,
    set_title,
    style_axes,
)

__all__ = [
    "plot_average_precision",
    "plot_confusion_matrix",
    "plot_curves",
    "plot_reliability",
    "plot_speed",
    "save_plot",
]

MAX_CLASSES = 30  # a larger confusion matrix shows the classes with the most confusions
MAX_CLASSES_WITH_NUMBERS = 20
MAX_BEST = MAX_WORST = 20  # a longer list of classes shows this number of the best and of the worst
CELL, ROW = 0.36, 0.21  # side of a matrix's cells and height of a list's rows, in inches


def plot_confusion_matrix(
    confusion: np.ndarray, names: Sequence[str], *, title: str = "", normalized: bool = False, unit: str = "images"
) -> Figure:
    """Plot a confusion matrix: fractions as colors, and with few classes also numbers.

    A color is a fraction of the target class's images; the row of a class without images is blank. For many classes,
    those with the most confusions are shown, in their order.

    Args:
        confusion: (K, K) numbers of images or objects by target class (rows) and predicted class (columns).
        names: K class names.
        title: Line above the matrix.
        normalized: Write percentages of the target class into the cells instead of numbers.
        unit: What is counted.

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
    numbers, totals = confusion[np.ix_(shown, shown)], confusion.sum(axis=1)[shown, None]
    fractions = np.divide(numbers, totals, where=totals > 0, out=np.full(numbers.shape, np.nan))

    side = CELL * max(len(shown), 6)
    outer = side + MAX_NAME_WIDTH / RESOLUTION
    figure = new_figure(outer + 0.7, outer + 1.5)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="fraction of the target class", shrink=0.7, aspect=30)
    if count <= MAX_CLASSES_WITH_NUMBERS:
        texts = _percentages(fractions) if normalized else numbers.astype(int).astype(str)
        _write_numbers(axes, np.where(numbers > 0, texts, ""), fractions, cell=72 * side / len(shown))
    labels, style = format_names([names[index] for index in shown])
    axes.set_xticks(range(len(shown)), labels, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(range(len(shown)), labels, **style)
    axes.set(xlabel="predicted class", ylabel="target class")
    written = "% of the target class" if normalized else f"number of {unit}"
    caption = written if count <= MAX_CLASSES_WITH_NUMBERS else ""
    if count > len(shown):
        caption = f"{len(shown)} of {count} classes: those with the most confusions"
    axes.set_title(caption, loc="left", fontsize=FONT_SIZE)
    set_title(figure, title)
    return figure


def _percentages(fractions: np.ndarray) -> np.ndarray:
    """Return percentages without decimals, `<1` for a fraction that would be rounded to 0."""
    percentages = np.nan_to_num(100 * fractions).round().astype(int).astype(str)
    return np.where((fractions > 0) & (fractions < 0.005), "<1", percentages)


def _write_numbers(axes: Axes, texts: np.ndarray, fractions: np.ndarray, cell: float) -> None:
    """Write a text into each cell, whose side is in points."""
    digits = max(map(len, texts.flat), default=1)
    for row, column in np.argwhere(texts != ""):
        axes.text(
            *(column, row, texts[row, column]),
            ha="center",
            va="center",
            color="white" if fractions[row, column] > 0.5 else "black",
            fontsize=min(FONT_SIZE, 1.4 * cell / digits),
        )


def plot_reliability(
    confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray, ece: float, *, title: str = ""
) -> Figure:
    """Plot a reliability diagram: accuracy over the mean probability of bins of equal width, and their sizes.

    Args:
        confidence: (B,) mean probability of the predicted class in each bin, NaN for an empty one.
        accuracy: (B,) fraction of correct predictions in each bin, NaN for an empty one.
        counts: (B,) number of images in each bin.
        ece: Expected calibration error.
        title: Line above the panels.
    """
    bins = len(counts)
    centers, width = (np.arange(bins) + 0.5) / bins, 1 / bins
    figure = new_figure(5.6)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfect calibration")
    top.bar(centers, np.nan_to_num(accuracy), 0.94 * width, color=LIGHT, label="accuracy of the bin")
    filled = counts > 0
    top.plot(confidence[filled], accuracy[filled], color=DARK, marker="o", markersize=4, label="at mean confidence")
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    top.legend(frameon=False, fontsize="small", loc="upper left")
    top.set_title(f"expected calibration error (ECE) {ece:.1%}", loc="left", fontsize=FONT_SIZE)
    bottom.bar(centers, counts, 0.94 * width, color=DARK)
    bottom.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    bottom.yaxis.get_major_locator().set_params(integer=True)
    for axes in (top, bottom):
        style_axes(axes)
    set_title(figure, title)
    figure.align_ylabels()
    return figure


def plot_average_precision(
    per_class: Mapping[Any, float], *, title: str = "", label: str = "average precision (IoU 0.50 to 0.95)"
) -> Figure:
    """Plot the average precision of each class, best first; for many classes, of the best and the worst.

    Args:
        per_class: Average precision by class name or index, as in `CocoMap`; negative for a class without objects,
            which is omitted first if there are too many classes.
        title: Line above the bars.
        label: Label of the axis.

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
    figure = new_figure(1.2 + ROW * (positions[-1] + 1))
    axes = figure.subplots()
    axes.barh(positions, [max(value, 0) for _, value in rows], color=DARK)
    for position, (_, value) in zip(positions, rows, strict=True):
        text = f"{value:.3f}" if value >= 0 else "-"
        axes.text(max(value, 0) + 0.01, position, text, va="center", fontsize=FONT_SIZE, bbox=CLEAR)
    if omitted:
        axes.text(0.01, MAX_BEST, f"… {omitted} more …", va="center", fontsize=FONT_SIZE, color="0.4", bbox=CLEAR)
    labels, style = format_names([name for name, _ in rows])
    axes.set_yticks(positions, labels, **style)
    axes.set(xlabel=label, xlim=(0, 1), ylim=(positions[-1] + 0.6, -0.6))
    if measured:
        mean = float(np.mean(measured))
        axes.axvline(mean, color=ACCENT, linestyle="--", zorder=0.9)
        axes.set_title(f"mean {mean:.3f}", color=ACCENT, loc="left", fontsize=FONT_SIZE)
    style_axes(axes, "x")
    set_title(figure, title)
    return figure


def plot_speed(
    speeds: Mapping[str, Mapping[str, float]], *, title: str = "", subtitle: str = "", note: str = ""
) -> Figure:
    """Plot the images per second of each backend, in a panel per batch and image size, on one scale.

    The fastest of a panel is darker and marked as such.

    Args:
        speeds: Images per second by panel, such as "batch 1, 256x256", and by backend.
        title: Model.
        subtitle: Hardware and number of threads.
        note: Remark on the measurement, at the bottom.

    Raises:
        ValueError: If there are no panels.
    """
    if not speeds:
        raise ValueError("speeds: got no panels, expected at least one. Plot a benchmark with measurements.")
    height = len(speeds) * (0.7 + 1.5 * ROW * max(map(len, speeds.values())))
    figure = Figure(figsize=(8, 0.9 + height), dpi=RESOLUTION, layout="constrained")
    (title, subtitle), style = format_names([title, subtitle], 8 * RESOLUTION)
    figure.suptitle(f"{title}\n{subtitle}".strip(), **style)
    if note:
        figure.supxlabel(note, color=ACCENT, fontsize=FONT_SIZE)
    column = figure.subplots(len(speeds), squeeze=False, sharex=True)[:, 0]
    fastest = max(max(panel.values()) for panel in speeds.values())
    for axes, (case, panel) in zip(column, speeds.items(), strict=True):
        positions, values, best = np.arange(len(panel)), list(panel.values()), max(panel.values())
        axes.barh(positions, values, color=[DARK if value == best else LIGHT for value in values])
        for position, value in zip(positions, values, strict=True):
            text = f"{value:.1f}{' (fastest)' * (value == best and len(panel) > 1)}"
            axes.annotate(text, (value, position), (4, 0), textcoords="offset points", va="center")
        labels, style = format_names(list(panel), 2 * MAX_NAME_WIDTH)
        axes.set_yticks(positions, labels, **style)
        axes.set(title=case, xlim=(0, 1.25 * fastest), ylim=(len(panel) - 0.4, -0.6))
        style_axes(axes, "x")
    column[-1].set_xlabel("images per second")
    return figure
