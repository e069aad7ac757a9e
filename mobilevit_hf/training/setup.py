"""Validation, dataset scan and construction of a training run, in this order."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from ..data.checks import DatasetReport, check_dataset, drop_invalid
from ..data.reading import check_source, load_dataset
from ..data.sequences import Samples
from ..data.types import LEAKAGE, Dataset, ProblemKind
from ..environment import available_devices, pip_command
from ..evaluation import EvaluationResult
from ..modeling.layers_cpu import use_fast_layers
from ..modeling.variants_mobilevit import VARIANTS
from ..records import CrossValidationRecord, TrainingRecord
from ..tasks import MIN_TOP_5_CLASSES, TASKS, TaskName
from .arguments import DEFAULT_LENGTH, FROM_SCRATCH_LENGTH_FACTOR, TaskArguments, TrainArguments
from .callbacks import TrainerCallback
from .dataloader import TrainingDataLoader, check_batches
from .distributed import broadcast_model, check_equal_on_nodes, run_in_main_process, run_once_per_node
from .ema import EMA
from .initialization import InitialModel, check_initial_checkpoint, choose_initial_checkpoint
from .optimization import Schedule, create_optimizer
from .push_to_hub import check_publication
from .record import create_record
from .resume import (
    BATCH_SIZES,
    check_incomplete,
    check_resumed_arguments,
    check_resumed_data,
    describe_data,
    describe_images,
    find_difference,
    find_resume_checkpoint,
)
from .summary import summarize_run, warn_of_few_images
from .tasks import TRAINING_TASKS, LossFunction, TrainingTask

# What is done with duplicates, of which a dataset may have many: one message tells their number.
DUPLICATES: dict[ProblemKind, str] = {
    LEAKAGE: "left out of the earlier split",
    "same image in two classes": "used with both classes",
}


@dataclass(kw_only=True)
class Run:
    """Parts of a training run."""

    arguments: TaskArguments
    accelerator: Accelerator
    task: TrainingTask
    model: PreTrainedModel  # in channels-last memory format, on the accelerator's device
    processor: BaseImageProcessor
    frozen: nn.Module | None  # part of the model that is not trained
    loss_model: nn.Module
    optimizer: Any
    ema: EMA | None
    loader: TrainingDataLoader
    schedule: Schedule
    num_steps: int | None  # None if only the time is limited
    max_seconds: float | None = None  # None if the time is not limited
    data: dict[str, Any] = field(default_factory=dict)  # see `describe_data`
    record: TrainingRecord | None = None  # in the main process
    resumed: dict[str, Any] | None = None  # content of the checkpoint to resume from
    repo_id: str | None = None  # Hub repository to publish to, in the main process
    cross_validation: CrossValidationRecord | None = None  # whose settings the run repeats on all folds
    pooled: EvaluationResult | None = None  # of its folds
    summary: dict[str, str] = field(default_factory=dict)  # see `summarize_run`
    warning: str | None = None  # of the data


class LossModel(nn.Module):
    """A model and its loss: Accelerate wraps this module and leaves the model itself unchanged."""

    def __init__(self, model: nn.Module, loss_function: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_function = model, loss_function

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the `loss` of a batch and its parts, scalars by name."""
        losses = self.loss_function(self.model, batch)
        return losses if isinstance(losses, dict) else {"loss": losses}


@dataclass(frozen=True)
class TrainingData:
    """Scanned dataset.

    Attributes:
        dataset: Dataset without its invalid samples.
        report: Report of the scan.
        identity: What identifies the dataset for a resumed run, see `describe_data` and `describe_images`.
    """

    dataset: Dataset
    report: DatasetReport
    identity: dict[str, Any]


