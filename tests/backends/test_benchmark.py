"""`mobilevit benchmark`: what it counts is known, what it measures is there, and what it can't do is one line."""

import json
import shutil

import pytest
import torch
from engines import need
from huggingface_hub import HfApi, constants
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import MobileViTImageProcessor

from mobilevit_hf import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTSSDLiteConfig,
    MobileViTSSDLiteForObjectDetection,
)
from mobilevit_hf.backends.benchmark import Setting, count_macs, count_parameters, parse_setting


@pytest.mark.parametrize(
    ("variant", "macs", "parameters"), [("xxs", 0.26, 1.27), ("xs", 0.70, 2.32), ("s", 1.42, 5.58)]
)
def test_multiply_accumulates_at_224(variant, macs, parameters):
    """Those of fvcore and timm's tables without what attention multiplies; the paper's parameters."""
    model = MobileViTForImageClassification(MobileViTConfig.from_variant(variant, num_labels=1000))
    assert round(count_macs(model, 224, 224) / 1e9, 2) == macs
    assert round(count_parameters(model) / 1e6, 2) == parameters
    assert model.device.type == "cpu"


def test_a_detector_is_counted_as_torch_counts_it():
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant("xxs", num_labels=80)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 320, 256))
    flops = counter.get_flop_counts()["Global"]
    layers = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
    assert count_macs(model, 320, 256) == sum(flops.get(layer, 0) for layer in layers) / 2


def test_engines_are_named_as_they_are_shown():
    named = {
        "torch": Setting("torch", "float32", None),
        "openvino:bfloat16": Setting("openvino", "bfloat16", None),
        "openvino:int8": Setting("openvino", "float32", "int8"),
    }
    assert {str(parse_setting(name)): parse_setting(name) for name in named} == named
    assert parse_setting(" onnx") == Setting("onnx", "float32", None)  # as after a comma
    with pytest.raises(ValueError, match="dtype: got int7, expected one of float32"):
        parse_setting("openvino:int7")


@pytest.fixture(scope="module")
def folder(tiny_fields, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    MobileViTForImageClassification(MobileViTConfig(**tiny_fields)).save_pretrained(folder)
    MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_it_measures_what_it_was_asked_for(folder, mobilevit, monkeypatch, tmp_path):
    need("onnx")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    chart = tmp_path / "chart.png"
    words = ("--backends", "torch,onnx", "--batch", "1,2", "--size", "64", "--rounds", 2, "--threads", 1)
    code, out, err = mobilevit("benchmark", folder, *words, "--json", "--plot", chart)
    assert code == 0, err
    report = json.loads(out)
    found = [(row["setting"], row["batch"], row["height"], row["width"]) for row in report["timings"]]
    assert found == [(engine, batch, 64, 64) for batch in (1, 2) for engine in ("torch", "onnx")]
    for row in report["timings"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1000)
        assert row["peak_mib"] > 50
    sizes = {row["setting"]: row["file_bytes"] for row in report["timings"]}
    assert sizes["torch"] == (folder / "model.safetensors").stat().st_size
    (file,) = (tmp_path / "cache").rglob("*.onnx")
    assert sizes["onnx"] == file.stat().st_size
    assert set(report["macs"]) == {"64x64"}
    with Image.open(chart) as image:
        assert image.width > 500


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--backends", "onyx"), "backend: got 'onyx', expected one of torch, onnx, openvino, executorch."),
        (("--backends", "coreml"), "backend: got 'coreml', expected one of torch, onnx, openvino, executorch."),
        (("--batch", "1,none"), "--batch: got '1,none', expected positive numbers"),
        (("--size", "0"), "--size: got '0', expected positive numbers"),
        (("--backends", "onnx:int8"), "int8"),
    ],
)
def test_a_mistake_is_one_line(words, expected, folder, mobilevit):
    code, out, err = mobilevit("benchmark", folder, *words)
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1


def test_a_chart_without_a_folder_is_said_before_anything_is_timed(folder, mobilevit, tmp_path):
    code, out, err = mobilevit("benchmark", folder, "--plot", tmp_path / "missing" / "chart.png")
    assert (code, out) == (2, "")
    assert err.startswith("error: --plot: there is no folder")


def test_ready_files_of_a_repository_on_the_hub_are_there_to_be_timed(folder, hub, mobilevit, monkeypatch, tmp_path):
    need("onnx")
    source = shutil.copytree(folder, tmp_path / "source")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"program")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=source)
    seen = []

    def measure(task, found, *others):
        seen.append((found / "onnx" / "model.onnx").read_bytes())
        return []

    monkeypatch.setattr("mobilevit_hf.cli.benchmark.measure", measure)
    assert mobilevit("benchmark", "user/model", "--backends", "torch,onnx")[0] == 0
    assert seen == [b"program"]
