import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from PIL import Image

from mobilevit_hf.metrics import CocoMap
from mobilevit_hf.visualization.plots import (
    plot_average_precision,
    plot_confusion_matrix,
    plot_curves,
    plot_reliability,
    plot_speed,
    save_plot,
)

# Class names that break math text, layout or fonts.
HOSTILE = [
    *("$x^$", "$\\frac{", "$$", "_^{}", "%", "#&~", "\\", "", "   ", "two\nlines\r\n", "\x00\x07\x1b[31m", "\udc80"),
    *("кошка", "قطة", "猫" * 50, "\N{CAT FACE}", "Ⓐ", "\u202eabc", "\ufdfd" * 40, "z" + "\u0301" * 500),
    *("x" * 3_000_000, "W" * 90, "i" * 90, "a b " * 90),
]


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings(action="error"):
        yield


@pytest.fixture
def pixels(tmp_path):
    """A function that saves a figure and returns its pixels (H, W, 3) in 0..1."""

    def read(figure):
        save_plot(figure, tmp_path / "plot.png")
        return np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")) / 255

    return read


def texts(axes):
    """Return the texts in the axes by position."""
    return {text.get_position(): text.get_text() for text in axes.texts}


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def assert_nothing_is_clipped(figure):
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02


# --- curves ----------------------------------------------------------------------------------------------------------


def train_lines(count, seed=0):
    losses = np.random.default_rng(seed).random(count).tolist()
    return [
        {"step": 10 * i, "epoch": i / 9, "loss": loss, "learning_rate": 1 / (1 + i), "images_per_second": 7.0}
        for i, loss in enumerate(losses, 1)
    ]


def eval_lines(values, name="eval_map"):
    return [{"step": 100 * i, "epoch": float(i), name: value, "eval_other": 9.0} for i, value in enumerate(values, 1)]


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


@pytest.mark.parametrize("count", [40, 300])
def test_loss_is_plotted_raw_and_smoothed(count):
    history = train_lines(count)
    axes, _ = plot_curves(history, "map").axes
    losses = [line["loss"] for line in history]
    reach = count // 40  # on either side: a twentieth in total
    means = [np.mean(losses[max(0, i - reach) : i + reach + 1]) for i in range(count)]
    raw, smoothed = lines(axes)["training"], lines(axes)["training, smoothed"]
    for line, expected in [(raw, losses), (smoothed, means)]:
        assert line.get_xdata().tolist() == [line["step"] for line in history]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    assert smoothed.get_zorder() >= raw.get_zorder()
    assert axes.lines.index(smoothed) > axes.lines.index(raw)


@pytest.mark.parametrize("count", [1, 39])
def test_few_values_are_not_smoothed(count):
    axes, _ = plot_curves(train_lines(count), "map").axes
    assert list(lines(axes)) == ["training"]


def test_each_term_of_the_loss_has_a_panel_with_the_validation():
    names = ("loss", "loss_bbox", "loss_ce")
    history = [{"step": step, name: step + i} for step in (1, 2, 3) for i, name in enumerate(names)]
    history += [{"step": step, f"eval_{name}": step - i} for step in (2, 3) for i, name in enumerate(names)]
    axes = plot_curves([*history, {"step": 2, "eval_map": 0.5}], "map").axes
    panels = [panel.get_ylabel() for panel in axes]
    assert panels[0] == "Loss"
    assert sorted(panels[1:3]) == ["Box loss", "Classification loss"]
    assert panels[3:] == ["map"]
    for i, label in enumerate(["Loss", "Box loss", "Classification loss"]):
        drawn = lines(axes[panels.index(label)])
        assert drawn["training"].get_ydata().tolist() == [1 + i, 2 + i, 3 + i]
        assert drawn["validation"].get_xdata().tolist() == [2, 3]
        assert drawn["validation"].get_ydata().tolist() == [2 - i, 3 - i]


def test_metric_has_its_interval_as_a_band_and_the_saved_step_is_marked():
    history = [
        {"step": step, "eval_map": value, "eval_map_low": value - 0.1, "eval_map_high": value + 0.2}
        for step, value in ((10, 0.3), (20, 0.5), (30, 0.4))
    ]
    (axes,) = plot_curves(history, "map", best_step=30).axes
    (band,) = axes.collections
    points = {tuple(point) for point in band.get_paths()[0].vertices.round(9).tolist()}
    assert {(10, 0.2), (20, 0.4), (30, 0.3), (10, 0.5), (20, 0.7), (30, 0.6)} <= points
    assert [text.get_text() for text in axes.texts] == ["0.4 at step 30"]


