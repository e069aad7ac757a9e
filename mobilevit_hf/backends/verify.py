"""Is an exported program the model it was made from? Both are shown the same images."""

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

from ..metrics.coco_map.coco_map import CocoMap
from ..model_sources import recommended_threshold
from .runtime import EngineModel

MAX_ERROR = 1e-3  # in float32
MIN_AGREEMENT = 0.97  # in less
SAME = 0.999  # agreement in float32: rounding may settle a tie the other way

NUM_IMAGES = {"image-classification": 64, "object-detection": 32, "image-segmentation": 8}
BATCH_SIZE = 4
BOXES_PER_IMAGE = 5

# On drawn images a classifier is unsure. A label that the model puts this close to its best counts as the same: the
# distance of the two logits as a share of that from the best to the worst.
TIE = 0.1

LATENCY_BATCHES = (1, 8)
LATENCY_SECONDS, LATENCY_MIN_CALLS = 1.0, 5


class Comparison(NamedTuple):
    """How far a program is from its model.

    Attributes:
        max_error: The largest difference of any number in the outputs.
        agreement: The share of images with the same top label, or of pixels in a segmentation; of a detector mAP50
            against the boxes of the model.
    """

    max_error: float
    agreement: float


def draw_images(number: int) -> list[Image.Image]:
    """Images that look different from one another: parts of a sample photo, and drawn shapes; always the same."""
    random = np.random.default_rng(0)
    photo = Image.open(get_sample_data("grace_hopper.jpg")).convert("RGB")
    images = []
    for i in range(number):
        side = int(random.integers(100, min(photo.size)))
        left, top = (int(random.integers(0, whole - side + 1)) for whole in photo.size)
        image = photo.crop((left, top, left + side, top + side)).rotate(90 * int(random.integers(4)))
        if i % 2:
            colors = random.integers(0, 256, (12, 3))
            noise = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC)
            draw = ImageDraw.Draw(image)
            for number_of_shape, color in enumerate(colors):
                x, y, width, height = random.integers(8, 200, 4)
                shape = (draw.ellipse, draw.rectangle)[number_of_shape % 2]
                shape((int(x), int(y), int(x + width), int(y + height)), fill=tuple(map(int, color)))
        images.append(image)
    return images


def prepare(images: Sequence[Image.Image], processor: BaseImageProcessor) -> Tensor:
    """Images as a model takes them: (B, 3, H, W) float32.

    Raises:
        ValueError: If they come out in different sizes.
    """
    return stack([processor(image, return_tensors="pt")["pixel_values"][0] for image in images])


def stack(images: Sequence[Tensor]) -> Tensor:
    """What an image processor made of single images, (3, H, W) each, as one (B, 3, H, W) float32.

    Raises:
        ValueError: If they are of different sizes.
    """
    if len(sizes := {image.shape for image in images}) > 1:
        raise ValueError(
            f"image processor: gives images of {len(sizes)} sizes, expected one. Set its crop_size, or height and "
            "width as its size."
        )
    return torch.stack(tuple(images)).float()


def compare(
    model: nn.Module,
    program: EngineModel,
    pixels: Tensor,
    task: str,
    processor: BaseImageProcessor | None,
    tie: float = 0.0,
) -> Comparison:
    """Run both on the same images.

    Args:
        model: In float32, on the CPU.
        program: Made from it.
        pixels: (B, 3, H, W).
        task: A key of `formats.OUTPUTS`.
        processor: A detector's, which makes boxes of outputs; another's is not used.
        tie: A label also counts as the same where the model's logit of it is behind its best by no more than this
            share of the way to its worst.
    """
    expected, found = ([run(batch) for batch in pixels.split(BATCH_SIZE)] for run in (_inferring(model), program))
    pairs = list(zip(expected, found, strict=True))
    max_error = max(float((e[name] - f[name]).abs().max()) for e, f in pairs for name in program.names)
    if task == "object-detection":
        return Comparison(max_error, _box_agreement(pairs, processor, model.config))
    same = [_same_label(e.logits, f.logits, tie) for e, f in pairs]
    return Comparison(max_error, torch.cat(same).mean().item())


def _same_label(expected: Tensor, found: Tensor, tie: float) -> Tensor:
    """For each image (or pixel) of (B, K, ...) logits 1 where the top label is the same, else 0."""
    label, best = found.argmax(dim=1, keepdim=True), expected.amax(dim=1, keepdim=True)
    behind = (best - expected.gather(1, label)) / (best - expected.amin(dim=1, keepdim=True)).clamp(min=1e-12)
    return (behind <= tie).float().flatten(1).mean(dim=1)


def _inferring(model: nn.Module) -> Callable[[Tensor], ModelOutput]:
    def run(pixels: Tensor) -> ModelOutput:
        with torch.inference_mode():
            return model(pixel_values=pixels)

    return run


def _box_agreement(pairs: list[tuple[ModelOutput, ModelOutput]], processor: Any, config: Any) -> float:
    """mAP50 of one's boxes where the other's sure ones are the truth."""
    expected, found = (
        [boxes for outputs in side for boxes in processor.post_process_object_detection(outputs)]
        for side in zip(*pairs, strict=True)
    )
    scores = torch.cat([boxes["scores"] for boxes in expected]).sort(descending=True).values
    if len(scores) == 0:
        return float(all(len(boxes["scores"]) == 0 for boxes in found))
    # A model that is sure of little is held to what it is surest of.
    surest = scores[min(len(scores) - 1, BOXES_PER_IMAGE * len(expected))]
    threshold = min(float(surest), recommended_threshold(config))
    metric = CocoMap()
    # COCO measures in pixels: boxes of a unit square would all be too small to count.
    truth = [
        {"boxes": boxes["boxes"][is_sure] * 1000, "labels": boxes["labels"][is_sure]}
        for boxes in expected
        for is_sure in [boxes["scores"] >= threshold]
    ]
    metric.add_batch(predictions=[boxes | {"boxes": boxes["boxes"] * 1000} for boxes in found], references=truth)
    return float(metric.compute()["map_50"])


def check(comparison: Comparison, name: str, *, exact: bool) -> None:
    """Refuse a program that is not the model.

    Args:
        comparison: From `compare`.
        name: What to call it.
        exact: Whether it computes in float32, unquantized.

    Raises:
        ValueError: If it is off.
    """
    max_error, agreement = comparison
    wanted = SAME if exact else MIN_AGREEMENT
    if exact and not max_error <= MAX_ERROR:  # NaN is off, too
        raise ValueError(
            f"{name}: its outputs differ from the model's by up to {max_error:.2g}, expected at most {MAX_ERROR:g}. "
            "It was not kept. Use backend='torch'."
        )
    if not agreement >= wanted:
        raise ValueError(
            f"{name}: {agreement:.1%} of its answers are the model's, expected {wanted:.1%}. It was not kept. Use "
            "float32 without quantization, or backend='torch'."
        )


def measure_latency(program: Callable[..., Any], pixels: Tensor, batches: Sequence[int] = LATENCY_BATCHES) -> dict:
    """Milliseconds a call, the median, by the number of images in it."""
    latency = {}
    for batch in batches:
        images = pixels[torch.arange(batch) % len(pixels)]
        program(pixel_values=images)
        seconds: list[float] = []
        while len(seconds) < LATENCY_MIN_CALLS or sum(seconds) < LATENCY_SECONDS:
            start = time.perf_counter()
            program(pixel_values=images)
            seconds.append(time.perf_counter() - start)
        latency[batch] = round(statistics.median(seconds) * 1000, 3)
    return latency
