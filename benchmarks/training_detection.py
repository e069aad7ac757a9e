"""Train detectors from scratch at equal CPU time: ultralytics' YOLO11n and ours, scored by one referee.

Both are trained on the same images, with the defaults of their package. The test images, which neither package sees
during training, are predicted by the package's own inference; faster-coco-eval scores the predictions.
"""

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from equal_cpu_time import Comparison, Predict, main, train_with_defaults, use_cpu_clock
from workers import OURS, Candidate

YOLO = "YOLO11n"
CANDIDATES = {
    YOLO: Candidate("ultralytics", "ultralytics"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.training.trainer"),
}
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # name of the package: name in YOLO's format
SIZE = 320  # of both; the default of ours
YOLO_BATCH = 16  # its default
YOLO_CONFIDENCE, YOLO_IOU = 0.001, 0.7  # of its validation, which keeps nearly all boxes
NOTES = (
    "mAP, mAP50: on the test images, by faster-coco-eval; mean over the seeds, and the results of each. CPU minutes: "
    "user and system time of the process until the training ends, imports included.",
    f"Both from scratch at {SIZE}x{SIZE} with the defaults of their package, without loader processes: {OURS} is "
    f"`mobilevit train DATA --model xxs --max-minutes M`, {YOLO} is `YOLO('yolo11n.yaml').train(data=DATA, imgsz="
    f"{SIZE}, batch={YOLO_BATCH}, time=M / 60)`; without plots. {YOLO} predicts with conf={YOLO_CONFIDENCE}, iou="
    f"{YOLO_IOU}; {OURS} with threshold 0.",
)

Detections = dict[str, Any]  # boxes (x1, y1, x2, y2) in pixels, scores and class names of an image, as lists


# --- data ------------------------------------------------------------------------------------------------------------


def write_yolo(classes: tuple[str, ...], splits: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a YOLO dataset; image files are copied, unreadable ones left out.

    Returns:
        Ground truth of the test split in COCO's format; `file_name` is relative to `folder`.
    """
    from mobilevit_hf.data.images import UnreadableImageError

    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes)],
    }
    for split_name, name in SPLITS.items():
        for kind in ("images", "labels"):
            (folder / kind / name).mkdir(parents=True)
        for number, sample in enumerate(splits[split_name]):
            try:
                file, size = _copy_image(sample.image, folder / "images" / name / f"{number:06}")
            except UnreadableImageError as error:
                print(f"{sample.name}: left out, {error}.", file=sys.stderr)
                continue
            rows = [_yolo_row(*item, size) for item in _objects(sample) if not item[2]]
            (folder / "labels" / name / f"{file.stem}.txt").write_text("".join(rows), encoding="utf-8")
            if name == "test":
                image = {"id": number, "file_name": str(file.relative_to(folder))}
                truth["images"].append(image | dict(zip(("width", "height"), size, strict=True)))
                truth["annotations"] += _coco_annotations(sample, number, len(truth["annotations"]) + 1)
    names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(classes))
    paths = "".join(f"{name}: images/{name}\n" for name in SPLITS.values())
    (folder / "data.yaml").write_text(f"path: {json.dumps(str(folder))}\n{paths}names:\n{names}", encoding="utf-8")
    return truth


def _copy_image(source: Any, target: Path) -> tuple[Path, tuple[int, int]]:
    """Return the file, with a suffix added, and the width and height of the upright image."""
    from mobilevit_hf.data.images import load_image

    image = load_image(source)
    if isinstance(source, str | Path) and Path(source).is_file():
        file = target.with_suffix(Path(source).suffix.lower())
        shutil.copyfile(source, file)
    else:  # a row of a table
        file = target.with_suffix(".png")
        image.save(file)
    return file, image.size


def _objects(sample: Any) -> Iterable[tuple[list[float], int, int, float]]:
    """Return box, label, iscrowd and area of each object."""
    objects = sample.objects
    fields = (objects.boxes, objects.labels, objects.iscrowd, objects.areas)
    return zip(*(field.tolist() for field in fields), strict=True)


def _yolo_row(box: list[float], label: int, iscrowd: int, area: float, size: tuple[int, int]) -> str:
    (x1, y1, x2, y2), (width, height) = box, size
    center, sides = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height), ((x2 - x1) / width, (y2 - y1) / height)
    return " ".join([str(label), *(f"{number:.7f}" for number in (*center, *sides))]) + "\n"


def _coco_annotations(sample: Any, image: int, first_id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": iscrowd,
        }
        for number, ((x1, y1, x2, y2), label, iscrowd, area) in enumerate(_objects(sample), start=first_id)
    ]


def score(truth: dict[str, Any], predictions: list[Detections]) -> dict[str, float]:
    """Return mAP and mAP50 of the predictions for the images of `truth`, in their order."""
    from faster_coco_eval import COCO, COCOeval_faster

    labels = {category["name"]: category["id"] for category in truth["categories"]}
    results = [
        {"image_id": image["id"], "category_id": labels[name], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": value}
        for image, found in zip(truth["images"], predictions, strict=True)
        for (x1, y1, x2, y2), name, value in zip(found["boxes"], found["labels"], found["scores"], strict=True)
    ]
    if not results:
        return {"map": 0.0, "map_50": 0.0}
    coco = COCO(truth)
    evaluator = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda *_: None)
    evaluator.run()
    return {"map": float(evaluator.stats[0]), "map_50": float(evaluator.stats[1])}


# --- training in the process of a candidate --------------------------------------------------------------------------


def train_yolo(data: Path, runs: Path, minutes: float, seed: int, initial: str) -> tuple[str, Predict]:
    """Train YOLO11n; return the length of the training, and a function from an image file to detections;
    `initial` is not used."""
    from ultralytics import YOLO as Model
    from ultralytics.engine import trainer
    from ultralytics.utils import torch_utils

    use_cpu_clock(trainer)
    torch_utils.NUM_THREADS = 1  # what it passes to torch.set_num_threads
    model = Model("yolo11n.yaml")
    model.train(
        data=str(data / "data.yaml"),
        imgsz=SIZE,
        batch=YOLO_BATCH,
        time=minutes / 60,
        seed=seed,
        device="cpu",
        workers=0,
        plots=False,
        project=str(runs),
        name="yolo",
    )
    epochs = model.trainer.epoch + 1

    def predict(file: str) -> Detections:
        options = {"conf": YOLO_CONFIDENCE, "iou": YOLO_IOU, "imgsz": SIZE, "device": "cpu", "verbose": False}
        boxes = model.predict(file, **options)[0].boxes
        names = [model.names[int(label)] for label in boxes.cls]
        return {"boxes": boxes.xyxy.tolist(), "scores": boxes.conf.tolist(), "labels": names}

    return f"{epochs} epochs", predict


def train_ours(data: Path, runs: Path, minutes: float, seed: int, initial: str) -> tuple[str, Predict]:
    """Train the XXS detector as `mobilevit train` does; for the return values see `train_yolo`."""
    import torch

    from mobilevit_hf import MobileViTSSDLiteForObjectDetection, MobileViTSSDLiteImageProcessor
    from mobilevit_hf.data.images import load_image

    result = train_with_defaults(data, runs, minutes, seed, initial)
    model = MobileViTSSDLiteForObjectDetection.from_pretrained(result.output_dir).eval()
    processor = MobileViTSSDLiteImageProcessor.from_pretrained(result.output_dir)

    @torch.inference_mode()
    def predict(file: str) -> Detections:
        image = load_image(file)
        outputs = model(**processor(image, return_tensors="pt"))
        (found,) = processor.post_process_object_detection(outputs, 0.0, [(image.height, image.width)])
        names = [model.config.id2label[int(label)] for label in found["labels"]]
        return {"boxes": found["boxes"].tolist(), "scores": found["scores"].tolist(), "labels": names}

    return f"{result.steps} steps", predict


if __name__ == "__main__":
    main(
        Comparison(
            description=__doc__.partition("\n")[0],
            task="object-detection",
            candidates=CANDIDATES,
            trainings={YOLO: train_yolo, OURS: train_ours},
            write_data=write_yolo,
            score=score,
            metrics={"map": "mAP", "map_50": "mAP50"},
            notes=NOTES,
        )
    )
