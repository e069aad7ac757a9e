"""All that can be said about a training, in one dataclass: it makes the options of the command and reads recipes."""

import contextlib
import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ..model_sources import DEFAULT_MODEL
from ..modeling.configuration_mobilevit import VARIANTS
from ..tasks import TaskName

TRACKERS = ("tensorboard", "trackio", "wandb")

# What a fine-tuning starts with where nothing else is said, by task; scripts/recipes/finetune-*.yaml say the same.
DEFAULTS: dict[TaskName, dict[str, Any]] = {
    "image-classification": {
        "hidden_dropout_prob": 0.0,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "label_smoothing_factor": 0.1,
        "multi_scale": "progressive",
        "color_jitter": 0.0,
        "metric_for_best_model": "accuracy",
    },
    "object-detection": {
        "hidden_dropout_prob": 0.0,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "label_smoothing_factor": 0.0,
        "multi_scale": "progressive",
        "color_jitter": 1.0,
        "metric_for_best_model": "map",
    },
}
# And what differs where it starts with new weights, which are far from anything useful.
NEW_WEIGHTS: dict[TaskName, dict[str, Any]] = {
    "image-classification": {
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "multi_scale": "on",
    },
    "object-detection": {},
}
METRICS: dict[TaskName, tuple[str, ...]] = {
    "image-classification": ("accuracy", "macro_f1", "top_5_accuracy"),
    "object-detection": ("map", "map_50", "map_75"),
}
# Options that mean something for one task only.
ONLY_FOR: dict[TaskName, tuple[str, ...]] = {
    "image-classification": ("class_weights", "crop_scale", "rand_augment", "random_erasing", "mixup", "cutmix"),
    "object-detection": ("anchors", "zoom_out", "crop"),
}


def option(default: Any, help: str, panel: str, *, choices: tuple[str, ...] = ()) -> Any:
    """A field with the text of its option, the panel of the help it belongs to, and the values it can have."""
    return dataclasses.field(default=default, metadata={"help": help, "panel": panel, "choices": choices})


DATA, START, LENGTH, STEP, AUGMENT, MEASURE, PUBLISH, MACHINE = (
    "Data",
    "Model",
    "How long",
    "Optimization",
    "Augmentation",
    "Measuring and saving",
    "Publishing",
    "Machine",
)


