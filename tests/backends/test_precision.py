"""`dtype="auto"`: which precision is chosen for a model on a processor, and what is printed about it."""

import shutil
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from backend_support import require_backend

import mobilevit_hf
from mobilevit_hf.backends import cache, export, formats, loader, precision
from mobilevit_hf.backends.openvino import PRECISION_KEY
from mobilevit_hf.backends.runtime import ExportedModel
from mobilevit_hf.backends.verify import Comparison, check_comparison
from mobilevit_hf.records import DropRecord, ExportRecord, read_export_records
from mobilevit_hf.tasks import TASKS

CLASSIFICATION, DETECTION = "image-classification", "object-detection"
BFLOAT16, INT8 = {"avx512_bf16"}, {"avx_vnni"}


def make_record(name, agreement=1.0, milliseconds=None, drop=None):
    """Return the record of an OpenVINO export in a precision."""
    return ExportRecord(
        backend="openvino",
        file=f"openvino/{name}.xml",
        dtype="float32" if name == "int8" else name,
        quantization="int8" if name == "int8" else None,
        agreement=agreement,
        drop=None if drop is None else DropRecord(metric="accuracy", model=0.9, exported=0.9 - drop, num_images=80),
        latency_ms=None if milliseconds is None else {"1": milliseconds},
    )


FLOAT32, GOOD, BAD = make_record("float32"), make_record("bfloat16", 0.99), make_record("bfloat16", 0.98)
GOOD_INT8, BAD_INT8 = make_record("int8", 0.9, drop=0.009), make_record("int8", 0.995, drop=0.011)


@pytest.fixture
def processor(monkeypatch):
    """Set the features of the processor."""
    return lambda features: monkeypatch.setattr(precision, "processor_features", lambda: set(features))


@pytest.mark.parametrize(
    ("features", "records", "expected"),
    [
        (BFLOAT16, [FLOAT32, GOOD], "bfloat16"),
        ({"amx_bf16"}, [FLOAT32, GOOD], "bfloat16"),
        (BFLOAT16, [FLOAT32, BAD], "float32"),
        (BFLOAT16, [FLOAT32], "float32"),
        (BFLOAT16, [], "float32"),
        (BFLOAT16, [FLOAT32, replace(GOOD, agreement=None)], "float32"),
        (BFLOAT16, [FLOAT32, replace(GOOD, strict_agreement=0.98)], "float32"),
        (BFLOAT16, [FLOAT32, GOOD_INT8], "float32"),
        (INT8, [FLOAT32, GOOD], "float32"),
        (INT8, [FLOAT32, GOOD_INT8, GOOD], "int8"),
        ({"avx512_vnni"}, [GOOD_INT8], "int8"),
        (INT8, [FLOAT32, BAD_INT8], "float32"),
        (INT8, [replace(GOOD_INT8, dtype="bfloat16")], "float32"),
        (BFLOAT16 | INT8, [FLOAT32, GOOD, GOOD_INT8], "int8"),
        (BFLOAT16 | INT8, [FLOAT32, GOOD, BAD_INT8], "bfloat16"),
        (BFLOAT16 | INT8, [FLOAT32, BAD, GOOD_INT8], "int8"),
        (
            BFLOAT16 | INT8,
            [make_record("float32", 1.0, 1.0), make_record("bfloat16", 1.0, 3.0), make_record("int8", 1.0, 3.5)],
            "bfloat16",
        ),
        ({"avx2", "avx512_f"}, [FLOAT32, GOOD, GOOD_INT8], "float32"),
        (set(), [FLOAT32, GOOD, GOOD_INT8], "float32"),
    ],
)
def test_fastest_checked_precision_of_the_processor_is_chosen(processor, features, records, expected):
    processor(features)
    choice = precision.choose_precision("openvino", CLASSIFICATION, records)
    assert (choice.quantization or choice.dtype) == expected


