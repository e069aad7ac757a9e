"""Official SSDLite checkpoints, and detectors saved before, become directories that detect, or a clear error."""

import json
import shutil
import sys

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
    cli,
    convert_checkpoint,
)
from mobilevit_hf.convert.rules import translate

GOLDEN = np.load(DATA / "formula_golden.npz")
STRIDES = ["stride_16", "stride_32", "stride_64", "stride_128", "stride_256", "pooled"]


@pytest.fixture(scope="session")
def official_weights():
    """Of an official XXS detector of 4 classes."""
    return formula_state_dict(official_shapes("detection", 1 + 4))


@pytest.fixture(scope="session")
def official_detector(official_weights, tmp_path_factory):
    file = tmp_path_factory.mktemp("official") / "det.pt"
    torch.save(official_weights, file)
    return file


@pytest.fixture(scope="session")
def official_coco_detector(tmp_path_factory):
    file = tmp_path_factory.mktemp("official") / "coco.pt"
    torch.save(formula_state_dict(official_shapes("detection", 1 + 80)), file)
    return file


def evaluate(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels)


def load(folder):
    return MobileViTSSDLiteForObjectDetection.from_pretrained(folder)


def config_of(folder):
    return transformers.AutoConfig.from_pretrained(folder)


def assert_official_detections(found, labels, scores, boxes):
    """That detections are the official code's, which counts the background and does not clip; ties in any order."""
    expected = zip(labels - 1, scores.tolist(), boxes.clip(0, 1), strict=True)
    assert len(found["labels"]) == len(labels) > 10
    left = [(*parts,) for parts in zip(*(found[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)]
    for label, score, box in expected:
        near = [i for i, other in enumerate(left) if other[0] == label and abs(other[1] - score) < 5e-4]
        same = [i for i in near if np.abs(np.array(left[i][2]) - box).max() < 1e-3]
        assert same, (label, score, box)
        left.pop(same[0])


# --- official --------------------------------------------------------------------------------------------------------


def test_gives_the_official_outputs(official_detector, out):
    report = convert_checkpoint(official_detector, out)
    assert (report.origin, report.task, report.variant) == ("official", "object-detection", "xxs")
    assert (report.num_labels, report.ignored, report.output_dir) == (4, (), out)
    model, processor = load(out), transformers.AutoImageProcessor.from_pretrained(out)
    for size in ((320, 320), (256, 384)):
        golden = {key: GOLDEN["det_{}_{}x{}".format(key, *size)] for key in ("class_logits", "scores", "boxes")}
        outputs = evaluate(model, formula_image(*size))
        np.testing.assert_allclose(outputs.logits, golden["class_logits"], atol=5e-4)
        (found,) = processor.post_process_object_detection(outputs)
        labels = GOLDEN["det_labels_{}x{}".format(*size)]
        assert_official_detections(found, labels, golden["scores"], golden["boxes"])


def test_official_reference_detector(reference_data, out):
    """With COCO's 80 classes: logits and detections of images of both sizes are the official code's."""
    inputs, expected = (np.load(reference_data / f"reference/{name}.npz") for name in ("det_inputs", "det_xxs_io"))
    report = convert_checkpoint(reference_data / "reference/det_xxs.pt", out, labels="coco")
    assert (report.variant, report.num_labels) == ("xxs", 80)
    model, processor = load(out), transformers.AutoImageProcessor.from_pretrained(out)
    for size in inputs.files:
        outputs = evaluate(model, torch.from_numpy(inputs[size]))
        np.testing.assert_allclose(outputs.logits, expected[f"class_logits_{size}"], atol=5e-4)
        for b, found in enumerate(processor.post_process_object_detection(outputs, threshold=0.25)):
            parts = (expected[f"detconf0.25_{b}_{key}_{size}"] for key in ("labels", "scores", "boxes"))
            assert_official_detections(found, *parts)


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
def test_every_variant(variant, official_weights, tmp_path, out):
    """The official names are the same in all: a checkpoint made of a model's own tensors gives the model back."""
    model = MobileViTSSDLiteForObjectDetection(MobileViTSSDLiteConfig.from_variant(variant, num_labels=4))
    own = formula_state_dict({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    pieces = {source: [] for source in official_weights}
    for name, source in translate(official_weights, "official").sources.items():
        pieces[source].append(own[name.replace("mobilevit.", "backbone.")])
    torch.save({s: torch.cat(p) if len(p) > 1 else p[0] for s, p in pieces.items()}, tmp_path / "det.pt")
    report = convert_checkpoint(tmp_path / "det.pt", out)
    assert (report.task, report.variant, report.num_labels) == ("object-detection", variant, 4)
    written = load_file(out / "model.safetensors")
    assert written.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in written.items())


def test_names_of_the_head(official_weights):
    """Spelt out, as the state dict's names in both codes are an interface."""
    sources = translate(official_weights, "official").sources
    found = {source.removesuffix(".weight"): name.removesuffix(".weight") for name, source in sources.items()}
    expected = {"extra_layers.os_-1.1.block.conv": "head.extra_layers.pooled.pointwise.convolution"}
    for stride in (64, 128, 256):
        for short, name in (("dw_conv", "depthwise"), ("pw_conv", "pointwise")):
            layer = f"head.extra_layers.stride_{stride}.{name}"
            expected[f"extra_layers.os_{stride}.{short}.block.conv"] = f"{layer}.convolution"
            expected[f"extra_layers.os_{stride}.{short}.block.norm"] = f"{layer}.normalization"
    for i, level in enumerate(STRIDES):
        official, head = f"ssd_heads.{i}", f"head.level_heads.{level}"
        parts = [("proj_layer", "projection")] if i < 2 else []
        parts += [("loc_cls_layer.dw_conv", "depthwise")] if i < 5 else []
        for short, name in parts:
            expected[f"{official}.{short}.block.conv"] = f"{head}.{name}.convolution"
            expected[f"{official}.{short}.block.norm"] = f"{head}.{name}.normalization"
        predictor = "loc_cls_layer.pw_conv" if i < 5 else "loc_cls_layer"
        expected[f"{official}.{predictor}.block.conv"] = f"{head}.predictor.convolution"
    assert expected.items() <= found.items()
    weights = {source for source in official_weights if source.endswith(".weight")}
    assert {source + ".weight" for source in expected} == {w for w in weights if not w.startswith("encoder.")}


def test_what_the_encoder_had_before_is_ignored_and_named(official_weights, tmp_path, out):
    leftovers = {
        "encoder.classifier.fc.weight": torch.zeros(1000, 320),
        "encoder.classifier.fc.bias": torch.zeros(1000),
        "encoder.conv_1x1_exp.block.conv.weight": torch.zeros(320, 80, 1, 1),
    }
    torch.save(official_weights | leftovers, tmp_path / "det.pt")
    assert set(convert_checkpoint(tmp_path / "det.pt", out).ignored) == set(leftovers)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model_state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 3},
        lambda weights: {"model": dict.fromkeys(weights, torch.zeros(1)), "ema_state_dict": weights},
    ],
    ids=["ddp", "ema"],
)
def test_wrapped_checkpoints(wrap, official_weights, tmp_path, out):
    torch.save(wrap(official_weights), tmp_path / "det.pt")
    convert_checkpoint(tmp_path / "det.pt", out)
    stem = load_file(out / "model.safetensors")["backbone.conv_stem.convolution.weight"]
    assert torch.equal(stem, official_weights["encoder.conv_1.block.conv.weight"])


