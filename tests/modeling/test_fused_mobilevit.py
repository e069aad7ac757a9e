"""The fused copy of a model that is exported."""

import pytest
import torch

import mobilevit_hf
from mobilevit_hf.modeling.fused_mobilevit import FusedModel


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
