"""The public names of the package, their lazy import, and the registration with transformers' Auto classes."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

import mobilevit_hf

DOCS = Path(__file__).parents[1] / "docs"
PUBLIC_NAMES = {
    "ConversionReport",
    "MobileViTBackbone",
    "MobileViTBackboneConfig",
    "MobileViTConfig",
    "MobileViTForImageClassification",
    "MobileViTForSemanticSegmentation",
    "MobileViTModel",
    "MobileViTPreTrainedModel",
    "MobileViTSSDLiteConfig",
    "MobileViTSSDLiteForObjectDetection",
    "MobileViTSSDLiteImageProcessor",
    "batch",
    "builtin",
    "convert_checkpoint",
    "data",
    "evaluation",
    "export_model",
    "fit_anchors",
    "hub",
    "metrics",
    "pipeline",
    "training",
    "tune_allocator",
}
DETECTOR_DIR = "str(mobilevit_hf.builtin('blood-cells'))"
LOAD_DETECTOR = f"""
print(type(AutoModelForObjectDetection.from_pretrained({DETECTOR_DIR})).__module__)
print(type(AutoImageProcessor.from_pretrained({DETECTOR_DIR})).__module__)
"""
OURS, AUTO = "import mobilevit_hf", "from transformers import AutoImageProcessor, AutoModelForObjectDetection"


def run_python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_dir_lists_the_public_names():
    assert set(dir(mobilevit_hf)) == PUBLIC_NAMES


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_public_name_can_be_imported(name):
    assert getattr(mobilevit_hf, name) is not None


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_public_name_is_on_a_page(name):
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api/*.md"))
    is_module = isinstance(getattr(mobilevit_hf, name), types.ModuleType)
    assert f"\n::: mobilevit_hf.{name}" + ("." if is_module else "\n") in pages


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        mobilevit_hf.no_such_name  # noqa: B018


def test_import_loads_neither_torch_nor_transformers():
    code = "import sys, mobilevit_hf; print(*({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert run_python(code) == []


@pytest.mark.parametrize(
    "imports",
    [
        f"{OURS}\n{AUTO}",
        f"{AUTO}\n{OURS}",
        f"{OURS}\nfrom transformers import MobileViTForImageClassification\n{AUTO}",
        f"from transformers import pipeline\n{OURS}\n{AUTO}",
    ],
    ids=["before transformers", "after transformers", "before the stock model", "after pipeline"],
)
@pytest.mark.slow
def test_auto_classes_load_the_detector_in_either_import_order(imports):
    assert run_python(imports + LOAD_DETECTOR) == [
        "mobilevit_hf.modeling.modeling_mobilevit_ssdlite",
        "mobilevit_hf.modeling.image_processing_mobilevit_ssdlite",
    ]


@pytest.mark.slow
def test_auto_image_processor_alone_loads_the_detectors():
    code = f"{OURS}\nfrom transformers import AutoImageProcessor\n"
    code += f"print(type(AutoImageProcessor.from_pretrained({DETECTOR_DIR})).__name__)"
    assert run_python(code) == ["MobileViTSSDLiteImageProcessor"]


@pytest.mark.slow
def test_auto_model_builds_the_detector_from_its_config():
    code = "from mobilevit_hf.modeling.configuration_mobilevit_ssdlite import MobileViTSSDLiteConfig\n"
    code += f"{AUTO}\nprint(type(AutoModelForObjectDetection.from_config(MobileViTSSDLiteConfig())).__name__)"
    assert run_python(code) == ["MobileViTSSDLiteForObjectDetection"]


@pytest.mark.slow
def test_stock_classes_stay_registered_for_stock_models():
    code = f"{OURS}\nfrom transformers import AutoConfig, AutoModelForImageClassification\n"
    code += "config = AutoConfig.for_model('mobilevit')\n"
    code += "print(type(AutoModelForImageClassification.from_config(config)).__module__)"
    assert run_python(code) == ["transformers.models.mobilevit.modeling_mobilevit"]
