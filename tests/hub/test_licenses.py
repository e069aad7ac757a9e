"""Licenses of models and of initial checkpoints."""

import getpass
import socket
from pathlib import Path

import pytest
from card_folders import APPLE, write_model
from huggingface_hub import HfApi

from mobilevit_hf.hub import CardOptions, collect_metadata
from mobilevit_hf.hub.licenses import License, check_listed, describe_initial_checkpoint, find_license, public_name
from mobilevit_hf.records import InitialCheckpoint

USER = "zaphodbeeblebrox"


def test_training_from_scratch_needs_a_license():
    initial = describe_initial_checkpoint("xxs")
    assert initial == InitialCheckpoint(kind="scratch", name="xxs")
    with pytest.raises(ValueError, match=r"^license: not set, .* from scratch\. Pass --license"):
        find_license(None, None, initial)
    assert find_license(License("MIT"), None, initial) == License("mit")


def test_local_checkpoint_needs_a_license(tmp_path):
    initial = describe_initial_checkpoint(str(write_model(tmp_path / "mine")))
    assert initial == InitialCheckpoint(kind="local", name="mine")
    with pytest.raises(ValueError, match=r"fine-tuned from mine.*--license"):
        find_license(None, None, initial)


def test_model_without_record_needs_a_license(tmp_path):
    with pytest.raises(ValueError, match="--license"):
        collect_metadata(write_model(tmp_path / "mine"), CardOptions())
    assert collect_metadata(tmp_path / "mine", CardOptions(license="mit")).license == License("mit")


@pytest.mark.parametrize("base", ["apple/mobilevit-small", "apple/deeplabv3-mobilevit-small"])
def test_models_derived_from_apple_weights_have_their_license(base, tmp_path):
    folder = write_model(tmp_path / "model")
    assert collect_metadata(folder, CardOptions(base_model=base)).license == License(**APPLE)
    # Also offline, and whatever the card of an intermediate model claims.
    for card in (
        f"---\nlicense: apache-2.0\nbase_model: {base}\n---\n",
        f"---\nlicense: mit\nbase_model:\n- {base}\n---\n",
    ):
        (folder / "README.md").write_text(card)
        assert find_license(None, None, describe_initial_checkpoint(str(folder))) == License(**APPLE)


def test_license_of_a_hub_model(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    cards = {
        "user/mit": "---\nlicense: mit\n---\n",
        "user/other": "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n",
        "user/nameless": "---\nlicense: other\n---\n",
        "user/none": "# No metadata\n",
        "user/broken": "---\nlicense: [\n---\n",
        "apple/mobilevit-small": "---\nlicense: other\n---\n",
        "user/child": "---\nlicense: apache-2.0\nbase_model: apple/mobilevit-small\n---\n",
    }
    for repo, text in cards.items():
        HfApi().create_repo(repo)
        HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo)
    HfApi().create_repo("user/empty")
    initials = {repo: describe_initial_checkpoint(repo) for repo in (*cards, "user/empty")}
    assert {initial.base_model for initial in initials.values()} == set(initials)
    assert {repo: initial.license for repo, initial in initials.items()} == {
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
        find_license(None, None, initials["user/child"])


def test_apple_license_is_found_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert describe_initial_checkpoint("apple/mobilevit-xx-small").license == APPLE


@pytest.mark.parametrize(("name", "kind"), [("garments", "built-in"), ("xxs", "scratch")])
def test_image_folder_is_not_mistaken_for_a_model(name, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "cat").mkdir(parents=True)
    initial = describe_initial_checkpoint(name)
    assert (initial.kind, initial.name) == (kind, name)
    assert initial.license == ({"id": "mit"} if kind == "built-in" else None)


@pytest.mark.parametrize(
    ("license", "message"),
    [
        (License("all mine"), "'all mine'"),
        (License("Apache License 2.0"), "such as apache-2.0"),
        (License("MIT License"), "such as mit"),
        (License("other"), "--license-name"),
        (License("-"), "'-'"),
    ],
)
def test_invalid_license_is_rejected(license, message):
    with pytest.raises(ValueError, match=message):
        find_license(license, None, None)


@pytest.mark.parametrize("license", [None, "mit", " MIT", "cc0-1.0", "openrail++", "unknown", "other"])
def test_listed_license_has_no_warning(license):
    assert check_listed(license) is None


@pytest.mark.parametrize(
    ("license", "suggestion"),
    [
        ("apache", "Did you mean apache-2.0?"),
        ("GPL3.0", "Did you mean gpl-3.0?"),
        ("GPLv3", "Did you mean gpl-3.0?"),
        ("cc-by-4", "Did you mean cc-by-4.0?"),
        ("foo", ""),
    ],
)
def test_unlisted_license_warning_suggests_the_nearest_id(license, suggestion):
    warning = check_listed(license)
    assert f"License {license.lower()} is not listed" in warning
    assert suggestion in warning
    assert ("Did you mean" in warning) == bool(suggestion)


def test_public_name_hides_users_and_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    monkeypatch.setattr(socket, "gethostname", lambda: "heartofgold.galaxy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / USER).mkdir(parents=True)
    (tmp_path / "x" / "data.yaml").touch()
    assert public_name(Path("x")) == "x"
    assert public_name(Path("x") / "data.yaml") == "x"
    assert public_name(tmp_path / "x" / USER) is None
    assert public_name(tmp_path / "heartofgold") is None
    assert public_name(Path.home()) is None
    assert public_name(Path("/")) is None
