"""What `mobilevit publish` sends, and what it leaves alone: read from the loopback Hub, file by file."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import mobilevit_hf
from mobilevit_hf import MobileViTForImageClassification
from mobilevit_hf.backends.cache import weights_hash
from mobilevit_hf.hub import CARD_MARKER, Given, HubError, check_access, publish
from mobilevit_hf.model_sources import builtin_models

REPO = "user/shapes"
GIVEN = Given(license="mit")
MODEL = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
CODE = {
    "configuration_mobilevit.py",
    "configuration_mobilevit_ssdlite.py",
    "image_processing_mobilevit_ssdlite.py",
    "layers_mobilevit.py",
    "modeling_mobilevit.py",
    "modeling_mobilevit_ssdlite.py",
    "ssdlite.py",
}
BY_HAND = "---\nlicense: mit\n---\n# Mine\n"


@pytest.fixture
def send(said):
    """A function that publishes a folder as `REPO`; what it says is in `said`."""

    def send(folder, **options):
        return publish(folder, REPO, **{"given": GIVEN, "say": said.append} | options)

    return send


def content_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(hub):
    """The requests that change something."""
    return [r for r in hub.requests if r.method != "GET" and not r.path.endswith("/validate-yaml")]


# --- what is published -----------------------------------------------------------------------------------------------


def test_a_classifier(hub, classifier, send):
    before = content_of(classifier)
    publication = send(classifier)
    files = hub.files(REPO)
    assert files.keys() - {name for name in files if name.startswith(".eval_results/")} == MODEL
    for name in MODEL - {"README.md"}:
        assert files[name] == (classifier / name).read_bytes()
    assert publication.url == f"{hub.url}/{REPO}"
    assert publication.files == {name: len(data) for name, data in files.items()}
    assert files["README.md"].decode() == publication.card
    assert CARD_MARKER in publication.card
    assert publication.commit == HfApi().model_info(REPO).sha
    assert content_of(classifier) == before
    assert hub.commits(REPO) == 2  # the repository's own and this one


@pytest.mark.parametrize("has_code", [True, False])
def test_a_detector_brings_its_code(hub, detector, send, tmp_path, has_code):
    folder = Path(shutil.copytree(detector, tmp_path / "detector"))
    if not has_code:
        for path in folder.glob("*.py"):
            path.unlink()
        for name in ("config.json", "preprocessor_config.json"):
            values = json.loads((folder / name).read_text())
            del values["auto_map"]
            (folder / name).write_text(json.dumps(values))
    send(folder)
    files = hub.files(REPO)
    assert {name for name in files if name.endswith(".py")} == CODE
    for name in (*CODE, "config.json", "preprocessor_config.json"):
        saved = (detector / name).read_bytes()
        same = json.loads(files[name]) == json.loads(saved) if name.endswith(".json") else files[name] == saved
        assert same, name


def test_code_saved_with_the_weights_is_kept(hub, detector, send, tmp_path):
    folder = Path(shutil.copytree(detector, tmp_path / "detector"))
    with (folder / "ssdlite.py").open("a") as file:
        file.write("\n# as it was then\n")
    send(folder)
    assert hub.files(REPO)["ssdlite.py"].endswith(b"# as it was then\n")


def test_a_classifier_has_no_code_and_tells_no_path(hub, classifier, send):
    config = json.loads((classifier / "config.json").read_text())
    pointers = {"auto_map": {"AutoConfig": "evil.Config"}, "_name_or_path": "/home/me/start"}
    (classifier / "config.json").write_text(json.dumps(config | pointers))
    (classifier / "evil.py").write_text("")
    send(classifier)
    assert json.loads(hub.files(REPO)["config.json"]) == config
    assert "evil.py" not in hub.files(REPO)


def test_only_what_belongs_to_the_model(hub, classifier, send, tmp_path):
    secret = tmp_path / "secret.onnx"
    secret.write_bytes(b"secret")
    for name in ("checkpoints/step-1.pt", "recipe.yaml", "metrics.jsonl", ".env", "notes.txt", "onnx/.cache/a.onnx"):
        (classifier / name).parent.mkdir(exist_ok=True, parents=True)
        (classifier / name).write_text("local")
    wanted = {"curves.png", "samples.png", "onnx/model.onnx", "openvino/model.xml", "openvino/model.bin"}
    wanted |= {"executorch/model.pte", "coreml/model.mlpackage/Data/weight.bin"}
    for name in wanted:
        (classifier / name).parent.mkdir(exist_ok=True, parents=True)
        (classifier / name).write_bytes(name.encode())
    publication = send(classifier)
    assert {name for name in hub.files(REPO) if not name.startswith(".eval_results/")} == MODEL | wanted
    assert {"checkpoints", "recipe.yaml", "metrics.jsonl", ".env", "notes.txt"} == set(publication.left_out)


def test_exports_and_their_record(hub, classifier, send):
    """What `pipeline(..., backend=...)` takes them by, if they are of these weights."""
    model = MobileViTForImageClassification.from_pretrained(classifier)
    (classifier / "onnx").mkdir()
    (classifier / "onnx" / "model.onnx").write_bytes(b"program")
    entry = {"backend": "onnx", "dtype": "float32", "quantization": None, "file": "onnx/model.onnx"}
    record = classifier / "export.json"
    record.write_text(json.dumps([entry | {"weights": weights_hash(model)}]))
    send(classifier)
    assert hub.files(REPO)["export.json"] == record.read_bytes()
    assert hub.files(REPO)["onnx/model.onnx"] == b"program"
    # Else a browser would ask for a quantized file.
    assert json.loads(hub.files(REPO)["config.json"])["transformers.js_config"] == {"dtype": "fp32"}
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(classifier)
    with pytest.raises(ValueError, match=r"onnx/model\.onnx was made of other weights"):
        send(classifier)


def test_images_of_the_data_can_stay(hub, classifier, send):
    for name in ("curves.png", "samples.png", "mistakes.png"):
        (classifier / name).write_bytes(b"")
    send(classifier, given=Given(license="mit", images=False))
    assert {name for name in hub.files(REPO) if name.endswith(".png")} == {"curves.png"}


def test_weights_in_shards_and_in_one_file(hub, classifier, send):
    whole = (classifier / "model.safetensors").read_bytes()
    (classifier / "model.safetensors").unlink()
    model = AutoModelForImageClassification.from_pretrained(hub_free(classifier, whole))
    model.save_pretrained(classifier, max_shard_size="20KB")
    shards = {path.name for path in classifier.glob("model-*.safetensors")}
    assert len(shards) > 1
    send(classifier)
    assert {name for name in hub.files(REPO) if "model" in name} == shards | {"model.safetensors.index.json"}
    for name in (*shards, "model.safetensors.index.json"):
        (classifier / name).unlink()
    (classifier / "model.safetensors").write_bytes(whole)
    publication = send(classifier)
    assert {name for name in hub.files(REPO) if "model" in name} == {"model.safetensors"}
    assert set(publication.deleted) == shards | {"model.safetensors.index.json"}


def hub_free(folder, weights):
    """A copy of a folder with other weights."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").write_bytes(weights)
    return copy


