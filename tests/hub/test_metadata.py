"""What a training records and a card is made from: the right numbers, and nothing that is nobody's business."""

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
from card_folders import APPLE, CLASSES, write_model, write_run
from hub_server import HubServer
from huggingface_hub import HfApi
from training_data import draw_classification, draw_detection
from transformers import AutoModelForImageClassification, AutoModelForObjectDetection, MobileViTImageProcessor

import mobilevit_hf
from mobilevit_hf import cli
from mobilevit_hf.data.checks import check_dataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.evaluation import evaluate_model
from mobilevit_hf.hub import Given, collect_facts, render_card
from mobilevit_hf.hub.licenses import License, describe_start, find_license, public_name
from mobilevit_hf.hub.metadata import PUBLISHED_FILES
from mobilevit_hf.training import record, trainer
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.record import RunRecord, command_of
from mobilevit_hf.training.reports import write_reports
from mobilevit_hf.training.state import TrainingResult
from mobilevit_hf.visualization import plots

USER, HOST = "zaphodbeeblebrox", "heartofgold"
SHORT = (
    *("--max-steps", 4, "--per-device-train-batch-size", 4, "--image-size", 64, "--dataloader-num-workers", 0),
    *("--use-cpu", "--logging-steps", 2, "--eval-steps", 0.5),
)


@pytest.fixture(scope="module", params=list(CLASSES))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def private():
    """This machine and its user have names that no text has by chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(getpass, "getuser", lambda: USER)
        patch.setattr(socket, "gethostname", lambda: f"{HOST}.galaxy")
        patch.setattr("mobilevit_hf.cli.train.tune_allocator", lambda: True)
        yield


def write_start(folder, fields):
    """A tiny classifier of random weights, to start from."""
    mobilevit_hf.MobileViTForImageClassification(mobilevit_hf.MobileViTConfig(**fields)).save_pretrained(folder)
    processor = MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def data_and_start(tiny_fields, tmp_path):
    data = draw_classification(tmp_path / "data", train=24, validation=6)
    return data, write_start(tmp_path / "start", tiny_fields)


@pytest.fixture(scope="module")
def run(task, tiny_fields, private, tmp_path_factory):
    """The folder of a short training, on data in which one image can't be read."""
    home = tmp_path_factory.mktemp(USER)
    draw = draw_classification if task == "image-classification" else draw_detection
    data = draw(home / "my shapes", train=24, validation=6)
    if task == "image-classification":
        (data / "train" / "circle" / "broken.png").write_bytes(b"no image")
    start = write_start(home / "start", tiny_fields)
    (start / "README.md").write_text("---\nlicense: cc-by-4.0\nbase_model: somebody/base\n---\n# Hi\n")
    folder = home / "runs" / "shapes"
    words = ("train", data, "--model", start, "--output-dir", folder, *SHORT)
    cli.app(list(map(str, words)), standalone_mode=False)
    return folder


def read(path):
    return json.loads(path.read_text())


# --- what a training records -----------------------------------------------------------------------------------------


def test_the_run_is_recorded(task, run):
    record, data = read(run / "run.json"), read(run / "run.json")["data"]
    detects = task == "object-detection"
    assert record["task"] == task
    assert data["name"] == "my shapes"
    assert data["classes"] == ["circle", "square"]
    assert data["images"] == {"train": 24, "validation": 6}
    assert data["skipped"] == ({} if detects else {"unreadable image": 1})
    objects = sum(1 + i % 3 for i in range(24)) if detects else 24
    assert sum(data["counts"]["train"].values()) == objects
    assert data["widths"]["median"] == 64
    assert data["validation_cut_off"] is False
    assert record["steps"] == 4
    assert record["seconds"] > 0
    assert record["arguments"]["image_size"] == 64
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["hardware"]["device"] == "cpu"
    assert record["start"] == {
        "kind": "local",
        "name": "start",
        "base_model": "somebody/base",
        "license": {"id": "cc-by-4.0"},
    }


def test_intervals_are_measured_at_the_end(run):
    results = read(run / "results.json")
    metric = results["metric"]
    low, high = results["intervals"][metric]
    assert 0 <= low <= results["metrics"][metric] <= high <= 1


