"""The modules for `evaluate`: their numbers against pycocotools and plain loops, and evaluate's ways to use them."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import datasets
import evaluate
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import Trainer, TrainingArguments
from transformers.utils import ModelOutput

import mobilevit_hf
from mobilevit_hf.metrics import CocoMap, MeanIoU, TopKAccuracy, path

CLASSES = {"coco_map": CocoMap, "mean_iou": MeanIoU, "top_k_accuracy": TopKAccuracy}


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """The folders where evaluate keeps its data and its copies of module files, for these tests alone."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("HF_METRICS_CACHE", "HF_MODULES_CACHE")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folders["HF_METRICS_CACHE"])
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folders["HF_MODULES_CACHE"])
        patch.syspath_prepend(folders["HF_MODULES_CACHE"])
        yield folders


@pytest.fixture
def load(tmp_path):
    """A function that loads a module as users do, with a cache of its own."""
    return lambda name, **kwargs: evaluate.load(path(name), cache_dir=str(tmp_path), **kwargs)


# --- coco_map --------------------------------------------------------------------------------------------------------


def detections(boxes=(), scores=None, labels=None):
    boxes = list(boxes)
    scores = [0.5] * len(boxes) if scores is None else scores
    return {"boxes": boxes, "scores": scores, "labels": [0] * len(boxes) if labels is None else labels}


def objects(boxes=(), labels=None, **columns):
    boxes = list(boxes)
    return {"boxes": boxes, "labels": [0] * len(boxes) if labels is None else labels, **columns}


def random_images(seed, count, most_detections):
    """Images in which detections are references moved a little, in part of the wrong class, with tied scores.

    The first has no references, the second no detections; class 4 is detected and never there.
    """
    generator = np.random.default_rng(seed)
    predictions, references = [], []
    for index in range(count):
        m = 0 if index == 0 else int(generator.integers(1, 12))
        corners, sizes = generator.uniform(0, 300, (m, 2)), np.exp(generator.uniform(1.5, 5.3, (m, 2)))
        labels = generator.integers(0, 4, m)
        crowd = (generator.random(m) < 0.15).astype(int)
        boxes = np.concatenate([corners, corners + sizes], axis=1)
        area = sizes.prod(axis=1) * generator.uniform(0.5, 1, m)
        references.append({"boxes": boxes, "labels": labels, "iscrowd": crowd, "area": area})

        n = 0 if index == 1 else int(generator.integers(most_detections // 2, most_detections))
        source = generator.integers(0, m, n) if m else np.zeros(n, dtype=int)
        moved = (boxes if m else np.array([[10.0, 20, 60, 90]]))[source] + generator.normal(0, 4, (n, 4))
        moved = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], 1)
        guesses = generator.integers(0, 5, n)
        guesses = np.where(generator.random(n) < 0.8, labels[source], guesses) if m else guesses
        predictions.append({"boxes": moved, "scores": generator.random(n).round(2), "labels": guesses})
    return predictions, references


def by_pycocotools(predictions, references):
    """The twelve statistics and each class's average precision, with ids that are not ours."""
    labels = sorted({int(label) for image in [*predictions, *references] for label in image["labels"]})

    def to_coco(images):
        annotations = []
        for number, image in enumerate(images):
            for i, (x1, y1, x2, y2) in enumerate(np.asarray(image["boxes"], dtype=float).reshape(-1, 4).tolist()):
                annotation = {"id": len(annotations) + 1, "image_id": number + 7, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                annotation["category_id"] = int(image["labels"][i]) + 1
                annotation["area"] = float(image["area"][i]) if "area" in image else (x2 - x1) * (y2 - y1)
                annotation["iscrowd"] = int(image["iscrowd"][i]) if "iscrowd" in image else 0
                annotation["score"] = float(image["scores"][i]) if "scores" in image else None
                annotations.append(annotation)
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number + 7} for number in range(len(images))],
            "categories": [{"id": label + 1} for label in labels],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    evaluation = COCOeval(to_coco(references), to_coco(predictions), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return evaluation.stats, {label: precision[:, :, i].mean() for i, label in enumerate(labels)}


COCO_KEYS = [
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
]


def assert_as_pycocotools(result, predictions, references):
    statistics, per_class = by_pycocotools(predictions, references)
    assert list(result) == [*COCO_KEYS, "per_class"]
    assert [result[key] for key in COCO_KEYS] == pytest.approx(statistics.tolist(), abs=1e-9)
    assert result["per_class"] == pytest.approx(per_class, abs=1e-9)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("seed", "most_detections"), [(0, 30), (1, 30), (2, 300), (3, 700)])
