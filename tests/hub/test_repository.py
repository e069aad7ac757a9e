"""Publishing a model folder to a repository of the loopback Hub."""

import json
import re

import pytest
from card_folders import MIT_CARD, edit_config
from huggingface_hub import HfApi, ModelCard

import mobilevit_hf
from mobilevit_hf.hub import CARD_MARKER, CardOptions, HubError, check_access, publish
from mobilevit_hf.model_sources import builtin_models

REPO = "user/shapes"
MODEL = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def read_files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def license_of(publication):
    return ModelCard(publication.card).data.license


def test_classifier_is_published(hub, classifier_dir, publish_model):
    before = read_files(classifier_dir)
    publication = publish_model(classifier_dir)
    files = hub.files(REPO)
    assert files.keys() - {name for name in files if name.startswith(".eval_results/")} == MODEL
    for name in MODEL - {"README.md"}:
        assert files[name] == (classifier_dir / name).read_bytes()
    assert publication.url == f"{hub.url}/{REPO}"
    assert publication.files == {name: len(data) for name, data in files.items()}
    assert files["README.md"].decode() == publication.card
    assert CARD_MARKER in publication.card
    assert publication.commit == HfApi().model_info(REPO).sha
    assert read_files(classifier_dir) == before
    assert hub.commits(REPO) == 2  # the initial commit and this one


@pytest.mark.parametrize("name", ["a b", "user/a/b", "user/--", "user/x.git"])
def test_invalid_repo_id_is_rejected(hub, classifier_dir, name):
    with pytest.raises(ValueError, match=re.escape(name)):
        publish(classifier_dir, name, card_options=CardOptions(license="mit"))
    assert not hub.requests


# --- updates ---------------------------------------------------------------------------------------------------------


def test_unchanged_model_makes_no_commit(hub, classifier_dir, publish_model, modifying_requests):
    publish_model(classifier_dir)
    commits = hub.commits(REPO)
    hub.requests.clear()
    assert publish_model(classifier_dir).commit is None
    assert hub.commits(REPO) == commits
    assert not modifying_requests()


def test_only_changed_files_are_committed(hub, classifier_dir, publish_model):
    publish_model(classifier_dir)
    edit_config(classifier_dir, note="new")
    hub.requests.clear()
    publish_model(classifier_dir)
    (commit,) = (request for request in hub.requests if "/commit/" in request.path)
    lines = [json.loads(line) for line in commit.body.splitlines()]
    assert [line["value"]["path"] for line in lines[1:]] == ["config.json"]
    assert not [request for request in hub.requests if request.method == "PUT"]
    assert json.loads(hub.files(REPO)["config.json"])["note"] == "new"


def test_handwritten_card_on_the_hub_is_kept(hub, classifier_dir, publish_model, upload, messages):
    HfApi().create_repo(REPO)
    upload(MIT_CARD)
    publish_model(classifier_dir)
    assert hub.files(REPO)["README.md"].decode() == MIT_CARD
    assert hub.files(REPO).keys() >= MODEL
    assert messages == [f"The card of {REPO} is handwritten and is kept. To overwrite it: --overwrite-card"]
    messages.clear()
    publish_model(classifier_dir, overwrite_card=True)
    assert CARD_MARKER in hub.files(REPO)["README.md"].decode()
    assert messages == [f"The card of {REPO} is handwritten and will be overwritten."]


def test_generated_card_on_the_hub_is_overwritten(hub, classifier_dir, publish_model, upload, messages):
    HfApi().create_repo(REPO)
    upload(f"---\nlicense: mit\n---\n{CARD_MARKER}\n# Old\n")
    publish_model(classifier_dir)
    assert "# Old" not in hub.files(REPO)["README.md"].decode()
    assert not messages


def test_obsolete_figures_are_deleted_and_other_files_kept(hub, classifier_dir, publish_model, upload, messages):
    (classifier_dir / "curves.png").write_bytes(b"curves")
    publish_model(classifier_dir)
    others = {"notes.txt", "app.py", "onnx/other.onnx", ".eval_results/theirs.yaml"}
    for name in others:
        upload("theirs", name)
    (classifier_dir / "curves.png").unlink()
    publication = publish_model(classifier_dir)
    assert publication.deleted == ("curves.png",)
    assert hub.files(REPO).keys() >= MODEL | others
    (line,) = messages
    assert line.endswith("may belong to other weights: .eval_results/theirs.yaml, onnx/other.onnx")


