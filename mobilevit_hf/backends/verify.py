"""Compare an exported model with the torch model it was made from, on the same images."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import BaseImageProcessor
from transformers.utils import ModelOutput

from ..model_sources import recommended_threshold
from ..modeling.boxes_ssdlite import pairwise_iou
from ..tasks import TaskName
from ..threads import one_torch_thread
from .image_models import upsample
from .runtime import ExportedModel, processor_of_outputs

MAX_ERROR = 1e-3  # float32
MIN_AGREEMENT_FLOAT32 = 0.999  # below 1: rounding may break a tie differently
MIN_AGREEMENT = 0.97  # lower precision

NUM_IMAGES: dict[TaskName, int] = {"image-classification": 64, "object-detection": 32, "image-segmentation": 8}
BATCH_SIZE = 4
BOXES_PER_IMAGE = 5
MIN_OVERLAP = 0.5  # IoU of boxes that are compared

# A classifier is unsure on synthetic images: a label counts as equal if its logit is within this fraction of the
# logits' range from the largest.
TIE_TOLERANCE = 0.1
# For `dtype="auto"`. In bfloat16, a classifier whose label changes on 5% of real photos agrees on all synthetic images
# with a tolerance of 0.1, on 95% with 0.03, and on 89% with none.
STRICT_TIE_TOLERANCE = 0.02

Detections = list[dict[str, Tensor]]  # `scores`, `labels` and `boxes` of each image

LATENCY_BATCH_SIZES = (1, 8)
LATENCY_SECONDS, LATENCY_MIN_CALLS = 0.25, 5


class Comparison(NamedTuple):
    """Difference between an exported model and its torch model.

    Attributes:
        max_error: Largest absolute difference in the outputs. If the file returns predictions: in the scores, and in
            the boxes as fractions of the image; for labels of pixels, the largest difference of the torch model's
            highest probability from that of the label.
        agreement: Fraction of images (pixels in segmentation) with the same top label, 0..1; for a detector, mAP at
            IoU 0.50 with the torch model's boxes as ground truth.
        strict_agreement: Agreement with a tie tolerance of at most `STRICT_TIE_TOLERANCE`.
    """

    max_error: float
    agreement: float
    strict_agreement: float | None = None


def sample_images(number: int) -> list[Image.Image]:
    """Return varied RGB images, the same on each call: crops of a sample photo and synthetic shapes in turns."""
    random = np.random.default_rng(0)
    photo = Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("RGB")
    images = []
    for i in range(number):
        side = int(random.integers(100, min(photo.size)))
        left, top = (int(random.integers(0, length - side + 1)) for length in photo.size)
        image = photo.crop((left, top, left + side, top + side)).rotate(90 * int(random.integers(4)))
        if i % 2:
            colors = random.integers(0, 256, (12, 3))
            noise = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC)
            draw = ImageDraw.Draw(image)
            for index, color in enumerate(colors):
                x, y, width, height = random.integers(8, 200, 4)
                shape = (draw.ellipse, draw.rectangle)[index % 2]
                shape((int(x), int(y), int(x + width), int(y + height)), fill=tuple(map(int, color)))
        images.append(image)
    return images


@one_torch_thread()
def verification_pixels(task: TaskName, processor: BaseImageProcessor) -> Tensor:
    """Return the (B, 3, H, W) pixels on which exports for a task are verified."""
    return preprocess(sample_images(NUM_IMAGES[task]), processor)


def preprocess(images: Sequence[Image.Image], processor: BaseImageProcessor) -> Tensor:
    """Run the image processor on each image and stack the outputs with `stack_pixels`."""
    return stack_pixels([processor(image, return_tensors="pt")["pixel_values"][0] for image in images])


def stack_pixels(pixels: Sequence[Tensor]) -> Tensor:
    """Stack (3, H, W) outputs of the image processor to (B, 3, H, W) float32.

    Raises:
        ValueError: If they differ in size.
    """
    if len(sizes := {tuple(each.shape) for each in pixels}) > 1:
        raise ValueError(
            f"image processor: got outputs of {len(sizes)} sizes, expected one. Set its crop_size, or a size with "
            "height and width."
        )
    return torch.stack(tuple(pixels)).float()


# With two torch threads, which spin next to those of the runtime, it takes 18 CPU seconds instead of 0.5.
@one_torch_thread()
def compare(
    model: nn.Module,
    exported: ExportedModel,
    pixels: Tensor,
    task: TaskName,
    processor: BaseImageProcessor,
    tie_tolerance: float = 0.0,
) -> Comparison:
    """Run both models on the same images and compare their outputs.

    Args:
        model: Torch model in float32 on the CPU.
        pixels: (B, 3, H, W).
        processor: Image processor; a detector's converts outputs to boxes.
        tie_tolerance: Count a label as equal if the torch model's logit for it is within this fraction of the logits'
            range from the largest.
    """
    interface = getattr(exported, "interface", "tensors")
    expected: list[ModelOutput] = []
    actual: list[ModelOutput] = []
    errors: list[float] = []
    agreements: list[Tensor] = []
    tolerances = tie_tolerance, min(tie_tolerance, STRICT_TIE_TOLERANCE)
    for batch in pixels.split(BATCH_SIZE):
        with torch.inference_mode():
            e = model(pixel_values=batch)
        a = exported(pixel_values=batch)
        if interface == "tensors":
            errors += [float((e[name] - a[name]).abs().max()) for name in exported.outputs]
        if task == "object-detection":
            expected.append(e)
            actual.append(a)
            continue
        # Logits are not kept: those of label maps take up to 30 MB per image.
        e, a = e["logits"], a["logits"]
        if task == "image-segmentation" and interface == "image":
            e = upsample(e, a.shape[-2:])
            errors.append(_pixel_error(e, a))
        elif interface != "tensors":
            errors.append(float((e.softmax(1) - a.softmax(1)).abs().max()))
        agreements.append(torch.stack([_label_agreement(e, a, tolerance) for tolerance in tolerances]))
    if task == "object-detection":
        detections = _detect(expected, processor), _detect(actual, processor_of_outputs(exported, processor))
        agreement = _box_agreement(*detections, model.config)
        return Comparison(max(errors or [_detection_error(*detections, model.config)]), agreement, agreement)
    agreement, strict = torch.cat(agreements, dim=1).mean(dim=1).tolist()
    return Comparison(max(errors), agreement, strict)


def _pixel_error(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference of the highest probability from that of the actual label: logits (B, K, H, W)."""
    probabilities = expected.softmax(dim=1)
    chosen = probabilities.gather(1, actual.argmax(dim=1, keepdim=True))
    return float((probabilities.amax(dim=1, keepdim=True) - chosen).max())


