"""Layers that are faster on the CPU, compared with torch's."""

import math

import pytest
import torch
from torch.nn import functional as F

import mobilevit_hf
from mobilevit_hf.modeling import layers_cpu
from mobilevit_hf.modeling.layers_cpu import FastDropout, PointwiseConvolution, TokenLinear, use_fast_layers


@pytest.fixture
def convolutions(monkeypatch):
    """Calls of `F.conv2d`, with the convolution of `TokenLinear` enabled on every machine."""
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(layers_cpu, "POINTWISE_CONVOLUTION", True)
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(args) or convolve(*args))
    return calls


@pytest.mark.parametrize("shape", [(1, 1, 8), (4, 16, 24), (5, 7, 33), (64, 1, 12)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_token_linear_equals_linear(convolutions, monkeypatch, shape, bias):
    monkeypatch.setattr(layers_cpu, "POINTWISE_CONVOLUTION_MIN_MACS", 0)
    torch.manual_seed(0)
    layer = TokenLinear(shape[-1], 20, bias=bias)
    tokens = torch.randn(shape, requires_grad=True)
    expected, actual = F.linear(tokens, *layer.parameters()), layer(tokens)
    assert len(convolutions) == 1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    inputs, weight = (tokens, *layer.parameters()), torch.randn_like(expected)
    gradients, expected_gradients = (torch.autograd.grad(output, inputs, weight) for output in (actual, expected))
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-5)


def test_token_linear_accepts_strided_tokens(convolutions, monkeypatch):
    monkeypatch.setattr(layers_cpu, "POINTWISE_CONVOLUTION_MIN_MACS", 0)
    layer, tokens = TokenLinear(24, 20), torch.randn(24, 6, 4).transpose(0, 2)
    torch.testing.assert_close(layer(tokens), F.linear(tokens, layer.weight, layer.bias), atol=1e-5, rtol=0)


def test_token_linear_uses_convolution_only_for_large_float32(convolutions):
    layer = TokenLinear(96, 192)
    small, large = torch.randn(4, 16, 96), torch.randn(4, 256, 96)
    layer(small)
    layer.double()(large.double())
    assert not convolutions
    actual = layer.float()(large)
    assert len(convolutions) == 1
    torch.testing.assert_close(actual, F.linear(large, layer.weight, layer.bias), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_token_linear_uses_onednn_with_a_single_thread(convolutions):
    layer, threads = TokenLinear(96, 192), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layer(torch.randn(4, 256, 96))
        ((images, weight, bias),) = convolutions
        backend = torch._C._select_conv_backend(images, weight, bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    finally:
        torch.set_num_threads(threads)
    assert backend == torch._C._ConvBackend.Mkldnn


@pytest.fixture
def single_thread():
    """One torch thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("batch", "is_reshaped"), [(1, True), (3, True), (16, False)])
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolution_equals_convolution(batch, is_reshaped, bias, single_thread, convolutions, monkeypatch):
    monkeypatch.setattr(layers_cpu, "POINTWISE_CONVOLUTION_MIN_MACS", 0)
    torch.manual_seed(0)
    layer = PointwiseConvolution(12, 20, 1, bias=bias)
    images = torch.randn(batch, 12, 8, 10).to(memory_format=torch.channels_last).requires_grad_()
    actual = layer(images)
    assert (convolutions[0][0].shape == (16, 12, 1, batch * 5)) is is_reshaped
    expected = F.conv2d(images, layer.weight, layer.bias)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    inputs, weight = (images, *layer.parameters()), torch.randn_like(expected)
    gradients, expected_gradients = (torch.autograd.grad(output, inputs, weight) for output in (actual, expected))
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-5)


def test_pointwise_convolution_accepts_other_shapes_and_layouts(single_thread, monkeypatch):
    monkeypatch.setattr(layers_cpu, "POINTWISE_CONVOLUTION_MIN_MACS", 0)
    layer = PointwiseConvolution(12, 20, 1)
    for images in (torch.randn(1, 12, 5, 7).to(memory_format=torch.channels_last), torch.randn(2, 12, 8, 8)):
        torch.testing.assert_close(layer(images), F.conv2d(images, layer.weight, layer.bias), atol=1e-5, rtol=0)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_fast_dropout_statistics(p):
    torch.manual_seed(0)
    features = torch.rand(101, 103, 107) + 0.5
    size = features.numel()
    assert size % 4, "the last 64 bits serve fewer than four elements"
    dropped = FastDropout(p)(features)
    kept = dropped != 0
    torch.testing.assert_close(dropped, features * kept / (1 - p))
    for part in (kept, *(kept.flatten()[lane::4] for lane in range(4))):  # 64 random bits serve four elements
        deviation = math.sqrt(p * (1 - p) / part.numel())
        assert abs(float(part.float().mean()) - (1 - p)) < 5 * deviation + 2**-17
    neighbors = (kept.flatten()[1:] & kept.flatten()[:-1]).float().mean()
    assert abs(float(neighbors) - (1 - p) ** 2) < 10 * math.sqrt(p * (1 - p) / size) + 2**-16
    assert abs(float(dropped.mean() / features.mean()) - 1) < 6 * math.sqrt(p / (1 - p) / size) + 2**-16


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 5), (0, 4)], ids=str)
def test_fast_dropout_accepts_any_shape(shape):
    assert FastDropout(0.5)(torch.ones(shape)).shape == shape


def test_fast_dropout_follows_the_seed():
    layer, features = FastDropout(0.5), torch.ones(1000)
    torch.manual_seed(1)
    first, second = layer(features), layer(features)
    torch.manual_seed(1)
    assert torch.equal(layer(features), first)
    assert not torch.equal(first, second)


def test_fast_dropout_gradient_is_the_scaled_mask():
    features = torch.rand(1000, requires_grad=True)
    dropped = FastDropout(0.25)(features)
    dropped.sum().backward()
    torch.testing.assert_close(features.grad, (dropped != 0) / 0.75)


def test_fast_dropout_is_identity_in_evaluation():
    features = torch.rand(100)
    assert torch.equal(FastDropout(0.5).eval()(features), features)
    assert torch.equal(FastDropout(0.0)(features), features)
    assert FastDropout(0.5)(features.bfloat16()).dtype == torch.bfloat16


def test_faster_layers_keep_parameters_and_outputs(tiny_model, convolutions, monkeypatch):
    monkeypatch.setattr(layers_cpu, "POINTWISE_CONVOLUTION_MIN_MACS", 0)
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification)
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, count = model(pixels).logits, len(convolutions)
        use_fast_layers(model)
        actual = model(pixels).logits
    assert len(convolutions) - 2 * count == 6 * 9  # six products in each of nine transformer layers
    assert sum(isinstance(layer, FastDropout) for layer in model.modules()) == 3 * 9
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == pointers
