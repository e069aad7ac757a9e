"""The `mobilevit publish` command."""

import re

import pytest
from card_folders import set_nan_weight
from hub_server import TOKEN

from mobilevit_hf.hub import CARD_MARKER

REPO, SPACE = "user/shapes", "user/try-shapes"


def format_size(size):
    return f"{size / 1000:.1f} kB" if size >= 1000 else f"{size} bytes"


def test_dry_run_and_publish(hub, classifier_dir, mobilevit):
    words = ("publish", classifier_dir, REPO, "--license", "mit", "--dataset", "user/drawn", "--tag", "shapes")
    code, out, err = mobilevit(*words, "--dry-run")
    assert code == 0
    assert not hub.requests
    assert out.splitlines()[-1] != f"{hub.url}/{REPO}"
    assert re.search(r"^Total +\d", out, re.MULTILINE)
    assert CARD_MARKER in out
    assert "Nothing was uploaded" in err
    dry_table = out.partition("---")[0].split()
    code, out, err = mobilevit(*words)
    assert code == 0
    assert out.splitlines()[-1] == f"{hub.url}/{REPO}"
    assert dry_table[:-1] == out.split()[: len(dry_table) - 1]
    for name, data in hub.files(REPO).items():
        assert re.search(rf"^{re.escape(name)} +{format_size(len(data))}$", out, re.MULTILINE)
    assert "user/drawn" in hub.files(REPO)["README.md"].decode()
    code, out, err = mobilevit(*words)
    assert (code, "Already up to date" in err) == (0, True)
    assert TOKEN not in out + err


def test_invalid_folder_is_a_one_line_error(hub, classifier_dir, mobilevit):
    set_nan_weight(classifier_dir)
    code, out, err = mobilevit("publish", classifier_dir, REPO, "--license", "mit")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "classifier.bias" in err


def test_unlisted_license_is_a_warning(hub, classifier_dir, mobilevit):
    code, out, err = mobilevit("publish", classifier_dir, REPO, "--license", "apache", "--dry-run")
    assert code == 0
    assert "license: apache\n" in out
    assert "Did you mean apache-2.0?" in err


def test_hub_error_is_a_one_line_error(hub, classifier_dir, mobilevit):
    hub.fail("GET", "/api/whoami-v2", 401)
    code, out, err = mobilevit("publish", classifier_dir, REPO, "--license", "mit")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: The Hub rejected the token")
    assert TOKEN not in err


def test_gradio_space(hub, mobilevit, classifier):
    arguments = ("publish", classifier, REPO, "--license", "mit", "--space", SPACE, "--gradio")
    code, out, err = mobilevit(*arguments, "--dry-run")
    assert (code, hub.requests) == (0, [])
    assert f"{hub.url}/spaces/{SPACE}" not in out
    assert "mobilevit_hf/ (" in out
    code, out, err = mobilevit(*arguments)
    assert code == 0, err
    assert "config.json" in hub.files(REPO)
    assert "app.py" in hub.files(SPACE, repo_type="space")
    assert TOKEN not in out + err


@pytest.mark.parametrize("option", [(), ("--static",)])
def test_space_is_static_by_default(hub, mobilevit, classifier, monkeypatch, option, tmp_path):
    monkeypatch.setattr("mobilevit_hf.demo.static_page.check_backend", lambda *arguments: None)
    exported = tmp_path / "export.onnx"
    exported.write_bytes(b"model")
    monkeypatch.setattr("mobilevit_hf.demo.static_page.export_image_file", lambda *_, **options: (None, exported))
    monkeypatch.setattr("mobilevit_hf.demo.static_page.runtime_files", list)
    arguments = ("publish", classifier, REPO, "--license", "mit", "--space", SPACE, *option)
    code, out, err = mobilevit(*arguments, "--dry-run")
    assert (code, hub.requests) == (0, [])
    assert re.search(r"^index\.html +\d", out, re.MULTILINE)
    code, out, err = mobilevit(*arguments)
    assert code == 0, err
    assert out.splitlines()[-1] == f"{hub.url}/spaces/{SPACE}"
    assert hub.files(SPACE, repo_type="space")["model.onnx"] == b"model"
    assert f"{hub.url}/{REPO}" in hub.files(SPACE, repo_type="space")["index.html"].decode()


def test_failed_export_of_the_page_publishes_nothing(hub, mobilevit, classifier, monkeypatch):
    monkeypatch.setattr("mobilevit_hf.demo.static_page.check_backend", lambda *arguments: None)

    def fail():
        raise ValueError("runtime: can't be downloaded.")

    monkeypatch.setattr("mobilevit_hf.demo.static_page.runtime_files", fail)
    code, out, err = mobilevit("publish", classifier, REPO, "--license", "mit", "--space", SPACE)
    assert (code, out, err) == (2, "", "error: runtime: can't be downloaded.\n")
    assert hub.requests == []


def test_kind_of_space_without_a_space_is_an_error(hub, mobilevit, classifier):
    code, _, err = mobilevit("publish", classifier, REPO, "--license", "mit", "--gradio")
    assert (code, err) == (2, "error: --gradio: got no --space. Pass the id of a Space.\n")


def test_space_of_a_backbone_is_rejected(hub, mobilevit, checkpoints):
    backbone = checkpoints["image-feature-extraction"]
    code, _, err = mobilevit("publish", backbone, REPO, "--license", "mit", "--space", SPACE)
    assert code == 2
    assert "expected an image classifier or an object detector" in err
    assert hub.requests == []


def test_segmentation_model_is_published_with_a_space(hub, mobilevit, segmenter_dir):
    arguments = (segmenter_dir, REPO, "--license", "mit", "--space", SPACE, "--gradio")
    code, _, err = mobilevit("publish", *arguments)
    assert code == 0, err
    files = hub.files(REPO)
    assert b"pipeline_tag: image-segmentation" in files["README.md"]
    assert "model.safetensors" in files
    assert REPO in hub.files(SPACE, repo_type="space")["app.py"].decode()
