"""Image processor of the MobileViT SSDLite detector: preprocessing and post-processing."""

import operator
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.ops import box_convert
from transformers import AutoImageProcessor, BatchFeature, MobileViTImageProcessor, PreTrainedConfig
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import ModelOutput, TensorType

from .boxes_ssdlite import select_detections
from .configuration_mobilevit import HUB_KWARGS
from .finite import check_finite_outputs


def view_rgb(image: ImageInput, device: Any = None) -> Tensor | None:
    """Return an RGB image of PIL as (3, H, W) uint8 in channels_last, None for other inputs.

    Resizing is faster from this layout than from a contiguous copy, and equal: with 12 megapixels, the image processor
    takes 12 ms instead of 31.
    """
    if not isinstance(image, Image) or image.mode != "RGB":
        return None
    return torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)


class MobileViTSSDLiteImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_flip_channel_order (`bool`, *optional*, defaults to `self.do_flip_channel_order`):
        Whether to convert the channel order from RGB to BGR.
    score_threshold (`float`, *optional*, defaults to `self.score_threshold`):
        Minimum score of a detection, exclusive. Default of `post_process_object_detection`.
    max_candidates_per_class (`int`, *optional*, defaults to `self.max_candidates_per_class`):
        Maximum number of boxes per class before NMS, by score.
    nms_iou_threshold (`float`, *optional*, defaults to `self.nms_iou_threshold`):
        IoU with a higher-scoring box of the same class above which a box is dropped.
    max_detections (`int`, *optional*, defaults to `self.max_detections`):
        Maximum number of detections per image.
    """

    do_flip_channel_order: bool
    score_threshold: float
    max_candidates_per_class: int
    nms_iou_threshold: float
    max_detections: int


class MobileViTSSDLiteImageProcessor(TorchvisionBackend):
    r"""Image processor of `MobileViTSSDLiteForObjectDetection`.

    The defaults are those of the paper. Preprocessing: bilinear resize to 320x320 regardless of the aspect ratio,
    values in 0..1. Post-processing: scores above 0.01, at most 400 candidates per class, NMS at an IoU of 0.5, at most
    200 detections. Channels are RGB unless `do_flip_channel_order` is set; Apple's published weights use BGR.
    """

    valid_kwargs = MobileViTSSDLiteImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012

    resample = PILImageResampling.BILINEAR
    size = {"height": 320, "width": 320}  # noqa: RUF012
    default_to_square = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    do_convert_rgb = True
    do_flip_channel_order = False
    score_threshold = 0.01
    max_candidates_per_class = 400
    nms_iou_threshold = 0.5
    max_detections = 200

    def __init__(self, **kwargs: Unpack[MobileViTSSDLiteImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)
        for name in ("score_threshold", "nms_iou_threshold"):
            if not isinstance(value := getattr(self, name), Real) or not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value!r}, expected a number in 0..1.")
        for name in ("max_candidates_per_class", "max_detections"):
            if not isinstance(value := getattr(self, name), Integral) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer, at least 1.")

    @classmethod
    def from_backbone(cls, source: str | os.PathLike[str], **kwargs: Any) -> "MobileViTSSDLiteImageProcessor":
        """Create the image processor for a detector of `MobileViTSSDLiteForObjectDetection.from_backbone`.

        Channel order, rescaling and normalization are taken from the source.

        Args:
            source: Directory or Hub id of a MobileViT checkpoint with a `preprocessor_config.json`.
            kwargs: Fields to set, such as `size`; those in `HUB_KWARGS`, such as `revision` and `token`, are passed to
                the download.

        Raises:
            ValueError: If the source has no image processor, and `do_flip_channel_order` is not passed.
            OSError: If the source does not exist.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_KWARGS if name in kwargs}
        try:
            backbone_processor = AutoImageProcessor.from_pretrained(source, **hub_kwargs)
        except OSError as error:
            PreTrainedConfig.get_config_dict(source, **hub_kwargs)  # raises the reason if the source is unavailable
            if "do_flip_channel_order" in kwargs:
                return cls(**kwargs)
            raise ValueError(
                f"{source}: no preprocessor_config.json, so the channel order is unknown. Pass "
                "do_flip_channel_order=True if the backbone uses BGR, as Apple's weights do, else False."
            ) from error
        names = ["do_rescale", "rescale_factor"]
        if normalizes(backbone_processor):
            names += ["do_normalize", "image_mean", "image_std"]
        fields = {name: getattr(backbone_processor, name) for name in names}
        fields["do_flip_channel_order"] = getattr(backbone_processor, "do_flip_channel_order", False)
        return cls(**fields | kwargs)

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Unpack[MobileViTSSDLiteImageProcessorKwargs],
    ) -> BatchFeature:
        """Preprocess images, and their annotations for training.

        Args:
            images: One image or a list of images; PIL images, or arrays and tensors in 0..255.
            annotations: One dict per image in COCO format: `image_id` and `annotations`, a list of dicts with `bbox`
                (x, y, w, h) in pixels, `category_id` (the model's class index), and optionally `iscrowd`.
            kwargs: Fields to override for this call, and `return_tensors`.

        Returns:
            `pixel_values` (B, 3, height, width). With annotations also `labels`, see
            `MobileViTSSDLiteForObjectDetection.forward`, with the additional entries `image_id`, `iscrowd`, `area`
            (pixels²) and `orig_size` (height, width).

        Raises:
            ValueError: If the numbers of annotations and images differ, or an annotation is not in COCO format.
        """
        return super().preprocess(images, annotations, **kwargs)

    def process_image(self, image: ImageInput, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        """Convert an image to (3, H, W)."""
        pixels = view_rgb(image, device)
        return super().process_image(image, *args, device=device, **kwargs) if pixels is None else pixels

    # The documented way to handle further inputs, which the annotation of the base class rules out.
    def _preprocess_image_like_inputs(  # ty: ignore[incompatible-method-override]
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        data: dict[str, Any] = {"pixel_values": self._batch_images(prepared, **kwargs)}
        if annotations is not None:
            annotations = [annotations] if isinstance(annotations, Mapping) else annotations
            if len(annotations) != len(prepared):
                raise ValueError(
                    f"annotations: got {len(annotations)} for {len(prepared)} images. Pass one dict per image."
                )
            data["labels"] = [
                BatchFeature(_make_label(i, annotation, image.shape[-2:]), tensor_type=return_tensors)
                for i, (annotation, image) in enumerate(zip(annotations, prepared, strict=True))
            ]
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["labels"])

    def _batch_images(
        self,
        images: list[Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        do_flip_channel_order: bool,
        **kwargs: Any,
    ) -> Tensor | list[Tensor]:
        """Transform images (3, H, W) → (B, 3, height, width), or a list if their sizes differ without `do_resize`."""
        if do_resize:
            images = [self.resize(image, size, resample) for image in images]
        # Channels are flipped on uint8, which is cheaper than on float32.
        batches = [torch.stack(images)] if len({image.shape for image in images}) == 1 else [i[None] for i in images]
        if do_flip_channel_order:
            batches = [batch.flip(1) for batch in batches]
        batches = [
            self.rescale_and_normalize(batch, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            for batch in batches
        ]
        return batches[0] if len(batches) == 1 else [batch[0] for batch in batches]

    def post_process_object_detection(
        self,
        outputs: ModelOutput,
        threshold: float | None = None,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Convert model outputs to detections.

        Args:
            outputs: Outputs of the model: `logits` (B, A, 1 + K), background at index 0, and `pred_boxes` (B, A, 4)
                (cx, cy, w, h) in 0..1.
            threshold: Minimum score, exclusive. Default: `score_threshold`.
            target_sizes: (height, width) of each image in pixels.

        Returns:
            Per image `scores` (n,) in descending order, `labels` (n,) int64 in 0..K-1, and `boxes` (n, 4)
            (x1, y1, x2, y2), clipped to the image; in pixels, or in 0..1 without `target_sizes`.

        Raises:
            ValueError: If the numbers of sizes and images differ, or outputs are not finite.
        """
        check_finite_outputs(outputs, ("logits", "pred_boxes"))  # else NaN would be no detections
        logits, boxes = outputs["logits"].float(), outputs["pred_boxes"].float()
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"target_sizes: got {len(target_sizes)} for {len(logits)} images. Pass one per image.")
        detections = select_detections(
            logits.softmax(dim=-1)[..., 1:],
            box_convert(boxes, "cxcywh", "xyxy"),
            score_threshold=self.score_threshold if threshold is None else threshold,
            max_candidates_per_class=self.max_candidates_per_class,
            nms_iou_threshold=self.nms_iou_threshold,
            max_detections=self.max_detections,
        )
        for i, detection in enumerate(detections):
            detection["boxes"] = detection["boxes"].clamp(0, 1)
            if target_sizes is not None:
                height, width = map(float, target_sizes[i])
                detection["boxes"] *= boxes.new_tensor([width, height, width, height])
        return detections


def normalizes(processor: Any) -> bool:
    """Return whether an image processor subtracts a mean and divides by a standard deviation."""
    # MobileViTImageProcessor never does, even if its file sets do_normalize.
    return bool(processor.do_normalize) and not isinstance(processor, MobileViTImageProcessor)


def _make_label(index: int, annotation: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """Convert an image's annotations in COCO format → the model's `labels`."""
    height, width = image_size
    try:
        objects = annotation["annotations"]
        bboxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(len(objects), 4)
        areas = [o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects]
        return {
            "image_id": torch.tensor([annotation.get("image_id", index)]),
            "class_labels": torch.tensor([operator.index(o["category_id"]) for o in objects], dtype=torch.int64),
            "boxes": box_convert(bboxes, "xywh", "cxcywh") / torch.tensor([width, height, width, height]),
            "iscrowd": torch.tensor([o.get("iscrowd", 0) for o in objects], dtype=torch.int64),
            "area": torch.tensor(areas, dtype=torch.float32),
            "orig_size": torch.tensor([height, width]),
        }
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"annotations: image {index}: {type(error).__name__}: {error}. Expected a dict with a list "
            "`annotations` of dicts with `bbox` [x, y, w, h] and an integer `category_id`; `image_id`, `iscrowd` and "
            "`area` are optional numbers."
        ) from error


MobileViTSSDLiteImageProcessor.register_for_auto_class()

__all__ = ["MobileViTSSDLiteImageProcessor"]
