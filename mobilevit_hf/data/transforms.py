"""Transforms from an image and its sample to the inputs of a model in training and evaluation.

Pixel values equal those of the image processor. Training transforms choose a region of the image first, then decode
and resize only that, once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from torchvision.transforms import v2
from transformers import BaseImageProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from ..tasks import TaskName
from .images import LazyImage, Region
from .masks import Mask
from .types import IGNORE_INDEX, Objects, Sample

FILL = (124, 116, 104)  # ImageNet's mean color, for padding and erased rectangles
MIN_SIDE = 1.0  # boxes with a smaller side after a crop, in pixels of the result, are dropped

# SSD's random crops: minimum overlap with a box (1: no crop), side lengths as a fraction, aspect ratio.
CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
MIN_CROP, MAX_CROP = 0.3, 1.0
MIN_RATIO, MAX_RATIO = 0.5, 2.0
CROP_TRIES = 40
RESIZED_CROP_TRIES = 10

Transform: TypeAlias = Callable[..., dict[str, Any]]
Mix: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_transform(task: TaskName, processor: BaseImageProcessor, *, training: bool, **options: Any) -> Transform:
    """Create the transform from images to inputs of a model.

    Args:
        task: Task of the samples.
        processor: Image processor that is saved with the model.
        training: Whether to augment. If False, the transform applies the processor alone.
        options: Fields of the task's training transform, see `TRAINING_TRANSFORMS`.

    Returns:
        A function of an image (PIL or `LazyImage`), its `Sample` and, in training, an optional (height, width) that
        replaces the processor's. It returns `pixel_values` (3, H, W) float32 and `labels`: the class in
        classification, a dict as `MobileViTSSDLiteForObjectDetection` accepts it in detection, classes (H, W) int64
        with `IGNORE_INDEX` in segmentation.

    Raises:
        ValueError: If an option is out of range, or the processor can't be reproduced in training.
    """
    return TRAINING_TRANSFORMS[task](processor, **options) if training else EvaluationTransform(processor, **options)


@dataclass(frozen=True)
class EvaluationTransform:
    """The image processor, applied as in inference."""

    processor: BaseImageProcessor

    def __call__(self, source: Image.Image | LazyImage, sample: Sample) -> dict[str, Any]:
        """See `make_transform`."""
        image = source.load() if isinstance(source, LazyImage) else source
        size = (image.height, image.width)
        if sample.mask is not None:
            # Padding of the processor has the value 0, which here is the ignored one.
            mask = sample.mask.read(size=size) + np.uint8(1)
            inputs = self.processor(image, segmentation_maps=mask, do_reduce_labels=False, return_tensors="pt")
            return {"pixel_values": inputs["pixel_values"][0], "labels": (inputs["labels"][0] - 1) % 256}
        pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        labels = sample.label if sample.objects is None else _make_labels(sample.objects, size, size)
        return {"pixel_values": pixels, "labels": labels}


class Normalization:
    """Last steps of an image processor (channel order, rescaling, normalization), inferred by applying it to colors.

    Args:
        processor: Processor that maps each input channel linearly to one of the three output channels.

    Attributes:
        size: (height, width) to which the processor resizes square images.

    Raises:
        ValueError: If the processor does anything else.
    """

    def __init__(self, processor: BaseImageProcessor) -> None:
        colors = ["black", (255, 0, 0), (0, 255, 0), (0, 0, 255)]
        images = [Image.new("RGB", (64, 64), color) for color in colors]
        values = processor(images, return_tensors="pt")["pixel_values"]
        self.size = (values.shape[-2], values.shape[-1])
        centers = values[:, :, self.size[0] // 2, self.size[1] // 2].double()
        self.biases = centers[0].tolist()
        response = (centers[1:] - centers[0]).T  # (out, in)
        self.channels = response.abs().argmax(dim=1).tolist()
        if values.shape[1] != 3 or sorted(self.channels) != [0, 1, 2] or (response.abs() > 1e-6).sum() != 3:
            raise ValueError(
                f"processor: got {type(processor).__name__}, which mixes color channels, expected one that returns "
                "the three channels, in any order, each scaled separately. Use a MobileViT image processor."
            )
        self.scales = [response[i, channel].item() / 255 for i, channel in enumerate(self.channels)]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Convert (B, 3, H, W) uint8 RGB to float32 as the processor returns it."""
        result = torch.empty(pixels.shape)
        for index, (channel, scale, bias) in enumerate(zip(self.channels, self.scales, self.biases, strict=True)):
            torch.mul(pixels[:, channel], scale, out=result[:, index])
            if bias:
                result[:, index].add_(bias)
        return result


