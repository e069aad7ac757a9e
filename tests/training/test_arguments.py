"""Training arguments and recipes: names as in transformers, validation, defaults by task."""

import dataclasses
import math
import re
from typing import get_args

import pytest
import transformers

from mobilevit_hf.tasks import TASKS
from mobilevit_hf.training.arguments import DEFAULTS, FROM_SCRATCH, TrainArguments, read_recipe

FIELDS = {field.name: field for field in dataclasses.fields(TrainArguments)}

# Fields with the same meaning in transformers.
SHARED = [
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "metric_for_best_model",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "dataloader_num_workers",
    "seed",
    "use_cpu",
    "output_dir",
]


@pytest.mark.parametrize("name", FIELDS)
def test_fields_have_help_panel_and_valid_default(name):
    field = FIELDS[name]
    assert re.fullmatch(r"\w.{5,110}\.", field.metadata["help"])
    assert field.metadata["panel"]
    if field.metadata["choices"]:
        assert field.default is None or field.default in field.metadata["choices"]
    assert bool(field.metadata["bound"]) == bool({int, float} & {field.type, *get_args(field.type)})


def test_names_and_defaults_match_transformers():
    theirs = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}
    assert not [name for name in SHARED if name not in theirs or name not in FIELDS]
    for name in ("adam_beta1", "adam_beta2", "gradient_accumulation_steps", "push_to_hub", "bf16", "fp16", "use_cpu"):
        assert FIELDS[name].default == theirs[name].default


def test_transformers_accepts_the_shared_values(tmp_path):
    values = {name: FIELDS[name].default for name in SHARED if FIELDS[name].default is not None}
    values |= {"eval_steps": 0.25, "save_steps": 50, "warmup_steps": 0.1, "max_grad_norm": 0.0}
    ours = TrainArguments(**values)
    theirs = transformers.TrainingArguments(**values | {"output_dir": str(tmp_path), "use_cpu": True})
    assert (theirs.eval_steps, theirs.save_steps) == (ours.eval_steps, ours.save_steps) == (0.25, 50)
    assert theirs.get_warmup_steps(1000) == 100
    assert theirs.per_device_eval_batch_size == ours.per_device_eval_batch_size


INVALID = {
    "learning_rate": (0, -1.0, "fast", True, math.nan, [1e-3]),
    "num_train_epochs": (0, -2),
    "max_steps": (0, -1, 1.5, "ten"),
    "max_minutes": (0, "soon"),
    "image_size": (31, 0, 96.5, 4097),
    "per_device_train_batch_size": (0, 2.0, True),
    "per_device_eval_batch_size": (0,),
    "gradient_accumulation_steps": (0, None),
    "warmup_steps": (-0.1, None),
    "warmup_lr_rate": (-0.1, 1.1),
    "min_lr_rate": (1.5,),
    "weight_decay": (-0.01,),
    "adam_beta1": (1.0, -0.1),
    "adam_beta2": (1, 2),
    "max_grad_norm": (-1,),
    "label_smoothing_factor": (1, -0.1),
    "ema_decay": (1, 1.5, math.nan),
    "hidden_dropout_prob": (1, -0.5),
    "validation_fraction": (1, -0.1),
    "max_bad": (1.01, -0.01),
    "early_stopping_patience": (0, -1, 0.5),
    "eval_steps": (0, -1),
    "save_steps": (0,),
    "save_total_limit": (0, -1, 1.5),
    "logging_steps": (0,),
    "dataloader_num_workers": (-1, 0.5),
    "seed": (-1, "lucky"),
    "freeze_backbone": ("yes", 1, None),
    "multi_scale": ("yes", True),
    "crop_scale": (0, 1.1),
    "horizontal_flip": (-0.1, 1.1),
    "vertical_flip": (-0.1, 1.1),
    "color_jitter": (-0.1, 1.1),
    "random_erasing": (-0.1, 1.1),
    "zoom_out": (-0.1, 1.1),
    "crop": (-0.1, 1.1),
    "rand_augment": (-1, 31, 9.5),
    "mixup": (-1,),
    "cutmix": (-1,),
    "class_weights": ("equal",),
    "output_stride": (0, 24, 16.0),
    "min_scale": (0,),
    "max_scale": (0, -1),
    "dice_weight": (-0.5,),
    "focal_gamma": (-1,),
    "anchors": ("own",),
    "report_to": ("paper",),
    "task": ("segmentation",),
    "data": (None, 3),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INVALID.items() for value in values])
def test_invalid_values_raise(name, value):
    with pytest.raises(ValueError) as error:
        TrainArguments(**{name: value})
    shown = re.fullmatch(rf"{name}: got (.*), expected .*\.", str(error.value))
    assert shown[1] == repr(value) or float(shown[1]) == value


