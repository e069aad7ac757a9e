"""The configuration of MobileViT with an SSDLite head (MobileViT paper, section 4.2; SSD, arXiv 1512.02325)."""

import os
from itertools import pairwise
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_mobilevit import MobileViTBackboneConfig, MobileViTConfig, check_architecture, resolve_variant

# The stride that stands for one cell over the whole image: the last level's features are pooled.
GLOBAL_STRIDE = -1

# The paper's levels and anchors.
FEATURE_STRIDES = (16, 32, 64, 128, 256, GLOBAL_STRIDE)
LEVEL_CHANNELS = (512, 256, 256, 128, 128, 64)
ANCHOR_SCALES = tuple(0.1 + i * (1.05 - 0.1) / 6 for i in range(7))
ANCHOR_RATIOS = (*[(2.0, 3.0)] * 5, (2.0,))

# Where each stride of the backbone comes from. Coarser levels are made from the last one.
BACKBONE_STAGES = {8: "stage3", 16: "stage4", 32: "stage5"}


@strict
class MobileViTSSDLiteConfig(PreTrainedConfig):
    r"""The architecture of `MobileViTSSDLiteForObjectDetection` and the constants of its anchors and loss.

    The defaults are the paper's. `id2label` names the objects only: the background, which the model's `logits` have
    first, is not among them. What happens to an image before and to the boxes behind the model (size, score
    threshold, suppression) is the image processor's.

    A level is a feature map with a head of its own. Fields with one entry for each level are in the order of
    `feature_strides`.

    Args:
        backbone_config: The `MobileViTBackboneConfig`, or its fields. MobileViT-S if not given. Its `out_features`
            follow from `feature_strides`.
        image_size: Side of the square images the model is trained on, in pixels.
        feature_strides: The levels, finest first: some of the backbone's strides 8, 16, 32, the last among them; then
            64, 128, ... by extra layers; -1 for one cell over the whole image, last if at all.
        level_channels: Channels of each level's head; what an extra layer puts out too.
        head_act: Activation in extra layers and heads.
        anchor_scales: Side of the square anchor of each level, as a fraction of the image, and one more, of which
            the last level's second square is made.
        anchor_ratios: For each level the aspect ratios r; each gives an anchor of r and one of 1 / r.
        center_variance: Unit in which the heads predict a center's offset, in anchor sizes.
        size_variance: Unit in which they predict the logarithm of a size.
        match_iou_threshold: The least overlap (IoU) at which an anchor is made to find an object.
        match_iou_eps: Added to the union when overlaps are computed, so that empty boxes have none.
        negatives_per_positive: How many of the worst background anchors count for each matched one (hard negatives).
        smooth_l1_beta: Where the localisation loss turns from quadratic to linear.
        localization_loss_weight: Factor on the localisation loss.
        recommended_threshold: The score above which a trained detector's answers are best taken for objects (highest
            F1 on its validation images); None if it was not measured.

    Raises:
        ValueError: If no detector can be built from the values.

    Example:
        >>> config = MobileViTSSDLiteConfig.from_variant("xxs", id2label={0: "cat", 1: "dog"})
        >>> config.num_labels, config.anchors_per_cell
        (2, [6, 6, 6, 6, 6, 4])
    """

    model_type = "mobilevit_ssdlite"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": MobileViTBackboneConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["loss_dict", "hidden_states", "attentions"]

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    image_size: int = 320
    feature_strides: list[int] | tuple[int, ...] = FEATURE_STRIDES
    level_channels: list[int] | tuple[int, ...] = LEVEL_CHANNELS
    head_act: str = "relu"
    anchor_scales: list[float | int] | tuple[float | int, ...] = ANCHOR_SCALES
    anchor_ratios: list[Any] | tuple[Any, ...] = ANCHOR_RATIOS
    center_variance: float | int = 0.1
    size_variance: float | int = 0.2
    match_iou_threshold: float | int = 0.5
    match_iou_eps: float | int = 1e-5
    negatives_per_positive: int = 3
    smooth_l1_beta: float | int = 1.0
    localization_loss_weight: float | int = 1.0
    recommended_threshold: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("feature_strides", "level_channels", "anchor_scales"):
            setattr(self, name, list(getattr(self, name)))
        self.anchor_ratios = [list(ratios) for ratios in self.anchor_ratios]
        self.backbone_config = self._make_backbone_config(self.backbone_config)
        super().__post_init__(**kwargs)
        self.label2id = self.label2id or {name: i for i, name in self.id2label.items()}
        check_detector(self)

    def _make_backbone_config(self, given: dict[str, Any] | PreTrainedConfig | None) -> MobileViTBackboneConfig:
        """A backbone configuration of our own with the stages this detector needs; what was given stays as it is."""
        fields = given.to_dict() if isinstance(given, PreTrainedConfig) else dict(given or {})
        model_type = fields.pop("model_type", MobileViTBackboneConfig.model_type)
        if model_type not in (MobileViTConfig.model_type, MobileViTBackboneConfig.model_type):
            raise ValueError(
                f"backbone_config: got model_type {model_type!r}, expected {MobileViTBackboneConfig.model_type!r}. "
                "Give a MobileViTBackboneConfig."
            )
        for name in ("architectures", "dtype", "id2label", "label2id", "num_labels", "out_indices", "stage_names"):
            fields.pop(name, None)  # the head's that the backbone had before, or what follows from others
        fields["out_features"] = [name for s, name in BACKBONE_STAGES.items() if s in self.feature_strides]
        return MobileViTBackboneConfig(**{**fields, "image_size": self.image_size})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config file; a classifier's would silently give a detector of another size."""
        config_dict, unused_kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path}: got model_type {model_type!r}, expected {cls.model_type!r}. To "
                "start a detector from a MobileViT classifier or backbone, use "
                "MobileViTSSDLiteForObjectDetection.from_backbone."
            )
        return config_dict, unused_kwargs

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "MobileViTSSDLiteConfig":
        """The configuration of a published size.

        Args:
            name: `"xxs"`, `"xs"` or `"s"`, or the Hub's name for it, see `MobileViTConfig.from_variant`.
            overrides: Any other field, such as `id2label`, or what `ssdlite.fit_anchors` returns. A dict as
                `backbone_config` overrides fields of the variant's backbone.

        Raises:
            ValueError: If the variant is unknown or a value can't be used.
        """
        variant, _ = resolve_variant(name)
        backbone_config = MobileViTBackboneConfig.from_variant(variant, **overrides.pop("backbone_config", {}))
        return cls(backbone_config=backbone_config, **overrides)

    @property
    def anchors_per_cell(self) -> list[int]:
        """How many anchors each level has at every cell: two squares, and two for each ratio."""
        return [2 + 2 * len(ratios) for ratios in self.anchor_ratios]


