"""Detector configuration: levels, anchors, backbone, saving, validation."""

import copy
import json

import pytest
import transformers
from transformers import MobileViTConfig as StockConfig

from mobilevit_hf import MobileViTBackboneConfig, MobileViTConfig, MobileViTSSDLiteConfig
from mobilevit_hf.configuration import VARIANTS
from mobilevit_hf.modeling.anchors_ssdlite import fit_anchors

# Fields by `feature_strides`, for levels other than the paper's.
LEVELS = {
    (8, 16, 32): {"level_channels": [64, 32, 16], "anchor_scales": [0.1, 0.2, 0.4, 0.8], "anchor_ratios": [[2]] * 3},
    (16, 32, -1): {
        "level_channels": [64, 32, 16],
        "anchor_scales": [0.1, 0.2, 0.4, 0.8],
        "anchor_ratios": [[], [2], []],
    },
    (32, 64): {"level_channels": [32, 16], "anchor_scales": [0.3, 0.5, 0.8], "anchor_ratios": [[2], [1.5, 3]]},
    (32,): {"level_channels": [32], "anchor_scales": [0.3, 0.5], "anchor_ratios": [[2]]},
}


def test_defaults_match_the_paper():
    config = MobileViTSSDLiteConfig()
    assert config.backbone_config.to_dict().items() >= to_lists(VARIANTS["s"]).items()
    assert (config.image_size, config.backbone_config.image_size) == (320, 320)
    assert config.anchors_per_cell == [6, 6, 6, 6, 6, 4]
    assert config.anchor_scales == pytest.approx([0.1 + 0.95 / 6 * i for i in range(7)], abs=1e-12)
    assert config.anchor_ratios == [[2, 3]] * 5 + [[2]]
    assert (config.center_variance, config.size_variance, config.match_iou_threshold) == (0.1, 0.2, 0.5)
    assert (config.negatives_per_positive, config.match_iou_eps, config.head_act) == (3, 1e-5, "relu")


def to_lists(fields):
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


@pytest.mark.parametrize(
    ("strides", "features"),
    [
        ((8, 16, 32), ["stage3", "stage4", "stage5"]),
        ((16, 32, -1), ["stage4", "stage5"]),
        ((32, 64), ["stage5"]),
        ((32,), ["stage5"]),
    ],
)
def test_out_features_follow_the_strides(strides, features):
    fields = {"feature_strides": strides, **LEVELS[strides]}
    config = MobileViTSSDLiteConfig(**fields)
    assert config.backbone_config.out_features == features
    assert config.feature_strides == list(strides)
    other = MobileViTSSDLiteConfig(**fields, backbone_config={"out_features": ["stem"], "out_indices": [0]})
    assert other.backbone_config.out_features == features


@pytest.mark.parametrize("backbone_class", [dict, MobileViTConfig, MobileViTBackboneConfig, StockConfig])
def test_backbone_config_accepts_all_mobilevit_configurations(backbone_class):
    fields = {**to_lists(VARIANTS["xxs"]), "patch_size": 4, "id2label": {0: "a"}, "attention_probs_dropout_prob": 0.2}
    source = backbone_class(**fields)
    before = copy.deepcopy(source if backbone_class is dict else source.to_dict())
    config = MobileViTSSDLiteConfig(backbone_config=source, num_labels=3, image_size=256)
    assert (source if backbone_class is dict else source.to_dict()) == before
    backbone = config.backbone_config
    assert type(backbone) is MobileViTBackboneConfig
    assert (list(backbone.hidden_sizes), backbone.patch_size, backbone.image_size) == ([64, 80, 96], 4, 256)
    assert backbone.attention_probs_dropout_prob == 0.2
    assert (config.num_labels, config.id2label[2]) == (3, "LABEL_2")
    backbone.patch_size = 1
    assert (source if backbone_class is dict else source.to_dict()) == before


@pytest.mark.parametrize(
    ("variant", "name"), [("xxs", "XXS"), ("xs", "mobilevit-x-small"), ("s", "apple/deeplabv3-mobilevit-small")]
)
def test_from_variant_accepts_short_and_hub_names(variant, name):
    config = MobileViTSSDLiteConfig.from_variant(name, num_labels=2)
    assert {field: getattr(config.backbone_config, field) for field in VARIANTS[variant]} == to_lists(
        VARIANTS[variant]
    )
    assert (config.image_size, config.backbone_config.output_stride, config.num_labels) == (320, 32, 2)


def test_from_variant_overrides_fields():
    anchors = fit_anchors([[[10, 10, 30, 25], [100, 50, 400, 300]]], [(480, 640)])
    labels = {0: "cat", 1: "dog"}
    config = MobileViTSSDLiteConfig.from_variant(
        "xs", id2label=labels, backbone_config={"patch_size": 1}, smooth_l1_beta=0.1, **anchors
    )
    assert (config.id2label, config.label2id, config.num_labels) == (labels, {"cat": 0, "dog": 1}, 2)
    assert (config.backbone_config.patch_size, config.backbone_config.hidden_sizes) == (1, [96, 120, 144])
    assert config.smooth_l1_beta == 0.1
    assert {name: getattr(config, name) for name in anchors} == anchors
    with pytest.raises(ValueError, match="got 'm', expected one of 'xxs'"):
        MobileViTSSDLiteConfig.from_variant("m")