def test_nothing_published_names_this_machine(task, run):
    """Its text files, and the card: no path, no user, no host."""
    card = render_card(collect_facts(run, Given()), "user/shapes")
    texts = {name: (run / name).read_text() for name in PUBLISHED_FILES if name.endswith(".json")}
    assert set(texts) == {"run.json", "results.json"}
    for name, text in {**texts, "README.md": card}.items():
        for secret in (USER, HOST, "galaxy", str(run.parents[2]), str(Path.home()), "/tmp"):
            assert secret not in text, f"{name}: {secret}"
    assert set(PUBLISHED_FILES) & {"recipe.yaml", "checkpoints", "metrics.jsonl"} == set()


def test_a_card_of_a_real_run(task, run):
    facts = collect_facts(run, Given())
    auto = AutoModelForImageClassification if task == "image-classification" else AutoModelForObjectDetection
    model = auto.from_pretrained(run)
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.num_bytes == (run / "model.safetensors").stat().st_size
    assert (facts.task, facts.dtype, facts.image_size) == (task, "float32", 64)
    assert facts.classes == ("circle", "square")
    assert facts.license == License("cc-by-4.0")
    assert facts.base_model == "somebody/base"
    assert facts.threshold == getattr(model.config, "recommended_threshold", None)
    assert {"curves.png", "samples.png"} <= set(facts.figures)
    for name in facts.figures:
        assert (run / name).is_file()


def test_a_child_inherits(run, tmp_path):
    """A run is started from without having been published: its record tells what it came from."""
    start = describe_start(str(run))
    assert start["base_model"] == "somebody/base"
    assert find_license(None, None, start) == License("cc-by-4.0")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"model": "xxs"},
        {"model": "xs", "max_minutes": 8.5, "mixup": 0.2, "seed": 3},
        {"model": "apple/mobilevit-small", "decay_norms_and_biases": False, "bf16": True, "learning_rate": 1e-05},
        {"model": "s", "data_format": "coco", "anchors": "paper", "max_steps": 7},
    ],
)
def test_the_command_says_the_same(options, monkeypatch, mobilevit, tmp_path):
    trained = []

    def note(arguments, listener):
        trained.append(arguments)
        return TrainingResult(Path(arguments.output_dir), "accuracy", None, 1, 1.0)

    monkeypatch.setattr("mobilevit_hf.cli.train.run_training", note)
    monkeypatch.chdir(tmp_path)
    asked = TrainArguments(data=str(tmp_path), output_dir=str(tmp_path / "runs" / "DATA"), **options)
    words = shlex.split(command_of(asked))
    assert words[:3] == ["mobilevit", "train", "DATA"]
    assert str(tmp_path) not in " ".join(words)
    code, _, err = mobilevit(*words[1:])
    assert code == 0, err
    assert trained == [dataclasses.replace(asked, data="DATA", output_dir="runs/DATA")]


@pytest.fixture
def record_of(tmp_path):
    """A function: arguments → what a training with them has recorded when it begins."""
    report = check_dataset(load_dataset(draw_classification(tmp_path / "drawn", train=4, validation=2)))

    def record(**options):
        asked = TrainArguments(data="user/shapes", license="mit", **options)
        return RunRecord(asked, asked, report, 64)

    return record


def test_the_command_hides_folders_and_names_hub_data(record_of, tmp_path):
    words = shlex.split(record_of(model=str(write_model(tmp_path / "mine"))).facts["command"])
    assert words == ["mobilevit", "train", "user/shapes", "--model", "START"]


@pytest.mark.parametrize(("name", "kind"), [("garments", "built-in"), ("xxs", "new weights")])
def test_a_folder_of_images_is_not_taken_for_the_model_of_its_name(name, kind, record_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "cat").mkdir(parents=True)
    facts = record_of(model=name).facts
    assert facts["start"]["kind"] == kind
    assert facts["start"].get("license") == ({"id": "mit"} if kind == "built-in" else None)
    assert shlex.split(facts["command"])[-2:] == ["--model", name]
    assert facts["arguments"]["model"] == name


