"""Images into a MobileViT SSDLite detector, and boxes out of it."""

import operator
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers import AutoImageProcessor, BatchFeature, MobileViTImageProcessor, PreTrainedConfig
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import ModelOutput, TensorType

from .configuration_mobilevit import HUB_KWARGS
from .boxes_ssdlite import select_detections


class MobileViTSSDLiteImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_flip_channel_order (`bool`, *optional*, defaults to `self.do_flip_channel_order`):
        Whether the model takes colors as BGR.
    score_threshold (`float`, *optional*, defaults to `self.score_threshold`):
        Only scores above it are detections, where `post_process_object_detection` is given none.
    max_candidates_per_class (`int`, *optional*, defaults to `self.max_candidates_per_class`):
        How many boxes of a class, the best, enter the suppression.
    nms_iou_threshold (`float`, *optional*, defaults to `self.nms_iou_threshold`):
        Boxes of a class that overlap a better one by more are dropped.
    max_detections (`int`, *optional*, defaults to `self.max_detections`):
        How many are kept for an image.
    """

    do_flip_channel_order: bool
    score_threshold: float
    max_candidates_per_class: int
    nms_iou_threshold: float
    max_detections: int


class MobileViTSSDLiteImageProcessor(TorchvisionBackend):
    r"""Resizes images to a square for `MobileViTSSDLiteForObjectDetection`, and makes detections of what it returns.

    The defaults are the paper's: 320x320 whatever the image's shape, values in 0..1, bilinear; scores above 0.01,
    the best 400 of a class, suppression at an overlap of 0.5, 200 detections. Channels are RGB unless
    `do_flip_channel_order`; Apple's published weights take BGR.
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
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value!r}, expected a number in 0..1.")
        for name in ("max_candidates_per_class", "max_detections"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer, at least 1.")

    @classmethod
    def from_backbone(cls, source: str | os.PathLike[str], **kwargs: Any) -> "MobileViTSSDLiteImageProcessor":
        """The image processor for a detector made by `MobileViTSSDLiteForObjectDetection.from_backbone`.

        Channel order, scaling and normalization are those that the backbone was trained with.

        Args:
            source: The directory or Hub id of a MobileViT checkpoint with its `preprocessor_config.json`.
            kwargs: Fields to set, such as `size`; those of `HUB_KWARGS`, such as `revision` and `token`, go to the
                download.

        Raises:
            ValueError: If the source has no image processor, and `do_flip_channel_order` is not given.
            OSError: If there is no such source.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_KWARGS if name in kwargs}
        try:
            trained_with = AutoImageProcessor.from_pretrained(source, **hub_kwargs)
        except OSError as error:
            PreTrainedConfig.get_config_dict(source, **hub_kwargs)  # says why, where nothing of the source can be had
            if "do_flip_channel_order" in kwargs:
                return cls(**kwargs)
            raise ValueError(
                f"{source}: no preprocessor_config.json, so the colors' order is not known. Pass "
                "do_flip_channel_order=True if the backbone takes BGR, as Apple's do, else False."
            ) from error
        fields = {name: getattr(trained_with, name) for name in ("do_rescale", "rescale_factor")}
        fields["do_flip_channel_order"] = getattr(trained_with, "do_flip_channel_order", False)
        # MobileViT's own processor never normalizes, whatever its file says.
        if trained_with.do_normalize and not isinstance(trained_with, MobileViTImageProcessor):
            fields |= {name: getattr(trained_with, name) for name in ("do_normalize", "image_mean", "image_std")}
        return cls(**{**fields, **kwargs})

    def preprocess(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Unpack[MobileViTSSDLiteImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare images, and the objects on them for training.

        Args:
            images: One image or a list; PIL, or arrays and tensors in 0..255.
            annotations: For each image a dict in COCO's format: `image_id` and `annotations`, a list of dicts with
                `bbox` (x, y, w, h) in pixels, `category_id` as the model numbers its classes, and `iscrowd` where it
                is 1.
            kwargs: Fields to set for this call, and `return_tensors`.

        Returns:
            `pixel_values` (B, 3, height, width); with annotations also `labels`, see
            `MobileViTSSDLiteForObjectDetection.forward`, with `image_id`, `iscrowd`, `area` (pixels²) and `orig_size`
            (height, width) beside.

        Raises:
            ValueError: If there are not as many annotations as images, or one has another format.
        """
        return super().preprocess(images, annotations, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        data = {"pixel_values": self._preprocess(prepared, **kwargs)}
        if annotations is not None:
            annotations = [annotations] if isinstance(annotations, Mapping) else annotations
            if len(annotations) != len(prepared):
                raise ValueError(
                    f"annotations: got {len(annotations)} for {len(prepared)} images. Give one dict for each."
                )
            data["labels"] = [
                BatchFeature(_make_label(i, annotation, image.shape[-2:]), tensor_type=return_tensors)
                for i, (annotation, image) in enumerate(zip(annotations, prepared, strict=True))
            ]
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["labels"])

    def _preprocess(
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
        """(3, H, W) each → (B, 3, height, width); a list where images of several sizes are not resized."""
        if do_resize:
            images = [self.resize(image, size, resample) for image in images]
        # Colors are swapped while a pixel is a byte.
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
        """The objects that the model found in each image of a batch.

        Args:
            outputs: What the model returned: `logits` (B, A, 1 + K), the background first, and `pred_boxes` (B, A, 4).
            threshold: Only scores above it. Default: `score_threshold`.
            target_sizes: (height, width) of each image in pixels.

        Returns:
            For each image `scores` (n,), best first, `labels` (n,) int64, 0..K-1, and `boxes` (n, 4) (x1, y1, x2,
            y2), clipped to the image; in its pixels, or in 0..1 without `target_sizes`.

        Raises:
            ValueError: If there are not as many sizes as images.
        """
        logits, boxes = outputs.logits.float(), outputs.pred_boxes.float()
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"target_sizes: got {len(target_sizes)} for {len(logits)} images. Give one each.")
        detections = select_detections(
            logits.softmax(dim=-1)[..., 1:],
            box_convert(boxes, "cxcywh", "xyxy"),
            score_threshold=self.score_threshold if threshold is None else threshold,
            max_candidates_per_class=self.max_candidates_per_class,
            nms_iou_threshold=self.nms_iou_threshold,
            max_detections=self.max_detections,
        )
        sizes = (
            [(1.0, 1.0)] * len(detections) if target_sizes is None else [tuple(map(float, s)) for s in target_sizes]
        )
        for found, (height, width) in zip(detections, sizes, strict=True):
            found["boxes"] = found["boxes"].clamp(0, 1) * boxes.new_tensor([width, height, width, height])
        return detections


def _make_label(index: int, annotation: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """An image's objects in COCO's format → the model's `labels`."""
    height, width = image_size
    try:
        objects = annotation["annotations"]
        bboxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(len(objects), 4)
        class_labels = torch.tensor([operator.index(o["category_id"]) for o in objects], dtype=torch.int64)
        image_id = torch.tensor([annotation.get("image_id", index)])
        iscrowd = torch.tensor([o.get("iscrowd", 0) for o in objects], dtype=torch.int64)
        areas = [o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects]
        area = torch.tensor(areas, dtype=torch.float32)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"annotations: image {index}: {type(error).__name__}: {error}. Expected a dict with a list "
            "`annotations` of dicts with `bbox` [x, y, w, h] and an integer `category_id`; `image_id`, `iscrowd` and "
            "`area` are numbers where they are there."
        ) from error
    boxes = box_convert(bboxes, "xywh", "cxcywh") / torch.tensor([width, height, width, height])
    return {
        "image_id": image_id,
        "class_labels": class_labels,
        "boxes": boxes,
        "iscrowd": iscrowd,
        "area": area,
        "orig_size": torch.tensor([height, width]),
    }


__all__ = ["MobileViTSSDLiteImageProcessor"]
