"""Exported files next to a model: used if they were made from the same weights."""

import hashlib
import json
import shutil

import pytest
import torch
from backend_support import require_backend, torch_pipeline
from hub_server import HubServer
from huggingface_hub import HfApi, constants

import mobilevit_hf
from mobilevit_hf.backends import cache, export, loader

TASK = "image-classification"


@pytest.mark.slow
def test_exported_file_of_the_same_weights_is_used(model_dirs, tmp_path, monkeypatch, mobilevit):
    require_backend("onnx", "openvino")
    source, folder = model_dirs[TASK], tmp_path / "model"
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(source)
    model.save_pretrained(folder)
    code, stdout, stderr = mobilevit("export", source, folder, "--to", "onnx", "openvino")
    assert code == 0
    assert all(line.startswith("export: step ") for line in stderr.splitlines())
    assert "onnx/model.onnx" in stdout.replace("\n", "")
    records = json.loads((folder / "export.json").read_text())
    assert [(record["backend"], record["file"]) for record in records] == [
        ("onnx", "onnx/model.onnx"),
        ("openvino", "openvino/openvino_model.xml"),
    ]
    for record in records:
        assert record["max_error"] <= 1e-3
        assert record["agreement"] == 1
        assert record["latency_ms"].keys() == {"1", "8"}
        files = list((folder / record["file"]).parent.iterdir())
        assert record["bytes"] == sum(file.stat().st_size for file in files)
    assert (folder / "preprocessor_config.json").read_text() == (source / "preprocessor_config.json").read_text()

    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    mobilevit_hf.pipeline(TASK, folder, backend="onnx")
    assert not (tmp_path / "cache").exists()
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(folder)
    mobilevit_hf.pipeline(TASK, folder, backend="onnx")
    assert len(cache.entries()) == 1


@pytest.fixture
def export_dir(tmp_path):
    """Folder with an OpenVINO export of any content, made from the weights "a"."""
    path = tmp_path / "openvino" / "openvino_model.xml"
    path.parent.mkdir()
    path.write_text("graph")
    path.with_suffix(".bin").write_text("weights")
    entry = {"backend": "openvino", "dtype": "float32", "file": "openvino/openvino_model.xml", "weights": "a"}
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.parent.iterdir()}
    (tmp_path / "export.json").write_text(json.dumps([entry | {"files": hashes}]))
    return tmp_path


@pytest.mark.parametrize("weights", ["a", None])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"openvino/openvino_model.bin": "other"},
            r"model\.bin: got SHA-256 d9298a10d1b0…, expected SHA-256",
        ),
        ({"openvino/openvino_model.xml": ""}, r"openvino_model\.xml: got SHA-256 e3b0c44298fc…, expected SHA-256"),
        ({"openvino/openvino_model.bin": None}, r"openvino_model\.bin: got no file, expected SHA-256"),
        ({"openvino/openvino_model.xml": None}, r"openvino_model\.xml: got no file, expected SHA-256"),
        ({"files": None}, r"openvino_model\.xml: got no hash in export\.json, expected one per file\."),
        ({"files": {}}, r"openvino_model\.xml: got no hash in export\.json"),
        ({"files": {"openvino_model.xml": "0" * 64}}, r"openvino_model\.bin: got SHA-256 .*, expected no file"),
    ],
)
def test_changed_export_is_refused(export_dir, weights, change, message):
    request = (str(export_dir), TASK, weights, "openvino", "float32", None, {})
    assert loader._find_exported_file(*request) == export_dir / "openvino" / "openvino_model.xml"
    for name, value in change.items():
        if name == "files":
            (record,) = json.loads((export_dir / "export.json").read_text())
            (export_dir / "export.json").write_text(json.dumps([record | {"files": value}]))
        elif value is None:
            (export_dir / name).unlink()
        else:
            (export_dir / name).write_text(value)
    with pytest.raises(ValueError, match=message + r".*Run mobilevit export again\.$"):
        loader._find_exported_file(*request)


def test_export_of_other_weights_is_refused(export_dir):
    with pytest.raises(ValueError, match=r"got an export of other weights, .* Run mobilevit export again\."):
        loader._find_exported_file(str(export_dir), TASK, "b", "openvino", "float32", None, {})
    assert loader._find_exported_file(str(export_dir), TASK, "a", "onnx", "float32", None, {}) is None


