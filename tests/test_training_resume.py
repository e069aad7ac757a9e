"""A training that is interrupted, wherever that happens, comes to the same end, and what it saved before is whole."""

import errno
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import traceback
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import CLASSES, draw_classification, draw_detection
from transformers import AutoModelForImageClassification, MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.evaluation import EvaluationResult, evaluate_model
from mobilevit_hf.training import checkpoints, engine, status, tasks
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.ema import EMA
from mobilevit_hf.training.engine import train
from mobilevit_hf.training.signals import StoppedError
from mobilevit_hf.training.status import Listener
from mobilevit_hf.visualization import plots

CONTEXT = multiprocessing.get_context("forkserver")
TIMES = ("seconds", "images_per_second", "waiting_for_data", "evaluation_seconds")

# What happens again and again in a training, and may be where it is killed.
PLACES = ("write", "fsync", "replace", "unlink", "step", "average", "measure", "keep", "save", "report")


# --- trainings -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """With another number of threads sums are rounded otherwise. Curves are not drawn, only their files made."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_plot", lambda figure, path: path.touch())
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two small data sets; their pictures don't come out even with batches of 4."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "image-classification": draw_classification(folder / "classification", train=18, validation=6, side=96),
        "object-detection": draw_detection(folder / "detection", train=18, validation=6, side=96),
    }


@pytest.fixture(scope="module")
def start(tiny_fields, tmp_path_factory):
    """The folder of a tiny classifier with dropout, of random weights, and its image processor."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    config = mobilevit_hf.MobileViTConfig(**tiny_fields | names, hidden_dropout_prob=0.1, classifier_dropout_prob=0.1)
    folder = tmp_path_factory.mktemp("start")
    mobilevit_hf.MobileViTForImageClassification(config).save_pretrained(folder)
    MobileViTImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(data, start):
    """A function that makes the arguments of a short training."""

    def make(output_dir, task="image-classification", **changes):
        options = {
            "data": str(data[task]),
            "model": str(start),
            "output_dir": str(output_dir),
            "image_size": 96,  # progressively from 64
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "save_steps": 3,
            "eval_steps": 5,
            "logging_steps": 2,
            "learning_rate": 0.01,
            "ema_decay": 0.9,
            "dataloader_num_workers": 0,
            "use_cpu": True,
        }
        if task == "object-detection":
            options["anchors"] = "paper"
        return TrainArguments(**options | changes)

    return make


def state_of(folder):
    return checkpoints.load_checkpoint(checkpoints.find_checkpoints(folder)[-1])


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same(ours, theirs, name="state"):
    """Equal to the last bit, but for times and where a training is."""
    assert type(ours) is type(theirs), name
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), name
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs), name
        for key in ours:
            if key not in (*TIMES, "output_dir", "resume"):
                assert_same(ours[key], theirs[key], f"{name}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), name
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{name}.{i}")
    else:
        assert ours == theirs, name


def assert_same_end(folder, whole):
    """Two trainings left the same, and nothing else."""
    assert names_in(folder) == names_in(whole)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "mistakes.png"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert_same(state_of(folder), state_of(whole))
    assert lines_of(folder) == lines_of(whole)
    results = [json.loads((path / "results.json").read_text()) for path in (folder, whole)]
    assert_same(*results, "results")


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class AtStep(Listener):
    """Does something after a step, and notes what it is told."""

    def __init__(self, step=None, do=None):
        self.step, self.do, self.said = step, do, []

    def update(self, status):
        if status.step == self.step:
            self.do()

    def say(self, text, kind="note"):
        self.said.append(text)


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_apart():
    """A function that calls another in a process forked from one that has imported everything; returns exit codes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        CONTEXT.set_forkserver_preload(["mobilevit_hf.training.engine", "mobilevit_hf.visualization.plots", "pytest"])

        def run(function, *arguments):
            process = CONTEXT.Process(target=function, args=arguments)
            process.start()
            process.join()
            return process.exitcode

        yield run


