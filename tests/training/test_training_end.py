"""How a training ends: a loss that is no number, the weights that are kept, and what fits into its minutes."""

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
from training_data import CLASSES
from trainings import AtStep, lines_of, results_of, state_of
from transformers import AutoModelForImageClassification, MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.evaluation import EvaluationResult, evaluate_model
from mobilevit_hf.training import checkpoint, state, tasks, trainer
from mobilevit_hf.training.signals import StoppedError
from mobilevit_hf.training.state import Listener
from mobilevit_hf.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


# --- a loss that is no number ----------------------------------------------------------------------------------------


@pytest.fixture
def broken_loss(monkeypatch):
    """The loss of batches with an entirely black image is NaN; a list of which batches had one."""
    batches = []
    make_loss = tasks.ClassificationTask.loss_function

    def make_broken_loss(*args):
        loss = make_loss(*args)

        def broken(model, batch):
            batches.append(bool((batch["pixel_values"].flatten(1).amax(dim=1) == 0).any()))
            return loss(model, batch) * (math.nan if batches[-1] else 1)

        return broken

    monkeypatch.setattr(tasks.ClassificationTask, "loss_function", make_broken_loss)
    return batches


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_no_number_names_the_step_and_the_images(
    accumulation, broken_loss, arguments, uneven_data, tmp_path
):
    shutil.copytree(uneven_data["image-classification"], tmp_path / "data")
    black = sorted((tmp_path / "data/train").rglob("*.png"))[7]
    Image.new("RGB", (96, 96)).save(black)
    options = {"data": str(tmp_path / "data"), "gradient_accumulation_steps": accumulation, "save_steps": 1, "seed": 3}
    with pytest.raises(ValueError) as error:
        train(arguments(tmp_path / "run", **options))

    number = broken_loss.index(True) + 1
    assert number > accumulation  # a step was done before
    message = str(error.value)
    assert f"at step {-(-number // accumulation)}," in message
    names = re.search(r"on these images: (.*?\.png)\. ", message)[1].split(", ")
    assert len(names) == 4
    assert any(str(black).endswith(name) for name in names)
    assert "--learning-rate" in message
    assert "\n" not in message

    saved = state_of(tmp_path / "run")
    assert saved["state"]["step"] == (number - 1) // accumulation
    assert all(value.isfinite().all() for value in (*saved["model"].values(), *saved["ema"]["averages"].values()))
    Image.open(black.with_name(names_of_others(black)[0])).save(black)
    assert train(arguments(tmp_path / "run", resume="auto", **options)).steps == 12


def names_of_others(path):
    return sorted(other.name for other in path.parent.iterdir() if other != path)


def test_a_learning_rate_that_is_far_too_high_is_told(arguments, tmp_path):
    options = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0.0, "dataloader_num_workers": 1}
    with pytest.raises(ValueError, match=r"not a finite number at step [2-4], .*Try a lower --learning-rate"):
        train(arguments(tmp_path / "run", **options))
    assert not multiprocessing.active_children()


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    """A function that sets what the evaluations of the next training find."""

    def write(*values, metric="accuracy"):
        results = iter(values)

        def evaluate(*args, resamples, **kwargs):
            # Those that are kept are measured once more at the end, if they are not the last.
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

    return write


def kept_step(folder):
    """The step of the checkpoint whose averaged weights are those that were kept."""
    kept = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    states = map(checkpoint.load_checkpoint, checkpoint.find_checkpoints(folder))
    steps = [
        state["state"]["step"]
        for state in states
        if all(torch.equal(value, kept[name]) for name, value in state["ema"]["averages"].items())
    ]
    return steps[0] if len(steps) == 1 else steps


@pytest.mark.parametrize(
    ("values", "best"), [((0.5, 0.7, 0.6, 0.65), 4), ((0.5, 0.7, 0.7, 0.6), 6), ((0.0, 0.0, 0.0, 0.0), 8)]
)
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_best_weights_are_kept_and_the_later_of_equals(metric, values, best, script, arguments, tmp_path):
    script(*values, metric=metric)
    measures = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 9, "metric_for_best_model": metric}
    result = train(arguments(tmp_path / "run", max_steps=8, **measures))
    assert result.best == max(values)
    assert (result.metric, kept_step(tmp_path / "run")) == (metric, best)
    assert [line[f"eval_{metric}"] for line in result.history if f"eval_{metric}" in line] == list(values)


