"""Models for export that take an image and return predictions: preprocessing and post-processing in the graph."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers.image_utils import PILImageResampling, pil_torch_interpolation_mapping

from ..modeling.fused_mobilevit import FusedModel
from ..modeling.image_processing_mobilevit_ssdlite import normalizes
from ..tasks import TASKS, TaskName
from .interfaces import Interface
from .requests import ExportRequest

# Boxes of all classes that enter NMS, by score. The image processor takes as many of each class.
MAX_CANDIDATES = 400
# Each round decides about the boxes whose overlapping boxes with higher scores are decided: the result is that of
# sequential NMS unless a chain of overlapping boxes is longer.
NMS_ROUNDS = 16
# transformers.js takes the softmax of the logits and drops boxes whose highest class is the last one, the background.
# The probability that is left is spread over this many further columns, so that no detection is dropped.
DUMMY_COLUMNS = 100
MIN_SCORE = 1 / (1 + DUMMY_COLUMNS)  # below it, a dummy column would be the highest
LOG_ZERO = -1e4  # softmax gives 0
MAX_UINT8_CLASSES = 256


class Scaling(NamedTuple):
    """Value of a channel as the image processor returns it: `scale * byte + shift`.

    Attributes:
        scale, shift: By channel, in the order of the image processor's output.
        flips_channels: Whether that order is blue, green, red.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    flips_channels: bool

    @classmethod
    def from_processor(cls, processor: Any) -> "Scaling":
        """Read the fields of an image processor."""
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if normalizes(processor) else ((0.0,) * 3, (1.0,) * 3)
        return cls(
            tuple(factor / s for s in std),
            tuple(-m / s for m, s in zip(mean, std, strict=True)),
            bool(getattr(processor, "do_flip_channel_order", False)),
        )

    def to_image(self, pixels: np.ndarray) -> np.ndarray:
        """Return the exact image of outputs of the image processor: (B, 3, H, W) float32 → (B, H, W, 3) uint8 RGB."""
        scale, shift = (np.array(each, np.float32).reshape(3, 1, 1) for each in self[:2])
        values = pixels * (1 / scale)
        values += 0.5 - shift / scale
        image = np.clip(values, 0, 255, out=values).astype(np.uint8)
        image = image[:, ::-1] if self.flips_channels else image
        return np.ascontiguousarray(image.transpose(0, 2, 3, 1))


class Preprocessing(nn.Module):
    """Scale an image as the image processor does: (1, H, W, 3) uint8 RGB → (1, 3, H, W) float32 RGB.

    The channels keep their order: `_flip_channels` reverses those of the weights instead.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        step = -1 if scaling.flips_channels else 1
        self.register_buffer("scale", torch.tensor(scaling.scale[::step]), persistent=False)
        self.register_buffer("shift", torch.tensor(scaling.shift[::step]), persistent=False)
        self.shifts = any(scaling.shift)

    def forward(self, image: Tensor) -> Tensor:
        """Return the scaled pixels."""
        pixels = image.float() * self.scale
        return (pixels + self.shift if self.shifts else pixels).permute(0, 3, 1, 2)


def _flip_channels(model: nn.Module) -> None:
    """Make a model for BGR images take RGB images, by its first convolution."""
    stem = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    stem.weight = nn.Parameter(stem.weight.flip(1), requires_grad=False)


def _fuse(request: ExportRequest, scaling: Scaling) -> FusedModel:
    """Return the fused model, for RGB images."""
    model = FusedModel(request.model, TASKS[request.task].outputs, getattr(torch, request.dtype))
    if scaling.flips_channels:
        _flip_channels(model)
    return model


class ImageClassifier(nn.Module):
    """Classifier of the interface "image": (1, H, W, 3) uint8 RGB → scores (1, K).

    Raises:
        ValueError: If the classes do not exclude each other; transformers' pipeline then takes a sigmoid.
    """

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        if request.model.config.problem_type == "multi_label_classification" or len(request.labels) == 1:
            raise ValueError(
                "interface: got image for a model of one or several classes per image, expected exactly one of at "
                'least two. Use the interface "tensors".'
            )
        scaling = Scaling.from_processor(request.processor)
        self.preprocessing, self.model = Preprocessing(scaling), _fuse(request, scaling)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return the softmax of the logits."""
        (logits,) = self.model(self.preprocessing(image))
        return (logits.softmax(dim=-1),)


class Candidates(nn.Module):
    """Boxes of all anchors: (1, H, W, 3) uint8 RGB → boxes (1, A, 4) and scores (1, A, K), see `decode`."""

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        scaling = Scaling.from_processor(request.processor)
        self.preprocessing, self.model = Preprocessing(scaling), _fuse(request, scaling)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and scores."""
        return decode(*self.model(self.preprocessing(image)))


def decode(logits: Tensor, pred_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Convert the detector's outputs to boxes (B, A, 4) (x1, y1, x2, y2), not clipped, and scores (B, A, K)."""
    return box_convert(pred_boxes, "cxcywh", "xyxy"), logits.softmax(dim=-1)[..., 1:]


