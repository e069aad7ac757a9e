"""The model card: whole, for each task, and by its rules; read back by parsers that are not its own.

After a change that is meant, `UPDATE_CARDS=1 pytest -n 0 tests/test_hub_card.py` writes the finished cards in
`tests/data/cards` anew. Look at what differs.
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

from mobilevit_hf.hub import CARD_MARKER, Given, collect_facts, is_ours, render_card, render_eval_results
from mobilevit_hf.hub.card import escape

CARDS = Path(__file__).parents[1] / "golden" / "cards"
REPO = "user/clothing-mobilevit"
MIT = Given(license="mit")
UGLY = (
    "a|b", "*stars*", "_under_ short_sleeve", "<script>alert(1)</script>", "line\nbreak", "[link](http://x.y)",
    "`code`", "&amp;", "# heading", "~~gone~~", "back\\slash", "@user", "日本", "---", "\udcff", "![x](y.png)",
)  # fmt: skip


@pytest.fixture(params=list(CLASSES))
def task(request):
    return request.param


def card_of(folder, given=MIT, repo=REPO):
    return render_card(collect_facts(folder, given), repo)


def metadata_of(text):
    """The front matter by PyYAML alone."""
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front)


def body_of(text):
    return text.split("---\n", 2)[2]


def html_of(text):
    """The body as a page, by a parser of GitHub's Markdown."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body_of(text))


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- whole cards -----------------------------------------------------------------------------------------------------


