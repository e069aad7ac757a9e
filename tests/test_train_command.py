"""mobilevit train as a person uses it: pictures in, a model out that the other commands take, a line for a mistake."""

import dataclasses
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import PACKAGE_PARENT
from huggingface_hub import constants
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_data import CLASSES, draw_classification, draw_detection

import mobilevit_hf
from mobilevit_hf import cli
from mobilevit_hf.cli.launch import start_processes
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.evaluation import EvaluationResult
from mobilevit_hf.training import reports
from mobilevit_hf.training.arguments import TrainArguments, read_recipe
from mobilevit_hf.training.checkpoints import find_checkpoints, load_checkpoint
from mobilevit_hf.training.inputs import TrainingInputs
from mobilevit_hf.training.optimization import Schedule
from mobilevit_hf.training.reports import write_reports
from mobilevit_hf.training.starting import start_classifier, start_detector
from mobilevit_hf.training.status import TrainingResult
from mobilevit_hf.training.tasks import TASKS
from mobilevit_hf.visualization import plots

SCRIPTS = Path(__file__).parents[1] / "scripts"
SCRIPT_OF = {"image-classification": "train_classification.py", "object-detection": "train_detection.py"}
RECIPES = sorted((SCRIPTS / "recipes").glob("*.yaml"))
MODEL_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}
FILES = MODEL_FILES | {"metrics.jsonl", "recipe.yaml", "results.json", "run.json", "curves.png", "checkpoints"}
SHORT = ("--max-steps", 2, "--per-device-train-batch-size", 4, "--dataloader-num-workers", 0, "--use-cpu")
SMALL = (*SHORT, "--image-size", 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set for each task; the validation pictures don't come out even."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "image-classification": draw_classification(folder / "shapes", train=24, validation=9),
        "object-detection": draw_detection(folder / "boxes", train=12, validation=7),
    }


@pytest.fixture(scope="module", params=list(SCRIPT_OF))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def run(task, data, start, tmp_path_factory):
    """The folder of a training that an option or two made short."""
    folder = tmp_path_factory.mktemp("run") / task
    options = (*SMALL, "--max-steps", 12, "--eval-steps", 0.5, "--logging-steps", 4, "--learning-rate", 0.01)
    words = ("train", data[task], "--model", start, "--output-dir", folder, *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.train, "tune_allocator", lambda: True)
        cli.app(list(map(str, words)), standalone_mode=False)
    return folder


@pytest.fixture
def no_plots(monkeypatch):
    """Nothing is drawn at the end, which takes longer than a few steps."""
    monkeypatch.setattr(reports, "_draw", lambda *args: {})
    monkeypatch.setattr(plots, "save_plot", lambda figure, path: path.touch())


