"""Initial models: weights, head, input size and anchors."""

import json
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
from mobilevit_hf.training.initialization import (
    check_initial_checkpoint,
    create_classifier,
    create_detector,
    create_segmenter,
)

CLASSES = ["cat", "dog", "fish", "owl"]


def predict_logits(model):
    with torch.no_grad():
        return model.eval()(pixel_values=formula_image(64, 64)).logits


# --- classifier ------------------------------------------------------------------------------------------------------


def test_classifier_keeps_head_for_same_classes(checkpoints):
    source = checkpoints["image-classification"]
    initial = create_classifier(TrainArguments(model=str(source)), CLASSES, None)
    stock = transformers.MobileViTForImageClassification.from_pretrained(source)
    torch.testing.assert_close(predict_logits(initial.model), predict_logits(stock), rtol=1e-4, atol=1e-4)
    assert (initial.image_size, initial.model.config.image_size) == (64, 64)
    assert initial.processor.size["shortest_edge"] == 72
    assert initial.processor.crop_size == {"height": 64, "width": 64}
    assert initial.notes == ()


@pytest.mark.parametrize("classes", [["a", "b", "c", "d"], ["dog", "cat", "fish", "owl"], ["cat", "dog"]])
def test_classifier_gets_new_head_for_other_classes(classes, checkpoints):
    source = checkpoints["image-classification"]
    initial = create_classifier(TrainArguments(model=str(source)), classes, None)
    before = transformers.MobileViTForImageClassification.from_pretrained(source).state_dict()
    after = initial.model.state_dict()
    same = [name for name, value in after.items() if value.shape == before[name].shape and value.equal(before[name])]
    assert set(after) - set(same) == {"classifier.weight", "classifier.bias"}
    assert after["classifier.weight"].shape[0] == len(classes)
    assert 0.005 < after["classifier.weight"].std() < 0.05
    assert not after["classifier.bias"].any()
    assert [initial.model.config.id2label[i] for i in range(len(classes))] == classes
    assert initial.model.config.label2id == {name: i for i, name in enumerate(classes)}


@pytest.mark.parametrize(
    ("image_size", "image_side", "expected"),
    [(None, None, 256), (None, 1000, 256), (None, 200, 192), (None, 30, 96), (320, 30, 320)],
)
def test_input_size_is_at_most_the_image_size(image_size, image_side, expected, checkpoints, tmp_path):
    shutil.copytree(checkpoints["image-classification"], tmp_path, dirs_exist_ok=True)
    sizes = {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}
    transformers.MobileViTImageProcessor(**sizes).save_pretrained(tmp_path)
    initial = create_classifier(TrainArguments(model=str(tmp_path), image_size=image_size), CLASSES, image_side)
    assert (initial.image_size, initial.model.config.image_size) == (expected, expected)
    assert initial.processor.crop_size == {"height": expected, "width": expected}
    assert initial.processor.size["shortest_edge"] == round(expected * 288 / 256)


@pytest.mark.parametrize(("image_size", "expected"), [(None, 96), (256, 256)])
def test_classifier_from_scratch(image_size, expected):
    initial = create_classifier(TrainArguments(model="xxs", image_size=image_size), CLASSES, 1000)
    assert initial.image_size == expected
    assert initial.processor.size["shortest_edge"] == round(expected * 288 / 256)  # as in the paper (section 4.1)
    assert initial.processor.crop_size == {"height": expected, "width": expected}
    assert initial.model.config.hidden_sizes == [64, 80, 96]
    assert initial.processor.do_flip_channel_order is False


def test_weights_of_another_size_raise(initial_checkpoint, tmp_path):
    folder = shutil.copytree(initial_checkpoint, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["hidden_sizes"], config["neck_hidden_sizes"][-2:] = [8, 12, 20], [20, 24]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"other: .* weights are missing or have other shapes, such as mobilevit\."):
        create_classifier(TrainArguments(model=str(folder)), CLASSES, None)


def test_image_processor_without_crop_size_raises(initial_checkpoint, tmp_path):
    folder = shutil.copytree(initial_checkpoint, tmp_path / "other")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"ViTImageProcessor.* without a crop_size, expected MobileViTImageProcessor"):
        create_classifier(TrainArguments(model=str(folder)), CLASSES, None)


# --- both ------------------------------------------------------------------------------------------------------------


