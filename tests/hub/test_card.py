"""Model cards: complete golden files per task, and their parts, read with independent parsers.

After an intended change, `UPDATE_CARDS=1 pytest -n 0 tests/hub/test_card.py` rewrites the golden files in
`tests/golden/cards`. Review the diff.
"""

import json
import math
import os
import re
from pathlib import Path

import pytest
import yaml
from card_folders import APPLE, CLASSES, EXPORTS, write_model, write_run
from hub_server import HubServer
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub._eval_results import parse_eval_result_entries
from markdown_it import MarkdownIt
from PIL import Image

from mobilevit_hf.hub import CARD_MARKER, CardOptions, collect_metadata, is_generated, render_card, render_eval_results
from mobilevit_hf.hub.card import escape
from mobilevit_hf.hub.contents import gather
from mobilevit_hf.model_sources import builtin
from mobilevit_hf.samples import draw_smear

CARDS = Path(__file__).parents[1] / "golden" / "cards"
REPO = "user/clothing-mobilevit"
MIT = CardOptions(license="mit")
SPECIAL_NAMES = (
    "a|b", "*stars*", "_under_ short_sleeve", "<script>alert(1)</script>", "line\nbreak", "[link](http://x.y)",
    "`code`", "&amp;", "# heading", "~~gone~~", "back\\slash", "@user", "日本", "---", "\udcff", "![x](y.png)",
)  # fmt: skip


@pytest.fixture(params=list(CLASSES))
def task(request):
    return request.param


def card_of(folder, options=MIT, repo=REPO):
    return render_card(collect_metadata(folder, options), repo)


def metadata_of(text):
    """Return the YAML metadata of a card, parsed with PyYAML."""
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def body_of(text):
    return text.split("---\n", 2)[2]


