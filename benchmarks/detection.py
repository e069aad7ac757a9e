"""Time detection from photos to boxes: torchvision's SSDLite320-MobileNetV3-Large and ours, in float32 on the CPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import side_by_side
from side_by_side import Case
from workers import OURS, Call, Candidate

PIPELINE = f"{OURS}, pipeline"
CANDIDATES = {
    "torchvision": Candidate("torchvision", "torchvision.models.detection"),
    "torchvision channels_last": Candidate("torchvision", "torchvision.models.detection"),
    PIPELINE: Candidate("mobilevit_hf", "mobilevit_hf.modeling.modeling_mobilevit_ssdlite"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.modeling.modeling_mobilevit_ssdlite"),
}
PHOTO_SIZE = (640, 480)  # width, height
NUM_CLASSES = 80
BOXES = 100  # approximate number of detections per photo


def make_photos(count: int) -> list[Any]:
    """Return PIL images of colored noise at several scales, the same in every call."""
    import torch
    from torchvision.transforms.functional import resize, to_pil_image

    generator = torch.Generator().manual_seed(0)
    width, height = PHOTO_SIZE
    photos = []
    for _ in range(count):
        layers = [resize(torch.rand(3, cells, cells, generator=generator), [height, width]) for cells in (4, 16, 64)]
        photos.append(to_pil_image(sum(layers) / len(layers)))
    return photos


def find_threshold(
    count_boxes: Callable[[float], float], boxes: int = BOXES, low: float = 1 / (NUM_CLASSES + 1)
) -> float:
    """Return the score threshold above `low` that keeps about `boxes` detections per photo.

    With random weights and softmax it is just above chance.
    """
    high = 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if count_boxes(middle) > boxes else (low, middle)
    return high


def mean_count(detections: list[dict[str, Any]]) -> float:
    """Return the mean number of boxes per photo."""
    return statistics.mean(len(photo["boxes"]) for photo in detections)


def calibrate(model: Any, run: Callable[[], Any]) -> None:
    """Estimate the batch norm statistics, without which random weights give all boxes the same score."""
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # cumulative average
    model.train()
    with torch.inference_mode():
        run()
    model.eval()


def build_torchvision(candidate: str, photos: list[Any]) -> Call:
    """Return torchvision's detector as in its documentation; resizing and NMS are part of it."""
    import torch
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from torchvision.transforms.functional import pil_to_tensor

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    images = torch.stack([pil_to_tensor(photo).float() / 127.5 - 1 for photo in make_photos(4)])
    calibrate(model, lambda: model.head(list(model.backbone(images).values())))
    if candidate.endswith("channels_last"):
        model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call() -> Any:
        return model([pil_to_tensor(photo).float() / 255 for photo in photos])

    def count_boxes(threshold: float) -> float:
        model.score_thresh = threshold
        return mean_count(call())

    model.score_thresh = find_threshold(count_boxes)
    return call


def build_ours(case: Case, photos: list[Any]) -> tuple[Call, Any, Any, float]:
    """Return call, model as prepared by `mobilevit_hf.pipeline`, image processor and score threshold."""
    import torch

    from mobilevit_hf import (
        MobileViTSSDLiteConfig,
        MobileViTSSDLiteForObjectDetection,
        MobileViTSSDLiteImageProcessor,
    )
    from mobilevit_hf.modeling.fused_mobilevit import fold_batch_norm

    config = MobileViTSSDLiteConfig.from_variant(case.variant, num_labels=NUM_CLASSES, image_size=case.size)
    model = MobileViTSSDLiteForObjectDetection(config)
    processor = MobileViTSSDLiteImageProcessor(size={"height": case.size, "width": case.size})
    calibrate(model, lambda: model(**processor(make_photos(4), return_tensors="pt")))
    model = fold_batch_norm(model)
    sizes = [(photo.height, photo.width) for photo in photos]

    @torch.inference_mode()
    def detect(threshold: float) -> list[dict[str, Any]]:
        outputs = model(**processor(photos, return_tensors="pt"))
        return processor.post_process_object_detection(outputs, threshold, sizes)

    threshold = find_threshold(lambda threshold: mean_count(detect(threshold)))
    return lambda: detect(threshold), model, processor, threshold


def build(candidate: str, case: Case) -> Call:
    """Return a call from decoded photos to boxes in pixels."""
    import transformers

    photos = make_photos(case.batch)
    if candidate.startswith("torchvision"):
        return build_torchvision(candidate, photos)
    call, model, processor, threshold = build_ours(case, photos)
    if candidate == OURS:
        return call
    detector = transformers.pipeline("object-detection", model=model, image_processor=processor)
    return lambda: detector(photos, threshold=threshold, batch_size=case.batch)


def check(case: Case) -> str:
    """Return the numbers of boxes and the fraction of time that post-processing takes."""
    import torch

    torch.manual_seed(0)
    photos = make_photos(8)
    torchvision_call = build_torchvision("torchvision", photos)
    call, model, processor, threshold = build_ours(case, photos)
    sizes = [(photo.height, photo.width) for photo in photos]
    fractions = []
    with torch.inference_mode():
        outputs = model(**processor(photos, return_tensors="pt"))
        for _ in range(5):
            total = measure(call)
            post_processing = measure(lambda: processor.post_process_object_detection(outputs, threshold, sizes))
            fractions.append(post_processing / total)
    return (
        f"{case.variant}: ours returns {mean_count(call()):.0f} boxes per photo, torchvision "
        f"{mean_count(torchvision_call()):.0f}; post-processing takes {statistics.median(fractions):.1%} of the time "
        f"of ours at batch 8 and {NUM_CLASSES} classes."
    )


def measure(call: Call) -> float:
    """Return the duration of one call in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    side_by_side.main(
        __doc__,
        build,
        check,
        variants=["xxs", "s"],
        batches=[1, 8],
        size=320,
        candidates=CANDIDATES,
        notes=[
            f"From decoded {PHOTO_SIZE[0]}x{PHOTO_SIZE[1]} photos to boxes; random weights. Thresholds keep about "
            f"{BOXES} boxes per photo.",
            f'"{OURS}" calls image processor, model and post_process_object_detection; "{PIPELINE}" is a pipeline of '
            "transformers.",
        ],
    )