def _label_agreement(expected: Tensor, actual: Tensor, tie_tolerance: float) -> Tensor:
    """Return the fraction of equal top labels per image, (B,), for (B, K, ...) logits."""
    label, best = actual.argmax(dim=1, keepdim=True), expected.amax(dim=1, keepdim=True)
    logit_range = (best - expected.amin(dim=1, keepdim=True)).clamp(min=1e-12)
    distance = (best - expected.gather(1, label)) / logit_range
    return (distance <= tie_tolerance).float().flatten(1).mean(dim=1)


def _box_agreement(expected: Detections, actual: Detections, config: Any) -> float:
    """Return the mAP at IoU 0.50 of the actual boxes, with the confident expected boxes as ground truth."""
    from ..metrics.coco_map.coco_map import CocoMap  # imports evaluate and datasets

    if not any(len(boxes["scores"]) for boxes in expected):
        return float(all(len(boxes["scores"]) == 0 for boxes in actual))
    threshold = _confident_score(expected, config)
    metric = CocoMap()
    # COCO measures areas in pixels: normalized boxes would be too small to count.
    references = [
        {"boxes": boxes["boxes"][is_confident] * 1000, "labels": boxes["labels"][is_confident]}
        for boxes in expected
        for is_confident in [boxes["scores"] >= threshold]
    ]
    predictions = [boxes | {"boxes": boxes["boxes"] * 1000} for boxes in actual]
    metric.add_batch(predictions=predictions, references=references)
    results: Any = metric.compute()
    return float(results["map_50"])


def _detect(outputs: Sequence[ModelOutput], processor: Any) -> Detections:
    return [boxes for batch in outputs for boxes in processor.post_process_object_detection(batch)]


def _confident_score(detections: Detections, config: Any) -> float:
    """Return the recommended threshold or, of a model with low scores, that of its highest-scoring boxes."""
    scores = torch.cat([boxes["scores"] for boxes in detections]).sort(descending=True).values
    lowest_of_best = scores[min(len(scores) - 1, BOXES_PER_IMAGE * len(detections))]
    return min(float(lowest_of_best), recommended_threshold(config))


def _detection_error(expected: Detections, actual: Detections, config: Any) -> float:
    """Return the largest difference in score or coordinates between a confident box and the actual one it overlaps."""
    if not any(len(boxes["scores"]) for boxes in expected):
        return 0.0
    threshold, errors = _confident_score(expected, config), [0.0]
    for each, other in zip(expected, actual, strict=True):
        overlaps = pairwise_iou(each["boxes"], other["boxes"], eps=1e-9)
        overlaps[each["labels"][:, None] != other["labels"]] = 0
        for index in (each["scores"] >= threshold).nonzero().flatten().tolist():
            # A missed box lowers the agreement.
            if len(other["boxes"]) and overlaps[index].max() > MIN_OVERLAP:
                best = int(overlaps[index].argmax())
                difference = (each["boxes"][index] - other["boxes"][best]).abs().max()
                errors.append(max(float(difference), abs(float(each["scores"][index] - other["scores"][best]))))
    return max(errors)


def check_comparison(
    comparison: Comparison, name: str, *, float32: bool, min_agreement: float = MIN_AGREEMENT
) -> None:
    """Raise a ValueError if an exported model differs from the torch model by more than its precision allows.

    Args:
        name: Name in the error.
        float32: Whether it computes in float32 without quantization.
        min_agreement: Smallest agreement in lower precision.
    """
    max_error, agreement, _ = comparison
    if float32 and not max_error <= MAX_ERROR:  # also true for NaN
        raise ValueError(
            f"{name}: outputs differ from the torch model by up to {max_error:.2g}, expected at most {MAX_ERROR:g}. "
            "The file was not kept. Use the torch backend."
        )
    if float32:
        min_agreement = MIN_AGREEMENT_FLOAT32
    if not agreement >= min_agreement:
        raise ValueError(
            f"{name}: {agreement:.1%} of the predictions equal the torch model's, expected {min_agreement:.1%}. The "
            f"file was not kept. Use {'' if float32 else 'float32 without quantization, or '}the torch backend."
        )


def measure_latency(model: Callable[..., Any], pixels: Tensor) -> dict[str, float]:
    """Measure the median milliseconds per call, by batch size."""
    latency = {}
    for batch_size in LATENCY_BATCH_SIZES:
        batch = pixels[torch.arange(batch_size) % len(pixels)]
        model(pixel_values=batch)
        seconds: list[float] = []
        while len(seconds) < LATENCY_MIN_CALLS or sum(seconds) < LATENCY_SECONDS:
            start = time.perf_counter()
            model(pixel_values=batch)
            seconds.append(time.perf_counter() - start)
        latency[str(batch_size)] = round(statistics.median(seconds) * 1000, 3)
    return latency
