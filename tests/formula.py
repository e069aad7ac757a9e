"""Deterministic weights, models and images, and names and shapes of official MobileViT-XXS checkpoints.

Outputs of the official code for them are in `golden/formula_golden.npz`: classifier with 10 classes, SSDLite with 5
(including the background) and DeepLabv3 at output stride 16 with 4, all XXS and in evaluation mode.
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
    """Return a random float32 array for a parameter, seeded by its name."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    normal = generator.standard_normal(shape)
    if key.endswith("running_var"):
        values = generator.random(shape) + 0.5
    elif key.endswith(("running_mean", "bias")):
        values = normal * 0.1
    elif len(shape) == 1:  # weight of a normalization
        values = normal * 0.1 + 1
    elif len(shape) == 2:  # weight of a linear layer, (out, in)
        values = normal / np.sqrt(shape[1])
    else:  # weight of a convolution, (out, in / groups, height, width)
        values = normal * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


def formula_image(height: int, width: int) -> torch.Tensor:
    """Return an image (1, 3, height, width) in 0..1."""
    y, x = np.mgrid[0:height, 0:width]
    channels = []
    for c in range(3):
        grid = np.sin(x / (7 + 3 * c) + c) * np.cos(y / (11 - 2 * c))
        rings = np.sin((x * y) / (900 + 200 * c))
        channels.append(1 / (1 + np.exp(-1.5 * (grid + 0.5 * rings))))
    return torch.from_numpy(np.stack(channels)[None].astype(np.float32))


def formula_state_dict(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return a state dict with the given names and shapes; batch counters are zero."""
    return {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else torch.from_numpy(formula_array(key, shape))
        for key, shape in shapes.items()
    }


def fill(model: nn.Module) -> nn.Module:
    """Fill all parameters and statistics by `formula_state_dict`, which preserves the scale of activations."""
    model.load_state_dict(formula_state_dict({key: tuple(t.shape) for key, t in model.state_dict().items()}))
    return model


def timm_model(variant: str = "xxs", num_classes: int = 5) -> nn.Module:
    """Return a timm model with weights from `fill`."""
    import timm  # slow to import

    return fill(timm.create_model(f"mobilevit_{variant}", num_classes=num_classes)).eval()


def official_shapes(task: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of an official XXS state dict.

    Args:
        task: "classification", "detection" or "segmentation".
        num_classes: Number of classes, including the background in detection and segmentation.
    """
    parts = json.loads((DATA / "official_keys.json").read_text())
    prefix = "" if task == "classification" else "encoder."
    shapes = {prefix + key: tuple(shape) for key, shape in parts["encoder"].items()}
    for key, shape in parts[task].items():
        outputs = shape[:1]
        predictor = re.match(r"ssd_heads\.(\d)\.loc_cls_layer\.(pw_conv\.)?block\.conv\.", key)
        if predictor:  # 4 box coordinates and the class scores per anchor; 4 anchors at the last of 6 levels, else 6
            outputs = [(4 if predictor[1] == "5" else 6) * (4 + num_classes)]
        elif key.startswith(("classifier.", "seg_head.classifier.")):
            outputs = [num_classes]
        shapes[key] = tuple(outputs + shape[1:])
    return shapes