@pytest.fixture
def no_training(monkeypatch, tmp_path):
    """In an empty folder, without training: a list that gets the arguments of what would have been trained."""
    trained = []

    def note(arguments, listener):
        trained.append(arguments)
        return TrainingResult(Path(arguments.output_dir), "accuracy", 0.5, 1, 1.0)

    monkeypatch.setattr(cli.train, "run_training", note)
    monkeypatch.chdir(tmp_path)
    return trained


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def arguments_of(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def validation_pictures(folder):
    return sorted(path for name in ("val", "validation") for path in (folder / name).rglob("*.png"))


def flat(figures, prefix=""):
    """Nested figures as one dict."""
    found = {}
    for name, value in figures.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def only_line(text):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


# --- what is left ----------------------------------------------------------------------------------------------------


def test_the_folder_holds_all_there_is_to_know(task, run, data):
    figure = "confusion_matrix.png" if task == "image-classification" else "average_precision.png"
    code = {path.name for path in run.glob("*.py")}
    assert bool(code) == (task == "object-detection")
    assert {path.name for path in run.iterdir()} - code == FILES | {figure, "mistakes.png", "samples.png"}
    for path in run.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 50
            assert len(set(picture.convert("L").resize((64, 64)).getdata())) > 4, path.name

    lines = lines_of(run)
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [4, 8, 12]
    for line in losses:
        assert line.keys() == {
            *("step", "progress", "epoch", "loss", "learning_rate", "images_per_second", "seconds", "waiting_for_data")
        }
        assert all(math.isfinite(value) for value in line.values())
        assert line["progress"] == pytest.approx(line["step"] / 12)
        assert 0 <= line["waiting_for_data"] <= 1
        assert line["learning_rate"] <= 0.01
    per_epoch = -(-{"image-classification": 24, "object-detection": 12}[task] // 4)
    assert losses[-1]["epoch"] == pytest.approx(12 / per_epoch, abs=1e-3)

    metric = {"image-classification": "accuracy", "object-detection": "map"}[task]
    measured = [line for line in lines if "eval_" + metric in line]
    assert [line["step"] for line in measured] == [6, 12]
    results = results_of(run)
    assert (results["metric"], results["steps"], results["split"]) == (metric, 12, "validation")
    assert results["num_pictures"] == len(validation_pictures(data[task]))
    assert results["best"] == max(line["eval_" + metric] for line in measured) == results["metrics"][metric]
    assert 0 < results["best"] < 1


def test_its_recipe_makes_the_same_again(task, run, data, mobilevit, no_plots, tmp_path):
    words = ("train", data[task], "--recipe", run / "recipe.yaml", "--output-dir", tmp_path / "again")
    assert mobilevit(*words)[0] == 0
    assert arguments_of(tmp_path / "again") == arguments_of(run) | {"output_dir": str(tmp_path / "again")}
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert results_of(tmp_path / "again")["metrics"] == results_of(run)["metrics"]


def test_evaluate_says_what_the_training_said(task, run, data, mobilevit):
    code, out, _ = mobilevit("evaluate", run, data[task], "--json")
    assert code == 0
    measured, results = json.loads(out), results_of(run)
    assert (measured["split"], measured["num_pictures"]) == ("validation", results["num_pictures"])
    assert flat(measured["metrics"]) == pytest.approx(flat(results["metrics"]), abs=1e-6)
    if task == "object-detection":
        best = measured["best_threshold"]["value"]
        assert results["threshold"] == pytest.approx(best, abs=1e-5)
        assert json.loads((run / "config.json").read_text())["recommended_threshold"] == round(best, 3)


def test_predict_takes_it(task, run, data, mobilevit):
    files = validation_pictures(data[task])
    code, out, err = mobilevit("predict", *files, "--model", run, "--json")
    assert (code, err) == (0, "")
    answers = [json.loads(line)["predictions"] for line in out.splitlines()]
    if task == "image-classification":
        right = [answer[0]["label"] == file.parent.name for file, answer in zip(files, answers, strict=True)]
        assert np.mean(right) == results_of(run)["metrics"]["accuracy"]
        return
    _, out, _ = mobilevit("predict", *files, "--model", run, "--json", "--threshold", 0)
    every = [json.loads(line)["predictions"] for line in out.splitlines()]
    threshold = json.loads((run / "config.json").read_text())["recommended_threshold"]
    assert answers == [[found for found in each if found["score"] > threshold] for each in every]
    assert 0 < sum(map(len, answers)) < sum(map(len, every))


def test_a_detector_that_recommends_no_threshold_is_asked_for_one_half(run, data, mobilevit, tmp_path):
    if not (run / "average_precision.png").exists():
        pytest.skip("a classifier has no threshold")
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"recommended_threshold": None}))
    file = validation_pictures(data["object-detection"])[0]
    half = mobilevit("predict", "--json", file, "--model", run, "--threshold", 0.5)[1]
    assert mobilevit("predict", "--json", file, "--model", tmp_path / "run")[1] == half
    assert config["recommended_threshold"] != 0.5


