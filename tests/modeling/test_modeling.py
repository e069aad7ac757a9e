"""Models: the shared suite for each, parity with timm and stock transformers, initialization, layers, learning."""

import math

import pytest
import timm
import torch
import transformers
from formula import formula_image
from model_suite import STAGE_STRIDES, TINY, HeadSuite, ModelSuite, assert_close, fill, make_pixels
from torch import nn
from torch.nn import functional as F

from mobilevit_hf import (
    MobileViTBackbone,
    MobileViTBackboneConfig,
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
)
from mobilevit_hf.convert.rules import translate
from mobilevit_hf.modeling import layers_mobilevit
from mobilevit_hf.modeling.layers_mobilevit import FastDropout, TokenLinear


class TestClassification(HeadSuite):
    model_class = MobileViTForImageClassification
    output_names = ("logits",)

    def output_shapes(self, config, batch, height, width):
        return [(batch, config.num_labels)]

    def make_labels(self, batch, height, width):
        return {"labels": torch.arange(batch) % TINY["num_labels"]}

    def wrong_labels(self):
        message = r"got class {}, expected 0\.\.4 .*-100 is ignored.*num_labels"
        return [
            ({"labels": torch.tensor([0, 5])}, message.format(5)),
            ({"labels": torch.tensor([-1, 0])}, message.format(-1)),
            ({"labels": torch.tensor([255, 0])}, message.format(255)),
            ({"labels": torch.tensor([0, 1, 2])}, r"got torch.int64 of shape \(3,\), expected .* shape \(2,\)"),
        ]

    def test_ignored_images(self):
        model, pixels = self.make_model(), make_pixels(2)
        with torch.no_grad():
            both = model(pixels, labels=torch.tensor([3, -100])).loss
            first = model(pixels[:1], labels=torch.tensor([3])).loss
        torch.testing.assert_close(both, first)

    @pytest.mark.parametrize(
        ("problem_type", "labels"),
        [("regression", torch.rand(2, 5)), ("multi_label_classification", torch.ones(2, 5))],
    )
    def test_other_problems(self, problem_type, labels):
        model = self.make_model(problem_type=problem_type)
        outputs = model(make_pixels(), labels=labels)
        expected = {"regression": F.mse_loss, "multi_label_classification": F.binary_cross_entropy_with_logits}
        torch.testing.assert_close(outputs.loss, expected[problem_type](outputs.logits, labels))

    def test_compile_captures_one_graph(self):
        self.check_compiled("eager")

    def test_no_labels_at_all(self):
        model = self.make_model(num_labels=0)
        assert [t.shape for t in self.run(model, make_pixels())] == [(2, TINY["neck_hidden_sizes"][-1])]


