"""Encoder, backbone, classification and segmentation: shared suite, parity with timm and stock, initialization."""

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


class TestClassification(HeadSuite):
    model_class = MobileViTForImageClassification
    output_names = ("logits",)

    def output_shapes(self, config, batch, height, width):
        return [(batch, config.num_labels)]

    def make_labels(self, batch, height, width):
        return {"labels": torch.arange(batch) % TINY["num_labels"]}

    def invalid_labels(self):
        message = r"got class {}, expected 0\.\.4 .*-100 is ignored.*num_labels"
        return [
            ({"labels": torch.tensor([0, 5])}, message.format(5)),
            ({"labels": torch.tensor([-1, 0])}, message.format(-1)),
            ({"labels": torch.tensor([255, 0])}, message.format(255)),
            ({"labels": torch.tensor([0, 1, 2])}, r"got torch.int64 of shape \(3,\), expected .* shape \(2,\)"),
        ]

    def test_label_minus_100_is_ignored(self):
        model, pixels = self.make_model(), make_pixels(2)
        with torch.no_grad():
            both = model(pixels, labels=torch.tensor([3, -100])).loss
            first = model(pixels[:1], labels=torch.tensor([3])).loss
        torch.testing.assert_close(both, first)

    @pytest.mark.parametrize(
        ("problem_type", "labels"),
        [("regression", torch.rand(2, 5)), ("multi_label_classification", torch.ones(2, 5))],
    )
    def test_problem_type_selects_loss(self, problem_type, labels):
        model = self.make_model(problem_type=problem_type)
        outputs = model(make_pixels(), labels=labels)
        expected = {"regression": F.mse_loss, "multi_label_classification": F.binary_cross_entropy_with_logits}
        torch.testing.assert_close(outputs.loss, expected[problem_type](outputs.logits, labels))

    def test_compile_captures_one_graph(self):
        self.check_compiled("eager")

    def test_zero_labels_return_pooled_features(self):
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

    def invalid_labels(self):
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

    def test_uint8_masks(self):
        model, pixels = self.make_model(), make_pixels()
        labels = self.make_labels(2, 64, 64)["labels"]
        loss = model(pixels, labels=labels.to(torch.uint8)).loss
        torch.testing.assert_close(loss, model(pixels, labels=labels).loss)

    def test_label_255_is_ignored(self):
        model, pixels = self.make_model(), make_pixels()
        labels = self.make_labels(2, 64, 64)["labels"]
        outputs = model(pixels, labels=labels)
        resized = F.interpolate(outputs.logits, size=(64, 64), mode="bilinear", align_corners=False)
        expected = F.cross_entropy(resized.movedim(1, -1)[labels != 255], labels[labels != 255])
        torch.testing.assert_close(outputs.loss, expected)

    def test_loss_requires_two_classes(self):
        model = self.make_model(num_labels=1)
        with pytest.raises(ValueError, match=r"num_labels: got 1, expected at least 2.*background"):
            model(make_pixels(), labels=torch.zeros(2, 64, 64, dtype=torch.long))

    @pytest.mark.parametrize("output_stride", [8, 32])
    def test_other_output_strides(self, output_stride):
        model = self.make_model(output_stride=output_stride)
        outputs = self.run(model, make_pixels(2, 65, 96))
        assert [tuple(t.shape) for t in outputs] == self.output_shapes(model.config, 2, 65, 96)