class Places:
    """Counts how often a process comes to each of the places, and kills it at one of them."""

    def __init__(self, kind=None, number=0):
        self.kind, self.number, self.counts = kind, number, Counter()

    def reach(self, kind, tear=None):
        self.counts[kind] += 1
        if kind == self.kind and self.counts[kind] == self.number:
            if tear:
                tear()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name, kind):
        """Before and after each call."""
        function = getattr(owner, name)

        def call(*args, **kwargs):
            self.reach(kind)
            result = function(*args, **kwargs)
            self.reach(kind)
            return result

        setattr(owner, name, call)

    def watch_all(self):
        open_file = Path.open

        def open_watched(path, mode="r", *args, **kwargs):
            file = open_file(path, mode, *args, **kwargs)
            return file if mode == "r" or mode == "rb" else TornFile(file, self)

        Path.open = open_watched
        for owner, name, kind in (
            (os, "fsync", "fsync"),
            (Path, "replace", "replace"),
            (Path, "unlink", "unlink"),
            (torch.optim.AdamW, "step", "step"),
            (EMA, "update", "average"),
            (engine, "evaluate_model", "measure"),
            (engine, "save_model", "keep"),
            (engine, "save_checkpoint", "save"),
            (engine, "write_reports", "report"),
        ):
            self.watch(owner, name, kind)


