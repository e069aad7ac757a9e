"""Exported models called as torch models."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from backend_support import TASKS, export_tensors, require_backend

import mobilevit_hf
from mobilevit_hf.backends.formats import FORMATS
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.runtime import ExportedModel, load_exported_model

SHAPES = [(1, 3, 64, 64), (1, 3, 32, 32), (2, 3, 65, 100), (5, 3, 33, 47), (1, 3, 128, 64), (3, 3, 70, 64)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("task", TASKS)
def test_outputs_equal_the_torch_models_for_any_size_and_batch(task, backend, model_dirs, tmp_path):
    require_backend(backend)
    model, _ = load_model(task, str(model_dirs[task]))
    path = tmp_path / Path(FORMATS[backend].path(task, "tensors", "float32")).name
    export_tensors(model, task, backend, path)
    exported = load_exported_model(path, model.config, task, backend, threads=2)
    pairs = []
    for shape in SHAPES:
        pixels = torch.rand(shape)
        with torch.no_grad():
            expected = model(pixels)
        outputs = exported(pixel_values=pixels)
        pairs += [(outputs[name], expected[name]) for name in exported.outputs]
    for actual, expected in pairs:  # compared after all calls, which must not overwrite earlier outputs
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_inputs_are_validated_and_converted_to_float32(tiny_model):
    config = tiny_model(mobilevit_hf.MobileViTForImageClassification).config
    exported = ExportedModel(config, "image-classification", lambda pixels: [pixels.mean((2, 3))], 0)
    pixels = torch.rand(2, 3, 64, 48, dtype=torch.bfloat16, requires_grad=True)
    assert exported(pixels).logits.dtype == torch.float32
    with pytest.raises(ValueError, match="pixel_values: got shape"):
        exported(pixels[0])
    with pytest.raises(ValueError, match="at least 32 a side"):
        exported(pixels[..., :16])
    with pytest.raises(ValueError, match="output_attentions: not supported by an exported model"):
        exported(pixels, output_attentions=True)


def test_outputs_that_are_not_finite_are_rejected(tiny_model):
    def runtime(pixels):
        means = pixels.mean((2, 3))
        return [np.where(means == 0, np.inf, means)]

    config = tiny_model(mobilevit_hf.MobileViTForImageClassification).config
    exported = ExportedModel(config, "image-classification", runtime, 0)
    pixels = torch.ones(3, 3, 64, 64)
    assert exported(pixels).logits.shape == (3, 3)
    pixels[1, 2] = 0
    with pytest.raises(ValueError, match="image 1 of the batch: got infinity in logits, expected finite"):
        exported(pixels)


@pytest.mark.parametrize("backend", ["onnx", "openvino", pytest.param("executorch", marks=pytest.mark.slow)])
def test_damaged_file_is_named(backend, tmp_path):
    require_backend(backend)
    path = tmp_path / Path(FORMATS[backend].path("image-classification", "tensors", "float32")).name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"{path.name}: {backend} can't read it \(.*\)\. Remove it"):
        load_exported_model(path, transformers.MobileViTConfig(), "image-classification", backend, 1)
