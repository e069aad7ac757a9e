"""Configurations: variants, agreement with stock transformers, the detector's levels, and what is refused."""

import copy
import json

import pytest
import transformers
from transformers import MobileViTConfig as StockConfig

from mobilevit_hf import MobileViTBackboneConfig, MobileViTConfig, MobileViTModel, MobileViTSSDLiteConfig
from mobilevit_hf.configuration import HUB_NAMES, VARIANTS
from mobilevit_hf.modeling.anchors_ssdlite import fit_anchors

STAGES = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5"]

NAMES = {
    "xxs": ("xxs", "XXS", "mobilevit-xx-small", "MobileViT-XX-Small", "apple/mobilevit-xx-small"),
    "xs": ("xs", "mobilevit-x-small", "apple/mobilevit-x-small", "apple/deeplabv3-mobilevit-x-small"),
    "s": ("s", "S", "mobilevit-small", "apple/mobilevit-small", "deeplabv3-mobilevit-small"),
}


# --- variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "name"), [(variant, name) for variant, names in NAMES.items() for name in names])
def test_variants_by_name(variant, name):
    config = MobileViTConfig.from_variant(name)
    for field, value in VARIANTS[variant].items():
        actual = getattr(config, field)
        assert (tuple(actual) if isinstance(value, tuple) else actual) == value
    is_segmentation = "deeplabv3" in name
    assert (config.output_stride, config.image_size) == ((16, 512) if is_segmentation else (32, 256))


def test_variants_of_the_paper():
    """Table 4: transformer widths, channels, expansion; and the dropout of the published checkpoints."""
    assert VARIANTS.keys() == {"xxs", "xs", "s"} == set(HUB_NAMES.values())
    fields = ("hidden_sizes", "neck_hidden_sizes", "expand_ratio", "hidden_dropout_prob")
    assert {name: tuple(row[field] for field in fields) for name, row in VARIANTS.items()} == {
        "xxs": ((64, 80, 96), (16, 16, 24, 48, 64, 80, 320), 2, 0.05),
        "xs": ((96, 120, 144), (16, 32, 48, 64, 80, 96, 384), 4, 0.1),
        "s": ((144, 192, 240), (16, 32, 64, 96, 128, 160, 640), 4, 0.1),
    }


def test_overrides_win():
    labels = {0: "cat", 1: "dog"}
    config = MobileViTConfig.from_variant(
        "deeplabv3-mobilevit-small", output_stride=8, id2label=labels, expand_ratio=3.0
    )
    assert (config.output_stride, config.image_size, config.expand_ratio) == (8, 512, 3.0)
    assert (config.num_labels, config.id2label) == (2, labels)
    assert MobileViTConfig.from_variant("xxs", num_labels=7).num_labels == 7


def test_variants_share_nothing():
    MobileViTConfig.from_variant("xxs").hidden_sizes.append(1)
    assert list(MobileViTConfig.from_variant("xxs").hidden_sizes) == [64, 80, 96]


@pytest.mark.parametrize("name", ["m", "", "apple/mobilevitv2-1.0", "deeplabv3-", None])
def test_unknown_variants(name):
    with pytest.raises(ValueError, match=rf"got {name!r}, expected one of 'xxs' .*MobileViTConfig\(hidden_sizes="):
        MobileViTConfig.from_variant(name)


# --- stock -----------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_stock():
    assert MobileViTConfig().to_dict() == StockConfig().to_dict()
    assert MobileViTConfig().to_dict() == MobileViTConfig.from_variant("s").to_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_fields_are_those_of_stock(variant):
    config = MobileViTConfig.from_variant(variant, num_labels=3)
    assert config.to_dict() == StockConfig(**VARIANTS[variant], num_labels=3).to_dict()


def test_saved_configuration_goes_both_ways(tmp_path):
    config = MobileViTConfig.from_variant("apple/deeplabv3-mobilevit-xx-small", num_labels=3)
    config.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == "mobilevit"
    stock = StockConfig.from_pretrained(tmp_path / "ours")
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "ours")) is StockConfig
    stock.save_pretrained(tmp_path / "stock")
    back = MobileViTConfig.from_pretrained(tmp_path / "stock")
    expected = {**config.to_dict(), "_name_or_path": None}
    for loaded in (stock, back):
        assert {**loaded.to_dict(), "_name_or_path": None} == expected