def test_segmentation_trains_on_a_single_image():
    """The pooled branch, with one value per channel, uses its running statistics; other layers update theirs."""
    model = fill(MobileViTForSemanticSegmentation(MobileViTConfig(**{**TINY, "output_stride": 16}))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = model(make_pixels(1), labels=torch.randint(5, (1, 64, 64))).loss
    loss.backward()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    pooled = "segmentation_head.aspp.convs.4.conv_1x1."
    assert loss.isfinite()
    assert not any(name.startswith(pooled) for name in changed)
    assert "segmentation_head.aspp.project.normalization.running_mean" in changed
    gradient = model.segmentation_head.aspp.convs[4].conv_1x1.convolution.weight.grad
    assert gradient.abs().sum() > 0
    assert all(module.training for module in model.modules())


class TestFeatures(ModelSuite):
    model_class = MobileViTModel
    output_names = ("last_hidden_state", "pooler_output")

    def output_shapes(self, config, batch, height, width):
        channels = config.neck_hidden_sizes[-1]
        return [(batch, channels, -(-height // 32), -(-width // 32)), (batch, channels)]

    def test_pooler_output_is_the_mean(self):
        features, pooled = self.run(self.make_model(), make_pixels(2, 64, 96))
        torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))

    def test_expand_output_false_returns_encoder_features(self):
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

    def test_feature_maps_are_hidden_states(self):
        model = self.make_model()
        assert model.channels == [TINY["neck_hidden_sizes"][i] for i in self.stages]
        assert model.out_features == ["stem", "stage3", "stage5"]
        with torch.no_grad():
            outputs = model(make_pixels(), output_hidden_states=True)
        for index, features in zip(self.stages, outputs.feature_maps, strict=True):
            assert torch.equal(features, outputs.hidden_states[index])


@pytest.mark.parametrize(
    ("source", "target", "new_prefix", "unused_prefix"),
    [
        (MobileViTForImageClassification, MobileViTModel, "", "classifier."),
        (MobileViTModel, MobileViTForImageClassification, "classifier.", ""),
        (MobileViTForImageClassification, MobileViTForSemanticSegmentation, "segmentation_head.", "classifier."),
    ],
)
def test_checkpoint_initializes_another_task(tmp_path, source, target, new_prefix, unused_prefix):
    trained = fill(source(MobileViTConfig(**TINY))).eval()
    trained.save_pretrained(tmp_path)
    model, info = target.from_pretrained(tmp_path, output_loading_info=True)
    assert all(new_prefix and name.startswith(new_prefix) for name in info["missing_keys"])
    unused = (unused_prefix, "mobilevit.conv_1x1_exp." if new_prefix.startswith("seg") else "")
    assert all(name.startswith(tuple(filter(None, unused))) for name in info["unexpected_keys"])
    with torch.no_grad():
        expected = trained(make_pixels(), output_hidden_states=True).hidden_states
        assert_close(list(model(make_pixels(), output_hidden_states=True).hidden_states), list(expected), 1e-6)


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
def test_outputs_equal_timm(variant):
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
def test_outputs_equal_stock(variant, name, output, output_stride):
    config = MobileViTConfig.from_variant(variant, num_labels=5, output_stride=output_stride)
    ours = fill(globals()[name](config)).eval()
    stock = getattr(transformers, name)(transformers.MobileViTConfig(**config.to_diff_dict())).eval()
    stock.load_state_dict(ours.state_dict())
    for size in ((128, 128), (97, 129), (64, 160)):
        with torch.no_grad():
            assert_close([ours(formula_image(*size))[output]], [stock(formula_image(*size))[output]], 1e-5)


def test_losses_equal_stock():
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


@pytest.mark.parametrize("model_class", [MobileViTForImageClassification, MobileViTForSemanticSegmentation])
def test_initialization_matches_official_code(model_class):
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


DIRECTIONS = 4


def draw_stripes(batch, generator):
    """Return colored stripes (batch, 3, 64, 64) in 0..1 of random width and phase, and their directions."""
    labels = torch.arange(batch) % DIRECTIONS
    angles = (labels * math.pi / DIRECTIONS)[:, None, None]
    frequency = 0.6 + 0.4 * torch.rand(batch, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(batch, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    waves = torch.sin(frequency * (x * angles.cos() + y * angles.sin()) + phase)
    colors = 0.5 + 0.5 * torch.rand(batch, 3, 1, 1, generator=generator)
    return 0.5 + 0.5 * waves[:, None] * colors, labels


def accuracy_after_training(model_class, learning_rate, seed=0):
    """Return the accuracy on new images after 60 steps of training from scratch."""
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
def test_training_from_scratch_succeeds_where_stock_fails():
    learning_rates = (3e-4, 1e-3, 3e-3)
    ours, stock = (
        max(accuracy_after_training(model_class, learning_rate) for learning_rate in learning_rates)
        for model_class in (MobileViTForImageClassification, transformers.MobileViTForImageClassification)
    )
    assert ours >= 0.9
    assert stock <= 0.6