def test_coco_map_is_that_of_pycocotools(load, seed, most_detections):
    predictions, references = random_images(seed, 12, most_detections)
    metric = load("coco_map")
    metric.add_batch(predictions=predictions[:5], references=references[:5])
    metric.add(prediction=predictions[5], reference=references[5])
    result = metric.compute(predictions=predictions[6:], references=references[6:])
    assert_as_pycocotools(result, predictions, references)
    assert 0 < result["map"] < result["map_50"] < 1
    assert result["per_class"][4] == -1


MANY = [[x, 0, x + 30, 30] for x in range(0, 40 * 130, 40)]
HANDMADE = {
    "nothing at all": ([detections()], [objects()]),
    "no images": ([], []),
    "no detections": ([detections()] * 2, [objects(), objects([[0, 0, 50, 50]])]),
    "no references": ([detections([[0, 0, 50, 50]])], [objects()]),
    "other class": ([detections([[0, 0, 50, 50]], labels=[3])], [objects([[0, 0, 50, 50]], labels=[8])]),
    "only a crowd": ([detections([[0, 0, 50, 50]])], [objects([[0, 0, 50, 50]], iscrowd=[1])]),
    "crowd takes several": (
        [detections([[0, 0, 50, 50], [5, 5, 30, 30], [9, 9, 40, 40], [200, 0, 250, 50]], [0.9, 0.8, 0.7, 0.6])],
        [objects([[0, 0, 300, 60], [200, 0, 250, 50]], iscrowd=[1, 0])],
    ),
    "more than 100 on an image": (
        [detections(MANY, scores=np.linspace(0.1, 0.9, 130))],
        [objects(MANY)],
    ),
    "area given": ([detections([[0, 0, 40, 40]])], [objects([[0, 0, 40, 40]], area=[900.0])]),
    "area of the box": ([detections([[0, 0, 40, 40]])], [objects([[0, 0, 40, 40]])]),
    "a box without area": ([detections([[5, 5, 5, 9], [0, 0, 9, 9]])], [objects([[5, 5, 5, 9], [0, 0, 9, 9]])]),
}


@pytest.mark.parametrize("case", HANDMADE)
def test_coco_map_of_special_images(load, case):
    predictions, references = HANDMADE[case]
    result = load("coco_map").compute(predictions=predictions, references=references)
    if predictions:  # pycocotools cannot do without images
        assert_as_pycocotools(result, predictions, references)
    expected = {
        "nothing at all": {"map": -1, "mar_100": -1},
        "no images": {"map": -1, "mar_100": -1},
        "no detections": {"map": 0, "mar_100": 0, "map_medium": 0, "map_large": -1},
        "no references": {"map": -1},
        "other class": {"map": 0},
        "only a crowd": {"map": -1},
        "crowd takes several": {"map": 1},
        "more than 100 on an image": {"mar_100": 100 / 130, "mar_10": 10 / 130, "mar_1": 1 / 130},
        "area given": {"map_small": 1, "map_medium": -1},
        "area of the box": {"map_small": -1, "map_medium": 1},
        "a box without area": {"mar_100": 0.5},
    }
    assert {key: result[key] for key in expected[case]} == pytest.approx(expected[case])


def test_coco_map_of_real_annotations(load, reference_data):
    """Blood cells, of which two boxes have no area, and detections that are their boxes moved."""
    generator = np.random.default_rng(0)
    predictions, references = [], []
    for file in sorted((reference_data / "data/bccd/Annotations").glob("*.xml"))[:120]:
        found = ElementTree.parse(file).getroot().findall("object")
        boxes = np.array(
            [[float(o.find(f"bndbox/{k}").text) for k in ("xmin", "ymin", "xmax", "ymax")] for o in found]
        )
        labels = [("RBC", "WBC", "Platelets").index(o.find("name").text) for o in found]
        corners = boxes.reshape(-1, 2, 2) + generator.normal(0, 3, (len(boxes), 2, 2))
        moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        predictions.append({"boxes": moved, "scores": generator.random(len(boxes)), "labels": labels})
        references.append({"boxes": boxes, "labels": labels})
    names = {0: "RBC", 1: "WBC", 2: "Platelets"}
    result = load("coco_map").compute(predictions=predictions, references=references, id2label=names)
    result["per_class"] = {label: result["per_class"][name] for label, name in names.items()}
    assert_as_pycocotools(result, predictions, references)
    assert result["map"] > 0.3


