"""No runtime sends usage data or writes an id into the home folder."""

import os

import pytest
from backend_support import require_backend

# Writes requests to a file instead of sending them, and runs one backend.
SCRIPT = """
import os, sys, urllib.request
from pathlib import Path

def record(request, *args, **kwargs):
    with open(Path.home() / "requests.txt", "a") as file:
        file.write(getattr(request, "full_url", request) + "\\n")
    raise OSError

urllib.request.urlopen = record
{imported_before}
import torch
from mobilevit_hf import MobileViTConfig, MobileViTForImageClassification
from mobilevit_hf.backends.requests import ExportRequest
from mobilevit_hf.backends.openvino import convert_openvino, save_openvino
from mobilevit_hf.backends.nncf_quantization import quantize_openvino
from mobilevit_hf.backends.runtime import load_exported_model

task, path, pixels = "image-classification", Path("model.xml"), torch.zeros(1, 3, 64, 64)
config = MobileViTConfig.from_variant("xxs", num_labels=2)
model = convert_openvino(ExportRequest(MobileViTForImageClassification(config), task, None, pixels))
if {quantize}:
    model = quantize_openvino(model, [pixels.numpy()])
save_openvino(model, path, "float32")
load_exported_model(path, config, task, "openvino")(pixels)
"""


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [False, True])
def test_openvino_sends_no_usage_data(run_python, tmp_path, quantize):
    require_backend("openvino")
    if quantize:
        pytest.importorskip("nncf")
    run_python(SCRIPT.format(imported_before="", quantize=quantize), os.environ | {"HOME": str(tmp_path)})
    assert not (tmp_path / "requests.txt").exists()
    assert not (tmp_path / "intel").exists()  # with the id


@pytest.mark.slow
def test_openvino_that_was_imported_before_sends_no_usage_data(run_python, tmp_path):
    require_backend("openvino")
    before = "import openvino, openvino_telemetry\nassert openvino_telemetry.Telemetry().consent"
    after = "assert not openvino_telemetry.Telemetry().consent"
    environment = os.environ | {"HOME": str(tmp_path)}
    environment.pop("CI", None)
    run_python(SCRIPT.format(imported_before=before, quantize=False) + after, environment)