def test_outlier_of_the_loss_does_not_flatten_the_curve():
    history = train_lines(200)
    history[3]["loss"] = 1e6
    axes, _ = plot_curves(history, "map").axes
    assert axes.get_ylim()[1] < 3


def test_non_finite_loss_is_a_gap(pixels):
    history = train_lines(120)
    history[50]["loss"], history[70]["loss"], history[90]["loss"] = math.nan, math.inf, None
    figure = plot_curves(history, "map")
    raw, smoothed = (lines(figure.axes[0])[name].get_ydata() for name in ("training", "training, smoothed"))
    assert np.flatnonzero(np.isnan(raw)).tolist() == [50, 70]
    assert len(raw) == 119
    np.testing.assert_allclose(smoothed[49], np.mean([history[i]["loss"] for i in (47, 48, 49, 51)]), rtol=1e-12)
    pixels(figure)
    pixels(plot_curves([{"step": 1, "loss": math.nan}, {"step": 2, "eval_map": math.nan}], "map"))


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("map", [0.1, 0.34567, 0.3], "0.3457 at step 200"),
        ("map", [0.5, 0.1, 0.5], "0.5 at step 300"),
        ("map", [math.nan, 0.2, 0.25], "0.25 at step 300"),
        ("loss", [3.0, 1.5, 2.0], "1.5 at step 200"),
    ],
)
def test_best_evaluation_is_marked(metric, values, best):
    figure = plot_curves(eval_lines(values, f"eval_{metric}"), metric)
    (axes,) = figure.axes
    curve, mark = axes.lines
    assert curve.get_xdata().tolist() == [100, 200, 300]
    np.testing.assert_array_equal(curve.get_ydata(), values)
    value, _, _, step = best.split()
    assert mark.get_xdata() == [int(step)]
    assert mark.get_ydata() == [pytest.approx(float(value), abs=1e-4)]
    assert not same_color(mark.get_color(), curve.get_color())
    assert [text.get_text() for text in axes.texts] == [best]
    assert_nothing_is_clipped(figure)


def test_learning_rate_shares_the_step_axis():
    history = [*train_lines(60), *eval_lines([0.1])]
    axes = plot_curves(history, "map").axes
    assert [panel.get_ylabel() for panel in axes] == ["Loss", "map", "Learning rate"]
    (line,) = axes[2].lines
    np.testing.assert_array_equal(line.get_ydata(), [1 / (1 + i) for i in range(1, 61)])
    assert len({panel.get_xlim() for panel in axes}) == 1  # panels are aligned by step


@pytest.mark.parametrize(
    ("names", "panels"),
    [
        (["loss"], ["Loss"]),
        (["learning_rate", "eval_map"], ["map", "Learning rate"]),
        (["eval_accuracy", "loss"], ["Loss"]),
    ],
)
def test_missing_curves_are_omitted(names, panels):
    figure = plot_curves([{"step": 1, "epoch": 0.1, name: 0.5} for name in names], "map")
    assert [panel.get_ylabel() for panel in figure.axes] == panels


@pytest.mark.parametrize("history", [[], [{"step": 1, "eval_other": 1.0}], [{"loss": 1.0}]])
def test_history_without_curves_is_rejected(history):
    with pytest.raises(ValueError, match=f"got {len(history)} lines.*eval_map"):
        plot_curves(history, "map")


def test_last_values_of_a_resumed_run_are_plotted():
    first, second = train_lines(10, seed=1), train_lines(10, seed=2)
    between = {"step": 45, "loss": 0.5}
    raw = lines(plot_curves([*first[:8], between, *second[5:]], "map").axes[0])["training"]
    expected = [*first[:4], between, first[4], *second[5:]]
    assert raw.get_xdata().tolist() == [10, 20, 30, 40, 45, 50, 60, 70, 80, 90, 100]
    assert raw.get_ydata().tolist() == [line["loss"] for line in expected]


def test_curves_of_a_metric_with_a_hostile_name():
    for metric in HOSTILE:
        assert_nothing_is_clipped(plot_curves([{"step": 5, f"eval_{metric}": 0.5}], metric))