def test_coco_map_takes_arrays_tensors_and_lists(load):
    predictions, references = random_images(5, 6, 20)
    scores = [torch.tensor(image["scores"]).bfloat16() for image in predictions]
    metric = load("coco_map")

    def convert(function):
        columns = [
            {**image, "scores": rounded.double().numpy()} for image, rounded in zip(predictions, scores, strict=True)
        ]
        return [[{key: function(p[key]) for key in p} for p in images] for images in (columns, references)]

    arrays, tensors, lists = (convert(function) for function in (np.asarray, torch.tensor, np.ndarray.tolist))
    for prediction, rounded in zip(tensors[0], scores, strict=True):
        prediction["scores"] = rounded.requires_grad_()
        prediction["more"] = "is passed over"
    results = [metric.compute(predictions=p, references=r) for p, r in (arrays, tensors, lists)]
    assert results[0] == results[1] == results[2]
    assert results[0]["map"] > 0


def test_coco_map_of_an_image_processor(load):
    """What post-processing returns goes in as it is; an image on which nothing was found too."""
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor()
    logits = torch.full((2, 3, 3), -9.0)
    logits[..., 0] = 9
    logits[0, 1] = torch.tensor([0.0, 0.0, 9.0])
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25]]).expand(2, 3, 4)
    outputs = ModelOutput(logits=logits, pred_boxes=boxes)
    predictions = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(80, 40), (50, 50)])
    references = [objects([[10, 30, 30, 50]], labels=[1]), objects()]
    result = load("coco_map").compute(predictions=predictions, references=references, id2label={0: "a", 1: "b"})
    assert result["map"] == pytest.approx(1)
    assert result["per_class"] == {"b": pytest.approx(1)}


BOX = [[0, 0, 5, 5]]


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ({"boxes": BOX, "labels": [0]}, objects(BOX), r"predictions\[1\]: got the keys .*scores"),
        (detections(BOX), {"boxes": BOX, "class_labels": [0]}, r"references\[1\]: got the keys .*labels"),
        (detections(BOX), "file", r"references\[1\]: got str"),
        (detections(BOX, scores=[0.5, 0.5]), objects(BOX), r"\['scores'\]: got shape \(2,\), expected \(1,\)"),
        (detections(BOX, labels=[]), objects(BOX), r"predictions\[1\]\['labels'\]: got shape \(0,\)"),
        (detections(BOX), objects(BOX, area=[1.0, 2.0]), r"\['area'\]: got shape"),
        (detections(BOX), objects(BOX, iscrowd=[]), r"\['iscrowd'\]: got shape"),
        (detections([[5, 0, 4, 9]]), objects(BOX), r"\['boxes'\]: got \[5.0, 0.0, 4.0, 9.0\].*box_convert"),
        (detections(BOX), objects([[0, 9, 4, 8]]), r"references\[1\]\['boxes'\]: .*y1 ≤ y2"),
        (detections([[0, 0, 5]]), objects(BOX), r"shape \(1, 3\), expected \(n, 4\)"),
        (detections([[0, 0, 5, math.nan]]), objects(BOX), "not finite"),
        (detections(BOX, scores=[math.inf]), objects(BOX), "not finite"),
        (detections(BOX, labels=[0.5]), objects(BOX), "expected integers"),
        (detections(BOX, labels=[-1]), objects(BOX), "expected integers from 0"),
        (detections(BOX, labels=["cat"]), objects(BOX), "not an array of numbers"),
    ],
)
def test_coco_map_says_what_is_wrong(load, prediction, reference, message):
    metric = load("coco_map")
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[detections(BOX), prediction], references=[objects(BOX), reference])
    assert metric.compute(predictions=[detections(BOX)], references=[objects(BOX)])["map"] == pytest.approx(1)


