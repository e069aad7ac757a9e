"""MobileViT with an SSDLite head: object detection (MobileViT paper, section 4.2; SSD, arXiv 1512.02325)."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.utils import ModelOutput, can_return_tuple

from .anchors_ssdlite import make_anchors
from .boxes_ssdlite import decode_boxes, encode_boxes
from .configuration_mobilevit import HUB_KWARGS, MobileViTBackboneConfig, MobileViTConfig
from .configuration_mobilevit_ssdlite import GLOBAL_STRIDE, MobileViTSSDLiteConfig, check_detector
from .layers_mobilevit import MobileViTConvLayer
from .loss_ssdlite import multibox_loss
from .matcher_ssdlite import check_labels, match_anchors
from .modeling_mobilevit import MobileViTBackbone, MobileViTPreTrainedModel, default_to


@dataclass
class MobileViTSSDLiteObjectDetectionOutput(ModelOutput):
    """Output of the detector, for A anchors and K object classes.

    Attributes:
        loss: Sum of `loss_dict`, if labels are passed.
        loss_dict: `loss_ce` and `loss_bbox`.
        logits: (B, A, 1 + K) before the softmax, background at index 0.
        pred_boxes: (B, A, 4) (cx, cy, w, h) as fractions of the image, float32, not clipped.
        hidden_states: Feature maps of the backbone's stem and encoder layers, if requested.
        attentions: Attention weights of the backbone, if requested.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def level_name(stride: int) -> str:
    """Return a level's name in the model's parameters."""
    return "pooled" if stride == GLOBAL_STRIDE else f"stride_{stride}"


