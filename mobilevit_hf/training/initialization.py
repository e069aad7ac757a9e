"""Initial model of a training run: a checkpoint with a head for the dataset's classes, or one from scratch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BaseImageProcessor,
    MobileViTImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
)
from transformers.image_utils import PILImageResampling

from ..data.images import LazyImage
from ..data.types import Sample
from ..model_sources import (
    DEFAULT_MODEL,
    check_weights,
    checkpoint_errors,
    load_image_processor,
    read_config,
    resolve_model,
)
from ..modeling.anchors_ssdlite import anchor_recall, fit_anchors
from ..modeling.configuration_mobilevit import MobileViTConfig
from ..modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig
from ..modeling.finite import check_finite_weights
from ..modeling.image_processing_mobilevit_ssdlite import MobileViTSSDLiteImageProcessor, normalizes
from ..modeling.modeling_mobilevit import MobileViTForImageClassification, MobileViTForSemanticSegmentation
from ..modeling.modeling_mobilevit_ssdlite import MobileViTSSDLiteForObjectDetection
from ..modeling.variants_mobilevit import VARIANTS
from ..tasks import task_of_architecture
from .arguments import TrainArguments

# Prefixes of the weights that not all MobileViT models have: heads, and the convolution before a classifier.
HEADS = ("classifier.", "segmentation_head.")
EXPANSION = ("conv_1x1_exp.", "mobilevit.conv_1x1_exp.")
# Variant to train from scratch if the default checkpoint can't be downloaded.
FALLBACK_VARIANT = "xxs"
CLASSIFIER_TYPES = ("mobilevit", "mobilevit_backbone")
DETECTOR_TYPES = (*CLASSIFIER_TYPES, MobileViTSSDLiteConfig.model_type)
# Shortest edge after resizing, relative to the center crop; as in the paper.
RESIZE_RATIO = 288 / 256
# Stride of the model's last stage; image sizes are multiples of it.
STRIDE = 32
MIN_IMAGE_SIZE = 96
# From scratch, a classifier learns more from many small images than from few large ones in the same time.
SCRATCH_IMAGE_SIZE = 96
# The paper trains at 512x512 (section 4.2.2). In five minutes on one CPU core, fine-tuned XXS reaches 59.8% mean IoU
# on CamVid's validation split at 384, 58.1% at 320 and 59.2% at 256; at 384 with stride 8, which takes 2.5 times as
# long per step, 56.2%.
SEGMENTER_IMAGE_SIZE = 384
SEGMENTER_STRIDE = 16


@dataclass(frozen=True)
class InitialModel:
    """Float32 model with a head for the dataset's classes, its image processor, and notes on automatic decisions."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    image_size: int
    notes: tuple[str, ...]


def choose_initial_checkpoint() -> tuple[str, list[str]]:
    """Return the default checkpoint, or a variant to train from scratch if it is unavailable, and notes."""
    try:
        resolve_model(DEFAULT_MODEL)
    except ValueError as error:
        return FALLBACK_VARIANT, [
            f"Training {FALLBACK_VARIANT} from scratch instead of from pretrained weights, which needs more "
            f"images and time: {error}"
        ]
    return DEFAULT_MODEL, []


def check_initial_checkpoint(name: str, model_types: Collection[str]) -> None:
    """Check that a variant or checkpoint exists, has one of the model types and, of a checkpoint, readable weights."""
    if name not in VARIANTS:
        source = resolve_model(name)
        _read_config(source, model_types)
        check_weights(source)


def create_classifier(arguments: TrainArguments, classes: Sequence[str], image_side: float | None) -> InitialModel:
    """Create a classifier from `arguments.model`.

    Args:
        classes: Class names of the dataset.
        image_side: Typical shorter side of the images in pixels, the upper limit of the default input size.

    Raises:
        ValueError: If the initial checkpoint is unknown, incomplete or of another type.
    """
    name = str(arguments.model)
    if name in VARIANTS:
        model = MobileViTForImageClassification(MobileViTConfig.from_variant(name, **_label_fields(classes)))
        processor = MobileViTImageProcessor(resample=PILImageResampling.BILINEAR, do_flip_channel_order=False)
        own_size, ratio = SCRATCH_IMAGE_SIZE, RESIZE_RATIO
    else:
        source = resolve_model(name)
        config = _read_config(source, CLASSIFIER_TYPES)
        model = _load(MobileViTForImageClassification, source, _label_fields(classes))
        if _class_names(config) != list(classes):  # a head with as many outputs was loaded, for other classes
            _initialize_head(model.classifier, config)
        processor: Any = load_image_processor(source, trust_remote_code=False)
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
    return _finish(arguments, model, processor, size)