def test_coco_map_prints_nothing(load, capfd):
    load("coco_map").compute(predictions=[detections(BOX)], references=[objects(BOX)])
    assert capfd.readouterr().out == ""


# --- top_k_accuracy --------------------------------------------------------------------------------------------------


def count_by_loops(first, right):
    """Accuracy, the mean F1 and each class's figures, example by example."""
    per_class = {}
    for label in sorted({*first, *right}):
        hits = sum(f == r == label for f, r in zip(first, right, strict=True))
        predicted, support = first.count(label), right.count(label)
        precision, recall = hits / predicted if predicted else 0, hits / support if support else 0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0
        per_class[label] = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    accuracy = sum(f == r for f, r in zip(first, right, strict=True)) / len(right)
    return accuracy, sum(figures["f1"] for figures in per_class.values()) / len(per_class), per_class


@pytest.fixture(scope="module")
def scores():
    """Scores of 9 classes, many of them equal, and right classes, among which 8 never is."""
    generator = np.random.default_rng(0)
    right = generator.integers(0, 8, 200)
    scores = generator.normal(size=(200, 9)).round(1)
    scores[np.arange(200), right] += 0.5
    return scores.astype(np.float32), right


def test_top_k_accuracy_of_scores(load, scores):
    values, right = scores
    orders = [sorted(range(9), key=lambda label: (-row[label], label)) for row in values.tolist()]
    accuracy, macro_f1, per_class = count_by_loops([order[0] for order in orders], right.tolist())
    expected = {"accuracy": accuracy, "macro_f1": macro_f1}
    for k in (2, 5, 9):
        expected[f"top_{k}_accuracy"] = sum(r in o[:k] for o, r in zip(orders, right, strict=True)) / 200
    metric = load("top_k_accuracy")
    metric.add(prediction=values[0], reference=right[0])
    metric.add_batch(predictions=values[1:9], references=right[1:9])
    result = metric.compute(predictions=values[9:], references=right[9:], k=(2, 5, 9))
    assert {label: pytest.approx(figures) for label, figures in per_class.items()} == result.pop("per_class")
    assert result == pytest.approx(expected)
    assert 0.2 < accuracy < expected["top_2_accuracy"] < expected["top_5_accuracy"] < 1 == expected["top_9_accuracy"]
    assert list(metric.compute(predictions=values, references=right, k=3))[:2] == ["accuracy", "top_3_accuracy"]
    assert "top_5_accuracy" in metric.compute(predictions=values, references=right)


def test_top_k_accuracy_of_class_indices(load, scores):
    values, right = scores
    first = values.argmax(axis=1)
    accuracy, macro_f1, per_class = count_by_loops(first.tolist(), right.tolist())
    result = load("top_k_accuracy").compute(predictions=first, references=right)
    json.dumps(result, allow_nan=False)
    assert {label: pytest.approx(figures) for label, figures in per_class.items()} == result.pop("per_class")
    assert result == pytest.approx({"accuracy": accuracy, "macro_f1": macro_f1})
    # What an index says about the first five is not known, even where it is right.
    assert list(load("top_k_accuracy").compute(predictions=[1, 0], references=[1, 0])) == [*result, "per_class"]


def test_top_k_accuracy_takes_arrays_tensors_and_lists(load, scores):
    values, right = torch.tensor(scores[0]).bfloat16(), scores[1]
    metric = load("top_k_accuracy")
    results = [
        metric.compute(predictions=values.requires_grad_(), references=torch.tensor(right)),
        metric.compute(predictions=values.tolist(), references=right.tolist()),
        metric.compute(predictions=list(values), references=list(torch.tensor(right))),
        metric.compute(predictions=list(values.detach().float().numpy()), references=right.astype(np.uint8)),
    ]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [1, 2], "references": [1]}, r"shape \(2,\) and references of shape \(1,\)"),
        ({"predictions": [[[1.0]]], "references": [1]}, r"expected \(N, K\)"),
        ({"predictions": ["cat"], "references": [1]}, "label_mapping"),
        ({"predictions": [0.5], "references": [1]}, r"predictions: got \[0.5\], expected class indices"),
        ({"predictions": [[0.5, 0.5]], "references": [-100]}, "references: got .*integers from 0"),
        ({"predictions": [[0.5, 0.5]], "references": [2]}, r"class 2, expected 0\.\.1"),
        ({"predictions": [[0.5, math.nan]], "references": [1]}, "not finite"),
        ({"predictions": [[1.0, 2.0], [1.0]], "references": [0, 0]}, "not an array of numbers"),
        ({"predictions": [], "references": []}, "nothing to measure"),
        ({"predictions": [1], "references": [1], "k": 0}, "k: got 0"),
        ({"predictions": [1], "references": [1], "id2label": {0: "cat"}}, r"none for \[1\]"),
    ],
)
def test_top_k_accuracy_says_what_is_wrong(load, inputs, message):
    with pytest.raises(ValueError, match=message):
        load("top_k_accuracy").compute(**inputs)