# --- confusion matrix ------------------------------------------------------------------------------------------------


def confuse(count, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 9, (count, count)) * (random.random((count, count)) < 0.5) + np.diag([20] * count)


def numbered(count):
    return [f"class {i}" for i in range(count)]


def test_confusion_matrix_has_fractions_of_the_target_class_and_counts():
    confusion = confuse(5)
    confusion[3] = 0
    axes, _ = plot_confusion_matrix(confusion, numbered(5)).axes
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    written = texts(axes)
    for target, row in enumerate(confusion.tolist()):
        for prediction, number in enumerate(row):
            assert (
                np.isnan(shown[target, prediction]) if target == 3 else shown[target, prediction] == number / sum(row)
            )
            assert written.get((prediction, target)) == (str(number) if number else None)
    assert labels(axes.xaxis) == labels(axes.yaxis) == numbered(5)
    assert axes.images[0].get_clim() == (0, 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "target class")


def test_colors_match_the_axes(pixels):
    """Class a is always predicted as b, b mostly as b; c has no images."""
    figure = plot_confusion_matrix(np.array([[0, 50, 0], [10, 40, 0], [0, 0, 0]]), ["a", "b", "c"])
    drawn = pixels(figure)
    axes = figure.axes[0]

    def brightness(target, prediction):
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        x, y = axes.transData.transform((ticks.index(prediction) + 0.4, ticks.index(target) + 0.4))
        return drawn[len(drawn) - 1 - round(y), round(x)].mean()

    assert brightness("a", "b") < brightness("b", "b") < brightness("b", "a") < brightness("a", "a")
    assert all(brightness("c", prediction) == 1 for prediction in "abc")
    assert axes.transData.transform((0, 0))[1] > axes.transData.transform((0, 1))[1]  # the first class is on top


@pytest.mark.parametrize("count", [1, 2, 20])
def test_counts_fit_into_their_cells_and_are_legible(count):
    figure = plot_confusion_matrix(np.full((count, count), 1_234_567), ["x" * 99] * count)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    cell = axes.bbox.width / count
    for text in axes.texts:
        assert text.get_window_extent().width < cell
        assert text.get_fontsize() > 4
    confusion = np.diag([10] * count) + 1
    figure = plot_confusion_matrix(confusion, numbered(count))
    image = figure.axes[0].images[0]
    for text in figure.axes[0].texts:
        x, y = text.get_position()
        assert abs(np.mean(image.to_rgba(image.get_array())[y, x, :3]) - (text.get_color() == "white")) > 0.4


@pytest.mark.parametrize(("count", "shown", "numbers"), [(20, 20, True), (21, 21, False), (30, 30, False)])
def test_large_confusion_matrix_has_no_counts(count, shown, numbers):
    axes, _ = plot_confusion_matrix(confuse(count), numbered(count)).axes
    assert len(labels(axes.xaxis)) == shown
    assert bool(axes.texts) is numbers
    assert bool(axes.get_title("left")) is numbers


def test_most_confused_of_many_classes_are_shown():
    confusion = confuse(47)
    mistakes = [confusion[i].sum() + confusion[:, i].sum() - 2 * confusion[i, i] for i in range(47)]
    worst = sorted(sorted(range(47), key=lambda i: -mistakes[i])[:30])
    axes, _ = plot_confusion_matrix(confusion, numbered(47)).axes
    assert labels(axes.xaxis) == labels(axes.yaxis) == [f"class {i}" for i in worst]
    expected = [[confusion[i, j] / confusion[i].sum() for j in worst] for i in worst]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert "30 of 47" in axes.get_title("left")


@pytest.mark.parametrize(("shape", "count"), [((2, 3), 3), ((3, 3), 2), ((0, 0), 0), ((4,), 4)])
def test_confusion_matrix_of_another_shape_is_rejected(shape, count):
    with pytest.raises(ValueError, match=r"got shape \("):
        plot_confusion_matrix(np.ones(shape), numbered(count))


def test_confusion_matrix_of_hostile_names(pixels):
    names = (HOSTILE * 2)[:30]
    figure = plot_confusion_matrix(confuse(30), names)
    pixels(figure)
    assert_nothing_is_clipped(figure)
    assert figure.axes[0].bbox.width > 0.6 * figure.bbox.width


