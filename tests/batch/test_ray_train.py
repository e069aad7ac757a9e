"""`examples/ray_train.py` on a Ray cluster of two nodes: training continues after a worker is killed."""

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from toy_checkpoints import save_classifier

pytest.importorskip("ray.train")

from ray_cluster import RayCluster, environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_train.py"
TIMEOUT_S = 400

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    """Cluster of a head and another node, each with one CPU."""
    with closing(RayCluster()) as cluster:
        yield cluster


@pytest.fixture
def image_folder(tmp_path):
    """Folder of two classes of noise, dark and bright."""
    generator = np.random.default_rng(0)
    for split, number in {"train": 16, "validation": 4}.items():
        for name, brightness in {"dark": 0, "bright": 128}.items():
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(brightness, brightness + 128, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def find_workers(cluster):
    """Return the training processes on all nodes of a cluster."""
    return [
        process
        for node in (cluster.head, *cluster.nodes)
        for process in psutil.Process(node.process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


def test_training_continues_after_a_killed_worker(cluster, image_folder, tiny_fields, tmp_path):
    fields = {name: value for name, value in tiny_fields.items() if name not in ("id2label", "label2id")}
    model, output_dir = save_classifier(tmp_path / "model", 72, 64, fields), tmp_path / "output"
    command = [sys.executable, EXAMPLE, image_folder, model, output_dir, "--workers", "2", "--epochs", "200"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        env = environment(cluster.folder) | {"RAY_ADDRESS": cluster.address}
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=file, stderr=subprocess.STDOUT)
    history, before, deadline = output_dir / "metrics.jsonl", "", time.monotonic() + TIMEOUT_S
    try:
        while process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            if not before and list(output_dir.glob("checkpoint*")) and history.exists() and history.stat().st_size:
                before = history.read_text()
                os.kill(find_workers(cluster)[-1].pid, 9)
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, log.read_text()
    assert before  # the worker was killed
    assert history.read_text().startswith(before.splitlines()[0])  # with the duration: training did not start over
    assert json.loads((output_dir / "config.json").read_text())["id2label"] == {"0": "bright", "1": "dark"}