@pytest.mark.parametrize(
    ("features", "task", "record", "expected"),
    [
        (BFLOAT16, CLASSIFICATION, GOOD, "openvino in bfloat16: 99.0% of the labels equal those of float32."),
        (
            BFLOAT16,
            DETECTION,
            replace(GOOD, num_images=32, images="samples"),
            "openvino in bfloat16: mAP50 99.0% with the boxes of float32 as ground truth on 32 sample images.",
        ),
        (
            BFLOAT16,
            CLASSIFICATION,
            replace(BAD, num_images=150, images="calibration"),
            "openvino in float32: in bfloat16, 98.0% of the labels equal those of float32 on 150 images, "
            "expected 99%.",
        ),
        (
            INT8,
            CLASSIFICATION,
            GOOD_INT8,
            "openvino in int8: accuracy 89.1%, 90.0% in float32, on 80 images.",
        ),
        (BFLOAT16, CLASSIFICATION, FLOAT32, "openvino in float32: no file in bfloat16 was exported."),
        (
            set(),
            CLASSIFICATION,
            GOOD,
            "openvino in float32: this processor has no instructions for bfloat16 or int8.",
        ),
    ],
)
def test_choice_is_described_in_one_line(processor, features, task, record, expected):
    processor(features)
    assert precision.choose_precision("openvino", task, [record]).describe("openvino") == expected


@pytest.mark.parametrize("backend", ["onnx", "executorch"])
def test_backends_without_a_faster_precision_use_float32(processor, backend):
    processor(BFLOAT16 | INT8)
    records = [replace(record, backend=backend) for record in (FLOAT32, GOOD_INT8)]  # of which ONNX has int8 weights
    assert precision.choose_precision(backend, CLASSIFICATION, records) == ("float32", None, "")


