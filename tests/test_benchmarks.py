"""The benchmarks run and report every candidate; how fast each one is, only a quiet machine can tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
CLASSIFIERS = ["stock", "timm contiguous", "timm channels_last", "ours"]
DETECTORS = ["torchvision", "torchvision channels_last", "ours, pipeline", "ours"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "allocator", "candidates"),
    [
        ("inference.py", "users", CLASSIFIERS),
        ("training_step.py", "same", CLASSIFIERS),
        ("detection.py", "same", DETECTORS),
    ],
)
def test_every_candidate_is_reported(script: str, allocator: str, candidates: list[str], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    file = tmp_path / "figures.json"
    setting = "--variants xxs --batches 1 --rounds 1 --size 64 --threads 1 --allocator"
    command = [sys.executable, REPOSITORY / "benchmarks" / script, *setting.split(), allocator, "--json", file]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(file.read_text())
    (result,) = report["results"]
    assert (result["variant"], result["batch"], result["allocator"], result["threads"]) == ("xxs", 1, allocator, 1)
    assert list(result["candidates"]) == candidates
    for name, row in result["candidates"].items():
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["times_ours"] > 0
        assert 0 < row["imported_mib"] <= row["peak_mib"]
        assert name in finished.stdout
    assert result["candidates"]["ours"]["times_ours"] == 1
    assert report["facts"]["torch"] in finished.stdout
