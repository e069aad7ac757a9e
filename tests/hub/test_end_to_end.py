"""From drawn images to an answer elsewhere, through the loopback Hub, in clean processes."""

import json
import re
import shlex
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
# Prints what the command says and its exit code, for each of several lines with the token to use.
COMMANDS = """
    import contextlib, os
    from mobilevit_hf import cli

    for words, token in {lines}:
        sys.argv, os.environ["HF_TOKEN"] = ["mobilevit", *words], token
        with contextlib.redirect_stderr(sys.stdout):
            try:
                cli.main()
            except SystemExit as end:
                print("exit", end.code)
    """
CLASSIFIER = pytest.mark.parametrize("task", ["image-classification"], indirect=True)


@pytest.fixture(scope="module")
def command(run_python):
    """A function that runs the command in a clean process whose Hub is the one given, for each line of words."""

    def run(hub, home, *lines, tokens=(TOKEN,)):
        lines = [(list(map(str, words)), token) for words in lines for token in tokens]
        return run_python(COMMANDS.format(lines=lines), hub.environment(home))

    return run


@pytest.fixture(scope="module", params=list(DRAW))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def trained(task, initial_checkpoint, command, tmp_path_factory):
    """A Hub with a model that its training has published, the training's folder and what it said."""
    folder = tmp_path_factory.mktemp("training")
    data = DRAW[task](folder / "shapes", train=16, validation=8)
    words = ["train", data, "--model", initial_checkpoint, "--output-dir", folder / "run", *SHORT, "--license", "mit"]
    with HubServer(token=TOKEN) as hub:
        words += ["--push-to-hub", "--hub-model-id", "user/shapes"]
        out = command(hub, folder / "home", words)
        assert out.splitlines()[-1] == "exit 0", out
        yield hub, folder / "run", out


def ask(task, source, image, **options):
    """Code that prints a stock pipeline's answers about an image, as JSON."""
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


def answers_of(task, folder, photo):
    """What a model of this folder answers in this process."""
    options = {"threshold": 0.0} if task == "object-detection" else {}
    return transformers.pipeline(task, str(folder), trust_remote_code=False)(str(photo), **options)


