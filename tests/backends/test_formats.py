"""The table of formats: unsupported requests and missing packages are one-line errors."""

import re
import tomllib
from pathlib import Path

import pytest
from backend_support import BACKENDS, require_backend

import mobilevit_hf
from mobilevit_hf.backends import formats


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("image-classification", {"backend": "tensorrt"}, "backend: got 'tensorrt', expected one of torch, onnx"),
        ("image-classification", {"backend": "coreml"}, "expected one of torch, onnx, openvino, executorch"),
        ("image-feature-extraction", {"backend": "onnx"}, "can't be exported to onnx"),
        (
            "image-classification",
            {"backend": "onnx", "dtype": "bfloat16"},
            "got bfloat16, expected float32 or float16",
        ),
        (
            "image-classification",
            {"backend": "executorch", "quantization": "int8"},
            "expected None; onnx, openvino, litert have it",
        ),
        ("image-classification", {"backend": "openvino", "quantization": "int8"}, "mobilevit export MODEL OUT --to"),
        ("image-classification", {"quantization": "int8"}, "Use openvino, onnx or litert."),
        ("image-classification", {"backend": "openvino", "device": "cuda"}, "device: got cuda, expected cpu"),
    ],
)
def test_unsupported_request_is_a_one_line_error(task, options, message, model_dirs):
    if options.get("backend") in BACKENDS:
        require_backend(options["backend"])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        mobilevit_hf.pipeline(task, str(model_dirs[task]), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["onnx"], "onnx, which is not installed. Run: pip install onnx"),
        (["onnx", "onnxruntime"], "onnx and onnxruntime, which are not installed. Run: pip install onnx onnxruntime"),
        (
            ["onnx", "onnxscript", "onnxruntime"],
            "onnx, onnxscript and onnxruntime, which are not installed. Run: pip install onnx onnxscript onnxruntime",
        ),
    ],
)
def test_missing_package_error_names_the_pip_command(missing, message, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name in missing else object())
    monkeypatch.setattr(formats, "pip_command", "pip install package[{}]".format)
    extra = "(or, with all packages of the extra backends: pip install package[backends])"
    message = f"backend: 'onnx' requires {message} {extra}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        formats.check_backend("onnx", "image-classification", "float32", None)


def test_running_a_file_requires_the_runtime_only(monkeypatch):
    monkeypatch.setattr(
        formats.importlib.util, "find_spec", lambda name: object() if name == "ai_edge_litert" else None
    )
    formats.check_backend("litert", "image-classification", "float32", None, exports=False)
    with pytest.raises(ValueError, match="requires litert-torch and ai-edge-quantizer, which are not installed"):
        formats.check_backend("litert", "image-classification", "float32", None)


def test_extra_has_the_packages_of_all_formats():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra in ("backends", "litert"):
        names = {re.match(r"[\w-]+", text)[0] for text in project["optional-dependencies"][extra]}
        chosen = [format for format in formats.FORMATS.values() if format.extra == extra]
        packages = {package for format in chosen for package in (*format.packages, *format.int8_packages)}
        assert names == {package.replace("_", "-") for package in packages}


def test_dtype_names():
    assert [formats.dtype_name(dtype) for dtype in (None, "auto", "torch.bfloat16", "float16")] == [
        "float32",
        "auto",
        "bfloat16",
        "float16",
    ]


def test_table_and_cache_import_without_torch(run_python):
    run_python(
        """
        import sys
        import mobilevit_hf.backends.formats, mobilevit_hf.backends.cache
        assert not {"torch", "transformers", "numpy"} & set(sys.modules)
        """
    )