def test_stock_transformers_runs_it(task, run, data, run_python):
    """Without this package; the code of a detector comes with it."""
    code = f"""
        import json, transformers
        predict = transformers.pipeline({task!r}, model={str(run)!r}, trust_remote_code={task == "object-detection"})
        options = {{"threshold": 0.05}} if {task == "object-detection"} else {{}}
        print(json.dumps([predict(file, **options) for file in {list(map(str, validation_pictures(data[task])))}]))
        """
    answers = json.loads(run_python(code, without_package=True).splitlines()[-1])
    files = validation_pictures(data[task])
    if task == "image-classification":
        right = [answer[0]["label"] == file.parent.name for file, answer in zip(files, answers, strict=True)]
        assert np.mean(right) == results_of(run)["metrics"]["accuracy"]
    else:
        ours = mobilevit_hf.pipeline(task, str(run))
        for file, answer in zip(files, answers, strict=True):
            expected = ours(str(file), threshold=0.05)
            assert [found["label"] for found in answer] == [found["label"] for found in expected]
            assert [found["score"] for found in answer] == pytest.approx([f["score"] for f in expected], abs=1e-5)
        assert any(answers)
        assert {found["label"] for answer in answers for found in answer} <= set(CLASSES)


def test_without_mistakes_there_is_no_picture_of_them(tmp_path):
    metrics = {"accuracy": 1.0, "macro_f1": 1.0, "per_class": {}}
    evaluation = EvaluationResult("image-classification", metrics, {}, None, 9.0, 8, confusion=np.diag([4, 4]))
    written = write_reports(TrainingResult(tmp_path, "accuracy", 1.0, 9, 60.0, evaluation), [], ["dark", "light"])
    assert set(written) == set(tmp_path.iterdir()) == {tmp_path / "results.json", tmp_path / "confusion_matrix.png"}


def test_folders_without_splits(data, start, mobilevit, no_plots, tmp_path, monkeypatch):
    """What was cut off for validation is what is measured later; a folder of its own for each training."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data["image-classification"] / "train", tmp_path / "My shapes!")
    for folder in ("runs/My-shapes", "runs/My-shapes-2"):
        code, out, err = mobilevit("train", "My shapes!", "--model", start, *SMALL)
        assert code == 0
        assert out.split() == [folder]
        assert "no validation split" in err
        assert {path.name for path in (tmp_path / folder).iterdir()} > FILES
    results = results_of(tmp_path / folder)
    code, out, _ = mobilevit("evaluate", folder, "My shapes!", "--json")
    measured = json.loads(out)
    assert results["num_pictures"] == measured["num_pictures"] < 6
    assert results["metrics"]["per_class"] == measured["metrics"]["per_class"]


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


def test_each_flag_arrives(mobilevit, no_training):
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
    code, _, err = mobilevit("train", "pictures", *words)
    assert code == 0, err
    for word, name, value in (("--fp16", "fp16", True), ("--num-train-epochs=1.5", "num_train_epochs", 1.5)):
        assert mobilevit("train", "pictures", word)[0] == 0
        assert getattr(no_training[-1], name) == value
    found = dataclasses.asdict(no_training[0])
    assert {name: found[name] for name in expected} == expected
    assert found["data"] == "pictures"


def test_flags_win_over_the_recipe_and_that_over_the_defaults(data, start, mobilevit, no_plots, tmp_path):
    recipe = {"learning_rate": 5e-4, "seed": 3, "max_steps": 9, "weight_decay": 0.5, "horizontal_flip": 0.0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"ema_warmup": False, "min_lr_rate": "1e-3"}))
    words = (*SMALL, "--model", start, "--learning-rate", 2e-3, "--ema-warmup", "--output-dir", tmp_path / "run")
    code, _, err = mobilevit("train", data["image-classification"], "--recipe", tmp_path / "recipe.yaml", *words)
    assert code == 0, err
    found = arguments_of(tmp_path / "run")
    given = {"learning_rate": 2e-3, "max_steps": 2, "ema_warmup": True, "image_size": 64, "use_cpu": True}
    said = {"seed": 3, "weight_decay": 0.5, "horizontal_flip": 0.0, "min_lr_rate": 1e-3}
    defaults = {"adam_beta2": 0.999, "label_smoothing_factor": 0.1, "hidden_dropout_prob": 0.0, "crop_scale": 0.35}
    expected = given | said | defaults | {"task": "image-classification", "model": str(start)}
    assert {name: found[name] for name in expected} == expected
    assert lines_of(tmp_path / "run")[-1]["step"] == 2


def test_a_folder_for_each_training(mobilevit, no_training, tmp_path):
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
        assert no_training[-1].output_dir == folder


def test_several_processes_want_to_be_told_a_folder(mobilevit, no_training, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = mobilevit("train", "photos")
    assert code == 2
    assert "--output-dir" in only_line(err)
    assert mobilevit("train", "photos", "--output-dir", "run")[0] == 0


@pytest.fixture
def files(data, tmp_path, monkeypatch):
    """The current folder, with data sets and recipes that can't be used."""
    monkeypatch.chdir(tmp_path)
    for name, folder in zip(("shapes", "boxes"), data.values(), strict=True):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unknown.yaml").write_text("learning_rate: 1.0e-3\nlearning_speed: 3\n")
    (tmp_path / "broken.yaml").write_text("learning_rate: [1, 2\nseed: 3")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "wrong.yaml").write_text("seed: many\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00seed")
    return tmp_path


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


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
    before = listing(files)
    code, out, err = mobilevit("train", *words)
    assert (code, out) == (2, "")
    line = only_line(err)
    assert line.startswith("error: ")
    for part in expected:
        assert part in line
    assert listing(files) == before


