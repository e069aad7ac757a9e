"""Train, publish, download and predict through the loopback Hub, in clean processes."""

import json
import re
import socket

import pytest
import transformers
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi
from toy_datasets import CLASSES, draw_classification, draw_detection

from mobilevit_hf.hub import CARD_MARKER, CardOptions, publish

pytestmark = pytest.mark.slow

DRAW = {"image-classification": draw_classification, "object-detection": draw_detection}
SHORT = ["--max-steps", "2", "--per-device-train-batch-size", "4", "--dataloader-num-workers", "0", "--use-cpu"]
SHORT += ["--image-size", "64"]
# Prints output and exit code of several command lines, each with a token.
COMMANDS = """
    import contextlib, os
    from mobilevit_hf import cli

    for words, token in {lines}:
        sys.argv, os.environ["HF_TOKEN"] = ["mobilevit", *words], token
        with contextlib.redirect_stderr(sys.stdout):
            try:
                cli.main()
            except SystemExit as error:
                print("exit", error.code)
    """
CLASSIFIER = pytest.mark.parametrize("task", ["image-classification"], indirect=True)


@pytest.fixture(scope="module")
def run_commands(run_python):
    """A function that runs command lines in a clean process that uses the given Hub."""

    def run(hub, home, *lines, tokens=(TOKEN,)):
        lines = [(list(map(str, words)), token) for words in lines for token in tokens]
        return run_python(COMMANDS.format(lines=lines), hub.environment(home))

    return run


@pytest.fixture(scope="module", params=list(DRAW))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def published_run(task, initial_checkpoint, run_commands, tmp_path_factory):
    """A Hub with a model that its training published, the output folder and the output of the command."""
    folder = tmp_path_factory.mktemp("training")
    data = DRAW[task](folder / "shapes", train=16, validation=8)
    words = ["train", data, "--model", initial_checkpoint, "--output-dir", folder / "run", *SHORT, "--license", "mit"]
    with HubServer(token=TOKEN) as hub:
        words += ["--push-to-hub", "--hub-model-id", "user/shapes"]
        output = run_commands(hub, folder / "home", words)
        assert output.splitlines()[-1] == "exit 0", output
        yield hub, folder / "run", output


def prediction_code(task, source, image, **options):
    """Return code that prints the predictions of a stock pipeline as JSON."""
    threshold = ", threshold=0.0" if task == "object-detection" else ""
    return f"""
        import json, transformers
        model = transformers.pipeline({task!r}, {str(source)!r}, **{options})
        print(json.dumps(model({str(image)!r}{threshold})))
        """