# --- preprocessor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "order", "assumed"), [(None, "bgr", True), ("bgr", "bgr", False), ("rgb", "rgb", False)]
)
@pytest.mark.parametrize("image_size", [None, 256])
def test_preprocessing(official_detector, image, out, choice, order, assumed, image_size):
    report = convert_checkpoint(official_detector, out, channel_order=choice, image_size=image_size)
    assert (report.channel_order, report.channel_order_assumed) == (order, assumed)
    assert any("BGR" in note and "--channel-order rgb" in note for note in report.notes) == assumed
    side = image_size or 320
    squash = v2.Compose([v2.Resize((side, side)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    expected = squash(image)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    pixels = processor(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, expected.flip(0) if order == "bgr" else expected, atol=1.5 / 255, rtol=0)
    assert config_of(out).image_size == side


def test_pipeline_finds_what_a_loop_finds(official_detector, image, out):
    """transformers' pipeline on the directory, against the model's outputs and torchvision's suppression by hand."""
    convert_checkpoint(official_detector, out, labels=["ant", "bee", "cat", "dog"])
    answers = transformers.pipeline("object-detection", model=str(out))(image, threshold=0.9)
    pixels = v2.functional.pil_to_tensor(image.resize((320, 320), 2)).flip(0)[None] / 255
    outputs = evaluate(load(out), pixels)
    scores = outputs.logits[0].softmax(dim=-1)[:, 1:]
    center, size = outputs.pred_boxes[0].split(2, dim=-1)
    boxes = torch.cat([center - size / 2, center + size / 2], dim=-1)
    expected = []
    for label, name in enumerate(["ant", "bee", "cat", "dog"]):
        kept = scores[:, label].topk(400).indices
        kept = kept[nms(boxes[kept], scores[kept, label], 0.5)]
        for anchor in kept[scores[kept, label] > 0.9]:
            box = boxes[anchor].clamp(0, 1) * torch.tensor([*image.size, *image.size])
            expected.append((float(scores[anchor, label]), name, box))
    expected = sorted(expected, key=lambda detection: -detection[0])[:200]
    assert len(answers) == len(expected) > 10
    for answer, (score, name, box) in zip(answers, expected, strict=True):
        assert answer["label"] == name
        assert answer["score"] == pytest.approx(score, abs=1e-5)
        assert list(answer["box"].values()) == pytest.approx(box.tolist(), abs=1.01)


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_directory_is_complete(official_detector, out):
    """With the code of the model, which loads where the package is not installed."""
    convert_checkpoint(official_detector, out)
    code = {f"{kind}_mobilevit_ssdlite.py" for kind in ("configuration", "image_processing", "modeling")}
    code |= {"configuration_mobilevit.py", "layers_mobilevit.py", "modeling_mobilevit.py", "ssdlite.py"}
    files = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in out.iterdir()} == files | code
    assert type(transformers.AutoModelForObjectDetection.from_pretrained(out)) is MobileViTSSDLiteForObjectDetection
    assert type(transformers.AutoImageProcessor.from_pretrained(out)) is MobileViTSSDLiteImageProcessor
    _, loading = MobileViTSSDLiteForObjectDetection.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())


def test_the_directory_appears_whole_or_not_at_all(official_detector, out, monkeypatch):
    def fail(self, folder):
        assert not out.exists()
        raise OSError("disk full")

    monkeypatch.setattr(MobileViTSSDLiteImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(official_detector, out)
    assert list(out.parent.iterdir()) == []


def test_the_command(official_coco_detector, out, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mobilevit", "convert", str(official_coco_detector), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    code, printed, notes = run(out, "--labels", "coco")
    assert (code, printed) == (0, f"MobileViT-XXS from official: object-detection, 80 labels, BGR → {out}\n")
    assert [note.partition(" taken")[0] for note in notes.splitlines()] == ["note: Channel order", "note: Anchors"]
    names = config_of(out).id2label
    assert len(names) == 80
    # in COCO's own numbers 1, 13, 27 and 90: those between that name no class are left out
    assert [names[i] for i in (0, 11, 24, 79)] == ["person", "stop sign", "backpack", "toothbrush"]
    code, _, notes = run(out.with_name("unnamed"))
    assert code == 0
    assert "became LABEL_0 to LABEL_79; pass --labels FILE or --labels coco." in notes


# --- labels ----------------------------------------------------------------------------------------------------------


def test_given_labels(official_detector, tmp_path, out):
    report = convert_checkpoint(official_detector, out)
    assert any(note.endswith("LABEL_0 to LABEL_3; pass --labels FILE.") for note in report.notes)
    assert config_of(out).id2label == {i: f"LABEL_{i}" for i in range(4)}
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    convert_checkpoint(official_detector, out.with_name("named"), labels=tmp_path / "labels.txt")
    config = config_of(out.with_name("named"))
    assert config.id2label == dict(enumerate(["ant", "bee", "cat", "dog"]))
    assert config.label2id == {"ant": 0, "bee": 1, "cat": 2, "dog": 3}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["background", "a", "b", "c", "d"], r"got 5 names, expected 4.*background has no name: leave it out"),
        (["a", "b", "c"], r"got 3 names, expected 4.*trained with\.$"),
        ("coco", r"got 80 names, expected 4"),
    ],
)
def test_wrong_number_of_labels(official_detector, out, labels, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(official_detector, out, labels=labels)
    assert not out.exists()


# --- saved detectors -------------------------------------------------------------------------------------------------


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_converted_detector_converts_to_itself(official_detector, out):
    convert_checkpoint(official_detector, out, channel_order="rgb", image_size=256)
    report = convert_checkpoint(out, out.with_name("again"))
    assert (report.origin, report.task, report.variant) == ("transformers", "object-detection", "xxs")
    assert (report.channel_order, report.channel_order_assumed, report.notes) == ("rgb", False, ())
    assert files_of(out) == files_of(out.with_name("again"))


def test_a_saved_detector_with_other_choices(detector, out):
    report = convert_checkpoint(detector, out, labels=["w", "x", "y", "z"], channel_order="rgb", image_size=96)
    assert (report.variant, report.num_labels, report.channel_order) == (None, 4, "rgb")
    config, processor = config_of(out), transformers.AutoImageProcessor.from_pretrained(out)
    assert config.id2label == dict(enumerate("wxyz"))
    assert (config.image_size, config.backbone_config.image_size) == (96, 96)
    assert (dict(processor.size), processor.do_flip_channel_order) == ({"height": 96, "width": 96}, False)
    assert files_of(out)["model.safetensors"] == files_of(detector)["model.safetensors"]
    with pytest.raises(ValueError, match=r"got 5 names, expected 4.*background has no name"):
        convert_checkpoint(detector, out.with_name("b"), labels=list("vwxyz"))


def test_a_saved_detector_keeps_its_own_anchors(detector, tmp_path, out):
    backbone_config = config_of(detector).backbone_config
    config = MobileViTSSDLiteConfig(
        backbone_config=backbone_config,
        id2label={0: "a", 1: "b"},
        feature_strides=[8, 16, 32, 64],
        level_channels=[8, 12, 16, 24],
        anchor_scales=[0.05, 0.1, 0.2, 0.4, 0.8],
        anchor_ratios=[[2, 3], [2], [1.5], []],
    )
    model = MobileViTSSDLiteForObjectDetection(config).eval()
    model.save_pretrained(tmp_path / "own")
    report = convert_checkpoint(tmp_path / "own", out)
    assert report.num_labels == 2
    assert report.channel_order_assumed  # nothing beside it tells
    pixels = formula_image(64, 64)
    expected, found = evaluate(model, pixels), evaluate(load(out), pixels)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


def test_a_bare_file_of_a_saved_detector(official_detector, tmp_path, out):
    """Without a configuration it is taken for a published one."""
    convert_checkpoint(official_detector, out)
    shutil.copy(out / "model.safetensors", tmp_path / "weights.safetensors")
    report = convert_checkpoint(tmp_path / "weights.safetensors", tmp_path / "again")
    assert (report.origin, report.variant, report.num_labels) == ("transformers", "xxs", 4)
    assert any("Anchors taken as in the paper" in note for note in report.notes)
    assert files_of(tmp_path / "again") == files_of(out)


def test_code_beside_a_saved_detector_never_runs_and_stays_behind(detector, tmp_path, out):
    folder = tmp_path / "own"
    shutil.copytree(detector, folder)
    code = f"import os\nos.mkdir({str(tmp_path / 'made by the checkpoint')!r})\n"
    for file in (*folder.glob("*.py"), folder / "mine.py"):
        file.write_text(code)

    def point(file, *parts):
        content = json.loads((folder / file).read_text())
        for part in (content, *(content[name] for name in parts)):
            part["auto_map"] = dict.fromkeys(("AutoConfig", "AutoImageProcessor", "AutoModel"), "mine.Mine")
            part["custom_pipelines"] = {"object-detection": {"impl": "mine.Mine"}}
        (folder / file).write_text(json.dumps(content))

    point("config.json", "backbone_config")
    point("preprocessor_config.json")
    convert_checkpoint(folder, out)
    assert files_of(out) == files_of(detector)
    assert {path.name for path in tmp_path.iterdir()} == {"own", "out"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"model_type": "mobilevit"}', "got model_type 'mobilevit', expected 'mobilevit_ssdlite'"),
        ("config.json", '{"model_type": "mobilevit_ssdlite", "backbone_config": 5}', "config.json .*can't be used"),
        ("config.json", '{"model_type": "mobilevit_ssdlite", "level_channels": [1]}', "level_channels: got"),
        ("config.json", '{"model_type": "mobilevit_ssdlite"}', r"got shape .* expected .* for backbone\."),
        (
            "preprocessor_config.json",
            '{"image_processor_type": "MobileViTImageProcessor"}',
            "got a MobileViTImageProcessor, expected MobileViTSSDLiteImageProcessor, which the detector needs",
        ),
        (
            "preprocessor_config.json",
            '{"image_processor_type": "MobileViTSSDLiteImageProcessor", "score_threshold": 7}',
            r"preprocessor_config\.json: .*score_threshold: got 7",
        ),
    ],
)
def test_wrong_folders(detector, tmp_path, out, file, content, message):
    shutil.copytree(detector, tmp_path / "own")
    (tmp_path / "own" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "own", out)
    assert not out.exists()