@pytest.mark.parametrize(
    ("script", "data_set"), [("train_classification.py", "boxes"), ("train_detection.py", "shapes")]
)
def test_a_script_wants_data_for_its_task(script, data_set, files, monkeypatch, capfd):
    before = listing(files)
    monkeypatch.setattr(cli.train, "tune_allocator", lambda: True)
    monkeypatch.setattr(sys, "argv", [script, data_set])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    line = only_line(capfd.readouterr().err)
    assert end.value.code == 2
    for task in SCRIPT_OF:
        assert task in line
    assert data_set in line
    assert listing(files) == before


# --- bad data --------------------------------------------------------------------------------------------------------


def test_a_corrupt_picture_is_named_and_left_out(start, data, mobilevit, no_plots, tmp_path):
    shutil.copytree(data["image-classification"], tmp_path / "data")
    corrupt = tmp_path / "data/train/circle/004.png"
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    words = (*SMALL, "--max-steps", 6, "--eval-steps", 6, "--model", start, "--output-dir", tmp_path / "run")
    code, _, err = mobilevit("train", tmp_path / "data", *words)
    assert code == 0
    named = [line for line in err.splitlines() if "004.png" in line]
    assert len(named) == 1
    assert lines_of(tmp_path / "run")[-1]["epoch"] == 1.0  # 23 pictures in 6 batches of 4
    assert results_of(tmp_path / "run")["num_pictures"] == 9


