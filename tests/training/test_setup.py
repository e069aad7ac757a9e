"""Setup of a training run: order and errors of the validation."""

import json
import shutil
from collections import Counter

import pytest
from dataset_files import save_noise_images
from training_runs import SHORT, list_files, only_line

from mobilevit_hf.data import checks
from mobilevit_hf.hub import HubError
from mobilevit_hf.modeling.layers_cpu import FastDropout, TokenLinear
from mobilevit_hf.training import setup
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.callbacks import TrainerCallback
from mobilevit_hf.training.setup import count_steps
from mobilevit_hf.training.trainer import train

SCAN_STARTED = "An image was decoded"


@pytest.fixture
def no_decoding(monkeypatch):
    """Decoding an image raises."""

    def load(image):
        raise RuntimeError(SCAN_STARTED)

    monkeypatch.setattr(checks, "load_with_losses", load)


@pytest.fixture
def no_listing(no_decoding, monkeypatch):
    """Listing the dataset raises, too."""

    def load_dataset(*args, **kwargs):
        raise RuntimeError("The dataset was listed")

    monkeypatch.setattr(setup, "load_dataset", load_dataset)


@pytest.fixture
def make_options(small_datasets, initial_checkpoint, detector_dir, tmp_path):
    """Function that returns arguments with replaced options; paths are relative to a folder with invalid models."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    shutil.copytree(detector_dir, tmp_path / "detector")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")

    def make(**options):
        for name in ("output_dir", "model"):
            if options.get(name) and (tmp_path / options[name]).exists():
                options[name] = str(tmp_path / options[name])
        defaults = {"data": small_datasets["image-classification"], "model": initial_checkpoint}
        defaults |= {"output_dir": tmp_path / "run"}
        return TrainArguments(**{name: str(value) for name, value in defaults.items()} | {"use_cpu": True} | options)

    return make


INDEPENDENT_ERRORS = [
    ({"data": ""}, "^data: got none"),
    ({"output_dir": ""}, "^output_dir: got none"),
    ({"output_dir": "used"}, "got .*used with notes.txt but no checkpoint.*--output-dir"),
    ({"report_to": "wandb"}, "^report_to: got wandb, which is not installed"),
    ({"fp16": True}, "^fp16: got a CPU"),
    ({"model": "user/nothing at all"}, "There is no directory user/nothing at all"),
    ({"model": "bert"}, "^model: got .*bert of type bert"),
    ({"model": "xxs", "push_to_hub": True}, "^license: "),
    ({"push_to_hub": True}, "^license: "),
    ({"push_to_hub": True, "license": "no license!"}, "^license: got 'no license!'"),
    ({"push_to_hub": True, "license": "other"}, "^license: got other"),
]
DEPENDENT_ERRORS = [
    ({"model": "detector"}, "^model: got .*detector of type mobilevit_ssdlite, expected mobilevit or mobilevit_back"),
    ({"metric_for_best_model": "map"}, "^metric_for_best_model: got 'map'"),
    ({"metric_for_best_model": "top_5_accuracy"}, "^metric_for_best_model: got top_5_.* at least 10 .* acc"),
    ({"zoom_out": 0.5}, "^zoom_out: applies to object-detection only"),
    ({"task": "object-detection"}, ": got annotations for image-classification, expected object-detection"),
]


@pytest.mark.parametrize(("options", "expected"), INDEPENDENT_ERRORS)
def test_options_are_checked_before_the_dataset_is_listed(options, expected, make_options, no_listing, tmp_path):
    before = list_files(tmp_path)
    with pytest.raises(ValueError, match=expected):
        train(make_options(**options))
    assert list_files(tmp_path) == before


@pytest.mark.parametrize(("options", "expected"), DEPENDENT_ERRORS)
def test_options_of_the_task_are_checked_before_images_are_decoded(
    options, expected, make_options, no_decoding, tmp_path
):
    before = list_files(tmp_path)
    with pytest.raises(ValueError, match=expected):
        train(make_options(**options))
    assert list_files(tmp_path) == before


@pytest.mark.parametrize(("repository", "role"), [("user/shapes", "read"), ("apple/shapes", "write")])
def test_write_access_is_checked_before_the_dataset_is_listed(repository, role, hub, make_options, no_listing):
    hub.role = role
    with pytest.raises(HubError):
        train(make_options(push_to_hub=True, license="mit", hub_model_id=repository))


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"learning_rate": 0.02}, r"learning_rate \(was 0\.01, is 0\.02\)"), ({}, "there is no intact one")],
)
def test_checkpoint_is_checked_before_images_are_decoded(
    options, expected, make_arguments, uninterrupted_run, no_decoding, tmp_path
):
    shutil.copytree(uninterrupted_run, tmp_path / "run")
    if not options:
        for path in (tmp_path / "run/checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=expected):
        train(make_arguments(tmp_path / "run", resume="auto", **options))


def test_valid_options_reach_the_scan(make_options, no_decoding):
    with pytest.raises(RuntimeError, match=SCAN_STARTED):
        train(make_options())


def test_one_class_is_trained_on_request_only(make_options, no_decoding, tmp_path):
    save_noise_images(tmp_path / "images", ["1.png", "2.png"])
    (tmp_path / "images" / "labels.csv").write_text("filename,label\n1.png,cat\n2.png,cat\n")
    data = str(tmp_path / "images")
    with pytest.raises(ValueError, match=r'got one class, cat.*data_format="csv"'):
        train(make_options(data=data))
    dataset = setup.load_training_dataset(make_options(data=data, data_format="csv"))
    assert dataset.notes[-1] == "The only class is cat: the accuracy is 100%, whatever is learned."


def test_model_is_trained_with_the_faster_layers(make_options):
    arguments = make_options(max_steps=1, dataloader_num_workers=0)
    run = setup.prepare_run(arguments, setup.create_accelerator(arguments), TrainerCallback())
    layers = Counter(type(layer) for layer in run.model.modules())
    assert layers[TokenLinear] == 6 * 9  # six in each of nine transformer layers
    assert layers[FastDropout] == 3 * 9


def test_time_limit_before_the_first_step_raises(small_datasets, initial_checkpoint, mobilevit, tmp_path):
    options = [word for word in SHORT if word not in ("--max-steps", 2)]
    data = small_datasets["image-classification"]
    paths = ("--model", initial_checkpoint, "--output-dir", tmp_path / "run")
    code, out, err = mobilevit("train", data, *paths, *options, "--max-minutes", 0.05)
    assert (code, out) == (2, "")
    assert all(part in only_line(err) for part in ("--max-minutes: got 0.05", "before the first step", "Increase it"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "steps_per_epoch", "expected"),
    [
        ({}, 100, 1200),
        ({}, 10, 300),
        ({"model": "xxs"}, 10, 900),
        ({"num_train_epochs": 0.25}, 10, 3),
        ({"max_steps": 7}, 10, 7),
        ({"max_minutes": 1}, 10, None),
        ({"max_minutes": 1, "num_train_epochs": 2}, 10, 20),
        ({"max_minutes": 1, "streaming": True}, None, None),
    ],
)
def test_number_of_steps(options, steps_per_epoch, expected):
    arguments = TrainArguments(**options).for_task("image-classification")
    assert count_steps(arguments, "image-classification", steps_per_epoch) == expected
