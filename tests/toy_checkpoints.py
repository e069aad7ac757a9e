"""Checkpoints of tiny models."""

import torch
from toy_datasets import CLASSES
from transformers import MobileViTImageProcessor

from mobilevit_hf import MobileViTConfig, MobileViTForImageClassification


def save_classifier(folder, resize, crop, fields):
    """Save a classifier of `CLASSES` with random weights and its image processor; return the folder."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    MobileViTForImageClassification(MobileViTConfig(**fields | names)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": resize}, "crop_size": {"height": crop, "width": crop}}
    MobileViTImageProcessor(**sizes).save_pretrained(folder)
    return folder