def test_too_many_bad_pictures_are_named_and_nothing_is_written(run, data, mobilevit, tmp_path):
    shutil.copytree(data["image-classification"], tmp_path / "data")
    corrupt = sorted((tmp_path / "data/train/circle").iterdir())[:3]
    for path in corrupt:
        path.write_bytes(path.read_bytes()[:300])
    shutil.copytree(run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for folder in ("new", "run"):
        words = ("--output-dir", tmp_path / folder, "--resume", "auto", *SMALL)
        code, out, err = mobilevit("train", tmp_path / "data", *words)
        assert (code, out) == (2, "")
        line = only_line(err)
        assert all(path.name in line for path in corrupt)
        assert "9.1%" in line
        assert "check-data" in line
    assert not (tmp_path / "new").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


# --- what it starts from ---------------------------------------------------------------------------------------------


def test_without_a_hub_it_starts_with_new_weights_and_says_so(data, mobilevit, no_plots, no_hub, tmp_path):
    words = ("--output-dir", tmp_path / "run", *SHORT, "--max-steps", 1)
    code, _, err = mobilevit("train", data["image-classification"], *words)
    assert code == 0
    told = [line for line in err.splitlines() if "apple/mobilevit-xx-small" in line]
    assert "new weights (xxs)" in only_line("\n".join(told))
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["hidden_sizes"] == [64, 80, 96]
    assert config["image_size"] == 96  # the pictures are smaller than the model's 256


@pytest.mark.parametrize("data_set", ["image-classification", "object-detection"])
def test_another_model_is_refused(data_set, data, mobilevit, tiny_fields, checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "nothing").mkdir()
    for model, words in (("bert", ("type bert", "mobilevit")), ("nothing", ("config.json",))):
        code, out, err = mobilevit("train", data[data_set], "--model", tmp_path / model, *SMALL)
        assert (code, out) == (2, "")
        line = only_line("\n".join(line for line in err.splitlines() if not line.startswith("note: ")))
        assert str(tmp_path / model) in line
        assert all(word in line for word in words)
    assert not (tmp_path / "runs").exists()


def test_the_backbone_of_a_segmentation_model_will_do(data, checkpoints, mobilevit, no_plots, tmp_path):
    words = ("--model", checkpoints["image-segmentation"], "--output-dir", tmp_path / "run", *SMALL)
    code, _, err = mobilevit("train", data["object-detection"], *words)
    assert code == 0, err
    assert "recommended_threshold" in json.loads((tmp_path / "run/config.json").read_text())


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [pytest.param(path, id=path.stem) for path in RECIPES])
def test_a_miniature_of_a_recipe(recipe, data, start, mobilevit, no_plots, tmp_path):
    task = "object-detection" if re.search("coco|detection|cells", recipe.stem) else "image-classification"
    said = yaml.safe_load(recipe.read_text())
    length = ("--num-train-epochs", 0.3) if "num_train_epochs" in said else ("--max-steps", 2)
    words = ("--model", start, "--output-dir", tmp_path / "run", "--eval-steps", 9, *length)
    small = ("--image-size", 64, "--per-device-train-batch-size", 4, "--dataloader-num-workers", 0, "--use-cpu")
    code, _, err = mobilevit("train", data[task], "--recipe", recipe, *words, *small)
    assert code == 0, err
    overridden = {"model", "image_size", "per_device_train_batch_size", "num_train_epochs", "max_steps", "eval_steps"}
    found = arguments_of(tmp_path / "run")
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
    """Section 4.1: 300 epochs, 1024 pictures a step on 8 GPUs, 2e-4 → 2e-3 in 3k steps, then a cosine to 2e-4."""
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
    """Section 4.2: 320x320, 200 epochs, 128 pictures a step, 9e-4."""
    a = TrainArguments(**read_recipe(SCRIPTS / "recipes" / f"coco-{variant}.yaml"))
    assert (a.model, a.hidden_dropout_prob, a.anchors) == (f"apple/mobilevit-{name}small", dropout, "paper")
    assert (a.num_train_epochs, a.image_size, a.per_device_train_batch_size) == (200, 320, 128)
    schedule = Schedule(a.learning_rate, a.min_lr_rate, a.warmup_steps, a.warmup_lr_rate)
    assert schedule(500, 0.0) == pytest.approx(9e-4)
    assert schedule(200_000, 1.0) < 2e-6
    assert (a.weight_decay, 1 - a.ema_decay, a.ema_warmup) == (0.01, pytest.approx(5e-4), False)
    assert (a.multi_scale, a.horizontal_flip, a.colour, a.zoom_out, a.crop) == ("off", 0.5, 1.0, 0.5, 1.0)


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
        (("--anchors", "paper", "--colour", "0", "--zoom-out", "0", "--crop", "0"), DETECTOR),
        (("--ema-decay", "0", "--no-decay-norms-and-biases", "--hidden-dropout-prob", "0.3"), BOTH),
        pytest.param(("--compile",), BOTH, marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0].strip("-") if value[0][0] == "-" else "",
)
def test_an_option_trains(words, tasks, data, start, mobilevit, no_plots, tmp_path):
    for task in tasks:
        folder = tmp_path / task
        code, _, err = mobilevit(
            "train", data[task], "--model", start, "--output-dir", folder, *SMALL, "--eval-steps", 2, *words
        )
        assert code == 0, err
        lines = lines_of(folder)
        assert [line["step"] for line in lines] == [2, 2]
        assert math.isfinite(lines[0]["loss"])
        found = arguments_of(folder)
        for flag, value in zip(words, (*words[1:], "--"), strict=True):
            name = flag.lstrip("-").replace("-", "_")
            if flag.startswith("--") and not value.startswith("--"):
                assert str(found[name]).removesuffix(".0") == value
            elif flag.startswith("--"):
                assert found[name.removeprefix("no_")] is not name.startswith("no_")