@pytest.mark.slow
def test_export_of_another_model_is_replaced_by_a_cached_one(model_dirs, images, tmp_path, mobilevit, caplog):
    require_backend("onnx")
    source, other = (shutil.copytree(model_dirs[TASK], tmp_path / name) for name in ("source", "other"))
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(other)
    with torch.no_grad():
        model.classifier.bias += torch.tensor([0.0, 0.0, 0.0, 9.0])
    model.save_pretrained(other)
    for folder in (source, other):
        assert mobilevit("export", folder, folder, "--to", "onnx")[0] == 0
    shutil.copyfile(other / "onnx" / "model.onnx", source / "onnx" / "model.onnx")
    expected = torch_pipeline(TASK, source)(images[0])
    with caplog.at_level("WARNING", loader.__name__):  # exporters change the global state of logging
        predictions = mobilevit_hf.pipeline(TASK, source, backend="onnx")(images[0])
    assert [each["label"] for each in predictions] == [each["label"] for each in expected]
    (warning,) = [record.getMessage() for record in caplog.records if record.name == loader.__name__]
    assert "onnx/model.onnx: got SHA-256" in warning
    assert warning.endswith("Run mobilevit export again. Until then, a cached export is used.")


@pytest.mark.slow
def test_exported_file_of_a_hub_repository_is_used(model_dirs, images, tmp_path, monkeypatch, mobilevit):
    require_backend("openvino")
    source = shutil.copytree(model_dirs[TASK], tmp_path / "source")
    assert mobilevit("export", source, source, "--to", "openvino")[0] == 0
    images[0].save(tmp_path / "a.png")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "export_verified", lambda *args: pytest.fail("exported again"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with HubServer() as hub:
        hub.patch_client(monkeypatch)
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("user/model")
        api.upload_folder(repo_id="user/model", folder_path=source)
        expected = torch_pipeline(TASK, source)(images[0], top_k=1)[0]
        (prediction,) = mobilevit_hf.pipeline(TASK, "user/model", backend="openvino")(images[0], top_k=1)
        command = ("predict", tmp_path / "a.png", "--model", "user/model", "--backend", "openvino", "--json")
        code, stdout, _ = mobilevit(*command)
    assert code == 0
    for actual in (prediction, json.loads(stdout)["predictions"][0]):
        assert actual["label"] == expected["label"]
        assert actual["score"] == pytest.approx(expected["score"], abs=1e-4)


@pytest.mark.slow
def test_folder_of_exports_without_weights_is_loaded(model_dirs, images, tmp_path, mobilevit):
    """As shipped with an app."""
    require_backend("openvino")
    images[0].save(tmp_path / "a.png")
    source, export_dir = model_dirs[TASK], tmp_path / "export"
    assert mobilevit("export", source, export_dir, "--to", "openvino")[0] == 0
    assert not list(export_dir.glob("*.safetensors"))
    command = ("predict", tmp_path / "a.png", "--json", "--model")
    code, stdout, _ = mobilevit(*command, export_dir, "--backend", "openvino", "--threads", 1)
    assert code == 0
    actual, expected = (json.loads(text)["predictions"][0] for text in (stdout, mobilevit(*command, source)[1]))
    assert actual["label"] == expected["label"]
    assert actual["score"] == pytest.approx(expected["score"], abs=1e-4)
    code, _, stderr = mobilevit(*command, export_dir, "--backend", "openvino", "--dtype", "bfloat16")
    assert code == 2
    assert "got no weights and openvino/openvino_model.xml, expected openvino/openvino_model_bf16.xml" in stderr


@pytest.mark.slow
def test_export_that_differs_is_rejected_and_not_cached(model_dirs, monkeypatch, tmp_path):
    require_backend("onnx")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path))
    export_file = export.export_file
    difference = torch.tensor([0.0, 0.0, 0.0, 0.002])

    def export_modified(request, *arguments):
        with torch.no_grad():
            request.model.classifier.bias += difference
            export_file(request, *arguments)
            request.model.classifier.bias -= difference

    monkeypatch.setattr(export, "export_file", export_modified)
    with pytest.raises(ValueError, match=r"ONNX Runtime in float32: outputs differ .* by up to 0.002"):
        mobilevit_hf.pipeline(TASK, str(model_dirs[TASK]), backend="onnx")
    assert list(tmp_path.iterdir()) == []
