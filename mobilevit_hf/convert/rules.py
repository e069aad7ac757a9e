"""From other people's parameter names to ours: one ordered rule table and one ignore list per origin.

Origins are the official code (`apple/ml-cvnets`), `timm` and stock `transformers`, whose names are also ours. How each
prepares images is here too. Reading and writing files is in `convert.py`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BitImageProcessor, MobileViTImageProcessor

from ..modeling.configuration_mobilevit import VARIANTS
from ..modeling.configuration_mobilevit_ssdlite import (
    ANCHOR_RATIOS,
    FEATURE_STRIDES,
    GLOBAL_STRIDE,
    MobileViTSSDLiteConfig,
)
from ..modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from ..modeling.modeling_mobilevit_ssdlite import level_name
from ..tasks import TaskName

Origin = Literal["official", "timm", "transformers"]
ChannelOrder = Literal["bgr", "rgb"]
StateDict = dict[str, Tensor]

# Where training scripts put the state dict inside what they save; averaged weights first, they are the ones to use.
AVERAGED_WRAPPERS = ("state_dict_ema", "ema_state_dict", "model_ema")
WRAPPERS = (*AVERAGED_WRAPPERS, "state_dict", "model_state_dict", "model")
MAX_WRAPPERS = 3  # one inside the other: a pickled dict can hold itself

# What wrappers put before every name: DataParallel and EMA, torch.compile, Lightning.
WRAPPER_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")

# A parameter of the first block, which tells the origins apart.
SIGNATURES: dict[Origin, str] = {
    "official": r"^(encoder\.)?layer_1\.0\.block\.exp_1x1\.",
    "timm": r"^stages\.0\.0\.conv1_1x1\.",
    "transformers": r"^(mobilevit\.|backbone\.)?encoder\.layer\.0\.layer\.0\.expand_1x1\.",
}

# Every rule (pattern, replacement) is applied to every name, in this order. `qkv` stands for a fused projection, which
# `translate` then cuts into query, key and value.
RULES: dict[Origin, tuple[tuple[str, str], ...]] = {
    "official": (
        # Detection and segmentation networks hold the classification network as their encoder.
        (r"^encoder\.", ""),
        (r"^conv_1\.", "mobilevit.conv_stem."),
        (r"^layer_1\.", "mobilevit.encoder.layer.0.layer."),
        (r"^layer_2\.", "mobilevit.encoder.layer.1.layer."),
        (r"^layer_3\.0\.", "mobilevit.encoder.layer.2.downsampling_layer."),
        (r"^layer_3\.1\.", "mobilevit.encoder.layer.2."),
        (r"^layer_4\.0\.", "mobilevit.encoder.layer.3.downsampling_layer."),
        (r"^layer_4\.1\.", "mobilevit.encoder.layer.3."),
        (r"^layer_5\.0\.", "mobilevit.encoder.layer.4.downsampling_layer."),
        (r"^layer_5\.1\.", "mobilevit.encoder.layer.4."),
        (r"^conv_1x1_exp\.", "mobilevit.conv_1x1_exp."),
        (r"^classifier\.fc\.", "classifier."),
        (r"^seg_head\.aspp\.aspp_layer\.", "segmentation_head.aspp."),
        (r"^seg_head\.classifier\.", "segmentation_head.classifier."),
        (r"\.aspp_pool\.", "."),
        # SSDLite: extra layers, and a head for each level
        (r"^extra_layers\.os_-1\.1\.", f"head.extra_layers.{level_name(GLOBAL_STRIDE)}.pointwise."),
        (r"^extra_layers\.os_(\d+)\.", r"head.extra_layers.stride_\1."),
        *((rf"^ssd_heads\.{i}\.", f"head.level_heads.{level_name(s)}.") for i, s in enumerate(FEATURE_STRIDES)),
        (r"\.proj_layer\.", ".projection."),
        (r"\.loc_cls_layer\.(?=block\.)", ".predictor."),
        (r"\.loc_cls_layer\.pw_conv\.", ".predictor."),
        (r"\.(loc_cls_layer\.)?dw_conv\.", ".depthwise."),
        (r"\.pw_conv\.", ".pointwise."),
        # Inverted residual block
        (r"\.block\.exp_1x1\.", ".expand_1x1."),
        (r"\.block\.conv_3x3\.", ".conv_3x3."),
        (r"\.block\.red_1x1\.", ".reduce_1x1."),
        # MobileViT block
        (r"\.local_rep\.conv_3x3\.", ".conv_kxk."),
        (r"\.local_rep\.conv_1x1\.", ".conv_1x1."),
        (r"\.global_rep\.(\d+)\.(weight|bias)$", r".layernorm.\2"),
        (r"\.global_rep\.(\d+)\.", r".transformer.layer.\1."),
        (r"\.pre_norm_mha\.0\.", ".layernorm_before."),
        (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attention.attention.qkv."),
        (r"\.pre_norm_mha\.1\.out_proj\.", ".attention.output.dense."),
        (r"\.pre_norm_ffn\.0\.", ".layernorm_after."),
        (r"\.pre_norm_ffn\.1\.", ".intermediate.dense."),
        (r"\.pre_norm_ffn\.4\.", ".output.dense."),
        (r"\.conv_proj\.", ".conv_projection."),
        # Convolution layer
        (r"\.block\.conv\.", ".convolution."),
        (r"\.block\.norm\.", ".normalization."),
    ),
    "timm": (
        (r"^stem\.", "mobilevit.conv_stem."),
        (r"^stages\.([01])\.", r"mobilevit.encoder.layer.\1.layer."),
        (r"^stages\.([234])\.0\.", r"mobilevit.encoder.layer.\1.downsampling_layer."),
        (r"^stages\.([234])\.1\.", r"mobilevit.encoder.layer.\1."),
        (r"^final_conv\.", "mobilevit.conv_1x1_exp."),
        (r"^head\.fc\.", "classifier."),
        # Inverted residual block
        (r"\.conv1_1x1\.", ".expand_1x1."),
        (r"\.conv2_kxk\.", ".conv_3x3."),
        (r"\.conv3_1x1\.", ".reduce_1x1."),
        # MobileViT block
        (r"\.conv_1x1\.weight$", ".conv_1x1.convolution.weight"),
        (r"\.transformer\.(\d+)\.", r".transformer.layer.\1."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.attn\.qkv\.", ".attention.attention.qkv."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"\.norm\.", ".layernorm."),
        (r"\.conv_proj\.", ".conv_projection."),
        (r"\.conv_fusion\.", ".fusion."),
        # Convolution layer
        (r"\.conv\.", ".convolution."),
        (r"\.bn\.", ".normalization."),
    ),
    # A model without a head is saved without the prefix, a detector's with another.
    "transformers": ((r"^(backbone\.)?(?=(conv_stem|encoder|conv_1x1_exp)\.)", "mobilevit."),),
}

# Counts the models in an average, see torch.optim.swa_utils.AveragedModel.
_AVERAGE_COUNTER = r"^n_averaged$"

# Names that may be left behind. Anything else that has no place in the model is an error.
IGNORED: dict[Origin, tuple[str, ...]] = {
    "official": (
        _AVERAGE_COUNTER,
        # The auxiliary head is used in training only; the encoder's own head is left over from pre-training.
        r"^seg_head\.aux_head\.",
        r"^encoder\.(conv_1x1_exp|classifier)\.",
    ),
    "timm": (_AVERAGE_COUNTER,),
    "transformers": (_AVERAGE_COUNTER,),
}

QKV_PARTS = ("query", "key", "value")

# The head by which a (translated) model's task is known; without one it is a backbone.
HEADS: dict[str, TaskName] = {
    "segmentation_head.": "image-segmentation",
    "head.level_heads.": "object-detection",
    "classifier.": "image-classification",
}

# The layer whose outputs count the labels; the detector's has some for each anchor.
CLASSIFIERS: dict[TaskName, str] = {
    "image-classification": "classifier",
    "image-segmentation": "segmentation_head.classifier.convolution",
    "object-detection": f"head.level_heads.{level_name(FEATURE_STRIDES[0])}.predictor.convolution",
}
ANCHORS_PER_CELL = 2 + 2 * len(ANCHOR_RATIOS[0])


@dataclass(frozen=True)
class Translation:
    """A state dict under our names.

    Attributes:
        tensors: The parameters and buffers under our names; the backbone's with the prefix `mobilevit.`, also without
            a head and in a detector.
        sources: For each of these names the name in the source.
        ignored: The source's names that were left behind because they are on the ignore list.
    """

    tensors: StateDict
    sources: dict[str, str]
    ignored: tuple[str, ...]


def unwrap(checkpoint: Any, notes: list[str]) -> StateDict:
    """The state dict in what was saved, out of the dicts around it and without the prefixes wrappers give its names.

    Args:
        checkpoint: What the file holds.
        notes: Takes a sentence if the file has averaged weights, which are preferred.

    Raises:
        ValueError: If there is no state dict, or if two names become one.
    """
    depth = 0
    while not _is_state_dict(checkpoint):
        entries = checkpoint if isinstance(checkpoint, Mapping) else {}
        key = next((key for key in WRAPPERS if isinstance(entries.get(key), Mapping)), None)
        depth += 1
        if key is None or depth > MAX_WRAPPERS:
            raise ValueError(
                f"No state dict found: got {listing(map(str, entries)) or type(checkpoint).__name__}, expected names "
                "and tensors. Save the weights with torch.save(model.state_dict(), file) and convert that."
            )
        if key in AVERAGED_WRAPPERS:
            notes.append(f"Took the averaged (EMA) weights that the file holds under {key!r}.")
        checkpoint = entries[key]
    state_dict: StateDict = {}
    for name, tensor in checkpoint.items():
        _add(state_dict, WRAPPER_PREFIXES.sub("", name), tensor, name)
    return state_dict


def _is_state_dict(checkpoint: Any) -> bool:
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in checkpoint.items())


def find_origin(names: Iterable[str]) -> Origin:
    """Whose names these are.

    Raises:
        ValueError: If they are nobody's we know.
    """
    names = list(names)
    for origin, signature in SIGNATURES.items():
        if any(re.search(signature, name) for name in names):
            return origin
    raise ValueError(
        f"No MobileViT weights found: got names such as {listing(names)}, expected those of the official code "
        "(layer_1.0.block...), timm (stages.0.0...) or transformers (encoder.layer.0...). Give the state dict of a "
        "whole MobileViT (version 1) model."
    )


def translate(state_dict: Mapping[str, Tensor], origin: Origin) -> Translation:
    """Rename every parameter by the origin's rules and cut fused projections into query, key and value.

    Names without a rule pass through unchanged: whether they have a place is decided against the model.

    Raises:
        ValueError: If two names become one, or a fused projection can't be cut into thirds.
    """
    tensors: StateDict = {}
    sources: dict[str, str] = {}
    ignored: list[str] = []
    for source, tensor in state_dict.items():
        if any(re.search(pattern, source) for pattern in IGNORED[origin]):
            ignored.append(source)
            continue
        name = source
        for pattern, replacement in RULES[origin]:
            name = re.sub(pattern, replacement, name)
        for part, piece in _split_qkv(name, tensor, source).items():
            _add(tensors, part, piece, source)
            sources[part] = source
    return Translation(tensors, sources, tuple(ignored))


def _split_qkv(name: str, tensor: Tensor, source: str) -> StateDict:
    """The tensor under its name, or for a fused projection (3·d, ...) its three parts (d, ...) under theirs."""
    if ".attention.attention.qkv." not in name:
        return {name: tensor}
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise ValueError(f"{source}: got shape {tuple(tensor.shape)}, expected query, key and value in thirds.")
    thirds = tensor.chunk(3, dim=0)
    return {name.replace(".qkv.", f".{part}."): third for part, third in zip(QKV_PARTS, thirds, strict=True)}


def _add(state_dict: StateDict, name: str, tensor: Tensor, source: str) -> None:
    if name in state_dict:
        raise ValueError(f"{source}: a second tensor for {name}. Save one model's state dict only.")
    state_dict[name] = tensor


def find_task(tensors: Mapping[str, Tensor]) -> TaskName:
    """The task, from the head that the (translated) parameters have."""
    for head, task in HEADS.items():
        if any(name.startswith(head) for name in tensors):
            return task
    return "image-feature-extraction"


def find_num_labels(tensors: Mapping[str, Tensor], task: TaskName) -> int | None:
    """The number of labels, from the shape of the (translated) classifier; None without a head.

    A detector is taken to have the paper's anchors, and a background that is no label.

    Raises:
        ValueError: If the head has no classifier, or a detector's can't be that of the paper's anchors.
    """
    if task == "image-feature-extraction":
        return None
    outputs = _out_channels(tensors, f"{CLASSIFIERS[task]}.weight")
    if task != "object-detection":
        return outputs
    num_labels = outputs // ANCHORS_PER_CELL - 4 - 1
    if outputs % ANCHORS_PER_CELL or num_labels < 1:
        raise ValueError(
            f"{CLASSIFIERS[task]}: got {outputs} outputs, expected a box, the background and at least one class for "
            f"each of the paper's {ANCHORS_PER_CELL} anchors. For other anchors, put the config.json of the saved "
            "detector beside the weights."
        )
    return num_labels


def find_aspp_channels(tensors: Mapping[str, Tensor]) -> int:
    """The number of channels of DeepLabv3's atrous pyramid.

    Raises:
        ValueError: If the pyramid is missing.
    """
    return _out_channels(tensors, "segmentation_head.aspp.project.convolution.weight")


def find_widths(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """`hidden_sizes` and, without the last one, `neck_hidden_sizes` of the (translated) parameters.

    The last of `neck_hidden_sizes` belongs to `conv_1x1_exp`, which a segmentation network does not have.

    Raises:
        ValueError: If a layer is missing.
    """
    encoder = "mobilevit.encoder.layer"
    neck_layers = (
        "mobilevit.conv_stem",
        f"{encoder}.0.layer.0.reduce_1x1",
        f"{encoder}.1.layer.0.reduce_1x1",
        *(f"{encoder}.{i}.downsampling_layer.reduce_1x1" for i in (2, 3, 4)),
    )
    hidden_layers = (f"{encoder}.{i}.conv_1x1" for i in (2, 3, 4))
    return {
        "hidden_sizes": tuple(_out_channels(tensors, f"{layer}.convolution.weight") for layer in hidden_layers),
        "neck_hidden_sizes": tuple(_out_channels(tensors, f"{layer}.convolution.weight") for layer in neck_layers),
    }


def find_variant(widths: Mapping[str, tuple[int, ...]]) -> str | None:
    """The row of the variants table that has these widths (see `find_widths`), or None."""
    for variant, row in VARIANTS.items():
        if all(tuple(row[field])[: len(found)] == found for field, found in widths.items()):
            return variant
    return None


def describe_widths(widths: Mapping[str, Any]) -> str:
    """The widths of `find_widths`, or of a row of the variants table, for an error message."""
    return f"{list(widths['neck_hidden_sizes'][:6])} and {list(widths['hidden_sizes'])}"


def _out_channels(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors or tensors[name].ndim == 0:
        raise ValueError(f"The checkpoint has no usable {name}. Give the state dict of a whole MobileViT (version 1).")
    return tensors[name].shape[0]


def listing(names: Iterable[str], limit: int = 4) -> str:
    """The first few names, for an error message."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