def test_without_validation(task, data, start, mobilevit, no_plots, tmp_path):
    """Nothing is measured, and the last weights are kept."""
    folder = tmp_path / "data"
    shutil.copytree(data[task], folder)
    shutil.rmtree(folder / ("val" if task == "object-detection" else "validation"))
    (folder / "annotations/instances_val.json").unlink(missing_ok=True)
    words = ("--model", start, "--output-dir", tmp_path / "run", *SMALL, "--validation-fraction", 0, "--ema-decay", 0)
    code, _, err = mobilevit("train", folder, *words)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".py"} == FILES
    assert results_of(tmp_path / "run")["best"] is None
    assert not [name for line in lines_of(tmp_path / "run") for name in line if name.startswith("eval_")]
    model = load_file(tmp_path / "run/model.safetensors")
    trained = load_checkpoint(find_checkpoints(tmp_path / "run")[-1])["model"]
    assert model.keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in model.items())


def test_tensorboard_gets_what_metrics_jsonl_gets(data, start, mobilevit, no_plots, tmp_path):
    words = ("--model", start, "--output-dir", tmp_path / "run", *SMALL, "--max-steps", 4, "--logging-steps", 2)
    code, _, err = mobilevit("train", data["image-classification"], *words, "--report-to", "tensorboard")
    assert code == 0, err
    found = {}
    for file in (tmp_path / "run").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found[name, event.step] = event.value
    lines = lines_of(tmp_path / "run")
    expected = {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}
    assert {("loss", 4), ("eval_accuracy", 4), ("learning_rate", 2)} < expected.keys()
    assert found == pytest.approx(expected, rel=1e-6)


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_scale", ["on", "progressive", "off"])
def test_all_processes_have_batches_of_one_size_and_pictures_of_their_own(task, multi_scale, data, start):
    options = {"data": str(data[task]), "model": str(start), "image_size": 128, "per_device_train_batch_size": 4}
    arguments = TrainArguments(**options, multi_scale=multi_scale, dataloader_num_workers=0).for_task(task)
    dataset = load_dataset(str(data[task]))
    begin = start_classifier if task == "image-classification" else start_detector
    parts = [
        TrainingInputs(
            arguments,
            TASKS[task](arguments, dataset),
            begin(arguments, dataset.classes, None),
            SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu")),
        )
        for rank in range(2)
    ]
    shapes, orders = set(), set()
    for epoch in range(4):
        names = []
        for batches in zip(*(part.epoch(epoch, 0, epoch / 4) for part in parts), strict=True):
            sizes = {tuple(batch["pixel_values"].shape) for _, batch in batches}
            assert len(sizes) == 1
            shapes |= sizes
            first, second = (part.names(draws) for part, (draws, _) in zip(parts, batches, strict=True))
            assert not set(first) & set(second)
            assert len(first) == len(second) == next(iter(sizes))[0]
            names += first + second
        assert set(names) == {sample.name for sample in dataset.splits["train"]}
        orders.add(tuple(names))
    assert len(orders) == 4
    sides = {shape[2] for shape in shapes}
    allowed = {"on": {96, 128, 160}, "progressive": {96, 128}, "off": {128}}[multi_scale]
    assert sides <= allowed
    assert len(sides) > 1 or multi_scale == "off"


