"""Stages of a reproduction: verify the data, train, evaluate, publish; completed stages are skipped."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilevit_hf.cli.console import log, print_line
from mobilevit_hf.io import read_json, write_text
from mobilevit_hf.tasks import TaskName

SCRIPTS = Path(__file__).parents[1]
# Programs by the name under which a stage's command is printed.
PROGRAMS = {
    "mobilevit": (sys.executable, "-m", "mobilevit_hf"),
    "torchrun": (sys.executable, "-m", "torch.distributed.run"),
    "python": (sys.executable,),
}
# Replace options of the recipe: four steps on the CPU.
MINIATURE_OPTIONS = (
    *("--max-steps", "4", "--image-size", "64", "--per-device-train-batch-size", "4", "--eval-steps", "9"),
    *("--dataloader-num-workers", "0", "--use-cpu"),
)
PRECISIONS = {"fp16": ("--fp16",), "bf16": ("--bf16",), "fp32": ()}
MAX_MISSING = 0.01  # fraction of the images of a split that may be missing, such as unreadable ones


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes:
        name: Name of the dataset, which outputs and recipes start with.
        recipe: Name of the recipe with `{}` in place of the variant.
        task: Task.
        script: Training script.
        data: Default dataset.
        epochs: Number of passes over the training images.
        total_batch: Images per step of all processes.
        num_images: Number of images, by split.
        num_classes: Number of classes.
        metric: Metric that the paper reports.
        paper: The paper's figure in percent, by variant.
        write_miniature: Function that writes a synthetic dataset of the same format to a folder and returns it.
    """

    name: str
    recipe: str
    task: TaskName
    script: str
    data: str
    epochs: int
    total_batch: int
    num_images: dict[str, int]
    num_classes: int
    metric: str
    paper: dict[str, float]
    write_miniature: Callable[[Path], Path]


@dataclass(frozen=True)
class Stage:
    """A command, and the file that it leaves.

    Attributes:
        name: Name in messages.
        command: Words of the command line; the first is a key of `PROGRAMS`.
        result: File that the completed stage leaves; None for a command that does nothing if it is repeated.
        source: Result of the stage before, of which `result` must not be older.
        saves_output: Whether the standard output becomes the result.
    """

    name: str
    command: tuple[str, ...]
    result: Path | None = None
    source: Path | None = None
    saves_output: bool = False

    def is_done(self) -> bool:
        """Return whether the stage is completed."""
        if self.result is None or not self.result.is_file():
            return False
        return self.source is None or self.result.stat().st_mtime >= self.source.stat().st_mtime

    def describe(self) -> str:
        """Return the command line."""
        return shlex.join(self.command) + (f" > {self.result}" if self.saves_output else "")


def run_stages(stages: Sequence[Stage]) -> int:
    """Run the stages that are not done; return the exit code of the first that fails, or 0."""
    for stage in stages:
        if stage.is_done():
            log("skipped", f"{stage.name} is done: {stage.result}")
            continue
        log(stage.name, stage.describe(), color="cyan")
        command = (*PROGRAMS[stage.command[0]], *stage.command[1:])
        process = subprocess.run(
            command, stdout=subprocess.PIPE if stage.saves_output else None, text=True, encoding="utf-8"
        )
        if process.returncode:
            log("stopped", f"{stage.name} failed. Fix the cause and run the same command again.", color="red")
            return process.returncode
        if stage.saves_output and stage.result:
            write_text(stage.result, process.stdout)
    return 0


