"""Options of `mobilevit train`: parsing, precedence over recipes, errors, and a short run with each."""

import dataclasses
import io
import json
import math
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import constants
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import SCRIPT_OF, SCRIPTS, SHORT, SMALL, list_files, only_line, read_arguments, read_metrics

from mobilevit_hf.cli import console
from mobilevit_hf.cli.train import ProgressBar
from mobilevit_hf.training import trainer
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.callbacks import TrainingProgress
from mobilevit_hf.training.output_dir import OutputDirInUseError


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Unreachable Hub with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def flag_of(name):
    return "--" + name.replace("_", "-")


# --- parsing ---------------------------------------------------------------------------------------------------------


def test_each_field_has_a_flag(mobilevit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = mobilevit("train", "--help")
    assert (code, err) == (0, "")
    flags = set(re.findall(r"--[a-z0-9][a-z0-9-]*", out))
    names = {field.name for field in dataclasses.fields(TrainArguments)} - {"data"}
    assert {flag_of(name) for name in names} < flags
    assert "--data" not in flags
    assert "--recipe" in flags


def test_each_flag_sets_its_field(mobilevit, training_calls):
    """All flags at once, each with a value other than its default."""
    special = {"resume": "auto", "data_format": "folders", "metric_for_best_model": "macro_f1", "license": "other"}
    special |= {"rand_augment": 9, "output_stride": 8}
    omitted = {"data", "fp16", "num_train_epochs"}  # the last two exclude others
    words, expected = [], {}
    for field in dataclasses.fields(TrainArguments):
        if field.name in omitted:
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
            value = special.get(field.name, 40 if "int" in str(field.type) else 0.125)
        expected[field.name] = value
        words += [flag_of(field.name), value]
    code, _, err = mobilevit("train", "images", *words)
    assert code == 0, err
    for word, name, value in (("--fp16", "fp16", True), ("--num-train-epochs=1.5", "num_train_epochs", 1.5)):
        assert mobilevit("train", "images", word)[0] == 0
        assert getattr(training_calls[-1], name) == value
    arguments = dataclasses.asdict(training_calls[0])
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["data"] == "images"


def test_flags_override_the_recipe_and_the_recipe_the_defaults(
    small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path
):
    recipe, path = {"seed": 3, "weight_decay": 0.5, "horizontal_flip": 0.0}, tmp_path / "recipe.yaml"
    overridden = {"learning_rate": 5e-4, "max_steps": 9, "ema_warmup": False}
    path.write_text(yaml.safe_dump(recipe | overridden | {"min_lr_rate": "1e-3"}))
    words = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run", "--recipe", path, *SMALL)
    data = small_datasets["image-classification"]
    code, _, err = mobilevit("train", data, *words, "--learning-rate", 2e-3, "--ema-warmup")
    assert code == 0, err
    arguments = read_arguments(tmp_path / "run")
    flags = {"learning_rate": 2e-3, "max_steps": 2, "ema_warmup": True, "image_size": 64, "use_cpu": True}
    defaults = {"adam_beta2": 0.999, "label_smoothing_factor": 0.1, "hidden_dropout_prob": 0.0, "crop_scale": 0.35}
    expected = flags | recipe | {"min_lr_rate": 1e-3} | defaults
    expected |= {"task": "image-classification", "model": str(initial_checkpoint)}
    assert {name: arguments[name] for name in expected} == expected
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        ({"num_train_epochs": 300}, ("--max-steps", 2), {"num_train_epochs": None, "max_steps": 2}),
        ({"max_steps": 9}, ("--num-train-epochs", 2), {"num_train_epochs": 2.0, "max_steps": None}),
        ({"bf16": True}, ("--fp16",), {"bf16": False, "fp16": True}),
        ({"fp16": True}, ("--no-bf16",), {"bf16": False, "fp16": True}),
        ({"bf16": True}, ("--no-bf16",), {"bf16": False, "fp16": False}),
        ({"license": "other", "license_name": "a"}, ("--license", "mit"), {"license": "mit", "license_name": None}),
        (
            {"license": "other", "license_name": "a"},
            ("--license-name", "b"),
            {"license": "other", "license_name": "b"},
        ),
        ({"task": "object-detection"}, (), {"task": "object-detection"}),
    ],
)
@pytest.mark.parametrize("recipe_first", [True, False])
def test_flags_replace_what_they_exclude_in_the_recipe(
    recipe_first, recipe, words, expected, mobilevit, training_calls, tmp_path
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    parts = [("--recipe", path), words]
    code, _, err = mobilevit("train", *parts[not recipe_first], "images", *parts[recipe_first])
    assert code == 0, err
    assert {name: getattr(training_calls[0], name) for name in expected} == expected


# --- output directory ------------------------------------------------------------------------------------------------


def test_default_output_directory_is_named_after_the_dataset(mobilevit, training_calls, tmp_path):
    for data, existing, folder in (
        ("photos", (), "runs/photos"),
        ("photos/", ("runs/photos",), "runs/photos-2"),
        ("user/some data", ("runs/photos-2",), "runs/some-data"),
        ("photos", ("runs/photos-3",), "runs/photos-4"),
        (".", (), f"runs/{tmp_path.name}"),
        ("pets.v2.zip", (), "runs/pets.v2"),
        ("pets.tar.gz", (), "runs/pets"),
        ("pets.v3", ("pets.v3",), "runs/pets.v3"),
    ):
        if data.startswith("pets") and not existing:
            (tmp_path / data).touch()
        for path in existing:
            (tmp_path / path).mkdir(parents=True)
        assert mobilevit("train", data)[0] == 0
        assert training_calls[-1].output_dir == folder


def test_resume_uses_the_last_output_directory(training_calls, mobilevit, tmp_path):
    (tmp_path / "resume.yaml").write_text("resume: auto\noutput_dir:\n")
    for existing, words, expected in [
        ([], (), "runs/shapes"),
        ([], ("--resume", "auto"), "runs/shapes"),
        (["shapes"], (), "runs/shapes-2"),
        (["shapes"], ("--resume", "auto"), "runs/shapes"),
        (["shapes", "shapes-2"], ("--resume", "auto"), "runs/shapes-2"),
        (["shapes", "shapes-2"], ("--resume",), "runs/shapes-2"),
        (["shapes", "shapes-2"], ("--recipe", "resume.yaml"), "runs/shapes-2"),
        (["shapes", "shapes-2"], ("--resume", "auto", "--output-dir", "mine"), "mine"),
    ]:
        for name in existing:
            (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
        assert mobilevit("train", "shapes", *words)[0] == 0
        assert training_calls[-1].output_dir == expected


def test_trainings_that_start_at_once_use_different_directories(mobilevit, training_calls, monkeypatch):
    train = trainer.train

    def train_after_another(arguments, callback):
        if not training_calls:
            Path(arguments.output_dir).mkdir(parents=True)
            training_calls.append(None)
            raise OutputDirInUseError("output_dir: in use")
        return train(arguments, callback)

    monkeypatch.setattr(trainer, "train", train_after_another)
    code, out, err = mobilevit("train", "images")
    assert code == 0, err
    assert out.strip() == str(Path("runs/images-2"))


def test_several_processes_require_an_output_directory(mobilevit, training_calls, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = mobilevit("train", "photos")
    assert code == 2
    assert "--output-dir" in only_line(err)
    assert mobilevit("train", "photos", "--output-dir", "run")[0] == 0


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def working_dir(small_datasets, tmp_path, monkeypatch):
    """Working directory with datasets and invalid recipes."""
    monkeypatch.chdir(tmp_path)
    for name, folder in zip(("shapes", "boxes", "masks"), small_datasets.values(), strict=True):
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
        (("shapes", "--recipe", "broken.yaml"), ("broken.yaml: got invalid YAML in line 2",)),
        (("shapes", "--recipe", "bytes.yaml"), ("bytes.yaml: got invalid YAML",)),
        (("shapes", "--recipe", "list.yaml"), ("list.yaml", "list", "name: value")),
        (("shapes", "--recipe", "wrong.yaml"), ("seed", "'many'", "int")),
        (("shapes", "--recipe", "missing.yaml"), ("missing.yaml", "No such file")),
        (("shapes", "--recipe", "empty"), ("empty", "Is a directory")),
        (("shapes", "--learning-rate", "-1"), ("--learning-rate: ", "-1", "more than 0")),
        (("shapes", "--multi-scale", "maybe"), ("--multi-scale: ", "'maybe'", "off, progressive, on")),
        (("shapes", "--label-smoothing-factor", "1"), ("--label-smoothing-factor: ", "below 1")),
        (
            ("shapes", "--max-steps", "2", "--num-train-epochs", "1"),
            ("--max-steps: ", "together with --num-train-epochs"),
        ),
        (("shapes", "--bf16", "--fp16"), ("--fp16: ", "together with bf16")),
        (("shapes", "--fp16"), ("fp16", "GPU")),
        (("shapes", "--metric-for-best-model", "map"), ("'map'", "accuracy")),
        (("shapes", "--zoom-out", "0.5"), ("--zoom-out: ", "object-detection")),
        (("boxes", "--mixup", "0.2"), ("--mixup: ", "image-classification")),
        (("nowhere",), ("nowhere",)),
        (("empty",), ("empty",)),
        (("shapes", "--data-format", "coco"), ("shapes",)),
        (("shapes", "--data-format", "crayon"), ("crayon", "coco")),
        (("shapes", "--report-to", "wandb"), ("wandb", "[trackers]")),
        (("shapes", "--report-to", "trackio"), ("trackio", "[trackers]")),
        (("shapes", "--report-to", "paper"), ("--report-to: ", "tensorboard")),
        (("shapes", "--resume", "always"), ("always",)),
        (("shapes", "--model", "user/nothing"), ("user/nothing",)),
        (("shapes", "--model", "boxes"), ("boxes", "config.json")),
    ],
)
def test_error_is_one_line_and_nothing_is_written(words, expected, mobilevit, working_dir, no_hub):
    before = list_files(working_dir)
    code, out, err = mobilevit("train", *words)
    assert (code, out) == (2, "")
    from_scratch = "note: Training xxs from scratch"  # the first line without --model
    line = only_line("\n".join(line for line in err.splitlines() if not line.startswith(from_scratch)))
    assert line.startswith("error: ")
    for part in expected:
        assert part in line
    assert list_files(working_dir) == before


def test_invalid_value_raises_before_torch_is_imported(run_python):
    code = """
        import sys
        from mobilevit_hf import cli

        sys.argv = ["mobilevit", "train", "shapes", "--rand-augment", "99"]
        try:
            cli.main()
        except SystemExit as end:
            print(end.code, "torch" in sys.modules)
        """
    assert run_python(code).split() == ["2", "False"]


@pytest.mark.parametrize(
    ("script", "dataset", "expected"),
    [
        ("train_classification.py", "boxes", ("folders that are not named after classes", "for a classifier")),
        ("train_detection.py", "shapes", ("object-detection", "image-classification")),
        ("train_segmentation.py", "shapes", ("33 images without", "COCO JSON or YOLO labels with polygons")),
    ],
)
def test_script_rejects_data_of_the_other_task(script, dataset, expected, working_dir, no_hub, monkeypatch, capfd):
    before = list_files(working_dir)
    monkeypatch.setattr("mobilevit_hf.cli.train.tune_allocator", lambda: True)
    monkeypatch.setattr(sys, "argv", [script, dataset, "--model", "xxs"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    line = only_line(capfd.readouterr().err)
    assert end.value.code == 2
    for part in expected:
        assert part in line
    assert dataset in line
    assert list_files(working_dir) == before


# --- initial checkpoint ----------------------------------------------------------------------------------------------


def test_without_hub_it_trains_from_scratch(small_datasets, mobilevit, no_plots, no_hub, tmp_path):
    words = ("--output-dir", tmp_path / "run", *SHORT, "--max-steps", 1)
    code, _, err = mobilevit("train", small_datasets["image-classification"], *words)
    assert code == 0
    first, *others = err.splitlines()
    assert first.startswith("note: Training xxs from scratch")
    assert "apple/mobilevit-xx-small" in first
    assert not any("from scratch" in line for line in others)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["hidden_sizes"] == [64, 80, 96]
    assert config["image_size"] == 96  # the images are smaller than the model's 256


@pytest.mark.parametrize("task", list(SCRIPT_OF))
def test_other_models_are_rejected(task, small_datasets, mobilevit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "nothing").mkdir()
    for model, expected in (("bert", ("type bert", "mobilevit")), ("nothing", ("config.json",))):
        code, out, err = mobilevit("train", small_datasets[task], "--model", tmp_path / model, *SMALL)
        assert (code, out) == (2, "")
        line = only_line(err)
        assert str(tmp_path / model) in line
        assert all(part in line for part in expected)
    assert not (tmp_path / "runs").exists()


def test_detector_starts_from_the_backbone_of_a_segmentation_model(
    small_datasets, checkpoints, mobilevit, no_plots, tmp_path
):
    words = ("--model", checkpoints["image-segmentation"], "--output-dir", tmp_path / "run", *SMALL)
    code, _, err = mobilevit("train", small_datasets["object-detection"], *words)
    assert code == 0, err
    assert "recommended_threshold" in json.loads((tmp_path / "run/config.json").read_text())


# --- short runs ------------------------------------------------------------------------------------------------------


ALL, CLASSIFIER, DETECTOR = tuple(SCRIPT_OF), ("image-classification",), ("object-detection",)
SEGMENTER = ("image-segmentation",)


@pytest.mark.parametrize(
    ("words", "tasks"),
    [
        (("--gradient-checkpointing",), ALL),
        (("--bf16",), ALL),
        (("--freeze-backbone",), ALL),
        (("--class-weights", "balanced", "--mixup", "0.2", "--cutmix", "1"), CLASSIFIER),
        (("--rand-augment", "9", "--random-erasing", "0.5", "--vertical-flip", "0.5"), CLASSIFIER),
        (("--multi-scale", "on", "--per-device-train-batch-size", "8"), ALL),
        (("--multi-scale", "off", "--gradient-accumulation-steps", "2", "--max-grad-norm", "0"), ALL),
        (("--anchors", "paper", "--color-jitter", "0", "--zoom-out", "0", "--crop", "0"), DETECTOR),
        (("--dice-weight", "0.5", "--focal-gamma", "2", "--class-weights", "balanced"), SEGMENTER),
        (
            ("--output-stride", "32", "--min-scale", "1", "--max-scale", "1.5", "--label-smoothing-factor", "0.1"),
            SEGMENTER,
        ),
        (("--per-device-train-batch-size", "1"), SEGMENTER),
        (("--ema-decay", "0", "--no-decay-norms-and-biases", "--hidden-dropout-prob", "0.3"), ALL),
        pytest.param(("--compile",), ALL, marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0].strip("-") if value[0][0] == "-" else "",
)
def test_option_trains(words, tasks, small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path):
    for task in tasks:
        folder = tmp_path / task
        paths = ("--model", initial_checkpoint, "--output-dir", folder)
        code, _, err = mobilevit("train", small_datasets[task], *paths, *SMALL, "--eval-steps", 2, *words)
        assert code == 0, err
        lines = read_metrics(folder)
        assert [line["step"] for line in lines] == [2, 2]
        assert math.isfinite(lines[0]["loss"])
        arguments = read_arguments(folder)
        for flag, value in zip(words, (*words[1:], "--"), strict=True):
            name = flag.lstrip("-").replace("-", "_")
            if flag.startswith("--") and not value.startswith("--"):
                assert str(arguments[name]).removesuffix(".0") == value
            elif flag.startswith("--"):
                assert arguments[name.removeprefix("no_")] is not name.startswith("no_")


def test_tensorboard_receives_the_metrics(small_datasets, initial_checkpoint, mobilevit, no_plots, tmp_path):
    words = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run", *SMALL)
    words = (*words, "--max-steps", 4, "--logging-steps", 2, "--report-to", "tensorboard")
    code, _, err = mobilevit("train", small_datasets["image-classification"], *words)
    assert code == 0, err
    logged = {}
    for file in (tmp_path / "run").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                logged[name, event.step] = event.value
    lines = read_metrics(tmp_path / "run")
    expected = {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}
    assert {("loss", 4), ("eval_accuracy", 4), ("learning_rate", 2)} < expected.keys()
    assert logged == pytest.approx(expected, rel=1e-6)


# --- progress bar ----------------------------------------------------------------------------------------------------


def test_progress_bar_omits_the_loss_before_the_first_interval(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(console, "messages", terminal)
    with ProgressBar() as bar:
        bar.on_progress(TrainingProgress(0.1, 1, 0.1, float("nan"), 0.01, 0.0, 60.0))
        bar._bar.refresh()
        first = terminal.file.getvalue()
        bar.on_progress(TrainingProgress(0.2, 2, 0.2, 0.75, 0.01, 5.0, 60.0))
        bar._bar.refresh()
    assert "step 1, lr 0.01, 1:00 left" in first
    assert "step 2, loss 0.750, lr 0.01, 5 images/s, 1:00 left" in terminal.file.getvalue()


def test_redirected_log_has_a_line_every_few_percent(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mobilevit_hf.cli.train.time", SimpleNamespace(monotonic=lambda: clock[0]))
    log = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(console, "messages", log)

    def progress(step, steps):
        loss, speed = (float("nan"), 0.0) if step < 10 else (0.75, 5.0)
        return TrainingProgress(step / steps, step, 0.2, loss, 0.01, speed, 60.0)

    with ProgressBar() as bar:
        for step in range(1, 1001):
            bar.on_progress(progress(step, 1000))
    lines = log.file.getvalue().splitlines()
    assert 19 <= len(lines) <= 21
    assert lines[0] == "train: 1%, epoch 0.2, step 10, loss 0.750, lr 0.01, 5 images/s, 1:00 left"
    assert lines[-1].startswith("train: 100%, epoch 0.2, step 1000, ")

    log.file.truncate(0)
    with ProgressBar() as bar:
        for step in range(10, 40):  # 0.3% of the training in 40 minutes
            clock[0] += 80
            bar.on_progress(progress(step, 10_000))
    assert 7 <= len(log.file.getvalue().splitlines()) <= 9


def test_terminal_has_no_log_lines(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(console, "messages", terminal)
    with ProgressBar() as bar:
        bar.on_progress(TrainingProgress(0.5, 2, 0.2, 0.75, 0.01, 5.0, 60.0))
    assert "train:" not in terminal.file.getvalue()
