"""Train candidates at equal CPU time: processes, command line and report of the benchmarks of trained models.

Every training runs in its own process on one core with one thread. The clocks of training loops that can train for a
given time are replaced by the CPU time of the process, so that a busy machine changes nothing and each learning rate
schedule fits the budget. Results are added to --json as they arrive, and are not computed again.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from side_by_side import describe_environment
from workers import OURS, Candidate, available, environment_without_allocator_settings, yolo_environment

VALIDATION_FRACTION, TEST_FRACTION = 0.1, 1 / 3  # of data without such a split
FROM_SCRATCH = "xxs"
COPY_FOLDER, RUNS_FOLDER, RESULT_FILE = "data", "runs", "result.json"  # of a candidate's process

Predict = Callable[[str], Any]
Train = Callable[[Path, Path, float, int, str], tuple[str, Predict]]


@dataclass(frozen=True)
class Comparison:
    """What is trained and how it is scored.

    Attributes:
        description: Description in `--help`.
        task: Task of the dataset.
        candidates: Candidates by name.
        trainings: Training of each candidate, given the folder of the dataset, an empty folder, CPU minutes, a seed
            and the initial checkpoint of ours. Returns the length of the training, and a function from an image file
            to its prediction.
        write_data: Writes class names and splits to a folder that all candidates read. Returns the ground truth of the
            test split, whose `images` have a `file_name` relative to the folder.
        score: Returns metrics by name, given the ground truth and the predictions of its images.
        metrics: Title of the column of each metric.
        notes: Explanations printed below the table.
    """

    description: str
    task: str
    candidates: dict[str, Candidate]
    trainings: dict[str, Train]
    write_data: Callable[[tuple[str, ...], dict[str, Any], Path], dict[str, Any]]
    score: Callable[[dict[str, Any], list[Any]], dict[str, float]]
    metrics: dict[str, str]
    notes: tuple[str, ...]


def split(data: str, task: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return class names and the samples of each split; without a test split, a third is held out."""
    from mobilevit_hf.data.reading import load_dataset
    from mobilevit_hf.data.splits import split_validation

    dataset = load_dataset(data, task=task, validation_fraction=0)
    splits: dict[str, Any] = dataset.splits
    for name, fraction in (("test", TEST_FRACTION), ("validation", VALIDATION_FRACTION)):
        if name not in splits:
            splits["train"], splits[name] = split_validation(splits["train"], fraction, seed=0)
    return dataset.classes, splits


# --- process of a candidate ------------------------------------------------------------------------------------------


def use_cpu_clock(module: ModuleType) -> None:
    """Replace the clock of a module by the CPU time of the process, all threads included."""
    if module.time is not time:
        raise RuntimeError(f"{module.__name__}: got another `time`, expected Python's module.")
    module.time = SimpleNamespace(**vars(time) | {"time": time.process_time, "monotonic": time.process_time})


def train_with_defaults(data: Path, runs: Path, minutes: float, seed: int, initial: str) -> Any:
    """Train ours as `mobilevit train` does, from the checkpoint or variant `initial`; return the result."""
    from mobilevit_hf.allocator import tune_allocator
    from mobilevit_hf.training import trainer
    from mobilevit_hf.training.arguments import TrainArguments

    tune_allocator()
    use_cpu_clock(trainer)
    arguments = TrainArguments(
        data=str(data),
        model=initial,
        max_minutes=minutes,
        seed=seed,
        output_dir=str(runs / "ours"),
        dataloader_num_workers=0,
        use_cpu=True,
    )
    return trainer.train(arguments)


