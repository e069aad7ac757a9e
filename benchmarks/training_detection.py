"""Train detectors from scratch at equal CPU time: ultralytics' YOLO11n and ours, scored by one referee.

Every training runs in its own process on one core with one thread, on the same images, with the defaults of its
package. Both packages can train for a given time; the clocks of their training loops are replaced by the CPU time of
the process, so that a busy machine changes nothing and each learning rate schedule fits the budget. The test images,
which neither package sees during training, are predicted by the package's own inference; faster-coco-eval scores the
predictions. Results are added to --json as they arrive, and are not computed again.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from side_by_side import describe_environment
from workers import OURS, Candidate, available, environment_without_allocator_settings, yolo_environment

YOLO = "YOLO11n"
CANDIDATES = {
    YOLO: Candidate("ultralytics", "ultralytics"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.training.trainer"),
}
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # name of the package: name in YOLO's format
TEST_FRACTION, VALIDATION_FRACTION = 1 / 3, 0.1  # of data without such a split
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


def split(data: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return class names and the samples of each split; without a test split, a third is held out."""
    from mobilevit_hf.data.reading import load_dataset
    from mobilevit_hf.data.splits import split_validation

    dataset = load_dataset(data, validation_fraction=0)
    if dataset.task != "object-detection":
        raise ValueError(f"{data}: got a dataset for {dataset.task}, expected boxes. Pass a detection dataset.")
    splits: dict[str, Any] = dataset.splits
    for name, fraction in (("test", TEST_FRACTION), ("validation", VALIDATION_FRACTION)):
        if name not in splits:
            splits["train"], splits[name] = split_validation(splits["train"], fraction, seed=0)
    return dataset.classes, splits


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
            (folder / "labels" / name / f"{file.stem}.txt").write_text("".join(rows))
            if name == "test":
                image = {"id": number, "file_name": str(file.relative_to(folder))}
                truth["images"].append(image | dict(zip(("width", "height"), size, strict=True)))
                truth["annotations"] += _coco_annotations(sample, number, len(truth["annotations"]) + 1)
    names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(classes))
    paths = "".join(f"{name}: images/{name}\n" for name in SPLITS.values())
    (folder / "data.yaml").write_text(f"path: {json.dumps(str(folder))}\n{paths}names:\n{names}")
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


def use_cpu_clock(module: ModuleType) -> None:
    """Replace the clock of a module by the CPU time of the process, all threads included."""
    if module.time is not time:
        raise RuntimeError(f"{module.__name__}: got another `time`, expected Python's module.")
    module.time = SimpleNamespace(**vars(time) | {"time": time.process_time, "monotonic": time.process_time})


Predict = Callable[[str], Detections]


def train_yolo(data: Path, runs: Path, minutes: float, seed: int) -> tuple[str, Predict]:
    """Train YOLO11n; return the length of the training, and a function from an image file to detections."""
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


def train_ours(data: Path, runs: Path, minutes: float, seed: int) -> tuple[str, Predict]:
    """Train the XXS detector as `mobilevit train` does; for the return values see `train_yolo`."""
    import torch

    from mobilevit_hf import MobileViTSSDLiteForObjectDetection, MobileViTSSDLiteImageProcessor
    from mobilevit_hf.allocator import tune_allocator
    from mobilevit_hf.data.images import load_image
    from mobilevit_hf.training import trainer
    from mobilevit_hf.training.arguments import TrainArguments

    tune_allocator()
    use_cpu_clock(trainer)
    arguments = TrainArguments(
        data=str(data),
        model="xxs",
        max_minutes=minutes,
        seed=seed,
        output_dir=str(runs / "ours"),
        dataloader_num_workers=0,
        use_cpu=True,
    )
    result = trainer.train(arguments)
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


TRAININGS = {YOLO: train_yolo, OURS: train_ours}


def work(candidate: str, folder: str, images: list[str], minutes: float, seed: int, core: int | None) -> None:
    """Train a candidate on one core, predict the images, and write both to `result.json` in the folder `runs`."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    runs = Path(folder) / "runs"
    length, predict = TRAININGS[candidate](Path(folder) / "data", runs, minutes, seed)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(part.ru_utime + part.ru_stime for part in usage)
    predictions = [predict(str(Path(folder) / "data" / image)) for image in images]
    result = {"length": length, "cpu_seconds": seconds, "predictions": predictions}
    (runs / "result.json").write_text(json.dumps(result))


# --- command line ----------------------------------------------------------------------------------------------------


def run(candidate: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a candidate in its own process and score it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runs").mkdir()
        classes, splits = split(args.data)
        truth = write_yolo(classes, splits, folder / "data")
        request = {
            "candidate": candidate,
            "folder": name,
            "images": [image["file_name"] for image in truth["images"]],
            "minutes": args.minutes,
            "seed": seed,
            "core": args.core,
        }
        environment = environment_without_allocator_settings() | yolo_environment(name)
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--worker", json.dumps(request)]
        subprocess.run(command, env=environment, stdout=sys.stderr, cwd=folder, check=True)
        result = json.loads((folder / "runs" / "result.json").read_text())
    return {
        "images": {split_name: len(samples) for split_name, samples in splits.items()},
        "length": result["length"],
        "cpu_seconds": result["cpu_seconds"],
        **score(truth, result["predictions"]),
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the means over the seeds."""
    from rich.console import Console
    from rich.table import Table

    table = Table("data", "candidate")
    for column in ("seeds", "CPU min", "mAP", "mAP50", "of each seed"):
        table.add_column(column, justify="right")
    groups: dict[Any, list[dict[str, Any]]] = {}
    for result in report["results"]:
        groups.setdefault((result["data"], result["minutes"], result["candidate"]), []).append(result)
    for (data, minutes, candidate), results in sorted(groups.items()):
        table.add_row(
            f"{data}, {minutes:g} min",
            candidate,
            str(len(results)),
            f"{statistics.mean(result['cpu_seconds'] for result in results) / 60:.1f}",
            *(f"{100 * statistics.mean(result[name] for result in results):.1f}" for name in ("map", "map_50")),
            ", ".join(f"{100 * result['map']:.1f}/{100 * result['map_50']:.1f}" for result in results),
        )
    console = Console(highlight=False, width=110)
    console.print(table)
    for note in report["notes"]:
        console.print(note, markup=False)
    print("\n".join(f"{name}: {value}" for name, value in report["environment"].items()))


def main() -> None:
    """Run the command line, or the process of a candidate."""
    if sys.argv[1:2] == ["--worker"]:
        work(**json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="detection dataset, in any format that mobilevit train reads")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--core", type=int, help="core to run on (default: chosen by the system)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; those in it are not computed again")
    args = parser.parse_args()
    report: dict[str, Any] = {"environment": describe_environment(), "notes": NOTES, "results": []}
    if args.json and args.json.exists():
        report = json.loads(args.json.read_text())
    for seed in args.seeds:
        for candidate in available({name: CANDIDATES[name] for name in args.candidates}):
            key = {"data": Path(args.data).name, "minutes": args.minutes, "candidate": candidate, "seed": seed}
            if any(key.items() <= result.items() for result in report["results"]):
                continue
            print(f"{candidate}, seed {seed}, {args.minutes:g} CPU minutes", file=sys.stderr, flush=True)
            try:
                report["results"].append(key | run(candidate, args, seed))
            except (ValueError, subprocess.CalledProcessError) as error:
                sys.exit(f"\n{candidate}: {error}")
            if args.json:
                from mobilevit_hf.io import write_text

                write_text(args.json, json.dumps(report, indent=2) + "\n")
    print_report(report)


if __name__ == "__main__":
    main()
