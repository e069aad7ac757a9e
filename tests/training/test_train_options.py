"""mobilevit train's options and recipes: each arrives and trains, and a mistake is one line."""

import dataclasses
import json
import math
import re
import runpy
import shutil
import sys

import pytest
import yaml
from huggingface_hub import constants
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import (
    MODEL_FILES,
    SCRIPT_OF,
    SCRIPTS,
    SHORT,
    SMALL,
    list_files,
    only_line,
    read_arguments,
    read_metrics,
)

from mobilevit_hf.training.arguments import TrainArguments, read_recipe
from mobilevit_hf.training.optimization import Schedule

RECIPES = sorted((SCRIPTS / "recipes").glob("*.yaml"))


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


# --- options ---------------------------------------------------------------------------------------------------------


def flag_of(name):
    return "--" + name.replace("_", "-")


def test_each_argument_has_a_flag(mobilevit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = mobilevit("train", "--help")
    assert (code, err) == (0, "")
    flags = set(re.findall(r"--[a-z0-9][a-z0-9-]*", out))
    names = {field.name for field in dataclasses.fields(TrainArguments)} - {"data", "task"}
    assert {flag_of(name) for name in names} < flags
    assert not {"--data", "--task"} & flags
    assert "--recipe" in flags


def test_each_flag_arrives(mobilevit, training_calls):
    """All at once, each with a value that is not its default."""
    special = {"resume": "auto", "data_format": "folders", "metric_for_best_model": "macro_f1"}
    left_out = {"data", "task", "fp16", "num_train_epochs"}  # the last two can't go with others
    words, expected = [], {}
    for field in dataclasses.fields(TrainArguments):
        if field.name in left_out:
            continue
        if field.type is bool:
            expected[field.name] = not field.default
            words.append(flag_of(field.name).replace("--", "--no-" if field.default else "--", 1))
            continue
        if field.metadata["choices"]:
            value = next(choice for choice in reversed(field.metadata["choices"]) if choice != field.default)
        elif "str" in str(field.type):
            value = special.get(field.name, "some-text")
        else:
            value = 40 if "int" in str(field.type) else 0.125
        expected[field.name] = value
        words += [flag_of(field.name), value]
    code, _, err = mobilevit("train", "images", *words)
    assert code == 0, err
    for word, name, value in (("--fp16", "fp16", True), ("--num-train-epochs=1.5", "num_train_epochs", 1.5)):
        assert mobilevit("train", "images", word)[0] == 0
        assert getattr(training_calls[-1], name) == value
    found = dataclasses.asdict(training_calls[0])
    assert {name: found[name] for name in expected} == expected
    assert found["data"] == "images"


def test_flags_win_over_the_recipe_and_that_over_the_defaults(
    small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path
):
    recipe = {"learning_rate": 5e-4, "seed": 3, "max_steps": 9, "weight_decay": 0.5, "horizontal_flip": 0.0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"ema_warmup": False, "min_lr_rate": "1e-3"}))
    words = (
        *SMALL,
        "--model",
        initial_checkpoint,
        "--learning-rate",
        2e-3,
        "--ema-warmup",
        "--output-dir",
        tmp_path / "run",
    )
    code, _, err = mobilevit(
        "train", small_datasets["image-classification"], "--recipe", tmp_path / "recipe.yaml", *words
    )
    assert code == 0, err
    found = read_arguments(tmp_path / "run")
    given = {"learning_rate": 2e-3, "max_steps": 2, "ema_warmup": True, "image_size": 64, "use_cpu": True}
    said = {"seed": 3, "weight_decay": 0.5, "horizontal_flip": 0.0, "min_lr_rate": 1e-3}
    defaults = {"adam_beta2": 0.999, "label_smoothing_factor": 0.1, "hidden_dropout_prob": 0.0, "crop_scale": 0.35}
    expected = given | said | defaults | {"task": "image-classification", "model": str(initial_checkpoint)}
    assert {name: found[name] for name in expected} == expected
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2


def test_a_folder_for_each_training(mobilevit, training_calls, tmp_path):
    for data, taken, folder in (
        ("photos", (), "runs/photos"),
        ("photos/", ("runs/photos",), "runs/photos-2"),
        ("user/some data", ("runs/photos-2",), "runs/some-data"),
        ("photos", ("runs/photos-3",), "runs/photos-4"),
        (".", (), f"runs/{tmp_path.name}"),
    ):
        for path in taken:
            (tmp_path / path).mkdir(parents=True)
        assert mobilevit("train", data)[0] == 0
        assert training_calls[-1].output_dir == folder


