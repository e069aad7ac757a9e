"""Several processes on several nodes, which are agents of torchrun on the loopback interface."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_datasets import save_shards
from training_runs import SMALL, load_last_checkpoint, read_metrics

import mobilevit_hf
from mobilevit_hf.training.checkpoint import find_checkpoints, load_checkpoint

PACKAGE_PARENT = Path(mobilevit_hf.__file__).parents[1]
TESTS = Path(__file__).parents[1]
LIMIT = 900  # seconds after which a job is stuck, on a machine with other work

pytestmark = pytest.mark.slow

# Training script of a process: records the samples of each batch, and ends as the test wants.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from mobilevit_hf.cli import run
from mobilevit_hf.cli.train import make_command
from mobilevit_hf.training import dataloader

rank, read = int(os.environ["RANK"]), dataloader.TrainingDataLoader.epoch
folder, (failing, step, kind) = Path(os.environ["RECORD"]), os.environ.get("FAIL", "-1 0 none").split()

def epoch(loader, state):
    for number, (name_samples, batch) in enumerate(read(loader, state)):
        if (rank, number) == (int(failing), int(step)):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("data: got a test, expected none. Remove it.")
        with (folder / f"{rank}.txt").open("a") as file:
            file.write(f"{state.epoch} {' '.join(name.replace(' ', '') for name in name_samples())}\\n")
        yield name_samples, batch

dataloader.TrainingDataLoader.epoch = epoch
run(make_command(os.environ["TASK"]))
"""


