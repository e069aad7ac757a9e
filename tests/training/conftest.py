"""Fixtures of the training tests: small datasets, checkpoints and runs."""

from pathlib import Path

import pytest
import torch
from toy_checkpoints import save_classifier
from toy_datasets import draw_classification, draw_detection, draw_segmentation

from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.state import TrainingResult
from mobilevit_hf.training.trainer import train


@pytest.fixture(scope="module")
def dropout_checkpoint(tiny_fields, tmp_path_factory):
    """Folder of a tiny classifier with dropout and random weights, and its image processor."""
    dropout = {"hidden_dropout_prob": 0.1, "classifier_dropout_prob": 0.1}
    return save_classifier(tmp_path_factory.mktemp("dropout_checkpoint"), 96, 96, tiny_fields | dropout)


@pytest.fixture(scope="module")
def small_datasets(tmp_path_factory):
    """Small dataset per task; the number of validation images is not a multiple of the batch size."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "image-classification": draw_classification(folder / "shapes", train=24, validation=9),
        "object-detection": draw_detection(folder / "boxes", train=12, validation=7),
        "image-segmentation": draw_segmentation(folder / "masks", train=12, validation=7),
    }


@pytest.fixture(scope="module")
def uneven_datasets(tmp_path_factory):
    """Small dataset per task; the number of images is not a multiple of 4."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "image-classification": draw_classification(folder / "classification", train=18, validation=6, side=96),
        "object-detection": draw_detection(folder / "detection", train=18, validation=6, side=96),
        "image-segmentation": draw_segmentation(folder / "segmentation", train=18, validation=6, side=96),
    }


@pytest.fixture(scope="module")
def make_arguments(uneven_datasets, dropout_checkpoint):
    """Function that returns the arguments of a short training run."""

    def make(output_dir, task="image-classification", **changes):
        options = {
            "data": str(uneven_datasets[task]),
            "model": str(dropout_checkpoint),
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


@pytest.fixture(scope="module")
def one_thread():
    """One torch thread, as the rounding of sums depends on their number; plots are empty files."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilevit_hf.visualization.plots.save_plot", lambda figure, path: path.touch())
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted_run(one_thread, make_arguments, tmp_path_factory):
    """Folder of a training run that was not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted_run")
    train(make_arguments(folder))
    return folder


@pytest.fixture
def no_plots(monkeypatch):
    """No image grids and plots, which take longer than a few training steps."""
    monkeypatch.setattr("mobilevit_hf.visualization.plots.save_plot", lambda figure, path: path.touch())


@pytest.fixture
def training_calls(monkeypatch, tmp_path):
    """List of the arguments of each call of `train`, which is replaced; the working directory is empty."""
    calls = []

    def train(arguments, callback):
        calls.append(arguments)
        return TrainingResult(Path(arguments.output_dir), "accuracy", 0.5, 1, 1.0)

    monkeypatch.setattr("mobilevit_hf.training.trainer.train", train)
    monkeypatch.chdir(tmp_path)
    return calls
