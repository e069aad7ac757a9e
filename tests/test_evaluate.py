"""mobilevit evaluate: figures are those of stock pipelines on the files, and intervals those of drawing anew."""

import copy
import io
import itertools
import json
import re

import datasets
import numpy as np
import pytest
import torch
import transformers
from formula import formula_state_dict, official_shapes
from hub_server import HubServer
from huggingface_hub import HfApi
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

import mobilevit_hf
from mobilevit_hf import cli
from mobilevit_hf.convert_labels import LABEL_SETS
from mobilevit_hf.data.dataset import Objects, Sample
from mobilevit_hf.evaluation import evaluate_model, evaluating, match_classes
from mobilevit_hf.evaluation.average_precision import average_precision, by_class
from mobilevit_hf.evaluation.matching import match

NAMES = ["cat", "dog", "fish", "owl"]


def make_pictures(count, size=(96, 80), seed=0):
    """Pictures that differ in colours and in what is on them."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        noise = generator.integers(0, 40, (size[1], size[0], 3))
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        yield Image.fromarray((smooth * generator.random(3) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def classifier(tiny_fields, tmp_path_factory):
    """A folder with a tiny classifier that answers with every class."""
    model = mobilevit_hf.MobileViTForImageClassification(mobilevit_hf.MobileViTConfig(**tiny_fields)).eval()
    model.load_state_dict(formula_state_dict({name: tuple(t.shape) for name, t in model.state_dict().items()}))
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    pixels = torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in make_pictures(40)])
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
def labelled(tmp_path_factory):
    """A folder for each class, with pictures of several kinds."""
    folder = tmp_path_factory.mktemp("labelled")
    for i, picture in enumerate(make_pictures(30)):
        file = folder / NAMES[i * i % 4 if i % 3 else i % 4] / f"{i}.{'jpg' if i % 2 else 'png'}"
        file.parent.mkdir(exist_ok=True)
        (picture.rotate(90, expand=True) if i % 5 == 0 else picture).save(file)
    return folder


@pytest.fixture(scope="module")
def stock_answers(run_python, classifier, labelled):
    """(right, named) of every picture, as transformers' pipeline answers where this package is not installed."""
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
    assert (found["task"], found["split"], found["num_pictures"]) == ("image-classification", "all", 30)
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
    monkeypatch.setattr(cli.evaluate, "MAX_CONFUSION", 3)
    _, out, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json")
    assert "confusion" not in json.loads(out)


def test_the_intervals_are_those_of_drawing_pictures_anew(mobilevit, classifier, labelled, stock_answers):
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
    pictures = list(make_pictures(25))
    samples = [Sample(str(i), picture_file(picture), label=i % 12) for i, picture in enumerate(pictures)]
    result = evaluate_model(model, loaded[1], samples, list(names.values()))
    classify = transformers.pipeline("image-classification", model=model, image_processor=loaded[1])
    hits = [f"class {i % 12}" in {a["label"] for a in classify(p, top_k=5)} for i, p in enumerate(pictures)]
    assert result.metrics["top_5_accuracy"] == np.mean(hits)
    low, high = result.intervals["top_5_accuracy"]
    assert low < np.mean(hits) < high


def picture_file(picture):
    """The bytes of a file."""
    picture.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_the_model_is_left_as_it_is(loaded):
    model, processor = loaded
    samples = [Sample(str(i), picture_file(p), label=0) for i, p in enumerate(make_pictures(5))]
    expected = evaluate_model(model, processor, samples, NAMES).metrics
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert evaluate_model(model, processor, samples, NAMES).metrics == expected
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_memory_is_bounded(loaded, monkeypatch):
    """When the model gets its first pictures, few more than it gets have been asked for: the rest waits."""
    asked, forward = [], evaluating.forward
    seen = []
    picture = picture_file(next(make_pictures(1)))

    def stream():
        for i in range(60):
            asked.append(i)
            yield Sample(str(i), picture, label=0)

    monkeypatch.setattr(evaluating, "forward", lambda *args: (seen.append(len(asked)), forward(*args))[1])
    result = evaluate_model(*loaded, stream(), NAMES, batch_size=4)
    assert result.num_pictures == 60
    assert seen[0] <= 16
    assert seen == sorted(seen)


