"""Bootstrap confidence intervals."""

import numpy as np

LEVEL = 0.95


def chunk_sizes(resamples: int, width: int, max_values: int = 2**22) -> list[int]:
    """Split `resamples` of `width` values each into chunks of at most `max_values` values, to bound memory."""
    size = max(1, min(resamples, max_values // max(1, width)))
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of the resampled values (R,) at `LEVEL`, NaN ignored."""
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
