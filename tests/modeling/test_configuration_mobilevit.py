"""Model and backbone configurations: variants, compatibility with stock transformers, validation."""

import json

import pytest
import transformers
from transformers import MobileViTConfig as StockConfig

from mobilevit_hf import MobileViTBackboneConfig, MobileViTConfig, MobileViTModel
from mobilevit_hf.configuration import HUB_NAMES, VARIANTS

STAGES = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5"]


NAMES = {
    "xxs": ("xxs", "XXS", "mobilevit-xx-small", "MobileViT-XX-Small", "apple/mobilevit-xx-small"),
    "xs": ("xs", "mobilevit-x-small", "apple/mobilevit-x-small", "apple/deeplabv3-mobilevit-x-small"),
    "s": ("s", "S", "mobilevit-small", "apple/mobilevit-small", "deeplabv3-mobilevit-small"),
}


@pytest.mark.parametrize(("variant", "name"), [(variant, name) for variant, names in NAMES.items() for name in names])
def test_from_variant_accepts_short_and_hub_names(variant, name):
    config = MobileViTConfig.from_variant(name)
    for field, value in VARIANTS[variant].items():
        actual = getattr(config, field)
        assert (tuple(actual) if isinstance(value, tuple) else actual) == value
    is_segmentation = "deeplabv3" in name
    assert (config.output_stride, config.image_size) == ((16, 512) if is_segmentation else (32, 256))


def test_variants_match_the_paper():
    """Table 4: transformer widths, channels, expansion. The dropout is that of the published checkpoints."""
    assert VARIANTS.keys() == {"xxs", "xs", "s"} == set(HUB_NAMES.values())
    fields = ("hidden_sizes", "neck_hidden_sizes", "expand_ratio", "hidden_dropout_prob")
    assert {name: tuple(row[field] for field in fields) for name, row in VARIANTS.items()} == {
        "xxs": ((64, 80, 96), (16, 16, 24, 48, 64, 80, 320), 2, 0.05),
        "xs": ((96, 120, 144), (16, 32, 48, 64, 80, 96, 384), 4, 0.1),
        "s": ((144, 192, 240), (16, 32, 64, 96, 128, 160, 640), 4, 0.1),
    }


def test_from_variant_overrides_fields():
    labels = {0: "cat", 1: "dog"}
    config = MobileViTConfig.from_variant(
        "deeplabv3-mobilevit-small", output_stride=8, id2label=labels, expand_ratio=3.0
    )
    assert (config.output_stride, config.image_size, config.expand_ratio) == (8, 512, 3.0)
    assert (config.num_labels, config.id2label) == (2, labels)
    assert MobileViTConfig.from_variant("xxs", num_labels=7).num_labels == 7


def test_from_variant_returns_independent_lists():
    MobileViTConfig.from_variant("xxs").hidden_sizes.append(1)
    assert list(MobileViTConfig.from_variant("xxs").hidden_sizes) == [64, 80, 96]


@pytest.mark.parametrize("name", ["m", "", "apple/mobilevitv2-1.0", "deeplabv3-", None])
def test_from_variant_rejects_unknown_names(name):
    with pytest.raises(ValueError, match=rf"got {name!r}, expected one of 'xxs' .*MobileViTConfig\(hidden_sizes="):
        MobileViTConfig.from_variant(name)


def test_defaults_match_stock():
    assert MobileViTConfig().to_dict() == StockConfig().to_dict()
    assert MobileViTConfig().to_dict() == MobileViTConfig.from_variant("s").to_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_fields_match_stock(variant):
    config = MobileViTConfig.from_variant(variant, num_labels=3)
    assert config.to_dict() == StockConfig(**VARIANTS[variant], num_labels=3).to_dict()


def test_saved_configuration_loads_in_both_libraries(tmp_path):
    config = MobileViTConfig.from_variant("apple/deeplabv3-mobilevit-xx-small", num_labels=3)
    config.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["model_type"] == "mobilevit"
    stock = StockConfig.from_pretrained(tmp_path / "ours")
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "ours")) is StockConfig
    stock.save_pretrained(tmp_path / "stock")
    reloaded = MobileViTConfig.from_pretrained(tmp_path / "stock")
    expected = {**config.to_dict(), "_name_or_path": None}
    for loaded in (stock, reloaded):
        assert {**loaded.to_dict(), "_name_or_path": None} == expected


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
def test_invalid_fields_raise(config_class, field, value, expected):
    with pytest.raises(ValueError, match=rf"{field}.*{expected}") as error:
        config_class(**{field: value})
    assert "got" in str(error.value)
    with pytest.raises(ValueError, match=field):
        MobileViTConfig.from_variant("xs", **{field: value})


@pytest.mark.parametrize(
    ("image_size", "patch_size", "fits"), [(64, 8, True), (64, 9, False), ((256, 64), 9, False), (65, 9, True)]
)
def test_patch_size_is_limited_by_the_feature_map(image_size, patch_size, fits):
    if fits:
        assert MobileViTConfig(image_size=image_size, patch_size=patch_size).patch_size == patch_size
    else:
        with pytest.raises(ValueError, match=f"patch_size: got {patch_size}, expected at most 8"):
            MobileViTConfig(image_size=image_size, patch_size=patch_size)


def test_model_validates_stock_configuration():
    with pytest.raises(ValueError, match="num_attention_heads"):
        MobileViTModel(StockConfig(num_attention_heads=7))


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
def test_backbone_selects_feature_maps(tmp_path, options, features, indices):
    config = MobileViTBackboneConfig.from_variant("xxs", **options)
    config.save_pretrained(tmp_path)
    loaded = MobileViTBackboneConfig.from_pretrained(tmp_path)
    for backbone_config in (config, loaded, transformers.AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(backbone_config, MobileViTBackboneConfig)
        assert backbone_config.model_type == "mobilevit_backbone"
        assert (backbone_config.stage_names, backbone_config.num_hidden_layers) == (STAGES, 5)
        assert (list(backbone_config.out_features), list(backbone_config.out_indices)) == (features, indices)
        assert list(backbone_config.hidden_sizes) == [64, 80, 96]


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
def test_backbone_rejects_unknown_feature_maps(options):
    with pytest.raises(ValueError, match=r"out_features|out_indices"):
        MobileViTBackboneConfig(**options)


@pytest.mark.parametrize("config_class", [MobileViTConfig, StockConfig])
def test_backbone_reads_classifier_configuration(tmp_path, config_class):
    config_class(**VARIANTS["xs"], num_labels=3, architectures=["MobileViTForImageClassification"]).save_pretrained(
        tmp_path
    )
    config = MobileViTBackboneConfig.from_pretrained(tmp_path, out_features=["stage4"])
    assert (list(config.hidden_sizes), config.num_labels) == ([96, 120, 144], 3)
    assert config.model_type == "mobilevit_backbone"
    assert config.architectures is None
    assert config.out_features == ["stage4"]
