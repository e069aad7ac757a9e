"""Configuration of MobileViT with an SSDLite head (MobileViT paper, section 4.2; SSD, arXiv 1512.02325)."""

import copy
import os
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_mobilevit import (
    MobileViTBackboneConfig,
    MobileViTConfig,
    check_architecture,
    check_field,
    check_positive,
    resolve_variant,
)

# Pseudo-stride of a level with a single cell that covers the image: global average pooling of the last features.
GLOBAL_STRIDE = -1

# Levels and anchors of the paper.
FEATURE_STRIDES = (16, 32, 64, 128, 256, GLOBAL_STRIDE)
LEVEL_CHANNELS = (512, 256, 256, 128, 128, 64)
ANCHOR_SCALES = tuple(0.1 + i * (1.05 - 0.1) / 6 for i in range(7))
ANCHOR_RATIOS = (*[(2.0, 3.0)] * 5, (2.0,))

# Backbone stage by stride. Coarser levels are computed from the last one.
BACKBONE_STAGES = {8: "stage3", 16: "stage4", 32: "stage5"}


@strict
class MobileViTSSDLiteConfig(PreTrainedConfig):
    r"""Configuration of `MobileViTSSDLiteForObjectDetection`: architecture, anchors and loss.

    The defaults are those of the paper. `id2label` lists the object classes only; the background class, index 0 of
    the model's `logits`, is not included. Preprocessing and post-processing (image size, score threshold, NMS) belong
    to the image processor.

    A level is a feature map with its own head. Fields with one entry per level follow the order of `feature_strides`.

    Args:
        backbone_config: A `MobileViTBackboneConfig`, or its fields as a dict. Default: MobileViT-S. Its
            `out_features` are derived from `feature_strides`.
        image_size: Side of the square training images, in pixels.
        feature_strides: Strides of the levels, finest first: consecutive strides of the backbone (8, 16, 32) that end
            with 32; then 64, 128, ... by extra layers; optionally -1, a single cell that covers the image.
        level_channels: Channels of each level's head, and of the extra layer's output.
        head_act: Activation in extra layers and heads.
        anchor_scales: Side of each level's square anchor, as a fraction of the image, plus one more scale, which
            determines the last level's second square.
        anchor_ratios: Aspect ratios r of each level; each adds an anchor of r and one of 1 / r.
        center_variance: Unit of the predicted center offsets, in anchor sizes.
        size_variance: Unit of the predicted logarithms of the size.
        match_iou_threshold: Minimum IoU at which an anchor is matched to an object.
        match_iou_eps: Constant added to the union in the IoU, so that empty boxes have an IoU of 0.
        negatives_per_positive: Hardest background anchors in the loss per matched anchor (hard negative mining).
        smooth_l1_beta: Transition of the localization loss from quadratic to linear.
        localization_loss_weight: Weight of the localization loss.
        recommended_threshold: Score threshold with the highest F1 on the validation images; None if not measured.

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

    if TYPE_CHECKING:  # after `__post_init__`
        num_labels: int = 2
        backbone_config: MobileViTBackboneConfig = MobileViTBackboneConfig()
    else:
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
        self.label2id = self.label2id or {name: int(i) for i, name in (self.id2label or {}).items()}
        check_detector(self)

    def _make_backbone_config(self, config: dict[str, Any] | PreTrainedConfig | None) -> MobileViTBackboneConfig:
        """Return a new backbone configuration with the stages this detector requires."""
        fields: dict[str, Any] = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
        model_type = fields.pop("model_type", MobileViTBackboneConfig.model_type)
        if model_type not in (MobileViTConfig.model_type, MobileViTBackboneConfig.model_type):
            raise ValueError(
                f"backbone_config: got model_type {model_type!r}, expected {MobileViTBackboneConfig.model_type!r}. "
                "Pass a MobileViTBackboneConfig."
            )
        for name in ("architectures", "dtype", "id2label", "label2id", "num_labels", "out_indices", "stage_names"):
            fields.pop(name, None)  # of the checkpoint's previous head, or derived from other fields
        fields["out_features"] = [name for s, name in BACKBONE_STAGES.items() if s in self.feature_strides]
        fields["image_size"] = self.image_size
        return MobileViTBackboneConfig(**fields)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config file, and reject those of other model types instead of falling back to defaults."""
        config_dict, unused_kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path}: got model_type {model_type!r}, expected {cls.model_type!r}. To "
                "start a detector from a MobileViT classifier or backbone, use "
                "MobileViTSSDLiteForObjectDetection.from_backbone."
            )
        # `transformers.pipeline` gets here only if it runs the code of the checkpoint.
        if kwargs.get("_from_pipeline"):
            from .pipeline_mobilevit_ssdlite import CUSTOM_PIPELINES

            config_dict["custom_pipelines"] = copy.deepcopy(CUSTOM_PIPELINES)
        return config_dict, unused_kwargs

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "MobileViTSSDLiteConfig":
        """Return the configuration of a published variant.

        Args:
            name: `"xxs"`, `"xs"` or `"s"`, or the corresponding Hub name, see `MobileViTConfig.from_variant`.
            overrides: Any other field, such as `id2label`, or the output of `fit_anchors`. A dict as
                `backbone_config` overrides fields of the variant's backbone.

        Raises:
            ValueError: If the variant is unknown or a field is invalid.
        """
        variant, _ = resolve_variant(name)
        backbone_config = MobileViTBackboneConfig.from_variant(variant, **overrides.pop("backbone_config", {}))
        return cls(backbone_config=backbone_config, **overrides)

    @property
    def anchors_per_cell(self) -> list[int]:
        """Number of anchors per cell of each level: two squares, and two per aspect ratio."""
        return [2 + 2 * len(ratios) for ratios in self.anchor_ratios]


