"""Training loop: invalid losses, saved weights, early stopping and time limits."""

import math
import multiprocessing
import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_datasets import CLASSES
from training_runs import StepCallback, load_last_checkpoint, read_metrics, read_results
from transformers import AutoModelForImageClassification, MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.evaluation import EvaluationResult, evaluate_model
from mobilevit_hf.modeling.finite import check_finite_weights
from mobilevit_hf.training import checkpoint, state, tasks, trainer
from mobilevit_hf.training.callbacks import TrainerCallback
from mobilevit_hf.training.ema import EMA
from mobilevit_hf.training.signals import StoppedError
from mobilevit_hf.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")


# --- invalid losses --------------------------------------------------------------------------------------------------


@pytest.fixture
def nan_loss(monkeypatch):
    """NaN loss for batches with an entirely black image; a list of which batches had one."""
    batches = []
    original = tasks.ClassificationTask.loss_function

    def loss_function(*args):
        loss = original(*args)

        def nan_for_black(model, batch):
            batches.append(bool((batch["pixel_values"].flatten(1).amax(dim=1) == 0).any()))
            return loss(model, batch) * (math.nan if batches[-1] else 1)

        return nan_for_black

    monkeypatch.setattr(tasks.ClassificationTask, "loss_function", loss_function)
    return batches


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_invalid_loss_error_names_step_and_images(accumulation, nan_loss, make_arguments, uneven_datasets, tmp_path):
    shutil.copytree(uneven_datasets["image-classification"], tmp_path / "data")
    black = sorted((tmp_path / "data/train").rglob("*.png"))[7]
    Image.new("RGB", (96, 96)).save(black)
    options = {"data": str(tmp_path / "data"), "gradient_accumulation_steps": accumulation, "save_steps": 1, "seed": 3}
    with pytest.raises(ValueError) as error:
        train(make_arguments(tmp_path / "run", **options))

    number = nan_loss.index(True) + 1
    assert number > accumulation  # a step was completed before
    message = str(error.value)
    assert f"at step {-(-number // accumulation)}," in message
    names = re.search(r"on these images: (.*?\.png)\. ", message)[1].split(", ")
    assert len(names) == 4
    assert any(str(black).endswith(name) for name in names)
    assert "--learning-rate" in message
    assert "\n" not in message

    saved = load_last_checkpoint(tmp_path / "run")
    assert saved["state"]["step"] == (number - 1) // accumulation
    assert all(value.isfinite().all() for value in (*saved["model"].values(), *saved["ema"]["averages"].values()))


def test_too_high_learning_rate_raises_and_stops_workers(make_arguments, tmp_path):
    options = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0.0, "dataloader_num_workers": 1}
    with pytest.raises(ValueError, match=r"not finite at step [2-4], .*There is no checkpoint yet. Try a lower --l"):
        train(make_arguments(tmp_path / "run", **options))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("name", ["mobilevit.conv_stem.normalization.running_var", "classifier.weight"])
def test_weights_that_are_not_finite_raise_and_the_best_are_kept(name, make_arguments, monkeypatch, tmp_path):
    """The loss of a step does not depend on running statistics, and not yet on the weights that it updates."""
    update, folder = EMA.update, tmp_path / "run"

    def damage(ema):
        update(ema)
        if ema.num_updates == 4:
            ema._current[name].view(-1)[0] = math.inf
            ema._averages[name].view(-1)[0] = math.inf

    monkeypatch.setattr(EMA, "update", damage)
    with pytest.raises(ValueError, match=r"not finite after step 4: .*checkpoints and the best weights, of step 2,"):
        train(make_arguments(folder, eval_steps=2, save_steps=2, logging_steps=100))
    assert [path.name for path in checkpoint.find_checkpoints(folder)] == ["step-00000002.pt"]
    check_finite_weights(AutoModelForImageClassification.from_pretrained(folder), "saved")
    assert not (folder / "results.json").exists()


def test_metric_that_is_not_finite_raises(set_evaluations, make_arguments, tmp_path):
    set_evaluations(0.5, math.nan)
    with pytest.raises(ValueError, match=r"accuracy is nan at step 4.*best weights, of step 2"):
        train(make_arguments(tmp_path / "run", eval_steps=2))
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run")


# --- saved weights ---------------------------------------------------------------------------------------------------


@pytest.fixture
def set_evaluations(monkeypatch):
    """Function that sets the metric values of successive evaluations."""

    def set_values(*values, metric="accuracy"):
        results = iter(values)

        def evaluate(*args, resamples, **kwargs):
            # The saved weights are evaluated once more at the end if they are not the last.
            return EvaluationResult(
                task="image-classification",
                metrics={"accuracy": 0.0, "macro_f1": 0.0, metric: next(results, max(values))},
                intervals={metric: (0.0, 1.0)} if resamples else {},
                best_threshold=None,
                images_per_second=1.0,
                num_images=6,
                confusion=np.eye(2, dtype=np.int64),
            )

        monkeypatch.setattr(trainer, "evaluate_model", evaluate)

    return set_values


def saved_step(folder):
    """Return the step of the checkpoint whose averaged weights are the saved ones."""
    saved = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    states = map(checkpoint.load_checkpoint, checkpoint.find_checkpoints(folder))
    steps = [
        state["state"]["step"]
        for state in states
        if all(torch.equal(value, saved[name]) for name, value in state["ema"]["averages"].items())
    ]
    return steps[0] if len(steps) == 1 else steps


