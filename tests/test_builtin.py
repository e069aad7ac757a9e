"""The models that come with the package: what they hold, and that the first command answers with them alone."""

import json
import re
from collections import Counter
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from huggingface_hub import metadata_load
from PIL import Image
from safetensors import safe_open

import mobilevit_hf
from mobilevit_hf import model_sources, samples

TASKS = {"blood-cells": "object-detection", "garments": "image-classification"}

# What is on the smear: red cells and white ones.
SMEAR = {"RBC": 18, "WBC": 2}


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


def test_they_are_these():
    assert model_sources.builtin_models() == sorted(TASKS)


def test_an_unknown_name_is_told_what_there_is():
    with pytest.raises(ValueError, match="blood-cells, garments"):
        mobilevit_hf.builtin("flowers")


def test_they_are_small_and_hold_no_images_of_the_data(name):
    files = list(mobilevit_hf.builtin(name).iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.name for file in files if file.suffix not in (".json", ".md", ".safetensors")} <= {
        "curves.png",
        "confusion_matrix.png",
        "average_precision.png",
    }


def test_half_the_bits_are_loaded_in_full(name):
    with safe_open(mobilevit_hf.builtin(name) / "model.safetensors", "np") as weights:
        kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    assert "F16" in kinds
    assert "F32" not in kinds
    assert json.loads((mobilevit_hf.builtin(name) / "config.json").read_text())["dtype"] == "float32"
    assert str(mobilevit_hf.pipeline(TASKS[name], mobilevit_hf.builtin(name)).model.dtype) == "torch.float32"


def test_the_card_says_what_they_are(name):
    card = metadata_load(mobilevit_hf.builtin(name) / "README.md")
    assert card["pipeline_tag"] == TASKS[name]
    assert card["license"]
    measured = card["model-index"][0]["results"][-1]
    assert measured["dataset"]["split"] == "test"
    values = {metric["type"]: metric["value"] for metric in measured["metrics"]}
    assert values["accuracy"] >= 0.925 if name == "garments" else values["map_50"] >= 0.85


def test_stock_transformers_runs_the_classifier(run_python, tmp_path):
    samples.draw_t_shirt().save(tmp_path / "shirt.png")
    code = f"""
        import torch
        from transformers import pipeline
        classify = pipeline("image-classification", model={str(mobilevit_hf.builtin("garments"))!r})
        assert classify.model.dtype == torch.float32
        print(classify({str(tmp_path / "shirt.png")!r}, top_k=1)[0]["label"])
    """
    assert run_python(code, without_package=True).strip() == "t-shirt"


@pytest.mark.slow
def test_what_the_card_says_to_paste_runs_in_a_checkout(name, run_python, tmp_path):
    samples.SAMPLES[name]().save(tmp_path / "photo.jpg")
    (tmp_path / "mobilevit_hf").symlink_to(model_sources.ASSETS.parent)
    card = (mobilevit_hf.builtin(name) / "README.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    for code in snippets:
        assert "score" in run_python(f"import os\nos.chdir({str(tmp_path)!r})\n{code}")


@pytest.fixture
def first_run(mobilevit, monkeypatch, tmp_path):
    """`mobilevit predict` with other arguments in an empty folder where there is no Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: mobilevit("predict", *arguments)


def test_the_first_command_answers_without_a_hub(first_run, tmp_path):
    code, out, err = first_run("--json")
    assert code == 0
    cells, garment = map(json.loads, out.splitlines())
    assert Counter(found["label"] for found in cells["predictions"]) == SMEAR
    assert garment["predictions"][0]["label"] == "t-shirt"
    assert garment["predictions"][0]["score"] > 0.5
    with Image.open(cells["saved"]) as drawn, Image.open(cells["image"]) as smear:
        assert np.any(np.asarray(drawn) != np.asarray(smear))
    for command in ("predict photo.jpg --model garments", "--model apple/mobilevit", "train images/"):
        assert command in err


def test_the_first_command_says_how_many_it_found(first_run):
    code, out, _ = first_run()
    assert code == 0
    assert "2 WBC" in out
    assert "t-shirt" in out
    code, out, _ = first_run()  # and again beside what is there
    assert code == 0


def test_options_go_to_the_model_that_takes_them(first_run, tmp_path):
    code, out, _ = first_run("--top-k", 1, "--threshold", 0.9, "--save", tmp_path / "drawn", "--json")
    assert code == 0
    cells, garment = map(json.loads, out.splitlines())
    assert len(garment["predictions"]) == 1
    assert all(found["score"] > 0.9 for found in cells["predictions"])
    assert cells["saved"] == str(tmp_path / "drawn" / "blood-cells.png")


def test_a_model_named_alone_gets_its_own_sample(first_run):
    code, out, _ = first_run("--model", "garments", "--json", "--top-k", 1)
    assert code == 0
    assert json.loads(out)["predictions"][0]["label"] == "t-shirt"


def test_a_folder_of_that_name_without_a_model_is_in_nobodys_way(first_run, tmp_path):
    (tmp_path / "garments").mkdir()
    assert first_run()[0] == 0
    assert first_run("--model", "garments")[0] == 0


def test_models_lists_them_with_apples(mobilevit):
    code, out, _ = mobilevit("models", "--json")
    assert code == 0
    found = {model["name"]: model for model in json.loads(out)}
    assert {name for name, model in found.items() if model["builtin"]} == set(TASKS)
    assert found["apple/mobilevit-small"]["parameters"] == 5_578_632
    assert found["garments"]["license"] == "mit"
    assert "test" in found["garments"]["result"]
    code, out, _ = mobilevit("models")
    assert code == 0
    assert "garments" in out
    assert "78.4 %" in out


def test_samples_are_the_same_every_time(tmp_path):
    first, second = (samples.write_sample("blood-cells", tmp_path / folder).read_bytes() for folder in ("a", "b"))
    assert first == second
    assert samples.draw_smear(1).tobytes() != samples.draw_smear(2).tobytes()
    assert samples.draw_smear().size == (640, 480)
    assert samples.draw_t_shirt().getpixel((240, 240))[2] > 100  # blue cloth
    assert samples.draw_t_shirt().getpixel((5, 475)) == samples.PAPER


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path):
    """By the script that puts it there."""
    script = run_path(str(Path(__file__).parents[1] / "scripts" / "make_builtin.py"))
    model = tmp_path / "model"
    script["replace_folder"](model, {"a": b"old", "b": b"old"})
    script["replace_folder"](model, {"a": b"new"})
    assert [(path.name, path.read_bytes()) for path in model.iterdir()] == [("a", b"new")]
    with pytest.raises(OSError, match="missing"):
        script["replace_folder"](model, {"a": b"newer", "missing/b": b""})
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/a"]
    assert (model / "a").read_bytes() == b"new"