def compare(name, text):
    path = CARDS / f"{name}.md"
    if os.environ.get("UPDATE_CARDS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name}: see above how a change that is meant is made"


def test_the_card_of_a_run(task, tmp_path):
    folder = write_run(tmp_path / "run", task)
    (folder / "export.json").write_text(json.dumps(EXPORTS))
    compare(task, card_of(folder, Given(datasets=("user/clothing",), language="en", tags=("clothes",))))


def test_the_card_of_weights_alone(task, tmp_path):
    """Nothing was recorded, so nothing is said of it, and no heading is empty."""
    text = card_of(write_model(tmp_path / "model", task))
    compare(f"{task}-alone", text)
    assert "None" not in text
    assert not re.search(r"^#+ [^\n]*\s*(?=^#|\Z)", body_of(text).replace(f"# {REPO[5:]}", ""), flags=re.M)


# --- front matter ----------------------------------------------------------------------------------------------------


def test_front_matter(task, tmp_path):
    folder = write_run(tmp_path / "run", task)
    given = Given(license="cc-by-4.0", datasets=("user/things",), language="en", tags=("clothes", "vision"))
    text = card_of(folder, given)
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


def test_figures_in_the_model_index(task, tmp_path):
    folder = write_run(tmp_path / "run", task)
    recorded = json.loads((folder / "results.json").read_text())["metrics"]
    (index,) = metadata_of(card_of(folder))["model-index"]
    (results,) = index["results"]
    assert index["name"] == REPO[5:]
    assert results["task"]["type"] == task
    assert results["dataset"]["split"] == "validation"
    names = {"accuracy": "accuracy", "macro_f1": "f1", "map": "map", "map_50": "map_50", "map_75": "map_75"}
    expected = {metric: recorded[name] for name, metric in names.items() if name in recorded}
    assert {metric["type"]: metric["value"] for metric in results["metrics"]} == expected


def test_the_hub_takes_it(task, tmp_path, monkeypatch):
    with HubServer() as hub:
        hub.take_over(monkeypatch)
        ModelCard(card_of(write_run(tmp_path / "run", task))).validate()
        sent = json.loads(next(r for r in hub.requests if r.path.endswith("/validate-yaml")).body)
    assert sent["repoType"] == "model"


def test_what_leaderboards_read(tmp_path):
    folder = write_run(tmp_path / "run")
    assert render_eval_results(collect_facts(folder, Given())) == {}  # no dataset that others know
    ((name, text),) = render_eval_results(collect_facts(folder, Given(datasets=("user/things",)))).items()
    assert name == "things.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.value, entry.date) == ("user/things", 0.92375, "2026-01-02")
    assert "validation" in entry.notes

    run = json.loads((folder / "run.json").read_text())
    change_json(folder / "run.json", data=run["data"] | {"validation_cut_off": True})
    assert render_eval_results(collect_facts(folder, Given(datasets=("user/things",)))) == {}


def test_a_test_split_is_quoted_first(tmp_path):
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    measured = {
        "model": "/home/somebody/run",
        "data": "/home/somebody/clothing",
        "split": "test",
        "num_images": 372,
        "metrics": results["metrics"] | {"accuracy": 0.875},
        "intervals": {"accuracy": [0.84, 0.9]},
        "best_threshold": None,
        "problems": [{"name": "/home/somebody/x.jpg", "kind": "missing image", "reason": "x"}],
    }
    (folder / "evaluation-test.json").write_text(json.dumps(measured))
    text = card_of(folder)
    assert "**Right on 87.5% of 372 test images** (95% confidence: 84.0% to 90.0%)" in text
    assert "somebody" not in text
    values = {
        result["dataset"]["split"]: result["metrics"][0]["value"]
        for result in metadata_of(text)["model-index"][0]["results"]
    }
    assert values == {"validation": 0.92375, "test": 0.875}
    facts = collect_facts(folder, Given(datasets=("user/clothing",)))
    assert yaml.safe_load(render_eval_results(facts)["clothing.yaml"])[0]["value"] == 0.875
    change_json(folder / "evaluation-test.json", data="user/clothing:large")
    facts = collect_facts(folder, Given(datasets=("user/clothing",)))
    assert yaml.safe_load(render_eval_results(facts)["clothing.yaml"])[0]["value"] == 0.875
    change_json(folder / "evaluation-test.json", data="user/others")  # whose figures are not this dataset's
    facts = collect_facts(folder, Given(datasets=("user/clothing",)))
    assert yaml.safe_load(render_eval_results(facts)["clothing.yaml"])[0]["value"] == 0.92375
    assert "also chose" not in text  # which is true of the validation images


def test_the_threshold_is_said_with_the_figures_it_was_chosen_by(tmp_path):
    """Another split has another best threshold, which nobody recommends."""
    folder = write_run(tmp_path / "run", "object-detection")
    results = json.loads((folder / "results.json").read_text())
    best = {"value": 0.1, "f1": 0.999, "precision": 0.998, "recall": 0.997}
    measured = {"model": "run", "data": "cells", "split": "test", "num_images": 72, "problems": []}
    measured |= {"metrics": results["metrics"], "intervals": {}, "best_threshold": best}
    (folder / "evaluation-test.json").write_text(json.dumps(measured))
    chosen = results["best_threshold"]
    assert f"highest F1 on the validation images: {chosen['f1']:.1%}" in card_of(folder)
    assert "99.9%" not in card_of(folder)
    results["best_threshold"] = best
    (folder / "results.json").write_text(json.dumps(results))
    assert "**Recommended threshold: " in card_of(folder)
    assert "highest F1" not in card_of(folder)


# --- license ---------------------------------------------------------------------------------------------------------


def test_license_of_apples_weights(tmp_path):
    data = metadata_of(card_of(write_run(tmp_path / "run"), Given()))
    assert (data["license"], data["license_name"], data["license_link"]) == tuple(APPLE.values())


def test_another_license_says_what_it_started_from(tmp_path):
    text = card_of(write_run(tmp_path / "run"), Given(license="Apache-2.0"))
    assert metadata_of(text)["license"] == "apache-2.0"
    section = text.partition("## License\n")[2].partition("\n## ")[0]
    assert "apache-2.0." in section
    assert "apple/mobilevit-xx-small" in section
    assert APPLE["name"] in section


# --- body ------------------------------------------------------------------------------------------------------------


def test_marker():
    assert re.fullmatch(r"<!--.*-->", CARD_MARKER)
    assert not is_ours("# A card by hand")
    assert is_ours(f"---\n---\n{CARD_MARKER}\n")


def test_every_card_has_the_marker(tmp_path):
    assert is_ours(card_of(write_model(tmp_path / "model")))


@pytest.mark.parametrize("place", range(len(UGLY)))
def test_ugly_class_names(place, tmp_path):
    """On the page they read as they are, in one cell, and nothing of them is a tag."""
    name, folder = UGLY[place], write_run(tmp_path / "run")
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
    (cells,) = [found for found in cells if len(found) == 6 and found[0] != "dress"]
    assert unescape(cells[0]) == shown
    assert "<script" not in page
    assert f"Few images to learn from: {shown} (3)." in unescape(page)
    assert f"2 classes: dress and {shown}." in unescape(page)


def unescape(text):
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, character)
    return text