def check_detector(config: MobileViTSSDLiteConfig) -> None:
    """Raise a ValueError that says got, expected and how to fix for every value no detector can be built from."""
    check_architecture(config.backbone_config)

    def require(ok: bool, field: str, expected: str, fix: str) -> None:
        if not ok:
            raise ValueError(f"{field}: got {getattr(config, field)!r}, expected {expected}. {fix}")

    stride = config.backbone_config.output_stride
    if stride != 32:
        raise ValueError(
            f"backbone_config.output_stride: got {stride}, expected 32. Strides are feature_strides here."
        )
    strides = list(config.feature_strides)
    pyramid = strides[:-1] if strides[-1:] == [GLOBAL_STRIDE] else strides
    require(
        32 in pyramid and pyramid[0] >= 8 and all(fine * 2 == coarse for fine, coarse in pairwise(pyramid)),
        "feature_strides",
        "8, 16 or 32, then twice the stride before up to 32 or further, and -1 at the end if wanted",
        "The paper's are [16, 32, 64, 128, 256, -1].",
    )
    levels = len(strides)
    for name, count in (("level_channels", levels), ("anchor_scales", levels + 1), ("anchor_ratios", levels)):
        require(
            len(getattr(config, name)) == count,
            name,
            f"{count} entries for {levels} levels",
            "Change it together with feature_strides.",
        )
    require(min(config.level_channels) > 0, "level_channels", "positive numbers", "The paper's are 512 to 64.")
    require(
        all(scale > 0 for scale in config.anchor_scales),
        "anchor_scales",
        "positive fractions of the image",
        "The paper's run from 0.1 to 1.05.",
    )
    require(
        all(ratio > 0 for ratios in config.anchor_ratios for ratio in ratios),
        "anchor_ratios",
        "for each level a list of positive ratios",
        "The paper's are [2, 3] and [2] for the last level.",
    )
    for name in ("image_size", "center_variance", "size_variance", "match_iou_eps", "smooth_l1_beta"):
        require(getattr(config, name) > 0, name, "a positive number", f"The default is {getattr(type(config), name)}.")
    for name in ("negatives_per_positive", "localization_loss_weight"):
        require(getattr(config, name) >= 0, name, "0 or more", "The paper's are 3 and 1.")
    require(0 < config.match_iou_threshold <= 1, "match_iou_threshold", "an overlap in (0, 1]", "The paper's is 0.5.")
    require(config.head_act in ACT2FN, "head_act", "an activation transformers knows", "The paper's is 'relu'.")
    ids = sorted(config.id2label)
    require(
        len(ids) > 0 and ids == list(range(len(ids))),
        "id2label",
        "a name for each of 0, 1, 2, ... without gaps",
        "Number the object classes from 0; the background has no entry.",
    )


__all__ = ["MobileViTSSDLiteConfig"]