@dataclass(frozen=True)
class Preprocessing:
    """How images reach the model: resize, center crop, scale to 0..1, normalize, order the channels.

    Attributes:
        crop: Side of the square the model sees, in pixels.
        resize: Length of the shorter side before the crop, in pixels; of both sides if `squash`.
        resample: Pillow's number of the interpolation.
        channel_order: The order in which the model takes colors.
        mean: Subtracted from each channel of an image in 0..1.
        std: What each channel is divided by after that.
        squash: Whether both sides are resized to `resize`, whatever the image's shape.
    """

    crop: int
    resize: int
    resample: int
    channel_order: ChannelOrder
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    squash: bool = False

    def make_processor(self) -> BaseImageProcessor:
        """A stock image processor that does this: MobileViT's can turn channels around, Bit's can normalize.

        Raises:
            ValueError: If both are wanted.
        """
        mean, std = list(self.mean), list(self.std)
        shared = {
            "size": {"height": self.resize, "width": self.resize} if self.squash else {"shortest_edge": self.resize},
            "crop_size": {"height": self.crop, "width": self.crop},
            "resample": int(self.resample),
            "do_convert_rgb": True,
            "image_mean": mean,
            "image_std": std,
        }
        flip = self.channel_order == "bgr"
        if not any(mean) and set(std) == {1.0}:
            return MobileViTImageProcessor(do_flip_channel_order=flip, do_normalize=False, **shared)
        if flip:
            raise ValueError(
                f"channel_order: got 'bgr' for a checkpoint with mean {mean} and std {std}, but no stock image "
                "processor both turns channels around and normalizes. Use 'rgb' if it was trained so."
            )
        return BitImageProcessor(do_normalize=True, **shared)