def test_dropout_probability_is_set(checkpoints, detector_dir):
    for create in (create_classifier, create_detector):
        source = checkpoints["image-classification"] if create is create_classifier else detector_dir
        initial = create(TrainArguments(model=str(source), hidden_dropout_prob=0.35), CLASSES, None)
        config = getattr(initial.model.config, "backbone_config", initial.model.config)
        assert config.hidden_dropout_prob == 0.35
        layers = [
            module.p
            for name, module in initial.model.named_modules()
            if "transformer" in name and hasattr(module, "p")
        ]
        assert 0.35 in layers


def test_damaged_checkpoint_raises(classifier_dir):
    arguments = TrainArguments(model=str(classifier_dir))
    weights = classifier_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for load in (
        lambda: check_initial_checkpoint(str(classifier_dir), {"mobilevit"}),
        lambda: create_classifier(arguments, CLASSES, None),
        lambda: create_detector(arguments, CLASSES, None),
    ):
        with pytest.raises(ValueError, match=rf"^{classifier_dir}: model\.safetensors can't be read \("):
            load()


@pytest.mark.parametrize(
    ("create", "task"), [(create_classifier, "detector"), (create_classifier, "vit"), (create_detector, "vit")]
)
def test_other_model_types_raise(create, task, detector_dir, tmp_path):
    source = detector_dir
    if task == "vit":
        source = tmp_path
        fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        transformers.ViTForImageClassification(transformers.ViTConfig(**fields)).save_pretrained(source)
    with pytest.raises(ValueError, match=r"^model: got .* of type .*, expected mobilevit .*Pass another") as error:
        create(TrainArguments(model=str(source)), CLASSES, None)
    assert str(source) in str(error.value)
    with pytest.raises(ValueError, match="There is no directory"):
        create(TrainArguments(model="no such/model at all"), CLASSES, None)


# --- detector --------------------------------------------------------------------------------------------------------


def test_detector_from_classifier(checkpoints):
    source = checkpoints["image-classification"]
    initial = create_detector(TrainArguments(model=str(source), image_size=96), CLASSES, None)
    before = transformers.MobileViTForImageClassification.from_pretrained(source).state_dict()
    backbone = {n: v for n, v in initial.model.state_dict().items() if n.startswith("backbone.")}
    assert len(backbone) > 200
    assert all(value.equal(before["mobilevit." + name.partition(".")[2]]) for name, value in backbone.items())
    assert [initial.model.config.id2label[i] for i in range(4)] == CLASSES
    assert (initial.image_size, initial.model.config.image_size) == (96, 96)
    assert initial.processor.size == {"height": 96, "width": 96}
    assert initial.processor.do_flip_channel_order is True  # as the classifier's


def test_detector_from_scratch():
    initial = create_detector(TrainArguments(model="xxs"), CLASSES, None)
    assert initial.image_size == 320
    assert initial.model.config.backbone_config.hidden_sizes == [64, 80, 96]
    assert initial.processor.size == {"height": 320, "width": 320}
    assert initial.processor.do_flip_channel_order is False


@pytest.mark.parametrize("classes", [CLASSES, ["a", "b", "c", "d"], ["a"]])
def test_detector_keeps_anchors(classes, detector_dir, tmp_path):
    model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(detector_dir)
    model.config.anchor_scales = [0.11, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0]
    model.config.recommended_threshold = 0.3
    model.save_pretrained(tmp_path)
    transformers.AutoImageProcessor.from_pretrained(detector_dir).save_pretrained(tmp_path)
    initial = create_detector(TrainArguments(model=str(tmp_path), image_size=96), classes, None)
    assert initial.model.config.anchor_scales == model.config.anchor_scales
    assert initial.model.config.recommended_threshold is None
    assert (initial.image_size, initial.processor.size) == (96, {"height": 96, "width": 96})
    assert any("anchors are kept" in note for note in initial.notes)
    before, after = model.state_dict(), initial.model.state_dict()
    changed = {n for n, value in after.items() if value.shape != before[n].shape or not value.equal(before[n])}
    if classes == CLASSES:
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


def anchor_recall(boxes, scales, ratios, strides, size):
    """Return the fraction of boxes (x1, y1, x2, y2) in 0..1 with an IoU of at least 0.5 with an anchor, by a loop."""
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