# --- errors ----------------------------------------------------------------------------------------------------------

PREDICTOR = "ssd_heads.0.loc_cls_layer.pw_conv.block.conv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("extra_layers.os_-1.1.block.conv.weight"),
            r"lacks 1 of .*: head\.extra_layers\.pooled\.pointwise\.convolution\.weight",
        ),
        (
            lambda w: w.pop("encoder.layer_5.1.conv_proj.block.norm.running_var"),
            r"lacks 1 of .*: backbone\.encoder\.layer\.4\.conv_projection\.normalization\.running_var",
        ),
        (lambda w: w.pop(f"{PREDICTOR}.weight"), r"no usable head\.level_heads\.stride_16\.predictor"),
        (
            lambda w: w.update({"ssd_heads.6.loc_cls_layer.block.conv.bias": torch.ones(36)}),
            r"1 of the .* have no place in a MobileViT: ssd_heads\.6\.loc_cls_layer\.block\.conv\.bias",
        ),
        (
            lambda w: w.update(
                {"extra_layers.os_512.pw_conv.block.conv.weight": w.pop("ssd_heads.1" + PREDICTOR[11:] + ".bias")}
            ),
            r"1 of the .* have no place in a MobileViT: extra_layers\.os_512",
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
        (lambda w: w.update({f"{PREDICTOR}.weight": torch.tensor(1.0)}), "no usable head"),
        (
            lambda w: w.update({"head.level_heads.pooled.predictor.convolution.bias": torch.ones(36)}),
            r"a second tensor for head\.level_heads\.pooled\.predictor\.convolution\.bias",
        ),
    ],
)
def test_state_dicts_that_do_not_fit(official_weights, tmp_path, out, change, message):
    weights = dict(official_weights)
    change(weights)
    torch.save(weights, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "changed.pt", out)
    assert [path.name for path in tmp_path.iterdir()] == ["changed.pt"]


def test_every_parameter_counts(official_weights, tmp_path, out):
    """Strict in both directions: none of the head's may be left out and none may be added, wherever it is."""
    head = [name for name in official_weights if not name.startswith("encoder.")]
    for name in head[::9]:
        for change in (lambda w, name=name: w.pop(name), lambda w, name=name: w.update({name + "_2": w[name]})):
            weights = dict(official_weights)
            change(weights)
            torch.save(weights, tmp_path / "changed.pt")
            with pytest.raises(ValueError, match=r"lacks 1 of|no usable|1 of .* have no place"):
                convert_checkpoint(tmp_path / "changed.pt", out)


def test_a_head_without_a_backbone(official_weights, tmp_path, out):
    torch.save({k: v for k, v in official_weights.items() if not k.startswith("encoder.")}, tmp_path / "head.pt")
    with pytest.raises(ValueError, match=r"No MobileViT weights found: got names such as extra_layers"):
        convert_checkpoint(tmp_path / "head.pt", out)
