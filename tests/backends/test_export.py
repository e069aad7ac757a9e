"""`export_model` and `mobilevit export`: what is written, kept and rejected."""

import contextlib
import json
import re
import shutil

import pytest
import torch
from backend_support import require_backend, write_fake_export

import mobilevit_hf
from mobilevit_hf import io
from mobilevit_hf.backends import cache, export, formats, loader
from mobilevit_hf.backends.files import exported_files
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


def test_detector_has_a_file_for_transformers_js_and_one_for_images(model_dirs, tmp_path, fake_exports):
    require_backend("onnx")
    records = mobilevit_hf.export_model(model_dirs["object-detection"], tmp_path, "onnx")
    files = [("onnx/model.onnx", "transformers.js"), ("onnx/model_image.onnx", "image")]
    assert [(record.file, record.interface) for record in records] == files
    (record,) = mobilevit_hf.export_model(model_dirs["object-detection"], tmp_path, "onnx", interface="tensors")
    assert (record.file, record.interface) == ("onnx/model_tensors.onnx", "tensors")
    assert {record.file for record in read_export_records(tmp_path / "export.json")} == {
        *(file for file, _ in files),
        record.file,
    }


@pytest.mark.parametrize(
    ("task", "backend", "interface", "message"),
    [
        (TASK, "litert", "transformers.js", "got 'transformers.js', expected image or tensors for litert and"),
        (TASK, "openvino", "image", "got 'image', expected tensors for openvino and image-classification. Leave it"),
    ],
)
def test_unsupported_interface_is_an_error(model_dirs, tmp_path, mobilevit, task, backend, interface, message):
    command = ("export", model_dirs[task], tmp_path / "export", "--to", backend, "--interface", interface)
    code, _, stderr = mobilevit(*command)
    assert code == 2
    assert f"interface: {message}" in stderr
    assert not (tmp_path / "export").exists()


def test_all_formats_that_support_the_model_are_exported_and_explained(
    model_dirs, tmp_path, mobilevit, fake_exports, monkeypatch
):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name == "executorch" else object())
    monkeypatch.setattr(cache, "package_versions", lambda format: {})
    code, stdout, stderr = mobilevit("export", model_dirs[TASK], tmp_path, "--to", "all")
    assert code == 0
    assert re.search("Not exported to executorch: .* requires executorch, which is not installed", stderr)
    for format in ("onnx/model.onnx: ONNX Runtime, for", "litert/model.tflite: LiteRT, for Android", "iPhones"):
        assert format in stdout
    backends = {record.backend for record in read_export_records(tmp_path / "export.json")}
    assert backends == {name for name, row in formats.FORMATS.items() if TASK in row.tasks} - {"executorch"}
    assert backends >= {"onnx", "openvino", "litert", "coreml"}


def test_steps_are_reported_with_the_fraction_of_the_time(model_dirs, tmp_path, monkeypatch):
    require_backend("onnx", "openvino")
    steps = []

    def write(request, backend, path, tie_tolerance, min_agreement, begin):
        begin("export")
        begin("verify")
        return write_fake_export(request, backend, path)

    monkeypatch.setattr(export, "export_verified", write)
    mobilevit_hf.export_model(model_dirs[TASK], tmp_path, ["onnx", "openvino"], on_step=steps.append)
    files = ("onnx/model.onnx", "openvino/openvino_model.xml")
    names = [(file, name) for file in files for name in ("export", "verify", "time", "write")]
    assert [(step.file, step.name) for step in steps] == [("", "load"), *names]
    assert [(step.number, step.total) for step in steps] == [(number, 9) for number in range(1, 10)]
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert 0.9 < fractions[-1] < 1


def test_redirected_export_prints_one_line_per_step(model_dirs, tmp_path, mobilevit, fake_exports):
    require_backend("onnx")
    code, _, stderr = mobilevit("export", model_dirs[TASK], tmp_path, "--to", "onnx")
    assert code == 0
    lines = stderr.splitlines()
    assert lines[0] == "export: step 1 of 5, load"
    assert re.fullmatch(r"export: step \d of 5, onnx/model\.onnx: write, about \d+ s left", lines[-1])