def test_concurrent_commit_is_not_lost(hub, classifier_dir, publish_model, upload):
    """A card that is committed between the read of the repository and our commit is kept."""
    HfApi().create_repo(REPO)
    answer = hub.answer

    def answer_after_another_commit(request, fault=None):
        if "/commit/" in request.path and "README.md" not in hub.files(REPO):
            hub.answer = answer
            upload(MIT_CARD)
        return answer(request, fault)

    hub.answer = answer_after_another_commit
    publish_model(classifier_dir)
    assert hub.files(REPO)["README.md"].decode() == MIT_CARD
    assert hub.files(REPO).keys() >= MODEL
    assert hub.commits(REPO) == 3


# --- repository ------------------------------------------------------------------------------------------------------


def test_private_repository(hub, classifier_dir, publish_model):
    publish_model(classifier_dir, private=True)
    assert HfApi().model_info(REPO).private
    assert not HfApi(token=False).repo_exists(REPO)
    publish_model(classifier_dir)
    assert HfApi().model_info(REPO).private


def test_private_publication_to_a_public_repository_fails(hub, classifier_dir, publish_model):
    HfApi().create_repo(REPO)
    with pytest.raises(ValueError, match="got a public repository, expected a private one; nothing was uploaded"):
        publish_model(classifier_dir, private=True)
    assert not hub.files(REPO)


def test_branch_is_created_and_updated(hub, classifier_dir, publish_model):
    publish_model(classifier_dir)
    edit_config(classifier_dir, note="tried")
    first = publish_model(classifier_dir, revision="try/new").commit
    assert json.loads(hub.files(REPO, "try/new")["config.json"])["note"] == "tried"
    assert "note" not in json.loads(hub.files(REPO)["config.json"])
    assert publish_model(classifier_dir, revision="try/new").commit is None
    assert hub.files(REPO, first) == hub.files(REPO, "try/new")


def test_repo_id_without_owner_belongs_to_the_user(hub, classifier_dir, messages):
    publication = publish(classifier_dir, "shapes", card_options=CardOptions(license="mit"), log=messages.append)
    assert publication.url == f"{hub.url}/user/shapes"
    assert "user/shapes" in publication.card


def test_dry_run_sends_no_request(hub, classifier_dir, publish_model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = read_files(classifier_dir)
    dry = publish_model(classifier_dir, dry_run=True)
    assert not hub.requests
    assert dry.commit is None
    assert read_files(classifier_dir) == before
    hub.patch_client(monkeypatch)
    publication = publish_model(classifier_dir)
    assert (publication.files, publication.card) == (dry.files, dry.card)


def test_check_access(hub, monkeypatch, modifying_requests):
    assert check_access("shapes") == check_access("user/shapes") == "user/shapes"
    with pytest.raises(HubError, match="user may not write to apple"):
        check_access("apple/shapes")
    hub.role = "fineGrained"
    assert check_access("apple/shapes") == "apple/shapes"  # only the Hub has the rights of this token
    hub.role = "read"
    with pytest.raises(HubError, match="The token is read-only"):
        check_access("shapes")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("mobilevit_hf.hub.client.get_token", lambda: None)
    with pytest.raises(HubError, match=r"Not signed in.*hf auth login"):
        check_access("shapes")
    assert not modifying_requests()


# --- license of an existing card -------------------------------------------------------------------------------------


def test_license_of_the_generated_card_is_kept(hub, classifier_dir, publish_model):
    card = publish_model(classifier_dir, card_options=CardOptions(license="cc-by-4.0")).card
    (classifier_dir / "README.md").write_text(card)
    assert license_of(publish_model(classifier_dir, card_options=CardOptions())) == "cc-by-4.0"
    assert license_of(publish_model(classifier_dir, card_options=CardOptions(license="mit"))) == "mit"
    with pytest.raises(ValueError, match="user/base, whose license"):  # the card has another base model
        publish_model(classifier_dir, card_options=CardOptions(base_model="user/base"))


@pytest.mark.parametrize("name", builtin_models())
def test_builtin_model_can_be_published(name):
    card = ModelCard.load(mobilevit_hf.builtin(name) / "README.md").data
    assert card.license
    assert license_of(publish(mobilevit_hf.builtin(name), REPO, dry_run=True)) == card.license
