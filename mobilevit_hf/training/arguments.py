"""Training options in one dataclass: command-line options, recipes and the run's record are made from it."""

import contextlib
import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import yaml

from ..model_sources import DEFAULT_MODEL
from ..modeling.variants_mobilevit import VARIANTS
from ..tasks import TASKS, TRAINABLE_TASKS, TaskName

TRACKERS = ("none", "tensorboard", "trackio", "wandb")

CLASSIFICATION: TaskName = "image-classification"
DETECTION: TaskName = "object-detection"
SEGMENTATION: TaskName = "image-segmentation"

# Values of fields that are None when fine-tuning; scripts/recipes/finetune-*.yaml repeat them. Class weights of
# segmentation: XXS after a minute on CamVid reaches 42% mean IoU with none, 50% with sqrt, 46% with balanced ones.
DEFAULTS: dict[TaskName, dict[str, Any]] = {
    CLASSIFICATION: {
        "hidden_dropout_prob": 0.0,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "label_smoothing_factor": 0.1,
        "class_weights": "none",
        "multi_scale": "progressive",
        "color_jitter": 0.0,
        "metric_for_best_model": TASKS[CLASSIFICATION].headline_metric,
    },
    DETECTION: {
        "hidden_dropout_prob": 0.0,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "label_smoothing_factor": 0.0,
        "multi_scale": "progressive",
        "color_jitter": 1.0,
        "metric_for_best_model": TASKS[DETECTION].headline_metric,
    },
    SEGMENTATION: {
        "hidden_dropout_prob": 0.0,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "label_smoothing_factor": 0.0,
        "class_weights": "sqrt",
        "multi_scale": "progressive",
        "color_jitter": 0.5,
        "metric_for_best_model": TASKS[SEGMENTATION].headline_metric,
    },
}
# Values that differ when training from scratch.
FROM_SCRATCH: dict[TaskName, dict[str, Any]] = {
    CLASSIFICATION: {
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "multi_scale": "on",
    },
    DETECTION: {},
    SEGMENTATION: {},
}
# Epochs of a default run, and its fewest steps; both are multiplied by the factor when training from scratch.
DEFAULT_LENGTH: dict[TaskName, tuple[int, int]] = {
    CLASSIFICATION: (12, 300),
    DETECTION: (30, 1000),
    SEGMENTATION: (30, 1000),
}
FROM_SCRATCH_LENGTH_FACTOR = 3


# Options of which only one may be set.
EXCLUSIVE = (("bf16", "fp16"), ("num_train_epochs", "max_steps"))
OTHER_LICENSE = "other"  # its name and link are options too


class Bound(NamedTuple):
    """Valid values of a number, and their description in errors."""

    contains: Callable[[float], bool]
    text: str


POSITIVE = Bound(lambda value: value > 0, "more than 0")
NOT_NEGATIVE = Bound(lambda value: value >= 0, "0 or more")
COUNT = Bound(lambda value: value >= 1, "1 or more")
FRACTION = Bound(lambda value: 0 <= value <= 1, "a fraction in 0..1")
PROBABILITY = Bound(FRACTION.contains, "a probability in 0..1")
BELOW_ONE = Bound(lambda value: 0 <= value < 1, "at least 0 and below 1")


def option(
    default: Any,
    help: str,
    panel: str,
    bound: Bound | None = None,
    choices: Sequence[str] = (),
    tasks: Sequence[TaskName] = (),
) -> Any:
    """Return a dataclass field with the metadata of a command-line option; without `tasks` it applies to all tasks."""
    metadata = {"help": help, "panel": panel, "choices": choices, "bound": bound, "tasks": tasks}
    return dataclasses.field(default=default, metadata=metadata)