def test_several_processes_want_to_be_told_a_folder(mobilevit, training_calls, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = mobilevit("train", "photos")
    assert code == 2
    assert "--output-dir" in only_line(err)
    assert mobilevit("train", "photos", "--output-dir", "run")[0] == 0


@pytest.fixture
def files(small_datasets, tmp_path, monkeypatch):
    """The current folder, with datasets and recipes that can't be used."""
    monkeypatch.chdir(tmp_path)
    for name, folder in zip(("shapes", "boxes"), small_datasets.values(), strict=True):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unknown.yaml").write_text("learning_rate: 1.0e-3\nlearning_speed: 3\n")
    (tmp_path / "broken.yaml").write_text("learning_rate: [1, 2\nseed: 3")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "wrong.yaml").write_text("seed: many\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00seed")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("shapes", "--recipe", "unknown.yaml"), ("unknown.yaml", "learning_speed", "learning_rate")),
        (("shapes", "--recipe", "broken.yaml"), ("broken.yaml is not YAML",)),
        (("shapes", "--recipe", "bytes.yaml"), ("bytes.yaml is not YAML",)),
        (("shapes", "--recipe", "list.yaml"), ("list.yaml", "list", "name: value")),
        (("shapes", "--recipe", "wrong.yaml"), ("seed", "'many'", "int")),
        (("shapes", "--recipe", "missing.yaml"), ("missing.yaml", "No such file")),
        (("shapes", "--recipe", "empty"), ("empty", "Is a directory")),
        (("shapes", "--learning-rate", "-1"), ("learning_rate", "-1", "more than 0")),
        (("shapes", "--multi-scale", "maybe"), ("multi_scale", "'maybe'", "off, progressive, on")),
        (("shapes", "--label-smoothing-factor", "1"), ("label_smoothing_factor", "below 1")),
        (("shapes", "--max-steps", "2", "--num-train-epochs", "1"), ("num_train_epochs, max_steps",)),
        (("shapes", "--bf16", "--fp16"), ("bf16, fp16",)),
        (("shapes", "--fp16"), ("fp16", "GPU")),
        (("shapes", "--metric-for-best-model", "map"), ("'map'", "accuracy")),
        (("shapes", "--zoom-out", "0.5"), ("zoom_out", "object-detection")),
        (("boxes", "--mixup", "0.2"), ("mixup", "image-classification")),
        (("nowhere",), ("nowhere",)),
        (("empty",), ("empty",)),
        (("shapes", "--data-format", "coco"), ("shapes",)),
        (("shapes", "--data-format", "crayon"), ("crayon", "coco")),
        (("shapes", "--report-to", "wandb"), ("wandb", "pip install wandb")),
        (("shapes", "--report-to", "trackio"), ("trackio", "pip install trackio")),
        (("shapes", "--report-to", "paper"), ("report_to", "tensorboard")),
        (("shapes", "--resume", "always"), ("resume", "'always'", "auto")),
        (("shapes", "--model", "nobody/nothing"), ("nobody/nothing",)),
        (("shapes", "--model", "boxes"), ("boxes", "config.json")),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(words, expected, mobilevit, files, no_hub):
    before = list_files(files)
    code, out, err = mobilevit("train", *words)
    assert (code, out) == (2, "")
    line = only_line(err)
    assert line.startswith("error: ")
    for part in expected:
        assert part in line
    assert list_files(files) == before


@pytest.mark.parametrize(
    ("script", "data_set"), [("train_classification.py", "boxes"), ("train_detection.py", "shapes")]
)
def test_a_script_wants_data_for_its_task(script, data_set, files, monkeypatch, capfd):
    before = list_files(files)
    monkeypatch.setattr("mobilevit_hf.cli.train.tune_allocator", lambda: True)
    monkeypatch.setattr(sys, "argv", [script, data_set])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    line = only_line(capfd.readouterr().err)
    assert end.value.code == 2
    for task in SCRIPT_OF:
        assert task in line
    assert data_set in line
    assert list_files(files) == before


# --- what it starts from ---------------------------------------------------------------------------------------------


