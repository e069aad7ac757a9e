"""What is decided by itself before the first step of a training, and what is refused before anything is written."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from training_data import CLASSES
from trainings import SHORT, only_line
from transformers import ViTImageProcessor

from mobilevit_hf.cli import console
from mobilevit_hf.cli.train import TrainingBar
from mobilevit_hf.training import trainer
from mobilevit_hf.training.arguments import TrainArguments, read_recipe
from mobilevit_hf.training.data import TrainingInputs
from mobilevit_hf.training.initialization import start_classifier
from mobilevit_hf.training.state import Status


def test_a_training_has_a_folder_of_its_own_and_goes_on_in_the_last(no_training, mobilevit, tmp_path):
    (tmp_path / "resume.yaml").write_text("resume: auto\noutput_dir:\n")
    for there, words, expected in [
        ([], (), "runs/shapes"),
        ([], ("--resume", "auto"), "runs/shapes"),
        (["shapes"], (), "runs/shapes-2"),
        (["shapes"], ("--resume", "auto"), "runs/shapes"),
        (["shapes", "shapes-2"], ("--resume", "auto"), "runs/shapes-2"),
        (["shapes", "shapes-2"], ("--recipe", "resume.yaml"), "runs/shapes-2"),
        (["shapes", "shapes-2"], ("--resume", "auto", "--output-dir", "mine"), "mine"),
    ]:
        for name in there:
            (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
        assert mobilevit("train", "shapes", *words)[0] == 0
        assert no_training[-1].output_dir == expected


def test_on_and_off_in_a_recipe_are_no_booleans(tmp_path):
    for word in ("on", "off"):
        (tmp_path / "recipe.yaml").write_text(f"multi_scale: {word}\n")
        assert TrainArguments.from_dict(read_recipe(tmp_path / "recipe.yaml")).multi_scale == word


@pytest.mark.parametrize("name", ["num_train_epochs", "max_minutes", "learning_rate", "mixup"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf"])
def test_numbers_are_finite(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: got (inf|nan), expected a finite number"):
        TrainArguments(**{name: value})


@pytest.mark.parametrize("missing", ["data", "output_dir"])
def test_nobody_trains_nowhere(missing):
    names = {"data": "data", "output_dir": "out"}
    with pytest.raises(ValueError, match=f"{missing}: got none"):
        trainer.train(TrainArguments(**names | {missing: ""}))


def test_time_that_is_over_before_the_first_step(data, start, mobilevit, tmp_path):
    words = [word for word in SHORT if word not in ("--max-steps", 2)]
    code, out, err = mobilevit(
        "train", data["image-classification"], "--model", start, "--output-dir", tmp_path / "run", *words,
        "--max-minutes", 0.05,
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert all(part in only_line(err) for part in ("max_minutes: got 0.05", "before the first step", "Give more"))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_size_are_refused(start, tmp_path):
    """Loaded as they are, most of the model would be new weights, and nobody would know."""
    folder = shutil.copytree(start, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["hidden_sizes"], config["neck_hidden_sizes"][-2:] = [8, 12, 20], [20, 24]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"other: its weights lack .*other shapes, such as mobilevit\."):
        start_classifier(TrainArguments(model=str(folder)), CLASSES, None)


def test_an_image_processor_without_a_crop_is_named(start, tmp_path):
    folder = shutil.copytree(start, tmp_path / "other")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"ViTImageProcessor.* without a crop_size, expected MobileViTImageProcessor"):
        start_classifier(TrainArguments(model=str(folder)), CLASSES, None)


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [("cpu", 2, 1, 1), ("cpu", 16, 1, 1), ("cpu", 1, 1, 0), ("cpu", 2, 4, 0), ("cuda", 16, 1, 8), ("cuda", 2, 4, 0)],
)
def test_workers_by_the_machine(device, cores, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: cores)
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    inputs = SimpleNamespace(arguments=TrainArguments(), accelerator=accelerator)
    assert TrainingInputs._num_workers(inputs) == expected


def test_the_bar_shows_no_loss_before_there_is_one(monkeypatch):
    """It is worked out every few steps: until then it would be "nan"."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(console, "messages", terminal)
    with TrainingBar() as bar:
        bar.update(Status(0.1, 1, 0.1, float("nan"), 0.01, 0.0, 60.0))
        bar._bar.refresh()
        first = terminal.file.getvalue()
        bar.update(Status(0.2, 2, 0.2, 0.75, 0.01, 5.0, 60.0))
        bar._bar.refresh()
    assert "step 1, lr 0.01, 1:00 left" in first
    assert "step 2, loss 0.750, lr 0.01, 5 images/s, 1:00 left" in terminal.file.getvalue()
