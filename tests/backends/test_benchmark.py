"""`mobilevit benchmark`: MACs and parameters, timings, and one-line errors."""

import json
import re
import shutil

import pytest
import torch
from backend_support import TASKS, require_backend
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from PIL import Image
from torch import nn
from transformers import MobileViTImageProcessor

from mobilevit_hf import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTSSDLiteConfig,
    MobileViTSSDLiteForObjectDetection,
)
from mobilevit_hf.backends import benchmark
from mobilevit_hf.backends.benchmark import Setting, Timing, available_settings, count_macs, parse_setting
from mobilevit_hf.backends.formats import BACKENDS
from mobilevit_hf.visualization import plots


@pytest.fixture(scope="module")
def model_dir(tiny_fields, tmp_path_factory):
    """Folder of a tiny classifier with its image processor."""
    folder = tmp_path_factory.mktemp("model")
    MobileViTForImageClassification(MobileViTConfig(**tiny_fields)).save_pretrained(folder)
    MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("variant", "macs", "parameters"), [("xxs", 0.26, 1.27), ("xs", 0.70, 2.32), ("s", 1.42, 5.58)]
)
def test_macs_at_224_and_parameters(variant, macs, parameters):
    """MACs of fvcore's and timm's tables without attention products; parameters of the paper."""
    model = MobileViTForImageClassification(MobileViTConfig.from_variant(variant, num_labels=1000))
    assert round(count_macs(model, 224, 224) / 1e9, 2) == macs
    assert round(model.num_parameters() / 1e6, 2) == parameters
    assert model.device.type == "cpu"


def test_macs_of_a_detector_are_those_of_its_convolutions_and_linear_layers():
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs", num_labels=80)).eval()
    macs, counted = count_macs(model, 320, 256), []

    def count(layer, inputs, output):
        counted.append(output.numel() * layer.weight[0].numel())  # an output is a dot product with one kernel or row

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 320, 256))
    assert macs == sum(counted)


def test_backends_of_one_image_size_are_left_out_for_others(monkeypatch):
    monkeypatch.setattr(benchmark, "check_backend", lambda *args: None)
    names = [setting.backend for setting in available_settings("image-classification")]
    assert names == list(BACKENDS)
    assert names[:5] == ["torch", "onnx", "openvino", "executorch", "litert"]
    others = [setting.backend for setting in available_settings("image-classification", any_size=True)]
    assert others == ["torch", "onnx", "openvino"]


def test_settings_are_parsed_as_they_are_printed():
    settings = {
        "torch": Setting("torch", "float32", None),
        "openvino:bfloat16": Setting("openvino", "bfloat16", None),
        "openvino:int8": Setting("openvino", "float32", "int8"),
    }
    assert {str(parse_setting(text)): parse_setting(text) for text in settings} == settings
    assert parse_setting(" onnx") == Setting("onnx", "float32", None)  # as after a comma
    with pytest.raises(ValueError, match="dtype: got int7, expected one of float32"):
        parse_setting("openvino:int7")


@pytest.mark.slow
def test_report_has_a_row_per_backend_and_shape(model_dir, mobilevit, monkeypatch, tmp_path):
    require_backend("onnx")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    chart = tmp_path / "chart.png"
    options = ("--backends", "torch,onnx", "--batch", "1,2", "--size", "64", "--rounds", 2, "--threads", 1)
    code, stdout, stderr = mobilevit("benchmark", model_dir, *options, "--json", "--plot", chart)
    assert code == 0, stderr
    report = json.loads(stdout)
    cases = [(row["setting"], row["batch"], row["height"], row["width"]) for row in report["timings"]]
    assert cases == [(backend, batch, 64, 64) for batch in (1, 2) for backend in ("torch", "onnx")]
    for row in report["timings"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1000)
        assert row["peak_mib"] > 50
    sizes = {row["setting"]: row["file_bytes"] for row in report["timings"]}
    assert sizes["torch"] == (model_dir / "model.safetensors").stat().st_size
    (file,) = (tmp_path / "cache").rglob("*.onnx")
    assert sizes["onnx"] == file.stat().st_size
    assert set(report["macs"]) == {"64x64"}
    with Image.open(chart) as image:
        assert image.width > 500


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_models_for_all_tasks_run_on_all_installed_backends(task, model_dirs, mobilevit):
    options = ("--batch", 1, "--rounds", 1, "--threads", 1, "--json")
    code, stdout, stderr = mobilevit("benchmark", model_dirs[task], *options)
    assert code == 0, stderr
    timings = json.loads(stdout)["timings"]
    assert [row["setting"] for row in timings] == [str(setting) for setting in available_settings(task)]
    assert all(row["p50_ms"] > 0 and row["file_bytes"] > 0 for row in timings)