@pytest.mark.parametrize(
    ("values", "best"), [((0.5, 0.7, 0.6, 0.65), 4), ((0.5, 0.7, 0.7, 0.6), 6), ((0.0, 0.0, 0.0, 0.0), 8)]
)
@pytest.mark.parametrize("metric", [pytest.param("accuracy", marks=pytest.mark.slow), "macro_f1"])
def test_best_weights_are_saved_and_the_latest_of_equals(
    metric, values, best, set_evaluations, make_arguments, tmp_path
):
    set_evaluations(*values, metric=metric)
    options = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 9, "metric_for_best_model": metric}
    result = train(make_arguments(tmp_path / "run", max_steps=8, **options))
    assert result.best == max(values)
    assert (result.metric, saved_step(tmp_path / "run")) == (metric, best)
    assert [line[f"eval_{metric}"] for line in result.history if f"eval_{metric}" in line] == list(values)


def test_saved_weights_have_the_logged_metrics(make_arguments, uneven_datasets, uninterrupted_run):
    model = AutoModelForImageClassification.from_pretrained(uninterrupted_run)
    processor = MobileViTImageProcessor.from_pretrained(uninterrupted_run)
    samples = load_dataset(str(uneven_datasets["image-classification"])).splits["validation"]
    measured = evaluate_model(model, processor, samples, CLASSES, resamples=0).metrics
    evaluations = [line for line in read_metrics(uninterrupted_run) if "eval_accuracy" in line]
    best = max(evaluations, key=lambda line: (line["eval_accuracy"], line["step"]))
    assert [line["step"] for line in evaluations] == [5, 10, 12]
    assert measured["accuracy"] == best["eval_accuracy"]
    assert measured["macro_f1"] == pytest.approx(best["eval_macro_f1"])
    assert read_results(uninterrupted_run)["metrics"]["accuracy"] == measured["accuracy"]


def test_early_stopping(set_evaluations, make_arguments, tmp_path):
    set_evaluations(0.5, 0.6, 0.5, 0.6, 0.55, 0.59)
    callback = StepCallback()
    options = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 9, "max_steps": 100, "early_stopping_patience": 2}
    result = train(make_arguments(tmp_path / "run", **options), callback)
    assert (result.steps, result.best, saved_step(tmp_path / "run")) == (12, 0.6, 8)  # the second 0.6 counts as better
    assert any("Stopped early" in text for text in callback.messages)
    with pytest.raises(ValueError, match=r"is complete \(12 steps\).*--early-stopping-patience"):
        train(make_arguments(tmp_path / "run", resume="auto", **options))


@pytest.mark.parametrize(("limit", "kept"), [(1, [12]), (3, [6, 9, 12]), (9, [3, 6, 9, 12])])
def test_save_total_limit(limit, kept, set_evaluations, make_arguments, tmp_path):
    set_evaluations(0.5, 0.5, 0.5)
    train(make_arguments(tmp_path / "run", save_total_limit=limit))
    names = [path.name for path in checkpoint.find_checkpoints(tmp_path / "run")]
    assert names == [f"step-{step:08}.pt" for step in kept]


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_frozen_backbone_is_unchanged(task, make_arguments, dropout_checkpoint, tmp_path):
    train(make_arguments(tmp_path / "run", task, freeze_backbone=True, max_steps=3))
    before = mobilevit_hf.MobileViTForImageClassification.from_pretrained(dropout_checkpoint).state_dict()
    saved = load_last_checkpoint(tmp_path / "run")
    for weights in (saved["model"], saved["ema"]["averages"]):
        same = {
            name.removeprefix("backbone."): torch.equal(value, before["mobilevit." + name.partition(".")[2]])
            for name, value in weights.items()
            if name.startswith(("mobilevit.", "backbone."))
        }
        assert len(same) > 200
        assert all(same.values())
    if task == "image-classification":
        assert not torch.equal(saved["model"]["classifier.weight"], before["classifier.weight"])


# --- time limit ------------------------------------------------------------------------------------------------------


class Clock:
    """Clock that is advanced by hand."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class OneSecondPerStep(TrainerCallback):
    """Advances the clock by a second after each step."""

    def __init__(self, clock):
        self.clock = clock

    def on_progress(self, progress):
        self.clock.advance(1)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (trainer, state):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.mark.parametrize("evaluation_seconds", [0, 3])
def test_time_limit_is_met(evaluation_seconds, clock, set_evaluations, make_arguments, tmp_path):
    set_evaluations(*10 * [0.5])
    evaluate = trainer.evaluate_model

    def evaluate_slowly(*args, **kwargs):
        clock.advance(evaluation_seconds)
        return evaluate(*args, **kwargs)

    trainer.evaluate_model = evaluate_slowly
    options = {"max_steps": None, "max_minutes": 0.5, "eval_steps": 0.3, "logging_steps": 1, "max_grad_norm": 0.1}
    result = train(make_arguments(tmp_path / "run", **options), OneSecondPerStep(clock))
    lines = [line for line in result.history if "learning_rate" in line]
    assert lines[-1]["progress"] == 1
    assert lines[-1]["learning_rate"] < 0.1 * 0.01 < max(line["learning_rate"] for line in lines)
    assert 20 <= result.seconds <= 30  # a few are reserved for the reports
    progress = [line["progress"] for line in lines]
    assert progress == sorted(progress)
    assert "eval_accuracy" in result.history[-1]


def test_time_before_an_interruption_counts_towards_the_limit(clock, set_evaluations, make_arguments, tmp_path):
    set_evaluations(*10 * [0.5])
    options = {"max_steps": None, "max_minutes": 0.4}
    callback = OneSecondPerStep(clock)

    def stop(progress):
        clock.advance(1)
        if progress.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    callback.on_progress = stop
    with pytest.raises(StoppedError):
        train(make_arguments(tmp_path / "run", **options), callback)
    clock.advance(100)  # between the runs
    result = train(make_arguments(tmp_path / "run", resume="auto", **options), OneSecondPerStep(clock))
    assert 18 <= result.steps <= 24
    assert result.seconds <= 24
