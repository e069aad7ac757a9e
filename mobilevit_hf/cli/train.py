"""`mobilevit train`: a model for your own images."""

import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.progress import BarColumn, Progress, TextColumn

from ..allocator import tune_allocator
from ..io import user_path
from ..tasks import TaskName
from ..training.arguments import DEFAULTS, TrainArguments, read_recipe
from ..training.signals import StoppedError
from ..training.state import Listener, Status, TrainingResult
from ..training.trainer import train as run_training
from . import console

RUNS = Path("runs")
MAX_NAME = 60  # characters of a folder's name, of four bytes at most: file systems take 255 bytes
# Exit codes of a process that a signal ended are counted from here, as shells do.
EXIT_SIGNAL = 128


def _train(recipe: Path | None, values: dict[str, Any]) -> None:
    """Train a model on your own images.

    It is left in a folder that every other command takes. The task follows from the data: a folder for each class, or
    images with boxes in COCO's, VOC's or YOLO's format. Without options it is a fine-tuning that suits most data;
    --max-minutes fits it to the time you have. A training that was stopped goes on with --resume auto.
    """
    arguments = {**(read_recipe(recipe) if recipe else {}), **values}
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and not arguments.get("output_dir"):
        raise ValueError("output_dir: several processes need to be told one folder. Add --output-dir.")
    if not arguments.get("output_dir"):
        arguments["output_dir"] = str(_default_folder(arguments["data"], resumes=bool(arguments.get("resume"))))
    tune_allocator()
    with TrainingBar() as bar:
        try:
            result = run_training(TrainArguments.from_dict(arguments, str(recipe or "arguments")), bar)
        except StoppedError as stop:
            console.say("stopped", str(stop))
            raise typer.Exit(EXIT_SIGNAL + stop.signal) from None
    if int(os.environ.get("RANK", "0")) == 0:
        _show(result)


def make_command(task: TaskName | None = None) -> Callable[..., None]:
    """The command, with an option for each field of `TrainArguments`.

    Args:
        task: For a command that trains nothing else, None for any.
    """

    def command(data: str, recipe: Path | None = None, **values: Any) -> None:
        given = {name: value for name, value in values.items() if value is not None}
        _train(recipe, {"data": data, "task": task, **given})

    parameters = [
        _parameter("data", Annotated[str, typer.Argument(help="The dataset: a folder or file, or a Hub id.")]),
        _parameter(
            "recipe",
            Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of options; those given here win.")],
            None,
        ),
    ]
    hints = get_type_hints(TrainArguments)
    for field in dataclasses.fields(TrainArguments):
        if field.name not in ("data", "task"):
            parameters.append(_parameter(field.name, Annotated[hints[field.name] | None, _option(field)], None))
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = _train.__doc__
    return command


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(field: dataclasses.Field[Any]) -> Any:
    """The option of a field; its help ends with the default, where that is one for all."""
    text = field.metadata["help"]
    by_task = sorted({f"{values[field.name]}" for values in DEFAULTS.values() if field.name in values})
    if choices := field.metadata["choices"]:
        text += f" One of {', '.join(choices)}." if not all(choice in text for choice in choices) else ""
    if field.default is not None and field.default != "" and not isinstance(field.default, bool):
        text += f" Default: {field.default}."
    elif isinstance(field.default, bool) and field.default:
        text += " Default: yes."
    elif by_task:
        text += f" Default: {' or '.join(by_task)}, by the task."
    return typer.Option(help=text, rich_help_panel=field.metadata["panel"], show_default=False)


def _default_folder(data: str, *, resumes: bool) -> Path:
    """A folder for a training, named after its data: a new one, or to go on in the last that is there."""
    name = re.sub(r"[^\w.-]+", "-", user_path(data).absolute().name)[:MAX_NAME].strip(".-") or "training"
    folders = [RUNS / name]
    while folders[-1].exists():
        folders.append(RUNS / f"{name}-{len(folders) + 1}")
    return folders[-2:][0] if resumes else folders[-1]


def _show(result: TrainingResult) -> None:
    minutes, seconds = divmod(round(result.seconds), 60)
    measured = f", {result.metric} {result.best:.3f} on the validation images" if result.best is not None else ""
    console.say("done", f"{result.steps} steps in {minutes}:{seconds:02}{measured}.", color="green")
    console.output.print(str(result.output_dir), soft_wrap=True, highlight=False)
    console.say("try it", f"mobilevit predict IMAGE --model {result.output_dir}", color="green")


class TrainingBar(Listener):
    """A bar on the terminal, and what there is to say above it."""

    def __init__(self) -> None:
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} % {task.description}"),
            console=console.messages,
            transient=True,
            disable=not console.messages.is_terminal,
        )
        self._task = self._bar.add_task("Looking at images", total=1.0)

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, text: str, kind: str = "note") -> None:
        """A line above the bar."""
        console.say(kind, text, color={"note": "yellow", "validation": "cyan"}.get(kind, "red"))

    def update(self, status: Status) -> None:
        """Move the bar."""
        minutes, seconds = divmod(round(status.seconds_left), 60)
        known = status.images_per_second > 0  # not before the first line of metrics.jsonl
        parts = (
            f"epoch {status.epoch:.1f}",
            f"step {status.step}",
            *([f"loss {status.loss:.3f}"] if known else []),
            f"lr {status.learning_rate:.2g}",
            *([f"{status.images_per_second:.0f} images/s"] if known else []),
            f"{minutes}:{seconds:02} left",
        )
        self._bar.update(self._task, completed=status.progress, description=", ".join(parts))


train = make_command()
