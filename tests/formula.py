"""Weights, models and images from a formula, and the names and shapes of official MobileViT-XXS checkpoints.

The official code's outputs for them are in `data/formula_golden.npz`: the classifier with 10 classes, SSDLite with 5
(the background among them) and DeepLabv3 at output stride 16 with 4, all XXS and in evaluation mode.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).parent / "golden"


def formula_array(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of a parameter: random, but seeded with its official name alone."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    normal = generator.standard_normal(shape)
    if key.endswith("running_var"):
        values = generator.random(shape) + 0.5
    elif key.endswith(("running_mean", "bias")):
        values = normal * 0.1
    elif len(shape) == 1:  # the weight of a normalization
        values = normal * 0.1 + 1
    elif len(shape) == 2:  # of a linear layer, (out, in)
        values = normal / np.sqrt(shape[1])
    else:  # of a convolution, (out, in / groups, height, width)
        values = normal * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


def formula_image(height: int, width: int) -> torch.Tensor:
    """An image (1, 3, height, width) in 0..1."""
    y, x = np.mgrid[0:height, 0:width]
    channels = []
    for c in range(3):
        grid = np.sin(x / (7 + 3 * c) + c) * np.cos(y / (11 - 2 * c))
        rings = np.sin((x * y) / (900 + 200 * c))
        channels.append(1 / (1 + np.exp(-1.5 * (grid + 0.5 * rings))))
    return torch.from_numpy(np.stack(channels)[None].astype(np.float32))


def formula_state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict of these names and shapes; batch counters are zero."""
    return {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else torch.from_numpy(formula_array(key, shape))
        for key, shape in shapes.items()
    }


def fill(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value of its own, such that activations keep their scale."""
    model.load_state_dict(formula_state_dict({key: tuple(t.shape) for key, t in model.state_dict().items()}))
    return model


def timm_model(variant: str = "xxs", num_classes: int = 5) -> nn.Module:
    """A timm model in which every parameter and statistic differs from its neighbors."""
    import timm  # here, since other tests run without it, and sooner

    return fill(timm.create_model(f"mobilevit_{variant}", num_classes=num_classes)).eval()


def official_shapes(task: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in an official XXS state dict.

    Args:
        task: "classification", "detection" or "segmentation".
        num_classes: As the official code counts, with the background in detection and segmentation.
    """
    parts = json.loads((DATA / "official_keys.json").read_text())
    prefix = "" if task == "classification" else "encoder."
    shapes = {prefix + key: tuple(shape) for key, shape in parts["encoder"].items()}
    for key, shape in parts[task].items():
        outputs = shape[:1]
        predictor = re.match(r"ssd_heads\.(\d)\.loc_cls_layer\.(pw_conv\.)?block\.conv\.", key)
        if predictor:  # per anchor 4 box coordinates and the classes' scores; 4 anchors at the last of 6 levels
            outputs = [(4 if predictor[1] == "5" else 6) * (4 + num_classes)]
        elif key.startswith(("classifier.", "seg_head.classifier.")):
            outputs = [num_classes]
        shapes[key] = tuple(outputs + shape[1:])
    return shapes