def test_what_is_kept_measures_as_it_was_told(arguments, uneven_data, whole):
    model = AutoModelForImageClassification.from_pretrained(whole)
    processor = MobileViTImageProcessor.from_pretrained(whole)
    samples = load_dataset(str(uneven_data["image-classification"])).splits["validation"]
    measured = evaluate_model(model, processor, samples, CLASSES, resamples=0).metrics
    found = [line for line in lines_of(whole) if "eval_accuracy" in line]
    best = max(found, key=lambda line: (line["eval_accuracy"], line["step"]))
    assert [line["step"] for line in found] == [5, 10, 12]
    assert measured["accuracy"] == best["eval_accuracy"]
    assert measured["macro_f1"] == pytest.approx(best["eval_macro_f1"])
    assert results_of(whole)["metrics"]["accuracy"] == measured["accuracy"]


def test_it_stops_early_when_nothing_gets_better(script, arguments, tmp_path):
    script(0.5, 0.6, 0.5, 0.6, 0.55, 0.59)
    listener = AtStep()
    options = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 9, "max_steps": 100, "early_stopping_patience": 2}
    result = train(arguments(tmp_path / "run", **options), listener)
    assert (result.steps, result.best, kept_step(tmp_path / "run")) == (12, 0.6, 8)  # the second 0.6 counts as better
    assert any("stopped early" in text for text in listener.said)
    with pytest.raises(ValueError, match=r"at its end \(12 steps\).*--early-stopping-patience"):
        train(arguments(tmp_path / "run", resume="auto", **options))


@pytest.mark.parametrize(("limit", "kept"), [(1, [12]), (3, [6, 9, 12]), (9, [3, 6, 9, 12])])
def test_so_many_checkpoints_are_kept(limit, kept, script, arguments, tmp_path):
    script(0.5, 0.5, 0.5)
    train(arguments(tmp_path / "run", save_total_limit=limit))
    names = [path.name for path in checkpoint.find_checkpoints(tmp_path / "run")]
    assert names == [f"step-{step:08}.pt" for step in kept]


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_a_frozen_backbone_stays_as_it_was(task, arguments, dropout_start, tmp_path):
    train(arguments(tmp_path / "run", task, freeze_backbone=True, max_steps=3))
    before = mobilevit_hf.MobileViTForImageClassification.from_pretrained(dropout_start).state_dict()
    saved = state_of(tmp_path / "run")
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


# --- so many minutes -------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


class Hourglass(Listener):
    """Lets a second pass after each step."""

    def __init__(self, clock):
        self.clock = clock

    def update(self, status):
        self.clock.wait(1)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (trainer, state):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.mark.parametrize("evaluation_seconds", [0, 3])
def test_a_training_of_so_many_minutes_fits_into_them(evaluation_seconds, clock, script, arguments, tmp_path):
    script(*10 * [0.5])
    measure = trainer.evaluate_model

    def measure_slowly(*args, **kwargs):
        clock.wait(evaluation_seconds)
        return measure(*args, **kwargs)

    trainer.evaluate_model = measure_slowly
    options = {"max_steps": None, "max_minutes": 0.5, "eval_steps": 0.3, "logging_steps": 1, "max_grad_norm": 0.1}
    result = train(arguments(tmp_path / "run", **options), Hourglass(clock))
    lines = [line for line in result.history if "learning_rate" in line]
    assert lines[-1]["progress"] == 1
    assert lines[-1]["learning_rate"] < 0.1 * 0.01 < max(line["learning_rate"] for line in lines)
    assert 20 <= result.seconds <= 30  # a few are set aside for what is written at the end
    progress = [line["progress"] for line in lines]
    assert progress == sorted(progress)
    assert "eval_accuracy" in result.history[-1]


def test_time_before_an_interruption_counts(clock, script, arguments, tmp_path):
    script(*10 * [0.5])
    options = {"max_steps": None, "max_minutes": 0.4}
    listener = Hourglass(clock)

    def stop(status):
        clock.wait(1)
        if status.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    listener.update = stop
    with pytest.raises(StoppedError):
        train(arguments(tmp_path / "run", **options), listener)
    clock.wait(100)  # that nothing is trained in
    result = train(arguments(tmp_path / "run", resume="auto", **options), Hourglass(clock))
    assert 18 <= result.steps <= 24
    assert result.seconds <= 24
