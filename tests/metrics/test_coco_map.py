"""COCO mean average precision compared with pycocotools."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from metric_cases import HANDMADE, assert_matches_pycocotools, detections, objects, random_images
from transformers.utils import ModelOutput

import mobilevit_hf


@pytest.mark.parametrize(("seed", "most_detections"), [(0, 30), (1, 30), (2, 300), (3, 700)])
def test_random_images_match_pycocotools(load, seed, most_detections):
    predictions, references = random_images(seed, 12, most_detections)
    metric = load("coco_map")
    metric.add_batch(predictions=predictions[:5], references=references[:5])
    metric.add(prediction=predictions[5], reference=references[5])
    result = metric.compute(predictions=predictions[6:], references=references[6:])
    assert_matches_pycocotools(result, predictions, references)
    assert 0 < result["map"] < result["map_50"] < 1
    assert result["per_class"][4] == -1


@pytest.mark.parametrize("case", HANDMADE)
def test_edge_cases_match_pycocotools(load, case):
    predictions, references = HANDMADE[case]
    result = load("coco_map").compute(predictions=predictions, references=references)
    if predictions:  # pycocotools fails without images
        assert_matches_pycocotools(result, predictions, references)
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


def test_bccd_annotations_match_pycocotools(load, reference_data):
    """Predictions are jittered blood cell boxes; two reference boxes have no area."""
    generator = np.random.default_rng(0)
    predictions, references = [], []
    for file in sorted((reference_data / "data/bccd/Annotations").glob("*.xml"))[:120]:
        annotated = ElementTree.parse(file).getroot().findall("object")
        boxes = np.array(
            [[float(o.find(f"bndbox/{k}").text) for k in ("xmin", "ymin", "xmax", "ymax")] for o in annotated]
        )
        labels = [("RBC", "WBC", "Platelets").index(o.find("name").text) for o in annotated]
        corners = boxes.reshape(-1, 2, 2) + generator.normal(0, 3, (len(boxes), 2, 2))
        moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        predictions.append({"boxes": moved, "scores": generator.random(len(boxes)), "labels": labels})
        references.append({"boxes": boxes, "labels": labels})
    names = {0: "RBC", 1: "WBC", 2: "Platelets"}
    result = load("coco_map").compute(predictions=predictions, references=references, id2label=names)
    result["per_class"] = {label: result["per_class"][name] for label, name in names.items()}
    assert_matches_pycocotools(result, predictions, references)
    assert result["map"] > 0.3


def test_accepts_arrays_tensors_and_lists(load):
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
        prediction["other"] = "ignored"
    results = [metric.compute(predictions=p, references=r) for p, r in (arrays, tensors, lists)]
    assert results[0] == results[1] == results[2]
    assert results[0]["map"] > 0


def test_accepts_output_of_image_processor(load):
    """The second image has no detections."""
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
def test_invalid_inputs_raise(load, prediction, reference, message):
    metric = load("coco_map")
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[detections(BOX), prediction], references=[objects(BOX), reference])
    assert metric.compute(predictions=[detections(BOX)], references=[objects(BOX)])["map"] == pytest.approx(1)


def test_compute_prints_nothing(load, capfd):
    load("coco_map").compute(predictions=[detections(BOX)], references=[objects(BOX)])
    assert capfd.readouterr().out == ""
