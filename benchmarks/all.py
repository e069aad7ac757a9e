"""Run the benchmarks one after another and print one table: ours next to each peer that is installed.

`--quick` takes at most ten minutes. Benchmarks of training need `--photos` or `--detection-data`. Those whose data or
packages are missing are skipped.
"""

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import NUM_PHOTOS, SEGMENTATION_PHOTOS
from side_by_side import describe_environment, label_of
from workers import OURS

FOLDER = Path(__file__).parent
QUICK_SECONDS = 600.0  # a part that exceeds the rest of it is interrupted, and its finished cases are shown
MIN_SECONDS = 10.0  # that a part needs to start
INTERRUPTED = (130, -signal.SIGINT)  # exit codes
HEADER = ("what", "ours", "peers", "peers / ours")
NOTE = (
    "Duration per image, and that of each peer divided by that of ours, median over the rounds: above 1, ours is "
    "faster. Every candidate runs in its own process; unless stated otherwise, ours with the allocator settings of "
    "its commands, the others with the default."
)

Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class Part:
    """A benchmark and its rows in the table.

    Attributes:
        title: What is timed.
        script: File of the benchmark.
        full: Options of a full run.
        quick: Options of a quick run; None: not part of it.
        peers: Names of the peers by the name of the candidate of ours that they are compared with.
        images: Number of images of a call, given a result.
        data: Option of this script that names the data, None if it needs none.
    """

    title: str
    script: str
    full: str
    quick: str | None
    peers: dict[str, tuple[str, ...]]
    images: Callable[[dict[str, Any]], int] = lambda result: result["batch"]
    data: str | None = None


CLASSIFIERS = ("stock", "timm channels_last")
PIPELINE_PEERS = dict.fromkeys((OURS, f"{OURS}, torch", f"{OURS}, onnx"), ("stock",))
PARTS = (
    Part(
        "classification, 256x256",
        "inference.py",
        "--variants xxs s --batches 1 8 32 --rounds 7 --allocator users",
        "--variants xxs s --batches 1 8 --rounds 4 --allocator users",
        {OURS: CLASSIFIERS},
    ),
    Part(
        "training step, 160x160",
        "training_step.py",
        "--settings classification --variants xxs --batches 16 --size 160 --rounds 9 --allocator both",
        "--settings classification --variants xxs --batches 16 --size 160 --rounds 4 --allocator both",
        {OURS: CLASSIFIERS},
    ),
    Part(
        "training step, 512x512",
        "training_step.py",
        "--settings segmentation --variants xxs --batches 4 --size 512 --rounds 7 --allocator both",
        None,
        {OURS: ("stock",)},
    ),
    Part(
        "detection from JPEG files, 320x320",
        "detection_pipelines.py",
        "--batches 1 8 --rounds 7 --allocator users",
        "--batches 1 --rounds 4 --allocator users",
        {OURS: ("YOLO11n",), "ours, network": ("YOLO11n, network",)},
    ),
    Part(
        "OpenVINO, 256x256",
        "backends.py",
        "--variants xxs s --batches 1 8 --rounds 7 --allocator users",
        "--variants s --batches 1 --rounds 4 --allocator users",
        {OURS: ("stock", "timm")},
    ),
    Part(
        "detection in torch, 320x320",
        "detection.py",
        "--variants xxs s --batches 1 8 --rounds 7 --allocator users",
        "--variants xxs --batches 1 --rounds 4 --allocator users",
        {OURS: ("torchvision", "torchvision channels_last")},
    ),
    Part(
        f"{NUM_PHOTOS} JPEG files, 256x256",
        "pipelines.py",
        "--settings classification --rounds 3 --allocator users",
        None,
        PIPELINE_PEERS,
        images=lambda result: NUM_PHOTOS,
    ),
    Part(
        f"{SEGMENTATION_PHOTOS} JPEG files, 512x512",
        "pipelines.py",
        "--settings segmentation --variants xxs --batches 1 --size 512 --rounds 3 --allocator users",
        None,
        PIPELINE_PEERS,
        images=lambda result: SEGMENTATION_PHOTOS,
    ),
    Part(
        "training from JPEG files, 160x160",
        "training.py",
        "--rounds 5 --allocator users --workers own",
        "--rounds 2 --allocator users --workers own --batches 4",
        {OURS: ("timm", "Trainer")},
        images=lambda result: result["batch"] * result["batches"],
        data="photos",
    ),
    Part("training a detector from scratch", "training_detection.py", "--minutes 15", None, {}, data="detection_data"),
    Part(
        "training a segmentation model from scratch",
        "training_segmentation.py",
        "--minutes 10",
        None,
        {},
        data="segmentation_data",
    ),
)
SCORES = {
    "training_detection.py": {"map": "mAP", "map_50": "mAP50"},
    "training_segmentation.py": {"mean_iou": "mean IoU"},
}


