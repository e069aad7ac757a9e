"""MobileViT encoder, backbone, classification and segmentation models (ICLR 2022, arXiv 2110.02178)."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils import can_return_tuple

from .configuration_mobilevit import MobileViTBackboneConfig, MobileViTConfig, check_architecture
from .layers_mobilevit import MobileViTConvLayer, MobileViTDeepLabV3, MobileViTEncoder


@contextmanager
def _frozen_batch_statistics(model: nn.Module) -> Generator[None, None, None]:
    """Run batch normalization in training mode without updating the running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    recorded = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, recorded, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


def check_pixel_values(pixel_values: Any, config: Any) -> Tensor:
    """Return a batch of images (B, C, H, W), or raise a ValueError if a model of this configuration can't take it."""
    if not isinstance(pixel_values, Tensor):
        got = None if pixel_values is None else type(pixel_values).__name__
        raise ValueError(
            f"pixel_values: got {got}, expected a tensor of shape (batch, channels, height, width). "
            'Pass the output of the image processor: model(**processor(images, return_tensors="pt")).'
        )
    if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values: got shape {tuple(pixel_values.shape)}, expected (batch, {config.num_channels}, "
            "height, width). Use the image processor, or add the batch dimension with .unsqueeze(0)."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values: got {pixel_values.dtype}, expected floating-point values in 0..1. Use the image "
            "processor, or divide by 255."
        )
    # A graph can't raise, and comparing sizes would specialize it.
    if not torch.compiler.is_exporting():
        if len(pixel_values) == 0:
            raise ValueError("pixel_values: got an empty batch, expected at least one image. Skip it.")
        if min(pixel_values.shape[-2:]) < config.output_stride:
            raise ValueError(
                f"pixel_values: got images of {pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels, expected "
                f"at least {config.output_stride} a side (the model's stride). Resize them first."
            )
    return pixel_values


class MobileViTPreTrainedModel(PreTrainedModel):
    """Base class of the MobileViT models: initialization, input validation, gradient checkpointing."""

    if TYPE_CHECKING:
        config: Any  # an instance of `config_class`
        conv_stem: MobileViTConvLayer  # of models that call `_prepare_pixels`
    config_class = MobileViTConfig
    base_model_prefix = "mobilevit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["MobileViTInvertedResidual", "MobileViTLayer"]  # noqa: RUF012
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the official code (v0.1) did for the published checkpoints."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        else:
            super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            init.zeros_(module.bias)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, *args: Any, **kwargs: Any
    ) -> None:
        # The backward pass runs each block a second time, which must not update the running statistics again.
        use_reentrant = getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant", False)
        if enable and not use_reentrant:
            gradient_checkpointing_func = partial(
                gradient_checkpointing_func, use_reentrant=False, context_fn=self._checkpoint_contexts
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, *args, **kwargs)

    def _checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_batch_statistics(self)

    def _prepare_pixels(self, pixel_values: Tensor | None) -> Tensor:
        """Validate a batch of images and convert it to the dtype of the weights and to channels_last."""
        pixel_values = check_pixel_values(pixel_values, self.config)
        return pixel_values.to(dtype=self.conv_stem.convolution.weight.dtype, memory_format=torch.channels_last)

    def _check_labels(self, labels: Tensor, shape: tuple[int, ...], ignore_index: int) -> Tensor:
        """Validate class indices, before they trigger an unrecoverable CUDA assert, and convert them to int64."""
        if labels.is_floating_point() or labels.shape != shape:
            raise ValueError(
                f"labels: got {labels.dtype} of shape {tuple(labels.shape)}, expected class indices (torch.long) of "
                f"shape {tuple(shape)}. Pass one index each, not scores or one-hot vectors."
            )
        labels = labels.long()
        if torch.compiler.is_compiling():  # a graph can't depend on values
            return labels
        invalid = labels[(labels != ignore_index) & ((labels < 0) | (labels >= self.config.num_labels))]
        if invalid.numel():
            raise ValueError(
                f"labels: got class {int(invalid[0])}, expected 0..{self.config.num_labels - 1} ({ignore_index} is "
                f"ignored). Load the model with num_labels={int(invalid.max()) + 1} or more, or correct the labels."
            )
        return labels