# --- what is refused -------------------------------------------------------------------------------------------------


def spoil_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **values):
    path = folder / "config.json"
    values = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def link_out(folder):
    outside = folder.with_name("outside.safetensors")
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


SPOILT = {
    "a tensor that is not finite": (spoil_weights, r"classifier\.bias in model\.safetensors has values"),
    "weights cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10]),
        "model.safetensors is no safetensors file",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "pickled weights": (pickle_weights, "pickled.*mobilevit convert"),
    "no names": (lambda folder: edit_config(folder, id2label=None, label2id=None), "id2label"),
    "placeholders": (
        lambda folder: edit_config(folder, id2label={"0": "LABEL_0", "1": "LABEL_1"}),
        "id2label",
    ),
    "names in a list": (
        lambda folder: edit_config(folder, id2label=["cat", "dog"]),
        'id2label in config.json, such as {"0"',
    ),
    "a class without a number": (lambda folder: edit_config(folder, id2label={"cat": "cat"}), "'cat' as the number"),
    "another model": (lambda folder: edit_config(folder, model_type="vit"), "type vit, expected mobilevit"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "is no model"),
    "no JSON": (write("config.json", "{"), "config.json is not JSON"),
    "no image processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    "a link out of the folder": (link_out, "model.safetensors is a link out of the folder"),
    "a token": (write("README.md", f"# Mine\nlogin with hf_{'aB3' * 11}x"), "README.md holds what looks like a token"),
    "its own token": (write("README.md", f"# Mine\n{TOKEN}"), "README.md holds your token"),
    "a key": (lambda folder: edit_config(folder, note="AKIAABCDEFGHIJKLMNOP"), "config.json.*a key of AWS"),
    "a private key": (write("README.md", "-----BEGIN OPENSSH PRIVATE KEY-----"), "README.md.*private key"),
    "a path": (lambda folder: edit_config(folder, source=f"{folder}/start"), "config.json holds a path"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_refused_before_anything_is_sent(kind, hub, classifier, send):
    spoil, expected = SPOILT[kind]
    spoil(classifier)
    with pytest.raises(ValueError, match=expected) as error:
        send(classifier)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)
    assert not written(hub)


def test_all_reasons_at_once(hub, classifier, send):
    spoil_weights(classifier)
    edit_config(classifier, id2label=None)
    (classifier / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="classifier") as error:
        send(classifier)
    assert all(part in str(error.value) for part in ("id2label", "preprocessor_config.json is missing"))


def test_a_license_has_to_be_known(hub, classifier, send):
    with pytest.raises(ValueError, match="--license"):
        send(classifier, given=Given())
    assert not written(hub)


@pytest.mark.parametrize("name", ["a b", "user/a/b", "user/--", "user/x.git"])
def test_names_that_cannot_be(hub, classifier, name):
    with pytest.raises(ValueError, match=re.escape(name)):
        publish(classifier, name, given=GIVEN)
    assert not hub.requests


# --- other people's work ---------------------------------------------------------------------------------------------


def upload(content, name="README.md"):
    HfApi().upload_file(path_or_fileobj=content.encode(), path_in_repo=name, repo_id=REPO)


def test_again_is_no_commit(hub, classifier, send):
    send(classifier)
    commits = hub.commits(REPO)
    hub.requests.clear()
    assert send(classifier).commit is None
    assert hub.commits(REPO) == commits
    assert not written(hub)


def test_only_what_differs_is_sent(hub, classifier, send):
    send(classifier)
    edit_config(classifier, note="new")
    hub.requests.clear()
    send(classifier)
    (commit,) = (request for request in hub.requests if "/commit/" in request.path)
    lines = [json.loads(line) for line in commit.body.splitlines()]
    assert [line["value"]["path"] for line in lines[1:]] == ["config.json"]
    assert not [request for request in hub.requests if request.method == "PUT"]
    assert json.loads(hub.files(REPO)["config.json"])["note"] == "new"


def test_a_card_by_hand_on_the_hub_is_kept(hub, classifier, send, said):
    HfApi().create_repo(REPO)
    upload(BY_HAND)
    send(classifier)
    assert hub.files(REPO)["README.md"].decode() == BY_HAND
    assert hub.files(REPO).keys() >= MODEL
    assert said == [f"The card of {REPO} was not written by this command, and is kept; --overwrite-card replaces it."]
    said.clear()
    send(classifier, overwrite_card=True)
    assert CARD_MARKER in hub.files(REPO)["README.md"].decode()
    assert said == [f"The card of {REPO} was not written by this command, and is replaced."]


def test_our_card_on_the_hub_is_made_anew(hub, classifier, send, said):
    HfApi().create_repo(REPO)
    upload(f"---\nlicense: mit\n---\n{CARD_MARKER}\n# Old\n")
    send(classifier)
    assert "# Old" not in hub.files(REPO)["README.md"].decode()
    assert not said


def test_a_card_by_hand_in_the_folder_is_published_as_it_is(hub, classifier, send):
    (classifier / "README.md").write_text(BY_HAND)
    send(classifier, given=Given())
    assert hub.files(REPO)["README.md"].decode() == BY_HAND
    (classifier / "README.md").write_text(BY_HAND + "More.\n")
    send(classifier, given=Given(), overwrite_card=True)
    assert hub.files(REPO)["README.md"].decode() == BY_HAND + "More.\n"


def test_files_of_others_stay(hub, classifier, send, said):
    (classifier / "curves.png").write_bytes(b"curves")
    send(classifier)
    for name in ("notes.txt", "app.py", "onnx/other.onnx", ".eval_results/theirs.yaml"):
        upload("theirs", name)
    (classifier / "curves.png").unlink()
    publication = send(classifier)
    assert publication.deleted == ("curves.png",)
    assert hub.files(REPO).keys() >= MODEL | {"notes.txt", "app.py", "onnx/other.onnx", ".eval_results/theirs.yaml"}
    (line,) = said
    assert line.endswith("may be of other weights: .eval_results/theirs.yaml, onnx/other.onnx")


def test_somebody_else_commits_meanwhile(hub, classifier, send):
    """A card that arrives between the look at the repository and the commit is not lost."""
    HfApi().create_repo(REPO)
    answer = hub.answer

    def answer_late(request, fault=None):
        if "/commit/" in request.path and "README.md" not in hub.files(REPO):
            hub.answer = answer
            upload(BY_HAND)
        return answer(request, fault)

    hub.answer = answer_late
    send(classifier)
    assert hub.files(REPO)["README.md"].decode() == BY_HAND
    assert hub.files(REPO).keys() >= MODEL
    assert hub.commits(REPO) == 3


def test_private(hub, classifier, send):
    send(classifier, private=True)
    assert HfApi().model_info(REPO).private
    assert not HfApi(token=False).repo_exists(REPO)
    send(classifier)  # stays so
    assert HfApi().model_info(REPO).private


def test_a_public_repository_is_not_taken_for_a_private_one(hub, classifier, send):
    HfApi().create_repo(REPO)
    with pytest.raises(ValueError, match="is public, and nothing was sent"):
        send(classifier, private=True)
    assert not hub.files(REPO)


def test_a_branch(hub, classifier, send):
    send(classifier)
    edit_config(classifier, note="tried")
    first = send(classifier, revision="try/new").commit
    assert json.loads(hub.files(REPO, "try/new")["config.json"])["note"] == "tried"
    assert "note" not in json.loads(hub.files(REPO)["config.json"])
    assert send(classifier, revision="try/new").commit is None
    assert hub.files(REPO, first) == hub.files(REPO, "try/new")


def test_a_name_alone_is_the_users(hub, classifier, said):
    publication = publish(classifier, "shapes", given=GIVEN, say=said.append)
    assert publication.url == f"{hub.url}/user/shapes"
    assert "user/shapes" in publication.card


# --- dry run and command ---------------------------------------------------------------------------------------------


def test_dry_run_asks_nobody(hub, classifier, send, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = content_of(classifier)
    dry = send(classifier, dry_run=True)
    assert not hub.requests
    assert dry.commit is None
    assert content_of(classifier) == before
    hub.take_over(monkeypatch)
    done = send(classifier)
    assert (done.files, done.card) == (dry.files, dry.card)


def test_command(hub, classifier, mobilevit):
    words = ("publish", classifier, REPO, "--license", "mit", "--dataset", "user/drawn", "--tag", "shapes")
    code, out, err = mobilevit(*words, "--dry-run")
    assert code == 0
    assert not hub.requests
    assert out.splitlines()[-1] == f"{hub.url}/{REPO}"
    assert CARD_MARKER in out
    assert "Nothing was sent" in err
    dry_table = out.partition("---")[0].split()
    code, out, err = mobilevit(*words)
    assert code == 0
    assert out.splitlines()[-1] == f"{hub.url}/{REPO}"
    assert dry_table[:-1] == out.split()[: len(dry_table) - 1]
    for name, data in hub.files(REPO).items():
        assert re.search(rf"^{re.escape(name)} +{shown_size(len(data))}$", out, re.MULTILINE)
    assert "user/drawn" in hub.files(REPO)["README.md"].decode()
    code, out, err = mobilevit(*words)
    assert (code, "there already" in err) == (0, True)
    assert TOKEN not in out + err


def shown_size(size):
    return f"{size / 1000:.1f} kB" if size >= 1000 else f"{size} bytes"


def test_command_refuses_in_one_line(hub, classifier, mobilevit):
    spoil_weights(classifier)
    code, out, err = mobilevit("publish", classifier, REPO, "--license", "mit")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "classifier.bias" in err


# --- who may ---------------------------------------------------------------------------------------------------------


def test_access(hub, monkeypatch):
    assert check_access("shapes") == check_access("user/shapes") == "user/shapes"
    with pytest.raises(HubError, match="user may not write to apple"):
        check_access("apple/shapes")
    hub.role = "fineGrained"
    assert check_access("apple/shapes") == "apple/shapes"  # the Hub knows
    hub.role = "read"
    with pytest.raises(HubError, match="The token may only read"):
        check_access("shapes")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("mobilevit_hf.hub.client.get_token", lambda: None)
    with pytest.raises(HubError, match=r"not signed in.*hf auth login"):
        check_access("shapes")
    assert not written(hub)


# --- a card that is there --------------------------------------------------------------------------------------------


def license_of(publication):
    return ModelCard(publication.card).data.license


def test_the_license_of_a_card_that_is_there(hub, classifier, send):
    """As in a copy of what was published: nobody has to say again what its maker said."""
    (classifier / "README.md").write_text(send(classifier, given=Given(license="cc-by-4.0")).card)
    assert license_of(send(classifier, given=Given())) == "cc-by-4.0"
    assert license_of(send(classifier, given=Given(license="mit"))) == "mit"
    with pytest.raises(ValueError, match="user/base, whose license"):  # the card knows nothing of that one
        send(classifier, given=Given(base_model="user/base"))


@pytest.mark.parametrize("name", builtin_models())
def test_a_built_in_model_as_it_is(name):
    own = ModelCard.load(mobilevit_hf.builtin(name) / "README.md").data
    assert own.license
    assert license_of(publish(mobilevit_hf.builtin(name), REPO, dry_run=True)) == own.license