def prepare_run(
    arguments: TrainArguments, accelerator: Accelerator, callback: TrainerCallback, data: TrainingData | None = None
) -> Run:
    """Validate the options in order of their cost, scan the dataset if it is not given, and build the parts of a run.

    The output directory is locked.
    """
    requested, resumed = check_options(arguments, accelerator, callback)
    repo_id = None
    if arguments.push_to_hub:
        repo_id = run_in_main_process(accelerator, lambda: check_publication(requested, callback.on_message))
    data = data or read_data(requested, accelerator, callback, resumed)
    dataset, report = data.dataset, data.report
    complete = requested.for_task(dataset.task)
    if resumed:
        _check_resumed(complete, data.identity, resumed, accelerator)
    set_seed(arguments.seed)
    task = TRAINING_TASKS[dataset.task](complete, dataset)
    initial = task.create_model(report)
    for note in initial.notes:
        callback.on_message(note)
    run = build_run(complete, accelerator, task, initial, report)
    if accelerator.is_main_process:
        run.record = create_record(requested, complete, report, initial.image_size)
    run.data, run.resumed = data.identity, resumed
    run.repo_id = repo_id if accelerator.is_main_process else None
    run.summary = summarize_run(run, report, initial.image_size)
    run.warning = None if arguments.cross_validation else warn_of_few_images(report)
    return run


def check_options(
    arguments: TrainArguments, accelerator: Accelerator, callback: TrainerCallback
) -> tuple[TrainArguments, dict[str, Any] | None]:
    """Check what needs no dataset; return the arguments with an initial checkpoint, and the checkpoint to resume.

    The main process alone needs the output directory; each node needs the dataset and the initial checkpoint.
    """
    run_once_per_node(accelerator, lambda: check_source(arguments.data, arguments.data_format))
    resumed = run_in_main_process(accelerator, lambda: find_resume_checkpoint(arguments, callback.on_message))
    model = run_in_main_process(accelerator, lambda: _choose_model(arguments, resumed, callback))
    model_types = {kind for task in TRAINING_TASKS.values() for kind in task.model_types}
    run_once_per_node(accelerator, lambda: check_initial_checkpoint(model, model_types))
    return dataclasses.replace(arguments, model=model), resumed


def read_data(
    arguments: TrainArguments,
    accelerator: Accelerator,
    callback: TrainerCallback,
    resumed: dict[str, Any] | None = None,
) -> TrainingData:
    """Load the dataset, compare it with that of the resumed run, scan it, and report its problems."""
    dataset, identity = run_once_per_node(accelerator, lambda: _load_and_describe(arguments))
    check_equal_on_nodes(accelerator, identity, partial(_describe_difference, arguments.data))
    complete = arguments.for_task(dataset.task)
    _check_metric(complete, dataset)
    check_initial_checkpoint(str(arguments.model), TRAINING_TASKS[dataset.task].model_types)
    warn = partial(callback.on_message, kind="warning")
    drop_unlabeled_test(dataset, warn)
    if resumed:
        _check_resumed(complete, identity, resumed, accelerator)
    dataset, report = scan_dataset(dataset, accelerator, arguments.max_bad, warn)
    identity |= describe_images(report)
    if resumed:
        check_resumed_data(complete, identity, resumed["data"])
    for note in report.notes:
        callback.on_message(note)
    for kind in report.problem_counts:
        problems = [f"{problem.name}: {problem.reason}" for problem in report.problems if problem.kind == kind]
        if kind in DUPLICATES:
            problems = [f"{len(problems)}, {DUPLICATES[kind]}, such as {problems[0]}"]
        for problem in problems:
            callback.on_message(problem, kind)
    return TrainingData(dataset, report, identity)


def _check_metric(arguments: TaskArguments, dataset: Dataset) -> None:
    """Check that the metric which selects the weights is measured for this number of classes."""
    count = len(dataset.classes)
    if arguments.metric_for_best_model == "top_5_accuracy" and count < MIN_TOP_5_CLASSES:
        others = ", ".join(name for name in TASKS[dataset.task].metrics if name != "top_5_accuracy")
        raise ValueError(
            f"metric_for_best_model: got top_5_accuracy for {count} classes, expected at least {MIN_TOP_5_CLASSES} "
            f"classes for this metric. Use one of {others}."
        )