def assert_same(found, expected):
    """That answers are the same: names, and scores and boxes up to rounding."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one.get("box") == pytest.approx(other.get("box"), abs=1)


def test_train_publish_and_run_without_this_package(task, trained, photo, run_python, tmp_path):
    hub, run, out = trained
    assert f"Published: {hub.url}/user/shapes" in out
    options = {"trust_remote_code": True} if task == "object-detection" else {}
    code = ask(task, "user/shapes", photo, **options)
    environment = hub.environment(tmp_path) | {"HF_TOKEN": ""}  # it is public
    found = json.loads(run_python(code, environment, without_package=True).splitlines()[-1])
    assert_same(found, answers_of(task, run, photo))


def test_nothing_published_tells_where_it_was_made(trained):
    hub, run, _ = trained
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


def test_published_again_it_is_the_same(trained, monkeypatch):
    hub, run, _ = trained
    hub.patch_client(monkeypatch)
    before = hub.files("user/shapes")
    assert publish(run, "user/shapes", card_options=CardOptions(license="mit")).commit is None
    assert hub.files("user/shapes") == before


@CLASSIFIER
def test_revisions(trained, run_python, tmp_path, monkeypatch):
    """A branch and a commit stay what they were when main moves on."""
    hub, run, _ = trained
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
def test_a_download_that_is_cut_goes_on_where_it_ended(task, trained, photo, run_python, tmp_path):
    hub, run, _ = trained
    hub.requests.clear()
    hub.cut("GET", "/resolve/.*/model.safetensors", after=5000, times=2, answer=True)
    code = """
        from huggingface_hub import constants
        constants.DOWNLOAD_CHUNK_SIZE = 1024  # else so small a file comes at once or not at all
        """
    code += ask(task, "user/shapes", photo)
    found = json.loads(run_python(code, hub.environment(tmp_path), without_package=True).splitlines()[-1])
    assert_same(found, answers_of(task, run, photo))
    ranges = [r.headers["Range"] for r in hub.requests if r.method == "GET" and "safetensors" in r.path]
    assert ranges == [None, "bytes=4096-", "bytes=8192-"]  # the whole chunks that had come


@CLASSIFIER
def test_private_and_gated_repositories_ask_for_the_token(trained, command, photo, tmp_path, monkeypatch):
    hub, run, _ = trained
    hub.patch_client(monkeypatch)
    publish(run, "user/secret", card_options=CardOptions(license="mit"), private=True)
    publish(run, "user/gated", card_options=CardOptions(license="mit"))
    hub.gate("user/gated")
    lines = [("predict", photo, "--model", name, "--json") for name in ("user/secret", "user/gated")]
    out = command(hub, tmp_path, *lines, tokens=("", TOKEN)).splitlines()
    assert [line for line in out if line.startswith("exit")] == ["exit 2", "exit 0"] * 2
    secret, gated = (line for line in out if line.startswith("error"))
    assert re.search("user/secret.*If it is private, sign in: hf auth login", secret)
    assert re.search("user/gated is gated.*hf auth login", gated)
    answers = [json.loads(line) for line in out if line.startswith("{")]
    assert [answers[0]] * 2 == answers


def test_the_trainer_pushes_our_model(initial_checkpoint, photo, run_python, tmp_path):
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
        asked = ask("image-classification", "user/trained", photo)
        out = run_python(asked, hub.environment(tmp_path / "other"), without_package=True)
    assert_same(json.loads(out.splitlines()[-1]), answers_of("image-classification", tmp_path / "run", photo))


def test_a_data_set_is_pushed_and_streamed_into_a_training(initial_checkpoint, command, run_python, tmp_path):
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
        out = command(hub, tmp_path / "other", words)
        assert out.splitlines()[-1] == "exit 0", out
        files = hub.files("user/shapes")
    assert [request.path for request in hub.requests if "/datasets/user/drawn" in request.path]
    assert list(json.loads(files["config.json"])["id2label"].values()) == list(CLASSES)
    assert re.search(r"^datasets:\n- user/drawn$", files["README.md"].decode(), re.MULTILINE)


# --- a training that can't publish -----------------------------------------------------------------------------------


@pytest.fixture
def words(initial_checkpoint, tmp_path):
    data = draw_classification(tmp_path / "shapes", train=16, validation=8)
    return ["train", data, "--model", initial_checkpoint, "--output-dir", tmp_path / "run", *SHORT, "--push-to-hub"]


@pytest.mark.parametrize(
    ("more", "role", "expected"),
    [
        ([], "write", "--license"),
        (["--license", "mit"], "read", "The token may only read"),
        (["--license", "mit", "--hub-model-id", "apple/shapes"], "write", "user may not write to apple"),
        (["--license", "mit", "--hub-model-id", "a/b/c"], "write", "a/b/c"),
        (["--license", "mit", "--hub-model-id", "public", "--hub-private-repo"], "write", "user/public is public"),
    ],
)
def test_what_would_keep_the_result_is_said_before_the_training(more, role, expected, hub, words, mobilevit, tmp_path):
    hub.role = role
    HfApi().create_repo("public")
    code, _, err = mobilevit(*words, *more)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_result_that_could_not_be_published_is_whole(hub, words, mobilevit, tmp_path):
    hub.fail("POST", "/commit/", 403)
    code, _, err = mobilevit(*words, "--license", "mit", "--hub-private-repo", "--no-hub-images")
    line = err.splitlines()[-1]
    assert code == 2
    assert "The token may not write to user/run" in line
    assert hub.files("user/run") == {}
    told = shlex.split(line.partition("To publish it: mobilevit ")[2])
    assert told == ["publish", str(tmp_path / "run"), "user/run", "--license", "mit", "--private", "--no-images"]
    code, _, err = mobilevit(*told)
    assert code == 0, err
    assert hub.files("user/run")["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert not [name for name in hub.files("user/run") if name in ("mistakes.png", "samples.png")]
