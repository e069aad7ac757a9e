"""MobileViT configurations: model and backbone."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub.dataclasses import strict
from transformers import MobileViTConfig as StockMobileViTConfig
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .variants_mobilevit import HUB_NAMES, VARIANTS

# Arguments of `from_pretrained` that are passed to the download.
HUB_KWARGS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")

SEGMENTATION_PREFIX = "deeplabv3-"


def resolve_variant(name: str) -> tuple[str, bool]:
    """Return the variant for a name, and whether the name refers to a DeepLabv3 checkpoint.

    Args:
        name: `"xxs"`, `"xs"`, `"s"`, or a Hub name such as `"mobilevit-xx-small"`, `"apple/mobilevit-small"` or
            `"apple/deeplabv3-mobilevit-small"`; case-insensitive.

    Raises:
        ValueError: If the variant is unknown.
    """
    base = str(name).lower().rpartition("/")[2]
    bare = base.removeprefix(SEGMENTATION_PREFIX)
    variant = HUB_NAMES.get(bare, bare)
    if variant not in VARIANTS:
        expected = ", ".join(f"{short!r} ({hub})" for hub, short in HUB_NAMES.items())
        raise ValueError(
            f"Unknown MobileViT variant: got {name!r}, expected one of {expected}. "
            "For other widths, pass them to MobileViTConfig(hidden_sizes=..., neck_hidden_sizes=...)."
        )
    return variant, base != bare


# Fields, their condition, the expected values and the fix.
Rules = Sequence[tuple[Sequence[str], Callable[[Any], bool], str, str]]

ARCHITECTURE_RULES: Rules = (
    (["hidden_sizes"], lambda sizes: len(sizes) == 3, "3 widths", "Pass one width per MobileViT block."),
    (
        ["neck_hidden_sizes"],
        lambda sizes: len(sizes) == 7,
        "7 channel counts",
        "Pass those of the stem, the five encoder layers and the last convolution.",
    ),
    (["atrous_rates"], lambda rates: len(rates) == 3, "3 dilation rates", "The paper uses (6, 12, 18)."),
    (
        ["hidden_sizes", "neck_hidden_sizes", "atrous_rates"],
        lambda values: min(values) > 0,
        "positive numbers",
        "See VARIANTS for published values.",
    ),
    (
        ["num_channels", "aspp_out_channels", "mlp_ratio", "expand_ratio", "layer_norm_eps"],
        lambda value: value > 0,
        "a positive number",
        "The default is {default}.",
    ),
    (
        ["output_stride"],
        lambda stride: stride in (8, 16, 32),
        "8, 16 or 32",
        "Use 32 for classification and detection, 16 for the paper's DeepLabv3.",
    ),
    (["conv_kernel_size"], lambda size: size > 0 and size % 2 == 1, "an odd number", "The paper uses 3."),
    (["hidden_act"], lambda name: name in ACT2FN, "an activation of transformers", "The paper uses 'silu'."),
    (
        ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob", "aspp_dropout_prob"],
        lambda probability: 0 <= probability < 1,
        "a probability in [0, 1)",
        "Use 0 to disable dropout.",
    ),
)


def check_fields(config: PreTrainedConfig, rules: Rules) -> None:
    """Raise a ValueError for the first field that violates a rule."""
    for names, is_valid, expected, fix in rules:
        for name in names:
            if not is_valid(value := getattr(config, name)):
                fix = fix.format(default=getattr(type(config), name))
                raise ValueError(f"{name}: got {value!r}, expected {expected}. {fix}")


def check_architecture(config: StockMobileViTConfig) -> None:
    """Validate the fields that determine the architecture.

    Raises:
        ValueError: If a field has a value that no MobileViT can be built from.
    """
    check_fields(config, ARCHITECTURE_RULES)
    heads, widths = config.num_attention_heads, tuple(config.hidden_sizes)
    if heads < 1 or any(width % heads for width in widths):
        raise ValueError(
            f"num_attention_heads: got {heads}, expected a divisor of every width in hidden_sizes={widths}. Change "
            "one of the two fields."
        )
    _check_patch_size(config)


def _check_patch_size(config: StockMobileViTConfig) -> None:
    """Require square patches that fit into the first feature map that is split into patches (stride 8)."""
    patch_size, image_size = config.patch_size, config.image_size
    if not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(
            f"patch_size: got {patch_size!r}, expected one positive number (patches are square). The paper uses 2."
        )
    smallest_side = image_size if isinstance(image_size, int) else min(image_size)
    feature_side = -(-smallest_side // 8)
    if patch_size > feature_side:
        raise ValueError(
            f"patch_size: got {patch_size}, expected at most {feature_side}, the side of the stride-8 feature map of "
            f"an image of image_size={image_size}. Use a smaller patch (the paper uses 2) or larger images."
        )


@strict
class MobileViTConfig(StockMobileViTConfig):
    r"""Stock transformers' `MobileViTConfig` with named variants and validation.

    Fields, `model_type` ("mobilevit") and the saved file match the stock class, so checkpoints load in both libraries.
    The defaults are those of MobileViT-S.

    Raises:
        ValueError: If no MobileViT can be built from the values (widths, heads, patch size, strides, dropout).

    Example:
        >>> MobileViTConfig.from_variant("xxs", num_labels=10).hidden_sizes
        [64, 80, 96]
    """

    model_type = "mobilevit"

    if TYPE_CHECKING:
        num_labels: int = 2
        # Stock code, too, computes with one number, whatever its annotation allows.
        patch_size: int = 2  # ty: ignore[incompatible-mutable-override]

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_architecture(self)

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> Self:
        """Return the configuration of a published variant.

        Args:
            name: `"xxs"`, `"xs"` or `"s"`, or the corresponding Hub name, such as `"mobilevit-xx-small"` or
                `"apple/mobilevit-small"`. A DeepLabv3 name (`"deeplabv3-mobilevit-small"`) also sets
                `output_stride=16` and `image_size=512`, as published.
            overrides: Any other field, such as `num_labels`, `id2label` or `output_stride`.

        Raises:
            ValueError: If the variant is unknown or a field is invalid.
        """
        variant, is_segmentation = resolve_variant(name)
        fields: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in VARIANTS[variant].items()
        }
        if is_segmentation:
            fields |= {"output_stride": 16, "image_size": 512}
        return cls(**fields | overrides)


@strict
class MobileViTBackboneConfig(BackboneConfigMixin, MobileViTConfig):
    r"""A `MobileViTConfig` with the selection of feature maps that `MobileViTBackbone` returns.

    Reads the `config.json` of any MobileViT checkpoint.

    Args:
        out_features: Names among `"stem"` (stride 2), `"stage1"` (2), `"stage2"` (4), `"stage3"` (8), `"stage4"`
            (16) and `"stage5"` (32), in this order. Default: the last one, unless `out_indices` is passed.
        out_indices: The same by index, 0 for the stem.
    """

    model_type = "mobilevit_backbone"

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, 6))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages after the stem, under the name that transformers' backbones use."""
        return len(self.stage_names) - 1

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config file; classifier and segmentation configurations are accepted as a backbone with a head."""
        config_dict, unused_kwargs = super().get_config_dict(*args, **kwargs)
        if config_dict.get("model_type") == MobileViTConfig.model_type:
            config_dict = {**config_dict, "model_type": cls.model_type}
            config_dict.pop("architectures", None)
        return config_dict, unused_kwargs


__all__ = ["MobileViTBackboneConfig", "MobileViTConfig"]
