"""Converted SSDLite detectors compute what the source computes, or an error is raised."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from formula import DATA, formula_image, formula_state_dict, official_shapes
from safetensors.torch import load_file
from torchvision.ops import nms
from torchvision.transforms import v2

from mobilevit_hf import (
    MobileViTSSDLiteConfig,
    MobileViTSSDLiteForObjectDetection,
    MobileViTSSDLiteImageProcessor,
    convert_checkpoint,
)
from mobilevit_hf.convert.rules import translate

GOLDEN = np.load(DATA / "formula_golden.npz")


@pytest.fixture(scope="session")
def official_weights():
    """State dict of an official XXS detector with 4 classes."""
    return formula_state_dict(official_shapes("detection", 1 + 4))


@pytest.fixture(scope="session")
def official_detector(official_weights, tmp_path_factory):
    """File of an official XXS detector with 4 classes."""
    file = tmp_path_factory.mktemp("official") / "det.pt"
    torch.save(official_weights, file)
    return file


@pytest.fixture(scope="session")
def official_coco_detector(tmp_path_factory):
    """File of an official XXS detector with COCO's 80 classes."""
    file = tmp_path_factory.mktemp("official") / "coco.pt"
    torch.save(formula_state_dict(official_shapes("detection", 1 + 80)), file)
    return file


def forward(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels)


def load_model(folder):
    return MobileViTSSDLiteForObjectDetection.from_pretrained(folder)


def load_config(folder):
    return transformers.AutoConfig.from_pretrained(folder)


def assert_official_detections(detections, labels, scores, boxes):
    """Compare with outputs of the official code: labels with background, boxes not clipped; ties in any order."""
    assert len(detections["labels"]) == len(labels) > 10
    columns = (detections[key].tolist() for key in ("labels", "scores", "boxes"))
    remaining = list(zip(*columns, strict=True))
    for label, score, box in zip(labels - 1, scores.tolist(), boxes.clip(0, 1), strict=True):
        matches = [
            row
            for row in remaining
            if row[0] == label and abs(row[1] - score) < 5e-4 and np.abs(np.array(row[2]) - box).max() < 1e-3
        ]
        assert matches, (label, score, box)
        remaining.remove(matches[0])


# --- official --------------------------------------------------------------------------------------------------------


def test_official_detector_keeps_outputs(official_detector, output_dir):
    report = convert_checkpoint(official_detector, output_dir)
    assert (report.origin, report.task, report.variant) == ("official", "object-detection", "xxs")
    assert (report.num_labels, report.ignored, report.output_dir) == (4, (), output_dir)
    model, processor = load_model(output_dir), transformers.AutoImageProcessor.from_pretrained(output_dir)
    for size in ((320, 320), (256, 384)):
        golden = {key: GOLDEN["det_{}_{}x{}".format(key, *size)] for key in ("class_logits", "scores", "boxes")}
        outputs = forward(model, formula_image(*size))
        np.testing.assert_allclose(outputs.logits, golden["class_logits"], atol=5e-4)
        (detections,) = processor.post_process_object_detection(outputs)
        labels = GOLDEN["det_labels_{}x{}".format(*size)]
        assert_official_detections(detections, labels, golden["scores"], golden["boxes"])


