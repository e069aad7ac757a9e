"""The fused copies of a model for inference and export."""

import pytest
import torch
from torch import nn

import mobilevit_hf
from mobilevit_hf.modeling.fused_mobilevit import FusedModel, fold_batch_norm
from mobilevit_hf.modeling.layers_cpu import TokenLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_model_equals_the_model_and_leaves_it_unchanged(tiny_model, dtype):
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification)
    state_dict = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Seeded: in bfloat16 one noise image in thirty exceeds the tolerance.
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    fused = FusedModel(model, ("logits",), dtype)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    with torch.no_grad():
        (logits,), expected = fused(pixels), model(pixels).logits
    tolerance = 1e-4 if dtype == torch.float32 else 0.1 * float(expected.std())
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    assert logits.dtype == torch.float32
    assert model.state_dict().keys() == state_dict.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state_dict.items())


def test_inference_copy_has_the_faster_layers_and_the_model_does_not(tiny_model):
    model = tiny_model(mobilevit_hf.MobileViTForSemanticSegmentation)
    before = [type(layer) for layer in model.modules()]
    layers = [layer for layer in fold_batch_norm(model).modules() if not list(layer.children())]
    activations = [layer for layer in layers if "activation" in type(layer).__module__]
    assert {type(layer) for layer in activations} == {nn.SiLU, nn.ReLU}
    assert all(layer.inplace for layer in activations)
    assert sum(type(layer) is TokenLinear for layer in layers) == 6 * 9
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    assert [type(layer) for layer in model.modules()] == before
