"""95% confidence intervals of metrics: Wilson's for proportions, the bootstrap for others."""

from collections.abc import Iterable

import numpy as np

LEVEL = 0.95
# With fewer images, the interval of an accuracy is wider than 0.15, such as 0.71 to 0.87.
FEW_IMAGES = 100
Z = 1.959964  # quantile of the normal distribution for `LEVEL`
Interval = tuple[float, float]
# Of two images, three resamples differ: the mAP of two BCCD images was 43.0%, its percentile interval 43.0 to 52.3%.
MIN_RESAMPLED = 10

# Fractions of the images. Intervals of the other metrics are computed by resampling the images.
PROPORTIONS = ("accuracy", "top_5_accuracy")


def describe_intervals(metrics: Iterable[str], num_images: int) -> str:
    """Return a sentence on how the intervals of some metrics are computed, empty without metrics."""
    is_proportion = [name in PROPORTIONS for name in metrics]
    if is_proportion and num_images < MIN_RESAMPLED:
        return f"95% confidence intervals: Wilson score interval of a proportion of the {num_images} images."
    methods = []
    if any(is_proportion):
        names = "accuracies" if len([name for name in is_proportion if name]) > 1 else "accuracy"
        methods.append(f"Wilson score interval for the {names}")
    if not all(is_proportion):
        methods.append("bootstrap over the images" + (" for the other metrics" if methods else ""))
    return f"95% confidence intervals: {', '.join(methods)}." if methods else ""


def wilson_interval(successes: float, count: int) -> Interval:
    """Return the Wilson score interval of a proportion.

    Unlike the bootstrap and the normal approximation, it has a width at 0 and 1: of N successes in N trials the lower
    end is N / (N + 3.84). Without trials it is 0 to 1.
    """
    if not count:
        return 0.0, 1.0
    proportion, z2 = successes / count, Z**2
    center = (proportion + z2 / (2 * count)) / (1 + z2 / count)
    margin = Z / (1 + z2 / count) * np.sqrt(proportion * (1 - proportion) / count + z2 / (4 * count**2))
    # Rounding must not move an end past the proportion.
    return max(0.0, min(proportion, float(center - margin))), min(1.0, max(proportion, float(center + margin)))


def bootstrap_interval(values: np.ndarray, estimate: float, num_images: int) -> Interval:
    """Return the percentile interval of a metric from its values on resamples of the images.

    Resampling repeats what is in the sample, so the interval has no width if all images are alike, such as if all
    predictions are correct, and it is too narrow for a handful of images. This is no evidence of certainty. In both
    cases the interval is that of a proportion of the same value over the images, by Wilson: a model that is right on
    all N images may be wrong on up to 3.84 of N + 3.84.

    Args:
        values: (R,) values on the resamples, NaN ignored.
        estimate: Value on all images, 0..1.
        num_images: Number of images N.
    """
    low, high = (float(end) for end in np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if num_images < MIN_RESAMPLED or high - low < 1e-9:
        return wilson_interval(estimate * num_images, num_images)
    return low, high


def chunk_sizes(resamples: int, width: int, max_values: int = 2**22) -> list[int]:
    """Split `resamples` of `width` values each into chunks of at most `max_values` values, to bound memory."""
    size = max(1, min(resamples, max_values // max(1, width)))
    return [min(size, resamples - start) for start in range(0, resamples, size)]