def test_a_folder_that_is_gone_at_the_end_is_not_named(record_of, tmp_path):
    folder = write_model(tmp_path / "mine")
    record = record_of(model=str(folder))
    shutil.rmtree(folder)
    record.write(TrainingResult(tmp_path, "accuracy", None, 1, 1.0), PartialState())
    assert str(tmp_path) not in (tmp_path / "run.json").read_text()


def test_names_of_folders(tmp_path, private, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / USER).mkdir(parents=True)
    (tmp_path / "x" / "data.yaml").touch()
    assert public_name(Path("x")) == "x"
    assert public_name(Path("x") / "data.yaml") == "x"
    assert public_name(tmp_path / "x" / USER) is None
    assert public_name(Path.home()) is None
    assert public_name(Path("/")) is None


def test_a_data_set_of_the_hub(monkeypatch, tmp_path):
    report = check_dataset(load_dataset(draw_classification(tmp_path / "data", train=4, validation=0)))
    facts = record.describe_data("imagenet-1k", report, streamed=False)
    assert (facts["name"], facts["dataset"]) == ("ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k")
    assert record.describe_data("a/b:c", report, streamed=False)["dataset"] == "a/b"
    local = record.describe_data(str(tmp_path / "data"), report, streamed=False)
    assert local["name"] == "data"
    assert "dataset" not in local
    assert local["validation_cut_off"] is True  # nothing else in these few images could have measured it


# --- licenses --------------------------------------------------------------------------------------------------------


def test_new_weights_need_a_license():
    start = describe_start("xxs")
    assert start == {"kind": "new weights", "name": "xxs"}
    with pytest.raises(ValueError, match=r"new weights.*--license"):
        find_license(None, None, start)
    assert find_license(License("MIT"), None, start) == License("mit")


def test_a_local_checkpoint_needs_a_license(tmp_path):
    start = describe_start(str(write_model(tmp_path / "mine")))
    assert start == {"kind": "local", "name": "mine"}
    with pytest.raises(ValueError, match=r"started from mine.*--license"):
        find_license(None, None, start)


def test_a_folder_without_a_record_needs_a_license(tmp_path):
    with pytest.raises(ValueError, match="--license"):
        collect_facts(write_model(tmp_path / "mine"), Given())
    assert collect_facts(tmp_path / "mine", Given(license="mit")).license == License("mit")


@pytest.mark.parametrize("base", ["apple/mobilevit-small", "apple/deeplabv3-mobilevit-small"])
def test_children_of_apples_weights(base, tmp_path):
    folder = write_model(tmp_path / "model")
    assert collect_facts(folder, Given(base_model=base)).license == License(**APPLE)
    # Where the Hub can't be asked too, and whatever a card in between says.
    for card in (
        f"---\nlicense: apache-2.0\nbase_model: {base}\n---\n",
        f"---\nlicense: mit\nbase_model:\n- {base}\n---\n",
    ):
        (folder / "README.md").write_text(card)
        assert find_license(None, None, describe_start(str(folder))) == License(**APPLE)


