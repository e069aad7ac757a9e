"""Configurations for transformers.js next to ONNX files."""

import json

import pytest
from transformers import MobileViTImageProcessor

from mobilevit_hf.backends.transformers_js import browser_configs, default_dtype, write_browser_configs

DETECTION, SEGMENTATION = "object-detection", "image-segmentation"


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
    assert default_dtype(folder, DETECTION, "transformers.js") == dtype
    configs = browser_configs(folder, DETECTION, ["cat", "dog"], None)
    if dtype is None:
        assert configs == {}
    else:
        assert json.loads(configs["onnx/config.json"])["transformers.js_config"] == {"dtype": dtype}


def test_files_of_another_interface_have_no_configurations(write_files):
    folder = write_files(["model.onnx"], "tensors")
    assert browser_configs(folder, DETECTION, ["cat", "dog"], None) == {}
    assert default_dtype(folder, "image-classification", "tensors") == "fp32"


def test_files_that_were_removed_are_ignored(write_files):
    folder = write_files(["model.onnx", "model_fp16.onnx"], "transformers.js")
    (folder / "onnx" / "model.onnx").unlink()
    assert default_dtype(folder, DETECTION, "transformers.js") == "fp16"


def test_configurations_are_written_next_to_the_files(write_files):
    folder = write_files(["model.onnx"], "transformers.js")
    write_browser_configs(folder, DETECTION, ["chat à neuf queues", "dog"], None)
    config = json.loads((folder / "onnx" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "chat à neuf queues", "1": "dog"}
    assert config["label2id"] == {"chat à neuf queues": 0, "dog": 1}
    processor = json.loads((folder / "onnx" / "preprocessor_config.json").read_text())
    assert not processor["do_resize"]  # by the graph
    assert not (folder / "config.json").exists()


def test_segmentation_model_is_a_segformer_that_gets_the_whole_image(write_files):
    folder = write_files(["model.onnx"], "transformers.js")
    processor = MobileViTImageProcessor(size={"height": 64, "width": 96}, do_center_crop=False)
    configs = browser_configs(folder, SEGMENTATION, ["cat", "dog"], processor)
    model, preprocessing = (json.loads(configs[f"onnx/{name}.json"]) for name in ("config", "preprocessor_config"))
    assert model["architectures"] == ["SegformerForSemanticSegmentation"]
    assert model["model_type"] == "segformer"
    assert preprocessing["image_processor_type"] == "SegformerImageProcessor"
    assert not preprocessing["do_resize"]  # by the graph
    assert "do_center_crop" not in preprocessing


def test_center_crop_is_left_to_transformers_js(write_files):
    folder = write_files(["model.onnx"], "transformers.js")
    processor = MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    configs = browser_configs(folder, SEGMENTATION, ["cat", "dog"], processor)
    preprocessing = json.loads(configs["onnx/preprocessor_config.json"])
    assert preprocessing["size"] == {"shortest_edge": 72}
    assert preprocessing["crop_size"] == {"height": 64, "width": 64}
    assert preprocessing["do_resize"]
    assert preprocessing["do_center_crop"]
    assert not preprocessing["do_thumbnail"]


def test_classifier_has_no_further_configurations(write_files):
    folder = write_files(["model.onnx"], "transformers.js")
    assert browser_configs(folder, "image-classification", ["cat", "dog"], None) == {}
