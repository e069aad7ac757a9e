"""The model that a training starts with: a checkpoint with a head for the data's classes, or new weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    MobileViTImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_utils import PILImageResampling

from ..data.decoding import LazyImage
from ..data.types import Sample
from ..model_sources import DEFAULT_MODEL, resolve_model
from ..modeling.configuration_mobilevit import VARIANTS, MobileViTConfig
from ..modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from ..modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor
from ..modeling.layers_mobilevit import FastDropout
from ..modeling.modeling_mobilevit import MobileViTForImageClassification
from ..modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from ..modeling.ssdlite import anchor_recall, fit_anchors
from .arguments import TrainArguments

# The size of new weights where no checkpoint can be had.
FALLBACK_VARIANT = "xxs"
CLASSIFIER_TYPES = ("mobilevit", "mobilevit_backbone")
# The shorter side that an image is resized to, over that of the crop in its middle; the paper's.
RESIZE_RATIO = 288 / 256
# Sides of images are multiples of this, the model's stride.
STRIDE = 32
MIN_IMAGE_SIZE = 96
# With new weights a classifier learns more from many small images than from few large ones in the same time.
NEW_IMAGE_SIZE = 96


@dataclass(frozen=True)
class Start:
    """What a training starts with.

    Attributes:
        model: In single precision, with a head for the data's classes.
        processor: The image processor that goes with it.
        image_size: Side of the images the model sees, in pixels.
        notes: Plain sentences about decisions to tell the user.
    """

    model: PreTrainedModel
    processor: BaseImageProcessor
    image_size: int
    notes: tuple[str, ...]


def choose_start() -> tuple[str, list[str]]:
    """The model to start with where none was said, and notes for the user."""
    try:
        resolve_model(DEFAULT_MODEL)
    except ValueError as error:
        return FALLBACK_VARIANT, [
            f"{error} Training starts with new weights ({FALLBACK_VARIANT}); with pretrained ones (--model) fewer "
            "images do."
        ]
    return DEFAULT_MODEL, []


def _find_start(name: str) -> str | Path:
    """A variant for new weights, or the folder of a checkpoint.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    return name if name in VARIANTS else resolve_model(name)


def start_classifier(arguments: TrainArguments, classes: Sequence[str], image_side: float | None) -> Start:
    """A classifier of the data's classes.

    Args:
        arguments: Those of the training.
        classes: Their names.
        image_side: A typical shorter side of the images in pixels, if known: the model sees no larger ones.

    Raises:
        ValueError: If the model to start with is something else.
    """
    source = _find_start(arguments.model)
    if isinstance(source, str):
        config = MobileViTConfig.from_variant(source, **_names(classes))
        model = MobileViTForImageClassification(config)
        processor = MobileViTImageProcessor(resample=PILImageResampling.BILINEAR, do_flip_channel_order=False)
        own_size, ratio = NEW_IMAGE_SIZE, RESIZE_RATIO
    else:
        config = _read_config(source, CLASSIFIER_TYPES)
        model = _load(MobileViTForImageClassification, source, _names(classes))
        if _names_of(config) != list(classes):  # a head of as many outputs was loaded, for other classes
            nn.init.trunc_normal_(model.classifier.weight, std=config.initializer_range)
            nn.init.zeros_(model.classifier.bias)
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        if not getattr(processor, "crop_size", None):
            raise ValueError(
                f"{source}: got {type(processor).__name__} without a crop_size, expected MobileViTImageProcessor with "
                "one. Save it there."
            )
        own_size = processor.crop_size["height"]
        ratio = processor.size["shortest_edge"] / own_size if "shortest_edge" in processor.size else 1.0
    size = arguments.image_size or _fit_size(own_size, image_side)
    processor.size = {"shortest_edge": round(size * ratio)}
    processor.crop_size = {"height": size, "width": size}
    model.config.image_size = size
    return _start(arguments, model, processor, size)


