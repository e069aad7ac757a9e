"""Calibration of a classifier: whether its probabilities equal its accuracy (Guo et al., arXiv 1706.04599)."""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram: images in bins of equal width by the probability of the predicted class.

    Attributes:
        edges: (B + 1,) bounds of the bins, from 0 to 1; the upper one is in the bin.
        counts: (B,) int64 number of images in each bin.
        confidence, accuracy: (B,) mean probability and fraction of correct predictions, NaN for an empty bin.
        ece: Expected calibration error: mean difference between the two over the bins, weighted by the counts.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


def reliability(scores: np.ndarray, is_correct: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Return the reliability diagram of probabilities of the predicted class (N,), 0..1, and correctness (N,)."""
    scores = scores.astype(np.float64)
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, scores) - 1, 0, num_bins - 1)
    counts, totals, correct = (
        np.bincount(bins, weights, minlength=num_bins) for weights in (None, scores, is_correct.astype(np.float64))
    )
    with np.errstate(invalid="ignore"):
        confidence, accuracy = totals / counts, correct / counts
    ece = float(np.abs(totals - correct).sum() / max(len(scores), 1))
    return Reliability(edges, counts, confidence, accuracy, ece)
