"""The benchmarks run and report every candidate; speed is not tested."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from metric_cases import reference_map
from PIL import Image
from toy_datasets import draw_classification, draw_detection, draw_segmentation

from mobilevit_hf.data.reading import load_dataset

REPOSITORY = Path(__file__).parent.parent
CLASSIFIERS = ["stock", "timm contiguous", "timm channels_last", "as loaded", "ours"]
SEGMENTERS = ["stock", "as loaded", "ours"]
DETECTORS = ["torchvision", "torchvision channels_last", "ours, pipeline", "ours"]
BACKENDS = ["stock", "timm"] + [
    f"{name}{setting}" for setting in (", onnx", ", bfloat16", "") for name in ("runtime API", "ours")
]
ENGINES = {
    "torch": ["YOLO11n", "YOLO11n, network", "ours, network", "ours"],
    "onnx": ["YOLO11n", "YOLO11n, network", "ours, network", "ours"],
    "openvino, default": ["YOLO11n", "ours"],
    "openvino, float32": ["YOLO11n", "YOLO11n, network", "ours, network", "ours"],
    "openvino, bfloat16": ["YOLO11n", "YOLO11n, network", "ours, network", "ours"],
}
PIPELINES = ["stock", "ours, torch", "ours, onnx", "ours, detection torch", "ours, detection", "ours"]
SEGMENTATION_PIPELINES = ["stock", "ours, torch", "ours, onnx", "ours"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "candidates"),
    [
        ("inference.py", "users", CLASSIFIERS),
        ("training_step.py", "same --settings classification", CLASSIFIERS),
        ("training_step.py", "same --settings segmentation", SEGMENTERS),  # stock's needs two images
        ("detection.py", "same", DETECTORS),
        ("backends.py", "same", BACKENDS),
        ("pipelines.py", "users --settings classification", PIPELINES),
        ("pipelines.py", "users --settings segmentation", SEGMENTATION_PIPELINES),
    ],
)
def test_report_contains_every_candidate(script: str, options: str, candidates: list[str], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    for package in ("onnxruntime", "onnxscript", "openvino") if script in ("backends.py", "pipelines.py") else ():
        pytest.importorskip(package)
    file = tmp_path / "results.json"
    allocator = options.split()[0]
    batch = 2 if candidates is SEGMENTERS else 1
    options = f"--variants xxs --batches {batch} --rounds 1 --size 64 --threads 1 --allocator {options}"
    command = [sys.executable, REPOSITORY / "benchmarks" / script, *options.split(), "--json", file]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(file.read_text())
    (result,) = report["results"]
    assert (result["variant"], result["batch"], result["allocator"], result["threads"]) == ("xxs", batch, allocator, 1)
    assert list(result["candidates"]) == candidates
    for name, row in result["candidates"].items():
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["speedup_of_ours"] > 0
        assert 0 < row["imported_mib"] <= row["peak_mib"]
        assert name in process.stdout
    assert result["candidates"]["ours"]["speedup_of_ours"] == 1
    assert report["environment"]["torch"] in process.stdout


@pytest.mark.slow
def test_serving_report_counts_the_answers_of_each_server(tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn", "starlette"):
        pytest.importorskip(package)
    file = tmp_path / "results.json"
    command = [
        sys.executable,
        REPOSITORY / "benchmarks/serving.py",
        "--clients",
        "2",
        "--seconds",
        "1",
        "--json",
        file,
    ]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    (results,) = json.loads(file.read_text())["rounds"]
    assert list(results) == ["ours", "FastAPI + stock pipeline"]
    for name, result in results.items():
        assert name in process.stdout
        assert result["requests"] > 0
        assert result["errors"] == {}


@pytest.mark.slow
def test_training_report_contains_every_candidate(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    data, file = draw_classification(tmp_path / "data", train=10, validation=0), tmp_path / "results.json"
    setting = "--batches 2 --batch 4 --sizes 64 --workers own --rounds 1 --threads 1 --allocator users --json"
    command = [sys.executable, REPOSITORY / "benchmarks/training.py", data, *setting.split(), file]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(file.read_text())
    (result,) = report["results"]
    assert (result["variant"], result["batch"], result["classes"], result["threads"]) == ("xxs", 4, 2, 1)
    assert 0 <= result["waiting_for_data"] <= 1
    assert list(result["candidates"]) == ["timm", "Trainer", "ours"]
    for name, row in result["candidates"].items():
        (line,) = [line for line in process.stdout.splitlines() if line.startswith("xxs, ") and f" {name} " in line]
        assert f" {2 * 4 / row['median_ms'] * 1000:.1f} " in line
        assert f" {row['speedup_of_ours']:.2f}x" in line
    assert result["candidates"]["ours"]["speedup_of_ours"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("candidate", ["timm", "Trainer", "ours"])
def test_training_epoch_reads_every_image(candidate: str, run_python, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    data = draw_classification(tmp_path / "data", train=8, validation=0) / "train"
    code = f"""
        import sys
        sys.path.insert(0, {str(REPOSITORY / "benchmarks")!r})
        import training
        from mobilevit_hf import MobileViTConfig
        config = MobileViTConfig.from_variant("xxs")
        fields = {{name: getattr(config, name) for name in ("hidden_sizes", "neck_hidden_sizes", "expand_ratio")}}
        opened = []
        sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))

        def turns():
            yield
            for _ in range(2):
                opened.clear()
                yield
                print(*sorted({{name for name in opened if name.endswith(".png")}}), sep=",")

        case = training.Case(
            data={str(data)!r}, runs={str(tmp_path / "runs")!r}, classes=2, batches=2, variant="xxs", size=64,
            workers=0, batch=4, allocator="users", threads=1, fields=fields,
        )
        training.train_in_turns(training.build({candidate!r}, case), turns(), case.batches)
    """
    images = ",".join(sorted(map(str, data.rglob("*.png"))))
    assert run_python(code).splitlines() == [images, images]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")


def run_benchmark(script: str, options: str, *arguments: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, REPOSITORY / "benchmarks" / script, *arguments, *options.split()]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return process


@pytest.mark.slow
def test_detection_pipelines_run_every_installed_engine(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    options = f"--batches 2 --rounds 1 --size 64 --threads 1 --allocator users --json {file}"
    process = run_benchmark("detection_pipelines.py", options)
    packages = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
    has_yolo = importlib.util.find_spec("ultralytics") is not None
    expected = {
        setting: [name for name in names if has_yolo or not name.startswith("YOLO")]
        for setting, names in ENGINES.items()
        if importlib.util.find_spec(packages[setting.partition(",")[0]])
    }
    results = json.loads(file.read_text())["results"]
    assert {result["setting"]: list(result["candidates"]) for result in results} == expected
    assert ("ultralytics: not installed, skipped." in process.stderr) != has_yolo
    for name in {name for names in expected.values() for name in names}:
        assert name in process.stdout


@pytest.mark.usefixtures("benchmarks")
def test_yolo_folder_has_the_splits_and_boxes_of_the_dataset(tmp_path: Path) -> None:
    from equal_cpu_time import split
    from training_detection import write_yolo

    source = draw_detection(tmp_path / "coco", train=9, validation=2)
    classes, splits = split(str(source), "object-detection")
    truth = write_yolo(classes, splits, tmp_path / "yolo")
    copy = load_dataset(tmp_path / "yolo")
    assert copy.classes == classes
    assert {name: len(samples) for name, samples in copy.splits.items()} == {"train": 6, "validation": 2, "test": 3}
    files = [Path(sample.image).read_bytes() for samples in copy.splits.values() for sample in samples]
    assert len(set(files)) == 11
    for name, samples in splits.items():
        for sample, copied in zip(samples, copy.splits[name], strict=True):
            assert Path(copied.image).read_bytes() == Path(sample.image).read_bytes()
            assert copied.objects.boxes.tolist() == [
                pytest.approx(box, abs=0.01) for box in sample.objects.boxes.tolist()
            ]
            assert copied.objects.labels.tolist() == sample.objects.labels.tolist()
    assert [image["file_name"] for image in truth["images"]] == [f"images/test/{number:06}.png" for number in range(3)]


@pytest.mark.usefixtures("benchmarks")
def test_yolo_folder_leaves_out_truncated_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from equal_cpu_time import split
    from training_detection import write_yolo

    classes, splits = split(str(draw_detection(tmp_path / "coco", train=9, validation=2)), "object-detection")
    sample = splits["train"][0]
    Path(sample.image).write_bytes(Path(sample.image).read_bytes()[:-100])
    write_yolo(classes, splits, tmp_path / "yolo")
    assert f"{sample.name}: left out" in capsys.readouterr().err
    assert len(list((tmp_path / "yolo/images/train").iterdir())) == len(splits["train"]) - 1


@pytest.mark.usefixtures("benchmarks")
def test_referee_scores_predictions_as_pycocotools(tmp_path: Path) -> None:
    from equal_cpu_time import split
    from training_detection import score, write_yolo

    classes, splits = split(str(draw_detection(tmp_path / "coco", train=30, validation=2)), "object-detection")
    truth = write_yolo(classes, splits, tmp_path / "yolo")
    predictions, rows = [], []
    for image, sample in zip(truth["images"], splits["test"], strict=True):
        boxes = (sample.objects.boxes + image["id"]).tolist()  # shifted more with every image
        labels = sample.objects.labels.tolist()
        scores = [1 / (2 + image["id"] + number) for number in range(len(boxes))]
        predictions.append({"boxes": boxes, "labels": [classes[label] for label in labels], "scores": scores})
        for (x1, y1, x2, y2), label, value in zip(boxes, labels, scores, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": image["id"], "category_id": label, "bbox": box, "score": value})
    expected = dict(zip(("map", "map_50"), reference_map(truth, rows), strict=True))
    assert score(truth, predictions) == pytest.approx(expected)
    assert 0 < expected["map"] < expected["map_50"] < 1


@pytest.mark.slow
def test_training_of_detectors_stops_after_its_cpu_time_and_is_not_repeated(tmp_path: Path) -> None:
    data, file = draw_detection(tmp_path / "data", train=24, validation=4), tmp_path / "results.json"
    options = f"--minutes 0.4 --seeds 3 --json {file}"
    process = run_benchmark("training_detection.py", options, data)
    written = file.read_text()
    results = json.loads(written)["results"]
    has_yolo = importlib.util.find_spec("ultralytics") is not None
    assert [result["candidate"] for result in results] == ["YOLO11n"] * has_yolo + ["ours"]
    assert ("ultralytics: not installed, skipped." in process.stderr) != has_yolo
    for result in results:
        assert result["images"] == {"train": 16, "validation": 4, "test": 8}
        assert 0 <= result["map"] <= result["map_50"] <= 1
        assert 0.2 * 60 < result["cpu_seconds"] < 4 * 60
    again = run_benchmark("training_detection.py", options, data)
    assert (again.stdout, file.read_text()) == (process.stdout, written)


@pytest.mark.usefixtures("benchmarks")
def test_masks_of_candidates_are_those_of_the_dataset(tmp_path: Path) -> None:
    from equal_cpu_time import split
    from training_segmentation import write_masks

    classes, splits = split(str(draw_segmentation(tmp_path / "data", train=9, validation=2)), "image-segmentation")
    truth = write_masks(classes, splits, tmp_path / "copy")
    copy = load_dataset(tmp_path / "copy", task="image-segmentation")
    assert list(copy.classes) == truth["classes"] == list(classes)
    assert {name: len(samples) for name, samples in copy.splits.items()} == {"train": 6, "validation": 2, "test": 3}
    for name, samples in splits.items():
        for sample, copied in zip(samples, copy.splits[name], strict=True):
            np.testing.assert_array_equal(copied.mask.read(), sample.mask.read())
            assert Image.open(copied.image).tobytes() == Image.open(sample.image).tobytes()
    assert [image["file_name"] for image in truth["images"]] == [f"test/images/{number:06}.png" for number in range(3)]


@pytest.mark.usefixtures("benchmarks")
def test_referee_scores_masks_by_sets_of_pixels(tmp_path: Path) -> None:
    from training_segmentation import score

    generator = np.random.default_rng(0)
    targets = generator.choice([0, 1, 2, 255], (2, 6, 8)).astype(np.uint8)
    predictions = generator.integers(0, 4, (2, 6, 8)).astype(np.uint8)  # class 3 is in no mask
    files = {"mask": targets, "predicted": predictions}
    for name, arrays in files.items():
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(tmp_path / f"{name}{number}.png")
    images = [{"mask": str(tmp_path / f"mask{number}.png")} for number in range(2)]
    valid = targets != 255
    ious = []
    for label in range(4):
        target, predicted = ({*np.flatnonzero((array == label) & valid)} for array in (targets, predictions))
        ious.append(len(target & predicted) / len(target | predicted))
    result = score(
        {"classes": list("abcd"), "images": images}, [str(tmp_path / f"predicted{n}.png") for n in range(2)]
    )
    assert result["mean_iou"] == pytest.approx(sum(ious) / 4)
    assert result["pixel_accuracy"] == pytest.approx((targets == predictions).sum() / valid.sum())


@pytest.mark.slow
def test_training_of_segmentation_models_predicts_every_test_image(tmp_path: Path) -> None:
    data, file = draw_segmentation(tmp_path / "data", train=24, validation=4), tmp_path / "results.json"
    run_benchmark("training_segmentation.py", f"--minutes 0.3 --seeds 3 --json {file}", data)
    results = json.loads(file.read_text())["results"]
    has_peer = importlib.util.find_spec("segmentation_models_pytorch") is not None
    assert [result["candidate"] for result in results] == ["DeepLabV3+"] * has_peer + ["ours"]
    for result in results:
        assert result["images"] == {"train": 16, "validation": 4, "test": 8}
        assert 0 < result["mean_iou"] < result["pixel_accuracy"] <= 1
        assert 0.2 * 60 < result["cpu_seconds"] < 4 * 60


@pytest.mark.usefixtures("benchmarks")
def test_table_divides_the_durations_of_peers_by_those_of_ours() -> None:
    import all as all_benchmarks

    def candidate(*rounds: float) -> dict[str, list[float]]:
        return {"rounds_ms": list(rounds)}

    result = {"variant": "xxs", "batch": 2, "setting": "onnx", "allocator": "users"}
    candidates = {"ours": candidate(10, 20, 40), "YOLO11n": candidate(20, 10, 80), "ours, network": candidate(8, 8, 8)}
    part = next(part for part in all_benchmarks.PARTS if part.script == "detection_pipelines.py")
    rows = list(all_benchmarks.rows_of(part, {"results": [result | {"candidates": candidates}]}))
    title = "detection from JPEG files, 320x320, xxs, batch 2, onnx"
    assert rows == [(title, "10.0 ms", "YOLO11n 10.0", "2.00"), (f"{title}, network", "4.0 ms", "", "")]
    lines = all_benchmarks.format_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == list(rows[0])
