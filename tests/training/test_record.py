"""Records of training runs, without paths, user names or machine names."""

import dataclasses
import getpass
import json
import shlex
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from card_folders import write_model
from toy_checkpoints import save_classifier
from toy_datasets import draw_classification, draw_detection, draw_segmentation
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

from mobilevit_hf.data.checks import check_dataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.evaluation import evaluate_model
from mobilevit_hf.hub import PUBLISHED_FILES, CardOptions, collect_metadata, render_card
from mobilevit_hf.hub.licenses import License, describe_initial_checkpoint, find_license
from mobilevit_hf.records import (
    RESULTS_FILE,
    TRAINING_FILE,
    InitialCheckpoint,
    ResultsRecord,
    TrainingRecord,
    read_record,
)
from mobilevit_hf.training import trainer
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.record import create_record, describe_dataset, training_command, write_training_record
from mobilevit_hf.training.state import TrainingResult

USER, HOST = "zaphodbeeblebrox", "heartofgold"
SHORT = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "image_size": 64,
    "dataloader_num_workers": 0,
    "use_cpu": True,
    "logging_steps": 2,
    "eval_steps": 0.5,
}


# Functions that write a dataset, Auto classes, and classes by task.
DRAWERS = {
    "image-classification": draw_classification,
    "object-detection": draw_detection,
    "image-segmentation": draw_segmentation,
}
AUTO_CLASSES = {
    "image-classification": AutoModelForImageClassification,
    "object-detection": AutoModelForObjectDetection,
    "image-segmentation": AutoModelForSemanticSegmentation,
}
CLASSES = {
    "image-classification": ["circle", "square"],
    "object-detection": ["circle", "square"],
    "image-segmentation": ["background", "circle", "square"],
}


