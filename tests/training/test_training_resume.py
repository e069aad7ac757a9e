"""A training that is interrupted, wherever that happens, comes to the same end, and what it saved before is whole."""

import errno
import json
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

import pytest
import torch
from trainings import AtStep, lines_of, names_in, results_of, state_of

from mobilevit_hf.training import checkpoint, trainer
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.ema import EMA
from mobilevit_hf.training.signals import StoppedError
from mobilevit_hf.training.trainer import train

CONTEXT = multiprocessing.get_context("forkserver")
TIMES = ("seconds", "images_per_second", "waiting_for_data", "evaluation_seconds")

# What happens again and again in a training, and may be where it is killed.
PLACES = ("write", "fsync", "replace", "unlink", "step", "average", "measure", "keep", "save", "report")

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert_same(lines_of(folder), lines_of(whole), "lines")
    assert_same(results_of(folder), results_of(whole), "results")


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_apart():
    """A function that calls another in a process forked from one that has imported everything; returns exit codes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        CONTEXT.set_forkserver_preload(["mobilevit_hf.training.trainer", "mobilevit_hf.visualization.plots", "pytest"])

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
            return file if mode == "r" or mode == "rb" else TornFile(file, partial(self.reach, "write"))

        Path.open = open_watched
        for owner, name, kind in (
            (os, "fsync", "fsync"),
            (Path, "replace", "replace"),
            (Path, "unlink", "unlink"),
            (torch.optim.AdamW, "step", "step"),
            (EMA, "update", "average"),
            (trainer, "evaluate_model", "measure"),
            (trainer, "save_model", "keep"),
            (trainer, "save_checkpoint", "save"),
            (trainer, "write_reports", "report"),
        ):
            self.watch(owner, name, kind)


class TornFile:
    """A file of which half of what is being written can be there before something happens.

    Args:
        file: That is open.
        happen: Is called before each writing, with a function that writes the half.
    """

    def __init__(self, file, happen):
        self.file, self.happen = file, happen

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

        self.happen(tear)
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
    assert [path.name for path in checkpoint.find_checkpoints(tmp_path / "run")] == [
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

    # What a shell runs in the background ignores Ctrl-C from the start, this process too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(arguments(tmp_path / "run"), AtStep(1, interrupt_twice))
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_goes_on_with_other_processes_that_load_images(arguments, whole, tmp_path):
    stop_at(5, arguments(tmp_path / "run"))
    train(arguments(tmp_path / "run", resume="auto", dataloader_num_workers=1, save_total_limit=1))
    assert (tmp_path / "run/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [path.name for path in checkpoint.find_checkpoints(tmp_path / "run")] == ["step-00000012.pt"]


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
    path = checkpoint.find_checkpoints(tmp_path / "run")[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path.name} is no checkpoint.*Remove it"):
        train(arguments(tmp_path / "run", resume="auto"))
    path.unlink()
    train(arguments(tmp_path / "run", resume="auto"))
    assert_same_end(tmp_path / "run", whole)


# --- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(pattern):
    """Files whose name holds the pattern can't be written whole."""
    open_file = Path.open

    def fill(tear):
        tear()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(path, mode="r", *args, **kwargs):
        file = open_file(path, mode, *args, **kwargs)
        return TornFile(file, fill) if mode[0] in "wa" and pattern in path.name else file

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