def test_processor_features_are_those_of_the_kernel(monkeypatch):
    names = {"avx2", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"}
    monkeypatch.setattr(torch, "cpu", types.SimpleNamespace())  # before torch 2.11
    flags = precision.processor_features()
    monkeypatch.undo()
    if not flags or not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("no second source to compare with")
    assert precision.processor_features() & names == flags & names


@pytest.fixture
def fake_exports(monkeypatch, tmp_path):
    """Replace exporting, verification and runtimes, none of which have to be installed.

    Each exported dtype is appended to `written`; `agreement` is that of files in lower precision.
    """
    fake = types.SimpleNamespace(written=[], agreement=1.0)

    def compare_exported(request, backend, path, *limits):
        dtype = request.dtype
        path.write_text(dtype)
        path.with_suffix(".bin").write_text("weights")
        fake.written.append(dtype)
        agreement = 1.0 if dtype == "float32" else fake.agreement
        comparison = Comparison(0.0, agreement, agreement)
        check_comparison(comparison, dtype, float32=dtype == "float32", min_agreement=limits[1])
        return comparison._asdict()

    def load(path, config, task, backend, threads=None, **options):
        model_class = type(TASKS[task].architecture, (ExportedModel,), {})
        model = model_class(config, task, lambda pixels: [np.ones((len(pixels), config.num_labels), np.float32)], 0)
        model.path = path
        return model

    for module in (export, loader):
        monkeypatch.setattr(module, "export_verified", compare_exported)
        monkeypatch.setattr(module, "load_exported_model", load)
    monkeypatch.setattr(export, "measure_latency", lambda *args: {"1": 1.0, "8": 8.0})
    monkeypatch.setattr(formats, "check_packages", lambda *args: None)
    monkeypatch.setattr(cache, "package_versions", lambda format: {})
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    return fake


def load_auto(folder, dtype="auto", **options):
    return mobilevit_hf.pipeline(CLASSIFICATION, folder, backend="openvino", dtype=dtype, **options).model


@pytest.mark.parametrize(("agreement", "expected"), [(1.0, ["bfloat16"]), (0.98, ["bfloat16", "float32"])])
def test_first_use_checks_bfloat16_once(processor, fake_exports, classifier_dir, agreement, expected):
    processor(BFLOAT16)
    fake_exports.agreement = agreement
    for _ in range(2):
        model = load_auto(classifier_dir)
        assert model.choice.dtype == model.path.read_text() == expected[-1]
        assert f"{agreement:.1%} of the labels equal those of float32 on 64 sample images" in model.choice.reason
    assert fake_exports.written == expected


def test_first_use_without_instructions_exports_float32_only(processor, fake_exports, classifier_dir):
    processor(INT8)
    assert load_auto(classifier_dir).choice.reason == "no file in int8 was exported"
    assert fake_exports.written == ["float32"]


def test_explicit_dtype_is_obeyed_or_an_error(processor, fake_exports, classifier_dir):
    processor(BFLOAT16)
    fake_exports.agreement = 0.98
    load_auto(classifier_dir)
    for dtype in ("bfloat16", "float32", None):
        model = load_auto(classifier_dir, dtype)
        assert (model.path.read_text(), model.choice) == (dtype or "float32", None)
    shutil.rmtree(cache.cache_folder())
    fake_exports.agreement = 0.9
    assert load_auto(classifier_dir).path.read_text() == "float32"
    with pytest.raises(ValueError, match=r"90\.0% of the predictions equal the torch model's, expected 97\.0%"):
        load_auto(classifier_dir, "bfloat16")


def test_file_next_to_the_model_decides(processor, fake_exports, classifier_dir):
    """Exports of the user are not overruled by a check on sample images."""
    processor(BFLOAT16)
    mobilevit_hf.export_model(classifier_dir, classifier_dir, "openvino")
    model = load_auto(classifier_dir)
    assert model.path == classifier_dir / "openvino" / "openvino_model.xml"
    mobilevit_hf.export_model(classifier_dir, classifier_dir, "openvino", dtype="bfloat16")
    assert load_auto(classifier_dir).path == classifier_dir / "openvino" / "openvino_model_bf16.xml"
    assert fake_exports.written == ["float32", "bfloat16"]
    (classifier_dir / "model.safetensors").unlink()
    assert load_auto(classifier_dir).path == classifier_dir / "openvino" / "openvino_model_bf16.xml"
    assert load_auto(classifier_dir, "float32").path == classifier_dir / "openvino" / "openvino_model.xml"


def test_changed_file_is_not_chosen(processor, fake_exports, classifier_dir, caplog):
    processor(BFLOAT16)
    for dtype in ("float32", "bfloat16"):
        mobilevit_hf.export_model(classifier_dir, classifier_dir, "openvino", dtype=dtype)
    (classifier_dir / "openvino" / "openvino_model_bf16.xml").write_text("other")
    with caplog.at_level("WARNING", loader.__name__):
        assert load_auto(classifier_dir).path == classifier_dir / "openvino" / "openvino_model.xml"
    assert "openvino_model_bf16.xml: got SHA-256" in caplog.text


@pytest.fixture
def photos(images, tmp_path):
    """Folder of six images, of which three are for verification."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def without_steps(stderr):
    """Return the lines of `mobilevit export` except those of its steps."""
    return [line for line in stderr.splitlines() if not line.startswith("export: step ")]


@pytest.mark.parametrize(
    ("features", "agreement", "names", "line"),
    [
        (
            BFLOAT16,
            1.0,
            ["openvino_model.xml", "openvino_model_bf16.xml"],
            "openvino in bfloat16: 100.0% of the labels equal those of float32 on 3 images.",
        ),
        (
            BFLOAT16,
            0.98,
            ["openvino_model.xml"],
            "openvino in float32: in bfloat16, 98.0% of the labels equal those of float32 on 3 images, expected 99%.",
        ),
        (
            set(),
            1.0,
            ["openvino_model.xml"],
            "openvino in float32: this processor has no instructions for bfloat16 or int8.",
        ),
    ],
)
def test_export_checked_on_own_images_adds_bfloat16(
    processor, fake_exports, classifier_dir, photos, tmp_path, mobilevit, features, agreement, names, line
):
    processor(features)
    command = ("export", classifier_dir, tmp_path / "export", "--to", "openvino")
    # A file of an earlier export that only sample images have checked.
    code, _, stderr = mobilevit(*command, "--dtype", "bfloat16")
    assert (code, without_steps(stderr)) == (0, [])
    fake_exports.agreement = agreement
    code, _, stderr = mobilevit(*command, "onnx", "--calibration", photos)
    assert (code, without_steps(stderr)) == (0, [f"note: {line}"])
    records = [each for each in read_export_records(tmp_path / "export" / "export.json") if each.backend == "openvino"]
    if features:
        assert sorted(record.file for record in records) == [f"openvino/{name}" for name in names]
        assert {(record.num_images, record.images) for record in records} == {(3, "calibration")}
    assert all((tmp_path / "export" / "openvino" / name).is_file() for name in names)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_of_an_explicit_dtype_writes_that_file_only(
    processor, fake_exports, classifier_dir, photos, tmp_path, mobilevit, dtype
):
    processor(BFLOAT16)
    command = ("export", classifier_dir, tmp_path / "export", "--to", "openvino", "--calibration", photos)
    code, _, stderr = mobilevit(*command, "--dtype", dtype)
    assert (code, without_steps(stderr), fake_exports.written) == (0, [], [dtype])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--backend", "openvino"],
            "note: openvino in bfloat16: 100.0% of the labels equal those of float32 on 64 sample images. "
            "Exact: --dtype float32.\n",
        ),
        (["--backend", "openvino", "--dtype", "auto", "--json"], "note: openvino in bfloat16: "),
        (["--backend", "openvino", "--dtype", "float32"], ""),
        (["--backend", "openvino", "--dtype", "bfloat16"], ""),
        (["--backend", "onnx"], ""),
        ([], ""),
        (["--dtype", "auto"], ""),
    ],
)
def test_predict_prints_the_choice_once(processor, fake_exports, classifier_dir, photos, mobilevit, options, line):
    processor(BFLOAT16)
    code, stdout, stderr = mobilevit("predict", photos, "--model", classifier_dir, *options)
    assert code == 0
    assert "note" not in stdout
    assert stderr == line or (line and stderr.startswith(line))
    assert stderr.count("\n") == (1 if line else 0)


def test_torch_stays_in_float32(classifier_dir, photos, mobilevit):
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(classifier_dir)
    exact = mobilevit("predict", photos, "--model", classifier_dir, "--device", "cpu", "--json", "--dtype", "float32")
    model.to(torch.bfloat16).save_pretrained(classifier_dir)
    assert mobilevit("predict", photos, "--model", classifier_dir, "--device", "cpu", "--json")[0] == 0
    assert exact[0] == 0


@pytest.mark.slow
def test_bfloat16_runs_where_its_check_passes(processor, model_dirs, images, tmp_path, monkeypatch):
    require_backend("openvino")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    processor(BFLOAT16)
    task, folder = DETECTION, mobilevit_hf.builtin("blood-cells")
    pipeline = mobilevit_hf.pipeline(task, folder, backend="openvino", dtype="auto")
    model = pipeline.model.runtime.model
    assert model.get_rt_info(PRECISION_KEY).astype(str) == "bf16"
    assert pipeline.model.choice.dtype == "bfloat16"
    (entry,) = cache.entries()
    assert entry.record["agreement"] >= 0.99
    exact = mobilevit_hf.pipeline(task, folder, backend="openvino")
    assert exact.model.runtime.model.get_rt_info(PRECISION_KEY).astype(str) == "f32"
    assert exact.model.choice is None
