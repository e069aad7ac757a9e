import numpy as np
import pytest

from mobilevit_hf.evaluation.confidence_intervals import bootstrap_interval, describe_intervals, wilson_interval


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 12), (12, 12), (7, 12), (360, 372), (1, 1000)])
def test_wilson_interval_has_the_proportions_that_do_not_contradict_the_sample(successes, count):
    """The ends are the proportions p whose standard error √(p(1 - p) / N) is |p̂ - p| / 1.96."""
    proportion, (low, high) = successes / count, wilson_interval(successes, count)
    assert 0 <= low <= proportion <= high <= 1
    assert high - low > 0.003
    ends = [end for end, closed in ((low, successes == 0), (high, successes == count)) if not closed]
    assert ends
    for end in ends:
        assert abs(proportion - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / count), rel=1e-6)


def test_wilson_interval_of_published_examples():
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    examples = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, count), expected in examples.items():
        assert wilson_interval(successes, count) == pytest.approx(expected, abs=5e-5)


def test_wilson_interval_without_trials_is_everything():
    assert wilson_interval(0, 0) == (0, 1)


def test_bootstrap_interval_is_that_of_the_percentiles():
    values = np.random.default_rng(0).permutation(np.linspace(0.2, 0.6, 1001))
    values[3] = np.nan
    assert bootstrap_interval(values, 0.4, 50) == pytest.approx((0.21, 0.59), abs=1e-3)


@pytest.mark.parametrize("estimate", [0, 0.43, 1])
def test_bootstrap_interval_of_equal_values_is_that_of_a_proportion(estimate):
    assert bootstrap_interval(np.full(100, estimate), estimate, 7) == wilson_interval(7 * estimate, 7)


def test_bootstrap_interval_of_few_images_is_that_of_a_proportion():
    values = np.linspace(0.5, 0.6, 101)
    assert bootstrap_interval(values, 0.5, 9) == wilson_interval(4.5, 9)
    assert bootstrap_interval(values, 0.5, 10) == pytest.approx((0.5025, 0.5975))


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ([], ""),
        (["accuracy"], "Wilson score interval for the accuracy."),
        (["accuracy", "top_5_accuracy", "macro_f1"], "for the accuracies, bootstrap over the images for the other"),
        (["map", "map_50"], ": bootstrap over the images."),
    ],
)
def test_methods_are_described(metrics, expected):
    assert expected in describe_intervals(metrics, 10)


def test_bootstrap_is_not_named_for_a_handful_of_images():
    assert "bootstrap" not in describe_intervals(["map", "map_50"], 9)