def test_normalized_confusion_matrix_has_percentages():
    confusion = np.array([[200, 1, 0], [0, 3, 1], [0, 0, 0]])
    axes, _ = plot_confusion_matrix(confusion, numbered(3), normalized=True).axes
    assert texts(axes) == {(0, 0): "100", (1, 0): "<1", (1, 1): "75", (2, 1): "25"}


# --- calibration -----------------------------------------------------------------------------------------------------


def test_reliability_diagram_has_the_bins():
    confidence, accuracy = np.array([np.nan, 0.4, 0.8]), np.array([np.nan, 0.5, 0.75])
    figure = plot_reliability(confidence, accuracy, np.array([0, 2, 4]), 0.0667, title="validation")
    top, bottom = figure.axes
    curve = lines(top)["at mean confidence"]
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([0.4, 0.8], [0.5, 0.75])
    assert [bar.get_height() for bar in top.patches] == [0, 0.5, 0.75]
    assert [bar.get_height() for bar in bottom.patches] == [0, 2, 4]
    assert "6.7%" in top.get_title("left")
    assert_nothing_is_clipped(figure)


# --- average precision -----------------------------------------------------------------------------------------------


def rows(axes):
    """Return class name, width of the bar and text of each row, from top to bottom."""
    bars = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    written = {y: text for (_, y), text in texts(axes).items()}
    ticks = dict(zip(axes.get_yticks(), labels(axes.yaxis), strict=True))
    positions = sorted(written, key=lambda y: -axes.transData.transform((0, y))[1])
    return [(ticks.get(y), bars.get(y), written[y]) for y in positions]


def test_average_precision_of_coco_map(tmp_path):
    box, other_box = [0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]
    per_class = CocoMap(cache_dir=str(tmp_path)).compute(
        predictions=[
            {"boxes": [box, box, other_box], "labels": [0, 1, 2], "scores": [0.9, 0.8, 0.7]},
            {"boxes": [other_box], "labels": [1], "scores": [0.9]},
        ],
        references=[{"boxes": [box, box], "labels": [0, 1]}, {"boxes": [], "labels": []}],
        id2label={0: "all detected", 1: "half detected", 2: "without objects"},
    )["per_class"]
    (axes,) = plot_average_precision(per_class).axes
    assert rows(axes) == [
        ("all detected", pytest.approx(1), "1.000"),
        ("half detected", pytest.approx(0.5), "0.500"),
        ("without objects", 0, "-"),
    ]
    assert axes.get_title("left") == "mean 0.750"
    assert axes.get_xlim() == (0, 1)


def test_average_precision_without_names_or_objects():
    (axes,) = plot_average_precision({7: -1.0, 9: -1.0}).axes
    assert rows(axes) == [("7", 0, "-"), ("9", 0, "-")]
    assert not axes.get_title("left")
    with pytest.raises(ValueError, match="no classes"):
        plot_average_precision({})


@pytest.mark.parametrize(("measured", "absent"), [(40, 0), (30, 10), (41, 0), (100, 3), (35, 20), (0, 50)])
def test_best_and_worst_of_many_classes_are_shown(measured, absent, pixels):
    values = np.random.default_rng(0).permutation(measured) / 100
    per_class = {f"absent {i}": -1.0 for i in range(absent)} | {f"{v:.2f}": float(v) for v in values}
    figure = plot_average_precision(per_class)
    (axes,) = figure.axes
    ranked = [f"{i / 100:.2f}" for i in reversed(range(measured))]
    if measured > 40:
        ranked = [*ranked[:20], None, *ranked[-20:]]
        top, gap, bottom = (axes.get_yticks()[i] for i in (19, 20, 21))
        assert abs(gap - top) == 2 * abs(bottom - gap)
        assert rows(axes)[20] == (None, None, f"… {measured - 40} more …")
    expected = (ranked + [f"absent {i}" for i in range(absent)])[: max(40, len(ranked))]
    assert [name for name, _, _ in rows(axes)] == expected
    assert all(text == ("-" if name.startswith("absent") else f"{name}0") for name, _, text in rows(axes) if name)
    if measured:
        assert axes.get_title("left") == f"mean {values.mean():.3f}"
    pixels(figure)
    assert_nothing_is_clipped(figure)