def test_without_a_hub_it_starts_with_new_weights_and_says_so(small_datasets, mobilevit, no_plots, no_hub, tmp_path):
    words = ("--output-dir", tmp_path / "run", *SHORT, "--max-steps", 1)
    code, _, err = mobilevit("train", small_datasets["image-classification"], *words)
    assert code == 0
    told = [line for line in err.splitlines() if "apple/mobilevit-xx-small" in line]
    assert "new weights (xxs)" in only_line("\n".join(told))
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["hidden_sizes"] == [64, 80, 96]
    assert config["image_size"] == 96  # the images are smaller than the model's 256


@pytest.mark.parametrize("data_set", ["image-classification", "object-detection"])
def test_another_model_is_refused(
    data_set, small_datasets, mobilevit, tiny_fields, checkpoints, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "nothing").mkdir()
    for model, words in (("bert", ("type bert", "mobilevit")), ("nothing", ("config.json",))):
        code, out, err = mobilevit("train", small_datasets[data_set], "--model", tmp_path / model, *SMALL)
        assert (code, out) == (2, "")
        line = only_line("\n".join(line for line in err.splitlines() if not line.startswith("note: ")))
        assert str(tmp_path / model) in line
        assert all(word in line for word in words)
    assert not (tmp_path / "runs").exists()


def test_the_backbone_of_a_segmentation_model_will_do(small_datasets, checkpoints, mobilevit, no_plots, tmp_path):
    words = ("--model", checkpoints["image-segmentation"], "--output-dir", tmp_path / "run", *SMALL)
    code, _, err = mobilevit("train", small_datasets["object-detection"], *words)
    assert code == 0, err
    assert "recommended_threshold" in json.loads((tmp_path / "run/config.json").read_text())


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [pytest.param(path, id=path.stem) for path in RECIPES])
def test_a_miniature_of_a_recipe(recipe, small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path):
    task = "object-detection" if re.search("coco|detection|cells", recipe.stem) else "image-classification"
    said = yaml.safe_load(recipe.read_text())
    length = ("--num-train-epochs", 0.3) if "num_train_epochs" in said else ("--max-steps", 2)
    words = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run", "--eval-steps", 9, *length)
    small = ("--image-size", 64, "--per-device-train-batch-size", 4, "--dataloader-num-workers", 0, "--use-cpu")
    code, _, err = mobilevit("train", small_datasets[task], "--recipe", recipe, *words, *small)
    assert code == 0, err
    overridden = {"model", "image_size", "per_device_train_batch_size", "num_train_epochs", "max_steps", "eval_steps"}
    found = read_arguments(tmp_path / "run")
    assert {name: found[name] for name in said.keys() - overridden} == {n: said[n] for n in said.keys() - overridden}
    assert found["image_size"] == 64
    assert {path.name for path in (tmp_path / "run").iterdir()} > MODEL_FILES


@pytest.mark.parametrize("task", list(SCRIPT_OF))
def test_the_fine_tuning_recipes_are_the_defaults(task):
    said = read_recipe(SCRIPTS / "recipes" / f"finetune-{task.rpartition('-')[2]}.yaml")
    assert {"learning_rate", "per_device_train_batch_size", "hidden_dropout_prob", "multi_scale"} < said.keys()
    assert TrainArguments(**said).for_task(task) == TrainArguments().for_task(task)


@pytest.mark.parametrize(("variant", "dropout"), [("s", 0.1), ("xs", 0.1), ("xxs", 0.05)])
def test_the_imagenet_recipes_are_the_papers(variant, dropout):
    """Section 4.1: 300 epochs, 1024 images a step on 8 GPUs, 2e-4 → 2e-3 in 3k steps, then a cosine to 2e-4."""
    a = TrainArguments(**read_recipe(SCRIPTS / "recipes" / f"imagenet1k-{variant}.yaml"))
    assert (a.model, a.hidden_dropout_prob) == (variant, dropout)
    assert (a.num_train_epochs, a.image_size, 8 * a.per_device_train_batch_size) == (300, 256, 1024)
    schedule = Schedule(a.learning_rate, a.min_lr_rate, a.warmup_steps, a.warmup_lr_rate)
    assert schedule(0, 0.0) == pytest.approx(2e-4)
    assert schedule(1500, 0.0) == pytest.approx(1.1e-3)
    assert schedule(3000, 0.0) == pytest.approx(2e-3)
    assert schedule(200_000, 0.5) == pytest.approx(1.1e-3)
    assert schedule(375_300, 1.0) == pytest.approx(2e-4)
    assert (a.weight_decay, a.decay_norms_and_biases, a.label_smoothing_factor) == (0.01, True, 0.1)
    assert (1 - a.ema_decay, a.ema_warmup) == (pytest.approx(5e-4), False)
    assert (a.multi_scale, a.horizontal_flip, a.vertical_flip) == ("on", 0.5, 0.0)
    assert (a.rand_augment, a.random_erasing, a.mixup, a.cutmix, a.class_weights) == (None, 0.0, 0.0, 0.0, "none")
    assert 300 * a.eval_steps == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("variant", "name", "dropout"), [("s", "", 0.1), ("xs", "x-", 0.1), ("xxs", "xx-", 0.05)])
