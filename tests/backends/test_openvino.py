"""Exported OpenVINO files and the OpenVINO runtime."""

from pathlib import Path

import numpy as np
import pytest
import torch
from backend_support import export_tensors, require_backend

from mobilevit_hf.backends.openvino import MAX_SIZES, OpenVINORuntime, save_openvino
from mobilevit_hf.backends.pytorch import load_model
from mobilevit_hf.backends.runtime import load_exported_model


@pytest.fixture
def doubling_model():
    """An OpenVINO model that doubles its input of any size."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset8

    pixels = opset8.parameter([-1, 3, -1, -1], np.float32, name="pixel_values")
    return openvino.Model([opset8.multiply(pixels, opset8.constant(np.float32(2)))], [pixels])


@pytest.mark.slow
def test_file_stores_the_compute_precision(model_dirs, tmp_path):
    require_backend("openvino")
    import openvino

    task = "image-classification"
    model, _ = load_model(task, str(model_dirs[task]))
    for dtype, name in (("float32", "f32"), ("bfloat16", "bf16")):
        path = tmp_path / f"{dtype}.xml"
        export_tensors(model, task, "openvino", path, dtype)
        exported = load_exported_model(path, model.config, task, "openvino", threads=1)
        exported(pixel_values=torch.rand(1, 3, 64, 64))
        (compiled,) = exported.runtime.compiled.values()
        assert compiled.get_property("INFERENCE_PRECISION_HINT") == getattr(openvino.Type, name)
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_number_of_compiled_sizes_and_requests_is_bounded(doubling_model, tmp_path):
    """Each takes memory, which images of ever new sizes must not fill."""
    save_openvino(doubling_model, tmp_path / "m.xml", "float32")
    runtime = OpenVINORuntime(tmp_path / "m.xml", 1)
    for side in range(1, 4 * MAX_SIZES):
        pixels = np.random.default_rng(side).random((1, 3, side, side), dtype=np.float32)
        np.testing.assert_allclose(runtime(pixels)[0], 2 * pixels)
    assert len(runtime.thread_local.queues) == len(runtime.compiled) == MAX_SIZES + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_a_one_line_error(doubling_model, tmp_path):
    (tmp_path / "m.xml").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"m\.xml: can't be written .*Check the free disk space\."):
        save_openvino(doubling_model, tmp_path / "m.xml", "float32")
