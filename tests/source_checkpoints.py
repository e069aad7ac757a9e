"""Stock and timm checkpoints to convert, and a photo-like image."""

import json

import numpy as np
import torch
import transformers
from formula import fill, formula_image, timm_model
from PIL import Image
from safetensors.torch import save_file

from mobilevit_hf.modeling.configuration_mobilevit import VARIANTS


def stock_model(model_class=transformers.MobileViTForImageClassification, variant="xxs", **fields):
    """Return a stock model whose parameters and statistics all differ."""
    row = {key: list(value) if isinstance(value, tuple) else value for key, value in VARIANTS[variant].items()}
    return fill(model_class(transformers.MobileViTConfig(**{**row, "num_labels": 3, **fields}))).eval()


def write_timm_dir(folder, weights="model.safetensors", num_classes=5, **pretrained_cfg):
    """Write a model in the layout that timm pushes to the Hub."""
    folder.mkdir()
    state_dict = timm_model(num_classes=num_classes).state_dict()
    save = save_file if weights.endswith(".safetensors") else torch.save
    save(state_dict, folder / weights)
    config = {"architecture": "mobilevit_xxs", "num_classes": num_classes, "pretrained_cfg": pretrained_cfg}
    config |= {key: pretrained_cfg.pop(key) for key in ("label_names",) if key in pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_photo(height=300, width=400):
    """Return a photo-like image with smooth waves and a few edges."""
    values = formula_image(height, width)[0].permute(1, 2, 0).numpy()
    values[height // 4 : height // 2, width // 5 : width // 3] = (0.9, 0.2, 0.1)
    return Image.fromarray((values * 255).round().astype(np.uint8))