class TestSegmentation(HeadSuite):
    model_class = MobileViTForSemanticSegmentation
    output_names = ("logits",)

    def make_config(self, **fields):
        return super().make_config(**{"output_stride": 16, **fields})

    def output_shapes(self, config, batch, height, width):
        stride = config.output_stride
        return [(batch, config.num_labels, -(-height // stride), -(-width // stride))]

    def make_labels(self, batch, height, width):
        labels = torch.arange(batch * height * width).view(batch, height, width) % TINY["num_labels"]
        labels[:, :4] = 255
        return {"labels": labels}

    def wrong_labels(self):
        message = r"got class {}, expected 0\.\.4 .*255 is ignored.*num_labels"
        return [
            ({"labels": torch.full((2, 64, 64), 5)}, message.format(5)),
            ({"labels": torch.full((2, 64, 64), -100)}, message.format(-100)),
            ({"labels": torch.zeros(2, 64, 64)}, "got torch.float32 .*expected class indices"),
            (
                {"labels": torch.zeros(2, 1, 64, 64, dtype=torch.long)},
                r"got .*\(2, 1, 64, 64\), expected .*\(2, 64, 64\)",
            ),
        ]

    def test_masks_as_images_hold_them(self):
        model, pixels = self.make_model(), make_pixels()
        labels = self.make_labels(2, 64, 64)["labels"]
        loss = model(pixels, labels=labels.to(torch.uint8)).loss
        torch.testing.assert_close(loss, model(pixels, labels=labels).loss)

    def test_ignored_pixels(self):
        model, pixels = self.make_model(), make_pixels()
        labels = self.make_labels(2, 64, 64)["labels"]
        outputs = model(pixels, labels=labels)
        resized = F.interpolate(outputs.logits, size=(64, 64), mode="bilinear", align_corners=False)
        expected = F.cross_entropy(resized.movedim(1, -1)[labels != 255], labels[labels != 255])
        torch.testing.assert_close(outputs.loss, expected)

    def test_one_class_cannot_be_trained(self):
        model = self.make_model(num_labels=1)
        with pytest.raises(ValueError, match=r"num_labels: got 1, expected at least 2.*background"):
            model(make_pixels(), labels=torch.zeros(2, 64, 64, dtype=torch.long))

    @pytest.mark.parametrize("output_stride", [8, 32])
    def test_output_stride(self, output_stride):
        model = self.make_model(output_stride=output_stride)
        outputs = self.run(model, make_pixels(2, 65, 96))
        assert [tuple(t.shape) for t in outputs] == self.output_shapes(model.config, 2, 65, 96)


class TestFeatures(ModelSuite):
    model_class = MobileViTModel
    output_names = ("last_hidden_state", "pooler_output")

    def output_shapes(self, config, batch, height, width):
        channels = config.neck_hidden_sizes[-1]
        return [(batch, channels, -(-height // 32), -(-width // 32)), (batch, channels)]

    def test_pooler_is_the_mean(self):
        features, pooled = self.run(self.make_model(), make_pixels(2, 64, 96))
        torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))

    def test_without_expansion(self):
        model = fill(MobileViTModel(self.make_config(), expand_output=False)).eval()
        with torch.no_grad():
            outputs = model(make_pixels(), output_hidden_states=True)
        assert outputs.pooler_output is None
        assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])


class TestBackbone(ModelSuite):
    model_class = MobileViTBackbone
    output_names = ("feature_maps",)
    first_stage = 0
    stages = (0, 3, 5)

    def make_config(self, **fields):
        return MobileViTBackboneConfig(**{**TINY, "out_indices": list(self.stages), **fields})

    def output_shapes(self, config, batch, height, width):
        return [
            (batch, config.neck_hidden_sizes[i], -(-height // STAGE_STRIDES[i]), -(-width // STAGE_STRIDES[i]))
            for i in self.stages
        ]

    def test_feature_maps_are_the_hidden_states(self):
        model = self.make_model()
        assert model.channels == [TINY["neck_hidden_sizes"][i] for i in self.stages]
        assert model.out_features == ["stem", "stage3", "stage5"]
        with torch.no_grad():
            outputs = model(make_pixels(), output_hidden_states=True)
        for index, features in zip(self.stages, outputs.feature_maps, strict=True):
            assert torch.equal(features, outputs.hidden_states[index])

    def test_last_stage_by_default(self):
        outputs = self.run(MobileViTBackbone(MobileViTBackboneConfig(**TINY)).eval(), make_pixels())
        assert [tuple(t.shape) for t in outputs] == [(2, TINY["neck_hidden_sizes"][5], 2, 2)]

    @pytest.mark.parametrize(
        "head", [MobileViTForImageClassification, MobileViTForSemanticSegmentation, MobileViTModel]
    )
    def test_loads_any_checkpoint(self, tmp_path, head):
        source = fill(head(MobileViTConfig(**TINY))).eval()
        source.save_pretrained(tmp_path)
        options = {"out_indices": [1, 2, 3, 4, 5], "output_loading_info": True}
        backbone, info = MobileViTBackbone.from_pretrained(tmp_path, **options)
        assert not any(info.values())
        with torch.no_grad():
            expected = source(make_pixels(), output_hidden_states=True).hidden_states
        assert_close(self.run(backbone, make_pixels()), list(expected), 1e-6)

    def test_auto_backbone(self):
        assert isinstance(transformers.AutoBackbone.from_config(self.make_config()), MobileViTBackbone)


# --- from one task to another ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "new", "left"),
    [
        (MobileViTForImageClassification, MobileViTModel, "", "classifier."),
        (MobileViTModel, MobileViTForImageClassification, "classifier.", ""),
        (MobileViTForImageClassification, MobileViTForSemanticSegmentation, "segmentation_head.", "classifier."),
    ],
)
def test_checkpoint_starts_another_task(tmp_path, source, target, new, left):
    trained = fill(source(MobileViTConfig(**TINY))).eval()
    trained.save_pretrained(tmp_path)
    model, info = target.from_pretrained(tmp_path, output_loading_info=True)
    assert all(new and name.startswith(new) for name in info["missing_keys"])
    leftovers = tuple(filter(None, (left, "mobilevit.conv_1x1_exp." if new.startswith("seg") else "")))
    assert all(name.startswith(leftovers) for name in info["unexpected_keys"])
    with torch.no_grad():
        expected = trained(make_pixels(), output_hidden_states=True).hidden_states
        assert_close(list(model(make_pixels(), output_hidden_states=True).hidden_states), list(expected), 1e-6)


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
def test_same_outputs_as_timm(variant):
    source = fill(timm.create_model(f"mobilevit_{variant}", num_classes=5)).eval()
    model = MobileViTForImageClassification(MobileViTConfig.from_variant(variant, num_labels=5)).eval()
    model.load_state_dict(translate(source.state_dict(), "timm").tensors)
    for size in ((128, 128), (97, 129), (64, 160)):
        with torch.no_grad():
            assert_close([model(formula_image(*size)).logits], [source(formula_image(*size))], 1e-4)


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@pytest.mark.parametrize(
    ("name", "output", "output_stride"),
    [
        ("MobileViTForImageClassification", "logits", 32),
        ("MobileViTForSemanticSegmentation", "logits", 16),
        ("MobileViTForSemanticSegmentation", "logits", 8),
        ("MobileViTModel", "last_hidden_state", 32),
    ],
)
def test_same_outputs_as_stock(variant, name, output, output_stride):
    config = MobileViTConfig.from_variant(variant, num_labels=5, output_stride=output_stride)
    ours = fill(globals()[name](config)).eval()
    stock = getattr(transformers, name)(transformers.MobileViTConfig(**config.to_diff_dict())).eval()
    stock.load_state_dict(ours.state_dict())
    for size in ((128, 128), (97, 129), (64, 160)):
        with torch.no_grad():
            assert_close([ours(formula_image(*size))[output]], [stock(formula_image(*size))[output]], 1e-5)


def test_same_losses_as_stock():
    labels = {
        "MobileViTForImageClassification": torch.tensor([1, 4]),
        "MobileViTForSemanticSegmentation": torch.randint(5, (2, 64, 64)),
    }
    for name, target in labels.items():
        ours = fill(globals()[name](MobileViTConfig(**TINY))).eval()
        stock = getattr(transformers, name)(transformers.MobileViTConfig(**TINY)).eval()
        stock.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(make_pixels(), labels=target).loss, stock(make_pixels(), labels=target).loss)


@pytest.mark.parametrize(
    ("variant", "classifier", "segmenter"), [("xxs", 1.272, 1.855), ("xs", 2.318, 2.944), ("s", 5.579, 6.358)]
)
def test_parameter_counts(variant, classifier, segmenter):
    with torch.device("meta"):
        models = {
            classifier: MobileViTForImageClassification(MobileViTConfig.from_variant(variant, num_labels=1000)),
            segmenter: MobileViTForSemanticSegmentation(MobileViTConfig.from_variant(variant, num_labels=21)),
        }
    for millions, model in models.items():
        assert round(model.num_parameters() / 1e6, 3) == millions


# --- initialization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [MobileViTForImageClassification, MobileViTForSemanticSegmentation])
def test_initialization(model_class):
    torch.manual_seed(0)
    model = model_class(MobileViTConfig.from_variant("xxs"))
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            expected = math.sqrt(2 / fan_out)
        elif isinstance(module, nn.Linear):
            expected = 0.02
            assert weight.abs().max() < 0.2, name
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            assert weight.eq(1).all(), name
        if isinstance(module, nn.Conv2d | nn.Linear):  # five standard errors each
            assert abs(weight.mean()) < 5 * expected / math.sqrt(weight.numel()), name
            assert abs(weight.std() / expected - 1) < 5 / math.sqrt(2 * weight.numel()), name
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.eq(0).all(), name
            assert module.running_var.eq(1).all(), name
        if getattr(module, "bias", None) is not None:
            assert module.bias.eq(0).all(), name


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def convolutions(monkeypatch):
    """The convolutions that layers run, with `TokenLinear` taking that way on every machine."""
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(layers_mobilevit, "POINTWISE_CONVOLUTION", True)
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(args) or convolve(*args))
    return calls


@pytest.mark.parametrize("shape", [(1, 1, 8), (4, 16, 24), (5, 7, 33), (64, 1, 12)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_token_linear_is_linear(convolutions, monkeypatch, shape, bias):
    monkeypatch.setattr(layers_mobilevit, "POINTWISE_CONVOLUTION_MIN_MACS", 0)
    torch.manual_seed(0)
    layer = TokenLinear(shape[-1], 20, bias=bias)
    tokens = torch.randn(shape, requires_grad=True)
    expected, actual = F.linear(tokens, *layer.parameters()), layer(tokens)
    assert len(convolutions) == 1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    inputs, weight = (tokens, *layer.parameters()), torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_token_linear_takes_strided_tokens(convolutions, monkeypatch):
    monkeypatch.setattr(layers_mobilevit, "POINTWISE_CONVOLUTION_MIN_MACS", 0)
    layer, tokens = TokenLinear(24, 20), torch.randn(24, 6, 4).transpose(0, 2)
    torch.testing.assert_close(layer(tokens), F.linear(tokens, layer.weight, layer.bias), atol=1e-5, rtol=0)


def test_token_linear_chooses_by_size(convolutions):
    layer = TokenLinear(96, 192)
    small, large = torch.randn(4, 16, 96), torch.randn(4, 256, 96)
    layer(small)
    layer.double()(large.double())
    assert not convolutions
    actual = layer.float()(large)
    assert len(convolutions) == 1
    torch.testing.assert_close(actual, F.linear(large, layer.weight, layer.bias), atol=1e-5, rtol=0)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_fast_dropout(p):
    torch.manual_seed(0)
    features = torch.rand(101, 103, 107) + 0.5
    size = features.numel()
    assert size % 4, "the last draw serves fewer than four elements"
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
def test_fast_dropout_takes_any_shape(shape):
    assert FastDropout(0.5)(torch.ones(shape)).shape == shape


def test_fast_dropout_follows_the_seed():
    layer, features = FastDropout(0.5), torch.ones(1000)
    torch.manual_seed(1)
    first, second = layer(features), layer(features)
    torch.manual_seed(1)
    assert torch.equal(layer(features), first)
    assert not torch.equal(first, second)


def test_fast_dropout_gradient_is_the_mask():
    features = torch.rand(1000, requires_grad=True)
    dropped = FastDropout(0.25)(features)
    dropped.sum().backward()
    torch.testing.assert_close(features.grad, (dropped != 0) / 0.75)


def test_fast_dropout_rests_in_evaluation():
    features = torch.rand(100)
    assert torch.equal(FastDropout(0.5).eval()(features), features)
    assert torch.equal(FastDropout(0.0)(features), features)
    assert FastDropout(0.5)(features.bfloat16()).dtype == torch.bfloat16


# --- learning --------------------------------------------------------------------------------------------------------

DIRECTIONS = 4


def draw_stripes(batch, generator):
    """Colored stripes of random width and phase (batch, 3, 64, 64) in 0..1, and which of four directions they run."""
    labels = torch.arange(batch) % DIRECTIONS
    angles = (labels * math.pi / DIRECTIONS)[:, None, None]
    frequency = 0.6 + 0.4 * torch.rand(batch, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(batch, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    waves = torch.sin(frequency * (x * angles.cos() + y * angles.sin()) + phase)
    colors = 0.5 + 0.5 * torch.rand(batch, 3, 1, 1, generator=generator)
    return 0.5 + 0.5 * waves[:, None] * colors, labels


def accuracy_after_training(model_class, learning_rate, seed=0):
    """Accuracy on images never seen, of a fresh model after 60 steps."""
    torch.manual_seed(seed)
    model = model_class(MobileViTConfig.from_variant("xxs", num_labels=DIRECTIONS)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(60):
        pixels, labels = draw_stripes(16, generator)
        optimizer.zero_grad()
        model(pixels, labels=labels).loss.backward()
        optimizer.step()
    pixels, labels = draw_stripes(96, generator)
    with torch.no_grad():
        return float((model.eval()(pixels).logits.argmax(dim=1) == labels).float().mean())


@pytest.mark.slow
def test_a_fresh_model_learns_what_a_fresh_stock_model_does_not():
    learning_rates = (3e-4, 1e-3, 3e-3)
    ours, stock = (
        max(accuracy_after_training(model_class, learning_rate) for learning_rate in learning_rates)
        for model_class in (MobileViTForImageClassification, transformers.MobileViTForImageClassification)
    )
    assert ours >= 0.9
    assert stock <= 0.6