def test_ordinary_names_stay_readable():
    assert escape("short-sleeve t-shirt, size 4 (new)") == "short-sleeve t-shirt, size 4 (new)"
    assert escape("Common_Rust") == "Common_Rust"


def test_many_classes(tmp_path):
    folder, names = write_run(tmp_path / "run"), [f"kind {number}" for number in range(200)]
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


def test_images_can_be_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    shown = re.findall(r"\]\((\w+\.png)\)", card_of(folder))
    assert sorted(shown) == ["confusion_matrix.png", "curves.png", "mistakes.png", "samples.png"]
    shown = re.findall(r"\]\((\w+\.png)\)", card_of(folder, Given(license="mit", images=False)))
    assert sorted(shown) == ["confusion_matrix.png", "curves.png"]


def test_only_images_that_are_there(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.glob("*.png"):
        path.unlink()
    assert ".png" not in card_of(folder)


def test_what_its_maker_says(tmp_path):
    given = Given(license="mit", description="It sorts **washing**.", intended_use="For laundries only.")
    text = card_of(write_run(tmp_path / "run"), given)
    assert "It sorts **washing**." in text.partition("## ")[0]
    assert "For laundries only." in text.partition("## Limits")[2].partition("\n## ")[0]


def test_the_fastest_engine(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "backend=" not in card_of(folder)
    (folder / "openvino").mkdir()
    (folder / "openvino" / "export.json").write_text(json.dumps(EXPORTS[:1]))
    (folder / "onnx").mkdir()
    faster = EXPORTS[1] | {"latency_ms": {"1": 1.5}, "file": "/home/somebody/onnx/model.onnx"}
    (folder / "onnx" / "export.json").write_text(json.dumps([faster]))
    text = card_of(folder)
    assert 'backend="onnx")' in text
    assert "| onnx | int8 | 0.2 MB | 98.5% |" in text
    assert "somebody" not in text
    (folder / "onnx" / "export.json").write_text(json.dumps([faster | {"latency_ms": {"1": 9.5}}]))
    assert 'backend="openvino")' in card_of(folder)


def test_a_stream_was_not_counted(tmp_path):
    folder = write_run(tmp_path / "run")
    data = json.loads((folder / "run.json").read_text())["data"] | {"streamed": True, "images": {"train": 1000}}
    change_json(folder / "run.json", data=data)
    text = card_of(folder)
    assert "| train | 1,000 looked at |" in text
    assert "1,000 images" not in text


@pytest.mark.slow
def test_snippets_work_as_pasted(checkpoints, detector, image, run_python, tmp_path):
    """Both, in clean processes; the repository is a folder of that name."""
    for folder in (checkpoints["image-classification"], detector):
        text = card_of(folder, MIT, repo=str(folder))
        stock, ours = re.findall(r"```python\n(.*?)```", text, re.S)
        photo = tmp_path / "photo.jpg"
        image.save(photo)
        for code, without_package in ((stock, True), (ours, False)):
            code = code.replace('"photo.jpg"', repr(str(photo)))
            answers = run_python(code, without_package=without_package)
            assert answers.strip().startswith("[")


def test_figures_are_images(tmp_path):
    """Each image that the card shows is a file that can be opened."""
    folder = write_run(tmp_path / "run")
    for name in re.findall(r"\]\((\w+\.png)\)", card_of(folder)):
        with Image.open(folder / name) as image:
            image.load()