def run(part: Part, options: str, data: str | None, seconds: float | None) -> dict[str, Any]:
    """Return the report of a benchmark, empty if it failed or finished no case within the given time."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        arguments = [*([data] if data else []), *options.split(), "--json", str(file)]
        process = subprocess.Popen([sys.executable, str(FOLDER / part.script), *arguments], stdout=subprocess.DEVNULL)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it reports the cases that are finished
            code = process.wait()
            print(f"{part.script}: stopped after its finished cases, the time is up.", file=sys.stderr)
        if code and code not in INTERRUPTED:
            print(f"{part.script}: got exit code {code}, expected 0. Its messages are above.", file=sys.stderr)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def rows_of(part: Part, report: dict[str, Any]) -> Iterable[Row]:
    """Yield the rows of a benchmark."""
    results = report.get("results", [])
    if part.script in SCORES:
        yield from training_rows(part, results)
        return
    for result in results:
        for name, peers in part.peers.items():
            candidates = result["candidates"]
            if name not in candidates:
                continue
            ours = candidates[name]["rounds_ms"]
            others = {peer: candidates[peer]["rounds_ms"] for peer in peers if peer in candidates}
            images = part.images(result)
            ratios = [
                statistics.median(other / own for other, own in zip(rounds, ours, strict=True))
                for rounds in others.values()
            ]
            setting = "" if result["allocator"] == "users" else ", tuned allocator for all"
            suffix = name.removeprefix(OURS)
            yield (
                f"{part.title}, {label_of({'setting': '', **result})}{suffix}{setting}",
                f"{statistics.median(ours) / images:.1f} ms",
                ", ".join(f"{peer} {statistics.median(rounds) / images:.1f}" for peer, rounds in others.items()),
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
            )


def training_rows(part: Part, results: list[dict[str, Any]]) -> Iterable[Row]:
    """Yield a row with the scores at equal CPU time, means over the seeds."""
    names = dict.fromkeys(result["candidate"] for result in results)
    scores = {}
    for candidate in names:
        runs = [result for result in results if result["candidate"] == candidate]
        means = {title: statistics.mean(run[key] for run in runs) for key, title in SCORES[part.script].items()}
        scores[candidate] = ", ".join(f"{title} {mean:.1%}" for title, mean in means.items())
    if OURS in scores:
        what = f"{part.title}, {results[0]['data']}, {results[0]['minutes']:g} CPU min"
        yield what, scores.pop(OURS), ", ".join(f"{name} {text}" for name, text in scores.items()), ""


def format_table(rows: list[Row]) -> str:
    """Return a Markdown table whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [HEADER, tuple("-" * width for width in widths), *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, at most ten minutes")
    parser.add_argument("--photos", metavar="DIR", help="folder with one folder of images per class")
    parser.add_argument("--detection-data", metavar="DATA", help="detection dataset, for training at equal CPU time")
    parser.add_argument("--segmentation-data", metavar="DATA", help="segmentation dataset, for the same")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table and all reports to this file")
    args = parser.parse_args()
    environment, start = describe_environment(), time.monotonic()
    rows: list[Row] = []
    reports: dict[str, Any] = {}
    with contextlib.suppress(KeyboardInterrupt):
        for part in PARTS:
            options = part.quick if args.quick else part.full
            data = getattr(args, part.data) if part.data else None
            left = start + QUICK_SECONDS - time.monotonic() if args.quick else None
            if options is None:
                continue
            if part.data and data is None:
                print(f"{part.script}: skipped, it needs --{part.data.replace('_', '-')}.", file=sys.stderr)
            elif left is not None and left < MIN_SECONDS:
                print(f"{part.script}: skipped, the time is up.", file=sys.stderr)
            else:
                reports[part.title] = run(part, options, data, left)
                rows += rows_of(part, reports[part.title])
    print(format_table(rows))
    print(NOTE)
    print("\n".join(f"{name}: {value}" for name, value in environment.items()))
    if args.json:
        table = [dict(zip(HEADER, row, strict=True)) for row in rows]
        report = {"environment": environment, "note": NOTE, "table": table, "reports": reports}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