DATA, MODEL, DURATION, OPTIM = "Data", "Model", "Duration", "Optimization"
AUGMENT, EVAL, HUB, HARDWARE = "Augmentation", "Evaluation and checkpoints", "Hugging Face Hub", "Hardware"


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Options of a training run, named as in `transformers.TrainingArguments` where that has the same.

    `None`: inferred from the data and the initial checkpoint, or the task's default (`DEFAULTS`, `FROM_SCRATCH`).

    Raises:
        ValueError: If a value has the wrong type or is out of range, or two options exclude each other.
    """

    data: str = option("", "Dataset: a folder, an annotation file or a Hub id.", DATA)
    data_format: str | None = option(None, "Dataset format. Default: detected automatically.", DATA)
    validation_fraction: float = option(
        0.1, "Fraction of the training split to hold out if there is no validation split.", DATA, BELOW_ONE
    )
    cross_validation: int | None = option(
        None,
        "Number of folds: train and measure a model per fold, then train the saved one on all of them.",
        DATA,
        Bound(lambda value: value >= 2, "2 or more folds"),
    )
    max_bad: float = option(0.05, "Abort if more than this fraction of the samples is invalid.", DATA, FRACTION)
    streaming: bool = option(False, "Stream a Hub dataset, Parquet files or WebDataset shards (.tar).", DATA)

    task: str | None = option(
        None,
        "Task to train, if the dataset has annotations for several. Default: inferred.",
        DATA,
        choices=TRAINABLE_TASKS,
    )

    model: str | None = option(
        None,
        f"Directory, built-in name or Hub id; {', '.join(VARIANTS)}: from scratch. Default: {DEFAULT_MODEL}.",
        MODEL,
    )
    output_dir: str | None = option(None, "Output directory. Default: runs/NAME_OF_DATASET.", MODEL)
    image_size: int | None = option(
        None,
        "Input size in pixels. Default: the checkpoint's, or 96, 320 or 384 by task, or less for smaller images.",
        MODEL,
        Bound(lambda value: 32 <= value <= 4096, "32..4096 pixels"),
    )
    anchors: str = option(
        "auto",
        "Detection: anchors fitted to the training boxes (auto), or those of the paper.",
        MODEL,
        choices=("auto", "paper"),
        tasks=(DETECTION,),
    )
    output_stride: int | None = option(
        None,
        "Segmentation: stride of the last feature map: 8, 16 or 32. Default: the checkpoint's, or 16.",
        MODEL,
        Bound(lambda value: value in (8, 16, 32), "8, 16 or 32"),
        tasks=(SEGMENTATION,),
    )
    hidden_dropout_prob: float | None = option(None, "Dropout in the transformer layers.", MODEL, BELOW_ONE)
    freeze_backbone: bool = option(False, "Train only the head.", MODEL)

    num_train_epochs: float | None = option(
        None, "Number of epochs. Default: depends on the dataset size.", DURATION, POSITIVE
    )
    max_steps: int | None = option(None, "Number of optimizer steps, instead of epochs.", DURATION, COUNT)
    max_minutes: float | None = option(
        None, "Time limit in minutes; the learning rate schedule is fitted to it.", DURATION, POSITIVE
    )
    early_stopping_patience: int | None = option(
        None, "Stop after this many evaluations without improvement.", DURATION, COUNT
    )

    per_device_train_batch_size: int | None = option(None, "Batch size per process.", OPTIM, COUNT)
    gradient_accumulation_steps: int = option(1, "Batches per optimizer step.", OPTIM, POSITIVE)
    learning_rate: float | None = option(None, "Peak learning rate.", OPTIM, POSITIVE)
    min_lr_rate: float = option(0.0, "Final learning rate, as a fraction of the peak.", OPTIM, FRACTION)
    warmup_steps: float = option(0.1, "Warm-up steps; below 1, a fraction of the training.", OPTIM, NOT_NEGATIVE)
    warmup_lr_rate: float = option(
        0.0, "Initial learning rate of the warm-up, as a fraction of the peak.", OPTIM, FRACTION
    )
    weight_decay: float | None = option(None, "Weight decay of AdamW.", OPTIM, NOT_NEGATIVE)
    decay_norms_and_biases: bool = option(True, "Apply weight decay to norms and biases.", OPTIM)
    adam_beta1: float = option(0.9, "Beta1 of AdamW.", OPTIM, BELOW_ONE)
    adam_beta2: float = option(0.999, "Beta2 of AdamW.", OPTIM, BELOW_ONE)
    max_grad_norm: float | None = option(10.0, "Gradient norm to clip to; 0 disables clipping.", OPTIM, NOT_NEGATIVE)
    label_smoothing_factor: float | None = option(None, "Label smoothing.", OPTIM, BELOW_ONE)
    class_weights: str | None = option(
        None,
        "Class weights: none, balanced (inverse frequency of images or pixels), or their square root (sqrt).",
        OPTIM,
        choices=("none", "balanced", "sqrt"),
        tasks=(CLASSIFICATION, SEGMENTATION),
    )
    dice_weight: float = option(
        0.0,
        "Segmentation: weight of the Dice loss, which is added to the cross-entropy.",
        OPTIM,
        NOT_NEGATIVE,
        tasks=(SEGMENTATION,),
    )
    focal_gamma: float = option(
        0.0,
        "Segmentation: gamma of the focal loss, which replaces the cross-entropy; 0 disables it.",
        OPTIM,
        NOT_NEGATIVE,
        tasks=(SEGMENTATION,),
    )
    ema_decay: float = option(
        0.998, "EMA decay of the weights that are evaluated and saved; 0 disables EMA.", OPTIM, BELOW_ONE
    )
    ema_warmup: bool = option(True, "Warm up the EMA decay.", OPTIM)
    seed: int = option(0, "Random seed.", OPTIM, NOT_NEGATIVE)

    multi_scale: str | None = option(
        None,
        "Training image sizes: fixed (off), growing (progressive), or random from five (on).",
        AUGMENT,
        choices=("off", "progressive", "on"),
    )
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.", AUGMENT, PROBABILITY)
    vertical_flip: float = option(0.0, "Probability of a vertical flip.", AUGMENT, PROBABILITY)
    crop_scale: float = option(
        0.35,
        "Classification: smallest area of a random resized crop, as a fraction of the image.",
        AUGMENT,
        Bound(lambda value: 0 < value <= 1, "more than 0 and at most 1"),
        tasks=(CLASSIFICATION,),
    )
    rand_augment: int | None = option(
        None,
        "Classification: magnitude of RandAugment, 0..30. Default: off.",
        AUGMENT,
        Bound(lambda value: 0 <= value <= 30, "a magnitude in 0..30"),
        tasks=(CLASSIFICATION,),
    )
    random_erasing: float = option(
        0.0, "Classification: probability of random erasing.", AUGMENT, PROBABILITY, tasks=(CLASSIFICATION,)
    )
    mixup: float = option(
        0.0, "Classification: alpha of MixUp; 0 disables it.", AUGMENT, NOT_NEGATIVE, tasks=(CLASSIFICATION,)
    )
    cutmix: float = option(
        0.0, "Classification: alpha of CutMix; 0 disables it.", AUGMENT, NOT_NEGATIVE, tasks=(CLASSIFICATION,)
    )
    color_jitter: float | None = option(None, "Probability of color jitter.", AUGMENT, PROBABILITY)
    zoom_out: float = option(
        0.0,
        "Detection: probability of placing the image on a larger canvas.",
        AUGMENT,
        PROBABILITY,
        tasks=(DETECTION,),
    )
    crop: float = option(0.5, "Detection: probability of a random crop.", AUGMENT, PROBABILITY, tasks=(DETECTION,))
    min_scale: float = option(
        0.5,
        "Segmentation: smallest scale of the image in random crops of a fixed size.",
        AUGMENT,
        POSITIVE,
        tasks=(SEGMENTATION,),
    )
    max_scale: float = option(2.0, "Segmentation: largest scale.", AUGMENT, POSITIVE, tasks=(SEGMENTATION,))

    eval_steps: float = option(0.1, "Steps between evaluations; below 1, a fraction of the training.", EVAL, POSITIVE)
    save_steps: float = option(0.1, "Steps between checkpoints; below 1, a fraction of the training.", EVAL, POSITIVE)
    save_total_limit: int = option(2, "Number of checkpoints to keep.", EVAL, POSITIVE)
    logging_steps: int = option(10, "Steps between lines of metrics.jsonl.", EVAL, POSITIVE)
    per_device_eval_batch_size: int = option(16, "Evaluation batch size per process.", EVAL, POSITIVE)
    metric_for_best_model: str | None = option(None, "Validation metric that selects the saved weights.", EVAL)
    resume: str | None = option(
        None,
        "auto, which may be left out: resume from the latest checkpoint in --output-dir, if there is one.",
        EVAL,
        choices=("auto",),
    )
    report_to: str = option("none", f"Experiment tracker: {', '.join(TRACKERS)}.", EVAL, choices=TRACKERS)

    push_to_hub: bool = option(False, "Publish the model when training ends, as `mobilevit publish` does.", HUB)
    hub_model_id: str | None = option(None, "Hub repository id. Default: the name of the output directory.", HUB)
    hub_private_repo: bool = option(False, "Create the repository as private.", HUB)
    hub_revision: str | None = option(None, "Branch of the repository. Default: main.", HUB)
    hub_images: bool = option(True, "Show sample images of the dataset in the model card.", HUB)
    license: str | None = option(None, "License id of the model. Default: the initial checkpoint's license.", HUB)
    license_name: str | None = option(None, "Name of the license; requires --license other.", HUB)
    license_link: str | None = option(None, "URL of the license text; requires --license other.", HUB)

    bf16: bool = option(False, "Train in bfloat16 mixed precision.", HARDWARE)
    fp16: bool = option(False, "Train in float16 mixed precision; GPU only.", HARDWARE)
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, more time.", HARDWARE
    )
    compile: bool = option(False, "Compile the model with torch.compile.", HARDWARE)
    dataloader_num_workers: int | None = option(
        None, "Number of data loading processes. Default: depends on CPU cores and device.", HARDWARE, NOT_NEGATIVE
    )
    use_cpu: bool = option(False, "Train on the CPU even if a GPU is available.", HARDWARE)

    def __post_init__(self) -> None:
        # Not huggingface_hub's `strict`: it checks before this method could convert 1 or "1e-3" to a float, and
        # its errors take two lines.
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _check_value(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for first, second in EXCLUSIVE:
            if getattr(self, first) and getattr(self, second):
                value = getattr(self, second)
                raise ValueError(f"{second}: got {value} together with {first}, expected one of them. Remove one.")
        if self.streaming and self.max_steps is None and self.max_minutes is None:
            raise ValueError(
                "streaming: got neither max_steps nor max_minutes, expected one of them, as a streamed dataset has no "
                "length. Set one."
            )
        if self.min_scale > self.max_scale:
            raise ValueError(
                f"min_scale: got {self.min_scale}, expected at most max_scale, {self.max_scale}. Change one of them."
            )
        for name in ("license_name", "license_link"):
            if getattr(self, name) and (self.license or "").strip().lower() != OTHER_LICENSE:
                raise ValueError(f"{name}: got license {self.license}, expected other. Set it, or remove {name}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "arguments") -> "TrainArguments":
        """Create arguments from values by field name; `source` names their origin in errors.

        Raises:
            ValueError: If a name is unknown or a value is invalid.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [str(name) for name in values if name not in names]:
            similar = [match for name in unknown for match in difflib.get_close_matches(name, names, 1)]
            action = f"Did you mean {', '.join(similar[:3])}?" if similar else "`mobilevit train --help` lists them."
            raise ValueError(f"{source}: got unknown {', '.join(unknown)}, expected options of training. {action}")
        return cls(**values)

    def for_task(self, task: TaskName) -> "TaskArguments":
        """Return the arguments with the task's defaults in place of None; `model` must be set.

        Raises:
            ValueError: If `self.task` is another task, or an option applies to another task only.
        """
        if self.task not in (None, task):
            raise ValueError(f"data: got {self.data} for {task}, expected {self.task}. Pass another dataset.")
        for field in dataclasses.fields(self):
            only = field.metadata["tasks"]
            if only and task not in only and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name}: applies to {' and '.join(only)} only, got data for {task}. Remove it."
                )
        defaults = DEFAULTS[task] | (FROM_SCRATCH[task] if self.model in VARIANTS else {})
        values: dict[str, Any] = dataclasses.asdict(self) | {"task": task}
        values |= {name: value for name, value in defaults.items() if values[name] is None}
        arguments = TaskArguments(**values)
        if arguments.metric_for_best_model not in TASKS[task].metrics:
            raise ValueError(
                f"metric_for_best_model: got {arguments.metric_for_best_model!r}, expected one of "
                f"{', '.join(TASKS[task].metrics)}. Change it."
            )
        return arguments

    def to_yaml(self) -> str:
        """Return a recipe with the same values."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)


class TaskArguments(TrainArguments):
    """Training arguments with a task's defaults, from `TrainArguments.for_task`."""

    hidden_dropout_prob: float
    per_device_train_batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing_factor: float
    class_weights: str | None  # None in detection
    multi_scale: str
    color_jitter: float
    metric_for_best_model: str


