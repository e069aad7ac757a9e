"""Static Space with the page of a published model."""

from pathlib import Path

import pytest
import yaml
from hub_server import SPACE_README
from space_files import REPO, SPACE, space_files, upload_to_space

from mobilevit_hf.demo.static_page import StaticPage
from mobilevit_hf.demo.static_space import publish_static_space
from mobilevit_hf.hub import publish_space
from mobilevit_hf.hub.metadata import CardOptions, collect_metadata

TEMPLATE = "<h1>Welcome to your static Space!</h1>"


@pytest.fixture
def publish_page(hub, models, tmp_path):
    """A function that publishes the Space; log lines go to `publish_page.messages`."""
    exported = tmp_path / "export.onnx"
    exported.write_bytes(b"model")
    metadata = collect_metadata(Path(models["image-classification"]), CardOptions(license="mit"))
    page = StaticPage(exported, [], {"bytes": 5}, metadata, "classifier")
    messages = []

    def publish_page(**options):
        return publish_static_space(SPACE, REPO, page, log=messages.append, **options)

    publish_page.messages = messages
    return publish_page


def upload(hub, texts):
    upload_to_space(hub, texts, "static")


def test_new_space(hub, publish_page):
    publication = publish_page()
    files = space_files(hub)
    assert publication.url == f"{hub.url}/spaces/{SPACE}"
    assert publication.files == {name: len(data) for name, data in files.items()}
    assert hub.commits(SPACE, "space") == 3  # the initial commit, the Hub's README and this one
    metadata = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("static", "index.html", [REPO])
    assert metadata["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    assert metadata["custom_headers"]["cross-origin-opener-policy"] == "same-origin"
    assert files["model.onnx"] == b"model"
    assert f'href="{hub.url}/{REPO}"' in files["index.html"].decode()


def test_unchanged_space_makes_no_commit(hub, publish_page):
    publish_page()
    commits = hub.commits(SPACE, "space")
    assert publish_page().commit is None
    assert hub.commits(SPACE, "space") == commits


def test_template_of_the_hub_is_overwritten(hub, publish_page):
    upload(hub, {"index.html": TEMPLATE})
    publish_page()
    assert TEMPLATE not in space_files(hub)["index.html"].decode()


def test_handwritten_page_is_an_error(hub, publish_page):
    upload(hub, {"index.html": "<h1>Mine</h1>"})
    before = space_files(hub)
    with pytest.raises(ValueError, match=r"got a handwritten index\.html, expected a Space without one"):
        publish_page()
    assert space_files(hub) == before


def test_handwritten_readme_is_kept(hub, publish_page):
    upload(hub, {"README.md": SPACE_README.format(sdk="static") + "Mine", "notes.txt": "mine"})
    publish_page()
    files = space_files(hub)
    assert files["README.md"].decode().endswith("Mine")
    assert files["notes.txt"] == b"mine"
    assert "index.html" in files
    assert publish_page.messages == [f"README.md of the Space {SPACE} is handwritten and is kept."]


def test_generated_gradio_space_becomes_static(hub, publish_page):
    publish_space(SPACE, REPO, log=str)
    publication = publish_page()
    files = space_files(hub)
    assert {"app.py", "requirements.txt", "mobilevit_hf/__init__.py"} <= {*publication.deleted}
    assert not [name for name in files if name.startswith("mobilevit_hf/") or name == "app.py"]
    assert b"sdk: static" in files["README.md"]
    publish_space(SPACE, REPO, log=str)
    assert b"sdk: gradio" in space_files(hub)["README.md"]


def test_dry_run_sends_no_request(hub, publish_page):
    publication = publish_page(dry_run=True)
    assert publication.commit is None
    assert {"README.md", "index.html", "model.onnx"} <= publication.files.keys()
    assert hub.requests == []