def _is_pyramid(strides: Sequence[int]) -> bool:
    pyramid = strides[:-1] if GLOBAL_STRIDE in strides[-1:] else strides
    return 32 in pyramid and pyramid[0] >= 8 and all(fine * 2 == coarse for fine, coarse in pairwise(pyramid))


def _are_positive(values: Sequence[float]) -> bool:
    return all(value > 0 for value in values)


def check_detector(config: MobileViTSSDLiteConfig) -> None:
    """Raise a ValueError for the first field with a value that no detector can be built from."""
    check_architecture(config.backbone_config)
    stride = config.backbone_config.output_stride
    if stride != 32:
        raise ValueError(
            f"backbone_config.output_stride: got {stride}, expected 32. Set the strides by feature_strides."
        )
    check = partial(check_field, config)
    check(
        "feature_strides",
        _is_pyramid,
        "8, 16 or 32, then twice the stride before up to at least 32, and optionally -1 at the end",
        "The paper uses [16, 32, 64, 128, 256, -1].",
    )
    check("level_channels", _are_positive, "positive numbers", "The paper uses 512 to 64.")
    check("anchor_scales", _are_positive, "positive fractions of the image", "The paper uses 0.1 to 1.05.")
    check(
        "anchor_ratios",
        lambda levels: all(map(_are_positive, levels)),
        "a list of positive ratios per level",
        "The paper uses [2, 3], and [2] for the last level.",
    )
    check_positive(config, "image_size", "center_variance", "size_variance", "match_iou_eps", "smooth_l1_beta")
    check("negatives_per_positive", lambda count: count >= 0, "0 or more", "The paper uses 3.")
    check("localization_loss_weight", lambda weight: weight >= 0, "0 or more", "The paper uses 1.0.")
    check("match_iou_threshold", lambda iou: 0 < iou <= 1, "an IoU in (0, 1]", "The paper uses 0.5.")
    check("head_act", lambda name: name in ACT2FN, "an activation of transformers", "The paper uses 'relu'.")
    check(
        "id2label",
        lambda names: len(names) > 0 and sorted(names) == list(range(len(names))),
        "a name for each of 0, 1, 2, ... without gaps",
        "Number the object classes from 0; the background has no entry.",
    )
    levels = len(config.feature_strides)
    for name, count in (("level_channels", levels), ("anchor_scales", levels + 1), ("anchor_ratios", levels)):
        expected = f"{count} entries for {levels} levels"
        check(name, lambda values, n=count: len(values) == n, expected, "Set it together with feature_strides.")


# A saved detector brings its code along, for machines where this package is not installed.
MobileViTSSDLiteConfig.register_for_auto_class()

__all__ = ["MobileViTSSDLiteConfig"]
