"""Fused inference models, with normalizations folded into the weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.activations import SiLUActivation

from .layers_cpu import use_fast_layers
from .layers_mobilevit import (
    MobileViTASPP,
    MobileViTASPPPooling,
    MobileViTConvLayer,
    MobileViTDeepLabV3,
    MobileViTEncoder,
    MobileViTIntermediate,
    MobileViTLayer,
    MobileViTTransformerLayer,
)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy for inference in channels_last, with each batch normalization folded into its convolution.

    Outputs are equal up to rounding. Activations run in place, which saves one pass over memory, the bottleneck of a
    light network on a CPU; so forward hooks see overwritten tensors. The copy cannot be saved: its parameters differ
    from those of a checkpoint.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for layer in folded.modules():
        if isinstance(layer, MobileViTConvLayer):
            if isinstance(layer.normalization, nn.BatchNorm2d):
                layer.convolution = fuse_conv_bn_eval(layer.convolution, layer.normalization)
                layer.normalization = None
            layer.activation = _in_place(layer.activation)
        elif isinstance(layer, MobileViTIntermediate):
            layer.intermediate_act_fn = _in_place(layer.intermediate_act_fn)
    use_fast_layers(folded)
    # torch's annotation of __setattr__ omits attributes other than tensors and modules.
    folded.save_pretrained = _raise_on_save  # ty: ignore[invalid-assignment]
    return folded.to(memory_format=torch.channels_last)


def _in_place(activation: nn.Module | None) -> nn.Module | None:
    """Return the activation, in place if it is SiLU or ReLU."""
    if isinstance(activation, nn.SiLU | SiLUActivation):
        return nn.SiLU(inplace=True)
    return nn.ReLU(inplace=True) if type(activation) is nn.ReLU else activation


def _raise_on_save(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "save_pretrained: got a fused inference model, expected a model with batch normalization. "
        "Save the original model."
    )


class FusedModel(nn.Module):
    """Fused copy of a model for export: images (B, 3, H, W) → a tuple of float32 output tensors.

    In addition to batch normalization, scale and shift of the layer normalizations and the scale of the attention are
    folded into the weights, and unfolding into patches is a single transpose: the runtimes perform neither fusion.

    Args:
        model: Classifier, detector or segmentation model; not modified.
        outputs: Fields of the model's output to return.
        dtype: Dtype of weights and activations.
    """

    def __init__(self, model: nn.Module, outputs: tuple[str, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.model = fold_batch_norm(copy.deepcopy(model).float()).to(memory_format=torch.contiguous_format)
        encoder = next(module for module in self.model.modules() if isinstance(module, MobileViTEncoder))
        for i, layer in enumerate(encoder.layer):
            if isinstance(layer, MobileViTLayer):
                encoder.layer[i] = FusedMobileViTLayer(layer)
        for head in self.model.modules():
            if isinstance(head, MobileViTDeepLabV3):
                head.aspp = FusedASPP(head.aspp)  # ty: ignore[invalid-assignment]
        self.model = self.model.to(dtype)
        self.outputs, self.dtype = outputs, dtype

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors named by `outputs`, in that order."""
        outputs = self.model(pixel_values=pixel_values.to(self.dtype))
        return tuple(outputs[name].float() for name in self.outputs)


