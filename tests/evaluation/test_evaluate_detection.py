"""mobilevit evaluate with detectors: mAP, intervals and threshold are those counted from stock pipelines' answers."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
import transformers
from formula import formula_state_dict, official_shapes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor
from written_data import image_file, make_images

import mobilevit_hf
from mobilevit_hf.convert.labels import LABEL_SETS
from mobilevit_hf.data.types import Objects, Sample
from mobilevit_hf.evaluation import evaluate_model
from mobilevit_hf.evaluation.average_precision import average_precision, by_class
from mobilevit_hf.evaluation.matcher import match

NAMES = ["cat", "dog", "fish", "owl"]


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
    for i, image in enumerate(make_images(count, size)):
        image.save(folder / split / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
        found = sorted(detect(image, threshold=threshold), key=lambda answer: -answer["score"])[:40]
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
files = sorted(pathlib.Path({images!r}).iterdir())
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


# --- of stock pipelines ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_map_is_that_of_stock_pipeline(mobilevit, run_python, detector, boxed):
    """Boxes are measured as the processor gives them; that the pipeline cuts them to whole pixels moves the third
    digit on images of this size."""
    folder, content = boxed
    code, out, err = mobilevit("evaluate", detector, folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["task"], found["split"], found["num_images"]) == ("object-detection", "validation", 12)
    script = STOCK_DETECTIONS.format(model=str(detector), images=str(folder / "val2017"))
    whole, exact = json.loads(run_python(script, without_package=True).splitlines()[-1])
    expected = coco_statistics(content, as_coco_results(exact, content))
    assert 0.05 < expected[0] < 0.95
    measured = [found["metrics"]["map"], found["metrics"]["map_50"]]
    assert measured == pytest.approx(expected, abs=1e-4)
    assert measured == pytest.approx(coco_statistics(content, as_coco_results(whole, content)), abs=1e-2)
    for name, value in zip(("map", "map_50"), expected, strict=True):
        low, high = found["intervals"][name]
        assert 0 < low < value < high < 1


def test_another_detector_whose_images_have_sizes_of_their_own():
    """Images that make no batch run one by one; scores of a detector without a floor are all measured."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=12, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    model = YolosForObjectDetection(config).eval()
    processor = YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    images = [p.resize(size) for p, size in zip(make_images(3), [(90, 60), (60, 90), (90, 60)], strict=True)]
    detect = transformers.pipeline("object-detection", model=model, image_processor=processor)
    detect._get_bounding_box = lambda box: dict(zip(("xmin", "ymin", "xmax", "ymax"), box.tolist(), strict=True))
    answers = [detect(image, threshold=0.0) for image in images]
    truth = [[list(a["box"].values()) for a in image[:4]] for image in answers]
    labels = [[["cat", "dog"].index(a["label"]) for a in image[:4]] for image in answers]
    samples = [
        Sample(str(i), image_file(images[i]), objects=Objects.from_lists(truth[i], labels[i])) for i in range(3)
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


# --- of drawn images -----------------------------------------------------------------------------------------------


def random_case(count, seed, crowds=0.15):
    """Detections and objects of images, in the way of `CocoMap`; scores differ."""
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
    as_tensors = [[{k: torch.tensor(v) for k, v in image.items()} for image in case] for case in (found, references)]
    return [[p | {"boxes": p["boxes"].reshape(-1, 4)} for p in case] for case in as_tensors]


def pycocotools_of(found, references, picked):
    """pycocotools' map and map_50 of images, each of which may be picked several times."""
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
def test_precision_of_drawn_images_is_pycocotools(crowds):
    """With the draws as weights it is what pycocotools says of a dataset that holds the drawn images."""
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


# --- the best threshold ----------------------------------------------------------------------------------------------


def test_the_best_threshold(detector, boxed):
    """No threshold gives a higher F1 than the one found, and it gives what is said; counted image by image."""
    folder, content = boxed
    detect = mobilevit_hf.pipeline("object-detection", str(detector))
    samples = coco_samples(folder, content)
    names = ["owl", "cat", "fish", "dog"]
    result = evaluate_model(detect.model, detect.image_processor, samples, names)
    best = result.best_threshold
    detect._get_bounding_box = lambda box: box.tolist()
    answers = [sorted(detect(str(s.image), threshold=0.01), key=lambda a: -a["score"]) for s in samples]
    scores = sorted({answer["score"] for image in answers for answer in image})
    counts = {
        threshold: count_matches(samples, answers, names, threshold)
        for threshold in (best.value, *scores[:: len(scores) // 60])
    }
    f1 = {threshold: 2 * hits / (found + present) for threshold, (hits, found, present) in counts.items()}
    assert max(f1.values()) == f1[best.value] == pytest.approx(best.f1, abs=1e-9)
    hits, found, present = counts[best.value]
    assert (best.precision, best.recall) == pytest.approx((hits / found, hits / present))
    mistakes = []
    for place, (sample, image) in enumerate(zip(samples, answers, strict=True)):
        hits, found, present = count_matches([sample], [image], names, best.value)
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
    for sample, image in zip(samples, answers, strict=True):
        objects = list(
            zip(sample.objects.boxes.tolist(), sample.objects.labels, sample.objects.iscrowd.tolist(), strict=True)
        )
        free = [(box, names[label]) for box, label, crowd in objects if not crowd]
        crowds = [(box, names[label]) for box, label, crowd in objects if crowd]
        present += len(free)
        for answer in image:
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


# --- what is said ----------------------------------------------------------------------------------------------------


def test_the_table_of_a_detector(mobilevit, detector, boxed):
    _, out, _ = mobilevit("evaluate", detector, boxed[0])
    assert re.search(r"mAP +\d+\.\d% +95 %: \d", out)
    assert re.search(r"best threshold 0\.\d+: F1 \d", out)


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


def test_nothing_found_and_nothing_there(detector):
    detect = mobilevit_hf.pipeline("object-detection", str(detector))
    detect.image_processor.score_threshold = 1.0
    image = image_file(next(make_images(1)))
    empty = [Sample("a", image, objects=Objects.from_lists([], []))]
    result = evaluate_model(detect.model, detect.image_processor, empty, NAMES)
    assert (result.metrics["map"], result.intervals, result.best_threshold) == (-1, {}, None)
    missed = [Sample("a", image, objects=Objects.from_lists([[1, 2, 30, 40]], [1]))]
    result = evaluate_model(detect.model, detect.image_processor, missed, NAMES)
    assert (result.metrics["map"], result.intervals["map"], result.best_threshold) == (0, (0, 0), None)
