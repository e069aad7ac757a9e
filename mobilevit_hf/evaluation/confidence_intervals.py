"""Confidence intervals by the bootstrap: the same images, drawn anew."""

import numpy as np

LEVEL = 0.95


def chunks(resamples: int, width: int, numbers: int = 2**22) -> list[int]:
    """How many resamples to make at a time, with so many numbers each, for arrays of at most `numbers`."""
    size = max(1, min(resamples, numbers // max(1, width)))
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Between which the figure lies in `LEVEL` of the resamples."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
