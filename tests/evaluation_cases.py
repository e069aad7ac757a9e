"""Helpers of the evaluation tests."""

import pickle

import numpy as np
import torch
import transformers
from dataset_files import make_images
from formula import fill

import mobilevit_hf
from mobilevit_hf.evaluation.inference import Prepared


def save_balanced_classifier(folder, fields):
    """Save a tiny classifier that predicts every class, and its image processor; return the folder."""
    model = fill(mobilevit_hf.MobileViTForImageClassification(mobilevit_hf.MobileViTConfig(**fields))).eval()
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in make_images(40)])
    with torch.no_grad():
        logits = model(pixels).logits
        spread = logits.std(dim=0)
        model.classifier.weight /= spread[:, None]
        model.classifier.bias.copy_((model.classifier.bias - logits.mean(dim=0)) / spread)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def compute_in_shards(make_metrics, predictions, samples, num_shards):
    """Return metrics merged from shards, each updated with every `num_shards`-th image in random order, and the
    pickled states of the shards."""
    states = []
    for shard in range(num_shards):
        metrics = make_metrics()
        for index in np.random.default_rng(shard).permutation(np.arange(shard, len(samples), num_shards)).tolist():
            metrics.update(predictions[index : index + 1], [Prepared(index, samples[index], None, (1, 1))])
        states.append(pickle.dumps(metrics.state))
    metrics = make_metrics()
    metrics.merge(pickle.loads(state) for state in reversed(states))
    return metrics, states