def _load_and_describe(arguments: TrainArguments) -> tuple[Dataset, dict[str, Any]]:
    dataset = load_training_dataset(arguments)
    return dataset, describe_data(dataset)


def _describe_difference(source: str, other: dict[str, Any], expected: dict[str, Any]) -> str:
    difference = find_difference(other, expected, "the main process")
    return f"data: got {source} with {difference}. Copy the same dataset to each node, or use a shared folder."


def _check_resumed(
    arguments: TaskArguments, identity: dict[str, Any], resumed: dict[str, Any], accelerator: Accelerator
) -> None:
    may_change = () if len(resumed["random_states"]) == accelerator.num_processes else BATCH_SIZES
    check_resumed_arguments(arguments, resumed["arguments"], may_change=may_change)
    check_resumed_data(arguments, identity, resumed["data"])
    run_in_main_process(accelerator, lambda: check_incomplete(arguments, resumed))


def _choose_model(arguments: TrainArguments, resumed: dict[str, Any] | None, callback: TrainerCallback) -> str:
    """Return the initial checkpoint: the given one, that of the resumed run, or the default."""
    if arguments.model:
        return arguments.model
    if resumed:
        return resumed["arguments"]["model"]
    model, notes = choose_initial_checkpoint()
    for note in notes:
        callback.on_message(note)
    return model


# --- validation ------------------------------------------------------------------------------------------------------


def create_accelerator(arguments: TrainArguments) -> Accelerator:
    """Create the accelerator; check that the tracker is installed and the device supports the precision."""
    if AcceleratorState._shared_state:  # left by an earlier run in this process
        AcceleratorState._reset_state()
    if arguments.report_to not in ("none", *(tracker.value for tracker in get_available_trackers())):
        raise ValueError(
            f"report_to: got {arguments.report_to}, which is not installed. Run: {pip_command('trackers')}"
        )
    if arguments.fp16 and (arguments.use_cpu or available_devices() == ["cpu"]):
        raise ValueError("fp16: got a CPU, expected a GPU. Use --bf16, or neither.")
    try:
        accelerator = Accelerator(
            mixed_precision="bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no",
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            cpu=arguments.use_cpu,
            log_with=None if arguments.report_to == "none" else arguments.report_to,
            project_dir=arguments.output_dir,
        )
    except ValueError as error:
        raise ValueError(f"{' '.join(str(error).split())} (bf16={arguments.bf16}, fp16={arguments.fp16})") from error
    return accelerator


def load_training_dataset(arguments: TrainArguments) -> Dataset:
    """Load the splits without decoding images."""
    dataset = load_dataset(
        arguments.data,
        task=cast(TaskName | None, arguments.task),
        data_format=arguments.data_format,
        validation_fraction=0.0 if arguments.cross_validation else arguments.validation_fraction,
        streaming=arguments.streaming,
    )
    if "train" not in dataset.splits:
        raise ValueError(f"{arguments.data}: got splits {', '.join(dataset.splits)}, expected train. Add it.")
    if dataset.task == "image-classification" and len(dataset.classes) == 1:
        if arguments.data_format is None:
            raise ValueError(
                f"{arguments.data}: got one class, {dataset.classes[0]}, expected at least two. Add images of another "
                f'class, or set data_format="{dataset.data_format}" to train on one.'
            )
        dataset.notes.append(f"The only class is {dataset.classes[0]}: the accuracy is 100%, whatever is learned.")
    return dataset


def drop_unlabeled_test(dataset: Dataset, log: Callable[[str], object]) -> None:
    """Remove a test split that can't be measured: streamed, whose time is unknown, or without labels."""
    samples = dataset.splits.get("test")
    if samples is None:
        return
    if not isinstance(samples, Samples):
        reason = "it is streamed"
    elif any(label >= 0 for index in range(len(samples)) for label in samples.labels_at(index)):
        return
    else:
        reason = f"none of its {len(samples)} images has a label, such as {samples.names[0]}"
    del dataset.splits["test"]
    log(f"The test split is not measured: {reason}.")