@pytest.mark.parametrize("name", ["num_train_epochs", "max_minutes", "learning_rate", "mixup"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf"])
def test_infinite_values_raise(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: got (inf|nan), expected a finite number"):
        TrainArguments(**{name: value})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"bf16": True, "fp16": True}, "^fp16: got True together with bf16"),
        ({"num_train_epochs": 3, "max_steps": 100}, "^max_steps: got 100 together with num_train_epochs"),
        ({"streaming": True}, "streaming: .* max_steps nor max_minutes"),
        ({"min_scale": 2, "max_scale": 1.5}, r"^min_scale: got 2\.0, expected at most max_scale, 1\.5"),
        ({"license_name": "mine"}, r"^license_name: got license None, expected other\. Set it"),
        (
            {"license_link": "https://a.b", "license": "mit"},
            r"^license_link: got license mit, expected other\. Set it",
        ),
    ],
)
def test_conflicting_values_raise(values, expected):
    with pytest.raises(ValueError, match=expected):
        TrainArguments(**values)


@pytest.mark.parametrize("task", DEFAULTS)
def test_options_of_the_other_task_raise(task):
    fields = [field for field in FIELDS.values() if task in field.metadata["tasks"]]
    assert len(fields) >= 3
    for field in fields:
        tasks = field.metadata["tasks"]
        changed = {"output_stride": 8, "class_weights": "balanced"}.get(
            field.name, {"auto": "paper", None: 9}.get(field.default, 0.6)
        )
        arguments = TrainArguments(data="images", **{field.name: changed})
        assert getattr(arguments.for_task(task), field.name) == changed
        other = next(name for name in DEFAULTS if name not in tasks)
        expected = f"^{field.name}: applies to {' and '.join(tasks)} only, got data for {other}"
        with pytest.raises(ValueError, match=expected):
            arguments.for_task(other)


def test_data_and_metric_of_the_other_task_raise():
    with pytest.raises(ValueError, match=r"^data: got images for object-detection, expected image-class"):
        TrainArguments(data="images", task="image-classification").for_task("object-detection")
    with pytest.raises(ValueError, match=r"^metric_for_best_model: got 'map', expected one of accuracy"):
        TrainArguments(metric_for_best_model="map").for_task("image-classification")


@pytest.mark.parametrize("task", DEFAULTS)
def test_task_defaults_replace_none(task):
    arguments = TrainArguments().for_task(task)
    assert arguments.task == task
    for name, value in DEFAULTS[task].items():
        assert getattr(arguments, name) == value
        assert getattr(TrainArguments(), name) is None
    assert arguments.metric_for_best_model in TASKS[task].metrics
    from_scratch = TrainArguments(model="xxs").for_task(task)
    for name, value in (DEFAULTS[task] | FROM_SCRATCH[task]).items():
        assert getattr(from_scratch, name) == value
    arguments = TrainArguments(model="xxs", learning_rate=0.5, label_smoothing_factor=0.0).for_task(task)
    assert (arguments.learning_rate, arguments.label_smoothing_factor) == (0.5, 0.0)


def test_unknown_names_raise():
    with pytest.raises(ValueError, match=r"^recipe\.yaml: got unknown learnin_rate, 7, .* mean learning_rate\?$"):
        TrainArguments.from_dict({"learnin_rate": 1, "data": "x", 7: 2}, "recipe.yaml")
    with pytest.raises(ValueError, match=r"^arguments: got unknown 7, .* --help` lists them\.$"):
        TrainArguments.from_dict({7: 2})
    misspelled = {f"{name}s": 1 for name in ("crop", "seed", "mixup", "cutmix")}
    with pytest.raises(ValueError, match=r"Did you mean crop, seed, mixup\?$"):
        TrainArguments.from_dict(misspelled)


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_recipe_round_trip(tmp_path):
    arguments = TrainArguments(
        data="Bilder/Äpfel", learning_rate=1e-5, max_steps=300, eval_steps=50, rand_augment=9, push_to_hub=True
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(arguments.to_yaml(), encoding="utf-8")
    assert TrainArguments.from_dict(read_recipe(path)) == arguments


def test_recipe_numbers_are_converted(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-3\nwarmup_steps: 500\nema_decay: 5E-1\nmax_grad_norm:\n")
    arguments = TrainArguments.from_dict(read_recipe(path))
    assert arguments == TrainArguments(learning_rate=0.001, warmup_steps=500.0, ema_decay=0.5, max_grad_norm=None)


@pytest.mark.parametrize("value", ["on", "off"])
def test_recipe_on_and_off_are_not_booleans(value, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"multi_scale: {value}\n")
    assert TrainArguments.from_dict(read_recipe(tmp_path / "recipe.yaml")).multi_scale == value


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file.*Pass the path of a recipe"),
        (b"a: [1", r": got invalid YAML in line 1 \(expected ',' or '\]', but got .*\), expected .*\. Correct it"),
        (b"seed: 1\na: b: c", r"in line 2 \(mapping values are not allowed here\)"),
        (b"a: \xff", r"got invalid YAML \(invalid start byte\)"),
        (b"a: \0", r"got invalid YAML \(special characters are not allowed\)"),
        (b"seed: 2024-13-01", r"got invalid YAML \(month must be in"),
        (b"- a\n- b\n", "got list, expected lines of `name: value`"),
        (b"", "got NoneType, expected lines"),
    ],
)
def test_invalid_recipe_raises(content, expected, tmp_path):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as error:
        read_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
