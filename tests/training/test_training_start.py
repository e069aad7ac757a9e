"""The model a training starts with: which weights, which head, which size of images, which anchors."""

import math
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from formula import formula_image
from PIL import Image

import mobilevit_hf
from mobilevit_hf.data.types import Objects, Sample
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.initialization import start_classifier, start_detector

OWN = ["cat", "dog", "fish", "owl"]


def logits_of(model):
    with torch.no_grad():
        return model.eval()(pixel_values=formula_image(64, 64)).logits


# --- a classifier ----------------------------------------------------------------------------------------------------


def test_a_classifier_of_the_same_classes_keeps_its_head(checkpoints):
    source = checkpoints["image-classification"]
    start = start_classifier(TrainArguments(model=str(source)), OWN, None)
    stock = transformers.MobileViTForImageClassification.from_pretrained(source)
    torch.testing.assert_close(logits_of(start.model), logits_of(stock), rtol=1e-4, atol=1e-4)
    assert (start.image_size, start.model.config.image_size) == (64, 64)
    assert start.processor.size["shortest_edge"] == 72
    assert start.processor.crop_size == {"height": 64, "width": 64}
    assert start.notes == ()


@pytest.mark.parametrize("classes", [["a", "b", "c", "d"], ["dog", "cat", "fish", "owl"], ["cat", "dog"]])
def test_a_classifier_of_other_classes_gets_a_new_head(classes, checkpoints):
    source = checkpoints["image-classification"]
    start = start_classifier(TrainArguments(model=str(source)), classes, None)
    before = transformers.MobileViTForImageClassification.from_pretrained(source).state_dict()
    after = start.model.state_dict()
    same = [name for name, value in after.items() if value.shape == before[name].shape and value.equal(before[name])]
    assert set(after) - set(same) == {"classifier.weight", "classifier.bias"}
    assert after["classifier.weight"].shape[0] == len(classes)
    assert 0.005 < after["classifier.weight"].std() < 0.05
    assert not after["classifier.bias"].any()
    assert [start.model.config.id2label[i] for i in range(len(classes))] == classes
    assert start.model.config.label2id == {name: i for i, name in enumerate(classes)}


@pytest.mark.parametrize(
    ("asked", "side", "size"), [(None, None, 256), (None, 1000, 256), (None, 200, 192), (None, 30, 96), (320, 30, 320)]
)
def test_a_classifier_sees_images_no_larger_than_they_are(asked, side, size, checkpoints, tmp_path):
    shutil.copytree(checkpoints["image-classification"], tmp_path, dirs_exist_ok=True)
    sizes = {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}
    transformers.MobileViTImageProcessor(**sizes).save_pretrained(tmp_path)
    start = start_classifier(TrainArguments(model=str(tmp_path), image_size=asked), OWN, side)
    assert (start.image_size, start.model.config.image_size) == (size, size)
    assert start.processor.crop_size == {"height": size, "width": size}
    assert start.processor.size["shortest_edge"] == round(size * 288 / 256)


@pytest.mark.parametrize(("asked", "size"), [(None, 96), (256, 256)])
def test_a_classifier_starts_with_new_weights(asked, size):
    start = start_classifier(TrainArguments(model="xxs", image_size=asked), OWN, 1000)
    assert start.image_size == size
    assert start.processor.size["shortest_edge"] == round(size * 288 / 256)  # as in the paper (section 4.1)
    assert start.processor.crop_size == {"height": size, "width": size}
    assert start.model.config.hidden_sizes == [64, 80, 96]
    assert start.processor.do_flip_channel_order is False


# --- either ----------------------------------------------------------------------------------------------------------


def test_dropout_can_be_asked_for(checkpoints, detector):
    for start in (start_classifier, start_detector):
        source = checkpoints["image-classification"] if start is start_classifier else detector
        begun = start(TrainArguments(model=str(source), hidden_dropout_prob=0.35), OWN, None)
        config = getattr(begun.model.config, "backbone_config", begun.model.config)
        assert config.hidden_dropout_prob == 0.35
        layers = [
            module.p for name, module in begun.model.named_modules() if "transformer" in name and hasattr(module, "p")
        ]
        assert 0.35 in layers


@pytest.mark.parametrize(
    ("start", "task"), [(start_classifier, "detector"), (start_classifier, "vit"), (start_detector, "vit")]
)
def test_other_models_are_refused(start, task, detector, tmp_path):
    source = detector
    if task == "vit":
        source = tmp_path
        fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        transformers.ViTForImageClassification(transformers.ViTConfig(**fields)).save_pretrained(source)
    with pytest.raises(ValueError, match=r"got a model of type .*, expected mobilevit .*Start from") as error:
        start(TrainArguments(model=str(source)), OWN, None)
    assert str(source) in str(error.value)
    with pytest.raises(ValueError, match="There is no directory"):
        start(TrainArguments(model="no such/model at all"), OWN, None)


# --- a detector ------------------------------------------------------------------------------------------------------