def test_fitted_anchors_have_higher_recall():
    rng = np.random.default_rng(0)
    boxes = []  # 5 to 10 pixels wide and about 50 high, in images of 100x80
    for _ in range(40):
        x, y, w, h = rng.uniform(0, 90), rng.uniform(0, 25), rng.uniform(5, 10), rng.uniform(48, 54)
        boxes.append([x, y, x + w, y + h])
    images = [Image.new("RGB", (100, 80)) for _ in range(10)]
    samples = [
        Sample(f"{i}", image, objects=Objects.from_lists(boxes[i::10], [0] * 4)) for i, image in enumerate(images)
    ]
    automatic = create_detector(TrainArguments(model="xxs"), CLASSES, samples)
    paper = create_detector(TrainArguments(model="xxs", anchors="paper"), CLASSES, samples)
    assert paper.notes == ()
    assert paper.model.config.anchor_scales == pytest.approx(torch.linspace(0.1, 1.05, 7).tolist())
    note = next(note for note in automatic.notes if "recall" in note)
    recalls = [float(recall) for recall in re.findall(r"([\d.]+)%", note)]
    boxes = [[x1 / 100, y1 / 80, x2 / 100, y2 / 80] for x1, y1, x2, y2 in boxes]
    expected = [
        100 * anchor_recall(boxes, config.anchor_scales, config.anchor_ratios, config.feature_strides, 320)
        for config in (paper.model.config, automatic.model.config)
    ]
    assert recalls == pytest.approx(expected, abs=0.06)
    assert recalls[0] < 90 < recalls[1]


# --- segmentation model ----------------------------------------------------------------------------------------------


def test_segmenter_from_classifier(checkpoints):
    source = checkpoints["image-classification"]
    initial = create_segmenter(TrainArguments(model=str(source), image_size=96), CLASSES, None)
    before = transformers.MobileViTForImageClassification.from_pretrained(source).state_dict()
    after = initial.model.state_dict()
    encoder = {name: value for name, value in after.items() if name.startswith("mobilevit.")}
    assert len(encoder) > 200
    assert all(value.equal(before[name]) for name, value in encoder.items())
    assert initial.model.config.output_stride == 16
    assert (initial.image_size, initial.model.config.image_size) == (96, 96)
    assert [initial.model.config.id2label[i] for i in range(4)] == CLASSES


@pytest.mark.parametrize("task", ["image-classification", "image-segmentation", "image-feature-extraction"])
def test_segmenter_image_processor_shows_the_whole_image(task, checkpoints):
    initial = create_segmenter(TrainArguments(model=str(checkpoints[task]), image_size=64), CLASSES, None)
    image = Image.new("RGB", (200, 100), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 20, 100))
    pixels = initial.processor(image, return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 64, 64)
    blue = 0 if initial.processor.do_flip_channel_order else 2
    assert pixels[blue, :, 1].min() > 0.9
    assert pixels[blue, :, -1].max() < 0.1
    assert hasattr(initial.processor, "post_process_semantic_segmentation")
    assert initial.processor.do_flip_channel_order is True  # as the source's


@pytest.mark.parametrize("classes", [CLASSES, ["a", "b", "c", "d"], ["a", "b"]])
def test_segmenter_keeps_head_for_same_classes(classes, checkpoints):
    source = checkpoints["image-segmentation"]
    initial = create_segmenter(TrainArguments(model=str(source)), classes, None)
    before = transformers.MobileViTForSemanticSegmentation.from_pretrained(source).state_dict()
    after = initial.model.state_dict()
    changed = {n for n, value in after.items() if value.shape != before[n].shape or not value.equal(before[n])}
    head = {f"segmentation_head.classifier.convolution.{name}" for name in ("weight", "bias")}
    assert changed == (set() if classes == CLASSES else head)
    assert initial.image_size == 64
    if classes != CLASSES:
        assert 0.005 < after["segmentation_head.classifier.convolution.weight"].std() < 0.05


@pytest.mark.parametrize(("stride", "expected"), [(None, 16), (8, 8)])
def test_segmenter_from_scratch(stride, expected):
    initial = create_segmenter(TrainArguments(model="xxs", output_stride=stride), CLASSES, 1000)
    assert initial.model.config.output_stride == expected
    assert initial.model.config.hidden_sizes == [64, 80, 96]
    assert initial.processor.size == {"height": initial.image_size, "width": initial.image_size}
    assert initial.processor.do_flip_channel_order is False


def test_segmenter_keeps_normalization_of_the_source(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["image-feature-extraction"], tmp_path / "source")
    fields = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_normalize": True}
    transformers.BitImageProcessor(size={"shortest_edge": 64}, **fields).save_pretrained(folder)
    initial = create_segmenter(TrainArguments(model=str(folder), image_size=64), CLASSES, None)
    pixels = initial.processor(Image.new("RGB", (64, 64), (255, 0, 0)), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([0.9 / 0.4, -0.2 / 0.5, -0.3 / 0.6]))
    assert hasattr(initial.processor, "post_process_semantic_segmentation")
