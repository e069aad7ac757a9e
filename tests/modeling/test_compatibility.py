"""Checkpoints go both ways between this package and stock transformers, and the two live in one process."""

import json

import pytest
import torch
import transformers
from formula import formula_image
from safetensors.torch import load_file

import mobilevit_hf

# By pipeline task: the class in both libraries, and its outputs to compare.
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


def outputs_of(model, task):
    """The model's outputs for an image from a formula."""
    with torch.no_grad():
        outputs = model.eval()(formula_image(64, 96))
    return {name: outputs[name] for name in OUTPUTS[task]}


def our_class(task):
    return getattr(mobilevit_hf, CLASSES[task])


@pytest.fixture(scope="module")
def stock(checkpoints, image, tiny_fields, run_python, tmp_path_factory):
    """What stock transformers, alone in a clean process, makes of our checkpoints, and checkpoints of its own.

    A folder with, by task, `ours-TASK.pt` (its outputs for our checkpoint), `TASK` (its own checkpoint) and
    `TASK.pt` (that one's outputs); and `scores.json`, the pipeline's answers for our classifier.
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
                    tensor.uniform_(0.5, 1.5)  # as it starts, so small a model answers zero to every image
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
        quiet=True,  # no word about missing or unexpected weights, nor about anything else
    )
    return folder


# --- saved here, loaded there ----------------------------------------------------------------------------------------


@tasks
def test_stock_transformers_computes_the_same_from_our_checkpoint(task, stock, checkpoints):
    ours = outputs_of(our_class(task).from_pretrained(checkpoints[task]), task)
    theirs = torch.load(stock / f"ours-{task}.pt", weights_only=True)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert all(tensor.std() > 1e-2 for tensor in ours.values())  # it is not that all answers are the same


def test_stock_pipeline_gives_our_scores(stock, checkpoints, image):
    folder = checkpoints["image-classification"]
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        scores = model(**processor(image, return_tensors="pt")).logits[0].softmax(-1).tolist()
    answers = json.loads((stock / "scores.json").read_text())
    expected = dict(zip(["cat", "dog", "fish", "owl"], scores, strict=True))
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-5)
    assert max(scores) - min(scores) > 1e-2


@tasks
def test_what_is_saved_has_stock_names(task, checkpoints):
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


# --- saved there, loaded here ----------------------------------------------------------------------------------------


@tasks
def test_a_stock_checkpoint_loads_here(task, stock):
    model, report = our_class(task).from_pretrained(stock / task, output_loading_info=True)
    assert not any(report.values()), report
    expected = torch.load(stock / f"{task}.pt", weights_only=True)
    torch.testing.assert_close(outputs_of(model, task), expected, atol=1e-5, rtol=1e-5)
    assert all(tensor.std() > 1e-2 for tensor in expected.values())


def test_a_config_with_unknown_keys_loads(checkpoints, tmp_path):
    source = checkpoints["image-classification"]
    config = json.loads((source / "config.json").read_text())
    config |= {"of_the_future": {"a": [1]}, "transformers_version": "99.0.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(tmp_path)
    assert model.config.of_the_future == {"a": [1]}
    known = mobilevit_hf.MobileViTForImageClassification.from_pretrained(source)
    torch.testing.assert_close(
        outputs_of(model, "image-classification"), outputs_of(known, "image-classification"), atol=0, rtol=0
    )


# --- both in one process ---------------------------------------------------------------------------------------------


def test_stock_classes_stay_as_they_are(checkpoints, run_python):
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
        held = {{name: dict(vars(stock_class)) for name, stock_class in stock.items()}}

        import mobilevit_hf

        for name, stock_class in stock.items():
            assert getattr(transformers, name) is stock_class
            assert dict(vars(stock_class)) == held[name], name
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
