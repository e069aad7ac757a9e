"""Layers that are faster on the CPU, for models that only this package's own loops run.

They compute the same as torch's layers, but tools that replace or quantize layers by type miss them, so models from
`from_pretrained` have torch's.
"""

import platform

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers_mobilevit import MobileViTTransformerLayer

# On x86, oneDNN's pointwise convolution computes this network's narrow matrix products about twice as fast as the BLAS
# behind `F.linear`. Below this number of multiplications, the two or three additional calls cost more than that saves.
POINTWISE_CONVOLUTION = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
POINTWISE_CONVOLUTION_MIN_MACS = 5 * 2**20
# With a single thread, torch uses oneDNN for 1x1 convolutions from this batch size on only.
POINTWISE_CONVOLUTION_BATCH = 16


def _replaces_kernel(weight: Tensor, input: Tensor) -> bool:
    """Return whether a layer may compute its product by an equivalent convolution."""
    return (
        POINTWISE_CONVOLUTION
        and not torch.compiler.is_compiling()
        and input.device.type == "cpu"
        and input.dtype == torch.float32
        and type(weight) is nn.Parameter  # else quantized
    )


class TokenLinear(nn.Linear):
    """`nn.Linear` on (B, N, D) tokens, computed on the CPU as an equivalent 1x1 convolution of images."""

    def forward(self, input: Tensor) -> Tensor:
        if (
            not _replaces_kernel(self.weight, input)
            or input.numel() * self.out_features < POINTWISE_CONVOLUTION_MIN_MACS
        ):
            return super().forward(input)
        num_tokens = input.numel() // self.in_features
        batch = POINTWISE_CONVOLUTION_BATCH if num_tokens % POINTWISE_CONVOLUTION_BATCH == 0 else 1
        # (B, N, D) → (batch, D, 1, B * N / batch) in channels_last, and back, all without a copy
        images = input.reshape(batch, 1, num_tokens // batch, self.in_features).permute(0, 3, 1, 2)
        outputs = F.conv2d(images, self.weight[:, :, None, None], self.bias)
        return outputs.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


class PointwiseConvolution(nn.Conv2d):
    """1x1 `nn.Conv2d` without stride, which with a single thread computes a small batch as an equivalent larger one.

    Torch has a kernel of its own for batches below `POINTWISE_CONVOLUTION_BATCH`, which takes longer than oneDNN's.
    """

    def forward(self, input: Tensor) -> Tensor:
        num_pixels = input.numel() // self.in_channels
        if (
            not _replaces_kernel(self.weight, input)
            or torch.get_num_threads() > 1
            or len(input) >= POINTWISE_CONVOLUTION_BATCH
            or num_pixels % POINTWISE_CONVOLUTION_BATCH
            or num_pixels * self.in_channels * self.out_channels < POINTWISE_CONVOLUTION_MIN_MACS
            or not input.is_contiguous(memory_format=torch.channels_last)
        ):
            return super().forward(input)
        # (B, C, H, W) → (batch, C, 1, B * H * W / batch) in channels_last, and back, all without a copy
        shape = (POINTWISE_CONVOLUTION_BATCH, 1, num_pixels // POINTWISE_CONVOLUTION_BATCH, self.in_channels)
        images = input.permute(0, 2, 3, 1).reshape(shape).permute(0, 3, 1, 2)
        outputs = F.conv2d(images, self.weight, self.bias).permute(0, 2, 3, 1)
        return outputs.reshape(len(input), *input.shape[-2:], self.out_channels).permute(0, 3, 1, 2)


class FastDropout(nn.Dropout):
    """`nn.Dropout` that is four times as fast on the CPU, where one random number per element takes 10% of a step.

    On the CPU, 64 random bits serve four elements: each is dropped with a probability within 2^-17 of `p`.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        size = input.numel()
        bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
        uniform = bits.view(torch.int16)[:size].view(input.shape)  # uniform over -2^15 .. 2^15 - 1
        mask = uniform >= round(self.p * 2**16) - 2**15
        return input * mask.to(input.dtype).div_(1 - self.p)


FAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: TokenLinear, nn.Dropout: FastDropout}


def use_fast_layers(model: nn.Module) -> None:
    """Replace 1x1 convolutions and the layers of transformers in place; parameters and their names are kept."""
    for block in model.modules():
        if isinstance(block, MobileViTTransformerLayer):
            for layer in block.modules():
                layer.__class__ = FAST_LAYERS.get(type(layer), type(layer))
        elif type(block) is nn.Conv2d and _is_pointwise(block):
            block.__class__ = PointwiseConvolution


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


__all__ = ["FastDropout", "PointwiseConvolution", "TokenLinear", "use_fast_layers"]