def start_detector(arguments: TrainArguments, classes: Sequence[str], samples: Sequence[Sample] | None) -> Start:
    """A detector of the data's classes.

    Args:
        arguments: Those of the training.
        classes: Their names.
        samples: Images to fit anchors to, None if they can't be looked at before the training.

    Raises:
        ValueError: If the model to start with is something else.
    """
    source, notes = _find_start(arguments.model), []
    if not isinstance(source, str):
        config = _read_config(source, (*CLASSIFIER_TYPES, MobileViTSSDLiteConfig.model_type))
        if config.model_type == MobileViTSSDLiteConfig.model_type:
            return _continue_detector(arguments, classes, source, config)
    size = arguments.image_size or MobileViTSSDLiteConfig().image_size
    fields = {"id2label": _names(classes)["id2label"], "image_size": size}
    if arguments.anchors == "auto" and samples:
        anchors, note = _fit_anchors(samples, size)
        fields |= anchors
        notes.append(note)
    if isinstance(source, str):
        model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant(source, **fields))
        processor = MobileViTSSDLiteImageProcessor(do_flip_channel_order=False)
    else:
        model = MobileViTSSDLiteForObjectDetection.from_backbone(source, **fields)
        processor = MobileViTSSDLiteImageProcessor.from_backbone(source)
    processor.size = {"height": size, "width": size}
    return _start(arguments, model, processor, size, *notes)


def _continue_detector(
    arguments: TrainArguments, classes: Sequence[str], source: Path, config: PreTrainedConfig
) -> Start:
    """A detector again: its anchors stay."""
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    size = arguments.image_size or processor.size["height"]
    model = _load(MobileViTSSDLiteForObjectDetection, source, _names(classes) | {"image_size": size})
    if _names_of(config) != list(classes):
        for head in model.head.level_heads.values():
            nn.init.xavier_uniform_(head.predictor.convolution.weight)
            nn.init.zeros_(head.predictor.convolution.bias)
    model.config.recommended_threshold = None
    processor.size = {"height": size, "width": size}
    return _start(
        arguments, model, processor, size, "The anchors are those of the detector that training starts with."
    )


def _start(
    arguments: TrainArguments, model: PreTrainedModel, processor: BaseImageProcessor, size: int, *notes: str
) -> Start:
    if arguments.hidden_dropout_prob is not None:
        for module in model.modules():
            if isinstance(module, FastDropout):
                module.p = arguments.hidden_dropout_prob
        getattr(model.config, "backbone_config", model.config).hidden_dropout_prob = arguments.hidden_dropout_prob
    return Start(model, processor, size, notes)


def _names(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}


def _names_of(config: PreTrainedConfig) -> list[str]:
    return [name for _, name in sorted(config.id2label.items())]


def _read_config(source: Path, model_types: Sequence[str]) -> PreTrainedConfig:
    """The configuration of a checkpoint to start from.

    Raises:
        ValueError: If it is another model's.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type not in model_types:
        raise ValueError(
            f"{source}: got a model of type {config.model_type}, expected {' or '.join(model_types)}. Start from "
            "another one."
        )
    return config


def _load(model_class: type[PreTrainedModel], source: Path, fields: dict[str, Any]) -> PreTrainedModel:
    """The model of a checkpoint, in single precision; its head is new where it had other outputs.

    Raises:
        ValueError: If more than the head would be new.
    """
    model, report = model_class.from_pretrained(
        source, **fields, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = {name for name in report["missing_keys"] if not name.startswith("classifier.")}
    new |= {name for name, *_ in report["mismatched_keys"] if not name.startswith(("classifier.", "head."))}
    if new:
        raise ValueError(
            f"{source}: its weights lack {len(new)} of the model's or have them in other shapes, such as {min(new)}. "
            "Give a whole MobileViT, as save_pretrained wrote it."
        )
    return model


def _fit_size(own_size: int, image_side: float | None) -> int:
    """The model's size, or the images' where that is less: enlarged images show nothing more and take longer."""
    if image_side is None:
        return own_size
    return min(own_size, max(MIN_IMAGE_SIZE, round(image_side / STRIDE) * STRIDE))


def _fit_anchors(samples: Sequence[Sample], size: int) -> tuple[dict[str, Any], str]:
    """Fields of the configuration, and what is gained by them."""
    boxes, image_sizes = [], []
    for sample in samples:
        kept = sample.objects.boxes[sample.objects.iscrowd == 0]
        if len(kept):
            image = LazyImage(sample.image)
            boxes.append(kept)
            image_sizes.append((image.height, image.width))
    if not boxes:
        return {}, "The training images have no boxes to fit anchors to."
    fields = fit_anchors(boxes, image_sizes, size)
    paper = MobileViTSSDLiteConfig()
    before = {name: getattr(paper, name) for name in fields}
    shares = [anchor_recall(boxes, image_sizes, given, size) for given in (before, fields)]
    return (
        fields,
        f"Boxes that meet an anchor: {shares[0]:.1%} with the paper's anchors, {shares[1]:.1%} with fitted ones.",
    )