def test_the_coco_recipes_are_the_papers(variant, name, dropout):
    """Section 4.2: 320x320, 200 epochs, 128 images a step, 9e-4."""
    a = TrainArguments(**read_recipe(SCRIPTS / "recipes" / f"coco-{variant}.yaml"))
    assert (a.model, a.hidden_dropout_prob, a.anchors) == (f"apple/mobilevit-{name}small", dropout, "paper")
    assert (a.num_train_epochs, a.image_size, a.per_device_train_batch_size) == (200, 320, 128)
    schedule = Schedule(a.learning_rate, a.min_lr_rate, a.warmup_steps, a.warmup_lr_rate)
    assert schedule(500, 0.0) == pytest.approx(9e-4)
    assert schedule(200_000, 1.0) < 2e-6
    assert (a.weight_decay, 1 - a.ema_decay, a.ema_warmup) == (0.01, pytest.approx(5e-4), False)
    assert (a.multi_scale, a.horizontal_flip, a.color_jitter, a.zoom_out, a.crop) == ("off", 0.5, 1.0, 0.5, 1.0)


# --- every option trains ---------------------------------------------------------------------------------------------


BOTH, CLASSIFIER, DETECTOR = tuple(SCRIPT_OF), ("image-classification",), ("object-detection",)


@pytest.mark.parametrize(
    ("words", "tasks"),
    [
        (("--gradient-checkpointing",), BOTH),
        (("--bf16",), BOTH),
        (("--freeze-backbone",), BOTH),
        (("--class-weights", "balanced", "--mixup", "0.2", "--cutmix", "1"), CLASSIFIER),
        (("--rand-augment", "9", "--random-erasing", "0.5", "--vertical-flip", "0.5"), CLASSIFIER),
        (("--multi-scale", "on", "--per-device-train-batch-size", "8"), BOTH),
        (("--multi-scale", "off", "--gradient-accumulation-steps", "2", "--max-grad-norm", "0"), BOTH),
        (("--anchors", "paper", "--color-jitter", "0", "--zoom-out", "0", "--crop", "0"), DETECTOR),
        (("--ema-decay", "0", "--no-decay-norms-and-biases", "--hidden-dropout-prob", "0.3"), BOTH),
        pytest.param(("--compile",), BOTH, marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0].strip("-") if value[0][0] == "-" else "",
)
def test_an_option_trains(words, tasks, small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path):
    for task in tasks:
        folder = tmp_path / task
        code, _, err = mobilevit(
            "train",
            small_datasets[task],
            "--model",
            initial_checkpoint,
            "--output-dir",
            folder,
            *SMALL,
            "--eval-steps",
            2,
            *words,
        )
        assert code == 0, err
        lines = read_metrics(folder)
        assert [line["step"] for line in lines] == [2, 2]
        assert math.isfinite(lines[0]["loss"])
        found = read_arguments(folder)
        for flag, value in zip(words, (*words[1:], "--"), strict=True):
            name = flag.lstrip("-").replace("-", "_")
            if flag.startswith("--") and not value.startswith("--"):
                assert str(found[name]).removesuffix(".0") == value
            elif flag.startswith("--"):
                assert found[name.removeprefix("no_")] is not name.startswith("no_")


def test_tensorboard_gets_what_metrics_jsonl_gets(small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path):
    words = (
        "--model",
        initial_checkpoint,
        "--output-dir",
        tmp_path / "run",
        *SMALL,
        "--max-steps",
        4,
        "--logging-steps",
        2,
    )
    code, _, err = mobilevit("train", small_datasets["image-classification"], *words, "--report-to", "tensorboard")
    assert code == 0, err
    found = {}
    for file in (tmp_path / "run").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found[name, event.step] = event.value
    lines = read_metrics(tmp_path / "run")
    expected = {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}
    assert {("loss", 4), ("eval_accuracy", 4), ("learning_rate", 2)} < expected.keys()
    assert found == pytest.approx(expected, rel=1e-6)