@pytest.fixture(scope="module", params=list(DRAWERS))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def private_names():
    """Names of user and machine that no text contains by chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(getpass, "getuser", lambda: USER)
        patch.setattr(socket, "gethostname", lambda: f"{HOST}.galaxy")
        yield


@pytest.fixture(scope="module")
def run_dir(task, tiny_fields, private_names, tmp_path_factory):
    """Folder of a short training run on a dataset with one unreadable image."""
    home = tmp_path_factory.mktemp(USER)
    data = DRAWERS[task](home / "my shapes", train=24, validation=6)
    if task == "image-classification":
        (data / "train" / "circle" / "broken.png").write_bytes(b"no image")
    initial = save_classifier(home / "base", 72, 64, tiny_fields)
    (initial / "README.md").write_text("---\nlicense: cc-by-4.0\nbase_model: username/base\n---\n# Hi\n")
    folder = home / "runs" / "shapes"
    trainer.train(TrainArguments(data=str(data), model=str(initial), output_dir=str(folder), **SHORT))
    return folder


# --- a training run --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_is_recorded(task, run_dir):
    record = read_record(run_dir / TRAINING_FILE, TrainingRecord)
    assert record.task == task
    assert record.data.name == "my shapes"
    assert record.data.classes == CLASSES[task]
    assert record.data.images == {"train": 24, "validation": 6}
    assert record.data.skipped == ({"unreadable image": 1} if task == "image-classification" else {})
    counts = {
        "image-classification": 24,
        "object-detection": sum(1 + i % 3 for i in range(24)),
        "image-segmentation": 24 * 64 * 60,  # pixels below the unlabeled rows
    }
    assert sum(record.data.counts["train"].values()) == counts[task]
    assert record.data.widths["median"] == 64
    assert record.data.validation_cut_off is False
    assert record.steps == 4
    assert record.seconds > 0
    assert record.arguments["image_size"] == 64
    assert record.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record.versions["python"] == sys.version.split()[0]
    assert record.hardware.device == "cpu"
    license = {"id": "cc-by-4.0"}
    assert record.initial_checkpoint == InitialCheckpoint(
        kind="local", name="base", base_model="username/base", license=license
    )


@pytest.mark.slow
def test_intervals_contain_the_metric(run_dir):
    results = read_record(run_dir / RESULTS_FILE, ResultsRecord)
    low, high = results.intervals[results.metric]
    assert 0 <= low <= results.metrics[results.metric] <= high <= 1


@pytest.mark.slow
def test_published_files_contain_no_private_names(task, run_dir):
    card = render_card(collect_metadata(run_dir, CardOptions()), "user/shapes")
    texts = {name: (run_dir / name).read_text() for name in PUBLISHED_FILES if name.endswith(".json")}
    assert set(texts) == {"run.json", "results.json"}
    for name, text in {**texts, "README.md": card}.items():
        for secret in (USER, HOST, "galaxy", str(run_dir.parents[2]), str(Path.home()), "/tmp"):
            assert secret not in text, f"{name}: {secret}"
    assert set(PUBLISHED_FILES) & {"recipe.yaml", "checkpoints", "metrics.jsonl"} == set()


@pytest.mark.slow
def test_metadata_of_a_training_run(task, run_dir):
    metadata = collect_metadata(run_dir, CardOptions())
    model = AUTO_CLASSES[task].from_pretrained(run_dir)
    assert metadata.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert metadata.num_bytes == (run_dir / "model.safetensors").stat().st_size
    assert (metadata.task.name, metadata.dtype, metadata.image_size) == (task, "float32", 64)
    assert metadata.classes == tuple(CLASSES[task])
    assert metadata.license == License("cc-by-4.0")
    assert metadata.base_model == "username/base"
    assert metadata.threshold == getattr(model.config, "recommended_threshold", None)
    grid = "worst_images.png" if task == "image-segmentation" else "samples.png"
    assert {"curves.png", grid} <= set(metadata.figures)
    for name in metadata.figures:
        assert (run_dir / name).is_file()


@pytest.mark.slow
def test_unpublished_run_passes_on_its_license(run_dir):
    initial = describe_initial_checkpoint(str(run_dir))
    assert initial.base_model == "username/base"
    assert find_license(None, None, initial) == License("cc-by-4.0")


@pytest.mark.slow
def test_intervals_are_measured_on_the_saved_weights(tiny_fields, monkeypatch, tmp_path):
    """The first evaluation is the best, so its weights are evaluated again at the end."""
    evaluations = []

    def evaluate(model, *args, resamples, **options):
        result = evaluate_model(model, *args, resamples=resamples, **options)
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        evaluations.append((resamples, weights))
        return dataclasses.replace(result, metrics=result.metrics | {"accuracy": 1 / len(evaluations)})

    monkeypatch.setattr(trainer, "evaluate_model", evaluate)
    data = draw_classification(tmp_path / "data", train=24, validation=6)
    model = save_classifier(tmp_path / "base", 72, 64, tiny_fields)
    trainer.train(TrainArguments(data=str(data), model=str(model), output_dir=str(tmp_path / "run"), **SHORT))
    (first, best), (second, last), (third, again) = evaluations
    assert 0 < first < second == third
    assert all(torch.equal(tensor, again[name]) for name, tensor in best.items())
    assert not all(torch.equal(tensor, again[name]) for name, tensor in last.items())
    assert json.loads((tmp_path / "run" / RESULTS_FILE).read_text())["intervals"]["accuracy"]


# --- command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"model": "xxs"},
        {"model": "xs", "max_minutes": 8.5, "mixup": 0.2, "seed": 3},
        {"model": "apple/mobilevit-small", "decay_norms_and_biases": False, "bf16": True, "learning_rate": 1e-05},
        {"model": "s", "data_format": "coco", "anchors": "paper", "max_steps": 7},
    ],
)
def test_recorded_command_repeats_the_run(options, training_calls, mobilevit, tmp_path):
    arguments = TrainArguments(data=str(tmp_path), output_dir=str(tmp_path / "runs" / "DATA"), **options)
    words = shlex.split(training_command(arguments))
    assert words[:3] == ["mobilevit", "train", "DATA"]
    assert str(tmp_path) not in " ".join(words)
    code, _, err = mobilevit(*words[1:])
    assert code == 0, err
    assert training_calls == [dataclasses.replace(arguments, data="DATA", output_dir="runs/DATA")]


@pytest.fixture
def make_record(tmp_path):
    """Function that returns the record of a run with the given arguments."""
    report = check_dataset(load_dataset(draw_classification(tmp_path / "drawn", train=4, validation=2)))

    def make(**options):
        arguments = TrainArguments(data="user/shapes", license="mit", **options)
        return create_record(arguments, arguments.for_task("image-classification"), report, 64)

    return make


def test_command_has_placeholders_for_local_models(make_record, tmp_path):
    words = shlex.split(make_record(model=str(write_model(tmp_path / "mine"))).command)
    assert words == ["mobilevit", "train", "user/shapes", "--model", "MODEL"]


@pytest.mark.parametrize("name", ["garments", "xxs"])
def test_image_folder_is_not_mistaken_for_a_model(name, make_record, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "cat").mkdir(parents=True)
    record = make_record(model=name)
    assert shlex.split(record.command)[-2:] == ["--model", name]
    assert record.arguments["model"] == name


def test_deleted_initial_checkpoint_is_not_named(make_record, tmp_path):
    folder = write_model(tmp_path / "mine")
    record = make_record(model=str(folder))
    shutil.rmtree(folder)
    write_training_record(record, TrainingResult(tmp_path, "accuracy", None, 1, 1.0), PartialState())
    assert str(tmp_path) not in (tmp_path / TRAINING_FILE).read_text()


def test_dataset_record(tmp_path):
    report = check_dataset(load_dataset(draw_classification(tmp_path / "data", train=4, validation=0)))
    record = describe_dataset("imagenet-1k", report, streamed=False)
    assert (record.name, record.dataset) == ("ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k")
    assert describe_dataset("a/b:c", report, streamed=False).dataset == "a/b"
    local = describe_dataset(str(tmp_path / "data"), report, streamed=False)
    assert local.name == "data"
    assert local.dataset is None
    assert local.validation_cut_off is True  # there is no other validation split