class MobileViTSSDLiteExtraLayer(nn.Module):
    """Separable convolution of stride 2: (B, C, H, W) → (B, C', H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int, activation: str) -> None:
        super().__init__()
        self.depthwise = MobileViTConvLayer(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.pointwise = MobileViTConvLayer(in_channels, out_channels, 1, activation=activation)

    def forward(self, features: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(features))


class MobileViTSSDLiteGlobalLayer(nn.Module):
    """Global average pooling and projection: (B, C, H, W) → (B, C', 1, 1)."""

    def __init__(self, in_channels: int, out_channels: int, activation: str) -> None:
        super().__init__()
        self.pointwise = MobileViTConvLayer(in_channels, out_channels, 1, normalization=False, activation=activation)

    def forward(self, features: Tensor) -> Tensor:
        return self.pointwise(features.mean(dim=(-2, -1), keepdim=True))


class MobileViTSSDLiteLevelHead(nn.Module):
    """Locations and class logits of a level's anchors: (B, C, H, W) → (B, H * W * anchors, 4 + 1 + K)."""

    def __init__(
        self, in_channels: int, channels: int, num_anchors: int, num_outputs: int, activation: str, *, is_global: bool
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.projection = self.depthwise = None
        if not is_global:
            if in_channels != channels:
                self.projection = MobileViTConvLayer(in_channels, channels, 1, activation=activation)
            self.depthwise = MobileViTConvLayer(channels, channels, 3, groups=channels)
        self.predictor = MobileViTConvLayer(channels, num_anchors * num_outputs, 1, bias=True, normalization=False)

    def forward(self, features: Tensor) -> Tensor:
        for layer in (self.projection, self.depthwise):
            if layer is not None:
                features = layer(features)
        predictions = self.predictor(features)
        # (B, anchors * outputs, H, W) → (B, H, W, anchors * outputs) → (B, H * W * anchors, outputs)
        return predictions.permute(0, 2, 3, 1).reshape(predictions.shape[0], -1, self.num_outputs)


class MobileViTSSDLiteHead(nn.Module):
    """SSDLite head (MobileNetV2's variant of SSD): extra layers after the backbone, and one head per level.

    Feature maps of the backbone, finest first → logits (B, A, 1 + K), locations (B, A, 4) and (H, W) of each level.
    """

    def __init__(self, config: MobileViTSSDLiteConfig, feature_channels: Sequence[int]) -> None:
        super().__init__()
        activation = config.head_act
        self.extra_layers, self.level_heads = nn.ModuleDict(), nn.ModuleDict()
        channels = dict(zip(config.feature_strides, feature_channels, strict=False))
        previous = feature_channels[-1]
        for stride, width, num_anchors in zip(
            config.feature_strides, config.level_channels, config.anchors_per_cell, strict=True
        ):
            name, is_global = level_name(stride), stride == GLOBAL_STRIDE
            if stride not in channels:
                layer = MobileViTSSDLiteGlobalLayer if is_global else MobileViTSSDLiteExtraLayer
                self.extra_layers[name] = layer(previous, width, activation)
                channels[stride] = previous = width
            self.level_heads[name] = MobileViTSSDLiteLevelHead(
                channels[stride], width, num_anchors, 4 + 1 + config.num_labels, activation, is_global=is_global
            )

    def forward(self, feature_maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        features = list(feature_maps)
        for layer in self.extra_layers.values():
            features.append(self._downsample(layer, features[-1]))
        predictions = [head(level) for head, level in zip(self.level_heads.values(), features, strict=True)]
        locations = torch.cat([p[..., :4] for p in predictions], dim=1)
        logits = torch.cat([p[..., 4:] for p in predictions], dim=1)
        return logits, locations, [(level.shape[-2], level.shape[-1]) for level in features]

    @staticmethod
    def _downsample(layer: nn.Module, features: Tensor) -> Tensor:
        # A bug in oneDNN: in bfloat16 on a CPU, the weight gradient of a depthwise convolution contains uninitialized
        # memory if the feature map is smaller than the kernel.
        if features.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return layer(features.float())
        return layer(features)


class MobileViTSSDLiteForObjectDetection(MobileViTPreTrainedModel):
    """MobileViT with an SSDLite head.

    Load a trained detector by `from_pretrained`; initialize one from a classification checkpoint by `from_backbone`.
    """

    config: MobileViTSSDLiteConfig
    base_model_prefix = ""  # the backbone has a configuration of its own: see `from_backbone`
    # The loss is normalized by the matches in the batch, so Trainer must not rescale it.
    accepts_loss_kwargs = False

    def __init__(self, config: MobileViTSSDLiteConfig) -> None:
        check_detector(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = MobileViTBackbone(config.backbone_config)
        self.head = MobileViTSSDLiteHead(config, self.backbone.channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the official code: Xavier in the head; the backbone initializes its own weights."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.xavier_uniform_(module.weight)

    @classmethod
    def from_backbone(
        cls, source: str | os.PathLike[str], *, id2label: Mapping[int, str], **kwargs: Any
    ) -> "MobileViTSSDLiteForObjectDetection":
        """Create a detector with a pretrained backbone and a randomly initialized head.

        `MobileViTSSDLiteImageProcessor.from_backbone` with the same source creates the matching image processor.

        Args:
            source: Directory or Hub id of a MobileViT classifier, segmentation model, backbone or encoder.
            id2label: Names of the object classes by index, from 0, without the background.
            kwargs: Other fields of `MobileViTSSDLiteConfig`, such as the output of `fit_anchors`; those in
                `HUB_KWARGS`, such as `revision` and `token`, are passed to the download.

        Raises:
            ValueError: If the source is not a MobileViT checkpoint or a field is invalid.
            OSError: If the source does not exist.

        Example:
            >>> model = MobileViTSSDLiteForObjectDetection.from_backbone(
            ...     "apple/mobilevit-xx-small", id2label={0: "cat", 1: "dog"}
            ... )
            >>> processor = MobileViTSSDLiteImageProcessor.from_backbone("apple/mobilevit-xx-small")
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_KWARGS if name in kwargs}
        backbone_config: Any = _read_backbone_fields(source, hub_kwargs)
        model = cls(MobileViTSSDLiteConfig(backbone_config=backbone_config, id2label=dict(id2label), **kwargs))
        # The new head is in float32, so the backbone is loaded in float32 regardless of the checkpoint's dtype.
        # transformers' annotation omits the tuple that output_loading_info returns.
        backbone, report = MobileViTBackbone.from_pretrained(  # ty: ignore[not-iterable]
            source, config=model.backbone.config, dtype=torch.float32, output_loading_info=True, **hub_kwargs
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"{source}: {len(missing)} weights of the backbone are missing, such as {missing[0]}. Pass a complete "
                "checkpoint written by save_pretrained."
            )
        model.backbone = backbone
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> MobileViTSSDLiteObjectDetectionOutput:
        """Predict a box and class logits for every anchor.

        Args:
            pixel_values: (B, 3, H, W) floating point, see `MobileViTModel.forward`; the paper uses 320x320.
            labels: One dict per image with `class_labels` (N,) integers in 0..K-1 and `boxes` (N, 4) (cx, cy, w, h) as
                fractions of the image; N may be 0. With an optional `iscrowd` (N,), boxes with 1 are ignored, as are
                any other entries.
            output_hidden_states, output_attentions: See `MobileViTBackbone.forward`.

        Returns:
            `logits` (B, A, 1 + K), `pred_boxes` (B, A, 4), and `loss` and `loss_dict` if labels are passed. Convert
            them to detections by the image processor's `post_process_object_detection`.

        Raises:
            ValueError: If the images are invalid, see `MobileViTModel.forward`, or a label is invalid.
        """
        outputs = self.backbone(
            pixel_values,
            output_hidden_states=default_to(output_hidden_states, self.config.output_hidden_states),
            output_attentions=default_to(output_attentions, self.config.output_attentions),
            return_dict=True,
        )
        assert pixel_values is not None  # the backbone rejects None
        self._check_batch(pixel_values)
        logits, locations, sizes = self.head(outputs.feature_maps)
        anchors = make_anchors(sizes, self.config.anchor_scales, self.config.anchor_ratios, logits.device)
        loss_dict = None
        if labels is not None:
            _check_finite(pixel_values)
            loss_dict = self._compute_loss(logits.float(), locations.float(), anchors, labels)
        return MobileViTSSDLiteObjectDetectionOutput(
            loss=loss_dict["loss_ce"] + loss_dict["loss_bbox"] if loss_dict else None,
            loss_dict=loss_dict,
            logits=logits,
            pred_boxes=decode_boxes(locations.float(), anchors, *self._variances),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_batch(self, pixel_values: Tensor) -> None:
        """Reject training batches with a single value per channel, which batch normalization can't normalize."""
        if not self.training or len(pixel_values) > 1:
            return
        coarsest = max(self.config.feature_strides)
        height, width = pixel_values.shape[-2:]
        if max(height, width) <= coarsest:
            raise ValueError(
                f"pixel_values: got a training batch of one image of {height}x{width} pixels, expected more images "
                f"or a side above {coarsest}. Drop the last incomplete batch (dataloader_drop_last=True), or change "
                "the batch size."
            )

    @property
    def _variances(self) -> tuple[float, float]:
        return self.config.center_variance, self.config.size_variance

    def _compute_loss(
        self, logits: Tensor, locations: Tensor, anchors: Tensor, labels: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Match the objects of each image to the anchors and compute the terms of the loss."""
        if not torch.compiler.is_compiling():  # a graph can't depend on values
            check_labels(labels, len(logits), self.num_labels)
        config = self.config
        matches = []
        for label in labels:
            boxes, class_labels = label["boxes"].to(anchors), label["class_labels"].to(anchors.device, torch.int64)
            if label.get("iscrowd") is not None:
                is_object = label["iscrowd"].to(anchors.device) == 0
                boxes, class_labels = boxes[is_object], class_labels[is_object]
            thresholds = config.match_iou_threshold, config.match_iou_eps
            matches.append(match_anchors(boxes, class_labels, anchors, *thresholds))
        target_labels, target_boxes = map(torch.stack, zip(*matches, strict=True))
        return multibox_loss(
            logits,
            locations,
            target_labels,
            encode_boxes(target_boxes, anchors, *self._variances),
            negatives_per_positive=config.negatives_per_positive,
            smooth_l1_beta=config.smooth_l1_beta,
            localization_loss_weight=config.localization_loss_weight,
        )


def _check_finite(pixel_values: Tensor) -> None:
    """Reject images whose NaN or infinite pixels would turn the weights into NaN."""
    # The sum is infinite or NaN if a pixel is, and four times as fast to compute as a check of each.
    if torch.compiler.is_compiling() or pixel_values.sum().isfinite():
        return
    is_invalid = ~pixel_values.isfinite().flatten(1).all(dim=1)
    if is_invalid.any():
        raise ValueError(
            f"pixel_values: image {int(is_invalid.nonzero()[0])} contains NaN or infinity, expected values in 0..1. "
            "Check the transforms before the image processor."
        )


def _read_backbone_fields(source: str | os.PathLike[str], hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Read a MobileViT checkpoint's configuration, with the output stride that a detector requires."""
    if Path(source).is_file():
        raise ValueError(f"{source} is a file, expected a directory or Hub id. Convert it: mobilevit convert FILE OUT")
    fields, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
    model_types = (MobileViTConfig.model_type, MobileViTBackboneConfig.model_type)
    if fields.get("model_type") not in model_types:
        raise ValueError(
            f"{source}: got model_type {fields.get('model_type')!r}, expected {' or '.join(map(repr, model_types))}. "
            "Pass a MobileViT classifier or backbone; load a detector with from_pretrained."
        )
    return {**fields, "output_stride": 32}  # weights do not depend on the stride of a segmentation model


# Makes `pipeline("object-detection")` accept the class, also if this module was loaded from the Hub.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["mobilevit_ssdlite"] = "MobileViTSSDLiteForObjectDetection"
MobileViTSSDLiteForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")

__all__ = ["MobileViTSSDLiteForObjectDetection", "MobileViTSSDLiteObjectDetectionOutput"]