@pytest.fixture
def run_nodes(tmp_path):
    """Function that runs a training on two nodes or one, and returns the exit code and standard error of each."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(task, *words, nodes=2, processes=1, output_dirs, fail="-1 0 none"):
        (tmp_path / "record").mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "home"),
            "ACCELERATE_USE_CPU": "true",
            "PYTHONPATH": f"{PACKAGE_PARENT}:{TESTS}",
            "OMP_NUM_THREADS": "1",
            "TASK": task,
            "RECORD": str(tmp_path / "record"),
            "FAIL": fail,
        }
        agents = []
        for node in range(nodes):
            launcher = ("-m", "torch.distributed.run", "--nnodes", nodes, "--node-rank", node)
            launcher += ("--nproc-per-node", processes, "--master-addr", "127.0.0.1", "--master-port", port)
            command = (sys.executable, *launcher, script, *words, "--output-dir", output_dirs[node])
            with (tmp_path / f"node-{node}.log").open("w") as log:
                agents.append(
                    subprocess.Popen([*map(str, command)], env=environment, cwd=tmp_path, stdout=log, stderr=log)
                )
        try:
            codes = [agent.wait(LIMIT) for agent in agents]
        finally:
            for agent in agents:
                agent.kill()
        return codes, [(tmp_path / f"node-{node}.log").read_text() for node in range(nodes)]

    return run


@pytest.fixture
def read_record(tmp_path):
    """Function that returns the epoch and name of each sample that was trained on since the last call."""

    def read():
        lines = [
            line.split() for path in (tmp_path / "record").glob("*.txt") for line in path.read_text().splitlines()
        ]
        shutil.rmtree(tmp_path / "record")
        return sorted((int(epoch), name) for epoch, *names in lines for name in names)

    return read


def assert_equal_models(folder, expected):
    assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    states = [load_last_checkpoint(path) for path in (folder, expected)]
    assert states[0]["state"]["step"] == states[1]["state"]["step"]
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())


def own_errors(log):
    return [line for line in log.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("task", ["image-classification", "object-detection", "image-segmentation"])
def test_two_nodes_train_like_one_node_with_two_processes(
    task, small_datasets, initial_checkpoint, run_nodes, read_record, tmp_path
):
    """Each node has an output directory of its own, of which only that of the first node is used."""
    words = (small_datasets[task], *SMALL, "--model", initial_checkpoint, "--max-steps", 4, "--save-steps", 2)
    one, two, unused = (tmp_path / name for name in ("one", "two", "unused"))
    assert run_nodes(task, *words, nodes=1, processes=2, output_dirs=[one])[0] == [0]
    record = read_record()
    codes, logs = run_nodes(task, *words, output_dirs=[two, unused])
    assert codes == [0, 0], logs
    assert read_record() == record
    assert_equal_models(two, one)
    assert not unused.exists()
    assert logs[0].count("done: ") == 1
    assert "train" not in logs[1]
    before = load_checkpoint(find_checkpoints(two)[0])
    for path in (*find_checkpoints(two)[1:], two / "results.json"):
        path.unlink()
    codes, logs = run_nodes(task, *words, "--resume", "auto", output_dirs=[two, unused])
    assert codes == [0, 0], logs
    assert "Resuming from step 2." in logs[0]
    assert before["state"]["step"] == 2
    assert_equal_models(two, one)


def test_global_batch_of_two_nodes_has_the_weights_of_one_process(
    small_datasets, initial_checkpoint, run_nodes, tmp_path
):
    """Of a head on a frozen backbone, without dropout: batch normalization has the statistics of each process."""
    initial_checkpoint = Path(shutil.copytree(initial_checkpoint, tmp_path / "initial"))
    config = json.loads((initial_checkpoint / "config.json").read_text())
    (initial_checkpoint / "config.json").write_text(json.dumps(config | {"classifier_dropout_prob": 0.0}))
    task, words = "image-classification", ("--model", initial_checkpoint, "--max-steps", 3, "--freeze-backbone")
    words = (small_datasets["image-classification"], *SMALL, *words, "--per-device-train-batch-size")
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_nodes(task, *words, 8, nodes=1, output_dirs=[one])[0] == [0]
    assert run_nodes(task, *words, 4, output_dirs=[two, two])[0] == [0, 0]
    weights = [load_last_checkpoint(folder)["model"] for folder in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
    initial = mobilevit_hf.MobileViTForImageClassification.from_pretrained(initial_checkpoint).classifier.weight
    assert not torch.allclose(weights[0]["classifier.weight"], initial, atol=1e-4)


@pytest.mark.parametrize(("rank", "kind"), [(0, "kill"), (1, "kill"), (3, "raise")])
def test_failed_process_ends_the_job_and_another_number_of_processes_goes_on(
    rank, kind, small_datasets, initial_checkpoint, run_nodes, read_record, tmp_path
):
    """Four processes train on 24 images in three steps per epoch; the second step fails."""
    task, shared = "image-classification", tmp_path / "run"
    words = (small_datasets[task], *SMALL, "--model", initial_checkpoint, "--per-device-train-batch-size", 2)
    words = (*words, "--max-steps", 12, "--save-steps", 1, "--multi-scale", "off")
    started = time.monotonic()
    codes, logs = run_nodes(task, *words, processes=2, output_dirs=[shared, shared], fail=f"{rank} 1 {kind}")
    assert all(code not in (0, None) for code in codes), logs
    assert time.monotonic() - started < LIMIT
    failed = rank // 2
    assert len(own_errors(logs[1 - failed])) == 1, logs[1 - failed]
    assert "resume with --resume auto" in own_errors(logs[1 - failed])[0]
    own = own_errors(logs[failed])
    assert kind == "kill" or "error: data: got a test, expected none. Remove it." in own
    for path in find_checkpoints(shared):
        assert load_checkpoint(path)["state"]["step"] == 1
    read_record()
    options = ("--resume", "auto", "--per-device-train-batch-size", 4)
    codes, logs = run_nodes(task, *words, *options, output_dirs=[shared, shared])
    assert codes == [0, 0], logs
    assert "Resuming with 2 processes instead of 4; a step still has 8 images." in logs[0]
    first_epoch = [name for epoch, name in read_record() if epoch == 0]
    assert len(first_epoch) == len({*first_epoch}) == 24 - 8


def test_stream_on_two_nodes_resumes_bit_equal_and_with_another_number_of_processes(
    small_datasets, initial_checkpoint, run_nodes, read_record, tmp_path
):
    task = "image-classification"
    data = save_shards(small_datasets[task], task, tmp_path / "data")
    words = (data, *SMALL, "--streaming", "--model", initial_checkpoint, "--max-steps", 6, "--save-steps", 2)
    expected, resumed, single = (tmp_path / name for name in ("expected", "resumed", "single"))
    codes, logs = run_nodes(task, *words, output_dirs=[expected, tmp_path / "unused"])
    assert codes == [0, 0], logs
    record = read_record()
    assert len({name for _, name in record}) == 24  # in two passes
    codes, _ = run_nodes(task, *words, output_dirs=[resumed, tmp_path / "unused"], fail="1 3 kill")
    assert codes[1] != 0
    shutil.copytree(resumed, single)
    read_record()
    codes, logs = run_nodes(task, *words, "--resume", "auto", output_dirs=[resumed, tmp_path / "unused"])
    assert codes == [0, 0], logs
    assert_equal_models(resumed, expected)
    read_record()
    options = ("--resume", "auto", "--per-device-train-batch-size", 4, "--gradient-accumulation-steps", 2)
    codes, logs = run_nodes(task, *words, *options, nodes=1, output_dirs=[single])
    assert codes == [0], logs
    assert "a step still has 8 images" in logs[0]
    assert read_metrics(single)[-1]["step"] == 6