def create_detector(
    arguments: TrainArguments, classes: Sequence[str], samples: Sequence[Sample] | None
) -> InitialModel:
    """Create a detector from `arguments.model`.

    Args:
        classes: Class names of the dataset.
        samples: Training samples to fit anchors to; None for a stream.

    Raises:
        ValueError: If the initial checkpoint is unknown, incomplete or of another type.
    """
    name, notes = str(arguments.model), []
    source = None if name in VARIANTS else resolve_model(name)
    if source:
        config = _read_config(source, DETECTOR_TYPES)
        if config.model_type == MobileViTSSDLiteConfig.model_type:
            return _continue_detector(arguments, classes, source, config)
    size = arguments.image_size or MobileViTSSDLiteConfig().image_size
    fields: dict[str, Any] = {"id2label": _label_fields(classes)["id2label"], "image_size": size}
    if arguments.anchors == "auto" and samples:
        anchors, note = _fit_anchors(samples, size)
        fields |= anchors
        notes.append(note)
    if source:
        with checkpoint_errors(source):
            model = MobileViTSSDLiteForObjectDetection.from_backbone(source, **fields)
        processor = MobileViTSSDLiteImageProcessor.from_backbone(source)
    else:
        model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant(name, **fields))
        processor = MobileViTSSDLiteImageProcessor(do_flip_channel_order=False)
    processor.size = {"height": size, "width": size}
    return _finish(arguments, model, processor, size, *notes)


def create_segmenter(arguments: TrainArguments, classes: Sequence[str], image_side: float | None) -> InitialModel:
    """Create a semantic segmentation model from `arguments.model`.

    The whole image is stretched to a square: stock's post-processing resizes the logits to the size of the image, so
    that a crop would shift the label map. Unlike a fixed shortest edge, a fixed size also gives batches of any images
    and exported models a fixed input, as that of a detector.

    Args:
        classes: Class names of the dataset.
        image_side: Typical shorter side of the images in pixels, the upper limit of the default input size.

    Raises:
        ValueError: If the initial checkpoint is unknown, incomplete or of another type.
    """
    name, labels = str(arguments.model), _label_fields(classes)
    own_size: int = SEGMENTER_IMAGE_SIZE
    processor: Any
    if name in VARIANTS:
        fields = {"output_stride": arguments.output_stride or SEGMENTER_STRIDE, **labels}
        model = MobileViTForSemanticSegmentation(MobileViTConfig.from_variant(name, **fields))
        _initialize_head(model.segmentation_head.classifier.convolution, model.config)
        processor = MobileViTImageProcessor(resample=PILImageResampling.BILINEAR, do_flip_channel_order=False)
    else:
        source = resolve_model(name)
        config = _read_config(source, CLASSIFIER_TYPES)
        task = task_of_architecture(next(iter(config.architectures or ()), None))
        is_segmenter = task is not None and task.name == "image-segmentation"
        if is_segmenter:
            own_size = config.image_size
        stride = arguments.output_stride or (config.output_stride if is_segmenter else SEGMENTER_STRIDE)
        model = _load(MobileViTForSemanticSegmentation, source, labels | {"output_stride": stride})
        if not is_segmenter or _class_names(config) != list(classes):
            _initialize_head(model.segmentation_head.classifier.convolution, model.config)
        processor = _segmentation_processor(load_image_processor(source, trust_remote_code=False))
    size = arguments.image_size or _fit_size(own_size, image_side)
    processor.size = processor.crop_size = {"height": size, "width": size}
    processor.do_resize, processor.do_center_crop = True, False
    model.config.image_size = size
    return _finish(arguments, model, processor, size)


def _initialize_head(layer: Any, config: PreTrainedConfig) -> None:
    """Initialize the last layer, linear or a convolution, so that all classes are about equally probable."""
    nn.init.trunc_normal_(layer.weight, std=config.initializer_range)
    nn.init.zeros_(layer.bias)


def _segmentation_processor(source: Any) -> Any:
    """Return a stock processor with the source's channels and `post_process_semantic_segmentation`."""
    if not normalizes(source):
        flips = getattr(source, "do_flip_channel_order", False)
        return MobileViTImageProcessor(resample=source.resample, do_flip_channel_order=flips)
    return SegformerImageProcessor(
        resample=source.resample, image_mean=source.image_mean, image_std=source.image_std, do_reduce_labels=False
    )


