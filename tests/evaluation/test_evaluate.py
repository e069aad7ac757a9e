"""mobilevit evaluate with classifiers: figures are those of stock pipelines, and intervals those of drawing anew."""

import copy
import json
import re

import datasets
import numpy as np
import pytest
import torch
import transformers
from formula import fill
from hub_server import HubServer
from huggingface_hub import HfApi
from written_data import image_file, make_images

import mobilevit_hf
from mobilevit_hf.data.types import Objects, Sample
from mobilevit_hf.evaluation import evaluate_model, evaluator, match_classes

NAMES = ["cat", "dog", "fish", "owl"]


@pytest.fixture(scope="module")
def classifier(tiny_fields, tmp_path_factory):
    """A folder with a tiny classifier that answers with every class."""
    model = fill(mobilevit_hf.MobileViTForImageClassification(mobilevit_hf.MobileViTConfig(**tiny_fields))).eval()
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in make_images(40)])
    with torch.no_grad():
        logits = model(pixels).logits
        spread = logits.std(dim=0)
        model.classifier.weight /= spread[:, None]
        model.classifier.bias.copy_((model.classifier.bias - logits.mean(dim=0)) / spread)
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stock_answers(run_python, classifier, labelled):
    """(right, named) of every image, as transformers' pipeline answers where this package is not installed."""
    code = f"""
    import json, pathlib, transformers
    classify = transformers.pipeline("image-classification", model={str(classifier)!r})
    files = sorted(p for p in pathlib.Path({str(labelled)!r}).glob("*/*"))
    print(json.dumps([(p.parent.name, classify(str(p))[0]["label"]) for p in files]))
    """
    return json.loads(run_python(code, without_package=True).splitlines()[-1])


# --- classification --------------------------------------------------------------------------------------------------


def test_accuracy_is_that_of_stock_pipeline(mobilevit, classifier, labelled, stock_answers):
    code, out, err = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json", "--batch-size", 4)
    assert code == 0, err
    found = json.loads(out)
    assert (found["task"], found["split"], found["num_images"]) == ("image-classification", "all", 30)
    hits = [right == named for right, named in stock_answers]
    assert 3 < sum(hits) < 27
    assert len({named for _, named in stock_answers}) == 4
    assert found["metrics"]["accuracy"] == sum(hits) / len(hits)
    for name, row in found["metrics"]["per_class"].items():
        mine = [right == named for right, named in stock_answers if right == name]
        assert (row["support"], row["recall"]) == (len(mine), sum(mine) / len(mine))


def test_confusion_and_mistakes_in_json(mobilevit, monkeypatch, classifier, labelled, stock_answers):
    _, out, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json")
    found = json.loads(out)
    pairs = [tuple(pair) for pair in stock_answers]
    assert found["confusion"] == [[pairs.count((right, named)) for named in NAMES] for right in NAMES]
    mistakes = found["mistakes"]
    assert sorted((m["right"], m["named"]) for m in mistakes) == sorted(pair for pair in pairs if len(set(pair)) == 2)
    assert all(m["name"].startswith(m["right"]) for m in mistakes)
    assert [m["score"] for m in mistakes] == sorted((m["score"] for m in mistakes), reverse=True)
    monkeypatch.setattr("mobilevit_hf.cli.evaluate.MAX_CONFUSION", 3)
    _, out, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json")
    assert "confusion" not in json.loads(out)


def test_the_intervals_are_those_of_drawing_images_anew(mobilevit, classifier, labelled, stock_answers):
    _, out, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json")
    found = json.loads(out)["intervals"]
    generator = np.random.default_rng(1)
    draws = {"accuracy": [], "macro_f1": []}
    for _ in range(2000):
        drawn = [stock_answers[i] for i in generator.integers(0, len(stock_answers), len(stock_answers))]
        draws["accuracy"].append(np.mean([right == named for right, named in drawn]))
        scores = []
        for name in {name for pair in drawn for name in pair}:
            hits = sum(pair == [name, name] for pair in drawn)
            scores.append(2 * hits / sum(pair.count(name) for pair in drawn))
        draws["macro_f1"].append(np.mean(scores))
    assert found.keys() == draws.keys()
    for name, values in draws.items():
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.035)
    _, again, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json")
    assert json.loads(again)["intervals"] == found


@pytest.fixture
def loaded(classifier):
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(classifier)
    return model, transformers.AutoImageProcessor.from_pretrained(classifier)