def test_top_k_accuracy_in_trainer(load, checkpoints, tmp_path):
    metric = load("top_k_accuracy")
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(checkpoints["image-classification"])
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 3, 2, 1]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=4),
        eval_dataset=[{"pixel_values": images[i], "labels": label} for i, label in enumerate(labels)],
        compute_metrics=lambda p: metric.compute(predictions=p.predictions, references=p.label_ids, k=2),
    )
    with torch.no_grad():
        best = model(pixel_values=images).logits.topk(2).indices.tolist()
    found = trainer.evaluate()
    assert found["eval_accuracy"] == sum(row[0] == label for row, label in zip(best, labels, strict=True)) / 6
    assert found["eval_top_2_accuracy"] == sum(label in row for row, label in zip(best, labels, strict=True)) / 6


# --- mean_iou --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def label_maps():
    """Predicted and right label maps of several sizes; class 5 is predicted and never right, 4 the other way round."""
    generator = np.random.default_rng(0)
    references = [generator.integers(0, 5, size) for size in ((7, 9), (20, 3), (1, 30))]
    references[0][:2] = 255
    predictions = [
        np.where(generator.random(r.shape) < 0.6, r % 4, generator.integers(0, 4, r.shape)) for r in references
    ]
    predictions[1][0, 0] = 5
    return predictions, references


def iou_by_masks(predictions, references, ignore_index):
    """The formula, with a mask for each class over all pixels of all images."""
    predicted, right = (np.concatenate([m.ravel() for m in maps]) for maps in (predictions, references))
    predicted, right = predicted[right != ignore_index], right[right != ignore_index]
    ious, accuracies = {}, {}
    for label in {*predicted.tolist(), *right.tolist()}:
        a, b = predicted == label, right == label
        ious[label] = (a & b).sum() / (a | b).sum()
        if b.any():
            accuracies[label] = (a & b).sum() / b.sum()
    return ious, accuracies, (predicted == right).mean()


@pytest.mark.parametrize("ignore_index", [255, 0, None])
def test_mean_iou(load, label_maps, ignore_index):
    predictions, references = label_maps
    ious, accuracies, overall = iou_by_masks(predictions, references, ignore_index)
    metric = load("mean_iou")
    metric.add(prediction=predictions[0], reference=references[0])
    result = metric.compute(predictions=predictions[1:], references=references[1:], ignore_index=ignore_index)
    json.dumps(result, allow_nan=False)
    per_class = result.pop("per_class")
    assert result == pytest.approx(
        {
            "mean_iou": np.mean(list(ious.values())),
            "mean_accuracy": np.mean(list(accuracies.values())),
            "overall_accuracy": overall,
        }
    )
    assert {label: figures["iou"] for label, figures in per_class.items()} == pytest.approx(ious)
    assert {label: f["accuracy"] for label, f in per_class.items() if f["pixels"]} == pytest.approx(accuracies)
    assert per_class[5] == {"iou": 0, "accuracy": 0, "pixels": 0}
    kept = sum((r != ignore_index).sum() for r in references)
    assert sum(figures["pixels"] for figures in per_class.values()) == kept