def test_one_backend_may_be_a_string(model_dirs, tmp_path):
    with pytest.raises(ValueError, match=r"^backend: got 'tensorrt', expected one of onnx"):
        mobilevit_hf.export_model(model_dirs[TASK], tmp_path, "tensorrt")


def test_unsupported_request_writes_nothing(model_dirs, tmp_path, mobilevit):
    source, export_dir = model_dirs["image-segmentation"], tmp_path / "export"
    code, _, stderr = mobilevit("export", source, export_dir, "--to", "executorch", "--dtype", "float16")
    assert code == 2
    assert "expected float32 for executorch" in stderr
    code, _, stderr = mobilevit("export", source, export_dir, "--to", "openvino", "--quantization", "int8")
    assert code == 2
    assert "Pass a folder as calibration." in stderr
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


def find_export(folder, weights, backend):
    """Return the content of the exported files for weights (None: any), None if there are none or they are refused."""
    try:
        path = loader._find_exported_file(str(folder), TASK, weights, backend, "float32", None, {})
    except ValueError as error:
        assert "Run mobilevit export again." in str(error)  # noqa: PT017
        return None
    return path and [file.read_text() for file in exported_files(path)]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("moves", range(7))
def test_killed_reexport_leaves_files_of_one_model(classifier_dir, tmp_path, monkeypatch, in_place, moves):
    require_backend(backend := "openvino")

    def write(request, backend, path, *others):
        for file in exported_files(path):
            file.write_text(request.model.config.id2label[0])
        return {"verified": False}

    def replace(source, target, original=io._replace):
        nonlocal moves
        if not moves:
            raise KeyboardInterrupt
        moves -= 1
        original(source, target)

    monkeypatch.setattr(export, "export_verified", write)
    monkeypatch.setattr(export, "verification_pixels", lambda *args: torch.zeros(1, 3, 64, 64))
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(classifier_dir)
    with torch.no_grad():
        model.classifier.bias += 1
    model.config.id2label = dict(enumerate("wxyz"))
    new_dir = shutil.copytree(classifier_dir, tmp_path / "new")
    model.save_pretrained(new_dir)
    export_dir = classifier_dir if in_place else tmp_path / "export"
    mobilevit_hf.export_model(classifier_dir, export_dir, backend)
    if in_place:
        shutil.copytree(new_dir, export_dir, dirs_exist_ok=True)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(io, "_replace", replace)
        mobilevit_hf.export_model(new_dir, export_dir, backend)
    weights = cache.weights_hash(model) if in_place else None
    label = json.loads((export_dir / "config.json").read_text())["id2label"]["0"]
    content = find_export(export_dir, weights, backend)
    assert content is None or set(content) == {label}
    assert moves == 0 or set(content) == {"w"}  # complete


def test_failed_export_leaves_no_files_and_keeps_earlier_ones(model_dirs, tmp_path, mobilevit, monkeypatch):
    require_backend("onnx", "openvino")

    def write_or_fail(request, backend, path, *others):
        path.write_bytes(b"model")
        if backend == "openvino":
            raise OSError("No space left on device")
        return {"verified": False}

    monkeypatch.setattr(export, "export_verified", write_or_fail)
    source = model_dirs[TASK]
    code, _, stderr = mobilevit("export", source, tmp_path / "a" / "b" / "export", "--to", "openvino")
    assert (code, stderr.splitlines()[-1]) == (2, "error: No space left on device")
    assert list(tmp_path.iterdir()) == []
    export_dir = tmp_path / "export"
    code, stdout, stderr = mobilevit("export", source, export_dir, "--to", "onnx", "openvino")
    assert (code, stderr.splitlines()[-1]) == (2, "error: No space left on device")
    assert "onnx/model.onnx" in stdout
    names = sorted(str(path.relative_to(export_dir)) for path in export_dir.rglob("*"))
    assert names == ["config.json", "export.json", "onnx", "onnx/model.onnx", "preprocessor_config.json"]
