"""`mobilevit train`: train a classifier, a detector or a semantic segmentation model."""

import dataclasses
import inspect
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_type_hints

import typer
from rich.progress import BarColumn, Progress, TextColumn

from ..allocator import tune_allocator
from ..io import count_noun, quote_words, user_path
from ..tasks import TaskName
from ..training.arguments import DEFAULTS, TrainArguments, override_recipe, read_recipe
from ..training.callbacks import TrainerCallback, TrainingProgress
from ..training.signals import StoppedError
from . import console
from .launch import is_first_of_node
from .options import DataArgument

if TYPE_CHECKING:
    from ..evaluation import EvaluationResult
    from ..training.state import TrainingResult

RUNS = Path("runs")
# Characters of a directory name, each of up to 4 bytes; file systems allow 255 bytes.
MAX_NAME = 60
# A redirected log has a line each time this fraction of the training is completed, and at least every few minutes.
LOG_FRACTION, LOG_SECONDS = 0.05, 300
# Shells report a process that a signal ended as this plus the signal's number.
EXIT_SIGNAL = 128

RecipeOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file with options; the command line takes precedence.")
]


def make_command(task: TaskName | None = None) -> Callable[..., None]:
    """Return the command, with an option for each field of `TrainArguments`; a task of None is an option."""

    def command(data: str, recipe: Path | None = None, **values: Any) -> None:
        """Train a classifier, detector or segmentation model.

        The task follows from the data: one folder per class trains a classifier; boxes in COCO, Pascal VOC or YOLO
        format train a detector; a mask per image trains a segmentation model. The defaults fine-tune a pretrained
        model. Use --max-minutes to limit the training time, and --resume auto to continue an interrupted run. The
        other commands accept the output directory as a model.
        """
        options = {"data": data, **values} | ({"task": task} if task else {})
        _train(recipe, {name: value for name, value in options.items() if value is not None})

    parameters = [_parameter("data", DataArgument), _parameter("recipe", RecipeOption, None)]
    hints = get_type_hints(TrainArguments)
    for field in dataclasses.fields(TrainArguments):
        if field.name != "data" and not (task and field.name == "task"):
            parameters.append(_parameter(field.name, hints[field.name] | None, _make_option(field)))
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _make_option(field: dataclasses.Field[Any]) -> Any:
    """Return the option of a field; its help ends with the valid values and the default."""
    text, choices = field.metadata["help"], field.metadata["choices"]
    by_task = sorted({f"{values[field.name]}" for values in DEFAULTS.values() if field.name in values})
    if not all(choice in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    if isinstance(field.default, bool):
        text += " Default: enabled." if field.default else ""
    elif field.default not in (None, ""):
        text += f" Default: {field.default}."
    elif by_task:
        text += f" Default: {' or '.join(by_task)}{', depending on the task' if len(by_task) > 1 else ''}."
    return typer.Option(
        None,
        help=text,
        rich_help_panel=field.metadata["panel"],
        show_default=False,
        autocompletion=(lambda: list(choices)) if choices else None,
    )


def _train(recipe: Path | None, options: dict[str, Any]) -> None:
    values = override_recipe(read_recipe(recipe), options) if recipe else options
    arguments = TrainArguments.from_dict(values, str(recipe or "arguments"))
    if not arguments.output_dir and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("output_dir: got none, expected one for all processes. Add --output-dir.")

    from ..training.trainer import train  # takes seconds: after the options are validated

    tune_allocator()
    with ProgressBar() as bar:
        try:
            result = _train_in_default_folder(arguments, bar) if not arguments.output_dir else train(arguments, bar)
        except StoppedError as stop:
            if is_first_of_node():
                console.log("stopped", str(stop))
            raise typer.Exit(EXIT_SIGNAL + stop.signal) from None
    if int(os.environ.get("RANK", "0")) == 0:
        _print_result(result)


def _train_in_default_folder(arguments: TrainArguments, bar: "ProgressBar") -> "TrainingResult":
    """Train in the next free directory, even if several trainings start at once."""
    from ..training.output_dir import OutputDirInUseError
    from ..training.trainer import train

    while True:
        folder = _default_folder(arguments.data, resume=arguments.resume is not None)
        try:
            return train(dataclasses.replace(arguments, output_dir=str(folder)), bar)
        except OutputDirInUseError:
            if arguments.resume:
                raise


def _default_folder(data: str, *, resume: bool) -> Path:
    """Return the next free directory named after the dataset, or the last existing one to resume from."""
    path = user_path(data).absolute()
    name = re.sub(r"(\.tar)?\.\w+$", "", path.name) if os.path.isfile(path) else path.name  # noqa: PTH113, as in `local_path`
    name = re.sub(r"[^\w.-]+", "-", name)[:MAX_NAME].strip(".-") or "training"
    folders = [RUNS / name]
    while folders[-1].exists():
        folders.append(RUNS / f"{name}-{len(folders) + 1}")
    return folders[-2:][0] if resume else folders[-1]


def _print_result(result: "TrainingResult") -> None:
    minutes, seconds = divmod(round(result.seconds), 60)
    console.log("done", f"{result.steps} steps in {minutes}:{seconds:02}{_describe_best(result)}.", color="green")
    if result.test:
        figure = _describe_metric(result.test, result.metric)
        console.log("test", f"{figure} of the test split, measured once.", color="green")
    console.print_line(str(result.output_dir))
    console.log("try it", f"mobilevit predict IMAGE --model {quote_words(result.output_dir)}", color="green")


def _describe_best(result: "TrainingResult") -> str:
    """Return the headline metric, with how it came about."""
    if result.best is None:
        return ""
    if folds := result.cross_validation:
        values, number = folds.metrics[result.metric], len(folds.num_images)
        ends = _describe_interval(result.fold_intervals.get(result.metric))
        return (
            f", {result.metric} {result.best:.3f} ± {folds.std[result.metric]:.3f}{ends} on {sum(folds.num_images)} "
            f"images, mean and standard deviation of a {number}-fold cross-validation: "
            f"{', '.join(f'{value:.3f}' for value in values)}; the saved model is trained on all of them"
        )
    if result.evaluation is None:
        return f", {result.metric} {result.best:.3f} on the validation split"
    times = f"best of {result.num_evaluations} evaluations" if result.num_evaluations > 1 else "one evaluation"
    figure = _describe_metric(result.evaluation, result.metric)
    return f", {figure}, {times} on validation"


def _describe_metric(result: "EvaluationResult", metric: str) -> str:
    value = f"{result.metrics.get(metric, -1.0):.3f}{_describe_interval(result.intervals.get(metric))}"
    return f"{metric} {value} on {count_noun(result.num_images, 'image')}"


def _describe_interval(interval: "tuple[float, float] | None") -> str:
    return f" (95% CI {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


class ProgressBar(TrainerCallback):
    """Progress bar on the terminal, with messages above it; lines in a redirected log."""

    def __init__(self) -> None:
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.description}"),
            console=console.messages,
            transient=True,
            disable=not console.messages.is_terminal,
        )
        self._task = self._bar.add_task("Checking images", total=1.0)
        self._logged, self._logged_at = 0.0, -math.inf  # progress and time of the last line in a redirected log

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def on_start(self, summary: Mapping[str, str]) -> None:
        """Print the summary."""
        console.log_rows(summary)

    def on_message(self, text: str, kind: str = "note") -> None:
        """Print a line above the bar."""
        console.log(kind, text, color={"note": "yellow", "warning": "yellow", "validation": "cyan"}.get(kind, "red"))

    def on_progress(self, progress: TrainingProgress) -> None:
        """Advance the bar, or print a line if one is due and not on a terminal."""
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        is_measured = progress.images_per_second > 0  # not before the first logging interval ends
        parts = (
            progress.part,
            f"epoch {progress.epoch:.1f}",
            f"step {progress.step}",
            f"loss {progress.loss:.3f}" if is_measured else "",
            f"lr {progress.learning_rate:.2g}",
            f"{progress.images_per_second:.0f} images/s" if is_measured else "",
            f"{minutes}:{seconds:02} left",
        )
        description = ", ".join(filter(None, parts))
        self._bar.update(self._task, completed=progress.progress, description=description)
        if self._bar.disable and is_measured and self._is_line_due(progress.progress):
            console.log("train", f"{progress.progress:.0%}, {description}", color="cyan")

    def _is_line_due(self, progress: float) -> bool:
        now = time.monotonic()
        due = progress - self._logged >= LOG_FRACTION or now - self._logged_at >= LOG_SECONDS or progress >= 1
        if due:
            self._logged, self._logged_at = progress, now
        return due


train = make_command()