def test_mean_iou_takes_arrays_tensors_images_and_lists(load, label_maps):
    predictions, references = label_maps
    metric = load("mean_iou")
    results = [
        metric.compute(predictions=predictions, references=references),
        metric.compute(
            predictions=[torch.tensor(p) for p in predictions],
            references=[Image.fromarray(r.astype(np.uint8)) for r in references],
        ),
        metric.compute(predictions=[p.tolist() for p in predictions], references=[r.tolist() for r in references]),
    ]
    assert results[0] == results[1] == results[2]
    ignored = [np.where(r == 255, -100, r) for r in references]
    assert metric.compute(predictions=predictions, references=ignored, ignore_index=-100) == results[0]


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "message"),
    [
        ([[0, 1]], [[0], [1]], {}, r"predictions\[1\] has shape \(1, 2\) and references\[1\] \(2, 1\).*target_sizes"),
        ([0, 1], [0, 1], {}, r"predictions\[1\]: got shape \(2,\)"),
        ([[0.5]], [[0]], {}, "float64, expected an"),
        ([[-1]], [[0]], {}, "got label -1"),
        ([[0]], [[-1]], {}, "expected 0 and above"),
        ([[0]], [[255]], {"ignore_index": None, "num_labels": 2}, r"\[0, 1, 255\], expected 0\.\.1.*ignore_index"),
        ([[2]], [[1]], {"num_labels": 2}, r"\[0, 1, 2\], expected 0\.\.1"),
        ([[1]], [[1]], {"id2label": {0: "sky"}}, r"none for \[1\]"),
    ],
)
def test_mean_iou_says_what_is_wrong(load, prediction, reference, options, message):
    with pytest.raises(ValueError, match=message):
        load("mean_iou").compute(predictions=[[[0]], prediction], references=[[[1]], reference], **options)


def test_mean_iou_of_nothing(load):
    with pytest.raises(ValueError, match="no pixel to measure"):
        load("mean_iou").compute(predictions=[[[0, 1]]], references=[[[255, 255]]])


# --- all of them -----------------------------------------------------------------------------------------------------

EXAMPLES = {
    "coco_map": random_images(9, 6, 20),
    "mean_iou": (
        [np.eye(3, dtype=int)] * 5 + [np.ones((2, 4), dtype=int)],
        [np.eye(3, dtype=int)[::-1]] * 5 + [np.eye(2, 4, dtype=int)],
    ),
    "top_k_accuracy": ([0, 1, 2, 1, 0, 2], [0, 1, 1, 1, 2, 2]),
}
modules = pytest.mark.parametrize("name", EXAMPLES)


def test_path_names_what_there_is():
    assert all(Path(path(name), f"{name}.py").is_file() for name in EXAMPLES)
    with pytest.raises(ValueError, match="'accuracy', expected one of top_k_accuracy, coco_map, mean_iou"):
        path("accuracy")


@modules
def test_loaded_by_path_and_as_a_class(load, name):
    predictions, references = EXAMPLES[name]
    loaded, direct = load(name), CLASSES[name](keep_in_memory=True)
    assert loaded.name == direct.name == name
    assert type(loaded) is not type(direct)
    results = [metric.compute(predictions=predictions, references=references) for metric in (loaded, direct)]
    assert results[0] == results[1]
    assert loaded.description
    assert loaded.citation
    assert "per_class" in loaded.compute.__doc__


@modules
def test_unequal_numbers_are_refused(load, name):
    predictions, references = EXAMPLES[name]
    with pytest.raises(ValueError, match="predictions"):
        load(name).add_batch(predictions=predictions, references=references[1:])
    with pytest.raises(ValueError, match="references"):
        load(name).add_batch(predictions=predictions)


@modules
def test_names_of_classes(load, name):
    """Classes that share a name stay apart; keys may be strings, as in a JSON file."""
    predictions, references = EXAMPLES[name]
    metric = load(name)
    by_index = metric.compute(predictions=predictions, references=references)["per_class"]
    names = {"0": "crane", "1": "crane", "2": "owl", "3": "owl of the night", "4": "fish"}
    called = {0: "crane (0)", 1: "crane (1)", 2: "owl", 3: "owl of the night", 4: "fish"}
    result = metric.compute(predictions=predictions, references=references, id2label=names)
    assert result["per_class"] == {called[index]: value for index, value in by_index.items()}