def _continue_detector(
    arguments: TrainArguments, classes: Sequence[str], source: Path, config: PreTrainedConfig
) -> InitialModel:
    """Load a detector; its anchors are kept, its classification head only for the same classes."""
    processor: Any = load_image_processor(source, trust_remote_code=False)
    size = arguments.image_size or processor.size["height"]
    model = _load(MobileViTSSDLiteForObjectDetection, source, _label_fields(classes) | {"image_size": size})
    if _class_names(config) != list(classes):
        for head in model.head.level_heads.values():
            nn.init.xavier_uniform_(head.predictor.convolution.weight)
            nn.init.zeros_(head.predictor.convolution.bias)
    model.config.recommended_threshold = None
    processor.size = {"height": size, "width": size}
    return _finish(arguments, model, processor, size, "The initial detector's anchors are kept.")


def _finish(
    arguments: TrainArguments, model: PreTrainedModel, processor: BaseImageProcessor, size: int, *notes: str
) -> InitialModel:
    """Check the weights and set the dropout probability of the transformer layers."""
    check_finite_weights(model, str(arguments.model))
    if arguments.hidden_dropout_prob is not None:
        for name, module in model.named_modules():
            if name.endswith(".output.dropout"):
                module.p = arguments.hidden_dropout_prob
        getattr(model.config, "backbone_config", model.config).hidden_dropout_prob = arguments.hidden_dropout_prob
    return InitialModel(model, processor, size, notes)


def _label_fields(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


def _class_names(config: PreTrainedConfig) -> list[str]:
    return [name for _, name in sorted((config.id2label or {}).items())]


def _read_config(source: Path, model_types: Collection[str]) -> PreTrainedConfig:
    config = read_config(source, trust_remote_code=False)
    if config.model_type not in model_types:
        raise ValueError(
            f"model: got {source} of type {config.model_type}, expected {' or '.join(sorted(model_types))}. "
            "Pass another checkpoint."
        )
    return config


def _load(model_class: type[PreTrainedModel], source: Path, fields: dict[str, Any]) -> Any:
    """Load a checkpoint in float32, with a new head if its outputs differ."""
    with checkpoint_errors(source):
        model, report = model_class.from_pretrained(  # ty: ignore[not-iterable]  # a tuple with output_loading_info
            source, **fields, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    missing = {name for name in report["missing_keys"] if not name.startswith(HEADS)}
    missing |= {name for name, *_ in report["mismatched_keys"] if not name.startswith((*HEADS, "head."))}
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} weights are missing or have other shapes, such as {min(missing)}. "
            "Pass a complete MobileViT checkpoint, as written by save_pretrained."
        )
    if unexpected := [name for name in report["unexpected_keys"] if not name.startswith((*HEADS, *EXPANSION))]:
        raise ValueError(
            f"{source}: {len(unexpected)} weights are not part of the model that config.json describes, such as "
            f"{min(unexpected)}. Use the config.json that was saved with the weights."
        )
    return model


def _fit_size(own_size: int, image_side: float | None) -> int:
    """Return the checkpoint's input size, or the images' if smaller: enlarged images take longer for no gain."""
    if image_side is None:
        return own_size
    return min(own_size, max(MIN_IMAGE_SIZE, round(image_side / STRIDE) * STRIDE))


def _fit_anchors(samples: Sequence[Sample], size: int) -> tuple[dict[str, Any], str]:
    """Return configuration fields of anchors fitted to the samples' boxes, and a note on their recall."""
    boxes, image_sizes = [], []
    for sample in samples:
        if sample.objects and len(kept := sample.objects.boxes[sample.objects.iscrowd == 0]):
            image = LazyImage(sample.image)
            boxes.append(kept)
            image_sizes.append((image.height, image.width))
    if not boxes:
        return {}, "The training images have no boxes to fit anchors to; the paper's anchors are used."
    fitted = fit_anchors(boxes, image_sizes, size)
    default = MobileViTSSDLiteConfig()
    paper = {name: getattr(default, name) for name in fitted}
    recalls = [anchor_recall(boxes, image_sizes, anchors, size) for anchors in (paper, fitted)]
    return fitted, f"Anchor recall: {recalls[0]:.1%} with the paper's anchors, {recalls[1]:.1%} with fitted anchors."
