"""Plots of a detector's evaluation: precision over recall, figures over the threshold, errors by type."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .colors import class_colors
from .plot_style import ACCENT, CLEAR, DARK, FONT_SIZE, MAX_NAME_WIDTH, format_names, new_figure, set_title, style_axes

MAX_LINES = 12  # of classes with a color and a name; others are gray
MAX_INSIDE = 6  # names that fit below the curves
LINE_STYLES = ("-", "--", "-.", ":")
LIGHT_GRAY = "0.8"
METRIC_LINES = {
    "f1": ("F1", DARK, "-"),
    "precision": ("precision", "#e69f00", "--"),
    "recall": ("recall", "#009e73", ":"),
}


def plot_precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, float]], names: Sequence[str], *, title: str = ""
) -> Figure:
    """Plot the precision over the recall of each class at an IoU of 0.5.

    Of many classes, those with the lowest average precision have a color and a name.

    Args:
        curves: Ascending recall (N,), precision (N,) and average precision at an IoU of 0.5 (AP50), by class name.
        names: All class names of the model, in its order, so that a class has the same color on all figures.
        title: Line above the plot.
    """
    colors = class_colors(names)
    named = sorted(curves, key=lambda name: curves[name][2])[:MAX_LINES]
    is_inside = len(named) <= MAX_INSIDE
    figure = new_figure(4.2 if is_inside else 4.2 + 0.1 * len(named))
    axes = figure.subplots()
    for name in [name for name in curves if name not in named]:
        axes.plot(*curves[name][:2], color=LIGHT_GRAY, linewidth=0.8)
    for index, name in enumerate(named):
        recall, precision, average = curves[name]
        (label,), _ = format_names([name], MAX_NAME_WIDTH if is_inside else 0.75 * MAX_NAME_WIDTH)
        color = tuple(channel / 255 for channel in colors[name])
        style = LINE_STYLES[index % len(LINE_STYLES)]
        axes.plot(recall, precision, color=color, linestyle=style, linewidth=2, label=f"{label}: AP50 {average:.1%}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    if named:
        _, style = format_names(named)
        options = {"frameon": False, "prop": style["fontproperties"]}
        if is_inside:
            legend = axes.legend(loc="lower left", **options)
        else:
            legend = figure.legend(handles=axes.lines[-len(named) :], loc="outside lower left", ncols=2, **options)
        for text in legend.get_texts():
            text.set_parse_math(False)
    subtitle = "IoU 0.50"
    if len(curves) > len(named):
        subtitle += f"; gray: the other {len(curves) - len(named)} of {len(curves)} classes"
    axes.set_title(subtitle, loc="left", fontsize=FONT_SIZE)
    style_axes(axes)
    set_title(figure, title)
    return figure


def plot_thresholds(
    thresholds: np.ndarray,
    values: Mapping[str, np.ndarray],
    threshold: float | None,
    *,
    label: str = "recommended",
    title: str = "",
) -> Figure:
    """Plot F1, precision and recall over the score threshold, and mark one of them.

    Args:
        thresholds: (N,) ascending score thresholds.
        values: `f1`, `precision` and `recall` (N,) of all classes together, at an IoU of 0.5.
        threshold: Threshold to mark, None for none.
        label: What it is.
        title: Line above the plot.
    """
    figure = new_figure(3.8)
    axes = figure.subplots()
    for name, (text, color, style) in METRIC_LINES.items():
        axes.plot(thresholds, values[name], color=color, linestyle=style, linewidth=2, label=text)
    if threshold is not None:
        axes.axvline(threshold, color=ACCENT, linewidth=1.2)
        index = int(np.clip(np.searchsorted(thresholds, threshold), 0, len(thresholds) - 1))
        f1 = values["f1"][index]
        axes.plot(threshold, f1, color=ACCENT, marker="o")
        right = threshold < 0.6
        axes.annotate(
            f"{label} threshold\n{threshold:.3f}: F1 {f1:.1%}",
            (threshold, 0.04),
            xytext=(5 if right else -5, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            color=ACCENT,
            fontsize="small",
            bbox=CLEAR,
        )
    axes.set(xlabel="score threshold", ylabel="all classes together, IoU 0.50", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    style_axes(axes)
    set_title(figure, title)
    return figure


def plot_detection_errors(gains: Mapping[str, tuple[int, float]], *, title: str = "") -> Figure:
    """Plot the mAP50 that would be gained without each type of error, and the number of these errors.

    Args:
        gains: Number of errors and gain in mAP50, 0..1, by type.
        title: Line above the bars.
    """
    figure = new_figure(1.0 + 0.28 * len(gains))
    axes = figure.subplots()
    positions, values = np.arange(len(gains)), [100 * gain for _, gain in gains.values()]
    axes.barh(positions, values, color=DARK)
    for position, (count, gain) in zip(positions, gains.values(), strict=True):
        text = f"+{100 * gain:.1f}  ({count} errors)" if count != 1 else f"+{100 * gain:.1f}  (1 error)"
        axes.annotate(text, (100 * gain, position), (4, 0), textcoords="offset points", va="center", fontsize="small")
    labels, style = format_names(list(gains))
    axes.set_yticks(positions, labels, **style)
    axes.set(xlabel="points of mAP50 to gain by fixing these errors", ylim=(len(gains) - 0.4, -0.6))
    axes.set_xlim(0, 1.45 * max([*values, 0.1]))
    style_axes(axes, "x")
    set_title(figure, title)
    return figure
