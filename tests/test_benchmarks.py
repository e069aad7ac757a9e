"""The benchmarks run and report every candidate; speed is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_datasets import draw_classification

REPOSITORY = Path(__file__).parent.parent
CLASSIFIERS = ["stock", "timm contiguous", "timm channels_last", "as loaded", "ours"]
DETECTORS = ["torchvision", "torchvision channels_last", "ours, pipeline", "ours"]
BACKENDS = ["stock", "timm"] + [
    f"{name}{setting}" for setting in (", onnx", ", bfloat16", "") for name in ("runtime API", "ours")
]
PIPELINES = ["stock", "ours, torch", "ours, onnx", "ours, detection torch", "ours, detection", "ours"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "allocator", "candidates"),
    [
        ("inference.py", "users", CLASSIFIERS),
        ("training_step.py", "same", CLASSIFIERS),
        ("detection.py", "same", DETECTORS),
        ("backends.py", "same", BACKENDS),
        ("pipelines.py", "users", PIPELINES),
    ],
)
def test_report_contains_every_candidate(script: str, allocator: str, candidates: list[str], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    for package in ("onnxruntime", "onnxscript", "openvino") if script in ("backends.py", "pipelines.py") else ():
        pytest.importorskip(package)
    file = tmp_path / "results.json"
    setting = "--variants xxs --batches 1 --rounds 1 --size 64 --threads 1 --allocator"
    command = [sys.executable, REPOSITORY / "benchmarks" / script, *setting.split(), allocator, "--json", file]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(file.read_text())
    (result,) = report["results"]
    assert (result["variant"], result["batch"], result["allocator"], result["threads"]) == ("xxs", 1, allocator, 1)
    assert list(result["candidates"]) == candidates
    for name, row in result["candidates"].items():
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["speedup_of_ours"] > 0
        assert 0 < row["imported_mib"] <= row["peak_mib"]
        assert name in process.stdout
    assert result["candidates"]["ours"]["speedup_of_ours"] == 1
    assert report["environment"]["torch"] in process.stdout


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
