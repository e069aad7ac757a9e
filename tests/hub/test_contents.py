"""Published files, and checks before publishing."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from card_folders import MIT_CARD, edit_config, set_nan_weight
from hub_server import TOKEN
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from mobilevit_hf import MobileViTForImageClassification, MobileViTSSDLiteForObjectDetection
from mobilevit_hf.backends.cache import weights_hash
from mobilevit_hf.hub import CardOptions

REPO = "user/shapes"
MODEL = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
CODE = {
    "anchors_ssdlite.py",
    "boxes_ssdlite.py",
    "configuration_mobilevit.py",
    "configuration_mobilevit_ssdlite.py",
    "finite.py",
    "image_processing_mobilevit_ssdlite.py",
    "layers_mobilevit.py",
    "loss_ssdlite.py",
    "matcher_ssdlite.py",
    "modeling_mobilevit.py",
    "modeling_mobilevit_ssdlite.py",
    "pipeline_mobilevit_ssdlite.py",
    "variants_mobilevit.py",
}


# --- published files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_code", [True, False])
def test_detector_is_published_with_its_code(hub, detector_dir, publish_model, tmp_path, has_code):
    folder = Path(shutil.copytree(detector_dir, tmp_path / "detector"))
    if not has_code:
        for path in folder.glob("*.py"):
            path.unlink()
        for name in ("config.json", "preprocessor_config.json"):
            values = json.loads((folder / name).read_text())
            del values["auto_map"]
            (folder / name).write_text(json.dumps(values))
    publish_model(folder)
    files = hub.files(REPO)
    assert {name for name in files if name.endswith(".py")} == CODE
    for name in (*CODE, "config.json", "preprocessor_config.json"):
        saved = (detector_dir / name).read_bytes()
        same = json.loads(files[name]) == json.loads(saved) if name.endswith(".json") else files[name] == saved
        assert same, name


def test_code_saved_with_the_weights_is_published(hub, detector_dir, publish_model, tmp_path):
    folder = Path(shutil.copytree(detector_dir, tmp_path / "detector"))
    with (folder / "loss_ssdlite.py").open("a") as file:
        file.write("\n# an earlier version\n")
    publish_model(folder)
    assert hub.files(REPO)["loss_ssdlite.py"].endswith(b"# an earlier version\n")


def test_classifier_config_has_no_code_and_no_path(hub, classifier_dir, publish_model):
    config = json.loads((classifier_dir / "config.json").read_text())
    references = {"auto_map": {"AutoConfig": "evil.Config"}, "_name_or_path": "/home/me/start"}
    (classifier_dir / "config.json").write_text(json.dumps(config | references))
    (classifier_dir / "evil.py").write_text("")
    publish_model(classifier_dir)
    assert json.loads(hub.files(REPO)["config.json"]) == config
    assert "evil.py" not in hub.files(REPO)


def test_unrelated_files_are_left_out(hub, classifier_dir, publish_model):
    for name in ("checkpoints/step-1.pt", "recipe.yaml", "metrics.jsonl", ".env", "notes.txt", "onnx/.cache/a.onnx"):
        (classifier_dir / name).parent.mkdir(exist_ok=True, parents=True)
        (classifier_dir / name).write_text("local")
    published = {"curves.png", "samples.png", "onnx/model.onnx", "openvino/model.xml", "openvino/model.bin"}
    published |= {"executorch/model.pte", "coreml/model.mlpackage/Data/weight.bin"}
    for name in published:
        (classifier_dir / name).parent.mkdir(exist_ok=True, parents=True)
        (classifier_dir / name).write_bytes(name.encode())
    publication = publish_model(classifier_dir)
    assert {name for name in hub.files(REPO) if not name.startswith(".eval_results/")} == MODEL | published
    assert {"checkpoints", "recipe.yaml", "metrics.jsonl", ".env", "notes.txt"} == set(publication.left_out)


def test_exports_are_published_with_their_record(hub, classifier_dir, publish_model):
    model = MobileViTForImageClassification.from_pretrained(classifier_dir)
    (classifier_dir / "onnx").mkdir()
    (classifier_dir / "onnx" / "model.onnx").write_bytes(b"program")
    entry = {"backend": "onnx", "dtype": "float32", "quantization": None, "file": "onnx/model.onnx"}
    record = classifier_dir / "export.json"
    hashes = {"model.onnx": hashlib.sha256(b"program").hexdigest()}
    record.write_text(json.dumps([entry | {"weights": weights_hash(model), "files": hashes}]))
    publish_model(classifier_dir)
    assert hub.files(REPO)["export.json"] == record.read_bytes()
    assert hub.files(REPO)["onnx/model.onnx"] == b"program"
    assert json.loads(hub.files(REPO)["config.json"])["transformers.js_config"] == {"dtype": "fp32"}
    (classifier_dir / "onnx" / "model.onnx").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"onnx/model\.onnx: got SHA-256 .* Run mobilevit export again\."):
        publish_model(classifier_dir)
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(classifier_dir)
    with pytest.raises(ValueError, match=r"onnx/model\.onnx was exported from other weights"):
        publish_model(classifier_dir)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (["model.onnx", "model_fp16.onnx", "model_quantized.onnx"], "fp32"),
        (["model_fp16.onnx", "model_quantized.onnx"], "fp16"),
        (["model_quantized.onnx"], "q8"),
        (["model_image.onnx"], None),
        ([], None),
    ],
)
def test_default_dtype_of_transformers_js_is_that_of_a_file(hub, classifier_dir, publish_model, names, dtype):
    (classifier_dir / "onnx").mkdir()
    for name in names:
        (classifier_dir / "onnx" / name).write_bytes(b"model")
    publish_model(classifier_dir)
    config = json.loads(hub.files(REPO)["config.json"])
    assert config.get("transformers.js_config") == (dtype and {"dtype": dtype})
    assert not [name for name in hub.files(REPO) if name.startswith("onnx/") and name.endswith(".json")]


@pytest.mark.parametrize("interface", ["transformers.js", "tensors"])
def test_detector_has_configurations_for_transformers_js(hub, detector_dir, publish_model, tmp_path, interface):
    folder = Path(shutil.copytree(detector_dir, tmp_path / "detector"))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"model")
    (folder / "onnx" / "config.json").write_text("{}")  # of other class names
    record = {
        "backend": "onnx",
        "dtype": "float32",
        "quantization": None,
        "interface": interface,
        "file": "onnx/model.onnx",
        "files": {"model.onnx": hashlib.sha256(b"model").hexdigest()},
        "weights": weights_hash(MobileViTSSDLiteForObjectDetection.from_pretrained(folder)),
    }
    (folder / "export.json").write_text(json.dumps([record]))
    publish_model(folder)
    files = hub.files(REPO)
    assert json.loads(files["config.json"])["model_type"] == "mobilevit_ssdlite"
    assert "transformers.js_config" not in json.loads(files["config.json"])
    names = {"onnx/config.json", "onnx/preprocessor_config.json"}
    assert names & set(files) == (names if interface == "transformers.js" else set())
    if interface == "transformers.js":
        config = json.loads(files["onnx/config.json"])
        assert config["model_type"] == "yolos"
        assert config["id2label"] == json.loads(files["config.json"])["id2label"]
        assert config["transformers.js_config"] == {"dtype": "fp32"}
        assert json.loads(files["onnx/preprocessor_config.json"])["image_processor_type"] == "YolosImageProcessor"


def test_images_option_leaves_out_dataset_images(hub, classifier_dir, publish_model):
    for name in ("curves.png", "samples.png", "mistakes.png"):
        (classifier_dir / name).write_bytes(b"")
    publish_model(classifier_dir, card_options=CardOptions(license="mit", images=False))
    assert {name for name in hub.files(REPO) if name.endswith(".png")} == {"curves.png"}


def test_shards_and_single_file_replace_each_other(hub, classifier_dir, publish_model):
    weights = (classifier_dir / "model.safetensors").read_bytes()
    model = AutoModelForImageClassification.from_pretrained(classifier_dir)
    (classifier_dir / "model.safetensors").unlink()
    model.save_pretrained(classifier_dir, max_shard_size="20KB")
    shards = {path.name for path in classifier_dir.glob("model-*.safetensors")}
    assert len(shards) > 1
    publish_model(classifier_dir)
    assert {name for name in hub.files(REPO) if "model" in name} == shards | {"model.safetensors.index.json"}
    for name in (*shards, "model.safetensors.index.json"):
        (classifier_dir / name).unlink()
    (classifier_dir / "model.safetensors").write_bytes(weights)
    publication = publish_model(classifier_dir)
    assert {name for name in hub.files(REPO) if "model" in name} == {"model.safetensors"}
    assert set(publication.deleted) == shards | {"model.safetensors.index.json"}


# --- checks ----------------------------------------------------------------------------------------------------------


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def link_outside(folder):
    outside = folder.with_name("outside.safetensors")
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def configure(**values):
    return lambda folder: edit_config(folder, **values)


INVALID = {
    "NaN in a tensor": (set_nan_weight, r"classifier\.bias in model\.safetensors has NaN"),
    "truncated weights": (truncate_weights, "model.safetensors is not a valid safetensors file"),
    "no weights": (remove("model.safetensors"), "model.safetensors is missing"),
    "pickled weights": (pickle_weights, "pickled.*mobilevit convert"),
    "no class names": (configure(id2label=None, label2id=None), "id2label"),
    "placeholders as class names": (configure(id2label={"0": "LABEL_0", "1": "LABEL_1"}), "id2label"),
    "list of class names": (configure(id2label=["cat", "dog"]), 'id2label in config.json, such as {"0"'),
    "class without an index": (configure(id2label={"cat": "cat"}), "'cat' as a class index"),
    "invalid field": (configure(patch_size="2"), "invalid config.json.*patch_size"),
    "invalid image processor": (
        write("preprocessor_config.json", '{"image_processor_type": "MobileViTImageProcessor", "resample": 99}'),
        "resample: got 99",
    ),
    "other model type": (configure(model_type="vit"), "model_type: got vit, expected mobilevit"),
    "no config": (remove("config.json"), "got no config.json"),
    "invalid JSON": (write("config.json", "{"), r"config\.json.* can't be read"),
    "no image processor": (remove("preprocessor_config.json"), "preprocessor_config.json is missing"),
    "link out of the folder": (link_outside, "model.safetensors is a link out of the folder"),
    "Hub token": (
        write("README.md", f"# Mine\nlogin with hf_{'aB3' * 11}x"),
        "README.md contains what looks like a Hub token",
    ),
    "the user's Hub token": (write("README.md", f"# Mine\n{TOKEN}"), "README.md contains your Hub token"),
    "AWS key": (configure(note="AKIAABCDEFGHIJKLMNOP"), "config.json.*an AWS key"),
    "private key": (write("README.md", "-----BEGIN OPENSSH PRIVATE KEY-----"), "README.md.*private key"),
    "local path": (lambda folder: edit_config(folder, source=f"{folder}/start"), "config.json contains a local path"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_folder_is_rejected_before_any_upload(kind, hub, classifier_dir, publish_model, modifying_requests):
    invalidate, message = INVALID[kind]
    invalidate(classifier_dir)
    with pytest.raises(ValueError, match=message) as error:
        publish_model(classifier_dir)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)
    assert not modifying_requests()


def test_all_reasons_are_listed(hub, classifier_dir, publish_model):
    set_nan_weight(classifier_dir)
    edit_config(classifier_dir, id2label=None)
    (classifier_dir / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="classifier") as error:
        publish_model(classifier_dir)
    assert all(part in str(error.value) for part in ("id2label", "preprocessor_config.json is missing"))


@pytest.mark.parametrize(("name", "found"), [("missing", "a folder that does not exist"), ("file", "a file")])
def test_path_that_is_no_folder_is_rejected(tmp_path, publish_model, name, found):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{name}: got {found}, expected a model"):
        publish_model(tmp_path / name, dry_run=True)


def test_unknown_license_is_rejected(hub, classifier_dir, publish_model, modifying_requests):
    with pytest.raises(ValueError, match="--license"):
        publish_model(classifier_dir, card_options=CardOptions())
    assert not modifying_requests()


def test_handwritten_card_is_published_unchanged(hub, classifier_dir, publish_model):
    (classifier_dir / "README.md").write_text(MIT_CARD)
    publish_model(classifier_dir, card_options=CardOptions())
    assert hub.files(REPO)["README.md"].decode() == MIT_CARD
    (classifier_dir / "README.md").write_text(MIT_CARD + "More.\n")
    publish_model(classifier_dir, card_options=CardOptions(), overwrite_card=True)
    assert hub.files(REPO)["README.md"].decode() == MIT_CARD + "More.\n"