def test_the_top_five(tiny_model, loaded):
    names = {i: f"class {i}" for i in range(12)}
    fields = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification, **fields)
    images = list(make_images(25))
    samples = [Sample(str(i), image_file(image), label=i % 12) for i, image in enumerate(images)]
    result = evaluate_model(model, loaded[1], samples, list(names.values()))
    classify = transformers.pipeline("image-classification", model=model, image_processor=loaded[1])
    hits = [f"class {i % 12}" in {a["label"] for a in classify(p, top_k=5)} for i, p in enumerate(images)]
    assert result.metrics["top_5_accuracy"] == np.mean(hits)
    low, high = result.intervals["top_5_accuracy"]
    assert low < np.mean(hits) < high


def test_the_model_is_left_as_it_is(loaded):
    model, processor = loaded
    samples = [Sample(str(i), image_file(p), label=0) for i, p in enumerate(make_images(5))]
    expected = evaluate_model(model, processor, samples, NAMES).metrics
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert evaluate_model(model, processor, samples, NAMES).metrics == expected
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_memory_is_bounded(loaded, monkeypatch):
    """When the model gets its first images, few more than it gets have been asked for: the rest waits."""
    asked, forward = [], evaluator.forward
    seen = []
    image = image_file(next(make_images(1)))

    def stream():
        for i in range(60):
            asked.append(i)
            yield Sample(str(i), image, label=0)

    monkeypatch.setattr(evaluator, "forward", lambda *args: (seen.append(len(asked)), forward(*args))[1])
    result = evaluate_model(*loaded, stream(), NAMES, batch_size=4)
    assert result.num_images == 60
    assert seen[0] <= 16
    assert seen == sorted(seen)


def test_progress_is_told(loaded):
    told = []
    samples = [Sample(str(i), image_file(p), label=1) for i, p in enumerate(make_images(5))]
    evaluate_model(*loaded, samples, NAMES, batch_size=2, progress=lambda *state: told.append(state))
    assert told == [(2, 5), (4, 5), (5, 5)]


# --- names of classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (["cat", "dog", "owl"], ["owl", "cat"], [2, 0]),
        (["Cat", "polar_bear"], ["polar bear", "cat"], [1, 0]),
        (["cat", "Cat"], ["Cat", "cat"], [1, 0]),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["goldfish", "tench"], [1, 0]),
        (["tench", "goldfish"], ["goldfish, Carassius auratus", "Tench, Tinca tinca"], [1, 0]),
        (["crane", "owl", "crane"], ["crane", "owl", "crane"], [0, 1, 2]),
        (["maillot", "maillot, tank suit"], ["maillot", "maillot, tank suit"], [0, 1]),
    ],
)
def test_classes_are_matched_by_name(names, classes, expected):
    assert match_classes(dict(enumerate(names)), classes) == (expected, [])


def test_without_names_the_order_counts_and_that_is_said():
    found, (note,) = match_classes({0: "LABEL_0", 1: "LABEL_1"}, ["cat", "dog"])
    assert found == [0, 1]
    assert re.search("LABEL_0.*cat.*same order", note)


def test_one_name_in_a_hundred_may_be_spelt_otherwise():
    names = {i: f"class {i}" for i in range(200)}
    classes = [name if i not in (7, 150) else f"other {i}" for i, name in names.items()]
    found, (note,) = match_classes(names, classes)
    assert found == list(range(200))
    assert "other 7 = class 7, other 150 = class 150" in note
    with pytest.raises(ValueError, match="other 9"):
        match_classes(names, [*classes[:9], "other 9", *classes[10:]])


def test_a_name_of_two_classes_elsewhere_names_none():
    with pytest.raises(ValueError, match="crane"):
        match_classes({0: "crane", 1: "owl", 2: "crane"}, ["owl", "crane"])


@pytest.mark.parametrize("classes", [["cat", "cow", "pig"], ["cow", "pig"], ["cat", "dog", "pig"]])
def test_unknown_classes_are_listed(classes):
    with pytest.raises(
        ValueError, match=r"does not know (2|1) of the dataset's . classes: .*pig.*It knows cat, dog, owl"
    ):
        match_classes({0: "cat", 1: "dog", 2: "owl"}, classes)


def test_data_with_other_and_fewer_names(loaded, labelled, stock_answers):
    """Two of the model's four classes, in capitals: the answers stay those of the whole model."""
    samples = [
        Sample(file.name, str(file), label=["OWL", "DOG"].index(folder.upper()))
        for folder in ("owl", "dog")
        for file in sorted((labelled / folder).iterdir())
    ]
    result = evaluate_model(*loaded, samples, ["OWL", "DOG"])
    expected = [right == named for right, named in stock_answers if right in ("owl", "dog")]
    assert result.metrics["accuracy"] == np.mean(expected)


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(labelled, tmp_path):
    """The labelled images, and one that is none."""
    folder = tmp_path / "damaged"
    for file in labelled.glob("*/*"):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
    (folder / "dog" / "[red]bad.jpg").write_text("no image")
    return folder


