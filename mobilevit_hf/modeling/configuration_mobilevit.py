"""MobileViT configurations: model and backbone."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub.dataclasses import strict
from transformers import MobileViTConfig as StockMobileViTConfig
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .variants_mobilevit import HUB_NAMES, VARIANTS

# Arguments of `from_pretrained` that are passed to the download.
HUB_KWARGS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")


def resolve_variant(name: str) -> tuple[str, bool]:
    """Return the variant for a name (see `from_variant`), and whether the name refers to a DeepLabv3 checkpoint."""
    base = str(name).lower().rpartition("/")[2]
    bare = base.removeprefix("deeplabv3-")
    variant = HUB_NAMES.get(bare, bare)
    if variant not in VARIANTS:
        expected = ", ".join(f"{short!r} ({hub})" for hub, short in HUB_NAMES.items())
        raise ValueError(
            f"Unknown MobileViT variant: got {name!r}, expected one of {expected}. "
            "For other widths, pass them to MobileViTConfig(hidden_sizes=..., neck_hidden_sizes=...)."
        )
    return variant, base != bare


def check_field(config: PreTrainedConfig, name: str, is_valid: Callable[[Any], bool], expected: str, fix: str) -> None:
    """Raise a ValueError if the value of a field isn't valid."""
    if not is_valid(value := getattr(config, name)):
        raise ValueError(f"{name}: got {value!r}, expected {expected}. {fix}")


def check_positive(config: PreTrainedConfig, *names: str) -> None:
    """Raise a ValueError for the first field that isn't a positive number."""
    for name in names:
        fix = f"The default is {getattr(type(config), name)}."
        check_field(config, name, lambda value: value > 0, "a positive number", fix)


def check_architecture(config: StockMobileViTConfig) -> None:
    """Raise a ValueError for the first field with a value that no MobileViT can be built from."""
    check = partial(check_field, config)
    check("hidden_sizes", lambda sizes: len(sizes) == 3, "3 widths", "Pass one width per MobileViT block.")
    check(
        "neck_hidden_sizes",
        lambda sizes: len(sizes) == 7,
        "7 channel counts",
        "Pass those of the stem, the five encoder layers and the last convolution.",
    )
    check("atrous_rates", lambda rates: len(rates) == 3, "3 dilation rates", "The paper uses (6, 12, 18).")
    for name in ("hidden_sizes", "neck_hidden_sizes", "atrous_rates"):
        check(name, lambda sizes: min(sizes) > 0, "positive numbers", "See VARIANTS for published values.")
    check_positive(config, "num_channels", "aspp_out_channels", "mlp_ratio", "expand_ratio", "layer_norm_eps")
    check(
        "output_stride",
        lambda stride: stride in (8, 16, 32),
        "8, 16 or 32",
        "Use 32 for classification and detection, 16 for the paper's DeepLabv3.",
    )
    check("conv_kernel_size", lambda size: size > 0 and size % 2 == 1, "an odd number", "The paper uses 3.")
    check("hidden_act", lambda name: name in ACT2FN, "an activation of transformers", "The paper uses 'silu'.")
    for layer in ("hidden", "attention_probs", "classifier", "aspp"):
        check(f"{layer}_dropout_prob", lambda p: 0 <= p < 1, "a probability in [0, 1)", "Use 0 to disable dropout.")
    widths = tuple(config.hidden_sizes)
    check(
        "num_attention_heads",
        lambda heads: heads >= 1 and not any(width % heads for width in widths),
        f"a divisor of every width in hidden_sizes={widths}",
        "Change one of the two fields.",
    )
    check(
        "patch_size",
        lambda size: isinstance(size, int) and size >= 1,
        "one positive number (patches are square)",
        "The paper uses 2.",
    )
    # Patches have to fit into the first feature map that is split into patches.
    image_size = config.image_size
    feature_side = -(-(image_size if isinstance(image_size, int) else min(image_size)) // 8)
    check(
        "patch_size",
        lambda size: size <= feature_side,
        f"at most {feature_side}, the side of the stride-8 feature map of an image of image_size={image_size}",
        "Use a smaller patch (the paper uses 2) or larger images.",
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
            key: list(value) if isinstance(value, tuple) else value for key, value in VARIANTS[variant].items()
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
