"""From an image and its sample to what a model is trained or tested on; pixels end as the image processor ends them.

Training chooses a region of the image first and decodes and resizes only that, once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert, box_iou
from torchvision.transforms import v2
from transformers import BaseImageProcessor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from ..tasks import TaskName
from .decoding import LazyImage, Region
from .types import Objects, Sample

FILL = (124, 116, 104)  # ImageNet's mean color, for what lies outside an image or is erased
MIN_SIDE = 1.0  # a box of which a crop leaves less, in pixels of the result, is left out

# SSD's crops: how much a box has to overlap with one (1: no crop), how large and how long they may be, how many tries.
CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
CROP_SCALE = (0.3, 1.0)
CROP_RATIO = (0.5, 2.0)
REGION_TRIES = 10  # of a random resized crop
CROP_TRIES = 40

Transform: TypeAlias = Callable[..., dict[str, Any]]
Mix: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_transform(task: TaskName, processor: BaseImageProcessor, *, training: bool, **options: Any) -> Transform:
    """What makes a model's input of an image.

    Args:
        task: What the samples are for.
        processor: The image processor that the trained model is saved with.
        training: Whether to augment. Without, it is the processor alone.
        options: Fields of `ClassificationTraining` or `DetectionTraining`.

    Returns:
        A function of an image (PIL or `LazyImage`), its `Sample` and, in training, the (height, width) wanted instead
        of the processor's. It returns `pixel_values` (3, H, W) float32 and `labels`: in classification the class, in
        detection a dict as `MobileViTSSDLiteForObjectDetection` takes it.

    Raises:
        ValueError: If an option can't be used, or the processor does what training can't imitate.
    """
    if not training:
        return Evaluation(processor, **options)
    return TRAINING[task](processor, **options)


@dataclass(frozen=True)
class Evaluation:
    """The image processor, as whoever uses the model calls it."""

    processor: BaseImageProcessor

    def __call__(self, source: Image.Image | LazyImage, sample: Sample) -> dict[str, Any]:
        """See `make_transform`."""
        image = source.load() if isinstance(source, LazyImage) else source
        pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        if sample.objects is None:
            return {"pixel_values": pixels, "labels": sample.label}
        size = (image.height, image.width)
        return {"pixel_values": pixels, "labels": _make_labels(sample.objects, size, size)}


class Finish:
    """The last steps of an image processor: channel order, scale and normalization, found out by trying it.

    Args:
        processor: It has to map each channel by a straight line to one of the three it returns.

    Attributes:
        size: (height, width) of the images that it makes of square ones.

    Raises:
        ValueError: If it does anything else.
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
                f"{type(processor).__name__}: got a processor that mixes colors, expected one that returns the three "
                "channels, in any order, each scaled by itself. Train with a MobileViT's image processor."
            )
        self.scales = [response[i, channel].item() / 255 for i, channel in enumerate(self.channels)]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB → float32 as the processor returns it."""
        out = torch.empty(pixels.shape)
        for place, (channel, scale, bias) in enumerate(zip(self.channels, self.scales, self.biases, strict=True)):
            torch.mul(pixels[:, channel], scale, out=out[:, place])
            if bias:
                out[:, place].add_(bias)
        return out


@dataclass
class _Training:
    """What both tasks do: render a region, flip it, finish as the processor does.

    Args:
        processor: The image processor that the trained model is saved with.
        horizontal_flip: How often an image is mirrored, 0..1.
        vertical_flip: How often it is turned upside down, 0..1.
        color_jitter: How often brightness, contrast, saturation, hue and the order of channels are varied (each half
            of the time), 0..1.
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
                f"processor: got {type(self.processor).__name__}, expected one on torchvision. Load it with "
                'AutoImageProcessor.from_pretrained(..., backend="torchvision").'
            )
        self.finish = Finish(self.processor)

    def augment(self, image: LazyImage, sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Any]:
        """(3, H, W) uint8 RGB and labels."""
        raise NotImplementedError

    def __call__(
        self, image: Image.Image | LazyImage, sample: Sample, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """See `make_transform`."""
        image = image if isinstance(image, LazyImage) else LazyImage(image)
        pixels, labels = self.augment(image, sample, size or self.finish.size)
        return {"pixel_values": self.finish(pixels[None])[0], "labels": labels}

    def _check_probabilities(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected how often it is done, 0..1.")

    def _resize(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """As the processor does."""
        if pixels.shape[-2:] == size:
            return pixels
        return self.processor.resize(pixels, SizeDict(height=size[0], width=size[1]), self.processor.resample)

    def _recolor(self, pixels: Tensor) -> Tensor:
        return self._distort(pixels) if _happens(self.color_jitter) else pixels


@dataclass(kw_only=True)
class ClassificationTraining(_Training):
    """Random resized crops and flips, the paper's recipe, and what is asked for beside.

    Args:
        crop_scale: The least and the greatest share of the image's area that a crop has.
        crop_ratio: The least and the greatest width of a crop over its height.
        rand_augment: The magnitude of RandAugment's two operations, 0..30; None for none.
        random_erasing: How often a rectangle is painted over, 0..1.
    """

    crop_scale: Sequence[float] = (0.08, 1.0)
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    rand_augment: int | None = None
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_probabilities("random_erasing")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: got {self.crop_scale}, expected two shares in 0..1, the smaller one first.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: got {self.crop_ratio}, expected two ratios, the smaller one first.")
        if self.rand_augment is not None and not 0 <= self.rand_augment <= 30:
            raise ValueError(f"rand_augment: got {self.rand_augment}, expected a magnitude in 0..30.")
        augment = [] if self.rand_augment is None else [v2.RandAugment(magnitude=self.rand_augment, fill=list(FILL))]
        augment += [v2.RandomErasing(self.random_erasing, value=list(FILL))] if self.random_erasing else []
        self._augment = v2.Compose(augment) if augment else None

    def augment(self, image: LazyImage, sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Any]:
        """(3, H, W) uint8 RGB and the class."""
        region = choose_region(image.height, image.width, self.crop_scale, self.crop_ratio)
        pixels = self._recolor(self._resize(image.read(region, size), size))
        for dim, probability in ((-1, self.horizontal_flip), (-2, self.vertical_flip)):
            if _happens(probability):
                pixels = pixels.flip(dim)
        if self._augment:
            pixels = self._augment(pixels)
        return pixels, sample.label


def choose_region(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Region:
    """The part of an image that a random resized crop takes (Inception's, arXiv 1409.4842).

    As torchvision's, whose own choice takes as long as decoding a small image.

    Args:
        height, width: Of the image in pixels.
        scale: The least and the greatest share of its area.
        ratio: The least and the greatest width over height, drawn evenly by its logarithm.

    Returns:
        A region with both, or where ten tries find none the middle of the image, as near to the ratio as possible.
    """
    least, greatest = math.log(ratio[0]), math.log(ratio[1])
    for share, shape, down, right in torch.rand(REGION_TRIES, 4).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = math.exp(least + (greatest - least) * shape)
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return Region(int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    rows, columns = min(height, round(width / aspect)), min(width, round(height * aspect))
    return Region((height - rows) // 2, (width - columns) // 2, rows, columns)


@dataclass(kw_only=True)
class DetectionTraining(_Training):
    """SSD's augmentation: other colors, a larger canvas around the image, a crop around some box, flips.

    Args:
        zoom_out: How often the image lies in a canvas of up to four times its sides, 0..1.
        crop: How often a crop is chosen by its overlap with the boxes (one time in seven that is no crop), 0..1.
    """

    color_jitter: float = 1.0
    zoom_out: float = 0.5
    crop: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_probabilities("zoom_out", "crop")
        self._zoom_out = v2.RandomZoomOut()

    def augment(self, image: LazyImage, sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Any]:
        """(3, H, W) uint8 RGB and a dict."""
        region = self._choose_region(image, sample.objects)
        pixels, objects = self._render(image, region, size), fit_objects(sample.objects, region, size)
        for dim, probability in ((-1, self.horizontal_flip), (-2, self.vertical_flip)):
            if _happens(probability):
                pixels, objects = pixels.flip(dim), _flip(objects, dim, size)
        return pixels, _make_labels(objects, size, (image.height, image.width))

    def _choose_region(self, image: LazyImage, objects: Objects) -> Region:
        """The part of the image to show, or of a canvas around it."""
        region = Region(0, 0, image.height, image.width)
        if _happens(self.zoom_out):
            left, top, right, bottom = self._zoom_out.make_params([_empty_canvas(image)])["padding"]
            region = Region(-top, -left, top + image.height + bottom, left + image.width + right)
        boxes = objects.boxes[objects.iscrowd == 0]
        return choose_crop(region, boxes) if len(boxes) and _happens(self.crop) else region

    def _render(self, image: LazyImage, region: Region, size: tuple[int, int]) -> Tensor:
        """(3, H, W) uint8: the region in other colors, what lies outside the image filled."""
        sides, places = [], []
        for start, length, limit, side in zip(region[:2], region[2:], (image.height, image.width), size, strict=True):
            first, last = max(start, 0), min(start + length, limit)
            begin = min(round((first - start) * side / length), side - 1)
            sides.append((first, last - first))
            places.append(slice(begin, max(begin + 1, round((last - start) * side / length))))
        (top, height), (left, width) = sides
        shown = (places[0].stop - places[0].start, places[1].stop - places[1].start)
        pixels = self._recolor(self._resize(image.read(Region(top, left, height, width), shown), shown))
        if shown == size:
            return pixels
        canvas = torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1).repeat(1, *size)
        canvas[:, places[0], places[1]] = pixels
        return canvas


TRAINING = {"image-classification": ClassificationTraining, "object-detection": DetectionTraining}


def choose_crop(region: Region, boxes: Tensor) -> Region:
    """SSD's random crop (section 2.2): one with the center of some box in it, and an overlap with such a box.

    As torchvision's `RandomIoUCrop`, which tries one crop after the other and takes twenty times as long.

    Args:
        region: What to crop.
        boxes: (N, 4) (x1, y1, x2, y2) in pixels of the image, at least one.

    Returns:
        A part of the region, or all of it.
    """
    sides, corner = torch.tensor(region[2:]), torch.tensor(region[:2])
    while True:
        overlap = CROP_OVERLAPS[int(torch.randint(len(CROP_OVERLAPS), ()))]
        if overlap >= 1:
            return region
        least, greatest = CROP_SCALE
        lengths = (sides * (least + (greatest - least) * torch.rand(CROP_TRIES, 2))).long()
        starts = corner + ((sides - lengths) * torch.rand(CROP_TRIES, 2)).long()
        ratios = lengths[:, 1] / lengths[:, 0]
        crops = torch.cat([starts, starts + lengths], dim=1)[:, [1, 0, 3, 2]].float()  # (x1, y1, x2, y2)
        overlaps = torch.where(_holds_centres(crops, boxes), box_iou(crops, boxes), -1).amax(dim=1)
        fits = (ratios >= CROP_RATIO[0]) & (ratios <= CROP_RATIO[1]) & (lengths > 0).all(dim=1) & (overlaps >= overlap)
        if fits.any():
            first = int(fits.nonzero()[0])
            return Region(*starts[first].tolist(), *lengths[first].tolist())


def fit_objects(objects: Objects, region: Region, size: tuple[int, int]) -> Objects:
    """The objects in a region of their image, in pixels of the region resized to `size`.

    Boxes are cut off at its border, and areas shrink by as much. Left out are objects whose box has its center
    outside, or less than `MIN_SIDE` pixels inside.
    """
    top, left, height, width = region
    border = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    scale = torch.tensor([size[1] / width, size[0] / height])
    visible = torch.cat(
        [torch.maximum(objects.boxes[:, :2], border[:, :2]), torch.minimum(objects.boxes[:, 2:], border[:, 2:])], dim=1
    )
    whole_sides, sides = objects.boxes[:, 2:] - objects.boxes[:, :2], (visible[:, 2:] - visible[:, :2])
    kept = _holds_centres(border, objects.boxes)[0] & (sides * scale >= MIN_SIDE).all(dim=1)
    areas = objects.areas * (sides / whole_sides).prod(dim=1) * scale.prod()
    boxes = (visible - border[:, :2].repeat(1, 2)) * scale.repeat(2)
    return Objects(boxes[kept], objects.labels[kept], objects.iscrowd[kept], areas[kept])


def make_mix(num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> Mix | None:
    """Mixup and cutmix for batches of classification, one of them at random where both are given.

    Args:
        num_classes: K.
        mixup: The alpha of mixup's beta distribution; 0 for none.
        cutmix: That of cutmix.

    Returns:
        A function of images (B, 3, H, W) and classes (B,) that returns mixed images and soft labels (B, K), whose
        rows sum to 1; None if neither is asked for.

    Raises:
        ValueError: If an alpha is negative.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if alpha < 0:
            raise ValueError(f"{name}: got {alpha}, expected an alpha above 0, or 0 for none.")
    mixes = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
    mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
    return v2.RandomChoice(mixes) if mixes else None


def _holds_centres(crops: Tensor, boxes: Tensor) -> Tensor:
    """Whether each of the crops (M, 4) holds the center of each of the boxes (N, 4) → (M, N)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((crops[:, None, :2] < centers) & (centers < crops[:, None, 2:])).all(dim=2)


def _flip(objects: Objects, dim: int, size: tuple[int, int]) -> Objects:
    """Mirror boxes (x1, y1, x2, y2) along an image's dimension, -1 or -2."""
    boxes, first, last = objects.boxes.clone(), -1 - dim, 1 - dim  # columns 0 and 2 of x, 1 and 3 of y
    boxes[:, [first, last]] = size[dim] - objects.boxes[:, [last, first]]
    return replace(objects, boxes=boxes)


def _make_labels(objects: Objects, size: tuple[int, int], orig_size: tuple[int, int]) -> dict[str, Tensor]:
    """Objects on an image of `size` (height, width) → the model's `labels` of it."""
    height, width = size
    return {
        "class_labels": objects.labels,
        "boxes": box_convert(objects.boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height]),
        "iscrowd": objects.iscrowd,
        "area": objects.areas,
        "orig_size": torch.tensor(orig_size),
    }


def _empty_canvas(image: LazyImage) -> tv_tensors.BoundingBoxes:
    """What tells a transform of torchvision how large an image is."""
    return tv_tensors.BoundingBoxes(torch.empty(0, 4), format="XYXY", canvas_size=(image.height, image.width))


def _happens(probability: float) -> bool:
    return float(torch.rand(())) < probability
