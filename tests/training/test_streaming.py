"""Training on streams: an interrupted run resumes in the middle of a pass, and ends bit-equal."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from toy_datasets import save_shards
from training_runs import StepCallback, load_last_checkpoint, read_metrics

from mobilevit_hf.data import dataloader as data_loading
from mobilevit_hf.training import dataloader
from mobilevit_hf.training.signals import StoppedError
from mobilevit_hf.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def streamed_datasets(uneven_datasets, tmp_path_factory):
    """Folders of Parquet files, four of the training split, by task."""
    folder = tmp_path_factory.mktemp("streamed")
    return {task: save_shards(uneven_datasets[task], task, folder / task) for task in uneven_datasets}


@pytest.fixture
def make_stream_arguments(make_arguments, streamed_datasets):
    """Function that returns the arguments of a short training run on a stream."""

    def make(output_dir, task="image-classification", **changes):
        return make_arguments(output_dir, task, data=str(streamed_datasets[task]), streaming=True, **changes)

    return make


@pytest.fixture
def recorded(monkeypatch):
    """List of the names of the samples of each batch that is trained on."""
    batches, read = [], dataloader.TrainingDataLoader.epoch

    def epoch(loader, state):
        for name_samples, batch in read(loader, state):
            batches.append(name_samples())
            yield name_samples, batch

    monkeypatch.setattr(dataloader.TrainingDataLoader, "epoch", epoch)
    return batches


def assert_equal_runs(folder, expected):
    assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    states = [load_last_checkpoint(path) for path in (folder, expected)]
    for part in ("model", "best_model"):
        weights = [state[part].get("weights", state[part]) for state in states]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    positions = [{name: state["state"][name] for name in ("position", "lanes", "step")} for state in states]
    assert positions[0] == positions[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "workers"),
    [
        ("image-classification", 0),
        ("image-classification", 2),
        ("object-detection", 0),
        ("image-segmentation", 0),
    ],
)
def test_stopped_stream_resumes_bit_equal(task, workers, make_stream_arguments, recorded, tmp_path):
    make = partial(make_stream_arguments, task=task)
    train(make(tmp_path / "expected"))
    expected = recorded.copy()
    recorded.clear()
    with pytest.raises(StoppedError):
        train(make(tmp_path / "run"), StepCallback(6, partial(os.kill, os.getpid(), signal.SIGTERM)))
    assert len(recorded) == 7
    train(make(tmp_path / "run", resume="auto", dataloader_num_workers=workers), callback := StepCallback())
    assert "Resuming from step 7." in callback.messages
    assert recorded == expected
    assert_equal_runs(tmp_path / "run", tmp_path / "expected")
    assert len({name for batch in expected[:4] for name in batch}) == 16


@pytest.mark.slow
def test_resumed_stream_reads_no_image_again(make_stream_arguments, recorded, monkeypatch, tmp_path):
    train(make_stream_arguments(tmp_path / "run", max_steps=6))
    decoded, make_batch = [], data_loading.make_batch

    def count(items, *args):
        decoded.extend(items)
        return make_batch(items, *args)

    monkeypatch.setattr(data_loading, "make_batch", count)
    train(make_stream_arguments(tmp_path / "run", max_steps=8, resume="auto"))
    assert len(decoded) == 2 * 4


@pytest.mark.slow
def test_log_of_a_stream_counts_passes(make_stream_arguments, tmp_path):
    train(make_stream_arguments(tmp_path / "run", max_steps=12, eval_steps=12, save_steps=12))
    epochs = [line["epoch"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert epochs[0] == 0
    assert epochs[-1] == 2  # 12 batches of 4 of 18 images


@pytest.mark.slow
def test_resume_with_another_number_of_shards_raises(make_stream_arguments, streamed_datasets, tmp_path):
    folder = Path(shutil.copytree(streamed_datasets["image-classification"], tmp_path / "data"))
    train(make_stream_arguments(tmp_path / "run", max_steps=1))
    saved = load_last_checkpoint(tmp_path / "run")
    assert saved["data"]["shards"] == {"train": 4}
    shards = sorted((folder / "data").glob("train-*"))
    shards[0].unlink()
    original = streamed_datasets["image-classification"]
    moved = Path(original).rename(tmp_path / "moved")
    folder.rename(original)
    try:
        with pytest.raises(ValueError, match="got 3 shards of the train split, expected 4 as in the checkpoint"):
            train(make_stream_arguments(tmp_path / "run", max_steps=2, resume="auto"))
    finally:
        shutil.rmtree(original)
        moved.rename(original)