def test_progress_is_told(loaded):
    told = []
    samples = [Sample(str(i), picture_file(p), label=1) for i, p in enumerate(make_pictures(5))]
    evaluate_model(*loaded, samples, NAMES, batch_size=2, progress=lambda *state: told.append(state))
    assert told == [(2, 5), (4, 5), (5, 5)]


# --- detection -------------------------------------------------------------------------------------------------------


def coco_statistics(content, results):
    """map and map_50 by pycocotools."""
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    metric = COCOeval(truth, truth.loadRes(results), "bbox")
    metric.evaluate()
    metric.accumulate()
    metric.summarize()
    return metric.stats[:2]


def write_coco(folder, detect, names, ids, size, count=12, threshold=0.3, split="val2017"):
    """A COCO folder whose objects are near what a detector finds, some of them crowds; returns the JSON's content."""
    generator = np.random.default_rng(5)
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for i, picture in enumerate(make_pictures(count, size)):
        picture.save(folder / split / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
        found = sorted(detect(picture, threshold=threshold), key=lambda answer: -answer["score"])[:40]
        for answer in found[:: 1 + i % 3]:
            x1, y1, x2, y2 = (side + generator.normal(0, size[0] / 60) for side in answer["box"].values())
            x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1])
            if x2 - x1 < 4 or y2 - y1 < 4:
                continue
            entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            category = ids[names.index(answer["label"])]
            crowd = int(generator.random() < 0.1)
            annotations.append(
                entry | {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": category, "iscrowd": crowd}
            )
    categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return content


STOCK_DETECTIONS = """
import json, pathlib, transformers
detect = transformers.pipeline("object-detection", model={model!r}, trust_remote_code=True)
assert "mobilevit_hf" not in {{type(detect.model).__module__.split(".")[0]}}
files = sorted(pathlib.Path({pictures!r}).iterdir())
whole = {{p.name: detect(str(p), threshold=0.01) for p in files}}
# The same answers before the pipeline cuts them to whole pixels.
detect._get_bounding_box = lambda box: dict(zip(("xmin", "ymin", "xmax", "ymax"), box.tolist()))
exact = {{p.name: detect(str(p), threshold=0.01) for p in files}}
print(json.dumps([whole, exact]))
"""


def as_coco_results(answers, content):
    categories = {category["name"]: category["id"] for category in content["categories"]}
    return [
        {
            "image_id": image["id"],
            "category_id": categories[a["label"]],
            "score": a["score"],
            "bbox": [
                a["box"]["xmin"],
                a["box"]["ymin"],
                a["box"]["xmax"] - a["box"]["xmin"],
                a["box"]["ymax"] - a["box"]["ymin"],
            ],
        }
        for image in content["images"]
        for a in answers[image["file_name"]]
    ]


@pytest.fixture(scope="module")
def boxed(detector, tmp_path_factory):
    """A COCO folder for the tiny detector, with categories in another order than its classes, and the content."""
    folder = tmp_path_factory.mktemp("boxed")
    detect = mobilevit_hf.pipeline("object-detection", str(detector))
    return folder, write_coco(folder, detect, ["owl", "cat", "fish", "dog"], [3, 7, 8, 90], (640, 480))


@pytest.mark.slow
def test_map_is_that_of_stock_pipeline(mobilevit, run_python, detector, boxed):
    """Boxes are measured as the processor gives them; that the pipeline cuts them to whole pixels moves the third
    digit on pictures of this size."""
    folder, content = boxed
    code, out, err = mobilevit("evaluate", detector, folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["task"], found["split"], found["num_pictures"]) == ("object-detection", "validation", 12)
    script = STOCK_DETECTIONS.format(model=str(detector), pictures=str(folder / "val2017"))
    whole, exact = json.loads(run_python(script, without_package=True).splitlines()[-1])
    expected = coco_statistics(content, as_coco_results(exact, content))
    assert 0.05 < expected[0] < 0.95
    measured = [found["metrics"]["map"], found["metrics"]["map_50"]]
    assert measured == pytest.approx(expected, abs=1e-4)
    assert measured == pytest.approx(coco_statistics(content, as_coco_results(whole, content)), abs=1e-2)
    for name, value in zip(("map", "map_50"), expected, strict=True):
        low, high = found["intervals"][name]
        assert 0 < low < value < high < 1


def random_case(count, seed, crowds=0.15):
    """Detections and objects of pictures, in the way of `CocoMap`; scores differ."""
    generator = np.random.default_rng(seed)
    found, references = [], []
    for _ in range(count):
        number = int(generator.integers(0, 7))
        corner, sides = generator.uniform(0, 200, (number, 2)), generator.uniform(5, 100, (number, 2))
        boxes, labels = np.concatenate([corner, corner + sides], axis=1), generator.integers(0, 4, number)
        source = generator.integers(0, number, 30) if number else np.zeros(0, dtype=int)
        near = boxes[source] + generator.normal(0, 6, (len(source), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        named = np.where(generator.random(len(source)) < 0.8, labels[source], generator.integers(0, 5, len(source)))
        found.append({"boxes": near, "labels": named, "scores": generator.random(len(source))})
        iscrowd = (generator.random(number) < crowds).astype(int)
        references.append({"boxes": boxes, "labels": labels, "iscrowd": iscrowd, "area": sides.prod(axis=1)})
    as_tensors = [
        [{k: torch.tensor(v) for k, v in picture.items()} for picture in case] for case in (found, references)
    ]
    return [[p | {"boxes": p["boxes"].reshape(-1, 4)} for p in case] for case in as_tensors]


def pycocotools_of(found, references, picked):
    """pycocotools' map and map_50 of pictures, each of which may be picked several times."""
    annotations, results = [], []
    for image, i in enumerate(picked):
        for j, box in enumerate(references[i]["boxes"].tolist()):
            area, crowd = references[i]["area"][j].item(), references[i]["iscrowd"][j].item()
            entry = {"image_id": image, "category_id": references[i]["labels"][j].item(), "area": area}
            annotations.append(entry | {"id": len(annotations) + 1, "iscrowd": crowd, "bbox": to_xywh(box)})
        for j, box in enumerate(found[i]["boxes"].tolist()):
            entry = {"image_id": image, "category_id": found[i]["labels"][j].item(), "bbox": to_xywh(box)}
            results.append(entry | {"score": found[i]["scores"][j].item()})
    images = [{"id": i} for i in range(len(picked))]
    return coco_statistics(
        {"images": images, "annotations": annotations, "categories": [{"id": i} for i in range(5)]}, results
    )


def to_xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@pytest.mark.parametrize("crowds", [0, 0.4])
def test_precision_of_drawn_pictures_is_pycocotools(crowds):
    """With the draws as weights it is what pycocotools says of a data set that holds the drawn pictures."""
    found, references = random_case(20, seed=3, crowds=crowds)
    draws = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=4).T
    draws = np.concatenate([np.ones((20, 1), dtype=draws.dtype), draws], axis=1)
    matches = by_class([match(*pair) for pair in zip(found, references, strict=True)])
    precision = average_precision(matches, draws)
    for of_draw, times in zip(np.moveaxis(precision, -1, 0), draws.T, strict=True):
        expected = pycocotools_of(found, references, np.repeat(np.arange(20), times))
        assert [np.nanmean(of_draw), np.nanmean(of_draw[:, 0])] == pytest.approx(expected, abs=1e-9)


def test_a_class_that_was_not_drawn_does_not_count():
    found, references = random_case(6, seed=1, crowds=0)
    rare = next(i for i, reference in enumerate(references) if len(reference["labels"]))
    references[rare]["labels"][0] = 4  # of this class alone
    matches = by_class([match(*pair) for pair in zip(found, references, strict=True)])
    precision = average_precision(matches, np.array([[int(i != rare)] for i in range(6)]))
    assert np.isnan(precision[-1]).all()
    others = [i for i in range(6) if i != rare]
    assert np.nanmean(precision) == pytest.approx(pycocotools_of(found, references, others)[0], abs=1e-9)


def test_the_best_threshold(detector, boxed):
    """No threshold gives a higher F1 than the one found, and it gives what is said; counted picture by picture."""
    folder, content = boxed
    detect = mobilevit_hf.pipeline("object-detection", str(detector))
    samples = coco_samples(folder, content)
    names = ["owl", "cat", "fish", "dog"]
    result = evaluate_model(detect.model, detect.image_processor, samples, names)
    best = result.best_threshold
    detect._get_bounding_box = lambda box: box.tolist()
    answers = [sorted(detect(str(s.image), threshold=0.01), key=lambda a: -a["score"]) for s in samples]
    scores = sorted({answer["score"] for picture in answers for answer in picture})
    counts = {
        threshold: count_matches(samples, answers, names, threshold)
        for threshold in (best.value, *scores[:: len(scores) // 60])
    }
    f1 = {threshold: 2 * hits / (found + present) for threshold, (hits, found, present) in counts.items()}
    assert max(f1.values()) == f1[best.value] == pytest.approx(best.f1, abs=1e-9)
    hits, found, present = counts[best.value]
    assert (best.precision, best.recall) == pytest.approx((hits / found, hits / present))
    mistakes = []
    for place, (sample, picture) in enumerate(zip(samples, answers, strict=True)):
        hits, found, present = count_matches([sample], [picture], names, best.value)
        if errors := present - hits + found - hits:
            objects = f"{present} object{'s' * (present != 1)}"
            mistakes.append((-errors, place, sample.name, objects, f"{present - hits} missed, {found - hits} wrong"))
    assert len({errors for errors, *_ in mistakes}) > 3
    assert [(-m.score, m.place, m.name, m.right, m.named) for m in result.mistakes] == sorted(mistakes)


def coco_samples(folder, content):
    places = {category["id"]: i for i, category in enumerate(content["categories"])}
    samples = []
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in mine)]
        labels, crowds = [places[a["category_id"]] for a in mine], [a["iscrowd"] for a in mine]
        file = folder / "val2017" / image["file_name"]
        samples.append(Sample(file.name, str(file), objects=Objects.from_lists(boxes, labels, crowds)))
    return samples


def count_matches(samples, answers, names, threshold):
    """Hits, detections and objects at an overlap of 0.5, one by one; detections in a crowd are not counted."""
    hits = found = present = 0
    for sample, picture in zip(samples, answers, strict=True):
        objects = list(
            zip(sample.objects.boxes.tolist(), sample.objects.labels, sample.objects.iscrowd.tolist(), strict=True)
        )
        free = [(box, names[label]) for box, label, crowd in objects if not crowd]
        crowds = [(box, names[label]) for box, label, crowd in objects if crowd]
        present += len(free)
        for answer in picture:
            if answer["score"] <= threshold:
                continue
            overlaps = [overlap(answer["box"], box) if name == answer["label"] else 0 for box, name in free]
            if overlaps and max(overlaps) >= 0.5:
                free.pop(int(np.argmax(overlaps)))
                hits += 1
            elif any(n == answer["label"] and overlap(answer["box"], b, crowd=True) >= 0.5 for b, n in crowds):
                continue
            found += 1
    return hits, found, present


def overlap(box, other, crowd=False):
    width, height = (min(box[2 + i], other[2 + i]) - max(box[i], other[i]) for i in range(2))
    common = width * height if width > 0 and height > 0 else 0
    area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return common / (area if crowd else area + other_area - common)


def test_another_detector_whose_pictures_have_sizes_of_their_own():
    """Pictures that make no batch run one by one; scores of a detector without a floor are all measured."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=12, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    model = YolosForObjectDetection(config).eval()
    processor = YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    pictures = [p.resize(size) for p, size in zip(make_pictures(3), [(90, 60), (60, 90), (90, 60)], strict=True)]
    detect = transformers.pipeline("object-detection", model=model, image_processor=processor)
    detect._get_bounding_box = lambda box: dict(zip(("xmin", "ymin", "xmax", "ymax"), box.tolist(), strict=True))
    answers = [detect(picture, threshold=0.0) for picture in pictures]
    truth = [[list(a["box"].values()) for a in picture[:4]] for picture in answers]
    labels = [[["cat", "dog"].index(a["label"]) for a in picture[:4]] for picture in answers]
    samples = [
        Sample(str(i), picture_file(pictures[i]), objects=Objects.from_lists(truth[i], labels[i])) for i in range(3)
    ]
    result = evaluate_model(model.train(), processor, samples, ["cat", "dog"])
    assert model.training
    annotations = []
    for i, j in itertools.product(range(3), range(4)):
        x, y, w, h = to_xywh(truth[i][j])
        entry = {"id": len(annotations) + 1, "image_id": i, "category_id": labels[i][j], "iscrowd": 0}
        annotations.append(entry | {"bbox": [x, y, w, h], "area": w * h})
    content = {
        "images": [{"id": i, "file_name": str(i)} for i in range(3)],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    expected = coco_statistics(content, as_coco_results({str(i): a for i, a in enumerate(answers)}, content))
    assert [result.metrics["map"], result.metrics["map_50"]] == pytest.approx(expected, abs=1e-4)


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
        ValueError, match=r"does not know (2|1) of the data set's . classes: .*pig.*It knows cat, dog, owl"
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
    """The labelled pictures, and one that is none."""
    folder = tmp_path / "damaged"
    for file in labelled.glob("*/*"):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
    (folder / "dog" / "[red]bad.jpg").write_text("no picture")
    return folder


def test_bad_pictures_are_skipped_named_and_counted(mobilevit, classifier, labelled, damaged):
    _, expected, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--json")
    code, out, err = mobilevit("evaluate", classifier, damaged, "--split", "all")
    assert code == 1
    assert "dog/[red]bad.jpg: not a picture" in err
    assert "1 of 31 could not be read" in err
    assert "30 pictures" in out
    code, out, _ = mobilevit("evaluate", classifier, damaged, "--split", "all", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["metrics"] == json.loads(expected)["metrics"]
    assert [(p["name"], p["kind"]) for p in found["problems"]] == [("dog/[red]bad.jpg", "unreadable picture")]


def test_too_many_bad_pictures_are_an_error(mobilevit, classifier, damaged):
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


def test_the_table_of_a_detector(mobilevit, detector, boxed):
    _, out, _ = mobilevit("evaluate", detector, boxed[0])
    assert re.search(r"mAP +\d+\.\d% +95 %: \d", out)
    assert re.search(r"best threshold 0\.\d+: F1 \d", out)


def test_a_limit_takes_pictures_of_all_classes(mobilevit, classifier, labelled):
    _, out, _ = mobilevit("evaluate", classifier, labelled, "--split", "all", "--limit", 15, "--json")
    found = json.loads(out)
    assert found["num_pictures"] == 15
    assert all(row["support"] > 0 for row in found["metrics"]["per_class"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{detector}", "{labelled}"], "image-classification.*object-detection"),
        (["{classifier}", "{boxed}"], "object-detection.*image-classification"),
        (["{classifier}", "{labelled}", "--split", "exam"], "exam.*train, validation, all"),
        (["{classifier}", "{labelled}/none"], "none"),
    ],
)
def test_mistakes_are_one_line(mobilevit, classifier, detector, labelled, boxed, arguments, words):
    places = {"classifier": classifier, "detector": detector, "labelled": labelled, "boxed": boxed[0]}
    code, out, err = mobilevit("evaluate", *(argument.format(**places) for argument in arguments))
    assert (code, out) == (2, "")
    assert re.search(words, err)
    assert err.count("\n") == 1


def test_no_mistake_is_no_proof(loaded):
    """Of 10 pictures that are all right, drawing anew has no width; an error rate of 26 % gives that in 5 of 100."""
    classify = transformers.pipeline("image-classification", model=loaded[0], image_processor=loaded[1])
    pictures = list(make_pictures(10))
    right = [NAMES.index(answers[0]["label"]) for answers in classify(pictures)]
    samples = [Sample(str(i), picture_file(pictures[i]), label=label) for i, label in enumerate(right)]
    result = evaluate_model(*loaded, samples, NAMES)
    assert (result.metrics["accuracy"], result.intervals["accuracy"]) == (1, (1, 1))
    assert re.search(r"All 10 .* 25\.9%", result.notes[0])
    assert round((1 - 0.259) ** 10, 3) == 0.05


def test_nothing_to_measure(loaded):
    with pytest.raises(ValueError, match="no pictures"):
        evaluate_model(*loaded, [], NAMES)


def test_what_is_no_classifier_or_detector(tiny_model, loaded):
    with pytest.raises(ValueError, match=r"MobileViTModel, expected"):
        evaluate_model(tiny_model(mobilevit_hf.MobileViTModel), loaded[1], [], NAMES)


def test_objects_for_a_classifier(loaded):
    sample = Sample("a.jpg", picture_file(next(make_pictures(1))), objects=Objects.from_lists([], []))
    with pytest.raises(ValueError, match=r"a\.jpg has no label"):
        evaluate_model(*loaded, [sample], NAMES)


def test_nothing_found_and_nothing_there(detector):
    detect = mobilevit_hf.pipeline("object-detection", str(detector))
    detect.image_processor.score_threshold = 1.0
    picture = picture_file(next(make_pictures(1)))
    empty = [Sample("a", picture, objects=Objects.from_lists([], []))]
    result = evaluate_model(detect.model, detect.image_processor, empty, NAMES)
    assert (result.metrics["map"], result.intervals, result.best_threshold) == (-1, {}, None)
    missed = [Sample("a", picture, objects=Objects.from_lists([[1, 2, 30, 40]], [1]))]
    result = evaluate_model(detect.model, detect.image_processor, missed, NAMES)
    assert (result.metrics["map"], result.intervals["map"], result.best_threshold) == (0, (0, 0), None)


# --- the paper's figures, in miniature -------------------------------------------------------------------------------


def test_coco_with_an_official_detector(mobilevit, tmp_path):
    """mobilevit convert det.pt OUT --labels coco && mobilevit evaluate OUT coco"""
    weights = formula_state_dict(official_shapes("detection", 1 + 80))
    torch.save(weights, tmp_path / "det.pt")
    model = tmp_path / "model"
    assert mobilevit("convert", tmp_path / "det.pt", model, "--labels", "coco")[0] == 0
    names = LABEL_SETS["coco"]
    ids = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    detect = mobilevit_hf.pipeline("object-detection", str(model))
    folder = tmp_path / "coco"
    content = write_coco(folder, detect, names, ids, (320, 240), count=3, threshold=0.02)
    code, out, err = mobilevit("evaluate", model, folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    detect._get_bounding_box = lambda box: dict(zip(("xmin", "ymin", "xmax", "ymax"), box.tolist(), strict=True))
    answers = {
        i["file_name"]: detect(str(folder / "val2017" / i["file_name"]), threshold=0.01) for i in content["images"]
    }
    expected = coco_statistics(content, as_coco_results(answers, content))
    assert expected[0] > 0.01
    assert [found["metrics"]["map"], found["metrics"]["map_50"]] == pytest.approx(expected, abs=1e-4)


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
    assert (found["split"], found["num_pictures"]) == ("validation", 30)
    assert found["metrics"]["accuracy"] == np.mean([right == named for right, named in stock_answers])
    assert any("validation" in path for path in asked)
    assert not list((tmp_path / "home").rglob("*.arrow"))  # nothing of the data is kept