def test_busy_machine_is_reported(model_dir, mobilevit, monkeypatch, tmp_path):
    def measure(*arguments):
        for p95_ms in (14.9, 15.1):
            yield Timing(Setting("torch", "float32", None), int(p95_ms), 64, 64, 10.0, p95_ms, 100.0, 50.0, 1000)

    drawn = {}

    def plot_speed(speeds, **texts):
        drawn.update(texts, speeds=speeds)
        return original(speeds, **texts)

    original = plots.plot_speed
    monkeypatch.setattr("mobilevit_hf.backends.benchmark.measure", measure)
    monkeypatch.setattr(plots, "plot_speed", plot_speed)
    options = ("--backends", "torch", "--batch", 1, "--threads", 3)
    code, stdout, stderr = mobilevit("benchmark", model_dir, *options, "--plot", tmp_path / "chart.png")
    assert code == 0, stderr
    assert re.search(r"10\.00 +14\.90 +100", stdout)
    assert re.search(r"10\.00 +15\.10 \* +100", stdout)
    note = "* p95 is over 1.5 times the median: the machine was busy."
    assert note in stdout
    assert note in drawn["note"]
    assert drawn["title"] == model_dir.name
    assert "3 threads per backend" in drawn["subtitle"]
    assert [list(panel) for panel in drawn["speeds"].values()] == [["torch, float32"], ["torch, float32 *"]]
    _, stdout, _ = mobilevit("benchmark", model_dir, *options, "--json")
    assert [row["busy"] for row in json.loads(stdout)["timings"]] == [False, True]


@pytest.mark.slow
def test_table_states_how_macs_are_counted(model_dir, mobilevit):
    code, stdout, stderr = mobilevit("benchmark", model_dir, "--backends", "torch", "--batch", 1, "--rounds", 1)
    assert code == 0, stderr
    assert "GMACs per 64x64 image" in stdout
    assert "attention products excluded" in stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backends", "onyx"), f"backend: got 'onyx', expected one of {', '.join(BACKENDS)}."),
        (
            ("--backends", "coreml"),
            f"backend: got 'coreml', expected one of {', '.join(BACKENDS)}.",
        ),
        (("--batch", "1,none"), "--batch: got '1,none', expected positive numbers"),
        (("--size", "0"), "--size: got '0', expected positive numbers"),
        (("--backends", "executorch:int8"), "got 'int8' for executorch, expected None; onnx"),
    ],
)
def test_invalid_option_is_a_one_line_error(options, message, model_dir, mobilevit):
    code, stdout, stderr = mobilevit("benchmark", model_dir, *options)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert len(stderr.splitlines()) == 1


def test_missing_plot_folder_is_an_error_before_timing(model_dir, mobilevit, tmp_path):
    code, stdout, stderr = mobilevit("benchmark", model_dir, "--plot", tmp_path / "missing" / "chart.png")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: --plot: folder")


def test_exported_files_of_a_hub_repository_are_downloaded(model_dir, mobilevit, monkeypatch, tmp_path):
    require_backend("onnx")
    source = shutil.copytree(model_dir, tmp_path / "source")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"model")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    contents = []

    def measure(task, folder, *others):
        contents.append((folder / "onnx" / "model.onnx").read_bytes())
        return []

    monkeypatch.setattr("mobilevit_hf.backends.benchmark.measure", measure)
    with HubServer() as hub:
        hub.patch_client(monkeypatch)
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("user/model")
        api.upload_folder(repo_id="user/model", folder_path=source)
        assert mobilevit("benchmark", "user/model", "--backends", "torch,onnx")[0] == 0
    assert contents == [b"model"]