@pytest.fixture(scope="module")
def photo(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    image.save(path)
    return path


def predict(task, folder, photo):
    """Return the predictions of a local model in this process."""
    options = {"threshold": 0.0} if task == "object-detection" else {}
    return transformers.pipeline(task, str(folder), trust_remote_code=False)(str(photo), **options)


def assert_close(predictions, expected):
    """Assert that labels are equal, and scores and boxes up to rounding."""
    assert len(predictions) == len(expected) > 0
    for prediction, target in zip(predictions, expected, strict=True):
        assert prediction["label"] == target["label"]
        assert prediction["score"] == pytest.approx(target["score"], abs=1e-4)
        assert prediction.get("box") == pytest.approx(target.get("box"), abs=1)


def test_published_model_runs_without_this_package(task, published_run, photo, run_python, tmp_path):
    hub, run, output = published_run
    assert f"Published: {hub.url}/user/shapes" in output
    options = {"trust_remote_code": True} if task == "object-detection" else {}
    code = prediction_code(task, "user/shapes", photo, **options)
    environment = hub.environment(tmp_path) | {"HF_TOKEN": ""}
    predictions = json.loads(run_python(code, environment, without_package=True).splitlines()[-1])
    assert_close(predictions, predict(task, run, photo))


def test_published_files_contain_no_local_paths(published_run):
    hub, run, _ = published_run
    files = hub.files("user/shapes")
    assert CARD_MARKER in files["README.md"].decode()
    assert files.keys().isdisjoint({"recipe.yaml", "metrics.jsonl"})
    assert not [name for name in files if name.startswith("checkpoints")]
    for name, content in files.items():
        assert not [text for text in (TOKEN, str(run.parent)) if text.encode() in content], name
        if not name.endswith((".png", ".safetensors")):
            assert not re.search(rf"\b{re.escape(socket.gethostname())}\b|/home/", content.decode()), name
    for path in (path for path in run.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes()


def test_publishing_again_makes_no_commit(published_run, monkeypatch):
    hub, run, _ = published_run
    hub.patch_client(monkeypatch)
    before = hub.files("user/shapes")
    assert publish(run, "user/shapes", card_options=CardOptions(license="mit")).commit is None
    assert hub.files("user/shapes") == before


@CLASSIFIER
def test_revisions_are_immutable(published_run, run_python, tmp_path, monkeypatch):
    hub, run, _ = published_run
    hub.patch_client(monkeypatch)
    first = hub.repository("user/shapes").branches["main"]
    publish(run, "user/shapes", card_options=CardOptions(license="mit"), revision="v1")
    assert hub.files("user/shapes", "v1") == hub.files("user/shapes")
    config = json.loads(hub.files("user/shapes")["config.json"]) | {"id2label": {0: "a", 1: "b"}}
    data = json.dumps(config).encode()
    HfApi().upload_file(path_or_fileobj=data, path_in_repo="config.json", repo_id="user/shapes")
    code = """
        import mobilevit_hf, transformers

        for revision in sys.argv[1:]:
            config = transformers.AutoConfig.from_pretrained("user/shapes", revision=revision)
            pipeline = mobilevit_hf.pipeline("image-classification", "user/shapes", revision=revision)
            assert pipeline.model.config.id2label == config.id2label
            print(*config.id2label.values())
        """
    code = code.replace("sys.argv[1:]", repr(("main", "v1", first)))
    names = run_python(code, hub.environment(tmp_path)).splitlines()
    assert names[-3:] == ["a b", " ".join(CLASSES), " ".join(CLASSES)]
    assert publish(run, "user/shapes", card_options=CardOptions(license="mit")).commit
    assert hub.files("user/shapes") == hub.files("user/shapes", "v1")


@CLASSIFIER
def test_interrupted_download_is_resumed(task, published_run, photo, run_python, tmp_path):
    hub, run, _ = published_run
    hub.requests.clear()
    hub.cut("GET", "/resolve/.*/model.safetensors", after=5000, times=2, answer=True)
    code = """
        from huggingface_hub import constants
        constants.DOWNLOAD_CHUNK_SIZE = 1024  # so that this small file has several chunks
        """
    code += prediction_code(task, "user/shapes", photo)
    predictions = json.loads(run_python(code, hub.environment(tmp_path), without_package=True).splitlines()[-1])
    assert_close(predictions, predict(task, run, photo))
    ranges = [r.headers["Range"] for r in hub.requests if r.method == "GET" and "safetensors" in r.path]
    assert ranges == [None, "bytes=4096-", "bytes=8192-"]  # after the complete chunks


@CLASSIFIER
def test_private_and_gated_repositories_need_a_token(published_run, run_commands, photo, tmp_path, monkeypatch):
    hub, run, _ = published_run
    hub.patch_client(monkeypatch)
    publish(run, "user/secret", card_options=CardOptions(license="mit"), private=True)
    publish(run, "user/gated", card_options=CardOptions(license="mit"))
    hub.gate("user/gated")
    lines = [("predict", photo, "--model", name, "--json") for name in ("user/secret", "user/gated")]
    output = run_commands(hub, tmp_path, *lines, tokens=("", TOKEN)).splitlines()
    assert [line for line in output if line.startswith("exit")] == ["exit 2", "exit 0"] * 2
    secret, gated = (line for line in output if line.startswith("error"))
    assert re.search("user/secret.*If it is private, sign in: hf auth login", secret)
    assert re.search("user/gated is gated.*hf auth login", gated)
    predictions = [json.loads(line) for line in output if line.startswith("{")]
    assert [predictions[0]] * 2 == predictions


def test_transformers_trainer_pushes_the_model(initial_checkpoint, photo, run_python, tmp_path):
    code = f"""
        import torch, transformers, mobilevit_hf

        model = mobilevit_hf.MobileViTForImageClassification.from_pretrained({str(initial_checkpoint)!r})
        processor = transformers.AutoImageProcessor.from_pretrained({str(initial_checkpoint)!r})
        data = [{{"pixel_values": torch.rand(3, 64, 64), "labels": i % 2}} for i in range(4)]
        arguments = transformers.TrainingArguments(
            {str(tmp_path / "run")!r}, max_steps=1, push_to_hub=True, hub_model_id="user/trained", use_cpu=True,
            report_to="none",
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=data, processing_class=processor)
        trainer.train()
        trainer.push_to_hub()
        """
    with HubServer(token=TOKEN) as hub:
        run_python(code, hub.environment(tmp_path / "home"))
        code = prediction_code("image-classification", "user/trained", photo)
        output = run_python(code, hub.environment(tmp_path / "other"), without_package=True)
    assert_close(json.loads(output.splitlines()[-1]), predict("image-classification", tmp_path / "run", photo))


def test_training_streams_a_pushed_dataset(initial_checkpoint, run_commands, run_python, tmp_path):
    data = draw_classification(tmp_path / "shapes", train=16, validation=8)
    code = f"""
        import datasets
        datasets.disable_progress_bars()
        datasets.load_dataset("imagefolder", data_dir={str(data)!r}).push_to_hub("user/drawn")
        """
    with HubServer(token=TOKEN) as hub:
        run_python(code, hub.environment(tmp_path / "home"))
        words = (
            "train",
            "user/drawn",
            "--streaming",
            "--model",
            initial_checkpoint,
            "--output-dir",
            tmp_path / "run",
            *SHORT,
        )
        words += ("--push-to-hub", "--hub-model-id", "user/shapes", "--license", "mit")
        output = run_commands(hub, tmp_path / "other", words)
        assert output.splitlines()[-1] == "exit 0", output
        files = hub.files("user/shapes")
    assert [request.path for request in hub.requests if "/datasets/user/drawn" in request.path]
    assert list(json.loads(files["config.json"])["id2label"].values()) == list(CLASSES)
    assert re.search(r"^datasets:\n- user/drawn$", files["README.md"].decode(), re.MULTILINE)
