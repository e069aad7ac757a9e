"""What tests of backends share."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mobilevit_hf
from mobilevit_hf.backends.export import export_file
from mobilevit_hf.backends.formats import FORMATS
from mobilevit_hf.backends.requests import ExportRequest

TASKS = ["image-classification", "image-segmentation", "object-detection"]
BACKENDS = ["onnx", "openvino", "executorch"]


def require_backend(*backends):
    """Skip the test if a package that a backend needs is not installed."""
    for backend in backends:
        for package in FORMATS[backend].packages:
            pytest.importorskip(package)


def make_images():
    """Return images of several shapes."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((60 + 9 * i, 90), Image.Resampling.BICUBIC) for i, each in enumerate(noise)]


def torch_pipeline(task, folder):
    """Return stock transformers' pipeline on the CPU; for the detector, which stock lacks, this package's."""
    make = mobilevit_hf.pipeline if task == "object-detection" else transformers.pipeline
    return make(task, str(folder), device="cpu")


def split_scores(predictions):
    """Split an image's predictions into exactly comparable values, with masks as bytes, and scores."""
    values = [
        {name: value.tobytes() if name == "mask" else value for name, value in prediction.items() if name != "score"}
        for prediction in predictions
    ]
    return values, [prediction["score"] or 0.0 for prediction in predictions]


def export_tensors(model, task, backend, path, dtype="float32"):
    """Export a model with the interface "tensors", traced with one image of 64x64 pixels."""
    export_file(ExportRequest(model, task, None, torch.rand(1, 3, 64, 64), dtype), backend, path)


def write_fake_export(request, backend, path, *others):
    """Replace `export_verified`: write files with any content."""
    path.write_bytes(b"model")
    path.with_suffix(".bin").write_bytes(b"weights")
    return {"verified": False}