@pytest.mark.parametrize(
    ("environment", "words", "number"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, ["--num_processes", "3", "s.py"], "3"),
        ({"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}, ["--cpu", "--num-processes=2", "s.py"], "2"),
        ({"ACCELERATE_USE_CPU": "True"}, ["--num_processes", "1", "s.py"], None),
        ({"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"}, ["--num_processes", "3", "s.py"], None),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "here", "WORLD_SIZE": "3"}, ["--num_processes", "3"], None),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "here", "PMI_SIZE": "3"}, ["--num_processes", "3"], None),
        ({}, [], None),
    ],
)
def test_a_launch_of_several_on_a_cpu_is_several(environment, words, number, monkeypatch):
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["accelerate", "launch", *words])
    monkeypatch.setattr(sys, "argv", ["s.py", "data"])
    start_processes()
    if number is None:
        assert not started
    else:
        assert started[0][started[0].index("--nproc-per-node") + 1] == number
        assert started[0][-2:] == ["s.py", "data"]


def test_a_launch_of_an_unknown_number_is_told(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["accelerate", "launch", "s.py"])
    with pytest.raises(ValueError, match=r"starts one process on a CPU.*torchrun --nproc-per-node 2"):
        start_processes()


@pytest.fixture(scope="module")
def run_script(tmp_path_factory):
    """A function that runs the script for a task, by one process or by several."""

    def run(task, *words, processes=None):
        folder = tmp_path_factory.mktemp("process")
        launcher = ("-m", "accelerate.commands.launch", "--cpu", "--main_process_port", 0)
        launcher = (*launcher, "--num_processes", processes) if processes else ()
        command = (*launcher, SCRIPTS / SCRIPT_OF[task], *words)
        process = subprocess.run(
            [sys.executable, *map(str, command)],
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
            | {"PYTHONPATH": str(PACKAGE_PARENT), "OMP_NUM_THREADS": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        assert "Traceback" not in process.stderr
        return process

    return run


@pytest.fixture(scope="module")
def launched(task, run, data, run_script, tmp_path_factory):
    """The folders of one training by one process and by two, where what is measured stays what it began with."""
    folder = tmp_path_factory.mktemp("launched")
    still = ("--ema-decay", 1 - 1e-12, "--no-ema-warmup")  # an average in which steps count for nothing
    words = (*SMALL, "--model", run, "--max-steps", 4, "--eval-steps", 2, "--save-steps", 1, "--save-total-limit", 9)
    for processes in (None, 2):
        to = folder / str(processes or 1)
        told = run_script(task, data[task], *words, *still, "--output-dir", to, processes=processes)
        assert told.stdout.split() == [str(to)]
        assert told.stderr.count("done: ") == 1
    return folder


@pytest.mark.slow
def test_two_processes_measure_what_one_does(task, run, data, launched, mobilevit):
    one, two = (
        [
            {name: value for name, value in line.items() if name.startswith("eval_")}
            for line in lines_of(launched / number)
            if "loss" not in line
        ]
        for number in ("1", "2")
    )
    assert len(one) == len(two) == 2
    measured = json.loads(mobilevit("evaluate", run, data[task], "--json")[1])["metrics"]
    for line in (*one, *two):
        assert line
        assert line == pytest.approx({name: measured[name.removeprefix("eval_")] for name in line}, abs=1e-6)
    batches = {"image-classification": 24, "object-detection": 12}[task] // 4
    epochs = [[line["epoch"] for line in lines_of(launched / n)][-1] for n in ("1", "2")]
    assert epochs == pytest.approx([4 / batches, 4 / -(-batches // 2)], abs=0.26)


@pytest.mark.slow
def test_two_processes_go_on_where_they_were_killed(task, launched, data, run_script, tmp_path):
    """What a kill after the second step leaves: its checkpoint, and the model measured then."""
    whole, killed = launched / "2", tmp_path / "run"
    shutil.copytree(whole, killed)
    for path in (*find_checkpoints(killed)[2:], *killed.glob("*.png"), killed / "results.json"):
        path.unlink()
    words = ("--recipe", whole / "recipe.yaml", "--output-dir", killed, "--resume", "auto")
    told = run_script(task, data[task], *words, processes=2)
    assert "Going on from step 2" in told.stderr
    for name in MODEL_FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    before, after = (load_checkpoint(find_checkpoints(folder)[-1]) for folder in (whole, killed))
    assert before["state"]["step"] == after["state"]["step"] == 4
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    moments = [state["optimizer"]["state"] for state in (before, after)]
    assert all(torch.equal(value["exp_avg"], moments[1][place]["exp_avg"]) for place, value in moments[0].items())
    start = load_checkpoint(find_checkpoints(whole)[1])["model"]
    assert any(not torch.equal(value, start[name]) for name, value in after["model"].items())  # it did train


# --- and it learns ---------------------------------------------------------------------------------------------------


def draw_shape(shape, seed, side=128):
    """A disc or a square of any size, place and colour on a background of any colour, with some noise."""
    chance = np.random.default_rng(seed)
    ground = chance.integers(0, 256, 3)
    colour = ground
    while abs(colour - ground).sum() < 120:
        colour = chance.integers(0, 256, 3)
    picture = Image.new("RGB", (side, side), tuple(ground.tolist()))
    length = chance.uniform(0.3, 0.7) * side
    x, y = chance.uniform(0, side - length, 2)
    draw = ImageDraw.Draw(picture)
    draw_it = draw.ellipse if shape == "disc" else draw.rectangle
    draw_it((x, y, x + length, y + length), fill=tuple(colour.tolist()))
    noisy = np.asarray(picture) + chance.normal(0, 12, (side, side, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_a_folder_is_all_it_needs(run_python, tmp_path):
    """Discs and squares from 60 pictures each, without an option, a Hub or pretrained weights."""
    for place, shape in enumerate(("disc", "square")):
        for folder, count, seed in (("shapes", 60, 0), ("new", 50, 10_000)):
            (tmp_path / folder / shape).mkdir(parents=True)
            for i in range(count):
                draw_shape(shape, seed + 1000 * place + i).save(tmp_path / folder / shape / f"{i:03}.jpg")
    code = f"""
        import os
        from mobilevit_hf import cli

        os.chdir({str(tmp_path)!r})
        sys.argv = ["mobilevit", "train", "shapes"]
        cli.main()
        """
    assert run_python(code).split() == ["runs/shapes"]
    code = f"""
        import pathlib, transformers
        classify = transformers.pipeline("image-classification", model={str(tmp_path / "runs/shapes")!r})
        files = sorted(pathlib.Path({str(tmp_path / "new")!r}).glob("*/*.jpg"))
        print(len(files), sum(classify(str(file))[0]["label"] == file.parent.name for file in files))
        """
    count, right = map(int, run_python(code, without_package=True).split())
    assert count == 100
    assert right >= 95
