"""What a training records for the card of its model: facts, without a path or the name of a user or a machine."""

import dataclasses
import json
import shlex
import statistics
from datetime import UTC, datetime
from typing import Any

from accelerate import Accelerator

from ..data.checks import DatasetReport, Range
from ..data.reading import HUB_NAMES, local_path
from ..environment import describe_hardware, library_versions
from ..hub.licenses import RUN_FILE, describe_start, public_name
from ..io import write_text
from .arguments import TrainArguments
from .state import TrainingResult

# What stands for folders of this machine in the command.
DATA_PLACEHOLDER, START_PLACEHOLDER = "DATA", "START"
# Options that say where things are and who is told, and change nothing about the model.
UNRECORDED = (
    "data",
    "task",
    "output_dir",
    "resume",
    "report_to",
    "push_to_hub",
    "license",
    "license_name",
    "license_link",
)
# How the note begins that tells of a validation split that was cut off.
CUT_OFF = "There was no validation split: it is "


class RunRecord:
    """What is known of a training from its beginning on.

    Args:
        asked: Its arguments as they were given, with the model to start from.
        complete: The same, complete for the task.
        report: Of its data.
        image_size: Side of the images the model sees, in pixels.
    """

    def __init__(
        self, asked: TrainArguments, complete: TrainArguments, report: DatasetReport, image_size: int
    ) -> None:
        start = describe_start(complete.model)
        if start["kind"] == "local":
            asked, complete = (dataclasses.replace(given, model=START_PLACEHOLDER) for given in (asked, complete))
        recorded = {name: value for name, value in dataclasses.asdict(complete).items() if _is_recorded(name)}
        self.facts = {  # worked out now: when it ends its folders may be gone
            "task": report.task,
            "command": command_of(asked),
            "start": start,
            "data": describe_data(asked.data, report, streamed=asked.streaming),
            "arguments": recorded | {"image_size": image_size},
        }

    def write(self, result: TrainingResult, accelerator: Accelerator) -> None:
        """Write `run.json` into the training's folder.

        Args:
            result: Of the training.
            accelerator: Where it was trained.
        """
        speeds = [line["images_per_second"] for line in result.history if line.get("images_per_second")]
        facts = self.facts | {
            "date": datetime.now(UTC).date().isoformat(),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
            "hardware": describe_hardware(accelerator.device, num_processes=accelerator.num_processes),
            "versions": library_versions(),
        }
        write_text(result.output_dir / RUN_FILE, json.dumps(facts, indent=2) + "\n")


def command_of(arguments: TrainArguments) -> str:
    """The command of a training, with a placeholder for data of this machine."""
    words = ["mobilevit", "train", DATA_PLACEHOLDER if local_path(arguments.data) else arguments.data]
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if value == field.default or not _is_recorded(field.name):
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def describe_data(source: str, report: DatasetReport, *, streamed: bool) -> dict[str, Any]:
    """What the data was, by name and in numbers.

    Args:
        source: As it was given: what lies on this machine is called by the last part of its path.
        report: Of it.
        streamed: Whether only its first images were counted.
    """
    facts: dict[str, Any] = {"format": report.data_format, "classes": list(report.classes)}
    if path := local_path(source):
        facts["name"] = public_name(path)
    else:
        facts["name"] = facts["dataset"] = HUB_NAMES.get(source, source).partition(":")[0]
    for name in ("widths", "heights", "box_sides", "boxes_per_image"):
        if found := getattr(report, name):
            facts[name] = Range(*(round(number, 4) for number in found))._asdict()
    return facts | {
        "images": report.samples,
        "counts": report.counts,
        "streamed": streamed,
        "skipped": {kind: count for kind, count in report.problem_counts.items() if kind != "empty label file"},
        "validation_cut_off": any(note.startswith(CUT_OFF) for note in report.notes),
    }


def _is_recorded(name: str) -> bool:
    return name not in UNRECORDED and not name.startswith("hub_")