class FusedMobileViTLayer(MobileViTLayer):
    """MobileViT block with the weights of its layer normalizations folded into the following layers."""

    def __init__(self, layer: MobileViTLayer) -> None:
        nn.Module.__init__(self)
        self.patch_size = layer.patch_size
        for name, module in layer.named_children():
            self.add_module(name, module)
        layers: Any = layer.transformer.layer
        self.transformer = FusedTransformer(map(FusedTransformerLayer, layers))
        _fold_scale_and_shift(layer.layernorm, layer.conv_projection.convolution)

    # At most five dimensions, the limit of LiteRT and Core ML, and one transposition.

    def unfold(self, features: Tensor, rows: int, columns: int) -> Tensor:
        """Unfold (B, D, rows * p, columns * p) → (P * B, N, D): one sequence of patches per pixel index in a patch."""
        p, (batch, channels) = self.patch_size, features.shape[:2]
        # (B, H, W, D) → (B * rows, p, columns, p, D) → (p, p, B * rows, columns, D)
        pixels = features.permute(0, 2, 3, 1).reshape(batch * rows, p, columns, p, channels).permute(1, 3, 0, 2, 4)
        return pixels.reshape(p * p * batch, rows * columns, channels)

    def fold(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Invert `unfold`: (P * B, N, D) → (B, D, rows * p, columns * p)."""
        p, channels = self.patch_size, patches.shape[-1]
        batch = patches.shape[0] // (p * p)
        # (p, p, B * rows, columns, D) → (B * rows, p, columns, p, D) → (B, H, W, D)
        pixels = patches.reshape(p, p, batch * rows, columns, channels).permute(2, 0, 3, 1, 4)
        return pixels.reshape(batch, rows * p, columns * p, channels).permute(0, 3, 1, 2)


class FusedASPP(nn.Module):
    """ASPP that adds the projection of the image-level branch instead of expanding the branch to all pixels.

    The projection has a fifth less to compute, and LiteRT's converter fails for the expansion.
    """

    def __init__(self, aspp: MobileViTASPP) -> None:
        super().__init__()
        *convs, pooling = aspp.convs
        assert isinstance(pooling, MobileViTASPPPooling)
        self.convs, self.global_pool, self.pooled = nn.ModuleList(convs), pooling.global_pool, pooling.conv_1x1
        self.project, self.activation = aspp.project.convolution, aspp.project.activation or nn.Identity()
        self.project_pooled = copy.deepcopy(self.project)
        self.project_pooled.register_parameter("bias", None)
        channels = self.pooled.convolution.out_channels
        weights = self.project.weight.split([self.project.in_channels - channels, channels], dim=1)
        for layer, weight in zip((self.project, self.project_pooled), weights, strict=True):
            layer.weight, layer.in_channels = nn.Parameter(weight.clone(), requires_grad=False), weight.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → (B, aspp_out_channels, H, W)."""
        pooled = self.project_pooled(self.pooled(self.global_pool(features)))
        return self.activation(self.project(torch.cat([conv(features) for conv in self.convs], dim=1)) + pooled)


class FusedTransformer(nn.ModuleList):
    """Transformer layers, (B, N, D) → (B, N, D); attention weights are not available."""

    def forward(self, sequences: Tensor, attentions: None = None) -> Tensor:
        batch, length, _ = sequences.shape
        # With two dimensions, a linear layer is one operation in ONNX, bias included.
        tokens = sequences.flatten(0, 1)
        for layer in self:
            tokens = layer(tokens, batch, length)
        return tokens.reshape(sequences.shape)


class FusedTransformerLayer(nn.Module):
    """Pre-norm transformer layer, (B * N, D) → (B * N, D), with fewer parameters than the original.

    Scale and shift of the normalizations and the scale of the attention are folded into the weights. The bias of the
    keys adds the same to all scores of a query, so the softmax cancels it; that of the values is added to each context
    as it is, as attention weights sum to 1, so it is folded into the output projection.
    """

    def __init__(self, layer: MobileViTTransformerLayer) -> None:
        super().__init__()
        attention = layer.attention.attention
        self.num_heads = attention.num_attention_heads
        # One product for all three would save calls, but splitting its output costs as much.
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.project = layer.attention.output.dense
        self.expand, self.activation = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
        self.reduce = layer.output.dense
        self.norm_before, self.norm_after = layer.layernorm_before, layer.layernorm_after
        _fold_scale_and_shift(self.norm_before, self.query, self.key, self.value)
        _fold_scale_and_shift(self.norm_after, self.expand)
        for parameter in (self.query.weight, self.query.bias):
            parameter.mul_((parameter.shape[0] // self.num_heads) ** -0.5)
        self.project.bias.add_(self.project.weight @ self.value.bias)
        for linear in (self.key, self.value):
            linear.register_parameter("bias", None)

    def forward(self, tokens: Tensor, batch: int, length: int) -> Tensor:
        normalized = self.norm_before(tokens)
        # (B * N, D) → (B, N, heads, D / heads)
        query, key, value = (
            linear(normalized).reshape(batch, length, self.num_heads, -1)
            for linear in (self.query, self.key, self.value)
        )
        # Written out: the runtimes fuse this form, in which each operand is transposed once.
        scores = query.permute(0, 2, 1, 3) @ key.permute(0, 2, 3, 1)  # (B, heads, N, N)
        context = scores.softmax(dim=-1) @ value.permute(0, 2, 1, 3)  # (B, heads, N, D / heads)
        tokens = tokens + self.project(context.permute(0, 2, 1, 3).reshape(tokens.shape))
        return tokens + self.reduce(self.activation(self.expand(self.norm_after(tokens))))


def _fold_scale_and_shift(norm: nn.LayerNorm, *layers: nn.Linear | nn.Conv2d) -> None:
    """Fold a layer normalization's weights into all consumers of its output: linear layers or 1x1 convolutions."""
    for layer in layers:
        weight = layer.weight.flatten(1)  # (outputs, D)
        bias = weight @ norm.bias + (0 if layer.bias is None else layer.bias)
        layer.weight = nn.Parameter((weight * norm.weight).view_as(layer.weight), requires_grad=False)
        layer.bias = nn.Parameter(bias, requires_grad=False)
    for name in ("weight", "bias"):
        norm.register_parameter(name, None)
    norm.elementwise_affine = False


__all__ = ["FusedModel", "fold_batch_norm"]
