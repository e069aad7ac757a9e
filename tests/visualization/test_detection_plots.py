import numpy as np
import pytest
from matplotlib.colors import same_color

from mobilevit_hf.visualization import class_colors
from mobilevit_hf.visualization.data_plots import plot_boxes, plot_class_counts
from mobilevit_hf.visualization.detection_plots import plot_detection_errors, plot_precision_recall, plot_thresholds

NAMES = ["cat", "dog", "$fish$"]


def to_rgb(color):
    return tuple(channel / 255 for channel in color)


def test_precision_recall_curve_of_each_class_has_its_color():
    curves = {
        name: (np.array([0, 0.5, 1]), np.array([1, 0.9, 0.1 * i]), 0.5 + 0.1 * i) for i, name in enumerate(NAMES[1:])
    }
    (axes,) = plot_precision_recall(curves, NAMES).axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert set(drawn) == {"dog: AP50 50.0%", "$fish$: AP50 60.0%"}
    for label, name in zip(drawn, curves, strict=True):
        np.testing.assert_array_equal(drawn[label].get_xdata(), curves[name][0])
        np.testing.assert_array_equal(drawn[label].get_ydata(), curves[name][1])
        assert same_color(drawn[label].get_color(), to_rgb(class_colors(NAMES)[name]))
    assert len({line.get_linestyle() for line in axes.lines}) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")


def test_worst_of_many_classes_are_named():
    names = [f"class {i}" for i in range(30)]
    curves = {name: (np.array([0, 1]), np.array([1, 1]), i / 30) for i, name in enumerate(names)}
    figure = plot_precision_recall(curves, names)
    (axes,) = figure.axes
    assert len(axes.lines) == 30
    (legend,) = figure.legends
    named = [text.get_text().partition(":")[0] for text in legend.get_texts()]
    assert named == names[:12]
    assert "18 of 30" in axes.get_title("left")


def test_threshold_is_marked():
    thresholds = np.array([0.1, 0.3, 0.6])
    values = {
        "precision": np.array([0.2, 0.6, 0.9]),
        "recall": np.array([0.9, 0.7, 0.1]),
        "f1": np.array([0.3, 0.65, 0.2]),
    }
    (axes,) = plot_thresholds(thresholds, values, 0.3).axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert {"F1", "precision", "recall"} <= set(drawn)
    np.testing.assert_array_equal(drawn["recall"].get_ydata(), values["recall"])
    assert any(list(line.get_xdata()) == [0.3, 0.3] for line in axes.lines)
    assert [text.get_text() for text in axes.texts] == ["recommended threshold\n0.300: F1 65.0%"]
    (axes,) = plot_thresholds(thresholds, values, None).axes
    assert not axes.texts


def test_errors_have_their_gain_and_number():
    (axes,) = plot_detection_errors({"localization": (3, 0.015), "missed": (1, 0.0)}).axes
    assert [text.get_text() for text in axes.texts] == ["+1.5  (3 errors)", "+0.0  (1 error)"]
    assert [bar.get_width() for bar in axes.patches] == [1.5, 0]


def test_class_counts_have_a_panel_per_split():
    counts = {"train": {"cat": 5, "dog": 2, "$fish$": 0}, "test": {"cat": 1}}
    axes = plot_class_counts(counts, NAMES).axes
    assert [panel.get_title("left") for panel in axes] == ["train: 7", "test: 1"]
    assert [bar.get_width() for bar in axes[0].patches] == [5, 2, 0]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == NAMES
    assert same_color(axes[0].patches[1].get_facecolor(), to_rgb(class_colors(NAMES)["dog"]))


@pytest.mark.parametrize("num_classes", [3, 100])
def test_box_sizes_and_positions(num_classes):
    names = [f"class {i}" for i in range(num_classes)]
    boxes = np.array([[0, 0, 50, 50], [50, 50, 100, 100], [0, 0, 100, 100]], dtype=float)
    sizes = np.array([[100, 100]] * 3)
    left, right, _ = plot_boxes(boxes, sizes, np.array([0, 1, 1]) * (num_classes // 3), names).axes
    heights = [(bar.get_x(), bar.get_height()) for bar in left.patches if bar.get_height()]
    assert sum(height for _, height in heights) == 3
    assert max(x for x, _ in heights) > 90
    density = right.images[0].get_array()
    assert density.sum() == 3
    assert np.argwhere(density).tolist() == [[3, 3], [6, 6], [9, 9]]


def test_legend_of_box_sizes_covers_no_bars():
    names = [f"{i} class with a name that is too long for a legend" for i in range(8)]
    boxes, labels = np.tile([0.0, 0, 50, 50], (8, 1)), np.arange(8)
    figure = plot_boxes(boxes, np.full((8, 2), 100), labels, names)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 8
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
