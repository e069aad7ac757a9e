import json
import os
import re
import shutil
import socket
import time

import pytest
import torch
from huggingface_hub import HfApi, constants, metadata_load
from safetensors import safe_open
from transformers import AutoConfig

import mobilevit_hf
from mobilevit_hf import model_sources, samples
from mobilevit_hf.hub.metadata import FIGURES
from mobilevit_hf.model_sources import builtin, builtin_models, check_weights, has_weights, read_task, resolve_model

TASKS = {"blood-cells": "object-detection", "garments": "image-classification"}


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


# --- built-in models -------------------------------------------------------------------------------------------------


def test_names_of_the_builtin_models():
    assert builtin_models() == sorted(TASKS)


def test_unknown_builtin_model_lists_the_names():
    with pytest.raises(ValueError, match="got 'flowers', expected one of blood-cells, garments"):
        builtin("flowers")


@pytest.mark.parametrize("name", ["garmets", "blod-cells"])
def test_mistyped_name_of_a_builtin_model_is_suggested(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_sources, "is_hub_reachable", lambda: False)
    with pytest.raises(ValueError, match=f"did you mean {'garments' if name == 'garmets' else 'blood-cells'}\\?"):
        model_sources.resolve_model(name)


def test_builtin_model_is_small_and_has_no_images_of_the_dataset(name):
    files = list(builtin(name).iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.name for file in files if file.suffix not in (".json", ".md", ".safetensors")} <= set(FIGURES)


def test_half_precision_weights_are_loaded_in_float32(name):
    with safe_open(builtin(name) / "model.safetensors", "np") as weights:
        dtypes = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    assert "F16" in dtypes
    assert "F32" not in dtypes
    assert json.loads((builtin(name) / "config.json").read_text())["dtype"] == "float32"
    assert str(mobilevit_hf.pipeline(TASKS[name], builtin(name)).model.dtype) == "torch.float32"


def test_card_of_a_builtin_model_has_license_and_test_metrics(name):
    card = metadata_load(builtin(name) / "README.md")
    assert card["pipeline_tag"] == TASKS[name]
    assert card["license"]
    result = card["model-index"][0]["results"][-1]
    assert result["dataset"]["split"] == "test"
    metrics = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert metrics["accuracy"] >= 0.8 if name == "garments" else metrics["map_50"] >= 0.85


@pytest.mark.slow
def test_stock_transformers_runs_the_builtin_classifier(run_python, tmp_path):
    samples.draw_t_shirt().save(tmp_path / "shirt.png")
    code = f"""
        import torch
        from transformers import pipeline
        classify = pipeline("image-classification", model={str(builtin("garments"))!r})
        assert classify.model.dtype == torch.float32
        print(classify({str(tmp_path / "shirt.png")!r}, top_k=1)[0]["label"])
    """
    assert run_python(code, without_package=True).strip() == "t-shirt"