def test_reference_coco_detector_keeps_outputs(reference_data, output_dir):
    inputs, expected = (np.load(reference_data / f"reference/{name}.npz") for name in ("det_inputs", "det_xxs_io"))
    report = convert_checkpoint(reference_data / "reference/det_xxs.pt", output_dir, labels="coco")
    assert (report.variant, report.num_labels) == ("xxs", 80)
    model, processor = load_model(output_dir), transformers.AutoImageProcessor.from_pretrained(output_dir)
    for size in inputs.files:
        outputs = forward(model, torch.from_numpy(inputs[size]))
        np.testing.assert_allclose(outputs.logits, expected[f"class_logits_{size}"], atol=5e-4)
        for b, detections in enumerate(processor.post_process_object_detection(outputs, threshold=0.25)):
            parts = (expected[f"detconf0.25_{b}_{key}_{size}"] for key in ("labels", "scores", "boxes"))
            assert_official_detections(detections, *parts)


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
def test_official_weights_of_every_variant(variant, official_weights, tmp_path, output_dir):
    """All variants have the same official names; the checkpoint is made of the model's tensors."""
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant(variant, num_labels=4))
    state_dict = formula_state_dict({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    pieces = {source: [] for source in official_weights}
    for name, source in translate(official_weights, "official").sources.items():
        pieces[source].append(state_dict[name.replace("mobilevit.", "backbone.")])
    torch.save({s: torch.cat(p) if len(p) > 1 else p[0] for s, p in pieces.items()}, tmp_path / "det.pt")
    report = convert_checkpoint(tmp_path / "det.pt", output_dir)
    assert (report.task, report.variant, report.num_labels) == ("object-detection", variant, 4)
    written = load_file(output_dir / "model.safetensors")
    assert written.keys() == state_dict.keys()
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in written.items())


def test_classifier_of_encoder_is_ignored(official_weights, tmp_path, output_dir):
    pretraining_only = {
        "encoder.classifier.fc.weight": torch.zeros(1000, 320),
        "encoder.classifier.fc.bias": torch.zeros(1000),
        "encoder.conv_1x1_exp.block.conv.weight": torch.zeros(320, 80, 1, 1),
    }
    torch.save(official_weights | pretraining_only, tmp_path / "det.pt")
    assert set(convert_checkpoint(tmp_path / "det.pt", output_dir).ignored) == set(pretraining_only)


# --- image processor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "order", "assumed"), [(None, "bgr", True), ("bgr", "bgr", False), ("rgb", "rgb", False)]
)
@pytest.mark.parametrize("image_size", [None, 256])
def test_image_processor_matches_torchvision_transform(
    official_detector, image, output_dir, argument, order, assumed, image_size
):
    report = convert_checkpoint(official_detector, output_dir, channel_order=argument, image_size=image_size)
    assert (report.channel_order, report.channel_order_assumed) == (order, assumed)
    assert any("BGR" in note and "--channel-order rgb" in note for note in report.notes) == assumed
    side = image_size or 320
    squash = v2.Compose([v2.Resize((side, side)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    expected = squash(image)
    processor = transformers.AutoImageProcessor.from_pretrained(output_dir)
    pixels = processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, expected.flip(0) if order == "bgr" else expected, atol=1.5 / 255, rtol=0)
    assert load_config(output_dir).image_size == side


def test_pipeline_matches_forward_and_nms(official_detector, image, output_dir):
    convert_checkpoint(official_detector, output_dir, labels=["ant", "bee", "cat", "dog"])
    outputs = transformers.pipeline("object-detection", model=str(output_dir))(image, threshold=0.9)
    pixels = v2.functional.pil_to_tensor(image.resize((320, 320), 2)).flip(0)[None] / 255
    raw = forward(load_model(output_dir), pixels)
    scores = raw.logits[0].softmax(dim=-1)[:, 1:]
    center, size = raw.pred_boxes[0].split(2, dim=-1)
    boxes = torch.cat([center - size / 2, center + size / 2], dim=-1)
    expected = []
    for label, name in enumerate(["ant", "bee", "cat", "dog"]):
        kept = scores[:, label].topk(400).indices
        kept = kept[nms(boxes[kept], scores[kept, label], 0.5)]
        for anchor in kept[scores[kept, label] > 0.9]:
            box = boxes[anchor].clamp(0, 1) * torch.tensor([*image.size, *image.size])
            expected.append((float(scores[anchor, label]), name, box))
    expected = sorted(expected, key=lambda detection: -detection[0])[:200]
    assert len(outputs) == len(expected) > 10
    for output, (score, name, box) in zip(outputs, expected, strict=True):
        assert output["label"] == name
        assert output["score"] == pytest.approx(score, abs=1e-5)
        assert list(output["box"].values()) == pytest.approx(box.tolist(), abs=1.01)


# --- output directory ------------------------------------------------------------------------------------------------


def test_output_contains_model_code(official_detector, output_dir):
    """The code makes the model loadable where this package is not installed."""
    convert_checkpoint(official_detector, output_dir)
    code = {f"{kind}_mobilevit_ssdlite.py" for kind in ("configuration", "image_processing", "modeling", "pipeline")}
    code |= {f"{kind}_mobilevit.py" for kind in ("configuration", "layers", "modeling", "variants")}
    code |= {f"{part}_ssdlite.py" for part in ("anchors", "boxes", "loss", "matcher")}
    files = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in output_dir.iterdir()} == files | code | {"finite.py"}
    assert (
        type(transformers.AutoModelForObjectDetection.from_pretrained(output_dir))
        is MobileViTSSDLiteForObjectDetection
    )
    assert type(transformers.AutoImageProcessor.from_pretrained(output_dir)) is MobileViTSSDLiteImageProcessor
    _, loading = MobileViTSSDLiteForObjectDetection.from_pretrained(output_dir, output_loading_info=True)
    assert not any(loading.values())


def test_convert_command(official_coco_detector, output_dir, mobilevit):
    code, printed, notes = mobilevit("convert", official_coco_detector, output_dir, "--labels", "coco")
    assert (code, printed) == (
        0,
        f"MobileViT-XXS from official: object-detection, 80 labels, BGR → {output_dir}\n",
    )
    assert [note.partition(" assumed")[0] for note in notes.splitlines()] == ["note: Channel order", "note: Anchors"]
    names = load_config(output_dir).id2label
    assert len(names) == 80
    # COCO's category ids 1, 13, 27 and 90; ids without a class are skipped
    assert [names[i] for i in (0, 11, 24, 79)] == ["person", "stop sign", "backpack", "toothbrush"]
    code, _, notes = mobilevit("convert", official_coco_detector, output_dir.with_name("unnamed"))
    assert code == 0
    assert "set to LABEL_0 to LABEL_79. Pass --labels FILE or --labels coco." in notes


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_of_detector(official_detector, tmp_path, output_dir):
    report = convert_checkpoint(official_detector, output_dir)
    assert any(note.endswith("LABEL_0 to LABEL_3. Pass --labels FILE.") for note in report.notes)
    assert load_config(output_dir).id2label == {i: f"LABEL_{i}" for i in range(4)}
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    convert_checkpoint(official_detector, output_dir.with_name("named"), labels=tmp_path / "labels.txt")
    config = load_config(output_dir.with_name("named"))
    assert config.id2label == dict(enumerate(["ant", "bee", "cat", "dog"]))
    assert config.label2id == {"ant": 0, "bee": 1, "cat": 2, "dog": 3}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["background", "a", "b", "c", "d"], r"got 5 names, expected 4.*Omit the background"),
        (["a", "b", "c"], r"got 3 names, expected 4.*used in training\.$"),
        ("coco", r"got 80 names, expected 4"),
    ],
)
def test_wrong_number_of_labels_raises(official_detector, output_dir, labels, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(official_detector, output_dir, labels=labels)
    assert not output_dir.exists()


# --- saved detectors -------------------------------------------------------------------------------------------------


def read_files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_conversion_of_detector_is_idempotent(official_detector, output_dir):
    convert_checkpoint(official_detector, output_dir, channel_order="rgb", image_size=256)
    report = convert_checkpoint(output_dir, output_dir.with_name("again"))
    assert (report.origin, report.task, report.variant) == ("transformers", "object-detection", "xxs")
    assert (report.channel_order, report.channel_order_assumed, report.notes) == ("rgb", False, ())
    assert read_files(output_dir) == read_files(output_dir.with_name("again"))


def test_arguments_override_saved_detector(detector_dir, output_dir):
    report = convert_checkpoint(
        detector_dir, output_dir, labels=["w", "x", "y", "z"], channel_order="rgb", image_size=96
    )
    assert (report.variant, report.num_labels, report.channel_order) == (None, 4, "rgb")
    config, processor = load_config(output_dir), transformers.AutoImageProcessor.from_pretrained(output_dir)
    assert config.id2label == dict(enumerate("wxyz"))
    assert (config.image_size, config.backbone_config.image_size) == (96, 96)
    assert (dict(processor.size), processor.do_flip_channel_order) == ({"height": 96, "width": 96}, False)
    assert read_files(output_dir)["model.safetensors"] == read_files(detector_dir)["model.safetensors"]
    with pytest.raises(ValueError, match=r"got 5 names, expected 4.*Omit the background"):
        convert_checkpoint(detector_dir, output_dir.with_name("b"), labels=list("vwxyz"))


def test_saved_detector_keeps_anchors(detector_dir, tmp_path, output_dir):
    backbone_config = load_config(detector_dir).backbone_config
    config = MobileViTSSDLiteConfig(
        backbone_config=backbone_config,
        id2label={0: "a", 1: "b"},
        feature_strides=[8, 16, 32, 64],
        level_channels=[8, 12, 16, 24],
        anchor_scales=[0.05, 0.1, 0.2, 0.4, 0.8],
        anchor_ratios=[[2, 3], [2], [1.5], []],
    )
    model = MobileViTSSDLiteForObjectDetection(config).eval()
    model.save_pretrained(tmp_path / "source")
    report = convert_checkpoint(tmp_path / "source", output_dir)
    assert report.num_labels == 2
    assert report.channel_order_assumed
    pixels = formula_image(64, 64)
    expected, outputs = forward(model, pixels), forward(load_model(output_dir), pixels)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


def test_detector_weights_without_configuration(official_detector, tmp_path, output_dir):
    convert_checkpoint(official_detector, output_dir)
    shutil.copy(output_dir / "model.safetensors", tmp_path / "weights.safetensors")
    report = convert_checkpoint(tmp_path / "weights.safetensors", tmp_path / "again")
    assert (report.origin, report.variant, report.num_labels) == ("transformers", "xxs", 4)
    assert any("Anchors assumed to be those of the paper" in note for note in report.notes)
    assert read_files(tmp_path / "again") == read_files(output_dir)


def test_code_next_to_saved_detector_is_neither_executed_nor_copied(detector_dir, tmp_path, output_dir):
    folder = tmp_path / "source"
    shutil.copytree(detector_dir, folder)
    code = f"import os\nos.mkdir({str(tmp_path / 'created')!r})\n"
    for file in (*folder.glob("*.py"), folder / "custom.py"):
        file.write_text(code)

    def add_code_pointers(file, *parts):
        content = json.loads((folder / file).read_text())
        for part in (content, *(content[name] for name in parts)):
            part["auto_map"] = dict.fromkeys(("AutoConfig", "AutoImageProcessor", "AutoModel"), "custom.Custom")
            part["custom_pipelines"] = {"object-detection": {"impl": "custom.Custom"}}
        (folder / file).write_text(json.dumps(content))

    add_code_pointers("config.json", "backbone_config")
    add_code_pointers("preprocessor_config.json")
    convert_checkpoint(folder, output_dir)
    assert read_files(output_dir) == read_files(detector_dir)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"model_type": "mobilevit"}', "got model_type 'mobilevit', expected 'mobilevit_ssdlite'"),
        (
            "config.json",
            '{"model_type": "mobilevit_ssdlite", "backbone_config": 5}',
            "config.json next to the weights: invalid",
        ),
        ("config.json", '{"model_type": "mobilevit_ssdlite", "level_channels": [1]}', "level_channels: got"),
        ("config.json", '{"model_type": "mobilevit_ssdlite"}', r"got shape .* expected .* for backbone\."),
        (
            "preprocessor_config.json",
            '{"image_processor_type": "MobileViTImageProcessor"}',
            "got a MobileViTImageProcessor, expected MobileViTSSDLiteImageProcessor for the detector",
        ),
        (
            "preprocessor_config.json",
            '{"image_processor_type": "MobileViTSSDLiteImageProcessor", "score_threshold": 7}',
            r"preprocessor_config\.json: .*score_threshold: got 7",
        ),
    ],
)
def test_invalid_saved_configurations_raise(detector_dir, tmp_path, output_dir, file, content, message):
    shutil.copytree(detector_dir, tmp_path / "source")
    (tmp_path / "source" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "source", output_dir)
    assert not output_dir.exists()