# --- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config_class", [MobileViTConfig, MobileViTBackboneConfig])
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_sizes", [64, 80], "3 widths"),
        ("hidden_sizes", [0, 80, 96], "positive"),
        ("neck_hidden_sizes", [16, 32, 64], "7 channel counts"),
        ("neck_hidden_sizes", [16, 32, 64, 96, -128, 160, 640], "positive"),
        ("num_channels", 0, "positive"),
        ("num_attention_heads", 5, "a divisor of every width"),
        ("num_attention_heads", 0, "a divisor of every width"),
        ("output_stride", 4, "8, 16 or 32"),
        ("output_stride", 64, "8, 16 or 32"),
        ("conv_kernel_size", 2, "an odd number"),
        ("conv_kernel_size", -1, "an odd number"),
        ("hidden_act", "sulu", "an activation"),
        ("atrous_rates", [6, 12], "3 dilation rates"),
        ("hidden_dropout_prob", 1.0, r"a probability in \[0, 1\)"),
        ("attention_probs_dropout_prob", -0.1, r"a probability in \[0, 1\)"),
        ("classifier_dropout_prob", 1, r"a probability in \[0, 1\)"),
        ("aspp_dropout_prob", 2, r"a probability in \[0, 1\)"),
        ("patch_size", 0, "one positive number"),
        ("patch_size", [2, 2], "one positive number"),
        ("patch_size", 33, "at most 32, the side of the stride-8 feature map"),
    ],
)
def test_refused_values(config_class, field, value, expected):
    with pytest.raises(ValueError, match=rf"{field}.*{expected}") as caught:
        config_class(**{field: value})
    assert "got" in str(caught.value)
    with pytest.raises(ValueError, match=field):
        MobileViTConfig.from_variant("xs", **{field: value})


@pytest.mark.parametrize(
    ("image_size", "patch_size", "fits"), [(64, 8, True), (64, 9, False), ((256, 64), 9, False), (65, 9, True)]
)
def test_patches_fit_into_the_feature_map(image_size, patch_size, fits):
    if fits:
        assert MobileViTConfig(image_size=image_size, patch_size=patch_size).patch_size == patch_size
    else:
        with pytest.raises(ValueError, match=f"patch_size: got {patch_size}, expected at most 8"):
            MobileViTConfig(image_size=image_size, patch_size=patch_size)


def test_models_check_stock_configurations_too():
    with pytest.raises(ValueError, match="num_attention_heads"):
        MobileViTModel(StockConfig(num_attention_heads=7))


