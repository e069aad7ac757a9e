"""Options and arguments that several commands share."""

import re
from collections.abc import Collection
from enum import StrEnum
from typing import Annotated

import typer

from ..backends.formats import ALL, AUTO, BACKENDS, DTYPES, FORMATS, QUANTIZATIONS
from ..backends.interfaces import INTERFACES
from ..data.writers.destination import PREDICTION_FORMATS
from ..tasks import TASKS

# Names of `data.reading.DATA_FORMATS`, which imports torch; a test compares them.
DATA_FORMATS = ("datasets", "coco", "voc", "yolo", "csv", "imagefolder", "maskfolder", "label_studio")

Task = StrEnum("Task", {task.name: task.name for task in TASKS.values() if task.labels})
Device = StrEnum("Device", {name: name for name in ("auto", "cpu", "cuda", "mps")})
Backend = StrEnum("Backend", {name: name for name in BACKENDS})
FileInterface = StrEnum("FileInterface", {name: name for name in INTERFACES})
ExportFormat = StrEnum("ExportFormat", {name: name for name in (*FORMATS, ALL)})
Dtype = StrEnum("Dtype", {name: name for name in (AUTO, *DTYPES)})
Quantization = StrEnum("Quantization", {name: name for name in QUANTIZATIONS})
PredictionFormat = StrEnum("PredictionFormat", {name: name for name in (*PREDICTION_FORMATS, "parquet")})

# Options whose value may be left out: the value they then have, and the values that they take from the next argument.
OPTIONAL_VALUES = {
    "--ray": ("auto", re.compile(r"auto|local|(ray://)?[\w.:\[\]-]+:\d+")),
    "--resume": ("auto", re.compile("auto")),
}

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Model directory, built-in name or Hub id.")]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="Dataset: a folder, a file or a Hub id.")]
DataFormatOption = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help=f"One of {', '.join(DATA_FORMATS)}. Default: detected automatically."),
]
TaskOption = Annotated[
    Task | None,
    typer.Option(help="Task whose annotations are read. Default: inferred; boxes and labels come before masks."),
]
DeviceOption = Annotated[Device, typer.Option(help="Device to run on.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def fill_optional_values(arguments: list[str], options: Collection[str]) -> list[str]:
    """Return the arguments of a command with a value for each of `OPTIONAL_VALUES`.

    Args:
        arguments: The arguments.
        options: Options of the command that take a value.
    """
    filled: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return [*filled, *arguments[index:]]
        filled.append(argument)
        if argument in OPTIONAL_VALUES and argument in options:
            default, pattern = OPTIONAL_VALUES[argument]
            if not pattern.fullmatch("".join(arguments[index + 1 : index + 2])):
                filled.append(default)
    return filled


def check_device(device: Device, backend: Backend) -> None:
    """Raise a ValueError if a runtime that runs on the CPU is to run on another device."""
    if backend is not Backend.torch and device not in (Device.auto, Device.cpu):
        raise ValueError(f"--device {device}: {backend} runs on the CPU. Leave it out, or use --backend torch.")