def make_stages(experiment: Experiment, args: Any) -> list[Stage]:
    """Return training, evaluation and, if there is a repository to publish to, publication."""
    run = args.output_dir / f"{experiment.name}-{args.variant}"
    results, evaluation = run / "results.json", Path(f"{run}.evaluation.json")
    recipe = SCRIPTS / "recipes" / experiment.recipe.format(args.variant)
    launcher = ("torchrun", "--standalone", "--nproc-per-node", f"{args.processes}")
    train = (*(launcher if args.processes > 1 else ("python",)), shorten(SCRIPTS / experiment.script), args.data)
    train += ("--recipe", shorten(recipe), "--output-dir", f"{run}", "--resume", "auto")
    if args.model:
        train += ("--model", args.model)
    if args.miniature:
        train += MINIATURE_OPTIONS
    else:
        batch = experiment.total_batch // (args.processes * args.gradient_accumulation_steps)
        train += ("--per-device-train-batch-size", f"{batch}", *PRECISIONS[args.precision])
        if args.gradient_accumulation_steps > 1:
            train += ("--gradient-accumulation-steps", f"{args.gradient_accumulation_steps}")
    if args.streaming:
        train += ("--streaming", *(() if args.miniature else ("--max-steps", f"{count_steps(experiment)}")))
    is_cached = not (args.streaming or Path(args.data).exists())
    evaluate = ("mobilevit", "evaluate", f"{run}", args.data, "--split", "validation", "--json")
    evaluate += ("--download",) if is_cached else ()
    stages = [
        Stage("training", train, results),
        Stage("evaluation", evaluate, evaluation, results, saves_output=True),
    ]
    if args.hub_model_id:
        publish = ("mobilevit", "publish", f"{run}", args.hub_model_id)
        publish += ("--license", args.license) if args.license else ()
        stages.append(Stage("publication", publish))
    return stages


def count_steps(experiment: Experiment) -> int:
    """Return the steps of the epochs for a stream, which has no length and one image size."""
    return round(experiment.epochs * experiment.num_images["train"] / experiment.total_batch)


def shorten(path: Path) -> str:
    """Return a path relative to the working directory if it is in it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def verify_data(experiment: Experiment, args: Any) -> None:
    """Download or read the dataset, and check its classes and the number of its images.

    Raises:
        ValueError: If the dataset is another one, or not available.
    """
    path = args.output_dir / f"{experiment.name}.data.json"
    if path.is_file() and read_json(path)["data"] == args.data:
        log("skipped", f"data is verified: {path}")
        return
    from mobilevit_hf.data import load_dataset

    log("data", f"{args.data}: reading, or downloading if it is on the Hub", color="cyan")
    dataset = load_dataset(args.data, task=experiment.task, streaming=args.streaming)
    counts = {name: len(split) for name, split in dataset.splits.items() if isinstance(split, Sequence)}
    if not args.miniature:
        check_counts(experiment, args.data, len(dataset.classes), counts)
        check_problems(args.data, dataset.problems, sum(counts.values()))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    content = {"data": args.data, "classes": len(dataset.classes), "images": counts}
    write_text(path, json.dumps(content, indent=2) + "\n")
    log("data", f"{len(dataset.classes)} classes, images: {counts or 'streamed'}", color="cyan")


def check_counts(experiment: Experiment, data: str, num_classes: int, counts: dict[str, int]) -> None:
    """Check the number of classes, and of the images of each split that is not streamed."""
    if num_classes != experiment.num_classes:
        raise ValueError(
            f"--data: got {data} with {num_classes} classes, expected {experiment.num_classes}. Pass the dataset of "
            "the paper, or --miniature."
        )
    for split, expected in experiment.num_images.items():
        if counts and counts.get(split, 0) < (1 - MAX_MISSING) * expected:
            raise ValueError(
                f"--data: got {data} with {counts.get(split, 0):,} {split} images, expected {expected:,}. Download "
                "the rest, or pass --miniature."
            )


def check_problems(data: str, problems: Sequence[Any], total: int) -> None:
    """Check that few samples are invalid, as all boxes of another format would be."""
    errors = {problem.name: problem for problem in problems if problem.is_error}
    if total and len(errors) > MAX_MISSING * total:
        name, first = next(iter(errors.items()))
        raise ValueError(
            f"--data: got {data} with {len(errors):,} invalid images, expected at most {MAX_MISSING:.0%}, such as "
            f"{name}: {first.kind}, {first.reason}. Boxes are [x, y, width, height] in pixels; use the official files."
        )


def print_result(experiment: Experiment, args: Any) -> None:
    """Print the measured metric next to the paper's."""
    record = read_json(Path(f"{args.output_dir / experiment.name}-{args.variant}.evaluation.json"))
    value, note = 100 * record["metrics"][experiment.metric], ", of another dataset" if args.miniature else ""
    print_line(
        f"{experiment.name}-{args.variant}: {experiment.metric} {value:.1f}% on {record['num_images']:,} images; "
        f"paper: {experiment.paper[args.variant]}%{note}"
    )