def test_average_precision_of_hostile_names(pixels):
    figure = plot_average_precision({name: i / len(HOSTILE) for i, name in enumerate(HOSTILE)})
    pixels(figure)
    assert_nothing_is_clipped(figure)
    assert figure.axes[0].bbox.width > 0.6 * figure.bbox.width
    assert figure.axes[0].bbox.height > 0.7 * figure.bbox.height


# --- speed -----------------------------------------------------------------------------------------------------------


def test_names_of_backends_are_whole_and_the_fastest_is_marked():
    names = ["torch, float32 *", "executorch, float32 *", "onnx, float32"]
    figure = plot_speed(
        {"batch 1": dict(zip(names, [1.0, 2.0, 3.0], strict=True)), "batch 8": {"torch, float32": 4.0}}
    )
    assert_nothing_is_clipped(figure)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == names
    assert [text.get_text() for text in first.texts] == ["1.0", "2.0", "3.0 (fastest)"]
    assert len({bar.get_facecolor() for bar in first.patches}) == 2
    assert [text.get_text() for text in second.texts] == ["4.0"]


# --- names -----------------------------------------------------------------------------------------------------------


def label_box(name):
    figure = plot_average_precision({name: 0.5})
    figure.draw_without_rendering()
    (label,) = figure.axes[0].get_yticklabels()
    return label.get_window_extent()


def test_name_is_not_rendered_as_math():
    formula = label_box("$x$")
    assert formula.width > label_box("x").width + label_box("$").width  # x and both dollar signs
    assert formula.height < 1.5 * label_box("|").height


@pytest.mark.parametrize("name", ["x\ny", "x\r\n\t  y"])
def test_name_is_one_line(name):
    assert label_box(name).size.tolist() == label_box("x y").size.tolist()


def test_names_in_another_script_differ(pixels):
    """Characters that no font has look the same; the circled letters are in a font of matplotlib."""
    drawn = [pixels(plot_average_precision({name: 0.5})) for name in ("Ⓐ", "Ⓑ")]
    assert (drawn[0] != drawn[1]).any()


# --- files -----------------------------------------------------------------------------------------------------------


def test_saved_plot_is_a_png_of_readable_size(tmp_path):
    file = tmp_path / "curves"
    file.write_text("existing")
    save_plot(plot_curves(train_lines(60), "map"), file)
    with Image.open(file) as saved:
        assert saved.format == "PNG"
        assert 800 <= saved.width <= 1600
        assert 400 <= saved.height <= 1600
        assert np.asarray(saved.convert("RGB"))[0, 0].tolist() == [255, 255, 255]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("before", [None, "existing"])
def test_failed_save_keeps_the_existing_file(before, tmp_path, monkeypatch):
    file = tmp_path / "curves.png"
    if before:
        file.write_text(before)

    def fail(self, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_plot(plot_curves(train_lines(3), "map"), file)
    assert [path.read_text() for path in tmp_path.iterdir()] == [before] * bool(before)


def test_threads_draw_independently(tmp_path):
    def draw(number):
        save_plot(plot_average_precision({f"class {number}": number / 10}), tmp_path / str(number))
        return np.asarray(Image.open(tmp_path / str(number)))

    alone = [draw(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, [0, 1, 2, 3] * 2))
    for number, drawn in enumerate(together):
        np.testing.assert_array_equal(drawn, alone[number % 4])


def test_pyplot_is_not_imported(run_python):
    """Drawing images does not import figures and fonts, which takes longer than drawing."""
    printed = run_python(
        """
        from pathlib import Path
        import numpy as np
        import mobilevit_hf.visualization
        imported = [name for name in ("matplotlib.figure", "matplotlib.font_manager") if name in sys.modules]
        from mobilevit_hf.visualization import plots
        for figure in (
            plots.plot_curves([{"step": 1, "loss": 2.0, "learning_rate": 0.1, "eval_map": 0.5}], "map"),
            plots.plot_confusion_matrix(np.eye(3), ["a", "b", "$c"]),
            plots.plot_average_precision({"a": 0.5, "b": -1.0}),
        ):
            plots.save_plot(figure, Path("plot.png"))
        print(imported, "matplotlib.pyplot" in sys.modules)
        """,
        quiet=True,
    )
    assert printed.strip() == "[] False"