def top_candidates(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Select `MAX_CANDIDATES` pairs of an anchor and a class: (1, A, 4), (1, A, K) → (M, 4), (M,) descending, (M,)."""
    num_anchors, num_labels = scores.shape[1:]
    score, index = scores.flatten().topk(min(MAX_CANDIDATES, num_anchors * num_labels))
    # A box per pair: coremltools divides integers in the model's precision, and float16 ends at 2048 for them.
    pairs = boxes[0, :, None].expand(-1, num_labels, -1).reshape(-1, 4)
    return pairs.index_select(0, index), score, index % num_labels


class Selection(nn.Module):
    """Select detections by score, NMS per class and top-k, in tensor operations of fixed sizes.

    Boxes (1, A, 4) (x1, y1, x2, y2), scores (1, A, K) → boxes (1, N, 4), scores (1, N) in descending order and labels
    (1, N) int32, zeros in rows without a detection. The output boxes are clipped to 0..1. As the image processor's
    post-processing, except that `MAX_CANDIDATES` boxes of all classes together enter NMS.
    """

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.score_threshold, self.iou_threshold = processor.score_threshold, processor.nms_iou_threshold
        self.max_detections = processor.max_detections

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels of the detections."""
        box, score, label = top_candidates(boxes, scores)
        is_kept = self._suppress(box, score, label)
        # Kept boxes move to the front, in their order.
        score, order = (score * is_kept).topk(min(self.max_detections, len(score)))
        is_detection = (score > 0).to(box.dtype)
        box = box.index_select(0, order).clamp(0, 1) * is_detection[:, None]
        label = label.index_select(0, order).to(torch.int32) * is_detection.to(torch.int32)
        return box[None], score[None], label[None]

    def _suppress(self, box: Tensor, score: Tensor, label: Tensor) -> Tensor:
        """Return 1 for the boxes to keep, else 0: (M, 4), (M,) in descending order, (M,) → (M,) float32."""
        x1, y1, x2, y2 = box.unbind(dim=1)
        width = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
        height = torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)
        area = (x2 - x1) * (y2 - y1)
        intersection = width.clamp(min=0) * height.clamp(min=0)
        # Without a division, which is 0 / 0 for boxes without area.
        overlaps = intersection > self.iou_threshold * (area[:, None] + area - intersection)
        overlaps = (overlaps & (label[:, None] == label)).to(score.dtype).triu(diagonal=1)
        is_candidate = (score > self.score_threshold).to(score.dtype)
        is_kept = is_candidate
        for _ in range(NMS_ROUNDS):
            # A box is dropped if it overlaps with a kept box of a higher score.
            is_kept = is_candidate * (is_kept[None] @ overlaps < 0.5)[0].to(score.dtype)
        return is_kept


class ImageDetector(nn.Module):
    """Detector of the interface "image": (1, H, W, 3) uint8 RGB → boxes (1, N, 4), scores (1, N), labels (1, N)."""

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        self.candidates, self.select = Candidates(request), Selection(request.processor)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels of the detections."""
        return self.select(*self.candidates(image))


class ImageSegmenter(nn.Module):
    """Segmentation model of the interface "image": (1, H, W, 3) uint8 RGB → labels (1, H, W), class index per pixel.

    Attributes:
        dtype: Type of the labels: uint8, or int32 for more than 256 classes.
    """

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        scaling = Scaling.from_processor(request.processor)
        self.preprocessing, self.model = Preprocessing(scaling), _fuse(request, scaling)
        self.dtype = torch.uint8 if len(request.labels) <= MAX_UINT8_CLASSES else torch.int32

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return the class with the highest logit at each pixel, after bilinear upsampling of the logits."""
        (logits,) = self.model(self.preprocessing(image))
        return (upsample(logits, image.shape[1:3]).argmax(dim=1).to(self.dtype),)


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Upsample logits (B, K, h, w) bilinearly to (B, K, H, W), as transformers' post-processing does."""
    return nn.functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