@dataclass(kw_only=True)
class TrainArguments:
    """What to train, on what and how; names as in transformers' `TrainingArguments` where it has the same.

    `None` is found out: from the data, the model that it starts with, or `DEFAULTS` of the task and `NEW_WEIGHTS`.

    Raises:
        ValueError: If a value can't be used.
    """

    data: str = option("", "The dataset: a folder or file, or a Hub id.", DATA)
    data_format: str | None = option(None, "Its format, if it isn't to be found out.", DATA)
    validation_fraction: float = option(0.1, "The share cut off for validation, if there is no such split.", DATA)
    max_bad: float = option(0.05, "The share of bad samples above which nothing is trained.", DATA)
    streaming: bool = option(False, "Read a Hub dataset on the way instead of downloading it.", DATA)

    task: str | None = option(
        None, "What the data must be for.", DATA, choices=("image-classification", "object-detection")
    )

    model: str | None = option(
        None,
        f"A directory, built-in name, Hub id, or xxs, xs, s for new weights. Default: {DEFAULT_MODEL}.",
        START,
    )
    output_dir: str | None = option(None, "Where the result goes. Default: runs/NAME OF DATA.", START)
    image_size: int | None = option(
        None,
        "Side of the images the model sees. Default: its own (96 for new weights), or less if they are smaller.",
        START,
    )
    anchors: str = option(
        "auto", "Detector: anchors fitted to the boxes, or the paper's.", START, choices=("auto", "paper")
    )
    hidden_dropout_prob: float | None = option(None, "Dropout in the transformers.", START)
    freeze_backbone: bool = option(False, "Train the head alone.", START)

    num_train_epochs: float | None = option(None, "How often to go through the data. Default: by its size.", LENGTH)
    max_steps: int | None = option(None, "Or how many steps to train.", LENGTH)
    max_minutes: float | None = option(None, "And at most so long, with a schedule fitted to that.", LENGTH)
    early_stopping_patience: int | None = option(
        None, "Stop after so many evaluations without a better result.", LENGTH
    )

    per_device_train_batch_size: int | None = option(None, "Images in a batch, for each process.", STEP)
    gradient_accumulation_steps: int = option(1, "Batches for one step.", STEP)
    learning_rate: float | None = option(None, "The highest learning rate.", STEP)
    min_lr_rate: float = option(0.0, "The share of it that is left at the end.", STEP)
    warmup_steps: float = option(0.1, "Steps until it is reached; below 1 the share of all.", STEP)
    warmup_lr_rate: float = option(0.0, "The share of it to begin with.", STEP)
    weight_decay: float | None = option(None, "AdamW's.", STEP)
    decay_norms_and_biases: bool = option(True, "Whether normalizations and biases decay too.", STEP)
    adam_beta1: float = option(0.9, "AdamW's.", STEP)
    adam_beta2: float = option(0.999, "AdamW's.", STEP)
    max_grad_norm: float | None = option(10.0, "Longer gradients are cut to this length; 0 leaves them.", STEP)
    label_smoothing_factor: float | None = option(None, "The share of a label given to all classes.", STEP)
    class_weights: str = option(
        "none", "Classifier: weigh classes against their number.", STEP, choices=("none", "balanced")
    )
    ema_decay: float = option(0.998, "Of the averaged weights that are measured and saved; 0 for none.", STEP)
    ema_warmup: bool = option(True, "Whether the average forgets faster at first.", STEP)
    seed: int = option(0, "Of all that is drawn at random.", STEP)

    multi_scale: str | None = option(
        None,
        "Sizes of training images: one, growing, or the paper's five at random.",
        AUGMENT,
        choices=("off", "progressive", "on"),
    )
    horizontal_flip: float = option(0.5, "How often images are mirrored.", AUGMENT)
    vertical_flip: float = option(0.0, "How often they are turned upside down.", AUGMENT)
    crop_scale: float = option(0.35, "Classifier: the least share of an image that a crop has.", AUGMENT)
    rand_augment: int | None = option(None, "Classifier: magnitude of RandAugment, 0..30.", AUGMENT)
    random_erasing: float = option(0.0, "Classifier: how often a rectangle is painted over.", AUGMENT)
    mixup: float = option(0.0, "Classifier: alpha of mixup.", AUGMENT)
    cutmix: float = option(0.0, "Classifier: alpha of cutmix.", AUGMENT)
    color_jitter: float | None = option(None, "How often colors are varied.", AUGMENT)
    zoom_out: float = option(0.0, "Detector: how often images are put on a larger canvas.", AUGMENT)
    crop: float = option(0.5, "Detector: how often images are cropped.", AUGMENT)

    eval_steps: float = option(0.1, "Steps between evaluations; below 1 the share of all.", MEASURE)
    save_steps: float = option(0.1, "Steps between checkpoints; below 1 the share of all.", MEASURE)
    save_total_limit: int = option(2, "How many checkpoints to keep.", MEASURE)
    logging_steps: int = option(10, "Steps between lines in metrics.jsonl.", MEASURE)
    per_device_eval_batch_size: int = option(16, "Images that are measured together.", MEASURE)
    metric_for_best_model: str | None = option(None, "By which the best result is kept.", MEASURE)
    resume: str | None = option(
        None, "auto: go on where the training in --output-dir ended, if it began.", MEASURE, choices=("auto",)
    )
    report_to: str = option("none", f"none, {', '.join(TRACKERS)}.", MEASURE, choices=("none", *TRACKERS))

    push_to_hub: bool = option(False, "Publish the result, as `mobilevit publish` does.", PUBLISH)
    hub_model_id: str | None = option(None, "As what. Default: the output directory's name.", PUBLISH)
    hub_private_repo: bool = option(False, "A new repository is for your eyes only.", PUBLISH)
    hub_revision: str | None = option(None, "Its branch. Default: main.", PUBLISH)
    hub_images: bool = option(True, "Whether its card shows images of the data.", PUBLISH)
    license: str | None = option(None, "Of the result. Default: that of what it started from.", PUBLISH)
    license_name: str | None = option(None, "The name, with --license other.", PUBLISH)
    license_link: str | None = option(None, "To its text.", PUBLISH)

    bf16: bool = option(False, "Compute in bfloat16 where that does no harm.", MACHINE)
    fp16: bool = option(False, "Compute in float16 where that does no harm; GPUs only.", MACHINE)
    gradient_checkpointing: bool = option(False, "Less memory, more time.", MACHINE)
    compile: bool = option(False, "Let torch.compile make the model faster.", MACHINE)
    dataloader_num_workers: int | None = option(None, "Processes that load images. Default: by the machine.", MACHINE)
    use_cpu: bool = option(False, "Leave a GPU alone.", MACHINE)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            self._check_type(field, hints[field.name])
        for name in ("learning_rate", "num_train_epochs", "max_minutes", "logging_steps", "save_total_limit"):
            self._check(name, lambda value: value > 0, "more than 0")
        for name in ("eval_steps", "save_steps", "gradient_accumulation_steps", "per_device_eval_batch_size"):
            self._check(name, lambda value: value > 0, "more than 0")
        self._check("crop_scale", lambda value: 0 < value <= 1, "more than 0 and at most 1")
        self._check("image_size", lambda value: value >= 32, "32 pixels or more")
        for name in ("max_steps", "per_device_train_batch_size", "early_stopping_patience"):
            self._check(name, lambda value: value >= 1, "1 or more")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers", "seed"):
            self._check(name, lambda value: value >= 0, "0 or more")
        for name in ("validation_fraction", "label_smoothing_factor", "ema_decay", "hidden_dropout_prob"):
            self._check(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        for name in ("max_bad", "min_lr_rate", "warmup_lr_rate"):
            self._check(name, lambda value: 0 <= value <= 1, "a share in 0..1")
        for name in ("adam_beta1", "adam_beta2"):
            self._check(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        if self.bf16 and self.fp16:
            raise ValueError("bf16, fp16: got both, expected one of them. Leave one out.")
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise ValueError("num_train_epochs, max_steps: got both, expected one of them. Leave one out.")
        if self.streaming and self.max_steps is None and self.max_minutes is None:
            raise ValueError("streaming: nobody knows how long a stream is. Say max_steps or max_minutes too.")

    def _check_type(self, field: dataclasses.Field[Any], hint: Any) -> None:
        value, choices = getattr(self, field.name), field.metadata["choices"]
        expected = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if float in expected and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif float in expected and isinstance(value, str):  # YAML reads 1e-3 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        if type(value) not in expected:
            names = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in expected)
            raise ValueError(f"{field.name}: got {value!r}, expected {names}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name}: got {value}, expected a finite number.")
        if value is not None and choices and value not in choices:
            raise ValueError(f"{field.name}: got {value!r}, expected {_one_of(choices)}.")
        setattr(self, field.name, value)

    def _check(self, name: str, is_right: Any, expected: str) -> None:
        value = getattr(self, name)
        if value is not None and not is_right(value):
            raise ValueError(f"{name}: got {value}, expected {expected}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "arguments") -> "TrainArguments":
        """From values by name.

        Raises:
            ValueError: If a name is unknown or a value can't be used.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [str(name) for name in values if name not in names]:
            raise ValueError(f"{source}: there is no {', '.join(unknown)}. Expected some of {', '.join(names)}.")
        return cls(**values)

    def for_task(self, task: TaskName) -> "TrainArguments":
        """These with the task's `DEFAULTS` for what was not said; `model` has to be said.

        Raises:
            ValueError: If the data is not for the task asked for, or something was said that is for the other one.
        """
        if self.task not in (None, task):
            raise ValueError(f"{self.data} is for {task}, expected data for {self.task}.")
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        for other, names in ONLY_FOR.items():
            wrong = [name for name in names if other != task and getattr(self, name) != fields[name]]
            if wrong:
                raise ValueError(f"{', '.join(wrong)}: for {other}, and this is {task}. Leave it out.")
        defaults = DEFAULTS[task] | (NEW_WEIGHTS[task] if self.model in VARIANTS else {})
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        arguments = dataclasses.replace(self, task=task, **missing)
        if arguments.metric_for_best_model not in METRICS[task]:
            raise ValueError(
                f"metric_for_best_model: got {arguments.metric_for_best_model!r}, expected one of "
                f"{', '.join(METRICS[task])}."
            )
        return arguments

    def to_yaml(self) -> str:
        """A recipe that says the same."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)


def _one_of(choices: Sequence[str]) -> str:
    return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values in a YAML file, by the names of `TrainArguments`.

    Raises:
        ValueError: If there is no such file, or it is no YAML of names and values.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}. Give the path of a recipe.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected lines of `name: value`.")
    if isinstance(values.get("multi_scale"), bool):  # YAML reads on and off as yes and no
        values["multi_scale"] = "on" if values["multi_scale"] else "off"
    return values