def _check_value(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Check a field's value and return it, converted to float where the field is one."""
    name, choices, bound = field.name, field.metadata["choices"], field.metadata["bound"]
    allowed = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and type(value) in (int, str):  # YAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) not in allowed:
        expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ValueError(f"{name}: got {value!r}, expected {expected}. Change it.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: got {value}, expected a finite number. Change it.")
    if value is not None and choices and value not in choices:
        expected = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        raise ValueError(f"{name}: got {value!r}, expected {expected}. Change it.")
    if value is not None and bound and not bound.contains(value):
        raise ValueError(f"{name}: got {value}, expected {bound.text}. Change it.")
    return value


def override_recipe(recipe: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, with those of the options in their place and in that of what they exclude."""
    excluded = {second for pair in EXCLUSIVE for first, second in (pair, pair[::-1]) if options.get(first)}
    if options.get("license", OTHER_LICENSE) != OTHER_LICENSE:
        excluded |= {"license_name", "license_link"}
    return {name: value for name, value in recipe.items() if name not in excluded} | dict(options)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML file with values by field name of `TrainArguments`.

    Raises:
        ValueError: If the file can't be read or holds something else.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}. Pass the path of a recipe.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-01
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise ValueError(
            f"{path}: got invalid YAML{line} ({reason}), expected lines of `name: value`. Correct it."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected lines of `name: value`. Pass a recipe.")
    if isinstance(values.get("multi_scale"), bool):  # YAML reads on and off as booleans
        values["multi_scale"] = "on" if values["multi_scale"] else "off"
    return values
