"""Image processors for converted checkpoints, by origin."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor, BitImageProcessor, MobileViTImageProcessor

from ..modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from ..modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from ..tasks import TaskName
from .rules import Origin
from .source import remove_code_pointers

ChannelOrder = Literal["bgr", "rgb"]


def make_processor(
    origin: Origin,
    task: TaskName,
    source_config: Mapping[str, Any],
    folder: Path,
    channel_order: ChannelOrder | None,
    image_size: int | None,
    notes: list[str],
) -> tuple[BaseImageProcessor, bool]:
    """Return the image processor of a converted checkpoint, and whether its channel order is an assumption."""
    if origin == "transformers" and (folder / "preprocessor_config.json").is_file():
        return _adapt_processor(folder, task, channel_order, image_size), False
    if origin == "timm":
        channel_order = channel_order or "rgb"
        if not source_config:
            notes.append(
                f"Preprocessing assumed to be timm's default for MobileViT: {channel_order.upper()}, "
                f"{image_size or 256} px, center crop of 90%, bicubic, no normalization. There is no "
                "config.json next to the file."
            )
        return _timm_processor(source_config, channel_order, image_size), False
    if channel_order is None:
        notes.append(
            "Channel order assumed to be BGR, as in the published official checkpoints. Pass --channel-order rgb if "
            "the model was trained on RGB images."
        )
    if task == "image-segmentation":
        notes.append(
            "The image processor crops images to their center, as those of Apple's models on the Hub, and masks are "
            "those of the crop, stretched over the image. For masks that match: do_center_crop false, size height and "
            "width in preprocessor_config.json."
        )
    return _official_processor(task, channel_order or "bgr", image_size), channel_order is None


def _official_processor(task: TaskName, channel_order: ChannelOrder, image_size: int | None) -> BaseImageProcessor:
    """Create the image processor of an official checkpoint; only detectors are evaluated without a crop."""
    if task == "object-detection":
        side = image_size or MobileViTSSDLiteConfig.image_size
        size = {"height": side, "width": side}
        return MobileViTSSDLiteImageProcessor(size=size, do_flip_channel_order=channel_order == "bgr")
    resize, crop = (544, 512) if task == "image-segmentation" else (288, 256)
    side = image_size or crop
    size = {"shortest_edge": round(resize * side / crop)}
    return _stock_processor(size, side, Image.Resampling.BILINEAR, channel_order)


def _timm_processor(
    source_config: Mapping[str, Any], channel_order: ChannelOrder, image_size: int | None
) -> BaseImageProcessor:
    """Create the image processor that equals timm's evaluation transform; defaults are timm's for MobileViT."""
    try:
        channels, height, width = map(int, source_config.get("input_size", (3, 256, 256)))
        crop_fraction = float(source_config.get("crop_pct", 0.9))
        mean = [float(value) for value in source_config.get("mean", (0, 0, 0))]
        std = [float(value) for value in source_config.get("std", (1, 1, 1))]
        resample = Image.Resampling[str(source_config.get("interpolation", "bicubic")).upper()]
        crop_mode = source_config.get("crop_mode") or "center"
        if (channels, len(mean), len(std)) != (3, 3, 3) or height != width or not 0 < crop_fraction <= 1 or 0 in std:
            raise ValueError("expected a square input_size of 3 channels, 3 values of mean and std, 0 < crop_pct <= 1")
        if crop_mode not in ("center", "squash"):
            raise ValueError(f"crop_mode: got {crop_mode!r}, expected 'center' or 'squash'")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"config.json next to the weights: invalid pretrained_cfg ({type(error).__name__}: {error}). Fix or "
            "remove it."
        ) from error
    side = image_size or height
    resize = math.floor(side / crop_fraction)
    size = {"height": resize, "width": resize} if crop_mode == "squash" else {"shortest_edge": resize}
    return _stock_processor(size, side, resample, channel_order, mean, std)


def _stock_processor(
    size: dict[str, int],
    crop: int,
    resample: Image.Resampling,
    channel_order: ChannelOrder,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> BaseImageProcessor:
    """Create a stock image processor: MobileViT's can flip the channel order, Bit's can normalize."""
    fields: dict[str, Any] = {"size": size, "crop_size": {"height": crop, "width": crop}, "resample": int(resample)}
    fields |= {"do_convert_rgb": True, "image_mean": mean, "image_std": std}
    flip = channel_order == "bgr"
    if not any(mean) and set(std) == {1.0}:
        return MobileViTImageProcessor(do_flip_channel_order=flip, do_normalize=False, **fields)
    if flip:
        raise ValueError(
            f"channel_order: got 'bgr' for a checkpoint with mean {mean} and std {std}, but no stock image processor "
            "both flips the channel order and normalizes. Pass 'rgb' if the model was trained on RGB images."
        )
    return BitImageProcessor(do_normalize=True, **fields)


def _adapt_processor(
    folder: Path, task: TaskName, channel_order: ChannelOrder | None, image_size: int | None
) -> BaseImageProcessor:
    """Load the source's image processor and set channel order and image size if given."""
    file = folder / "preprocessor_config.json"
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, TypeError, AttributeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file}: not a stock image processor ({first_line}). Fix or remove it.") from error
    if task == "object-detection" and not isinstance(processor, MobileViTSSDLiteImageProcessor):
        raise ValueError(
            f"{file}: got a {type(processor).__name__}, expected {MobileViTSSDLiteImageProcessor.__name__} for the "
            "detector. Fix or remove it."
        )
    remove_code_pointers(vars(processor))
    if channel_order and hasattr(processor, "do_flip_channel_order"):
        processor.do_flip_channel_order = channel_order == "bgr"
    elif channel_order == "bgr":
        raise ValueError(
            f"channel_order: got 'bgr', but the source's {type(processor).__name__} can't flip channels. Omit "
            "channel_order, or remove preprocessor_config.json."
        )
    if image_size:
        factor = image_size / input_side(processor)
        processor.size, processor.crop_size = (
            size and type(size)(**{edge: round(pixels * factor) for edge, pixels in size})
            for size in (processor.size, processor.crop_size)
        )
    return processor


def input_side(processor: Any) -> int:
    """Return the height of an image processor's output in pixels, the shorter side if it doesn't crop."""
    crop = processor.crop_size if processor.do_center_crop else None
    size = processor.size
    return crop.height if crop else size.height or size.shortest_edge or size.longest_edge