@pytest.mark.slow
def test_snippets_of_the_card_run_in_a_checkout(name, run_python, tmp_path):
    samples.SAMPLES[name]().save(tmp_path / "photo.jpg")
    (tmp_path / "mobilevit_hf").symlink_to(model_sources.ASSETS.parent)
    card = (builtin(name) / "README.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    for code in snippets:
        assert "score" in run_python(f"import os\nos.chdir({str(tmp_path)!r})\n{code}")


# --- resolution ------------------------------------------------------------------------------------------------------


def test_directory_precedes_builtin_model(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model("garments") == builtin("garments")
    (tmp_path / "garments").mkdir()  # without a model
    assert resolve_model("garments") == builtin("garments")
    shutil.copytree(checkpoints["image-classification"], tmp_path / "garments", dirs_exist_ok=True)
    assert resolve_model("garments").resolve() == tmp_path / "garments"


def test_file_and_directory_without_a_model_are_rejected(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file, expected a directory.*mobilevit convert"):
        resolve_model(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match=r"got no config\.json, expected a directory"):
        resolve_model(str(tmp_path))


def test_invalid_hub_id_is_rejected(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"There is no directory a/b/c, .*can't be a Hub id"):
        resolve_model("a/b/c")


@pytest.fixture
def published_model(hub, checkpoints, tmp_path, monkeypatch):
    """Id of a repository with a model and an `onnx` folder on the local Hub, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(checkpoints["image-classification"], tmp_path / "model")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"onnx")
    (folder / "training.log").write_text("not needed")
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    return "user/model"


def test_hub_model_is_downloaded_without_other_files(published_model):
    folder = resolve_model(published_model)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert (resolve_model(published_model, folder="onnx") / "onnx" / "model.onnx").read_bytes() == b"onnx"


def test_cached_hub_model_is_used_without_a_connection(published_model, monkeypatch):
    folder = resolve_model(published_model)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model(published_model) == folder
    with pytest.raises(ValueError, match="user/other is not in the local cache and the Hub can't be reached"):
        resolve_model("user/other")


def test_hub_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(model_sources, "HUB_TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ValueError, match="user/other is not in the local cache and the Hub can't be reached"):
            resolve_model("user/other")


def test_pipeline_uses_the_cache_without_a_connection(published_model, monkeypatch):
    resolve_model(published_model)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", None)  # between retries of the client
    assert mobilevit_hf.pipeline("image-classification", published_model).task == "image-classification"
    with pytest.raises(OSError, match=r"^user/other is not in the local cache and the Hub can't be reached\..*"):
        mobilevit_hf.pipeline("image-classification", "user/other")
    assert not constants.HF_HUB_OFFLINE


def test_missing_and_empty_repositories_are_rejected(published_model, hub):
    with pytest.raises(ValueError, match=r"There is no directory user/missing, .*hf auth login"):
        resolve_model("user/missing")
    HfApi(endpoint=hub.url, token=hub.token).create_repo("user/empty")
    with pytest.raises(ValueError, match=r"user/empty: got no config\.json"):
        resolve_model("user/empty")


# --- configuration ---------------------------------------------------------------------------------------------------


def test_task_is_read_from_the_configuration(checkpoints, detector_dir):
    assert read_task("model", checkpoints["image-classification"]).name == "image-classification"
    assert read_task("model", detector_dir).name == "object-detection"
    assert read_task("model", checkpoints["image-segmentation"]).name == "image-segmentation"
    with pytest.raises(ValueError, match=r"^model: got MobileViTModel, expected an image classifier or an object"):
        read_task("model", checkpoints["image-feature-extraction"])
    with pytest.raises(ValueError, match=r"^model: got MobileViTForSemanticSegmentation, expected an object detector"):
        read_task("model", checkpoints["image-segmentation"], ["object-detection"])


def test_invalid_configuration_is_rejected(checkpoints, tmp_path):
    config = json.loads((checkpoints["image-classification"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_sizes": "wide"}))
    with pytest.raises(ValueError, match=r"^model: invalid config\.json: .*hidden_sizes"):
        read_task("model", tmp_path)


INVALID_FIELDS = [
    ("config.json", "architectures", [None]),
    ("config.json", "architectures", [5]),
    ("config.json", "id2label", {"0": 5, "1": None}),
    ("config.json", "id2label", {"0": "cat", "7": "dog"}),
    ("config.json", "id2label", {"x": "cat"}),
    ("config.json", "id2label", ["cat"]),
    ("config.json", "num_labels", 10**12),
    ("config.json", "num_labels", "many"),
    ("config.json", "hidden_sizes", [10**7] * 3),
    ("config.json", "qkv_bias", False),
    ("config.json", "dtype", 5),
    ("config.json", "_attn_implementation", "user/kernel"),
    ("config.json", "model_type", ["mobilevit"]),
    ("config.json", "quantization_config", 5),
    ("preprocessor_config.json", "size", {"shortest_edge": "72"}),
    ("preprocessor_config.json", "size", {"shortest_edge": -5}),
    ("preprocessor_config.json", "size", [None]),
    ("preprocessor_config.json", "size", None),
    ("preprocessor_config.json", "crop_size", {"height": 10**6, "width": 10**6}),
    ("preprocessor_config.json", "crop_size", 0),
    ("preprocessor_config.json", "resample", 99),
    ("preprocessor_config.json", "rescale_factor", "1/255"),
    ("preprocessor_config.json", "image_mean", "gray"),
    ("preprocessor_config.json", "do_resize", "no"),
    ("preprocessor_config.json", "image_processor_type", 5),
    ("preprocessor_config.json", "image_processor_type", "Missing"),
]


@pytest.mark.parametrize(("file", "name", "value"), INVALID_FIELDS)
def test_invalid_field_is_an_error_in_one_line(file, name, value, classifier_dir, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fields = json.loads((classifier_dir / file).read_text())
    (classifier_dir / file).write_text(json.dumps(fields | {name: value}))
    with pytest.raises(ValueError, match=f"^{classifier_dir}: [^\n]+$"):
        mobilevit_hf.pipeline(read_task(str(classifier_dir), classifier_dir).name, classifier_dir)


def test_recommended_threshold_defaults_to_that_of_the_pipeline(detector_dir):
    config = AutoConfig.from_pretrained(detector_dir)
    assert model_sources.recommended_threshold(config) == 0.5
    config.recommended_threshold = 0.3
    assert model_sources.recommended_threshold(config) == 0.3


@pytest.mark.parametrize(
    ("file", "expected"),
    [("model-00001-of-00002.safetensors", True), ("pytorch_model.bin", True), ("model.onnx", False)],
)
def test_exported_models_are_not_weights(tmp_path, file, expected):
    (tmp_path / file).touch()
    assert has_weights(tmp_path) is expected


class Folder:
    """Object that creates a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("created",)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off", {"weights": Folder()}])
def test_damaged_or_foreign_pickled_weights_are_an_error_in_one_line(content, classifier_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (classifier_dir / "model.safetensors").unlink()
    file = classifier_dir / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=rf"^{classifier_dir}: pytorch_model\.bin can't be read: [^\n]+$"):
        mobilevit_hf.pipeline("image-classification", classifier_dir)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00damaged!", None])
def test_damaged_or_missing_weights_are_rejected(content, classifier_dir):
    check_weights(classifier_dir)
    weights = classifier_dir / "model.safetensors"
    if content is None:
        weights.unlink()
    else:
        weights.write_bytes(content)
    message = "got no model.safetensors" if content is None else r"model\.safetensors can't be read \("
    with pytest.raises(ValueError, match=rf"^{classifier_dir}: {message}.*\. Download or save the model again\.$"):
        check_weights(classifier_dir)
