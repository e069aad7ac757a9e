"""`export_model` and `mobilevit export`: what is written, kept and rejected."""

import json
import shutil

import pytest
import torch
from backend_support import require_backend, write_fake_export

import mobilevit_hf
from mobilevit_hf.backends import export
from mobilevit_hf.backends.verify import Comparison
from mobilevit_hf.records import read_export_records

TASK = "image-classification"


@pytest.fixture
def fake_exports(monkeypatch):
    """Files of any content are written instead of exported models."""
    monkeypatch.setattr(export, "export_verified", write_fake_export)


def test_export_model_returns_the_written_records(model_dirs, tmp_path, fake_exports):
    require_backend("onnx", "openvino")
    written = []
    backends = ("onnx", "openvino", "onnx")
    records = mobilevit_hf.export_model(model_dirs[TASK], tmp_path, backends, progress=written.append)
    assert [record.file for record in records] == ["onnx/model.onnx", "openvino/openvino_model.xml"]
    assert written == records == read_export_records(tmp_path / "export.json")


def test_one_backend_may_be_a_string(model_dirs, tmp_path):
    with pytest.raises(ValueError, match=r"^backend: got 'tensorrt', expected one of onnx"):
        mobilevit_hf.export_model(model_dirs[TASK], tmp_path, "tensorrt")


def test_unsupported_request_writes_nothing(model_dirs, tmp_path, mobilevit):
    source, export_dir = model_dirs["image-segmentation"], tmp_path / "export"
    code, _, stderr = mobilevit("export", source, export_dir, "--to", "executorch")
    assert code == 2
    assert "can't be exported to executorch" in stderr
    code, _, stderr = mobilevit("export", source, export_dir, "--to", "openvino", "--quantization", "int8")
    assert code == 2
    assert "Set calibration." in stderr
    assert not export_dir.exists()


@pytest.mark.slow
def test_lower_precision_is_verified_on_calibration_images(model_dirs, images, tmp_path, mobilevit, monkeypatch):
    require_backend("openvino")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "photos" / f"{number}.png")
    calls = []

    def compare(model, exported, pixels, task, processor, tie_tolerance):
        calls.append((len(pixels), tie_tolerance))
        return Comparison(0.1, 0.9)

    monkeypatch.setattr(export, "compare", compare)
    command = ("export", model_dirs[TASK], tmp_path / "export", "--to", "openvino", "--dtype", "bfloat16")
    code, _, stderr = mobilevit(*command, "--calibration", tmp_path / "photos")
    assert code == 2
    assert "90.0% of the predictions equal the torch model's" in stderr
    assert calls == [(3, 0.0)]  # half of the images, no ties


def test_folder_holds_the_exports_of_one_model(model_dirs, tmp_path, mobilevit, fake_exports):
    """Exporting another model there replaces the labels and drops the records of the first."""
    require_backend("onnx", "openvino")
    first, export_dir = model_dirs[TASK], tmp_path / "new" / "export"
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(first)
    with torch.no_grad():
        model.classifier.bias += 1
    model.config.id2label = dict(enumerate("abcd"))
    second = shutil.copytree(first, tmp_path / "second")
    model.save_pretrained(second)
    assert mobilevit("export", first, export_dir, "--to", "onnx", "openvino")[0] == 0
    assert mobilevit("export", second, export_dir, "--to", "onnx")[0] == 0
    assert json.loads((export_dir / "config.json").read_text())["id2label"]["0"] == "a"
    assert [record.file for record in read_export_records(export_dir / "export.json")] == ["onnx/model.onnx"]


def test_interrupted_reexport_leaves_no_record_of_other_weights(classifier_dir, fake_exports, monkeypatch):
    require_backend("onnx")
    mobilevit_hf.export_model(classifier_dir, classifier_dir, ["onnx"])
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(classifier_dir)
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(classifier_dir)
    monkeypatch.setattr(export, "_write_records", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mobilevit_hf.export_model(classifier_dir, classifier_dir, ["onnx"])
    assert (classifier_dir / "onnx" / "model.onnx").is_file()
    assert read_export_records(classifier_dir / "export.json") == []


def test_failed_export_leaves_no_files_and_keeps_earlier_ones(model_dirs, tmp_path, mobilevit, monkeypatch):
    require_backend("onnx", "openvino")

    def write_or_fail(model, task, processor, backend, path, *others):
        path.write_bytes(b"model")
        if backend == "openvino":
            raise OSError("No space left on device")
        return {"verified": False}

    monkeypatch.setattr(export, "export_verified", write_or_fail)
    source = model_dirs[TASK]
    code, _, stderr = mobilevit("export", source, tmp_path / "a" / "b" / "export", "--to", "openvino")
    assert (code, stderr) == (2, "error: No space left on device\n")
    assert list(tmp_path.iterdir()) == []
    export_dir = tmp_path / "export"
    code, stdout, stderr = mobilevit("export", source, export_dir, "--to", "onnx", "openvino")
    assert (code, stderr) == (2, "error: No space left on device\n")
    assert "onnx/model.onnx" in stdout
    names = sorted(str(path.relative_to(export_dir)) for path in export_dir.rglob("*"))
    assert names == ["config.json", "export.json", "onnx", "onnx/model.onnx", "preprocessor_config.json"]
