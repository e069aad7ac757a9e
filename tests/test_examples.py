"""Examples run as scripts: the loss falls, and the saved models run in stock pipelines."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PACKAGE_PARENT
from hub_server import HubServer
from metric_cases import reference_map
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, AutoModelForObjectDetection, MobileViTImageProcessor

from mobilevit_hf import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTSSDLiteForObjectDetection,
)
from mobilevit_hf.data import check_dataset, load_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_example(tmp_path_factory):
    """Function that runs an example with arguments and returns its standard output.

    The process is offline, unless `env` is a complete environment, such as `HubServer.environment`.
    """

    def run(name, *arguments, launcher=(), env=None):
        folder = tmp_path_factory.mktemp("process")
        process = subprocess.run(
            [sys.executable, *launcher, str(EXAMPLES / name), *map(str, arguments)],
            env=(env or os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface")})
            | {"PYTHONPATH": str(PACKAGE_PARENT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
            | {"TQDM_DISABLE": "1", "ACCELERATE_USE_CPU": "true"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    return run


@pytest.mark.parametrize(
    ("name", "task"),
    [("shirts", "image-classification"), ("parts", "object-detection"), ("streets", "image-segmentation")],
)
def test_drawn_datasets_have_no_problems(run_example, tmp_path, name, task):
    run_example("draw_dataset.py", name, tmp_path / name, "--images", 10)
    dataset = load_dataset(str(tmp_path / name))
    assert dataset.task == task
    assert not check_dataset(dataset).problems


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help_is_printed_before_the_slow_imports(name, tmp_path):
    for module in ("torch", "transformers", "evaluate", "accelerate"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit(3)")
    command = [sys.executable, str(EXAMPLES / name), "--help"]
    process = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "OUTPUT_DIR" in process.stdout


@pytest.fixture(scope="module")
def initial_checkpoint(tiny_fields, tmp_path_factory):
    """Folder of a small classifier of four classes with random weights and BGR input."""
    sizes = {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [16, 16, 24, 24, 32, 40, 64], "expand_ratio": 2.0}
    torch.manual_seed(0)
    model = MobileViTForImageClassification(MobileViTConfig(**tiny_fields | sizes, hidden_dropout_prob=0.0))
    folder = tmp_path_factory.mktemp("initial_checkpoint")
    model.save_pretrained(folder)
    MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint_96(initial_checkpoint, tmp_path_factory):
    """Copy of the initial checkpoint for images of 96x96 pixels: RT-DETR needs a location per query."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model_96"
    shutil.copytree(initial_checkpoint, folder)
    crop = {"height": 96, "width": 96}
    MobileViTImageProcessor(size={"shortest_edge": 96}, crop_size=crop).save_pretrained(folder)
    return folder


def parse_logs(output):
    """Return the metrics that Trainer prints, without throughput."""
    logs = [ast.literal_eval(line) for line in output.splitlines() if line.startswith("{")]
    return [{name: float(value) for name, value in log.items() if "per_second" not in name} for log in logs]


# --- classification --------------------------------------------------------------------------------------------------


