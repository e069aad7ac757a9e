"""Helpers of the visualization tests."""

import numpy as np

# Undecodable bytes, control characters, stacked combining marks, and more text than Pillow supports.
HOSTILE = ["\udc80", "\x00\x07", "\x1b[31m", "\u202eabc", "z" + "\u0301" * 500, "x" * 3_000_000, " " * 3_000_000]
GRAY = (128, 128, 128)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def detection(label, *box, score=0.5):
    return {"score": score, "label": label, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}


def luminance(color):
    """Return the relative luminance of WCAG 2."""
    c = np.array(color) / 255
    return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