# --- backbone --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "features", "indices"),
    [
        ({}, ["stage5"], [5]),
        ({"out_features": ["stage3", "stage5"]}, ["stage3", "stage5"], [3, 5]),
        ({"out_indices": [0, 2]}, ["stem", "stage2"], [0, 2]),
        ({"out_indices": [-2, -1]}, ["stage4", "stage5"], [-2, -1]),
        ({"out_features": STAGES}, STAGES, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_backbone_features(tmp_path, options, features, indices):
    config = MobileViTBackboneConfig.from_variant("xxs", **options)
    config.save_pretrained(tmp_path)
    loaded = MobileViTBackboneConfig.from_pretrained(tmp_path)
    for one in (config, loaded, transformers.AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(one, MobileViTBackboneConfig)
        assert one.model_type == "mobilevit_backbone"
        assert (one.stage_names, one.num_hidden_layers) == (STAGES, 5)
        assert (list(one.out_features), list(one.out_indices)) == (features, indices)
        assert list(one.hidden_sizes) == [64, 80, 96]


@pytest.mark.parametrize(
    "options",
    [
        {"out_features": ["stage6"]},
        {"out_features": ["stage5", "stage3"]},
        {"out_indices": [6]},
        {"out_features": ["stage3"], "out_indices": [4]},
    ],
    ids=str,
)
def test_unknown_backbone_features(options):
    with pytest.raises(ValueError, match=r"out_features|out_indices"):
        MobileViTBackboneConfig(**options)


@pytest.mark.parametrize("config_class", [MobileViTConfig, StockConfig])
def test_backbone_reads_a_classifiers_configuration(tmp_path, config_class):
    config_class(**VARIANTS["xs"], num_labels=3, architectures=["MobileViTForImageClassification"]).save_pretrained(
        tmp_path
    )
    config = MobileViTBackboneConfig.from_pretrained(tmp_path, out_features=["stage4"])
    assert (list(config.hidden_sizes), config.num_labels) == ([96, 120, 144], 3)
    assert config.model_type == "mobilevit_backbone"
    assert config.architectures is None
    assert config.out_features == ["stage4"]


# --- detector --------------------------------------------------------------------------------------------------------

# Fields for other levels than the paper's.
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


def test_detector_of_the_paper():
    config = MobileViTSSDLiteConfig()
    assert config.backbone_config.to_dict().items() >= _lists(VARIANTS["s"]).items()
    assert (config.image_size, config.backbone_config.image_size) == (320, 320)
    assert config.anchors_per_cell == [6, 6, 6, 6, 6, 4]
    assert config.anchor_scales == pytest.approx([0.1 + 0.95 / 6 * i for i in range(7)], abs=1e-12)
    assert config.anchor_ratios == [[2, 3]] * 5 + [[2]]
    assert (config.center_variance, config.size_variance, config.match_iou_threshold) == (0.1, 0.2, 0.5)
    assert (config.negatives_per_positive, config.match_iou_eps, config.head_act) == (3, 1e-5, "relu")


def _lists(fields):
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
def test_features_follow_the_strides(strides, features):
    fields = {"feature_strides": strides, **LEVELS[strides]}
    config = MobileViTSSDLiteConfig(**fields)
    assert config.backbone_config.out_features == features
    assert config.feature_strides == list(strides)
    other = MobileViTSSDLiteConfig(**fields, backbone_config={"out_features": ["stem"], "out_indices": [0]})
    assert other.backbone_config.out_features == features


@pytest.mark.parametrize("backbone_class", [dict, MobileViTConfig, MobileViTBackboneConfig, StockConfig])
def test_detector_takes_any_backbone_configuration(backbone_class):
    fields = {**_lists(VARIANTS["xxs"]), "patch_size": 4, "id2label": {0: "a"}, "attention_probs_dropout_prob": 0.2}
    given = backbone_class(**fields)
    before = copy.deepcopy(given if backbone_class is dict else given.to_dict())
    config = MobileViTSSDLiteConfig(backbone_config=given, num_labels=3, image_size=256)
    assert (given if backbone_class is dict else given.to_dict()) == before
    backbone = config.backbone_config
    assert type(backbone) is MobileViTBackboneConfig
    assert (list(backbone.hidden_sizes), backbone.patch_size, backbone.image_size) == ([64, 80, 96], 4, 256)
    assert backbone.attention_probs_dropout_prob == 0.2
    assert (config.num_labels, config.id2label[2]) == (3, "LABEL_2")
    backbone.patch_size = 1
    assert (given if backbone_class is dict else given.to_dict()) == before


@pytest.mark.parametrize(("variant", "name"), [(variant, name) for variant, names in NAMES.items() for name in names])
def test_detector_variants_by_name(variant, name):
    config = MobileViTSSDLiteConfig.from_variant(name, num_labels=2)
    assert {field: getattr(config.backbone_config, field) for field in VARIANTS[variant]} == _lists(VARIANTS[variant])
    assert (config.image_size, config.backbone_config.output_stride, config.num_labels) == (320, 32, 2)


def test_detector_variants_take_overrides():
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
def test_detector_is_saved_whole(tmp_path, strides):
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


def test_detector_is_loaded_for_other_classes(tmp_path):
    MobileViTSSDLiteConfig.from_variant("xxs", id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    loaded = MobileViTSSDLiteConfig.from_pretrained(tmp_path, num_labels=4)
    assert (loaded.num_labels, sorted(loaded.id2label)) == (4, [0, 1, 2, 3])
    labels = {0: "a", 1: "b", 2: "c"}
    loaded = MobileViTSSDLiteConfig.from_pretrained(tmp_path, id2label=labels, label2id={"a": 0, "b": 1, "c": 2})
    assert (loaded.num_labels, loaded.id2label) == (3, labels)


def test_detectors_share_nothing():
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
def test_values_no_detector_can_be_built_from(field, value, expected):
    named = "id2label" if field == "num_labels" else field
    with pytest.raises(ValueError, match=rf"{named}: got .*expected .*{expected}"):
        MobileViTSSDLiteConfig(**{field: value})
    with pytest.raises(ValueError, match=named):
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
def test_backbones_no_detector_can_be_built_from(backbone, message):
    with pytest.raises(ValueError, match=message):
        MobileViTSSDLiteConfig(backbone_config=backbone)


@pytest.mark.parametrize("image_size", [0, -320])
def test_images_no_detector_can_be_built_for(image_size):
    with pytest.raises(ValueError, match=f"image_size.*{image_size}"):
        MobileViTSSDLiteConfig(image_size=image_size)