class TornFile:
    """A file of which half of what is being written is there when the process is killed."""

    def __init__(self, file, places):
        self.file, self.places = file, places

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        def tear():
            self.file.write(content[: len(content) // 2])
            self.file.flush()

        self.places.reach("write", tear)
        return self.file.write(content)


def train_and_count(fields, result_file, kind=None, number=0):
    torch.set_num_threads(1)
    places = Places(kind, number)
    places.watch_all()
    try:
        train(TrainArguments(**fields))
    except BaseException:
        result_file.write_text(json.dumps({"error": traceback.format_exc()}))
        raise
    result_file.write_text(json.dumps({"counts": places.counts}))


def kill_often(run_apart, arguments, folder, kills):
    """Kill trainings at random places and let them go on; each comes to the end of one that was left alone.

    Args:
        arguments: A function of an output directory.
        folder: For what is written.
        kills: How many.
    """
    seed = random.randrange(2**32)
    print("seed", seed)  # shown if the test fails
    chance, result_file = random.Random(seed), folder / "result.json"

    def attempt(output_dir, *place):
        code = run_apart(train_and_count, vars(arguments(output_dir, resume="auto")), result_file, *place)
        assert code in (0, -signal.SIGKILL), json.loads(result_file.read_text())["error"]
        return code

    assert attempt(folder / "whole") == 0
    counts = json.loads(result_file.read_text())["counts"]
    assert set(counts) == set(PLACES)
    killed, round_number = 0, 0
    kinds = []
    while killed < kills:
        output_dir, round_number = folder / f"round-{round_number}", round_number + 1
        ended = False
        while killed < kills and not ended:
            kinds = kinds or chance.sample(PLACES, len(PLACES))
            kind = kinds.pop()
            number = chance.randint(1, counts[kind])
            print("kill at", kind, number, "of", counts[kind])
            killed += attempt(output_dir, kind, number) != 0
            ended = (output_dir / "results.json").exists()  # written last
        if not ended:
            assert attempt(output_dir) == 0
        assert_same_end(output_dir, folder / "whole")


def test_killed_anywhere_it_ends_as_if_it_had_not_been(run_apart, arguments, tmp_path):
    kill_often(run_apart, partial(arguments, gradient_accumulation_steps=2, max_steps=9), tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_killed_often(task, run_apart, arguments, tmp_path):
    kill_often(run_apart, partial(arguments, task=task, hidden_dropout_prob=0.2), tmp_path, 20)


@pytest.mark.slow
def test_killed_when_it_had_stopped_early(run_apart, arguments, tmp_path):
    stubborn = partial(arguments, learning_rate=1e-9, early_stopping_patience=2, eval_steps=1, ema_decay=0.0)
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    result_file = tmp_path / "result.json"
    assert run_apart(train_and_count, vars(stubborn(folders["whole"])), result_file) == 0
    assert run_apart(train_and_count, vars(stubborn(folders["killed"])), result_file, "report", 1) == -signal.SIGKILL
    assert run_apart(train_and_count, vars(stubborn(folders["killed"], resume="auto")), result_file) == 0
    assert_same_end(folders["killed"], folders["whole"])


# --- stopped ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """The folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(arguments(folder))
    return folder


def stop_at(step, arguments, number=signal.SIGTERM):
    """Train until the step after this one."""
    with pytest.raises(StoppedError) as stop:
        train(arguments, AtStep(step, partial(os.kill, os.getpid(), number)))
    return stop.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_is_saved_and_goes_on(number, arguments, whole, tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    stop = stop_at(3, arguments(tmp_path / "run"), number)
    assert stop.signal == number
    assert "step 4, 33%" in str(stop)
    assert str(tmp_path / "run") in str(stop)
    assert [path.name for path in checkpoints.find_checkpoints(tmp_path / "run")] == [
        "step-00000003.pt",
        "step-00000004.pt",
    ]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers

    listener = AtStep()
    train(arguments(tmp_path / "run", resume="auto"), listener)
    assert "Going on from step 4 (step-00000004.pt)." in listener.said
    assert_same_end(tmp_path / "run", whole)


def test_the_second_signal_ends_it_at_once(arguments, tmp_path):
    def interrupt_twice():
        signal.raise_signal(signal.SIGINT)  # unlike os.kill, handled before the next line
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(arguments(tmp_path / "run"), AtStep(1, interrupt_twice))


def test_it_goes_on_with_other_processes_that_load_pictures(arguments, whole, tmp_path):
    stop_at(5, arguments(tmp_path / "run"))
    train(arguments(tmp_path / "run", resume="auto", dataloader_num_workers=1, save_total_limit=1))
    assert (tmp_path / "run/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [path.name for path in checkpoints.find_checkpoints(tmp_path / "run")] == ["step-00000012.pt"]


@pytest.mark.parametrize(
    ("name", "value", "before"),
    [("learning_rate", 0.02, 0.01), ("seed", 1, 0), ("per_device_train_batch_size", 8, 4), ("ema_decay", 0.5, 0.9)],
)
def test_other_arguments_that_matter_are_refused(name, value, before, arguments, whole):
    before_files = {path: path.read_bytes() for path in whole.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=re.escape(f"{name} (was {before}, is {value})")):
        train(arguments(whole, resume="auto", **{name: value}))
    assert {path: path.read_bytes() for path in whole.rglob("*.*") if path.is_file()} == before_files


def test_a_folder_that_is_not_empty_is_refused(arguments, whole, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (whole, tmp_path):
        with pytest.raises(ValueError, match=r"is not empty.*--resume auto.*--output-dir"):
            train(arguments(folder))
    with pytest.raises(ValueError, match="resume: got 'always', expected auto"):
        train(arguments(whole, resume="always"))


def test_a_finished_training_says_so_and_can_be_given_more(arguments, whole, tmp_path):
    with pytest.raises(ValueError, match=r"at its end \(12 steps\).*--max-steps"):
        train(arguments(whole, resume="auto"))
    shutil.copytree(whole, tmp_path / "run")
    result = train(arguments(tmp_path / "run", resume="auto", max_steps=14))
    assert result.steps == 14
    steps = [line["step"] for line in lines_of(tmp_path / "run")]
    assert steps[:-2] == [line["step"] for line in lines_of(whole)]
    assert steps[-2:] == [14, 14]


def test_a_damaged_checkpoint_is_named(arguments, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    path = checkpoints.find_checkpoints(tmp_path / "run")[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path.name} is no checkpoint.*Remove it"):
        train(arguments(tmp_path / "run", resume="auto"))
    path.unlink()
    train(arguments(tmp_path / "run", resume="auto"))
    assert_same_end(tmp_path / "run", whole)


# --- a loss that is no number ----------------------------------------------------------------------------------------


@pytest.fixture
def broken_loss(monkeypatch):
    """The loss of batches with an entirely black picture is NaN; a list of which batches had one."""
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
def test_a_loss_that_is_no_number_names_the_step_and_the_pictures(
    accumulation, broken_loss, arguments, data, tmp_path
):
    shutil.copytree(data["image-classification"], tmp_path / "data")
    black = sorted((tmp_path / "data/train").rglob("*.png"))[7]
    Image.new("RGB", (96, 96)).save(black)
    options = {"data": str(tmp_path / "data"), "gradient_accumulation_steps": accumulation, "save_steps": 1, "seed": 3}
    with pytest.raises(ValueError) as error:
        train(arguments(tmp_path / "run", **options))

    number = broken_loss.index(True) + 1
    assert number > accumulation  # a step was done before
    message = str(error.value)
    assert f"at step {-(-number // accumulation)}," in message
    names = re.search(r"on these pictures: (.*?\.png)\. ", message)[1].split(", ")
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


# --- a full disk -----------------------------------------------------------------------------------------------------


class FullDisk:
    """A file of which the first half is written before the disk is full."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def full_disk(pattern):
    """Files whose name holds the pattern can't be written whole."""
    open_file = Path.open

    def open_full(path, mode="r", *args, **kwargs):
        file = open_file(path, mode, *args, **kwargs)
        return FullDisk(file) if mode[0] in "wa" and pattern in path.name else file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        yield


@pytest.mark.parametrize("pattern", ["step-", "metrics.jsonl", "recipe.yaml", "results.json"])
def test_a_full_disk_is_told_and_the_training_goes_on_from_what_is_whole(pattern, arguments, whole, tmp_path):
    stop_at(3, arguments(tmp_path / "run"))
    saved = state_of(tmp_path / "run")
    with (
        full_disk(pattern),
        pytest.raises(ValueError, match=r"No space left on device.*is whole\. Make room") as error,
    ):
        train(arguments(tmp_path / "run", resume="auto"))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").rglob(".*"))
    if pattern != "results.json":
        assert "step-00000004.pt is whole" in str(error.value)
        assert_same(state_of(tmp_path / "run"), saved)
    train(arguments(tmp_path / "run", resume="auto"))
    assert_same_end(tmp_path / "run", whole)


def train_with_small_files(fields, result_file, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    train_and_count(fields, result_file)


@pytest.mark.parametrize(("share", "step"), [(2.0, "checkpoint"), (0.5, "model")])
def test_the_system_refuses_to_write_more(share, step, run_apart, arguments, whole, tmp_path):
    """A limit on the size of files, between those of a model and of a checkpoint or below both."""
    folder, result_file = tmp_path / "run", tmp_path / "result.json"
    stop_at(3, arguments(folder))
    saved = state_of(folder)
    size = int(share * (whole / "model.safetensors").stat().st_size)
    fields = vars(arguments(folder, resume="auto"))
    assert run_apart(train_with_small_files, fields, result_file, size) == 1
    message = json.loads(result_file.read_text())["error"].strip().splitlines()[-1]
    assert message.startswith("ValueError: ")
    assert "File too large" in message
    assert "step-00000004.pt is whole" in message
    assert not list(folder.rglob(".*"))
    assert (folder / "model.safetensors").exists() == (step == "checkpoint")
    assert_same(state_of(folder), saved)
    train(arguments(folder, resume="auto"))
    assert_same_end(folder, whole)


# --- how it ends, and what is kept -----------------------------------------------------------------------------------


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
                num_pictures=6,
                confusion=np.eye(2, dtype=np.int64),
            )

        monkeypatch.setattr(engine, "evaluate_model", evaluate)

    return write


def kept_step(folder):
    """The step of the checkpoint whose averaged weights are those that were kept."""
    kept = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    states = map(checkpoints.load_checkpoint, checkpoints.find_checkpoints(folder))
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


def test_what_is_kept_measures_as_it_was_told(arguments, data, whole):
    model = AutoModelForImageClassification.from_pretrained(whole)
    processor = MobileViTImageProcessor.from_pretrained(whole)
    samples = load_dataset(str(data["image-classification"])).splits["validation"]
    measured = evaluate_model(model, processor, samples, CLASSES, resamples=0).metrics
    found = [line for line in lines_of(whole) if "eval_accuracy" in line]
    best = max(found, key=lambda line: (line["eval_accuracy"], line["step"]))
    assert [line["step"] for line in found] == [5, 10, 12]
    assert measured["accuracy"] == best["eval_accuracy"]
    assert measured["macro_f1"] == pytest.approx(best["eval_macro_f1"])
    assert json.loads((whole / "results.json").read_text())["metrics"]["accuracy"] == measured["accuracy"]


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
    names = [path.name for path in checkpoints.find_checkpoints(tmp_path / "run")]
    assert names == [f"step-{step:08}.pt" for step in kept]


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
    for module in (engine, status):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.mark.parametrize("evaluation_seconds", [0, 3])
def test_a_training_of_so_many_minutes_fits_into_them(evaluation_seconds, clock, script, arguments, tmp_path):
    script(*10 * [0.5])
    measure = engine.evaluate_model

    def measure_slowly(*args, **kwargs):
        clock.wait(evaluation_seconds)
        return measure(*args, **kwargs)

    engine.evaluate_model = measure_slowly
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


@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_a_frozen_backbone_stays_as_it_was(task, arguments, start, tmp_path):
    train(arguments(tmp_path / "run", task, freeze_backbone=True, max_steps=3))
    before = mobilevit_hf.MobileViTForImageClassification.from_pretrained(start).state_dict()
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