@dataclass
class TrainingTransform:
    """Base of the training transforms: render a region, flip it, and normalize it as the processor does.

    Args:
        processor: Image processor that is saved with the model.
        horizontal_flip: Probability of a horizontal flip, 0..1.
        vertical_flip: Probability of a vertical flip, 0..1.
        color_jitter: Probability that brightness, contrast, saturation, hue and channel order are varied (each with a
            probability of 0.5), 0..1.
    """

    processor: BaseImageProcessor
    _: KW_ONLY
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        self._check_probabilities("horizontal_flip", "vertical_flip", "color_jitter")
        self._distort = v2.RandomPhotometricDistort()
        if not isinstance(self.processor, TorchvisionBackend):
            raise ValueError(
                f"processor: got {type(self.processor).__name__}, expected one with the torchvision backend. Load it "
                'with AutoImageProcessor.from_pretrained(..., backend="torchvision").'
            )
        self._backend: TorchvisionBackend = self.processor
        self.normalize = Normalization(self.processor)

    def augment(self, image: LazyImage, sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Any]:
        """Return (3, H, W) uint8 RGB, to be normalized, and the labels, those of pixels as uint8."""
        raise NotImplementedError

    def __call__(
        self, image: Image.Image | LazyImage, sample: Sample, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """See `make_transform`."""
        image = image if isinstance(image, LazyImage) else LazyImage(image)
        pixels, labels = self.augment(image, sample, size or self.normalize.size)
        labels = labels.long() if isinstance(labels, Tensor) else labels
        return {"pixel_values": self.normalize(pixels[None])[0], "labels": labels}

    def _check_probabilities(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a probability, 0..1.")

    def _resize(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        if pixels.shape[-2:] == size:
            return pixels
        return self._backend.resize(pixels, SizeDict(height=size[0], width=size[1]), self._backend.resample)  # ty: ignore[missing-attribute] (of subclasses)

    def _jitter_colors(self, pixels: Tensor) -> Tensor:
        return self._distort(pixels) if _with_probability(self.color_jitter) else pixels

    def _choose_flips(self) -> list[int]:
        probabilities = {-1: self.horizontal_flip, -2: self.vertical_flip}
        return [dim for dim, probability in probabilities.items() if _with_probability(probability)]

    def _render(self, image: LazyImage, region: Region, size: tuple[int, int]) -> Tensor:
        """Return the region as (3, H, W) uint8 with jittered colors, filled where it exceeds the image."""
        inner, (rows, columns) = _place(region, (image.height, image.width), size)
        inner_size = (rows.stop - rows.start, columns.stop - columns.start)
        pixels = self._jitter_colors(self._resize(image.read(inner, inner_size), inner_size))
        if inner_size == size:
            return pixels
        canvas = torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1).repeat(1, *size)
        canvas[:, rows, columns] = pixels
        return canvas


@dataclass(kw_only=True)
class ClassificationTransform(TrainingTransform):
    """Random resized crops and flips (the paper's augmentation), and optional further augmentation.

    Args:
        crop_scale: Minimum and maximum area of a crop, as a fraction of the image's area.
        crop_ratio: Minimum and maximum aspect ratio (width / height) of a crop.
        rand_augment: Magnitude of RandAugment's two operations, 0..30; None to disable it.
        random_erasing: Probability that a random rectangle is erased, 0..1.
    """

    crop_scale: Sequence[float] = (0.08, 1.0)
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    rand_augment: int | None = None
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_probabilities("random_erasing")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: got {self.crop_scale}, expected a minimum and a maximum in 0..1.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: got {self.crop_ratio}, expected a minimum and a maximum above 0.")
        if self.rand_augment is not None and not 0 <= self.rand_augment <= 30:
            raise ValueError(f"rand_augment: got {self.rand_augment}, expected a magnitude in 0..30.")
        augmentations: list[v2.Transform] = []
        if self.rand_augment is not None:
            augmentations.append(v2.RandAugment(magnitude=self.rand_augment, fill=list(FILL)))
        if self.random_erasing:
            augmentations.append(v2.RandomErasing(self.random_erasing, value=list(FILL)))  # ty: ignore[invalid-argument-type] (a sequence is accepted)
        self._augment = v2.Compose(augmentations) if augmentations else None

    def augment(self, image: LazyImage, sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Any]:
        """Return (3, H, W) uint8 RGB and the class."""
        region = random_resized_crop(image.height, image.width, self.crop_scale, self.crop_ratio)
        pixels = self._jitter_colors(self._resize(image.read(region, size), size))
        pixels = pixels.flip(self._choose_flips())
        return self._augment(pixels) if self._augment else pixels, sample.label


def random_resized_crop(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Region:
    """Choose a region at random by its area and aspect ratio (Inception's augmentation, arXiv 1409.4842).

    Same distribution as torchvision's `RandomResizedCrop`, whose own choice takes as long as decoding a small image.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scale: Minimum and maximum area, as a fraction of the image's area.
        ratio: Minimum and maximum aspect ratio (width / height), sampled uniformly in log space.

    Returns:
        A region within both ranges, or after ten failed tries the center of the image with the nearest possible ratio.
    """
    minimum, maximum = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, down, right in torch.rand(RESIZED_CROP_TRIES, 4).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(minimum + (maximum - minimum) * aspect)
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return Region(int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    rows, columns = min(height, round(width / aspect)), min(width, round(height * aspect))
    return Region((height - rows) // 2, (width - columns) // 2, rows, columns)


@dataclass(kw_only=True)
class DetectionTransform(TrainingTransform):
    """SSD's augmentation: color jitter, zoom-out, crops with a minimum overlap with a box, flips.

    Args:
        zoom_out: Probability that the image is placed on a canvas of up to four times its sides, 0..1.
        crop: Probability of a random IoU crop (which in one of seven cases is the whole image), 0..1.
    """

    color_jitter: float = 1.0
    zoom_out: float = 0.5
    crop: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_probabilities("zoom_out", "crop")
        self._zoom_out = v2.RandomZoomOut()

    def augment(self, image: LazyImage, sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Any]:
        """Return (3, H, W) uint8 RGB and the labels of a detector."""
        if sample.objects is None:
            raise ValueError(f"{sample.name}: got a sample without objects, expected boxes for object detection.")
        region = self._choose_region(image, sample.objects)
        pixels, objects = self._render(image, region, size), crop_objects(sample.objects, region, size)
        dims = self._choose_flips()
        for dim in dims:
            objects = _flip(objects, dim, size)
        return pixels.flip(dims), _make_labels(objects, size, (image.height, image.width))

    def _choose_region(self, image: LazyImage, objects: Objects) -> Region:
        """Choose a region of the image, or of a canvas around it."""
        region = Region(0, 0, image.height, image.width)
        if _with_probability(self.zoom_out):
            empty = torch.empty(0, image.height, image.width)  # torchvision infers the size from it
            left, top, right, bottom = self._zoom_out.make_params([empty])["padding"]
            region = Region(-top, -left, top + image.height + bottom, left + image.width + right)
        boxes = objects.boxes[objects.iscrowd == 0]
        return random_iou_crop(region, boxes) if len(boxes) and _with_probability(self.crop) else region


def random_iou_crop(region: Region, boxes: Tensor) -> Region:
    """Choose a crop that contains the center of a box and has a minimum IoU with that box (SSD, section 2.2).

    Same distribution as torchvision's `RandomIoUCrop`, whose sequential tries take 20 times as long.

    Args:
        region: Region to crop, in pixels of the image.
        boxes: (N, 4) (x1, y1, x2, y2) in pixels of the image, N > 0.

    Returns:
        A part of the region, or the whole region.
    """
    sides, corner = torch.tensor(region[2:]), torch.tensor(region[:2])
    while True:
        min_overlap = CROP_OVERLAPS[int(torch.randint(len(CROP_OVERLAPS), ()))]
        if min_overlap >= 1:
            return region
        lengths = (sides * (MIN_CROP + (MAX_CROP - MIN_CROP) * torch.rand(CROP_TRIES, 2))).long()
        starts = corner + ((sides - lengths) * torch.rand(CROP_TRIES, 2)).long()
        ratios = lengths[:, 1] / lengths[:, 0]
        crops = torch.cat([starts, starts + lengths], dim=1)[:, [1, 0, 3, 2]].float()  # (x1, y1, x2, y2)
        overlaps = torch.where(_contains_centers(crops, boxes), box_iou(crops, boxes), -1).amax(dim=1)
        is_valid = (ratios >= MIN_RATIO) & (ratios <= MAX_RATIO) & (lengths > 0).all(dim=1) & (overlaps >= min_overlap)
        if is_valid.any():
            first = int(is_valid.nonzero()[0])
            return Region(*starts[first].tolist(), *lengths[first].tolist())


def crop_objects(objects: Objects, region: Region, size: tuple[int, int]) -> Objects:
    """Crop objects to a region of their image, in pixels of the region resized to `size`.

    Boxes are clipped to the region, and areas shrink by the same factor. Objects are dropped if the center of their
    box is outside of the region or a side of the clipped box is shorter than `MIN_SIDE` pixels.
    """
    top, left, height, width = region
    border = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
    scale = torch.tensor([size[1] / width, size[0] / height])
    clipped = objects.boxes.clamp(border[:2].repeat(2), border[2:].repeat(2))
    original_sides, sides = objects.boxes[:, 2:] - objects.boxes[:, :2], (clipped[:, 2:] - clipped[:, :2])
    kept = _contains_centers(border[None], objects.boxes)[0] & (sides * scale >= MIN_SIDE).all(dim=1)
    areas = objects.areas * (sides / original_sides).prod(dim=1) * scale.prod()
    boxes = (clipped - border[:2].repeat(2)) * scale.repeat(2)
    return replace(objects, boxes=boxes, areas=areas).select(kept)


@dataclass(kw_only=True)
class SegmentationTransform(TrainingTransform):
    """Random resized crops at several scales, flips and color jitter, of an image together with its mask.

    At scale 1, a crop shows what the processor shows: the whole image if it changes the aspect ratio, or else the
    largest part of the target's aspect ratio. It is smaller at larger scales. At smaller ones, it exceeds the image;
    the pixels outside have the mean color and `IGNORE_INDEX`.

    Args:
        scale_jitter: Minimum and maximum scale of the image, sampled uniformly.
        ratio_jitter: Minimum and maximum factor of the aspect ratio (width / height), sampled uniformly in log space.
    """

    color_jitter: float = 0.5
    scale_jitter: Sequence[float] = (0.5, 2.0)
    ratio_jitter: Sequence[float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale_jitter", "ratio_jitter"):
            minimum, maximum = getattr(self, name)
            if not 0 < minimum <= maximum:
                raise ValueError(f"{name}: got {minimum} to {maximum}, expected a minimum and a maximum above 0.")
        # Sizes other than by the shortest edge, and without a crop, are those of a stretched image.
        wide = self.processor(Image.new("RGB", (128, 64)), return_tensors="pt")["pixel_values"]
        is_cropped = getattr(self.processor, "do_center_crop", False)
        self._is_stretched = not is_cropped and tuple(wide.shape[-2:]) == self.normalize.size

    def augment(self, image: LazyImage, sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Any]:
        """Return (3, H, W) uint8 RGB and the classes (H, W), uint8."""
        if sample.mask is None:
            raise ValueError(f"{sample.name}: got a sample without a mask, expected one for segmentation.")
        region = self._choose_region(image.height, image.width, size)
        pixels, labels = self._render(image, region, size), crop_mask(sample.mask, image, region, size)
        dims = self._choose_flips()
        return pixels.flip(dims), labels.flip(dims)

    def _choose_region(self, height: int, width: int, size: tuple[int, int]) -> Region:
        scale, ratio, down, right = torch.rand(4).tolist()
        scale = self.scale_jitter[0] + (self.scale_jitter[1] - self.scale_jitter[0]) * scale
        minimum, maximum = map(math.log, self.ratio_jitter)
        ratio = math.exp((minimum + (maximum - minimum) * ratio) / 2)
        fit = min(height / size[0], width / size[1])
        base = (height, width) if self._is_stretched else (fit * size[0], fit * size[1])
        rows, columns = max(1, round(base[0] / scale / ratio)), max(1, round(base[1] / scale * ratio))
        # Within the image, or, if it is larger, around it.
        return Region(round(down * (height - rows)), round(right * (width - columns)), rows, columns)


def crop_mask(mask: Mask, image: LazyImage, region: Region, size: tuple[int, int]) -> Tensor:
    """Return the classes (H, W) uint8 of a region of an image, resized to `size` by the nearest pixel."""
    inner, (rows, columns) = _place(region, (image.height, image.width), size)
    classes = mask.read(inner, size=(image.height, image.width))
    nearest = [
        ((np.arange(part.stop - part.start) + 0.5) * side / (part.stop - part.start)).astype(np.intp)
        for part, side in ((rows, inner.height), (columns, inner.width))
    ]
    labels = torch.full(size, IGNORE_INDEX, dtype=torch.uint8)
    labels[rows, columns] = torch.from_numpy(classes[np.ix_(*nearest)])
    return labels


def _place(region: Region, image_size: tuple[int, int], size: tuple[int, int]) -> tuple[Region, tuple[slice, slice]]:
    """Return the part of a region within the image, and the rows and columns of it in the region resized to `size`."""
    sides, slices = [], []
    for start, length, limit, side in zip(region[:2], region[2:], image_size, size, strict=True):
        first, last = max(start, 0), min(start + length, limit)
        begin = min(round((first - start) * side / length), side - 1)
        sides.append((first, last - first))
        slices.append(slice(begin, max(begin + 1, round((last - start) * side / length))))
    (top, height), (left, width) = sides
    return Region(top, left, height, width), (slices[0], slices[1])


def make_mix(num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> Mix | None:
    """Create mixup and cutmix for classification batches; if both are enabled, each batch uses a random one.

    Args:
        num_classes: Number of classes K.
        mixup: Alpha of the beta distribution of mixup; 0 disables it.
        cutmix: Alpha of the beta distribution of cutmix; 0 disables it.

    Returns:
        A function of images (B, 3, H, W) and classes (B,) that returns mixed images and soft labels (B, K), whose
        rows sum to 1; None if both are disabled.

    Raises:
        ValueError: If an alpha is negative.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if alpha < 0:
            raise ValueError(f"{name}: got {alpha}, expected an alpha above 0, or 0 to disable it.")
    available = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    mixes = [mix(alpha=alpha, num_classes=num_classes) for mix, alpha in available if alpha]
    return v2.RandomChoice(mixes) if mixes else None


def _contains_centers(crops: Tensor, boxes: Tensor) -> Tensor:
    """Return whether each crop (M, 4) contains the center of each box (N, 4) → (M, N)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((crops[:, None, :2] < centers) & (centers < crops[:, None, 2:])).all(dim=2)


def _flip(objects: Objects, dim: int, size: tuple[int, int]) -> Objects:
    """Flip boxes (x1, y1, x2, y2) along dimension -1 or -2 of the image."""
    boxes, first, last = objects.boxes.clone(), -1 - dim, 1 - dim  # columns 0 and 2 of x, 1 and 3 of y
    boxes[:, [first, last]] = size[dim] - objects.boxes[:, [last, first]]
    return replace(objects, boxes=boxes)


def _make_labels(objects: Objects, size: tuple[int, int], orig_size: tuple[int, int]) -> dict[str, Tensor]:
    """Convert objects on an image of `size` (height, width) to labels of the detector, boxes in normalized cxcywh."""
    height, width = size
    return {
        "class_labels": objects.labels,
        "boxes": box_convert(objects.boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height]),
        "iscrowd": objects.iscrowd,
        "area": objects.areas,
        "orig_size": torch.tensor(orig_size),
    }


def _with_probability(probability: float) -> bool:
    return float(torch.rand(())) < probability


TRAINING_TRANSFORMS: dict[TaskName, type[TrainingTransform]] = {
    "image-classification": ClassificationTransform,
    "object-detection": DetectionTransform,
    "image-segmentation": SegmentationTransform,
}