def work(
    train: Train, folder: str, images: list[str], minutes: float, seed: int, initial: str, core: int | None
) -> None:
    """Train on one core, predict the images, and write the predictions to the result file."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    data, runs = Path(folder) / COPY_FOLDER, Path(folder) / RUNS_FOLDER
    length, predict = train(data, runs, minutes, seed, initial)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(part.ru_utime + part.ru_stime for part in usage)
    predictions = [predict(str(data / image)) for image in images]
    result = {"length": length, "cpu_seconds": seconds, "predictions": predictions}
    (runs / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")


# --- command line ----------------------------------------------------------------------------------------------------


def run(comparison: Comparison, candidate: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a candidate in its own process and score it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / RUNS_FOLDER).mkdir()
        classes, splits = split(args.data, comparison.task)
        truth = comparison.write_data(classes, splits, folder / COPY_FOLDER)
        request = {
            "folder": name,
            "images": [image["file_name"] for image in truth["images"]],
            "minutes": args.minutes,
            "seed": seed,
            "initial": args.model,
            "core": args.core,
        }
        environment = environment_without_allocator_settings() | yolo_environment(name)
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), "--worker", candidate, json.dumps(request)]
        subprocess.run(command, env=environment, stdout=sys.stderr, cwd=folder, check=True)
        result = json.loads((folder / RUNS_FOLDER / RESULT_FILE).read_text(encoding="utf-8"))
        scores = comparison.score(truth, result["predictions"])
    return {
        "images": {split_name: len(samples) for split_name, samples in splits.items()},
        "length": result["length"],
        "cpu_seconds": result["cpu_seconds"],
        **scores,
    }


def print_report(report: dict[str, Any], metrics: dict[str, str]) -> None:
    """Print the means over the seeds."""
    from rich.console import Console
    from rich.table import Table

    table = Table("data", "candidate")
    for column in ("seeds", "CPU min", *metrics.values(), "of each seed"):
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
            *(f"{100 * statistics.mean(result[name] for result in results):.1f}" for name in metrics),
            ", ".join("/".join(f"{100 * result[name]:.1f}" for name in metrics) for result in results),
        )
    console = Console(highlight=False, width=110)
    console.print(table)
    for note in report["notes"]:
        console.print(note, markup=False)
    print("\n".join(f"{name}: {value}" for name, value in report["environment"].items()))


def main(comparison: Comparison) -> None:
    """Run the command line, or the process of a candidate."""
    if sys.argv[1:2] == ["--worker"]:
        work(comparison.trainings[sys.argv[2]], **json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=comparison.description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = list(comparison.candidates)
    parser.add_argument("data", metavar="DATA", help="dataset, in any format that mobilevit train reads")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--candidates", nargs="+", choices=names, default=names)
    parser.add_argument("--model", default=FROM_SCRATCH, help="initial checkpoint of ours, or a variant, from scratch")
    parser.add_argument("--core", type=int, help="core to run on (default: chosen by the system)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; those in it are not computed again")
    args = parser.parse_args()
    with contextlib.suppress(OSError):  # the processes of the candidates start in another folder
        args.model = str(Path(args.model).resolve(strict=True))
    report: dict[str, Any] = {"environment": describe_environment(), "notes": comparison.notes, "results": []}
    if args.json and args.json.exists():
        report = json.loads(args.json.read_text(encoding="utf-8"))
    for seed in args.seeds:
        for candidate in available({name: comparison.candidates[name] for name in args.candidates}):
            title = candidate
            if candidate == OURS and args.model != FROM_SCRATCH:
                title = f"{candidate} from {Path(args.model).name}"
            key = {"data": Path(args.data).name, "minutes": args.minutes, "candidate": title, "seed": seed}
            if any(key.items() <= result.items() for result in report["results"]):
                continue
            print(f"{title}, seed {seed}, {args.minutes:g} CPU minutes", file=sys.stderr, flush=True)
            try:
                report["results"].append(key | run(comparison, candidate, args, seed))
            except (ValueError, subprocess.CalledProcessError) as error:
                sys.exit(f"\n{candidate}: {error}")
            if args.json:
                from mobilevit_hf.io import write_text

                write_text(args.json, json.dumps(report, indent=2) + "\n")
    print_report(report, comparison.metrics)
