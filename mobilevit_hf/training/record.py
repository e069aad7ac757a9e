"""Record of a training run for its model card, without paths, user names or machine names."""

import dataclasses
import shlex
import statistics
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from accelerate import Accelerator

from ..data.checks import DatasetReport, Range
from ..data.reading import HUB_ALIASES, local_path
from ..environment import describe_hardware, library_versions
from ..hub.licenses import describe_initial_checkpoint, public_name
from ..records import (
    CROSS_VALIDATION,
    RESULTS_FILE,
    TRAINING_FILE,
    DatasetRecord,
    HardwareRecord,
    ResultsRecord,
    TrainingRecord,
    write_record,
)
from .arguments import HUB, TaskArguments, TrainArguments
from .output_dir import TEST_FILE
from .state import TrainingResult

# Options without an effect on the model; those of the Hub have none either.
UNRECORDED = ("data", "task", "output_dir", "resume", "report_to")


def create_record(
    requested: TrainArguments, arguments: TaskArguments, report: DatasetReport, image_size: int
) -> TrainingRecord:
    """Create the record when training starts, while all local folders exist.

    `requested` are the arguments as passed by the user, with `model` set; `arguments` have the task's defaults.
    """
    initial = describe_initial_checkpoint(str(arguments.model))
    if initial.kind == "local":
        requested = dataclasses.replace(requested, model="MODEL")
        arguments = dataclasses.replace(arguments, model="MODEL")
    recorded = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(arguments)
        if _is_recorded(field) and report.task in (field.metadata["tasks"] or (report.task,))
    }
    return TrainingRecord(
        task=report.task,
        command=training_command(requested),
        initial_checkpoint=initial,
        data=describe_dataset(requested.data, report, streamed=requested.streaming),
        arguments=recorded | {"image_size": image_size},
    )


def write_training_record(record: TrainingRecord, result: TrainingResult, accelerator: Accelerator) -> None:
    """Add the outcome to the record and write it to `run.json` in the output directory."""
    speeds = [line["images_per_second"] for line in result.history if line.get("images_per_second")]
    record = dataclasses.replace(
        record,
        date=datetime.now(UTC).date().isoformat(),
        steps=result.steps,
        seconds=round(result.seconds, 1),
        images_per_second=round(statistics.median(speeds), 1) if speeds else None,
        hardware=HardwareRecord(**describe_hardware(accelerator.device, num_processes=accelerator.num_processes)),
        versions=library_versions(),
    )
    write_record(result.output_dir / TRAINING_FILE, record)


def write_results(result: TrainingResult, dataset: str | None) -> None:
    """Write `results.json`, which marks a finished run, after `evaluation-test.json` if there is a test split.

    `dataset` is the name of the dataset, None if it may not be shown.
    """
    if result.test:
        write_record(result.output_dir / TEST_FILE, result.test.to_record(data=dataset, split="test"))
    write_record(result.output_dir / RESULTS_FILE, _results_record(result))


def _results_record(result: TrainingResult) -> ResultsRecord:
    evaluation, folds = result.evaluation, result.cross_validation
    own: dict[str, Any] = {}
    if evaluation:
        own = vars(evaluation.to_record(split="validation")) | {"num_evaluations": result.num_evaluations}
        own["threshold"] = evaluation.best_threshold.value if evaluation.best_threshold else None
    elif folds:
        means = {name: statistics.fmean(values) for name, values in folds.metrics.items()}
        own = {"split": CROSS_VALIDATION, "num_images": sum(folds.num_images), "metrics": means}
        own["cross_validation"] = folds
        own["intervals"] = result.fold_intervals
        own["threshold"] = statistics.fmean(folds.thresholds) if folds.thresholds else None
    return ResultsRecord(
        metric=result.metric, best=result.best, steps=result.steps, seconds=round(result.seconds, 1), **own
    )


def training_command(arguments: TrainArguments) -> str:
    """Return the command line of a run, with a placeholder for local data."""
    words = ["mobilevit", "train", "DATA" if local_path(arguments.data) else arguments.data]
    for field in dataclasses.fields(arguments):
        name, value = field.name.replace("_", "-"), getattr(arguments, field.name)
        if value == field.default or not _is_recorded(field):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def describe_dataset(source: str, report: DatasetReport, *, streamed: bool) -> DatasetRecord:
    """Return the record of a dataset; of a local path, only the last part is recorded."""
    path = local_path(source)
    dataset = None if path else HUB_ALIASES.get(source, source).partition(":")[0]
    ranges: dict[str, Any] = {}
    for name in ("widths", "heights", "box_sides", "boxes_per_image"):
        if values := getattr(report, name):
            ranges[name] = Range(*(round(value, 4) for value in values))._asdict()
    return DatasetRecord(
        format=report.data_format,
        classes=list(report.classes),
        name=public_name(path) if path else dataset,
        dataset=dataset,
        images=report.num_samples,
        counts=report.counts,
        streamed=streamed,
        skipped=dict(Counter(problem.kind for problem in report.problems if problem.is_error).most_common()),
        validation_cut_off=report.validation_cut_off,
        **ranges,
    )


def _is_recorded(field: dataclasses.Field[Any]) -> bool:
    return field.name not in UNRECORDED and field.metadata["panel"] != HUB
