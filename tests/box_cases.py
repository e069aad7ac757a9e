"""Random boxes, and the levels and anchors of the paper, for the tests of the SSDLite functions."""

import numpy as np
import torch

VARIANCES = (0.1, 0.2)
SCALES = np.linspace(0.1, 1.05, 7)
RATIOS = [[2, 3]] * 5 + [[2]]

# Sizes of the feature maps of strides 16 to 256 and of the pooled one, by image size.
LEVEL_SIZES = {
    "320": [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)],
    "256x384": [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2), (1, 1)],
    "300x300": [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)],
}


def random_boxes(count, generator, low=0.05, high=0.9, dtype=torch.float64):
    """Return boxes (cx, cy, w, h) inside the image with log-uniform sides and varying aspect ratios."""
    rand, randn = ([f(count, generator=generator, dtype=dtype) for _ in range(2)] for f in (torch.rand, torch.randn))
    side, elongation = low * (high / low) ** rand[0], (0.3 * randn[0]).exp().sqrt()
    sizes = torch.stack([side * elongation, side / elongation], dim=1).clamp(max=0.95)
    positions = torch.rand(count, 2, generator=generator, dtype=dtype)
    return torch.cat([sizes / 2 + positions * (1 - sizes), sizes], dim=1)
