"""Compatibility with stock transformers: interchangeable checkpoints, unchanged stock classes."""

import json

import pytest
import torch
import transformers
from formula import formula_image
from safetensors.torch import load_file

import mobilevit_hf

# Class in both libraries and outputs to compare, by pipeline task.
CLASSES = {
    "image-classification": "MobileViTForImageClassification",
    "image-segmentation": "MobileViTForSemanticSegmentation",
    "image-feature-extraction": "MobileViTModel",
}
OUTPUTS = {
    "image-classification": ["logits"],
    "image-segmentation": ["logits"],
    "image-feature-extraction": ["last_hidden_state", "pooler_output"],
}
tasks = pytest.mark.parametrize("task", CLASSES)


def compute_outputs(model, task):
    """Return the model's outputs for a formula image."""
    with torch.no_grad():
        outputs = model.eval()(formula_image(64, 96))
    return {name: outputs[name] for name in OUTPUTS[task]}


def class_of(task):
    return getattr(mobilevit_hf, CLASSES[task])


@pytest.fixture(scope="module")
def stock_dir(checkpoints, image, tiny_fields, run_python, tmp_path_factory):
    """Outputs and checkpoints of stock transformers in a process without this package.

    A folder with, per task, `ours-TASK.pt` (outputs for this package's checkpoint), `TASK` (a stock checkpoint) and
    `TASK.pt` (its outputs); and `scores.json`, the output of the stock pipeline for this package's classifier.
    """
    folder = tmp_path_factory.mktemp("stock")
    torch.save(formula_image(64, 96), folder / "pixels.pt")
    image.save(folder / "image.png")
    sources = {task: str(path) for task, path in checkpoints.items()}
    run_python(
        f"""
        import importlib.util, json, torch, transformers
        from pathlib import Path

        assert importlib.util.find_spec("mobilevit_hf") is None
        folder, pixels = Path({str(folder)!r}), torch.load({str(folder / "pixels.pt")!r}, weights_only=True)

        def record(model, task, name):
            with torch.no_grad():
                outputs = model.eval()(pixels)
            torch.save({{name: outputs[name] for name in {OUTPUTS!r}[task]}}, folder / name)

        for task, class_name in {CLASSES!r}.items():
            model_class = getattr(transformers, class_name)
            record(model_class.from_pretrained({sources!r}[task]), task, f"ours-{{task}}.pt")

            torch.manual_seed(0)
            model = model_class(transformers.MobileViTConfig(**{tiny_fields!r}))
            for name, tensor in model.state_dict().items():
                if name.endswith(("normalization.weight", "running_var")):
                    tensor.uniform_(0.5, 1.5)  # a tiny model with stock's initialization outputs zeros
                elif "convolution" in name:
                    torch.nn.init.kaiming_normal_(tensor) if tensor.ndim == 4 else tensor.normal_(std=0.1)
                elif tensor.is_floating_point():
                    tensor.normal_(std=0.3)
            record(model, task, f"{{task}}.pt")
            model.save_pretrained(folder / task)

        classify = transformers.pipeline("image-classification", model={sources["image-classification"]!r})
        assert type(classify.model) is transformers.MobileViTForImageClassification
        (folder / "scores.json").write_text(json.dumps(classify(str(folder / "image.png"))))
        """,
        without_package=True,
        quiet=True,  # no warnings about missing or unexpected weights
    )
    return folder


@pytest.mark.slow
@tasks
def test_stock_outputs_equal_for_our_checkpoint(task, stock_dir, checkpoints):
    expected = compute_outputs(class_of(task).from_pretrained(checkpoints[task]), task)
    actual = torch.load(stock_dir / f"ours-{task}.pt", weights_only=True)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert all(tensor.std() > 1e-2 for tensor in expected.values())  # outputs vary


@pytest.mark.slow
def test_stock_pipeline_scores_equal_for_our_checkpoint(stock_dir, checkpoints, image):
    folder = checkpoints["image-classification"]
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        scores = model(**processor(image, return_tensors="pt")).logits[0].softmax(-1).tolist()
    predictions = json.loads((stock_dir / "scores.json").read_text())
    expected = dict(zip(["cat", "dog", "fish", "owl"], scores, strict=True))
    assert {prediction["label"]: prediction["score"] for prediction in predictions} == pytest.approx(
        expected, abs=1e-5
    )
    assert max(scores) - min(scores) > 1e-2


@tasks
def test_saved_files_have_stock_names(task, checkpoints):
    folder = checkpoints[task]
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "mobilevit"
    assert config["architectures"] == [CLASSES[task]]
    assert "auto_map" not in config
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "MobileViTImageProcessor"


@tasks
def test_parameters_have_stock_names_and_shapes(task, checkpoints):
    config = transformers.MobileViTConfig.from_pretrained(checkpoints[task])
    expected = getattr(transformers, CLASSES[task])(config).state_dict()
    saved = load_file(checkpoints[task] / "model.safetensors")
    assert {name: tensor.shape for name, tensor in saved.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@pytest.mark.slow
@tasks
def test_stock_checkpoint_loads_with_equal_outputs(task, stock_dir):
    model, report = class_of(task).from_pretrained(stock_dir / task, output_loading_info=True)
    assert not any(report.values()), report
    expected = torch.load(stock_dir / f"{task}.pt", weights_only=True)
    torch.testing.assert_close(compute_outputs(model, task), expected, atol=1e-5, rtol=1e-5)
    assert all(tensor.std() > 1e-2 for tensor in expected.values())


def test_config_with_unknown_keys_loads(checkpoints, tmp_path):
    source = checkpoints["image-classification"]
    config = json.loads((source / "config.json").read_text())
    config |= {"future_field": {"a": [1]}, "transformers_version": "99.0.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(tmp_path)
    assert model.config.future_field == {"a": [1]}
    original = mobilevit_hf.MobileViTForImageClassification.from_pretrained(source)
    torch.testing.assert_close(
        compute_outputs(model, "image-classification"),
        compute_outputs(original, "image-classification"),
        atol=0,
        rtol=0,
    )


@pytest.mark.slow
def test_import_leaves_stock_classes_unchanged(checkpoints, run_python):
    classes = {
        "image-classification": ("AutoModelForImageClassification", "MobileViTForImageClassification"),
        "image-segmentation": ("AutoModelForSemanticSegmentation", "MobileViTForSemanticSegmentation"),
        "image-feature-extraction": ("AutoModel", "MobileViTModel"),
    }
    folders = {task: str(folder) for task, folder in checkpoints.items()}
    run_python(
        f"""
        import transformers

        names = ["MobileViTConfig", "MobileViTImageProcessor", *{list(CLASSES.values())!r}]
        stock = {{name: getattr(transformers, name) for name in names}}
        before = {{name: dict(vars(stock_class)) for name, stock_class in stock.items()}}

        import mobilevit_hf

        for name, stock_class in stock.items():
            assert getattr(transformers, name) is stock_class
            assert dict(vars(stock_class)) == before[name], name
            assert stock_class.__module__.startswith("transformers.models.mobilevit.")
        assert type(transformers.AutoConfig.for_model("mobilevit")) is stock["MobileViTConfig"]
        for task, folder in {folders!r}.items():
            auto_class, name = {classes!r}[task]
            assert type(getattr(transformers, auto_class).from_pretrained(folder)) is stock[name]
            assert type(transformers.AutoConfig.from_pretrained(folder)) is stock["MobileViTConfig"]
            assert type(transformers.AutoImageProcessor.from_pretrained(folder)) is stock["MobileViTImageProcessor"]
        """,
        quiet=True,
    )