@pytest.mark.parametrize("strides", LEVELS)
def test_saved_configuration_restores_all_fields(tmp_path, strides):
    config = MobileViTSSDLiteConfig.from_variant(
        "xxs",
        id2label={0: "cat", 1: "dog"},
        feature_strides=strides,
        **LEVELS[strides],
        center_variance=0.3,
        match_iou_threshold=0.4,
        backbone_config={"conv_kernel_size": 5},
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mobilevit_ssdlite"
    expected = {**config.to_dict(), "_name_or_path": None}
    for config_class in (MobileViTSSDLiteConfig, transformers.AutoConfig):
        loaded = config_class.from_pretrained(tmp_path)
        assert type(loaded) is MobileViTSSDLiteConfig
        assert type(loaded.backbone_config) is MobileViTBackboneConfig
        assert {**loaded.to_dict(), "_name_or_path": None} == expected
    assert loaded.backbone_config.conv_kernel_size == 5


def test_from_pretrained_changes_classes(tmp_path):
    MobileViTSSDLiteConfig.from_variant("xxs", id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    loaded = MobileViTSSDLiteConfig.from_pretrained(tmp_path, num_labels=4)
    assert (loaded.num_labels, sorted(loaded.id2label)) == (4, [0, 1, 2, 3])
    labels = {0: "a", 1: "b", 2: "c"}
    loaded = MobileViTSSDLiteConfig.from_pretrained(tmp_path, id2label=labels, label2id={"a": 0, "b": 1, "c": 2})
    assert (loaded.num_labels, loaded.id2label) == (3, labels)


def test_defaults_are_independentto_lists():
    config = MobileViTSSDLiteConfig()
    config.anchor_ratios[0].append(7)
    config.anchor_scales[0] = config.level_channels[0] = config.feature_strides[0] = 3
    other = MobileViTSSDLiteConfig()
    assert other.anchor_ratios == [[2, 3]] * 5 + [[2]]
    assert (other.anchor_scales[0], other.level_channels[0], other.feature_strides[0]) == (0.1, 512, 16)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("feature_strides", [], "8, 16 or 32, then twice the stride"),
        ("feature_strides", [-1], "8, 16 or 32, then twice"),
        ("feature_strides", [4, 8, 16, 32, 64, -1], "8, 16 or 32, then twice"),
        ("feature_strides", [16, 32, 128, 256, 512, -1], "8, 16 or 32, then twice"),
        ("feature_strides", [64, 128, 256, 512, 1024, -1], "8, 16 or 32, then twice"),
        ("feature_strides", [8, 16], "8, 16 or 32, then twice"),
        ("feature_strides", [32, 16, 64, 128, 256, -1], "8, 16 or 32, then twice"),
        ("feature_strides", [-1, 16, 32, 64, 128, 256], "8, 16 or 32, then twice"),
        ("feature_strides", [16, 32, 64, 128, -1, -1], "8, 16 or 32, then twice"),
        ("level_channels", [512, 256], "6 entries for 6 levels"),
        ("level_channels", [512, 256, 256, 128, 128, 0], "positive"),
        ("anchor_scales", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "7 entries for 6 levels"),
        ("anchor_scales", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0], "positive fractions"),
        ("anchor_ratios", [[2]] * 7, "6 entries for 6 levels"),
        ("anchor_ratios", [[2]] * 5 + [[-3]], "positive ratios"),
        ("center_variance", 0, "a positive number"),
        ("size_variance", -0.2, "a positive number"),
        ("match_iou_eps", 0, "a positive number"),
        ("smooth_l1_beta", 0.0, "a positive number"),
        ("negatives_per_positive", -1, "0 or more"),
        ("localization_loss_weight", -1, "0 or more"),
        ("match_iou_threshold", 0, r"\(0, 1\]"),
        ("match_iou_threshold", 1.5, r"\(0, 1\]"),
        ("head_act", "relux", "an activation"),
        ("id2label", {0: "cat", 2: "dog"}, "without gaps"),
        ("id2label", {1: "cat", 2: "dog"}, "without gaps"),
        ("num_labels", 0, "a name for each"),
    ],
)
def test_invalid_fields_raise(field, value, expected):
    reported = "id2label" if field == "num_labels" else field
    with pytest.raises(ValueError, match=rf"{reported}: got .*expected .*{expected}"):
        MobileViTSSDLiteConfig(**{field: value})
    with pytest.raises(ValueError, match=reported):
        MobileViTSSDLiteConfig.from_variant("xs", **{field: value})


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"output_stride": 16}, r"backbone_config.output_stride: got 16, expected 32"),
        ({"num_attention_heads": 5}, "num_attention_heads: got 5, expected a divisor"),
        ({"model_type": "resnet"}, r"backbone_config: got model_type 'resnet', expected 'mobilevit_backbone'"),
        (transformers.ResNetConfig(), r"backbone_config: got model_type 'resnet'"),
        ({"patch_size": 41}, r"patch_size: got 41, expected at most 40, .* of image_size=320"),
    ],
)
def test_invalid_backbones_raise(backbone, message):
    with pytest.raises(ValueError, match=message):
        MobileViTSSDLiteConfig(backbone_config=backbone)


@pytest.mark.parametrize("image_size", [0, -320])
def test_invalid_image_sizes_raise(image_size):
    with pytest.raises(ValueError, match=f"image_size.*{image_size}"):
        MobileViTSSDLiteConfig(image_size=image_size)
