"""Predictions on a Ray cluster of two nodes on this machine, whose processes are killed: those of a single process."""

import os
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from toy_checkpoints import save_classifier

pytest.importorskip("ray")

import pyarrow.parquet as pq
from ray_cluster import RayCluster, environment

from mobilevit_hf.batch import predict_dataset

pytestmark = pytest.mark.slow

NUM_IMAGES, CHUNK_SIZE = 60, 5


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folder of images, one of which can't be read."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        Image.fromarray(generator.integers(0, 256, (72, 96, 3), dtype=np.uint8)).save(folder / f"{index:03}.png")
    (folder / "007.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def model(tiny_fields, tmp_path_factory):
    """Folder of a tiny classifier."""
    fields = {name: value for name, value in tiny_fields.items() if name not in ("id2label", "label2id")}
    return save_classifier(tmp_path_factory.mktemp("model"), 72, 64, fields)


@pytest.fixture(scope="module")
def expected(images, model, tmp_path_factory):
    """Rows that a single process writes."""
    return predict(images, tmp_path_factory.mktemp("expected") / "output", model)


@pytest.fixture
def cluster(monkeypatch):
    """Cluster of a head and another node, each with one CPU."""
    with closing(RayCluster()) as cluster:
        for name, value in environment(cluster.folder).items():
            monkeypatch.setenv(name, value)
        yield cluster


def predict(images, output, model, **options):
    """Return the rows of the predictions of images, in the order of their names."""
    predict_dataset(images, output, model, chunk_size=CHUNK_SIZE, device="cpu", threads=1, **options)
    return pq.read_table(output).sort_by("image").to_pylist()


def test_killed_worker_and_restarted_head_leave_the_rows_of_one_process(cluster, images, model, expected, tmp_path):
    killed = []

    def kill(progress):
        if progress.chunks >= 2 and not killed:
            killed.extend(cluster.workers()[:1])
            os.kill(killed[0].pid, 9)
        if progress.chunks >= 5 and len(killed) == 1:
            killed.append(cluster.head)
            cluster.stop()
            cluster.start_head()

    rows = predict(images, tmp_path / "output", model, ray=cluster.address, on_progress=kill)
    assert len(killed) == 2
    assert len(rows) == NUM_IMAGES
    assert rows == expected
