"""Boundary IoU of label maps (Cheng et al. 2021, arXiv 2103.16562)."""

import math

import numpy as np

DILATION = 0.02  # width of the boundary as a fraction of the image's diagonal


def boundary_mask(labels: np.ndarray, distance: int) -> np.ndarray:
    """Return which pixels of a label map (H, W) are less than `distance` + 1 pixels from another label or the border.

    This is each class's mask without its erosion by `distance` steps of a 3x3 square, for all classes at once and in a
    time that does not depend on the distance.
    """
    height, width = labels.shape
    padded = np.pad(labels.astype(np.int32), 1, constant_values=np.iinfo(np.int32).min)
    rows, columns = np.arange(1, height + 1), np.arange(1, width + 1)
    top, bottom = np.maximum(rows - distance, 0), np.minimum(rows + distance, height + 1)
    left, right = np.maximum(columns - distance, 0), np.minimum(columns + distance, width + 1)
    # A window has a single label if no two neighbors in it differ.
    across, down = _integral(padded[:, 1:] != padded[:, :-1]), _integral(padded[1:] != padded[:-1])
    return (_window_sums(across, top, bottom + 1, left, right) + _window_sums(down, top, bottom, left, right + 1)) > 0


def count_boundaries(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the boundary pixels of each class in two label maps of an image.

    Args:
        prediction: (H, W) class indices.
        reference: (H, W) class indices, negative for pixels to ignore, which are ignored in the prediction too: both
            have boundaries around them.
        num_classes: Number of classes K.

    Returns:
        (3, K) int64 pixels: in both boundaries, in the predicted one, in the reference's.
    """
    distance = max(1, round(DILATION * math.hypot(*reference.shape)))
    prediction = np.where(reference < 0, -1, prediction)
    is_target, is_predicted = (boundary_mask(m, distance) & (reference >= 0) for m in (reference, prediction))
    return np.stack(
        [
            np.bincount(labels, minlength=num_classes)
            for labels in (
                reference[is_target & is_predicted & (reference == prediction)],
                prediction[is_predicted],
                reference[is_target],
            )
        ]
    )


def _integral(flags: np.ndarray) -> np.ndarray:
    """(H, W) → (H + 1, W + 1) int32 sums of all rows above and columns to the left."""
    return np.pad(flags.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32), ((1, 0), (1, 0)))


def _window_sums(
    integral: np.ndarray, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Return the sums over rows top..bottom - 1 (H,) and columns left..right - 1 (W,): (H, W)."""
    rows = integral[bottom] - integral[top]
    return rows[:, right] - rows[:, left]
