"""Layers of MobileViT (Mehta & Rastegari, ICLR 2022, arXiv 2110.02178), including encoder and DeepLabv3 head.

Module names match stock transformers, so checkpoints are interchangeable, and each module returns what stock's
returns, so tools that use hooks, trace or quantize work alike. Differences in execution: feature maps stay in
channels_last, so that unfolding into patches is one copy; attention uses `scaled_dot_product_attention`.

Shapes in comments: B batch, C channels, H and W height and width, P pixels per patch (patch_size²), N patches,
D width of the transformer.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .configuration_mobilevit import MobileViTConfig


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at most 10% below `value` (MobileNetV2's rule for channels)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class MobileViTConvLayer(nn.Module):
    """Convolution, optional batch normalization, optional activation. (B, C, H, W) → (B, C', H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
        normalization: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=bias
        )
        self.normalization = nn.BatchNorm2d(out_channels) if normalization else None
        self.activation = ACT2FN[activation] if activation else None

    def forward(self, features: Tensor) -> Tensor:
        for layer in (self.convolution, self.normalization, self.activation):
            if layer is not None:
                features = layer(features)
        return features


class MobileViTInvertedResidual(GradientCheckpointingLayer):
    """MobileNetV2's inverted residual (arXiv 1801.04381): expand, depthwise 3x3, reduce, skip if shapes match."""

    def __init__(
        self, config: MobileViTConfig, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        expanded = make_divisible(round(in_channels * config.expand_ratio))
        self.use_residual = stride == 1 and in_channels == out_channels
        self.expand_1x1 = MobileViTConvLayer(in_channels, expanded, 1, activation=config.hidden_act)
        self.conv_3x3 = MobileViTConvLayer(
            expanded, expanded, 3, stride=stride, groups=expanded, dilation=dilation, activation=config.hidden_act
        )
        self.reduce_1x1 = MobileViTConvLayer(expanded, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        reduced = self.reduce_1x1(self.conv_3x3(self.expand_1x1(features)))
        return features + reduced if self.use_residual else reduced


class MobileViTMobileNetLayer(nn.Module):
    """Sequence of inverted residuals; `stride` applies to the first."""

    def __init__(
        self, config: MobileViTConfig, in_channels: int, out_channels: int, stride: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList([MobileViTInvertedResidual(config, in_channels, out_channels, stride=stride)])
        for _ in range(num_blocks - 1):
            self.layer.append(MobileViTInvertedResidual(config, out_channels, out_channels))

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layer:
            features = layer(features)
        return features


def has_hooks(module: nn.Module) -> bool:
    """Return whether forward or backward hooks are registered on a module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


class MobileViTSelfAttention(nn.Module):
    """Multi-head self-attention, (B, N, D) → (B, N, D); the weights (B, heads, N, N) are appended to `attentions`."""

    def __init__(self, config: MobileViTConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, tokens: Tensor, attentions: list[Tensor] | None = None) -> Tensor:
        # (B, N, D) → (B, heads, N, D / heads)
        query, key, value = (
            project(tokens).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        # The fused kernels do not return the weights, which hooks of the dropout see as well.
        if attentions is not None or self.config._attn_implementation == "eager" or has_hooks(self.dropout):
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            weights = self.dropout(scores.softmax(dim=-1))
            if attentions is not None:
                attentions.append(weights)
            context = weights @ value
        else:
            dropout = self.dropout.p if self.dropout.training else 0.0
            context = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        # (B, heads, N, D / heads) → (B, N, D)
        return context.transpose(1, 2).flatten(2)


class MobileViTSelfOutput(nn.Module):
    """Output projection of the attention."""

    def __init__(self, config: MobileViTConfig, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.dense(tokens))


class MobileViTAttention(nn.Module):
    """Self-attention with output projection."""

    def __init__(self, config: MobileViTConfig, hidden_size: int) -> None:
        super().__init__()
        self.attention = MobileViTSelfAttention(config, hidden_size)
        self.output = MobileViTSelfOutput(config, hidden_size)

    def forward(self, tokens: Tensor, attentions: list[Tensor] | None = None) -> Tensor:
        return self.output(self.attention(tokens, attentions=attentions))


class MobileViTIntermediate(nn.Module):
    """First half of the feed-forward network."""

    def __init__(self, config: MobileViTConfig, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(tokens))


class MobileViTOutput(nn.Module):
    """Second half of the feed-forward network, added to the input of the first."""

    def __init__(self, config: MobileViTConfig, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, expanded: Tensor, tokens: Tensor) -> Tensor:
        return tokens + self.dropout(self.dense(expanded))


class MobileViTTransformerLayer(nn.Module):
    """Pre-norm transformer layer, (B, N, D) → (B, N, D)."""

    def __init__(self, config: MobileViTConfig, hidden_size: int) -> None:
        super().__init__()
        intermediate_size = int(hidden_size * config.mlp_ratio)
        self.attention = MobileViTAttention(config, hidden_size)
        self.intermediate = MobileViTIntermediate(config, hidden_size, intermediate_size)
        self.output = MobileViTOutput(config, hidden_size, intermediate_size)
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor, attentions: list[Tensor] | None = None) -> Tensor:
        tokens = tokens + self.attention(self.layernorm_before(tokens), attentions=attentions)
        return self.output(self.intermediate(self.layernorm_after(tokens)), tokens)


class MobileViTTransformer(nn.Module):
    """Stack of transformer layers, (B, N, D) → (B, N, D)."""

    def __init__(self, config: MobileViTConfig, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(MobileViTTransformerLayer(config, hidden_size) for _ in range(num_layers))

    def forward(self, tokens: Tensor, attentions: list[Tensor] | None = None) -> Tensor:
        for layer in self.layer:
            tokens = layer(tokens, attentions=attentions)
        return tokens


@contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None, None, None]:
    """Put a module into evaluation mode, and afterwards all of its modules into the mode they were in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def resize_features(features: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, C, H, W) → (B, C, height, width) bilinearly, unless the size already matches."""
    # An exported graph has one path for all sizes: it always resizes, which is exact if the size matches.
    if not torch.compiler.is_exporting() and features.shape[-2:] == (height, width):
        return features
    return F.interpolate(features, size=(height, width), mode="bilinear", align_corners=False)


class MobileViTLayer(GradientCheckpointingLayer):
    """MobileViT block (paper, section 3.1): fusion of local (convolution) and global (transformer) features.

    (B, C, H, W) → (B, C', H', W'). The attention weights of its transformer layers are appended to `attentions`, each
    (B * P, heads, N, N): a pixel attends to the pixels at the same index in all patches.
    """

    def __init__(
        self,
        config: MobileViTConfig,
        in_channels: int,
        out_channels: int,
        hidden_size: int,
        *,
        num_layers: int,
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        # A block whose stride is replaced by dilation starts with the dilation of the previous block.
        self.downsampling_layer = MobileViTInvertedResidual(
            config, in_channels, out_channels, stride=stride, dilation=max(1, dilation // 2)
        )
        kernel_size, activation = config.conv_kernel_size, config.hidden_act
        self.conv_kxk = MobileViTConvLayer(out_channels, out_channels, kernel_size, activation=activation)
        self.conv_1x1 = MobileViTConvLayer(out_channels, hidden_size, 1, normalization=False)
        self.transformer = MobileViTTransformer(config, hidden_size, num_layers)
        self.layernorm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.conv_projection = MobileViTConvLayer(hidden_size, out_channels, 1, activation=activation)
        self.fusion = MobileViTConvLayer(2 * out_channels, out_channels, kernel_size, activation=activation)

    # All sizes are computed and no reshape infers one, so that an exporter can prove that the shapes agree.

    def unfold(self, features: Tensor, rows: int, columns: int) -> Tensor:
        """Unfold (B, D, rows * p, columns * p) → (B * P, N, D): one sequence of patches per pixel index in a patch."""
        p, (batch, channels) = self.patch_size, features.shape[:2]
        pixels = features.unfold(2, p, p).unfold(3, p, p)  # (B, D, rows, columns, p, p), a view
        return pixels.permute(0, 4, 5, 2, 3, 1).reshape(batch * p * p, rows * columns, channels)

    def fold(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Invert `unfold`: (B * P, N, D) → (B, D, rows * p, columns * p), in channels_last."""
        p, channels = self.patch_size, patches.shape[-1]
        batch = patches.shape[0] // (p * p)
        # (B, p, p, rows, columns, D) → (B, rows, p, columns, p, D) → (B, H, W, D) → (B, D, H, W)
        pixels = patches.reshape(batch, p, p, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
        return pixels.reshape(batch, rows * p, columns * p, channels).permute(0, 3, 1, 2)

    def forward(self, features: Tensor, attentions: list[Tensor] | None = None) -> Tensor:
        features = self.downsampling_layer(features)
        local = self.conv_1x1(self.conv_kxk(features))
        p, (height, width) = self.patch_size, local.shape[-2:]
        rows, columns = (height + p - 1) // p, (width + p - 1) // p
        patches = self.unfold(resize_features(local, rows * p, columns * p), rows, columns)
        patches = self.transformer(patches, attentions=attentions)
        folded = self.fold(self.layernorm(patches), rows, columns)
        folded = self.conv_projection(resize_features(folded, height, width))
        return self.fusion(torch.cat((features, folded), dim=1))


class MobileViTEncoder(nn.Module):
    """Two MobileNet and three MobileViT layers, at strides 2, 4, 8, 16 and 32 (Table 4 of the paper).

    With `output_stride` 16 or 8, the last one or two layers keep the resolution and use dilated convolutions.
    """

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__()
        channels, dilation = config.neck_hidden_sizes, 1
        self.layer = nn.ModuleList()
        self.layer.append(MobileViTMobileNetLayer(config, channels[0], channels[1], stride=1, num_blocks=1))
        self.layer.append(MobileViTMobileNetLayer(config, channels[1], channels[2], stride=2, num_blocks=3))
        for i, (num_layers, layer_stride) in enumerate(zip((2, 4, 3), (8, 16, 32), strict=True)):
            stride = 2 if layer_stride <= config.output_stride else 1
            if stride == 1:
                dilation *= 2
            sizes = (channels[i + 2], channels[i + 3], config.hidden_sizes[i])
            self.layer.append(MobileViTLayer(config, *sizes, num_layers=num_layers, stride=stride, dilation=dilation))

    def forward(
        self, features: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BaseModelOutput:
        hidden_states = ()
        attentions: list[Tensor] | None = [] if output_attentions else None
        for layer in self.layer:
            # Passed by name: tools that replace the inputs of a layer expect tensors.
            options = {"attentions": attentions} if isinstance(layer, MobileViTLayer) else {}
            features = layer(features, **options)
            if output_hidden_states:
                hidden_states += (features,)
        return BaseModelOutput(
            last_hidden_state=features,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=None if attentions is None else tuple(attentions),
        )


class MobileViTASPPPooling(nn.Module):
    """Image-level branch of ASPP: global average pooling, projection, and expansion to the feature map's size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_1x1 = MobileViTConvLayer(in_channels, out_channels, 1, activation="relu")

    def forward(self, features: Tensor) -> Tensor:
        # A single value per channel has no variance: as in evaluation, the running statistics normalize it.
        is_single = self.training and len(features) == 1
        with evaluation_mode(self.conv_1x1) if is_single else nullcontext():
            pooled = self.conv_1x1(self.global_pool(features))
        return pooled.expand(-1, -1, *features.shape[-2:])


class MobileViTASPP(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabv3, arXiv 1706.05587): 1x1, three dilated 3x3, global average."""

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__()
        in_channels, out_channels = config.neck_hidden_sizes[-2], config.aspp_out_channels
        self.convs = nn.ModuleList([MobileViTConvLayer(in_channels, out_channels, 1, activation="relu")])
        for rate in config.atrous_rates:
            self.convs.append(MobileViTConvLayer(in_channels, out_channels, 3, dilation=rate, activation="relu"))
        self.convs.append(MobileViTASPPPooling(in_channels, out_channels))
        self.project = MobileViTConvLayer(len(self.convs) * out_channels, out_channels, 1, activation="relu")
        self.dropout = nn.Dropout(config.aspp_dropout_prob)

    def forward(self, features: Tensor) -> Tensor:
        return self.dropout(self.project(torch.cat([conv(features) for conv in self.convs], dim=1)))


class MobileViTDeepLabV3(nn.Module):
    """DeepLabv3 head: ASPP and 1x1 classifier. (B, C, H, W) → (B, num_labels, H, W)."""

    def __init__(self, config: MobileViTConfig) -> None:
        super().__init__()
        self.aspp = MobileViTASPP(config)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = MobileViTConvLayer(
            config.aspp_out_channels, config.num_labels, 1, bias=True, normalization=False
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.aspp(features)))
