"""Plot of training curves: loss, metric and learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plot_style import ACCENT, DARK, LIGHT, format_names, new_figure, set_title, style_axes

MAX_POINTS_WITH_MARKERS = 50
PANEL_HEIGHT = 1.9  # inches
MIN_SMOOTHED = 40  # points; fewer are not smoothed
# Largest ratio of a loss to its 98th percentile that is plotted on a linear scale up to the largest value.
MAX_OUTLIER = 4.0

# Titles of the losses of this package's models; other losses are plotted under their names.
LOSS_TITLES = {"loss": "Loss", "loss_ce": "Classification loss", "loss_bbox": "Box loss"}

History = Sequence[Mapping[str, Any]]


def plot_curves(
    history: History, metric: str, *, title: str = "", metric_title: str | None = None, best_step: int | None = None
) -> Figure:
    """Plot the losses, the evaluation metric and the learning rate over the steps, as far as the history has them.

    Each loss has a panel: of the training raw and, with many points, smoothed (the mean over a twentieth of the
    training around each step), and of the validation. The metric is drawn with its confidence interval as a band. The
    saved evaluation is marked: `best_step`, or else the highest value, or the lowest if the metric is a loss; of equal
    ones the last.

    Args:
        history: Lines of the training log, with `step` and some of `learning_rate`, `loss`, the terms of the loss
            (`…_loss` or `loss_…`), the same with `eval_`, `eval_{metric}`, and the ends of its interval
            (`eval_{metric}_low`, `eval_{metric}_high`). Of several values for one step, as after resuming, the last
            one is used.
        metric: Name of the metric without `eval_`.
        title: Line above the panels.
        metric_title: Title of the metric. Default: its name.
        best_step: Step whose weights were saved.

    Raises:
        ValueError: If the history has none of these curves.
    """
    curves = {name: read_curve(history, name) for name in _names(history)}
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    losses = [name for name in dict.fromkeys(n.removeprefix("eval_") for n in curves) if _is_loss(name)]
    losses = [name for name in losses if name != metric or f"eval_{metric}" not in curves or name in curves]
    panels = [*losses, *(name for name in (f"eval_{metric}", "learning_rate") if name in curves)]
    panels = [name for name in panels if name != f"eval_{metric}" or metric not in losses]
    if not panels:
        raise ValueError(
            f"history: got {len(history)} lines, expected at least one with a step and one of loss, eval_{metric}, "
            "learning_rate. Plot a training run that has logged values."
        )
    figure = new_figure(0.6 + PANEL_HEIGHT * len(panels))
    column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(column, panels, strict=True):
        if name in losses:
            _plot_loss(axes, curves.get(name), curves.get(f"eval_{name}"))
            label = LOSS_TITLES.get(name, name)
        elif name == "learning_rate":
            _plot_line(axes, *curves[name], color=DARK)
            label = "Learning rate"
        else:
            ends = [curves.get(f"{name}_{end}") for end in ("low", "high")]
            _plot_metric(axes, curves[name], ends, best_step, lowest=metric.endswith("loss"))
            label = metric_title or metric
        (label,), style = format_names([label])
        axes.set_ylabel(label, **style)
        style_axes(axes)
    column[-1].set_xlabel("optimizer step")
    column[-1].xaxis.get_major_locator().set_params(integer=True)
    set_title(figure, title)
    figure.align_ylabels()
    return figure


def read_curve(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending steps (N,) and values (N,), NaN where they are not finite."""
    points = {line["step"]: line[name] for line in history if "step" in line and line.get(name) is not None}
    steps = np.array(sorted(points))
    values = np.array([points[step] for step in steps.tolist()], dtype=float)
    return steps, np.where(np.isfinite(values), values, np.nan)


def _names(history: History) -> list[str]:
    """Return the names of all numbers of the log, the total loss before its terms."""
    names = dict.fromkeys(name for line in history for name, value in line.items() if isinstance(value, int | float))
    return sorted(names, key=lambda name: name.removeprefix("eval_") != "loss")


def _is_loss(name: str) -> bool:
    return name == "loss" or name.startswith("loss_") or name.endswith("_loss")


def _plot_loss(
    axes: Axes, training: tuple[np.ndarray, np.ndarray] | None, validation: tuple[np.ndarray, np.ndarray] | None
) -> None:
    values = np.concatenate([curve[1] for curve in (training, validation) if curve])
    if training:
        is_smoothed = len(training[0]) >= MIN_SMOOTHED
        _plot_line(axes, *training, color=LIGHT if is_smoothed else DARK, label="training")
        if is_smoothed:
            axes.plot(training[0], _smooth(training[1]), color=DARK, label="training, smoothed")
    if validation:
        axes.plot(*validation, color=ACCENT, marker="o", markersize=3, linestyle="--", label="validation")
    axes.legend(frameon=False, fontsize="small")
    finite = values[np.isfinite(values)]
    if len(finite) and finite.max() > MAX_OUTLIER * np.percentile(finite, 98) > 0:
        axes.set_ylim(0, 1.5 * np.percentile(finite, 98))  # one diverging step would flatten all others


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the moving average (N,) of values (N,), NaN ignored."""
    window = np.ones(1 + 2 * (len(values) // MIN_SMOOTHED))
    sums, counts = (np.convolve(v, window, "same") for v in (np.nan_to_num(values), np.isfinite(values).astype(float)))
    return np.divide(sums, counts, where=counts > 0, out=np.full(len(values), np.nan))


def _plot_metric(
    axes: Axes,
    curve: tuple[np.ndarray, np.ndarray],
    ends: Sequence[tuple[np.ndarray, np.ndarray] | None],
    best_step: int | None,
    *,
    lowest: bool,
) -> None:
    steps, values = curve
    _plot_line(axes, steps, values, color=DARK, label="validation")
    low, high = ends
    if low and high:
        axes.fill_between(low[0], low[1], high[1], color=LIGHT, alpha=0.5, linewidth=0, label="95% interval")
        if len(low[0]) == 1:
            error = np.abs(np.array([low[1], high[1]]) - values[np.isin(steps, low[0])])
            axes.errorbar(low[0], values[np.isin(steps, low[0])], error, color=DARK, capsize=3)
        axes.legend(frameon=False, fontsize="small", loc="lower right")
    if not np.isfinite(values).any():
        return
    extreme = np.nanmin(values) if lowest else np.nanmax(values)
    saved = np.flatnonzero(steps == best_step)
    best = saved[-1] if len(saved) else np.flatnonzero(values == extreme)[-1]
    axes.plot(steps[best], values[best], color=ACCENT, marker="o", linestyle="none")
    left = steps[best] < steps.mean()
    axes.annotate(
        f"{values[best]:.4g} at step {steps[best]}",
        (steps[best], values[best]),
        xytext=(0, -8 if lowest else 8),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top" if lowest else "bottom",
        color=ACCENT,
        fontsize="small",
    )
    axes.margins(y=0.2)


def _plot_line(axes: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    axes.plot(steps, values, marker="." if len(steps) <= MAX_POINTS_WITH_MARKERS else None, **style)
