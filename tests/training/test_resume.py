"""Interrupted runs: checkpoints stay complete, and a resumed run ends bit-equal to an uninterrupted one."""

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
import zipfile
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import StepCallback, list_files, load_last_checkpoint, read_metrics, read_results

from mobilevit_hf.io import TEMP_PREFIX
from mobilevit_hf.training import checkpoint, trainer
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.ema import EMA
from mobilevit_hf.training.output_dir import LOCK_FILE, OutputDirInUseError, lock_output_dir
from mobilevit_hf.training.signals import StoppedError
from mobilevit_hf.training.trainer import train

CONTEXT = multiprocessing.get_context("forkserver")
TIMES = ("seconds", "images_per_second", "waiting_for_data", "evaluation_seconds")

# Operations of a run at which it is killed.
OPERATIONS = (
    "write",
    "fsync",
    "replace",
    "unlink",
    "step",
    "ema",
    "evaluate",
    "save_model",
    "save_checkpoint",
    "report",
)

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(ours, theirs, name="state"):
    """Compare bit for bit, except durations and the output directory."""
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


def assert_same_run(folder, expected):
    """Compare the files of two runs."""
    # A process that is killed after its results are written leaves its lock file, which locks nothing, and may leave a
    # temporary folder, which the next command there removes.
    files = [name for name in list_files(folder) if name != LOCK_FILE and not name.startswith(TEMP_PREFIX)]
    assert files == list_files(expected)
    images = ("mistakes.png", "worst_images.png")  # of one of the tasks
    shown = next(name for name in images if (expected / name).exists())
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", shown):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert_same(load_last_checkpoint(folder), load_last_checkpoint(expected))
    assert_same(read_metrics(folder), read_metrics(expected), "lines")
    assert_same(read_results(folder), read_results(expected), "results")


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_forked():
    """Function that calls another in a process forked from one with all imports, and returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        CONTEXT.set_forkserver_preload(["mobilevit_hf.training.trainer", "mobilevit_hf.visualization.plots", "pytest"])

        def run(function, *arguments):
            process = CONTEXT.Process(target=function, args=arguments)
            process.start()
            process.join()
            return process.exitcode

        yield run


class OperationWatcher:
    """Counts the operations of this process, and kills it at one of them."""

    def __init__(self, kind=None, number=0):
        self.kind, self.number, self.counts = kind, number, Counter()

    def reach(self, kind, tear=None):
        self.counts[kind] += 1
        if kind == self.kind and self.counts[kind] == self.number:
            if tear:
                tear()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name, kind):
        """Count an operation before and after each call of a function."""
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
            (EMA, "update", "ema"),
            (trainer, "evaluate_model", "evaluate"),
            (trainer, "save_model", "save_model"),
            (trainer, "save_checkpoint", "save_checkpoint"),
            (trainer, "write_reports", "report"),
        ):
            self.watch(owner, name, kind)


class TornFile:
    """File whose writes can be interrupted half-way.

    Args:
        file: Open file.
        before_write: Called before each write with a function that writes half of the content.
    """

    def __init__(self, file, before_write):
        self.file, self.before_write = file, before_write

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

        self.before_write(tear)
        return self.file.write(content)


def train_and_count(fields, result_file, kind=None, number=0):
    torch.set_num_threads(1)
    watcher = OperationWatcher(kind, number)
    watcher.watch_all()
    try:
        train(TrainArguments(**fields))
    except BaseException:
        result_file.write_text(json.dumps({"error": traceback.format_exc()}))
        raise
    result_file.write_text(json.dumps({"counts": watcher.counts}))


def kill_repeatedly(run_forked, make_arguments, folder, kills):
    """Kill and resume runs at random operations, and compare each finished run with an uninterrupted one.

    Args:
        run_forked: The fixture.
        make_arguments: Function of the output directory and `resume`.
        folder: Folder for the runs.
        kills: Number of kills.
    """
    seed = random.randrange(2**32)
    print("seed", seed)  # shown if the test fails
    rng, result_file = random.Random(seed), folder / "result.json"

    def attempt(output_dir, *operation):
        code = run_forked(train_and_count, vars(make_arguments(output_dir, resume="auto")), result_file, *operation)
        assert code in (0, -signal.SIGKILL), json.loads(result_file.read_text())["error"]
        return code

    assert attempt(folder / "uninterrupted") == 0
    counts = json.loads(result_file.read_text())["counts"]
    assert set(counts) == set(OPERATIONS)
    killed, run_index, kinds = 0, 0, []
    while killed < kills:
        output_dir, run_index = folder / f"run-{run_index}", run_index + 1
        finished = False
        while killed < kills and not finished:
            kinds = kinds or rng.sample(OPERATIONS, len(OPERATIONS))
            kind = kinds.pop()
            number = rng.randint(1, counts[kind])
            print("kill at", kind, number, "of", counts[kind])
            killed += attempt(output_dir, kind, number) != 0
            finished = (output_dir / "results.json").exists()  # written last
        if not finished:
            assert attempt(output_dir) == 0
        assert_same_run(output_dir, folder / "uninterrupted")


@pytest.mark.slow
def test_killed_run_resumes_bit_equal(run_forked, make_arguments, tmp_path):
    kill_repeatedly(run_forked, partial(make_arguments, gradient_accumulation_steps=2, max_steps=6), tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection", "image-segmentation"])
def test_run_killed_often_resumes_bit_equal(task, run_forked, make_arguments, tmp_path):
    kill_repeatedly(run_forked, partial(make_arguments, task=task, hidden_dropout_prob=0.2), tmp_path, 20)


@pytest.mark.slow
def test_run_killed_after_early_stopping_writes_its_reports(run_forked, make_arguments, tmp_path):
    options = {"learning_rate": 1e-9, "early_stopping_patience": 2, "eval_steps": 1, "ema_decay": 0.0}
    make = partial(make_arguments, **options)
    expected, killed, result_file = tmp_path / "uninterrupted", tmp_path / "killed", tmp_path / "result.json"
    assert run_forked(train_and_count, vars(make(expected)), result_file) == 0
    assert run_forked(train_and_count, vars(make(killed)), result_file, "report", 1) == -signal.SIGKILL
    assert run_forked(train_and_count, vars(make(killed, resume="auto")), result_file) == 0
    assert_same_run(killed, expected)


# --- signals ---------------------------------------------------------------------------------------------------------


def stop_at(step, arguments, number=signal.SIGTERM):
    """Send a signal after a step; the run stops after the next one."""
    with pytest.raises(StoppedError) as stop:
        train(arguments, StepCallback(step, partial(os.kill, os.getpid(), number)))
    return stop.value


@pytest.fixture(scope="module")
def stopped_run(one_thread, make_arguments, tmp_path_factory):
    """Folder of a run that was stopped at step 4."""
    folder = tmp_path_factory.mktemp("stopped_run")
    stop_at(3, make_arguments(folder))
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_a_checkpoint_to_resume_from(number, make_arguments, uninterrupted_run, tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    stop = stop_at(3, make_arguments(tmp_path / "run"), number)
    assert stop.signal == number
    assert "step 4, 33%" in str(stop)
    assert str(tmp_path / "run") in str(stop)
    assert [path.name for path in checkpoint.find_checkpoints(tmp_path / "run")] == [
        "step-00000003.pt",
        "step-00000004.pt",
    ]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers

    callback = StepCallback()
    train(make_arguments(tmp_path / "run", resume="auto"), callback)
    assert "Resuming from step 4." in callback.messages
    assert_same_run(tmp_path / "run", uninterrupted_run)


def test_second_signal_stops_at_once(make_arguments, tmp_path):
    def interrupt_twice():
        signal.raise_signal(signal.SIGINT)  # handled before the next line, unlike with os.kill
        signal.raise_signal(signal.SIGINT)

    # Processes that a shell runs in the background ignore SIGINT by default.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(make_arguments(tmp_path / "run"), StepCallback(1, interrupt_twice))
    finally:
        signal.signal(signal.SIGINT, before)


def test_resume_with_another_number_of_workers_is_bit_equal(make_arguments, uninterrupted_run, stopped_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path / "run")
    train(make_arguments(tmp_path / "run", resume="auto", dataloader_num_workers=1, save_total_limit=1))
    assert (tmp_path / "run/model.safetensors").read_bytes() == (uninterrupted_run / "model.safetensors").read_bytes()
    assert [path.name for path in checkpoint.find_checkpoints(tmp_path / "run")] == ["step-00000012.pt"]


@pytest.mark.parametrize(
    ("name", "value", "before"),
    [("learning_rate", 0.02, 0.01), ("seed", 1, 0), ("per_device_train_batch_size", 8, 4), ("ema_decay", 0.5, 0.9)],
)
def test_resume_with_other_arguments_raises(name, value, before, make_arguments, uninterrupted_run):
    before_files = {path: path.read_bytes() for path in uninterrupted_run.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=re.escape(f"{name} (was {before}, is {value})")):
        train(make_arguments(uninterrupted_run, resume="auto", **{name: value}))
    assert {path: path.read_bytes() for path in uninterrupted_run.rglob("*.*") if path.is_file()} == before_files


def test_output_dir_of_a_run_raises(make_arguments, uninterrupted_run):
    with pytest.raises(ValueError, match=r"is not empty.*--resume auto.*--output-dir"):
        train(make_arguments(uninterrupted_run))
    with pytest.raises(ValueError, match="resume: got 'always', expected auto"):
        train(make_arguments(uninterrupted_run, resume="always"))


def test_complete_run_raises_unless_extended(make_arguments, uninterrupted_run, tmp_path):
    with pytest.raises(ValueError, match=r"is complete \(12 steps\).*--max-steps"):
        train(make_arguments(uninterrupted_run, resume="auto"), callback := StepCallback())
    assert not any("Resuming" in message for message in callback.messages)
    shutil.copytree(uninterrupted_run, tmp_path / "run")
    result = train(make_arguments(tmp_path / "run", resume="auto", max_steps=14))
    assert result.steps == 14
    steps = [line["step"] for line in read_metrics(tmp_path / "run")]
    assert steps[:-2] == [line["step"] for line in read_metrics(uninterrupted_run)]
    assert steps[-2:] == [14, 14]


def test_damaged_checkpoint_is_skipped(make_arguments, uninterrupted_run, tmp_path):
    shutil.copytree(uninterrupted_run, tmp_path / "run")
    damaged = flip_last_checkpoint(tmp_path / "run")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "results.json"):
        (tmp_path / "run" / name).write_bytes(b"\xff")  # written again
    (tmp_path / "run/metrics.jsonl").write_bytes((uninterrupted_run / "metrics.jsonl").read_bytes() + b"\xff{}\n")
    train(make_arguments(tmp_path / "run", resume="auto"), callback := StepCallback())
    (message,) = (message for message in callback.messages if "damaged" in message)
    assert damaged.name in message
    assert "step-00000009.pt" in message
    assert "Resuming from step 9." in callback.messages
    assert_same_run(tmp_path / "run", uninterrupted_run)


def flip_last_checkpoint(folder):
    """Flip a bit of the last checkpoint's largest tensor, which torch loads without an error, and return its path."""
    path = checkpoint.find_checkpoints(folder)[-1]
    with zipfile.ZipFile(path) as archive:
        tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
        largest = max(tensors, key=lambda entry: entry.file_size)
        stored = archive.read(largest)  # without compression
    content = bytearray(path.read_bytes())
    content[content.index(stored) + len(stored) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    return path


def test_only_damaged_checkpoints_raise(make_arguments, stopped_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path / "run")
    for path in checkpoint.find_checkpoints(tmp_path / "run"):
        path.write_bytes(b"")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")}
    with pytest.raises(ValueError, match=r"step-00000004\.pt is damaged.*step-00000003\.pt .* no intact one"):
        train(make_arguments(tmp_path / "run", resume="auto"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")} == before


# --- output directory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "notes.txt", "checkpoints/best.pt"])
def test_output_dir_with_files_of_something_else_raises(name, resume, make_arguments, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} with {name.partition('/')[0]} but no checkpoint")):
        train(make_arguments(tmp_path, resume=resume))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [path]
    assert path.read_text() == "mine"


def test_resume_starts_next_to_logs_and_hidden_files(no_plots, make_arguments, tmp_path):
    for name in ("job.log", "slurm-12.out", ".lock", ".gitignore", ".scratch/a", "recipe.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()  # left by a run that was killed before its first checkpoint
    assert train(make_arguments(tmp_path, resume="auto", max_steps=1)).steps == 1


@pytest.mark.parametrize(("step", "names"), [(1, []), (3, ["step-00000002.pt"])])
def test_best_model_is_written_after_a_checkpoint(step, names, no_plots, make_arguments, tmp_path):
    """A killed run with a model can be resumed, although checkpoints are due later; one without starts again."""

    def stop():
        raise KeyboardInterrupt

    options = {"eval_steps": 2, "save_steps": 100, "max_steps": 4}
    with pytest.raises(KeyboardInterrupt):
        train(make_arguments(tmp_path / "run", **options), StepCallback(step, stop))
    assert [path.name for path in checkpoint.find_checkpoints(tmp_path / "run")] == names
    assert (tmp_path / "run/model.safetensors").exists() == bool(names)
    for folder in ("run", "uninterrupted"):
        train(make_arguments(tmp_path / folder, resume="auto", **options))
    ours, theirs = (load_last_checkpoint(tmp_path / folder) for folder in ("run", "uninterrupted"))
    assert_same(ours, theirs)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_output_dir_of_a_running_training_raises_before_the_data_is_read(resume, make_arguments, tmp_path):
    errors = []

    def train_second():
        with pytest.raises(OutputDirInUseError) as error:
            train(make_arguments(tmp_path / "run", resume=resume, data="missing"))
        errors.append(str(error.value))

    train(make_arguments(tmp_path / "run"), StepCallback(2, train_second))
    assert len(errors) == 1
    assert "another training" in errors[0]
    assert "--output-dir" in errors[0]
    assert not (tmp_path / "run/.lock").exists()


def lock_and_wait(folder, connection):
    with lock_output_dir(folder):
        connection.send("locked")
        connection.recv()


def test_lock_ends_with_its_process(tmp_path):
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=lock_and_wait, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "locked"
    with pytest.raises(OutputDirInUseError), lock_output_dir(tmp_path):
        pass
    process.kill()
    process.join()
    with lock_output_dir(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_failed_run_leaves_no_directory(make_arguments, tmp_path):
    with pytest.raises(ValueError, match="missing"):
        train(make_arguments(tmp_path / "runs/new", data=str(tmp_path / "missing")))
    assert not list(tmp_path.iterdir())


# --- dataset ---------------------------------------------------------------------------------------------------------


def rename_class(data):
    for path in data.glob("*/circle"):
        path.rename(path.with_name("disc"))


def add_class(data):
    for path in data.glob("*/circle"):
        shutil.copytree(path, path.with_name("zebra"))
        for image in path.with_name("zebra").iterdir():
            Image.open(image).rotate(90).save(image)


def add_image(data):
    path = sorted((data / "train").rglob("*.png"))[0]
    Image.open(path).rotate(90).save(path.with_name("new.png"))


def rename_image(data):
    path = sorted((data / "train").rglob("*.png"))[0]
    path.rename(path.with_name("new.png"))


def swap_images(data):
    first, second = sorted((data / "train").rglob("*.png"))[::17]
    pixels = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(pixels)


def damage_image(data):
    sorted((data / "train").rglob("*.png"))[0].write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rename_class, r"added: disc; removed: circle"),
        (add_class, r"added: zebra; removed: none"),
        (add_image, r"got 19 train images, expected 18"),
        (rename_image, r"other file names, labels or boxes in the train split"),
        (swap_images, r"got other images under the same names in the train split"),
        (damage_image, r"got 17 valid train images, expected 18"),
    ],
)
def test_resume_with_other_data_raises(change, expected, make_arguments, uneven_datasets, stopped_run, tmp_path):
    shutil.copytree(uneven_datasets["image-classification"], tmp_path / "data")
    shutil.copytree(stopped_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")}
    make = partial(make_arguments, tmp_path / "run", resume="auto", data=str(tmp_path / "data"), max_bad=0.5)
    change(tmp_path / "data")
    with pytest.raises(ValueError, match=expected) as error:
        train(make())
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")} == before


def test_resume_with_moved_data_is_bit_equal(
    make_arguments, uneven_datasets, uninterrupted_run, stopped_run, tmp_path
):
    shutil.copytree(uneven_datasets["image-classification"], tmp_path / "data")
    shutil.copytree(stopped_run, tmp_path / "run")
    train(make_arguments(tmp_path / "run", resume="auto", data=str(tmp_path / "data")))
    assert (tmp_path / "run/model.safetensors").read_bytes() == (uninterrupted_run / "model.safetensors").read_bytes()


# --- full disk -------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(pattern):
    """Writes to files whose name contains the pattern fail half-way."""
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


SLOW_PATTERNS = [pytest.param(name, marks=pytest.mark.slow) for name in ("metrics.jsonl", "recipe.yaml")]


@pytest.mark.parametrize("pattern", ["step-", "results.json", *SLOW_PATTERNS])
def test_full_disk_keeps_the_checkpoint_and_the_run_resumes(
    pattern, make_arguments, uninterrupted_run, stopped_run, tmp_path
):
    shutil.copytree(stopped_run, tmp_path / "run")
    saved = load_last_checkpoint(tmp_path / "run")
    with (
        full_disk(pattern),
        pytest.raises(ValueError, match=r"No space left on device.*is complete\. Free disk space") as error,
    ):
        train(make_arguments(tmp_path / "run", resume="auto"))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").rglob(".*"))
    if pattern != "results.json":
        assert "step-00000004.pt is complete" in str(error.value)
        assert_same(load_last_checkpoint(tmp_path / "run"), saved)
    train(make_arguments(tmp_path / "run", resume="auto"))
    assert_same_run(tmp_path / "run", uninterrupted_run)


def train_with_small_files(fields, result_file, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    train_and_count(fields, result_file)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "failed"), [(2.0, "checkpoint"), (0.5, "model")])
def test_file_size_limit_keeps_the_checkpoint_and_the_run_resumes(
    limit, failed, run_forked, make_arguments, uninterrupted_run, stopped_run, tmp_path
):
    """The limit is between the sizes of a model and of a checkpoint, or below both."""
    folder, result_file = Path(shutil.copytree(stopped_run, tmp_path / "run")), tmp_path / "result.json"
    saved = load_last_checkpoint(folder)
    size = int(limit * (uninterrupted_run / "model.safetensors").stat().st_size)
    fields = vars(make_arguments(folder, resume="auto"))
    assert run_forked(train_with_small_files, fields, result_file, size) == 1
    message = json.loads(result_file.read_text())["error"].strip().splitlines()[-1]
    assert message.startswith("ValueError: ")
    assert "File too large" in message
    assert "step-00000004.pt is complete" in message
    assert not list(folder.rglob(".*"))
    assert (folder / "model.safetensors").exists() == (failed == "checkpoint")
    assert_same(load_last_checkpoint(folder), saved)
    train(make_arguments(folder, resume="auto"))
    assert_same_run(folder, uninterrupted_run)
