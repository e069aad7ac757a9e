"""Configurations for transformers.js next to ONNX files."""

import json

import pytest

from mobilevit_hf.backends.transformers_js import browser_configs, default_dtype, write_browser_configs


@pytest.fixture
def write_files(tmp_path):
    """Function that writes ONNX files with records of an interface, and returns the model directory."""

    def write(names, interface):
        (tmp_path / "onnx").mkdir()
        records = []
        for name in names:
            (tmp_path / "onnx" / name).write_bytes(b"model")
            records.append({"backend": "onnx", "dtype": "float32", "file": f"onnx/{name}", "interface": interface})
        (tmp_path / "export.json").write_text(json.dumps(records))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (["model_quantized.onnx", "model_fp16.onnx", "model.onnx"], "fp32"),
        (["model_quantized.onnx", "model_fp16.onnx"], "fp16"),
        (["model_quantized.onnx"], "q8"),
        (["model_image.onnx"], None),
        ([], None),
    ],
)
def test_default_dtype_is_the_most_exact(write_files, names, dtype):
    folder = write_files(names, "transformers.js")
    assert default_dtype(folder, "transformers.js") == dtype
    configs = browser_configs(folder, ["cat", "dog"])
    if dtype is None:
        assert configs == {}
    else:
        assert json.loads(configs["onnx/config.json"])["transformers.js_config"] == {"dtype": dtype}


def test_files_of_another_interface_have_no_configurations(write_files):
    folder = write_files(["model.onnx"], "tensors")
    assert browser_configs(folder, ["cat", "dog"]) == {}
    assert default_dtype(folder, "tensors") == "fp32"


def test_files_that_were_removed_are_ignored(write_files):
    folder = write_files(["model.onnx", "model_fp16.onnx"], "transformers.js")
    (folder / "onnx" / "model.onnx").unlink()
    assert default_dtype(folder, "transformers.js") == "fp16"


def test_configurations_are_written_next_to_the_files(write_files):
    folder = write_files(["model.onnx"], "transformers.js")
    write_browser_configs(folder, ["chat à neuf queues", "dog"])
    config = json.loads((folder / "onnx" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "chat à neuf queues", "1": "dog"}
    assert config["label2id"] == {"chat à neuf queues": 0, "dog": 1}
    processor = json.loads((folder / "onnx" / "preprocessor_config.json").read_text())
    assert not processor["do_resize"]  # by the graph
    assert not (folder / "config.json").exists()