# --- scan and construction -------------------------------------------------------------------------------------------


def scan_dataset(
    dataset: Dataset, accelerator: Accelerator, max_bad: float, log: Callable[[str], object]
) -> tuple[Dataset, DatasetReport]:
    """Decode every image in the main process, and return the valid samples and the report in all processes.

    A test split with too many invalid images is removed: training does not need it.
    """
    report = run_in_main_process(accelerator, lambda: check_dataset(dataset))
    invalid = [index for index, mask in report.invalid_samples.get("test", {}).items() if mask is None]
    samples = dataset.splits.get("test")
    if invalid and isinstance(samples, Sequence) and len(invalid) > max_bad * len(samples):
        name = samples[invalid[0]].name
        reason = next(f"{problem.kind} ({problem.reason})" for problem in report.problems if problem.name == name)
        log(f"The test split is not measured: {len(invalid)} of {len(samples)} images are invalid. {name}: {reason}.")
        dataset.splits = {name: split for name, split in dataset.splits.items() if name != "test"}
        report = run_in_main_process(accelerator, lambda: check_dataset(dataset))
    return drop_invalid(dataset, report, max_bad), report


def build_run(
    arguments: TaskArguments,
    accelerator: Accelerator,
    task: TrainingTask,
    initial: InitialModel,
    report: DatasetReport,
) -> Run:
    """Build optimizer, loader and schedule for an initial model."""
    check_batches(arguments, initial.image_size, last_stride(initial.model.config))
    loader = TrainingDataLoader(arguments, task, initial, accelerator)
    if arguments.gradient_checkpointing:
        initial.model.gradient_checkpointing_enable()
    frozen = None
    if arguments.freeze_backbone:
        backbone = initial.model.get_submodule("backbone" if hasattr(initial.model, "backbone") else "mobilevit")
        frozen = backbone.requires_grad_(False)
    model = initial.model.to(accelerator.device, memory_format=torch.channels_last)
    broadcast_model(accelerator, model)
    use_fast_layers(model)
    optimizer = create_optimizer(
        model,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        decay_norms_and_biases=arguments.decay_norms_and_biases,
    )
    compiled = torch.compile(model) if arguments.compile else model
    loss_model = LossModel(compiled, task.loss_function(report, accelerator.device))
    # Without DDP, see `Trainer._average_gradients`.
    loss_model = accelerator.prepare_model(loss_model, evaluation_mode=True)
    optimizer = accelerator.prepare_optimizer(optimizer)
    return Run(
        arguments=arguments,
        accelerator=accelerator,
        task=task,
        model=model,
        processor=initial.processor,
        frozen=frozen,
        loss_model=loss_model,
        optimizer=optimizer,
        ema=EMA(model, arguments.ema_decay, warmup=arguments.ema_warmup) if arguments.ema_decay else None,
        loader=loader,
        schedule=Schedule(
            arguments.learning_rate, arguments.min_lr_rate, arguments.warmup_steps, arguments.warmup_lr_rate
        ),
        num_steps=count_steps(arguments, task.dataset.task, loader.steps_per_epoch),
        max_seconds=60 * arguments.max_minutes if arguments.max_minutes else None,
    )


def last_stride(config: PreTrainedConfig) -> int:
    """Return the stride of a model's coarsest feature map."""
    return max(getattr(config, "feature_strides", None) or [config.output_stride])


def count_steps(arguments: TaskArguments, task: TaskName, steps_per_epoch: int | None) -> int | None:
    """Return the number of optimizer steps, None if only the time is limited."""
    if arguments.max_steps:
        return arguments.max_steps
    if steps_per_epoch is None:
        return None
    if arguments.num_train_epochs:
        return max(1, math.ceil(arguments.num_train_epochs * steps_per_epoch))
    if arguments.max_minutes:
        return None
    epochs, min_steps = DEFAULT_LENGTH[task]
    factor = FROM_SCRATCH_LENGTH_FACTOR if arguments.model in VARIANTS else 1
    return factor * max(epochs * steps_per_epoch, min_steps)
