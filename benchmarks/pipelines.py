"""Time pipelines from JPEG files to labels, boxes or masks; in batches of eight, segmentation one by one."""

import tempfile
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import CLASSIFICATION, SEGMENTATION, Case, build_model
from workers import OURS, Call, Candidate

CANDIDATES = {
    "stock": Candidate("transformers", "transformers.pipelines"),
    f"{OURS}, torch": Candidate("mobilevit_hf", "mobilevit_hf.pipelines"),
    f"{OURS}, onnx": Candidate("onnxruntime", "mobilevit_hf.pipelines"),
    f"{OURS}, detection torch": Candidate("mobilevit_hf", "mobilevit_hf.pipelines"),
    f"{OURS}, detection": Candidate("openvino", "mobilevit_hf.pipelines"),
    OURS: Candidate("openvino", "mobilevit_hf.pipelines"),
}
SETTINGS = {
    CLASSIFICATION: CANDIDATES,
    SEGMENTATION: {name: row for name, row in CANDIDATES.items() if "detection" not in name},
}
NUM_PHOTOS, SEGMENTATION_PHOTOS = 200, 8
DETECTOR_SIZE, DETECTOR_CLASSES = 320, 80
BOXES = 20  # approximate number of detections per photo


def write_photos(folder: Path, number: int = NUM_PHOTOS, size: tuple[int, int] = (400, 533)) -> list[str]:
    """Write JPEG files of a size (width, height), crops of a sample photo, and return their paths."""
    import numpy as np
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    generator = np.random.default_rng(0)
    with Image.open(get_sample_data("grace_hopper.jpg")) as photo:
        photo.load()
    paths = []
    for index in range(number):
        width = int(generator.integers(200, photo.width))
        height = min(photo.height, width * 4 // 3)
        left, top = (int(generator.integers(0, limit + 1)) for limit in (photo.width - width, photo.height - height))
        path = folder / f"{index:03}.jpg"
        photo.crop((left, top, left + width, top + height)).resize(size).save(path, quality=90)
        paths.append(str(path))
    return paths


def build_detector(case: Case, paths: list[str]) -> tuple[Any, Any, float]:
    """Return a detector with random weights, its image processor and the threshold for about `BOXES` detections."""
    import torch
    from detection import calibrate, find_threshold, make_photos, mean_count
    from PIL import Image

    from mobilevit_hf import (
        MobileViTSSDLiteConfig,
        MobileViTSSDLiteForObjectDetection,
        MobileViTSSDLiteImageProcessor,
    )

    config = MobileViTSSDLiteConfig.from_variant(case.variant, num_labels=DETECTOR_CLASSES, image_size=DETECTOR_SIZE)
    model = MobileViTSSDLiteForObjectDetection(config)
    processor = MobileViTSSDLiteImageProcessor(size={"height": DETECTOR_SIZE, "width": DETECTOR_SIZE})
    calibrate(model, lambda: model(**processor(make_photos(4), return_tensors="pt")))
    with torch.no_grad():
        for head in model.head.level_heads.values():
            # The first four outputs are box offsets; unscaled, boxes would be hundreds of images wide.
            for parameter in head.predictor.parameters():
                parameter.unflatten(0, (-1, head.num_outputs))[:, :4].mul_(0.1)
    photos = [Image.open(path) for path in paths[: case.batch]]
    with torch.inference_mode():
        outputs = model(**processor(photos, return_tensors="pt"))
    sizes = [(photo.height, photo.width) for photo in photos]
    threshold = find_threshold(
        lambda score: mean_count(processor.post_process_object_detection(outputs, score, sizes)), BOXES
    )
    return model, processor, threshold


def build(candidate: str, case: Case) -> Call:
    """Return a call that runs all photos once; for segmentation, they have the size of the model."""
    import torch
    import transformers

    import mobilevit_hf

    folder = tempfile.TemporaryDirectory()
    torch.manual_seed(0)  # as many segments for all
    sides = {"height": case.size, "width": case.size}
    if is_segmentation := case.setting == SEGMENTATION:
        paths = write_photos(Path(folder.name), SEGMENTATION_PHOTOS, (case.size, case.size))
        processor = transformers.MobileViTImageProcessor(size=sides, do_center_crop=False)
    else:
        paths = write_photos(Path(folder.name))
        processor = transformers.MobileViTImageProcessor(size={"shortest_edge": case.size * 9 // 8}, crop_size=sides)
    task = "image-segmentation" if is_segmentation else "image-classification"
    backend = next((name for name in ("torch", "onnx") if candidate.endswith(name)), "openvino")
    options: dict[str, Any] = {} if is_segmentation else {"top_k": 5, "batch_size": case.batch}
    if candidate == "stock":
        model = build_model(candidate, case).eval()
        pipe = transformers.pipeline(task, model=model, image_processor=processor)
    elif "detection" in candidate:
        model, processor, threshold = build_detector(case, paths)
        pipe = mobilevit_hf.pipeline("object-detection", model, image_processor=processor, backend=backend)
        options = {"threshold": threshold, "batch_size": case.batch}
    else:
        model = build_model(OURS, case).eval()
        pipe = mobilevit_hf.pipeline(task, model, image_processor=processor, backend=backend)

    def call(folder: Any = folder) -> Any:  # keeps the temporary folder alive
        return pipe(paths, **options)

    return call


def check(case: Case) -> str:
    """Return the number of photos per call."""
    if case.setting == SEGMENTATION:
        return f"{case.variant}, {case.setting}: a call runs {SEGMENTATION_PHOTOS} photos one by one."
    return f"{case.variant}, {case.setting}: a call runs {NUM_PHOTOS} photos in batches of {case.batch}."


if __name__ == "__main__":
    side_by_side.main(
        __doc__,
        build,
        check,
        variants=["s"],
        batches=[8],
        settings=SETTINGS,
        notes=[
            f"Ours: OpenVINO in float32 unless stated otherwise; detection at {DETECTOR_SIZE}x{DETECTOR_SIZE}, about "
            f"{BOXES} boxes per photo. Segmentation: photos of the model's size, with the masks of all classes."
        ],
    )