def test_the_license_on_the_hub(monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.take_over(monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        cards = {
            "user/mit": "---\nlicense: mit\n---\n",
            "user/other": "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n",
            "user/nameless": "---\nlicense: other\n---\n",
            "user/none": "# No front matter\n",
            "user/broken": "---\nlicense: [\n---\n",
            "apple/mobilevit-small": "---\nlicense: other\n---\n",
            "user/child": "---\nlicense: apache-2.0\nbase_model: apple/mobilevit-small\n---\n",
        }
        for repo, text in cards.items():
            HfApi().create_repo(repo)
            HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo)
        HfApi().create_repo("user/empty")
        found = {repo: describe_start(repo) for repo in (*cards, "user/empty")}
    assert {start["base_model"] for start in found.values()} == set(found)
    licenses = {repo: start.get("license") for repo, start in found.items()}
    assert licenses == {
        "user/mit": {"id": "mit"},
        "user/other": {"id": "other", "name": "mine", "link": "LICENSE"},
        "user/nameless": None,
        "user/none": None,
        "user/broken": None,
        "apple/mobilevit-small": APPLE,
        "user/child": None,
        "user/empty": None,
    }
    with pytest.raises(ValueError, match="user/child, whose license"):
        find_license(None, None, found["user/child"])


def test_apples_license_without_a_connection(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert describe_start("apple/mobilevit-xx-small")["license"] == APPLE


@pytest.mark.parametrize(
    ("license", "words"),
    [(License("all mine"), "'all mine'"), (License("other"), "--license-name"), (License("-"), "'-'")],
)
def test_what_is_no_license(license, words):
    with pytest.raises(ValueError, match=words):
        find_license(license, None, {})


# --- folders ---------------------------------------------------------------------------------------------------------


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        collect_facts(tmp_path, Given(license="mit"))
    write_model(tmp_path / "other", architectures=["ViTForImageClassification"])
    with pytest.raises(ValueError, match="ViTForImageClassification"):
        collect_facts(tmp_path / "other", Given(license="mit"))


@pytest.mark.parametrize("name", ["model.safetensors", "results.json", "run.json", "config.json"])
def test_files_that_are_broken(name, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=name):
        collect_facts(folder, Given(license="mit"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.json", "[1]", "got list"),
        ("results.json", '{"metrics": {"accuracy": 1}}', "no split, num_images"),
        ("evaluation-test.json", '{"answer": 1}', "no split, num_images, metrics"),
        ("evaluation-test.json", "null", "got NoneType"),
    ],
)
def test_files_of_something_else_are_named(name, text, words, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.*{words}.*Remove it"):
        collect_facts(folder, Given(license="mit"))


def test_a_copy_of_the_weights_is_not_counted(tmp_path):
    folder = write_model(tmp_path / "model")
    shutil.copy(folder / "model.safetensors", folder / "model-before.safetensors")
    facts = collect_facts(folder, Given(license="mit"))
    assert (facts.parameters, facts.num_bytes) == (150_000, (folder / "model.safetensors").stat().st_size)


def test_what_is_given_wins(tmp_path):
    given = Given(license="mit", base_model="user/base", datasets=("user/data",))
    facts = collect_facts(write_run(tmp_path / "run"), given)
    assert (facts.license.id, facts.base_model, facts.datasets) == ("mit", "user/base", ("user/data",))
    with pytest.raises(ValueError, match="user/base, whose license"):  # the one recorded is that of another base
        collect_facts(tmp_path / "run", Given(base_model="user/base"))


# --- what is drawn and measured at the end ---------------------------------------------------------------------------


def test_intervals_are_those_of_the_weights_that_are_kept(data_and_start, private, monkeypatch, tmp_path):
    """The first evaluation is the best, so its weights are measured again at the end."""
    measured = []

    def measure(model, *args, resamples, **options):
        result = evaluate_model(model, *args, resamples=resamples, **options)
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        measured.append((resamples, weights))
        return dataclasses.replace(result, metrics=result.metrics | {"accuracy": 1 / len(measured)})

    monkeypatch.setattr(trainer, "evaluate_model", measure)
    data, start = data_and_start
    words = ("train", data, "--model", start, "--output-dir", tmp_path / "run", *SHORT)
    cli.app(list(map(str, words)), standalone_mode=False)
    (first, best), (second, last), (third, again) = measured
    assert first == 0 < second == third
    assert all(torch.equal(tensor, again[name]) for name, tensor in best.items())
    assert not all(torch.equal(tensor, again[name]) for name, tensor in last.items())
    assert read(tmp_path / "run" / "results.json")["intervals"]["accuracy"]


def test_curves_show_the_metric(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(plots, "save_plot", lambda figure, path: drawn.setdefault(path.name, figure))
    history = [{"step": 1, "loss": 0.5, "learning_rate": 0.1}, {"step": 1, "eval_accuracy": 0.5}]
    write_reports(TrainingResult(tmp_path, "accuracy", 0.5, 1, 1.0, None, history), None, CLASSES)
    assert [axes.get_ylabel() for axes in drawn["curves.png"].axes] == ["training loss", "accuracy", "learning rate"]