# --- errors ----------------------------------------------------------------------------------------------------------

PREDICTOR = "ssd_heads.0.loc_cls_layer.pw_conv.block.conv"


@pytest.mark.parametrize(
    ("modify", "message"),
    [
        (
            lambda w: w.pop("extra_layers.os_-1.1.block.conv.weight"),
            r"lacks 1 of .*: head\.extra_layers\.pooled\.pointwise\.convolution\.weight",
        ),
        (
            lambda w: w.pop("encoder.layer_5.1.conv_proj.block.norm.running_var"),
            r"lacks 1 of .*: backbone\.encoder\.layer\.4\.conv_projection\.normalization\.running_var",
        ),
        (
            lambda w: w.pop(f"{PREDICTOR}.weight"),
            r"^head\.level_heads\.stride_16\.predictor\.convolution\.weight: missing or invalid",
        ),
        (
            lambda w: w.update({"ssd_heads.6.loc_cls_layer.block.conv.bias": torch.ones(36)}),
            r"1 of the .* are not part of a MobileViT: ssd_heads\.6\.loc_cls_layer\.block\.conv\.bias",
        ),
        (
            lambda w: w.update(
                {"extra_layers.os_512.pw_conv.block.conv.weight": w.pop("ssd_heads.1" + PREDICTOR[11:] + ".bias")}
            ),
            r"1 of the .* are not part of a MobileViT: extra_layers\.os_512",
        ),
        (
            lambda w: w.update({"ssd_heads.3.loc_cls_layer.pw_conv.block.conv.bias": torch.ones(60)}),
            r"ssd_heads\.3\..*bias: got shape \(60,\), expected \(54,\) for head\.level_heads\.stride_128\.",
        ),
        (
            lambda w: w.update({f"{PREDICTOR}.weight": torch.ones(55, 512, 1, 1)}),
            r"stride_16\.predictor\.convolution: got 55 outputs, expected .* the paper's 6 anchors.*config\.json",
        ),
        (lambda w: w.update({f"{PREDICTOR}.weight": torch.ones(30, 512, 1, 1)}), "got 30 outputs, expected"),
        (lambda w: w.update({f"{PREDICTOR}.weight": torch.tensor(1.0)}), "missing or invalid"),
        (
            lambda w: w.update({"head.level_heads.pooled.predictor.convolution.bias": torch.ones(36)}),
            r"got a second tensor for head\.level_heads\.pooled\.predictor\.convolution\.bias",
        ),
    ],
)
def test_state_dicts_that_do_not_match_raise(official_weights, tmp_path, output_dir, modify, message):
    weights = dict(official_weights)
    modify(weights)
    torch.save(weights, tmp_path / "modified.pt")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "modified.pt", output_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["modified.pt"]


def test_missing_or_additional_head_parameters_raise(official_weights, tmp_path, output_dir):
    head = [name for name in official_weights if not name.startswith("encoder.")]
    for name in head[::9]:
        for modify in (lambda w, name=name: w.pop(name), lambda w, name=name: w.update({name + "_2": w[name]})):
            weights = dict(official_weights)
            modify(weights)
            torch.save(weights, tmp_path / "modified.pt")
            with pytest.raises(ValueError, match=r"lacks 1 of|missing or invalid|1 of .* are not part"):
                convert_checkpoint(tmp_path / "modified.pt", output_dir)


def test_head_without_backbone_raises(official_weights, tmp_path, output_dir):
    torch.save({k: v for k, v in official_weights.items() if not k.startswith("encoder.")}, tmp_path / "head.pt")
    with pytest.raises(ValueError, match=r"No MobileViT weights found: got names such as extra_layers"):
        convert_checkpoint(tmp_path / "head.pt", output_dir)