def draw_flowers(name, seed):
    """Red discs (poppies) or blue ones (irises) on gray noise."""
    generator = np.random.default_rng(seed)
    width, height = [(96, 72), (72, 96)][seed % 2]
    image = Image.fromarray(generator.integers(60, 140, (height, width, 3), dtype=np.uint8))
    canvas = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = (int(generator.integers(*ends)) for ends in ((0, width), (0, height), (5, 12)))
        strong, *weak = (int(generator.integers(*ends)) for ends in ((170, 256), (0, 100), (0, 100)))
        color = (strong, *weak) if name == "poppy" else (*weak, strong)
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return image


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Class folders with 100 training images and 31 validation images, of which four are mislabeled.

    All mislabeled images have even indices, so two processes that share the images get different accuracies.
    """
    root, seed = tmp_path_factory.mktemp("flowers"), 0
    for split, counts in {"train": (50, 50), "validation": (16, 15)}.items():
        for name, count in zip(("iris", "poppy"), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed += 1
                is_mislabeled = split == "validation" and name == "iris" and index in (0, 2, 4, 6)
                image = draw_flowers("poppy" if is_mislabeled else name, seed)
                image.save(root / split / name / f"{seed:03}.png")
    return root


@pytest.fixture(scope="module")
def stock_accuracy(flowers, run_python):
    """Function that returns the validation accuracy of a saved model in stock transformers, in a clean process."""

    def measure(folder):
        paths = [str(path) for path in sorted((flowers / "validation").glob("*/*.png"))]
        code = f"""
            import json
            from transformers import pipeline

            classify = pipeline("image-classification", model={str(folder)!r})
            print(json.dumps([predictions[0]["label"] for predictions in classify({paths!r}, top_k=1)]))
            """
        labels = json.loads(run_python(code, without_package=True))
        return np.mean([Path(path).parent.name == label for path, label in zip(paths, labels, strict=True)])

    return measure


def test_finetune_classifier(flowers, initial_checkpoint, run_example, stock_accuracy, tmp_path):
    output = run_example("finetune_classifier.py", flowers / "train", initial_checkpoint, tmp_path / "model", 40)
    assert "No validation split: split off 10 of 100 training images" in output
    logs = parse_logs(output)
    losses, metrics = ([log[name] for log in logs if name in log] for name in ("loss", "eval_accuracy"))
    assert len(losses) == len(metrics) == 40
    assert losses[-1] < 0.8 * losses[0]
    assert stock_accuracy(tmp_path / "model") >= 0.8  # of 0.87


@pytest.mark.parametrize(("launcher", "num_processes", "epochs"), [((), 1, 20), (TWO_PROCESSES, 2, 40)])
def test_accelerate_loop(
    launcher, num_processes, epochs, flowers, initial_checkpoint, run_example, stock_accuracy, tmp_path
):
    """The accuracy over all processes equals that of stock transformers."""
    output = run_example(
        "accelerate_loop.py", flowers, initial_checkpoint, tmp_path / "model", epochs, launcher=launcher
    )
    assert f"Num processes: {num_processes}\n" in output
    accuracies = [float(accuracy) for accuracy in re.findall(r"^epoch \d+: accuracy (.*)$", output, re.MULTILINE)]
    assert len(accuracies) == epochs
    assert accuracies[-1] >= 0.8
    assert stock_accuracy(tmp_path / "model") == pytest.approx(accuracies[-1], abs=5e-4)


@pytest.mark.parametrize(("launcher", "num_processes"), [((), 1), (TWO_PROCESSES, 2)])
def test_stream_from_hub(
    launcher, num_processes, flowers, initial_checkpoint, run_example, run_python, stock_accuracy, tmp_path
):
    """Four files sorted by class are streamed, none stays on disk. The accuracy equals that of stock transformers."""
    code = f"""
        import datasets
        datasets.disable_progress_bars()
        data = datasets.load_dataset("imagefolder", data_dir={str(flowers)!r})
        data.push_to_hub("user/flowers", num_shards={{"train": 4, "validation": 1}})
        """
    with HubServer() as hub:
        run_python(code, hub.environment(tmp_path / "home"))
        arguments = ("user/flowers", initial_checkpoint, tmp_path / "model", 60)
        output = run_example(
            "stream_from_hub.py", *arguments, launcher=launcher, env=hub.environment(tmp_path / "other")
        )
        requested = {request.path for request in hub.requests}
    assert sum("/resolve/" in path and "/train-" in path for path in requested) == 4
    assert not [path for path in (tmp_path / "other").rglob("*") if path.suffix in (".parquet", ".arrow")]
    losses = [float(loss) for loss in re.findall(r"^step \d+0: loss (.*)$", output, re.MULTILINE)]
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    (accuracy,) = re.findall(r"^accuracy (.*)$", output, re.MULTILINE)
    assert float(accuracy) >= 0.8  # of 0.87
    assert stock_accuracy(tmp_path / "model") == pytest.approx(float(accuracy), abs=5e-4)


def test_custom_head(flowers, initial_checkpoint, run_example, run_python, tmp_path):
    """The embeddings equal those of the stock encoder followed by the saved projection in numpy."""
    logs = parse_logs(run_example("custom_head.py", flowers, initial_checkpoint, tmp_path / "model", 20))
    recalls = [log["eval_recall_at_1"] for log in logs if "eval_recall_at_1" in log]
    assert len(recalls) == 20
    paths = [str(path) for path in sorted((flowers / "validation").glob("*/*.png"))]
    code = f"""
        import json
        import numpy as np
        from PIL import Image
        from safetensors.numpy import load_file
        from transformers import AutoImageProcessor, AutoModel

        model = AutoModel.from_pretrained({str(tmp_path / "model")!r})
        processor = AutoImageProcessor.from_pretrained({str(tmp_path / "model")!r})
        weights = load_file({str(tmp_path / "model" / "model.safetensors")!r})
        images = [Image.open(path) for path in {paths!r}]
        features = model(**processor(images, return_tensors="pt")).pooler_output.detach().numpy()
        vectors = features @ weights["projection.weight"].T + weights["projection.bias"]
        print(json.dumps((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist()))
        """
    expected = np.array(json.loads(run_python(code, without_package=True)))
    similarity = expected @ expected.T - 2 * np.eye(len(paths))
    names = np.array([Path(path).parent.name for path in paths])
    assert np.mean(names[similarity.argmax(axis=1)] == names) == pytest.approx(max(recalls), abs=5e-4)
    assert max(recalls) >= 0.7  # the neighbors of the mislabeled images have the other label
    code = f"""
        import json
        from transformers import pipeline

        sys.path.append({str(EXAMPLES)!r})
        from custom_head import MobileViTForImageEmbedding

        model = MobileViTForImageEmbedding.from_pretrained({str(tmp_path / "model")!r})
        embed = pipeline("image-feature-extraction", model=model, image_processor={str(tmp_path / "model")!r})
        print(json.dumps([embed(path)[0] for path in {paths!r}]))
        """
    np.testing.assert_allclose(json.loads(run_python(code)), expected, atol=1e-4)


# --- detection -------------------------------------------------------------------------------------------------------

CATEGORIES = {3: "ball", 7: "cube"}


def draw_objects(seed):
    """Return an image with a white ball, a white cube or both on noise, and its COCO annotations, one a crowd."""
    generator = np.random.default_rng(seed)
    width, height = [(128, 96), (96, 128), (112, 112)][seed % 3]
    image = Image.fromarray(generator.integers(0, 90, (height, width, 3), dtype=np.uint8))
    canvas, annotations = ImageDraw.Draw(image), []
    for index, category in enumerate([[3, 7], [7], [3], [7, 3]][seed % 4]):
        w, h = (int(generator.integers(30, 46)) for _ in range(2))
        x = index * width // 2 + int(generator.integers(0, width // 2 - w + 1)) if w <= width // 2 else 0
        y = int(generator.integers(0, height - h))
        shape = canvas.ellipse if category == 3 else canvas.rectangle
        shape((x, y, x + w - 1, y + h - 1), fill="white")
        crowd = {"iscrowd": int(seed == 0 and index == 1), "area": w * h * 0.8}
        annotations.append({"bbox": [x, y, w, h], "category_id": category, **crowd})
    return image, annotations


def write_coco(root, **splits):
    """Write a COCO dataset with one image per seed, by split; return its folder."""
    for split, seeds in splits.items():
        (root / split).mkdir(parents=True)
        content = {"images": [], "annotations": []}
        content["categories"] = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
        for seed in seeds:
            image, annotations = draw_objects(seed)
            image.save(root / split / f"{seed}.png")
            size = {"width": image.width, "height": image.height}
            content["images"].append({"id": seed, "file_name": f"{seed}.png", **size})
            for annotation in annotations:
                ids = {"id": len(content["annotations"]) + 1, "image_id": seed}
                content["annotations"].append({**ids, **annotation})
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def coco_dataset(tmp_path_factory):
    """COCO dataset whose validation images are also training images."""
    return write_coco(tmp_path_factory.mktemp("coco"), train=range(8), validation=range(3))


def average_precision(folder, coco_split, **options):
    """Return mAP and mAP50 of a saved detector, computed by pycocotools."""
    model = AutoModelForObjectDetection.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    ground_truth, results = json.loads((coco_split / "_annotations.coco.json").read_text()), []
    ids = {name: number for number, name in CATEGORIES.items()}
    for image in ground_truth["images"]:
        inputs = processor(Image.open(coco_split / image["file_name"]), return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        sizes = [(image["height"], image["width"])]
        (detections,) = processor.post_process_object_detection(outputs, target_sizes=sizes, **options)
        for (x1, y1, x2, y2), score, label in zip(
            detections["boxes"].tolist(), detections["scores"].tolist(), detections["labels"].tolist(), strict=True
        ):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": ids[model.config.id2label[label]]}
            results.append({"image_id": image["id"], "score": score, **box})
    return reference_map(ground_truth, results)


def test_finetune_detector(coco_dataset, initial_checkpoint, run_example, run_python, tmp_path):
    logs = parse_logs(run_example("finetune_detector.py", coco_dataset, initial_checkpoint, tmp_path / "model", 40))
    losses, metrics = ([log[name] for log in logs if name in log] for name in ("loss", "eval_map"))
    assert len(losses) == len(metrics) == 40
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])
    best = next(log for log in logs if log.get("eval_map") == max(metrics))
    assert best["eval_map"] > 0
    expected = average_precision(tmp_path / "model", coco_dataset / "validation")
    assert [best["eval_map"], best["eval_map_50"]] == pytest.approx(expected.tolist(), rel=0.02)
    code = f"""
        import json
        from transformers import pipeline

        detect = pipeline("object-detection", model={str(tmp_path / "model")!r}, trust_remote_code=True)
        detections = detect({str(coco_dataset / "train" / "0.png")!r}, threshold=0.0)
        print(json.dumps([detection["label"] for detection in detections]))
        """
    assert set(json.loads(run_python(code, without_package=True))) == set(CATEGORIES.values())


@pytest.mark.parametrize("name", ["finetune_detector.py", "rt_detr_on_mobilevit.py"])
def test_last_batch_of_one_image_is_evaluated(run_example, checkpoint_96, tmp_path, name):
    coco = write_coco(tmp_path / "data", train=range(2), validation=range(9))  # the batch size is 8
    logs = parse_logs(run_example(name, coco, checkpoint_96, tmp_path / "model", 1))
    assert sum("eval_map" in log for log in logs) == 1


def test_finetune_detector_is_reproducible(initial_checkpoint, run_example, tmp_path):
    """With a `metadata.jsonl` dataset that has an image without objects."""
    for split, seeds in {"train": range(4), "validation": range(4, 8)}.items():
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        lines = []
        for seed in seeds:
            image, annotations = draw_objects(seed)
            image.save(folder / f"{seed}.png")
            annotations = [] if seed == 1 else annotations
            boxes, names = [a["bbox"] for a in annotations], [CATEGORIES[a["category_id"]] for a in annotations]
            lines.append(json.dumps({"file_name": f"{seed}.png", "objects": {"bbox": boxes, "category": names}}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    first, second = (
        parse_logs(run_example("finetune_detector.py", tmp_path / "data", initial_checkpoint, tmp_path / name, 2))
        for name in ("first", "second")
    )
    kept = {"loss", "eval_loss", "eval_map", "eval_map_50"}
    assert [{name: log[name] for name in log.keys() & kept} for log in first] == [
        {name: log[name] for name in log.keys() & kept} for log in second
    ]
    assert sum("eval_map" in log for log in first) == 2
    config = MobileViTSSDLiteForObjectDetection.from_pretrained(tmp_path / "first").config
    assert config.id2label == {0: "ball", 1: "cube"}


def test_rt_detr_on_mobilevit(initial_checkpoint, checkpoint_96, run_example, run_python, tmp_path):
    """It detects objects on unseen images; the channel order of the backbone is reversed."""
    pytest.importorskip("scipy", reason="RT-DETR's loss matches boxes with SciPy")
    coco = write_coco(tmp_path / "data", train=range(96), validation=range(96, 108))
    logs = parse_logs(run_example("rt_detr_on_mobilevit.py", coco, checkpoint_96, tmp_path / "model", 20))
    losses, metrics = ([log[name] for log in logs if name in log] for name in ("loss", "eval_map"))
    assert len(losses) == len(metrics) == 20
    assert losses[-1] < 0.7 * losses[0]
    best = next(log for log in logs if log.get("eval_map") == max(metrics))
    assert best["eval_map_50"] > 0.3
    expected = average_precision(tmp_path / "model", coco / "validation", threshold=0.0)
    assert [best["eval_map"], best["eval_map_50"]] == pytest.approx(expected.tolist(), rel=0.02)
    trained = AutoModelForObjectDetection.from_pretrained(tmp_path / "model").model.backbone.model.conv_stem
    initial = MobileViTForImageClassification.from_pretrained(
        initial_checkpoint
    ).mobilevit.conv_stem.convolution.weight
    changes = [(trained.convolution.weight - weight).abs().mean() for weight in (initial.flip(1), initial)]
    assert changes[0] < 0.5 * changes[1]
    code = f"""
        import json
        import mobilevit_hf
        from transformers import pipeline

        detect = pipeline("object-detection", model={str(tmp_path / "model")!r})
        detections = detect({str(coco / "train" / "0.png")!r}, threshold=0.0)
        print(json.dumps([detection["label"] for detection in detections]))
        """
    assert set(json.loads(run_python(code))) == set(CATEGORIES.values())