def test_bad_images_are_skipped_named_and_counted(mobilevit, classifier, labelled, damaged):
    _, expected, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json")
    code, out, err = mobilevit("evaluate", classifier, damaged, "--split", "all")
    assert code == 1
    assert "dog/[red]bad.jpg: not an image" in err
    assert "1 of 31 could not be read" in err
    assert "30 images" in out
    code, out, _ = mobilevit("evaluate", classifier, damaged, "--split", "all", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["metrics"] == json.loads(expected)["metrics"]
    assert [(p["name"], p["kind"]) for p in found["problems"]] == [("dog/[red]bad.jpg", "unreadable image")]


def test_too_many_bad_images_are_an_error(mobilevit, classifier, damaged):
    code, out, err = mobilevit("evaluate", classifier, damaged, "--split", "all", "--max-bad", 0.03)
    assert (code, out) == (2, "")
    assert re.search(r"error: .*bad\.jpg", err)


def test_the_table(mobilevit, classifier, labelled):
    code, out, err = mobilevit("evaluate", classifier, labelled, "--split", "all")
    assert code == 0
    assert "no validation split" in err
    assert re.search(r"accuracy +\d+\.\d% +95 %: \d", out)
    for name in NAMES:
        assert name in out


def test_a_limit_takes_images_of_all_classes(mobilevit, classifier, labelled):
    _, out, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--limit", 15, "--json")
    found = json.loads(out)
    assert found["num_images"] == 15
    assert all(row["support"] > 0 for row in found["metrics"]["per_class"].values())


def test_no_mistake_is_no_proof(loaded):
    """Of 10 images that are all right, drawing anew has no width; an error rate of 26 % gives that in 5 of 100."""
    classify = transformers.pipeline("image-classification", model=loaded[0], image_processor=loaded[1])
    images = list(make_images(10))
    right = [NAMES.index(answers[0]["label"]) for answers in classify(images)]
    samples = [Sample(str(i), image_file(images[i]), label=label) for i, label in enumerate(right)]
    result = evaluate_model(*loaded, samples, NAMES)
    assert (result.metrics["accuracy"], result.intervals["accuracy"]) == (1, (1, 1))
    assert re.search(r"All 10 .* 25\.9%", result.notes[0])
    assert round((1 - 0.259) ** 10, 3) == 0.05


def test_nothing_to_measure(loaded):
    with pytest.raises(ValueError, match="no images"):
        evaluate_model(*loaded, [], NAMES)


def test_what_is_no_classifier_or_detector(tiny_model, loaded):
    with pytest.raises(ValueError, match=r"MobileViTModel, expected"):
        evaluate_model(tiny_model(mobilevit_hf.MobileViTModel), loaded[1], [], NAMES)


def test_objects_for_a_classifier(loaded):
    sample = Sample("a.jpg", image_file(next(make_images(1))), objects=Objects.from_lists([], []))
    with pytest.raises(ValueError, match=r"a\.jpg has no label"):
        evaluate_model(*loaded, [sample], NAMES)


# --- the paper's figures, in miniature -------------------------------------------------------------------------------


@pytest.mark.slow
def test_imagenet_from_the_hub(run_python, classifier, labelled, stock_answers, tmp_path):
    """mobilevit evaluate apple/mobilevit-small imagenet-1k"""
    files = sorted(labelled.glob("*/*"))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[*NAMES[::-1]])}
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [file.parent.name for file in files],
    }
    parquet = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(parquet)
    with HubServer(user="apple") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("apple/mobilevit-small")
        api.upload_folder(repo_id="apple/mobilevit-small", folder_path=classifier)
        api.create_repo("ILSVRC/imagenet-1k", repo_type="dataset")
        where = {"repo_id": "ILSVRC/imagenet-1k", "repo_type": "dataset"}
        for name in ("train", "validation"):
            api.upload_file(path_or_fileobj=parquet, path_in_repo=f"data/{name}-00000-of-00001.parquet", **where)
        code = """
        from mobilevit_hf import cli
        cli.app(["evaluate", "apple/mobilevit-small", "imagenet-1k", "--json"], standalone_mode=False)
        """
        out = run_python(code, hub.environment(tmp_path / "home"))
        asked = [request.path for request in hub.requests]
    found = json.loads(out.splitlines()[-1])
    assert (found["split"], found["num_images"]) == ("validation", 30)
    assert found["metrics"]["accuracy"] == np.mean([right == named for right, named in stock_answers])
    assert any("validation" in path for path in asked)
    assert not list((tmp_path / "home").rglob("*.arrow"))  # nothing of the data is kept