@modules
def test_several_processes(load, name):
    predictions, references = EXAMPLES[name]
    expected = load(name).compute(predictions=predictions, references=references)

    def work(process):
        metric = load(name, num_process=2, process_id=process, experiment_id="shared")
        metric.add_batch(predictions=predictions[process::2], references=references[process::2])
        return metric.compute()

    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(work, (0, 1)))
    assert results == [expected, None]


@pytest.mark.parametrize(
    ("name", "prediction", "reference"),
    [("mean_iou", np.eye(40, dtype=int), np.eye(40, dtype=int)), ("top_k_accuracy", np.arange(400.0), 3)],
)
def test_little_is_kept(load, name, prediction, reference, tmp_path):
    """Neither pixels nor scores reach the disk: less than 200 bytes for each image."""
    metric = load(name)
    metric.add_batch(predictions=[prediction] * 2000, references=[reference] * 2000)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.arrow"))
    assert 10_000 < written < 2000 * 200
    metric.compute()


def test_combine(load):
    predictions, references = EXAMPLES["top_k_accuracy"]
    combined = evaluate.combine({"mine": load("top_k_accuracy"), "again": TopKAccuracy()})
    for prediction, reference in zip(predictions, references, strict=True):
        combined.add(prediction, reference)
    expected = load("top_k_accuracy").compute(predictions=predictions, references=references)
    result = combined.compute()
    assert result == {f"{who}_{key}": value for who in ("mine", "again") for key, value in expected.items()}
    detection = evaluate.combine([path("coco_map")])
    detection.add_batch(*EXAMPLES["coco_map"])
    assert detection.compute() == CocoMap().compute(
        predictions=EXAMPLES["coco_map"][0], references=EXAMPLES["coco_map"][1]
    )


def test_evaluator(checkpoints):
    folder = str(checkpoints["image-classification"])
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (80, 90, 3)).astype(np.uint8)) for _ in range(4)]
    answers = [answer[0]["label"] for answer in mobilevit_hf.pipeline("image-classification", folder)(images)]
    names = ["cat", "dog", "fish", "owl"]
    right = [answers[0], answers[1], names[names.index(answers[2]) - 1], answers[3]]
    data = datasets.Dataset.from_dict(
        {"image": images, "label": right},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )
    mapping = {name: index for index, name in enumerate(names)}
    for metric in (path("top_k_accuracy"), evaluate.combine([TopKAccuracy()])):
        result = evaluate.evaluator("image-classification").compute(folder, data, metric=metric, label_mapping=mapping)
        assert result["accuracy"] == 0.75


def test_a_changed_file_is_loaded_anew(tmp_path, caches):
    """evaluate copies a module's file; an edit shows, although the copy of the older version stays."""
    folder = shutil.copytree(path("coco_map"), tmp_path / "coco_map")
    file = folder / "coco_map.py"
    assert evaluate.load(str(folder)).compute(predictions=[], references=[])["map"] == -1
    file.write_text(file.read_text().replace('"map_50"', '"map_half"'))
    result = evaluate.load(str(folder)).compute(predictions=[], references=[])
    assert "map_half" in result
    assert "map_50" not in result
    assert "map_50" in evaluate.load(path("coco_map")).compute(predictions=[], references=[])
    assert len(list(caches["HF_MODULES_CACHE"].rglob("coco_map.py"))) >= 2


def test_a_clean_process_off_the_hub(run_python):
    """The package does not bring evaluate along, and loading needs no network."""
    printed = run_python(
        """
        import json, socket, sys
        import mobilevit_hf
        assert not {"evaluate", "faster_coco_eval", "mobilevit_hf.metrics"} & set(sys.modules)
        socket.socket.connect = None  # nothing may try

        import evaluate
        from mobilevit_hf.metrics import path
        box = {"boxes": [[0, 0, 5, 5]], "labels": [1]}
        results = [
            evaluate.load(path("top_k_accuracy")).compute(predictions=[[0.1, 0.9]], references=[1])["accuracy"],
            evaluate.load(path("mean_iou")).compute(predictions=[[[1]]], references=[[[1]]])["mean_iou"],
            evaluate.load(path("coco_map")).compute(predictions=[box | {"scores": [1]}], references=[box])["map"],
        ]
        print(json.dumps(results))
        """
    )
    assert json.loads(printed) == pytest.approx([1, 1, 1])