def official_processor(task: TaskName, channel_order: ChannelOrder, image_size: int | None) -> BaseImageProcessor:
    """As Apple's checkpoints are published.

    288 → 256 for classification, 544 → 512 for segmentation, 320 without a crop for detection.
    """
    if task == "object-detection":
        side = image_size or MobileViTSSDLiteConfig.image_size
        return MobileViTSSDLiteImageProcessor(
            size={"height": side, "width": side}, do_flip_channel_order=channel_order == "bgr"
        )
    resize, crop = (544, 512) if task == "image-segmentation" else (288, 256)
    size = image_size or crop
    preprocessing = Preprocessing(
        crop=size,
        resize=round(resize * size / crop),
        resample=Image.Resampling.BILINEAR,
        channel_order=channel_order,
    )
    return preprocessing.make_processor()


def timm_preprocessing(facts: Mapping[str, Any], channel_order: ChannelOrder, image_size: int | None) -> Preprocessing:
    """As timm evaluates: its defaults for MobileViT, overridden by what `pretrained_cfg` says."""
    try:
        channels, height, width = map(int, facts.get("input_size", (3, 256, 256)))
        crop_fraction = float(facts.get("crop_pct", 0.9))
        mean = tuple(float(value) for value in facts.get("mean", (0, 0, 0)))
        std = tuple(float(value) for value in facts.get("std", (1, 1, 1)))
        resample = Image.Resampling[str(facts.get("interpolation", "bicubic")).upper()]
        crop_mode = facts.get("crop_mode") or "center"
        if (channels, len(mean), len(std)) != (3, 3, 3) or height != width or not 0 < crop_fraction <= 1 or 0 in std:
            raise ValueError(
                "expected a square input_size of 3 channels, a mean and std for each, and 0 < crop_pct <= 1"
            )
        if crop_mode not in ("center", "squash"):
            raise ValueError(f"crop_mode is {crop_mode!r}, expected 'center' or 'squash'")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"config.json beside the weights: unusable pretrained_cfg ({type(error).__name__}: {error}). Mend it or "
            "move it away."
        ) from error
    size = image_size or height
    return Preprocessing(
        crop=size,
        resize=math.floor(size / crop_fraction),
        resample=resample,
        channel_order=channel_order,
        mean=mean,
        std=std,
        squash=crop_mode == "squash",
    )