def html_of(text):
    """Return the body as HTML, rendered as GitHub-flavored Markdown."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body_of(text))


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- golden cards ----------------------------------------------------------------------------------------------------


def assert_golden(name, text):
    path = CARDS / f"{name}.md"
    if os.environ.get("UPDATE_CARDS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name}: see the module docstring for how to update it"


def test_card_of_training_run(task, tmp_path):
    folder = write_run(tmp_path / "run", task)
    (folder / "export.json").write_text(json.dumps(EXPORTS))
    assert_golden(task, card_of(folder, CardOptions(datasets=("user/clothing",), language="en", tags=("clothes",))))


def test_card_without_records_omits_their_sections(task, tmp_path):
    text = card_of(write_model(tmp_path / "model", task))
    assert_golden(f"{task}-alone", text)
    assert "None" not in text
    assert not re.search(r"^#+ [^\n]*\s*(?=^#|\Z)", body_of(text).replace(f"# {REPO[5:]}", ""), flags=re.M)


# --- front matter ----------------------------------------------------------------------------------------------------


def test_front_matter_fields(task, tmp_path):
    folder = write_run(tmp_path / "run", task)
    options = CardOptions(license="cc-by-4.0", datasets=("user/things",), language="en", tags=("clothes", "vision"))
    text = card_of(folder, options)
    data = metadata_of(text)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == task
    assert data["base_model"] == "apple/mobilevit-xx-small"
    assert data["license"] == "cc-by-4.0"
    assert data["datasets"] == ["user/things"]
    assert data["language"] == "en"
    assert {"mobilevit", "clothes"} <= set(data["tags"])
    assert len(set(data["tags"])) == len(data["tags"])
    (tmp_path / "README.md").write_text(text)
    assert metadata_load(tmp_path / "README.md") == data
    assert ModelCardData(**data).to_dict().keys() == data.keys()


def test_model_index_contains_the_metrics(task, tmp_path):
    folder = write_run(tmp_path / "run", task)
    recorded = json.loads((folder / "results.json").read_text())["metrics"]
    (index,) = metadata_of(card_of(folder))["model-index"]
    (results,) = index["results"]
    assert index["name"] == REPO[5:]
    assert results["task"]["type"] == task
    assert results["dataset"]["split"] == "validation"
    names = {"accuracy": "accuracy", "macro_f1": "f1", "map": "map", "map_50": "map_50", "map_75": "map_75"}
    names |= {name: name for name in ("mean_iou", "pixel_accuracy", "boundary_iou")} | {"mean_dice": "dice"}
    expected = {metric: recorded[name] for name, metric in names.items() if name in recorded}
    assert {metric["type"]: metric["value"] for metric in results["metrics"]} == expected


def test_card_is_valid_for_the_hub(task, tmp_path, monkeypatch):
    with HubServer() as hub:
        hub.patch_client(monkeypatch)
        ModelCard(card_of(write_run(tmp_path / "run", task))).validate()
        sent = json.loads(next(r for r in hub.requests if r.path.endswith("/validate-yaml")).body)
    assert sent["repoType"] == "model"


def test_eval_results_for_leaderboards(tmp_path):
    folder = write_run(tmp_path / "run")
    assert render_eval_results(collect_metadata(folder, CardOptions())) == {}  # no Hub dataset
    ((name, text),) = render_eval_results(collect_metadata(folder, CardOptions(datasets=("user/things",)))).items()
    assert name == "things.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.value, entry.date) == ("user/things", 0.92375, "2026-01-02")
    assert "validation" in entry.notes

    run = json.loads((folder / "run.json").read_text())
    change_json(folder / "run.json", data=run["data"] | {"validation_cut_off": True})
    assert render_eval_results(collect_metadata(folder, CardOptions(datasets=("user/things",)))) == {}


def test_headline_uses_the_test_split(tmp_path):
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    measured = {
        "model": "/home/username/run",
        "data": "/home/username/clothing",
        "split": "test",
        "num_images": 372,
        "metrics": results["metrics"] | {"accuracy": 0.875},
        "intervals": {"accuracy": [0.84, 0.9]},
        "best_threshold": None,
        "problems": [{"name": "/home/username/x.jpg", "kind": "missing image", "reason": "x"}],
    }
    (folder / "evaluation-test.json").write_text(json.dumps(measured))
    text = card_of(folder)
    assert "**Accuracy on the test split: 87.5%** (372 images, 95% confidence interval 84.0% to 90.0%)" in text
    assert "username" not in text
    values = {
        result["dataset"]["split"]: result["metrics"][0]["value"]
        for result in metadata_of(text)["model-index"][0]["results"]
    }
    assert values == {"validation": 0.92375, "test": 0.875}
    metadata = collect_metadata(folder, CardOptions(datasets=("user/clothing",)))
    assert yaml.safe_load(render_eval_results(metadata)["clothing.yaml"])[0]["value"] == 0.875
    change_json(folder / "evaluation-test.json", data="user/clothing:large")
    metadata = collect_metadata(folder, CardOptions(datasets=("user/clothing",)))
    assert yaml.safe_load(render_eval_results(metadata)["clothing.yaml"])[0]["value"] == 0.875
    change_json(folder / "evaluation-test.json", data="user/others")  # another dataset
    metadata = collect_metadata(folder, CardOptions(datasets=("user/clothing",)))
    assert yaml.safe_load(render_eval_results(metadata)["clothing.yaml"])[0]["value"] == 0.92375
    assert "selected on the validation split" not in text  # only the validation split did


@pytest.mark.parametrize("name", ["photos", "images", "data", "train", "Fotos für Ömer", "日本", "dataset.zip"])
def test_captions_read_well_for_any_folder_name(task, name, tmp_path):
    folder = write_run(tmp_path / "run", task)
    run = json.loads((folder / "run.json").read_text())
    change_json(folder / "run.json", data=run["data"] | {"name": name})
    text = card_of(folder)
    assert f"### Validation split: 341 images of the dataset “{name}”\n" in text
    assert f"341 validation images of the dataset “{name}”:\n" in text
    assert f" of {name}" not in text


def test_plots_are_captioned_with_split_and_number_of_images(task, tmp_path):
    """They show the validation split, next to a headline of the test split."""
    folder = write_run(tmp_path / "run", task)
    results = json.loads((folder / "results.json").read_text())
    test = {"data": "clothing", "split": "test", "num_images": 72, "metrics": results["metrics"]}
    (folder / "evaluation-test.json").write_text(json.dumps(test))
    text = card_of(folder)
    validation, _, tested = text.partition("### Test split: 72 images")
    plots = re.findall(r"!\[(.*)\]\((?!curves|samples|mistakes|best|worst)\w+\.png\)", text)
    assert len(plots) == {"image-classification": 2, "object-detection": 4, "image-segmentation": 2}[task]
    for caption in plots:
        assert caption.endswith(", validation split, 341 images")
        assert f"\n{caption}:\n" in validation
        assert "IoU 0.50" in caption or task != "object-detection"
    assert ".png" not in tested.partition("\n## ")[0]
    assert "Metrics per class on the validation split (341 images)" in validation
    assert "Metrics per class on the test split (72 images)" in tested


def test_segmentation_has_classes_with_iou_dice_and_pixels(tmp_path):
    folder = write_run(tmp_path / "run", "image-segmentation")
    text = card_of(folder)
    table = re.search(r"\n\| Class \|.*?\n\n", text, re.S)[0].strip().splitlines()
    titles, rows = table[0].strip("| ").split(" | "), [row.strip("| ").split(" | ") for row in table[2:]]
    assert titles == ["Class", "Training pixels", "IoU", "Dice", "Accuracy", "Validation pixels"]
    assert rows[2] == ["pole", "0.45%", "18.8%", "31.6%", "25.0%", "0.40%"]
    assert "- Classes with few training pixels: pole (0.45%)." in text
    assert "Assigns one of its 3 classes to every pixel" in text
    names = [f"class {index}" for index in range(60)]
    results = json.loads((folder / "results.json").read_text())
    rows = {name: {"iou": index / 100, "dice": 0.5, "accuracy": 0.5, "pixels": 5} for index, name in enumerate(names)}
    change_json(folder / "results.json", metrics=results["metrics"] | {"per_class": rows})
    text = card_of(folder)
    assert "Metrics of the 20 worst of 60 classes" in text
    assert "| class 19 |" in text
    assert "| class 20 |" not in text


def test_losses_and_methods_of_intervals(task, tmp_path):
    text = card_of(write_run(tmp_path / "run", task))
    if task == "image-classification":
        assert "| Loss | 0.251 |" in text
        assert "Wilson score interval for the accuracy, bootstrap over the images for the other metrics." in text
    elif task == "image-segmentation":
        assert "| Loss | 0.213 |" in text
        assert "95% confidence intervals: bootstrap over the images." in text
    else:
        assert re.findall(r"^\| (Loss.*?) \| ([\d.]+) \|", text, re.M) == [
            ("Loss", "2.513"),
            ("Loss, classification (`loss_ce`)", "1.500"),
            ("Loss, boxes (`loss_bbox`)", "1.013"),
        ]
        assert "95% confidence intervals: bootstrap over the images." in text


@pytest.mark.parametrize(("num_images", "is_few"), [(99, True), (100, False)])
def test_few_images_are_warned_about(num_images, is_few, tmp_path):
    folder = write_run(tmp_path / "run")
    change_json(folder / "results.json", num_images=num_images)
    text = card_of(folder)
    assert (f"**Few images:** {num_images} images, fewer than 100." in text) == is_few
    assert ("- Some results are measured on fewer than 100 images." in text) == is_few


def test_selection_and_cross_validation_are_stated(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "95.0%; best of 12 evaluations on validation)" in card_of(folder)
    folds = {"metrics": {"accuracy": [0.5, 0.75, 1.0]}, "std": {"accuracy": 0.25}, "num_images": [20, 20, 20]}
    values = {"split": "cross-validation", "num_images": 60, "metrics": {"accuracy": 0.75}, "num_evaluations": None}
    intervals = {"accuracy": [0.63, 0.84]}
    change_json(folder / "results.json", **values, intervals=intervals, cross_validation=folds, losses=None)
    text = card_of(folder)
    assert "**Accuracy in a cross-validation: 75.0%** (60 images, 95% confidence interval 63.0% to 84.0%)" in text
    assert "### Cross-validation: 60 images of the dataset “clothing”\n" in text
    assert "Each of 3 models" in text
    assert "| Accuracy | 75.0% | 25.0% | 50.0%, 75.0%, 100.0% | 63.0% to 84.0% |" in text
    assert "confusion_matrix.png" not in text  # of no model that is published


def test_count_errors_are_those_at_the_recommended_threshold(tmp_path):
    folder = write_run(tmp_path / "run", "object-detection")
    results = json.loads((folder / "results.json").read_text())
    threshold = {"value": 0.412, "f1": 0.8, "precision": 0.8, "recall": 0.8}
    measured = {"data": "cells", "split": "test", "num_images": 72, "metrics": results["metrics"]}
    (folder / "evaluation-test.json").write_text(json.dumps(measured | {"recommended_threshold": threshold}))
    text = card_of(folder)
    line = "- Mean error of the RBC count per test image at the recommended threshold: 1.92, of 11.38 objects"
    assert line in text
    (folder / "evaluation-test.json").write_text(json.dumps(measured | {"best_threshold": threshold | {"value": 0.2}}))
    assert line not in card_of(folder)
    assert "per test image at a threshold of 0.2: 1.92" in card_of(folder)


def test_threshold_is_quoted_with_the_split_it_was_selected_on(tmp_path):
    """Another split has another best threshold, which is not the recommended one."""
    folder = write_run(tmp_path / "run", "object-detection")
    results = json.loads((folder / "results.json").read_text())
    best = {"value": 0.1, "f1": 0.999, "precision": 0.998, "recall": 0.997}
    measured = {"model": "run", "data": "cells", "split": "test", "num_images": 72, "problems": []}
    measured |= {"metrics": results["metrics"], "intervals": {}, "best_threshold": best}
    (folder / "evaluation-test.json").write_text(json.dumps(measured))
    selected = results["best_threshold"]
    assert f"highest F1 on the validation split: {selected['f1']:.1%}" in card_of(folder)
    assert "99.9%" not in card_of(folder)
    results["best_threshold"] = best
    (folder / "results.json").write_text(json.dumps(results))
    assert "**Recommended threshold: " in card_of(folder)
    assert "highest F1" not in card_of(folder)


# --- license ---------------------------------------------------------------------------------------------------------


def test_license_of_apple_weights(tmp_path):
    data = metadata_of(card_of(write_run(tmp_path / "run"), CardOptions()))
    assert (data["license"], data["license_name"], data["license_link"]) == tuple(APPLE.values())


def test_other_license_names_the_license_of_the_initial_checkpoint(tmp_path):
    text = card_of(write_run(tmp_path / "run"), CardOptions(license="Apache-2.0"))
    assert metadata_of(text)["license"] == "apache-2.0"
    section = text.partition("## License\n")[2].partition("\n## ")[0]
    assert "apache-2.0" in section
    assert "apple/mobilevit-xx-small" in section
    assert APPLE["name"] in section


# --- body ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agreement", "is_listed"), [(0.9956, True), (0.98, False)])
def test_precision_that_is_chosen_automatically_is_listed(tmp_path, agreement, is_listed):
    folder = write_run(tmp_path / "run")
    checked = {"dtype": "bfloat16", "file": "openvino/openvino_model_bf16.xml", "agreement": agreement}
    checked |= {"num_images": 150, "images": "calibration"}
    (folder / "export.json").write_text(json.dumps([EXPORTS[0], EXPORTS[0] | checked]))
    body = body_of(card_of(folder))
    line = "- openvino in bfloat16: 99.6% of the labels equal those of float32 on 150 images\n"
    assert (line in body) == ('`dtype="auto"`, the default of `mobilevit predict`' in body) == is_listed


def test_marker_identifies_generated_cards():
    assert re.fullmatch(r"<!--.*-->", CARD_MARKER)
    assert not is_generated("# A handwritten card")
    assert is_generated(f"---\n---\n{CARD_MARKER}\n")


def test_card_contains_the_marker(tmp_path):
    assert is_generated(card_of(write_model(tmp_path / "model")))


@pytest.mark.parametrize("index", range(len(SPECIAL_NAMES)))
def test_special_characters_in_class_names_are_escaped(index, tmp_path):
    """Rendered names are unchanged, in one table cell, and contain no HTML tag."""
    name, folder = SPECIAL_NAMES[index], write_run(tmp_path / "run")
    classes = {"0": "dress", "1": name}
    change_json(folder / "config.json", id2label=classes)
    row = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    results = json.loads((folder / "results.json").read_text())
    change_json(folder / "results.json", metrics=results["metrics"] | {"per_class": {"dress": row, name: row}})
    run = json.loads((folder / "run.json").read_text())
    change_json(folder / "run.json", data=run["data"] | {"name": name, "counts": {"train": {"dress": 100, name: 3}}})
    text = card_of(folder)
    text.encode()
    metadata_of(text)
    page = html_of(text)
    shown = name.replace("\n", " ").replace("\udcff", "\ufffd")
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.S) for line in page.split("<tr>")]
    (cells,) = [row for row in cells if len(row) == 6 and row[0] != "dress"]
    assert unescape(cells[0]) == shown
    assert "<script" not in page
    assert f"Classes with few training images: {shown} (3)." in unescape(page)
    assert f"2 classes: dress and {shown}." in unescape(page)


def unescape(text):
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, character)
    return text


HOSTILE = "x](http://evil.example) <script>alert(1)</script> ```\n# title\n--- | *b*"


def test_recorded_text_of_others_is_escaped(tmp_path):
    folder = write_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["command"] = f"mobilevit train\n```\n{HOSTILE}"
    record["data"] |= {"name": HOSTILE, "dataset": HOSTILE, "images": {HOSTILE: 3}, "skipped": {HOSTILE: 1}}
    record["initial_checkpoint"] |= {"name": HOSTILE, "base_model": HOSTILE}
    record["initial_checkpoint"]["license"] = {"id": "other", "name": HOSTILE, "link": f"javascript:{HOSTILE}"}
    record["arguments"] |= {"crop": HOSTILE, "anchors": [HOSTILE]}
    record["versions"] = {HOSTILE: HOSTILE}
    record["hardware"] = {"cpu": HOSTILE}
    (folder / "run.json").write_text(json.dumps(record))
    text = card_of(folder)
    assert metadata_of(text)["license"] == "mit"
    page = html_of(text)
    assert "<script" not in text
    assert not re.search(r'href="(http://evil|javascript)', page)
    assert "<h1>title" not in page


def test_ordinary_names_are_not_escaped():
    assert escape("short-sleeve t-shirt, size 4 (new)") == "short-sleeve t-shirt, size 4 (new)"
    assert escape("Common_Rust") == "Common_Rust"


def test_many_classes_list_the_worst(tmp_path):
    folder, names = write_run(tmp_path / "run"), [f"kind {index}" for index in range(200)]
    change_json(folder / "config.json", id2label=dict(enumerate(names)))
    rows = {
        name: {"precision": 1.0, "recall": 1.0, "f1": math.sin(i) ** 2, "support": 5} for i, name in enumerate(names)
    }
    results = json.loads((folder / "results.json").read_text())
    change_json(folder / "results.json", metrics=results["metrics"] | {"per_class": rows})
    text = card_of(folder)
    assert "200 classes, such as kind 0, " in text
    table = re.findall(r"^\| (kind \d+) \|", text, re.M)
    assert table == sorted(names, key=lambda name: rows[name]["f1"])[:20]


def test_images_option_leaves_out_dataset_images(tmp_path):
    folder = write_run(tmp_path / "run")
    shown = re.findall(r"\]\((\w+\.png)\)", card_of(folder))
    assert sorted(shown) == ["confusion_matrix.png", "curves.png", "mistakes.png", "reliability.png", "samples.png"]
    shown = re.findall(r"\]\((\w+\.png)\)", card_of(folder, CardOptions(license="mit", images=False)))
    assert sorted(shown) == ["confusion_matrix.png", "curves.png", "reliability.png"]


def test_missing_images_are_not_referenced(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("*.png"):
        path.unlink()
    assert ".png" not in card_of(folder)


def test_description_and_intended_use(tmp_path):
    options = CardOptions(license="mit", description="It sorts **washing**.", intended_use="For laundries only.")
    text = card_of(write_run(tmp_path / "run"), options)
    assert "It sorts **washing**." in text.partition("## ")[0]
    assert "For laundries only." in text.partition("## Intended use")[2].partition("\n## ")[0]


def test_usage_names_the_fastest_backend(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "backend=" not in card_of(folder)
    (folder / "openvino").mkdir()
    (folder / "openvino" / "export.json").write_text(json.dumps(EXPORTS[:1]))
    (folder / "onnx").mkdir()
    faster = EXPORTS[1] | {"latency_ms": {"1": 1.5}, "file": "/home/username/onnx/model.onnx"}
    (folder / "onnx" / "export.json").write_text(json.dumps([faster]))
    text = card_of(folder)
    assert 'backend="onnx")' in text
    assert "| onnx | model.onnx | int8 | 0.2 MB | 98.5% |" in text
    assert "username" not in text
    (folder / "onnx" / "export.json").write_text(json.dumps([faster | {"latency_ms": {"1": 9.5}}]))
    assert 'backend="openvino")' in card_of(folder)


def test_usage_in_browsers_requires_a_file_for_transformers_js(tmp_path):
    folder = write_run(tmp_path / "run", "object-detection")
    tensors = {"backend": "onnx", "dtype": "float32", "quantization": None, "file": "onnx/model_tensors.onnx"}
    (folder / "export.json").write_text(json.dumps([tensors]))
    assert "```js" not in card_of(folder)
    browser = tensors | {"file": "onnx/model.onnx", "interface": "transformers.js", "latency_ms": {"1": 0.1}}
    (folder / "export.json").write_text(json.dumps([tensors | {"latency_ms": {"1": 0.2}}, browser]))
    snippet = card_of(folder).partition("```js\n")[2].partition("```")[0]
    assert 'env.remotePathTemplate = "{model}/resolve/{revision}/onnx/";' in snippet
    assert f'pipeline("object-detection", "{REPO}", {{ subfolder: "" }})' in snippet
    assert "{ threshold: 0.412 }" in snippet


def test_fastest_backend_is_one_that_pipelines_run(tmp_path):
    folder = write_run(tmp_path / "run", "object-detection")
    browser = EXPORTS[1] | {"interface": "transformers.js", "latency_ms": {"1": 0.1}}
    (folder / "export.json").write_text(json.dumps([*EXPORTS[:1], browser]))
    assert 'backend="openvino")' in card_of(folder)


def test_streamed_dataset_has_no_total(tmp_path):
    folder = write_run(tmp_path / "run")
    data = json.loads((folder / "run.json").read_text())["data"] | {"streamed": True, "images": {"train": 1000}}
    change_json(folder / "run.json", data=data)
    text = card_of(folder)
    assert "| train | first 1,000 |" in text
    assert "1,000 images" not in text


@pytest.mark.slow
def test_code_snippets_run(checkpoints, detector_dir, image, run_python, tmp_path):
    """Both run in clean processes; a folder stands for the repository."""
    for folder in (checkpoints["image-classification"], detector_dir):
        text = card_of(folder, MIT, repo=str(folder))
        stock, ours = re.findall(r"```python\n(.*?)```", text, re.S)
        photo = tmp_path / "photo.jpg"
        image.save(photo)
        for code, without_package in ((stock, True), (ours, False)):
            code = code.replace('"photo.jpg"', repr(str(photo)))
            output = run_python(code, without_package=without_package)
            assert output.strip().startswith("[")


@pytest.mark.slow
def test_detector_snippets_and_command_count_the_same_objects(mobilevit, run_python, tmp_path):
    """A folder stands for the published repository."""
    folder, photo = tmp_path / "repository", tmp_path / "photo.png"
    folder.mkdir()
    for name, content in gather(builtin("blood-cells"), REPO, MIT).files.items():
        if "/" not in name:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    draw_smear(seed=3).save(photo)
    code, stdout, stderr = mobilevit("predict", photo, "--model", folder, "--json")
    assert code == 0, stderr
    (line,) = stdout.splitlines()
    expected = len(json.loads(line)["predictions"])
    assert expected > 1
    stock, ours = re.findall(r"```python\n(.*?)```", card_of(folder, MIT, repo=str(folder)), re.S)
    for snippet, without_package in ((stock, True), (ours, False)):
        snippet = re.sub(r"print\((.*\))\)", r"print(len(\1))", snippet).replace('"photo.jpg"', repr(str(photo)))
        assert int(run_python(snippet, without_package=without_package)) == expected


def test_referenced_images_can_be_opened(tmp_path):
    folder = write_run(tmp_path / "run")
    for name in re.findall(r"\]\((\w+\.png)\)", card_of(folder)):
        with Image.open(folder / name) as image:
            image.load()