class MobileViTModel(MobileViTPreTrainedModel):
    """MobileViT encoder without a task head.

    Args:
        config: Configuration of the model.
        expand_output: Add the 1x1 convolution to `neck_hidden_sizes[-1]` channels and global average pooling, as
            used for classification but not for segmentation.
    """

    def __init__(self, config: MobileViTConfig, expand_output: bool = True) -> None:
        super().__init__(config)
        check_architecture(config)
        channels, activation = config.neck_hidden_sizes, config.hidden_act
        self.expand_output = expand_output
        self.conv_stem = MobileViTConvLayer(config.num_channels, channels[0], 3, stride=2, activation=activation)
        self.encoder = MobileViTEncoder(config)
        if expand_output:
            self.conv_1x1_exp = MobileViTConvLayer(channels[5], channels[6], 1, activation=activation)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Extract features.

        Args:
            pixel_values: (B, 3, H, W) floating point in 0..1, with H and W of at least the output stride, in the
                channel order of the training (BGR for Apple's weights).
            output_hidden_states: Also return the feature maps of the five encoder layers.
            output_attentions: Also return the attention weights of the nine transformer layers, each
                (B * P, heads, N, N). This switches those layers to eager attention.

        Returns:
            `last_hidden_state` (B, C, H / 32, W / 32) and, with `expand_output`, `pooler_output` (B, C).

        Raises:
            ValueError: If the shape or dtype of `pixel_values` is invalid, or it is smaller than the output stride.
        """
        output_hidden_states = default_to(output_hidden_states, self.config.output_hidden_states)
        output_attentions = default_to(output_attentions, self.config.output_attentions)
        features = self.conv_stem(self._prepare_pixels(pixel_values))
        encoded = self.encoder(
            features, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        features = encoded.last_hidden_state
        if self.expand_output:
            features = self.conv_1x1_exp(features)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=features.mean(dim=(-2, -1)) if self.expand_output else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def default_to(value: bool | None, default: bool | None) -> bool:
    """Return an argument of `forward`, or the configured value if it is None."""
    return bool(default if value is None else value)


class MobileViTForImageClassification(MobileViTPreTrainedModel):
    """MobileViT with a linear classifier on the pooled features (paper, section 4.1)."""

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mobilevit = MobileViTModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        width = config.neck_hidden_sizes[-1]
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (B, 3, H, W) floating point, see `MobileViTModel.forward`.
            labels: (B,) class indices in 0..num_labels-1, -100 for images to ignore; or floating-point targets if
                `problem_type` is "regression" or "multi_label_classification".
            output_hidden_states, output_attentions: See `MobileViTModel.forward`.
            kwargs: Passed to the loss, such as the `num_items_in_batch` of `Trainer`.

        Returns:
            `logits` (B, num_labels), and `loss` if labels are passed.

        Raises:
            ValueError: If the images are invalid, see `MobileViTModel.forward`, or a label is out of range.
        """
        outputs = self.mobilevit(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            if self._takes_class_indices(labels):
                labels = self._check_labels(labels.flatten(), logits.shape[:1], ignore_index=-100)
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _takes_class_indices(self, labels: Tensor) -> bool:
        """Return whether the loss is cross-entropy; transformers infers an unset `problem_type` from the labels."""
        if self.config.problem_type is None:
            return self.num_labels > 1 and not labels.is_floating_point()
        return self.config.problem_type == "single_label_classification"


class MobileViTForSemanticSegmentation(MobileViTPreTrainedModel):
    """MobileViT with a DeepLabv3 head (paper, section 4.2.2, with `output_stride` 16)."""

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mobilevit = MobileViTModel(config, expand_output=False)
        self.segmentation_head = MobileViTDeepLabV3(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput:
        """Classify pixels, at the resolution of the features.

        Args:
            pixel_values: (B, 3, H, W) floating point, see `MobileViTModel.forward`.
            labels: (B, height, width) class indices in 0..num_labels-1, `semantic_loss_ignore_index` (255) for pixels
                to ignore. For the loss, the logits are resized bilinearly to this size.
            output_hidden_states, output_attentions: See `MobileViTModel.forward`.

        Returns:
            `logits` (B, num_labels, H / output_stride, W / output_stride), and `loss` if labels are passed.

        Raises:
            ValueError: If the images are invalid, see `MobileViTModel.forward`, a label is out of range, or labels are
                passed to a model with a single class.
        """
        if labels is not None and self.num_labels == 1:
            raise ValueError("num_labels: got 1, expected at least 2 to train. Add a background class.")
        outputs = self.mobilevit(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.segmentation_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            shape = (logits.shape[0], *labels.shape[-2:])
            labels = self._check_labels(labels, shape, self.config.semantic_loss_ignore_index)
            resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(resized, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MobileViTBackbone(BackboneMixin, MobileViTPreTrainedModel):
    """MobileViT as a transformers backbone, for detectors and other models built on feature maps.

    `MobileViTBackbone.from_pretrained` reads any MobileViT checkpoint and ignores its head. Pass a
    `MobileViTBackboneConfig` as the `backbone_config` of a detector's configuration.
    """

    config: MobileViTBackboneConfig
    has_attentions = True
    _keys_to_ignore_on_load_unexpected = [r"conv_1x1_exp\.", r"^classifier\.", r"^segmentation_head\."]  # noqa: RUF012

    def __init__(self, config: MobileViTBackboneConfig) -> None:
        super().__init__(config)
        check_architecture(config)
        channels, activation = config.neck_hidden_sizes, config.hidden_act
        self.num_features = list(channels[:6])
        self.conv_stem = MobileViTConvLayer(config.num_channels, channels[0], 3, stride=2, activation=activation)
        self.encoder = MobileViTEncoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Return the feature maps listed in `config.out_features`, finest first.

        Args:
            pixel_values: (B, 3, H, W) floating point, see `MobileViTModel.forward`.
            output_hidden_states: Also return the feature maps of the stem and of all five encoder layers.
            output_attentions: See `MobileViTModel.forward`.

        Raises:
            ValueError: If the images are invalid, see `MobileViTModel.forward`.
        """
        output_hidden_states = default_to(output_hidden_states, self.config.output_hidden_states)
        output_attentions = default_to(output_attentions, self.config.output_attentions)
        stem = self.conv_stem(self._prepare_pixels(pixel_values))
        encoded = self.encoder(stem, output_hidden_states=True, output_attentions=output_attentions)
        stages = (stem, *encoded.hidden_states)
        return BackboneOutput(
            feature_maps=tuple(stages[self.stage_names.index(name)] for name in self.out_features),
            hidden_states=stages if output_hidden_states else None,
            attentions=encoded.attentions,
        )


__all__ = [
    "MobileViTBackbone",
    "MobileViTForImageClassification",
    "MobileViTForSemanticSegmentation",
    "MobileViTModel",
    "MobileViTPreTrainedModel",
]