class Resizing(nn.Module):
    """Resize an image of any size to that of the model: (1, 3, h, w) float32 RGB in 0..1 → (1, H, W, 3) uint8 RGB.

    The image is resized here: transformers.js resizes without antialiasing in Node and by a canvas in a browser, which
    changes boxes by up to 27 pixels and scores by up to 0.09.
    """

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        self.size, self.mode = request.size, _interpolation_mode(request.processor)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the resized image."""
        # In bytes, as the image processor does: the result is rounded.
        image = (pixel_values * 255).round().clamp(0, 255).to(torch.uint8)
        image = nn.functional.interpolate(image, self.size, mode=self.mode, antialias=True)
        return image.permute(0, 2, 3, 1)


class ResizingAndCropping(nn.Module):
    """Resize an image by its shorter side and crop its center, as the image processor of a classifier; see `Resizing`.

    (1, 3, h, w) float32 RGB in 0..1 → (1, H, W, 3) uint8 RGB. An image of the crop's size is taken as it is: it was
    resized and cropped before.
    """

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        processor: Any = request.processor
        self.crop, self.mode = request.size, _interpolation_mode(processor)
        self.short = processor.size["shortest_edge"]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the crop."""
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        # 0 for an image of the crop's size, else 1: a graph for all sizes has no branches.
        differs = torch.sym_min(1, sum(torch.sym_max(a - b, b - a) for a, b in zip(size, self.crop, strict=True)))
        shorter = torch.sym_min(*size)
        resized = [c + differs * (self.short * s // shorter - c) for s, c in zip(size, self.crop, strict=True)]
        image = (pixel_values * 255).round().clamp(0, 255).to(torch.uint8)
        image = nn.functional.interpolate(image, resized, mode=self.mode, antialias=True)
        top, left = ((side - crop) // 2 for side, crop in zip(resized, self.crop, strict=True))
        return image[..., top : top + self.crop[0], left : left + self.crop[1]].permute(0, 2, 3, 1)


class TransformersJsClassifier(nn.Module):
    """Classifier for transformers.js: (1, 3, h, w) float32 RGB in 0..1, of any size → logits (1, K)."""

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        scaling = Scaling.from_processor(request.processor)
        crops = getattr(request.processor, "do_center_crop", False)
        self.resize = (ResizingAndCropping if crops else Resizing)(request)
        self.preprocessing, self.model = Preprocessing(scaling), _fuse(request, scaling)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Return the logits."""
        return self.model(self.preprocessing(self.resize(pixel_values)))


class TransformersJsSegmenter(nn.Module):
    """Model for transformers.js's image-segmentation pipeline, as a model of the type "segformer".

    (1, 3, h, w) float32 RGB in 0..1, of any size → logits (1, K, H / stride, W / stride), which the pipeline upsamples
    to the size of the image.
    """

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        scaling = Scaling.from_processor(request.processor)
        self.resize, self.preprocessing = Resizing(request), Preprocessing(scaling)
        self.model = _fuse(request, scaling)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Return the logits."""
        return self.model(self.preprocessing(self.resize(pixel_values)))


class TransformersJsDetector(nn.Module):
    """Detector for transformers.js's object-detection pipeline, as a model of the type "yolos".

    (1, 3, h, w) float32 RGB in 0..1, of any size → logits (1, N, K + D + 1) and, after NMS, pred_boxes (1, N, 4)
    (cx, cy, w, h) in 0..1. The softmax of the logits has the scores; its last column is 1 in rows without a detection.
    """

    def __init__(self, request: ExportRequest) -> None:
        super().__init__()
        scaling = Scaling.from_processor(request.processor)
        self.resize, self.preprocessing = Resizing(request), Preprocessing(scaling)
        self.model = _fuse(request, scaling)
        self.select, self.num_labels = Selection(request.processor), len(request.labels)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and boxes of the detections."""
        pixels = self.preprocessing(self.resize(pixel_values))
        boxes, scores, labels = self.select(*decode(*self.model(pixels)))
        is_label = labels[..., None] == torch.arange(self.num_labels, dtype=labels.dtype)
        is_detection = scores[..., None] > MIN_SCORE
        zero = torch.full_like(is_label, LOG_ZERO, dtype=scores.dtype)
        classes = torch.where(is_label & is_detection, scores.clamp(min=1e-30).log()[..., None], zero)
        left = ((1 - scores).clamp(min=1e-30) / DUMMY_COLUMNS).log()[..., None]
        dummies = torch.where(is_detection, left, LOG_ZERO).expand(-1, -1, DUMMY_COLUMNS)
        background = torch.where(is_detection, LOG_ZERO, torch.zeros_like(left))
        return torch.cat((classes, dummies, background), dim=-1), box_convert(boxes, "xyxy", "cxcywh")


def _interpolation_mode(processor: Any) -> str:
    """Return the name of an image processor's resampling filter in torch."""
    return pil_torch_interpolation_mapping[PILImageResampling(processor.resample)].value


# By task and interface.
MODULES: dict[tuple[TaskName, Interface], type[nn.Module]] = {
    ("image-classification", "image"): ImageClassifier,
    ("image-classification", "transformers.js"): TransformersJsClassifier,
    ("object-detection", "image"): ImageDetector,
    ("object-detection", "transformers.js"): TransformersJsDetector,
    ("image-segmentation", "image"): ImageSegmenter,
    ("image-segmentation", "transformers.js"): TransformersJsSegmenter,
}


def build_module(request: ExportRequest) -> nn.Module:
    """Return the module of a request, whose `forward` takes the input and returns a tuple of the outputs."""
    if request.interface == "tensors":
        module: nn.Module = FusedModel(request.model, TASKS[request.task].outputs, getattr(torch, request.dtype))
    else:
        module = MODULES[request.task, request.interface](request)
    return module.eval()


def example_input(request: ExportRequest) -> Tensor:
    """Return an example input: (B, 3, H, W) float32, or (1, H, W, 3) uint8 for the interface "image"."""
    if request.interface == "tensors":
        return request.pixels
    image = request.pixels.new_zeros(1, 3, *request.size)
    return image.permute(0, 2, 3, 1).to(torch.uint8).contiguous() if request.interface == "image" else image