def test_a_detector_starts_from_a_classifier(checkpoints):
    source = checkpoints["image-classification"]
    start = start_detector(TrainArguments(model=str(source), image_size=96), OWN, None)
    before = transformers.MobileViTForImageClassification.from_pretrained(source).state_dict()
    backbone = {n: v for n, v in start.model.state_dict().items() if n.startswith("backbone.")}
    assert len(backbone) > 200
    assert all(value.equal(before["mobilevit." + name.partition(".")[2]]) for name, value in backbone.items())
    assert [start.model.config.id2label[i] for i in range(4)] == OWN
    assert (start.image_size, start.model.config.image_size) == (96, 96)
    assert start.processor.size == {"height": 96, "width": 96}
    assert start.processor.do_flip_channel_order is True  # as the classifier's


def test_a_detector_starts_with_new_weights():
    start = start_detector(TrainArguments(model="xxs"), OWN, None)
    assert start.image_size == 320
    assert start.model.config.backbone_config.hidden_sizes == [64, 80, 96]
    assert start.processor.size == {"height": 320, "width": 320}
    assert start.processor.do_flip_channel_order is False


@pytest.mark.parametrize("classes", [OWN, ["a", "b", "c", "d"], ["a"]])
def test_a_detector_goes_on_with_its_anchors(classes, detector, tmp_path):
    model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(detector)
    model.config.anchor_scales = [0.11, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0]
    model.config.recommended_threshold = 0.3
    model.save_pretrained(tmp_path)
    transformers.AutoImageProcessor.from_pretrained(detector).save_pretrained(tmp_path)
    start = start_detector(TrainArguments(model=str(tmp_path), image_size=96), classes, None)
    assert start.model.config.anchor_scales == model.config.anchor_scales
    assert start.model.config.recommended_threshold is None
    assert (start.image_size, start.processor.size) == (96, {"height": 96, "width": 96})
    assert any("anchors are those of the detector" in note for note in start.notes)
    before, after = model.state_dict(), start.model.state_dict()
    changed = {n for n, value in after.items() if value.shape != before[n].shape or not value.equal(before[n])}
    if classes == OWN:
        assert changed == set()
    else:
        assert changed
        assert all(re.search(r"^head\..*predictor\.convolution", name) for name in changed)
        weights = [after[name] for name in changed if name.endswith("weight")]
        assert len(weights) == 6
        assert all(value.std() > 0.01 for value in weights)
    assert {len(value) for name, value in after.items() if name.endswith("predictor.convolution.bias")} == {
        anchors * (4 + 1 + len(classes)) for anchors in (6, 4)
    }


def share_that_meets(boxes, scales, ratios, strides, size):
    """The share of boxes (x1, y1, x2, y2) in 0..1 that overlap one of all anchors by half or more, one by one."""
    met = 0
    for x1, y1, x2, y2 in boxes:
        best = 0.0
        for level, stride in enumerate(strides):
            cells = 1 if stride == -1 else -(-size // stride)
            s, following = scales[level], scales[level + 1]
            sides = [(s, s), (math.sqrt(s * following),) * 2]
            for r in ratios[level]:
                sides += [(s * math.sqrt(r), s / math.sqrt(r)), (s / math.sqrt(r), s * math.sqrt(r))]
            for w, h in [(min(w, 1), min(h, 1)) for w, h in sides]:
                for row in range(cells):
                    for column in range(cells):
                        x, y = (column + 0.5) / cells, (row + 0.5) / cells
                        width = min(x2, x + w / 2) - max(x1, x - w / 2)
                        height = min(y2, y + h / 2) - max(y1, y - h / 2)
                        shared = max(0, width) * max(0, height)
                        best = max(best, shared / ((x2 - x1) * (y2 - y1) + w * h - shared))
        met += best >= 0.5
    return met / len(boxes)


def test_anchors_are_fitted_and_the_gain_is_told():
    chance = np.random.default_rng(0)
    boxes = []  # narrow ones, 5 to 10 pixels wide and about 50 high, in an image of 100x80
    for _ in range(40):
        x, y, w, h = chance.uniform(0, 90), chance.uniform(0, 25), chance.uniform(5, 10), chance.uniform(48, 54)
        boxes.append([x, y, x + w, y + h])
    images = [Image.new("RGB", (100, 80)) for _ in range(10)]
    samples = [
        Sample(f"{i}", image, objects=Objects.from_lists(boxes[i::10], [0] * 4)) for i, image in enumerate(images)
    ]
    automatic = start_detector(TrainArguments(model="xxs"), OWN, samples)
    paper = start_detector(TrainArguments(model="xxs", anchors="paper"), OWN, samples)
    assert paper.notes == ()
    assert paper.model.config.anchor_scales == pytest.approx(torch.linspace(0.1, 1.05, 7).tolist())
    note = next(note for note in automatic.notes if "anchor" in note)
    told = [float(share) for share in re.findall(r"([\d.]+)%", note)]
    boxes = [[x1 / 100, y1 / 80, x2 / 100, y2 / 80] for x1, y1, x2, y2 in boxes]
    counted = [
        100 * share_that_meets(boxes, config.anchor_scales, config.anchor_ratios, config.feature_strides, 320)
        for config in (paper.model.config, automatic.model.config)
    ]
    assert told == pytest.approx(counted, abs=0.06)
    assert told[0] < 90 < told[1]
