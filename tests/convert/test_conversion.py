"""Converted classifiers, segmentation models and backbones compute what the source computes, or an error is raised."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import timm
import torch
import transformers
from formula import DATA, formula_image, timm_model
from PIL import Image
from safetensors.torch import load_file, save_file
from source_checkpoints import make_photo, stock_model

import mobilevit_hf
from mobilevit_hf.convert.conversion import convert_checkpoint
from mobilevit_hf.modeling.configuration_mobilevit import VARIANTS

GOLDEN = np.load(DATA / "formula_golden.npz")


def logits(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels).logits


# --- official --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [transformers, mobilevit_hf])
def test_official_classifier_keeps_outputs(official_classifier, output_dir, library):
    report = convert_checkpoint(official_classifier, output_dir)
    assert (report.origin, report.task, report.variant) == ("official", "image-classification", "xxs")
    assert (report.num_labels, report.ignored, report.output_dir) == (10, (), output_dir)
    model = library.MobileViTForImageClassification.from_pretrained(output_dir)
    for size in ((256, 256), (128, 192), (225, 257)):
        golden = GOLDEN["cls_logits_{}x{}".format(*size)]
        np.testing.assert_allclose(logits(model, formula_image(*size)), golden, atol=1e-4)


@pytest.mark.parametrize("library", [transformers, mobilevit_hf])
def test_official_deeplabv3_keeps_outputs(official_segmenter, output_dir, library):
    report = convert_checkpoint(official_segmenter, output_dir)
    assert (report.origin, report.task, report.variant) == ("official", "image-segmentation", "xxs")
    assert (report.num_labels, report.ignored) == (4, ())
    assert any("Output stride" in note for note in report.notes)
    assert any("do_center_crop false" in note for note in report.notes)
    model = library.MobileViTForSemanticSegmentation.from_pretrained(output_dir)
    assert (model.config.output_stride, model.config.image_size) == (16, 512)
    golden = GOLDEN["seg_logits_lowres_192x256"]
    np.testing.assert_allclose(logits(model, formula_image(192, 256)), golden, atol=5e-4)


def test_training_only_parameters_of_deeplabv3_are_ignored(official_segmenter, tmp_path, output_dir):
    training_only = {
        "seg_head.aux_head.0.block.conv.weight": torch.zeros(128, 64, 3, 3),
        "encoder.classifier.fc.weight": torch.zeros(1000, 320),
        "encoder.conv_1x1_exp.block.conv.weight": torch.zeros(320, 80, 1, 1),
    }
    torch.save(torch.load(official_segmenter) | training_only, tmp_path / "seg.pt")
    assert set(convert_checkpoint(tmp_path / "seg.pt", output_dir).ignored) == set(training_only)


def test_reference_classifier_keeps_outputs(reference_data, output_dir):
    inputs = np.load(reference_data / "reference/cls_inputs.npz")
    outputs = np.load(reference_data / "reference/cls_xxs_io.npz")
    convert_checkpoint(reference_data / "reference/cls_xxs.pt", output_dir)
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(output_dir)
    for size in inputs.files:
        expected = outputs[f"logits_plainln_{size}"]
        np.testing.assert_allclose(logits(model, torch.from_numpy(inputs[size])), expected, atol=1e-4)


def test_reference_deeplabv3_keeps_outputs(reference_data, output_dir):
    inputs = np.load(reference_data / "reference/seg_inputs.npz")
    outputs = np.load(reference_data / "reference/segpaper_xxs_io.npz")
    first_version = np.load(reference_data / "reference/segpaper_xxs_v01_io.npz")
    convert_checkpoint(reference_data / "reference/segpaper_xxs.pt", output_dir)
    model = mobilevit_hf.MobileViTForSemanticSegmentation.from_pretrained(output_dir)
    for size in inputs.files:
        scores = logits(model, torch.from_numpy(inputs[size]))
        np.testing.assert_allclose(scores, outputs[f"logits_lowres_{size}"], atol=5e-4)
    scores = torch.nn.functional.interpolate(scores, scale_factor=16, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(scores[..., ::4, ::4], first_version["logits_sub4_300x260"], atol=5e-4)


# --- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
def test_timm_classifier_keeps_outputs(tmp_path, output_dir, variant):
    source = timm_model(variant)
    torch.save(source.state_dict(), tmp_path / "model.pth")
    report = convert_checkpoint(tmp_path / "model.pth", output_dir)
    assert (report.origin, report.task, report.variant) == ("timm", "image-classification", variant)
    assert (report.num_labels, report.channel_order, report.channel_order_assumed) == (5, "rgb", False)
    model = transformers.MobileViTForImageClassification.from_pretrained(output_dir)
    for size in ((128, 128), (96, 200)):  # the second is resized to whole patches
        pixels = formula_image(*size)
        with torch.no_grad():
            expected = source(pixels)
        assert expected.std() > 0.1
        torch.testing.assert_close(logits(model, pixels), expected, atol=1e-4, rtol=0)


def test_timm_model_without_head_becomes_backbone(tmp_path, output_dir):
    source = timm_model(num_classes=0)
    torch.save(source.state_dict(), tmp_path / "backbone.pth")
    report = convert_checkpoint(tmp_path / "backbone.pth", output_dir)
    assert (report.task, report.num_labels, report.variant) == ("image-feature-extraction", None, "xxs")
    assert json.loads((output_dir / "config.json").read_text())["architectures"] == ["MobileViTModel"]
    pixels = formula_image(64, 96)
    with torch.no_grad():
        expected = source(pixels)
        stock = transformers.MobileViTModel.from_pretrained(output_dir).eval()
        torch.testing.assert_close(stock(pixels).pooler_output, expected, atol=1e-4, rtol=0)
        classifier = mobilevit_hf.MobileViTForImageClassification.from_pretrained(output_dir, num_labels=7).eval()
        torch.testing.assert_close(classifier.mobilevit(pixels).pooler_output, expected, atol=1e-4, rtol=0)
    segmenter, loading = mobilevit_hf.MobileViTForSemanticSegmentation.from_pretrained(
        output_dir, output_loading_info=True
    )
    assert all(name.startswith("segmentation_head.") for name in loading["missing_keys"])
    stem = segmenter.mobilevit.conv_stem.convolution.weight
    assert torch.equal(stem, source.state_dict()["stem.conv.weight"])


def test_timm_corn_checkpoint_keeps_predictions_on_photos(reference_data, output_dir):
    names = ["Corn_Blight", "Common_Rust", "Gray_Leaf_Spot", "Healthy", "Unclassified"]
    file = reference_data / "weights/timm_mobilevit_xxs_corn.pth"
    convert_checkpoint(file, output_dir, labels=names, image_size=224)
    source = timm.create_model("mobilevit_xxs", num_classes=5).eval()
    source.load_state_dict(torch.load(file, map_location="cpu"))
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(output_dir)
    assert model.config.id2label == dict(enumerate(names))
    processor = transformers.AutoImageProcessor.from_pretrained(output_dir)
    photos = sorted((reference_data / "data/corn-leaf").glob("*/*"))[::4]
    correct = 0
    for photo in photos:
        pixels = processor(Image.open(photo).convert("RGB"), return_tensors="pt").pixel_values
        with torch.no_grad():
            expected = source(pixels)
        scores = logits(model, pixels)
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
        correct += photo.parent.name.endswith(model.config.id2label[scores.argmax().item()].removeprefix("Corn"))
    assert correct == len(photos)  # lower in BGR or at another image size


def test_reference_timm_backbone_keeps_features(reference_data, output_dir):
    file = reference_data / "weights/timm_mobilevit_xxs_backbone.pth"
    assert convert_checkpoint(file, output_dir).task == "image-feature-extraction"
    source = timm.create_model("mobilevit_xxs", num_classes=0).eval()
    source.load_state_dict(torch.load(file, map_location="cpu"))
    model = mobilevit_hf.MobileViTModel.from_pretrained(output_dir).eval()
    with torch.no_grad():
        pixels = formula_image(160, 160)
        torch.testing.assert_close(model(pixels).pooler_output, source(pixels), atol=1e-4, rtol=0)


# --- stock -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MobileViTForImageClassification", "MobileViTForSemanticSegmentation"])
def test_stock_model_round_trip(tmp_path, output_dir, name):
    model = stock_model(
        getattr(transformers, name),
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
        image_size=160,
        output_stride=8,
        classifier_dropout_prob=0.3,
    )
    model.save_pretrained(tmp_path / "stock")
    processor = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 180}, "resample": 3}
    processor |= {"crop_size": {"height": 160, "width": 160}, "do_flip_channel_order": False}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(processor))
    report = convert_checkpoint(tmp_path / "stock", output_dir)
    assert (report.origin, report.variant, report.num_labels) == ("transformers", "xxs", 3)
    assert (report.channel_order, report.channel_order_assumed, report.notes) == ("rgb", False, ())
    loaded = getattr(transformers, name).from_pretrained(output_dir)
    expected = model.config.to_dict()
    assert {**loaded.config.to_dict(), "_name_or_path": expected["_name_or_path"]} == expected
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    saved = json.loads((output_dir / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in processor} == processor


def test_arguments_override_stock_configuration(tmp_path, output_dir):
    stock_model().save_pretrained(tmp_path / "stock")
    processor = {"feature_extractor_type": "MobileViTFeatureExtractor", "size": {"shortest_edge": 288}, "resample": 2}
    processor |= {"crop_size": {"height": 256, "width": 256}, "do_flip_channel_order": True}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(processor))
    report = convert_checkpoint(
        tmp_path / "stock", output_dir, labels=["x", "y", "z"], channel_order="rgb", image_size=128
    )
    assert report.channel_order == "rgb"
    saved = json.loads((output_dir / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "MobileViTImageProcessor"
    assert saved["size"] == {"shortest_edge": 144}
    assert saved["crop_size"] == {"height": 128, "width": 128}
    assert saved["do_flip_channel_order"] is False
    config = transformers.MobileViTConfig.from_pretrained(output_dir)
    assert (config.id2label, config.image_size) == ({0: "x", 1: "y", 2: "z"}, 128)


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@pytest.mark.parametrize(
    "name", ["MobileViTForImageClassification", "MobileViTForSemanticSegmentation", "MobileViTModel"]
)
def test_stock_weights_without_configuration(tmp_path, output_dir, name, variant):
    model = stock_model(getattr(transformers, name), variant)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    report = convert_checkpoint(tmp_path / "weights.safetensors", output_dir)
    assert (report.origin, report.variant) == ("transformers", variant)
    assert (report.channel_order, report.channel_order_assumed) == ("bgr", True)
    written = load_file(output_dir / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in written.items())
    config = transformers.MobileViTConfig.from_pretrained(output_dir)
    assert config.architectures == [name]
    assert config.output_stride == (16 if "Segmentation" in name else 32)
    for field in ("hidden_sizes", "neck_hidden_sizes"):
        assert tuple(getattr(config, field)) == VARIANTS[variant][field]


def test_stock_configuration_allows_other_widths(tmp_path, output_dir):
    stock_model(hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 48]).save_pretrained(
        tmp_path / "s"
    )
    report = convert_checkpoint(tmp_path / "s", output_dir)
    assert report.variant is None
    assert any("BGR" in note for note in report.notes)
    assert transformers.MobileViTForImageClassification.from_pretrained(output_dir).config.hidden_sizes == [16, 24, 32]


def test_stock_weights_determine_aspp_channels(tmp_path, output_dir):
    model = stock_model(transformers.MobileViTForSemanticSegmentation, aspp_out_channels=48, output_stride=16)
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    convert_checkpoint(tmp_path / "weights.bin", output_dir)
    loaded = transformers.MobileViTForSemanticSegmentation.from_pretrained(output_dir)
    torch.testing.assert_close(logits(loaded, formula_image(64, 64)), logits(model, formula_image(64, 64)))


def test_conversion_is_idempotent(official_classifier, output_dir):
    convert_checkpoint(official_classifier, output_dir, channel_order="rgb")
    report = convert_checkpoint(output_dir, output_dir.with_name("again"))
    assert (report.origin, report.channel_order, report.notes) == ("transformers", "rgb", ())
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (output_dir / file).read_bytes() == (output_dir.with_name("again") / file).read_bytes()


@pytest.mark.slow
def test_stock_pipeline_loads_result_without_this_package(official_classifier, output_dir, tmp_path):
    convert_checkpoint(official_classifier, output_dir, labels=[f"class {i}" for i in range(10)])
    make_photo().save(tmp_path / "image.png")
    script = """
        import sys
        from transformers import pipeline
        outputs = pipeline("image-classification", model=sys.argv[1])(sys.argv[2], top_k=10)
        assert "mobilevit_hf" not in sys.modules
        print([output["label"] for output in outputs])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(output_dir), str(tmp_path / "image.png")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(output_dir)
    processor = transformers.AutoImageProcessor.from_pretrained(output_dir)
    scores = logits(model, processor(make_photo(), return_tensors="pt").pixel_values)[0]
    assert printed.strip() == str([f"class {i}" for i in scores.argsort(descending=True).tolist()])


# --- output directory ------------------------------------------------------------------------------------------------


def test_failed_conversion_leaves_no_output(official_classifier, output_dir, monkeypatch):
    def fail(self, folder):
        assert not output_dir.exists()
        raise OSError("disk full")

    monkeypatch.setattr(transformers.MobileViTImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(official_classifier, output_dir)
    assert list(output_dir.parent.iterdir()) == []


def test_output_dir_may_be_empty_or_have_missing_parents(official_classifier, output_dir):
    output_dir.mkdir()
    convert_checkpoint(official_classifier, output_dir)
    convert_checkpoint(official_classifier, output_dir.parent / "a/b")
    for folder in (output_dir, output_dir.parent / "a/b"):
        files = {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert {file.name for file in folder.iterdir()} == files
        assert {file.name for file in folder.parent.iterdir()} <= {"out", "a", "b"}


def test_occupied_output_dir_raises_before_source_is_read(tmp_path, output_dir):
    output_dir.mkdir()
    (output_dir / "notes.txt").write_text("keep")
    for target, message in ((output_dir, "is not empty"), (output_dir / "notes.txt", "is a file")):
        with pytest.raises(ValueError, match=f"output directory {message}.*Pass a new one"):
            convert_checkpoint(tmp_path / "nowhere.pt", target)
    assert (output_dir / "notes.txt").read_text() == "keep"


def test_random_state_is_kept(official_classifier, output_dir):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    convert_checkpoint(official_classifier, output_dir)
    assert torch.equal(torch.rand(3), expected)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"channel_order": "gbr"}, "channel_order: got 'gbr', expected 'bgr' or 'rgb'"),
        ({"image_size": 0}, "image_size: got 0"),
        ({"image_size": "256"}, "image_size: got '256'"),
    ],
)
def test_invalid_arguments_raise(timm_file, output_dir, option, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(timm_file, output_dir, **option)


def save_modified(file, target, modify):
    weights = torch.load(file)
    modify(weights)
    torch.save(weights, target)
    return target


@pytest.mark.parametrize(
    ("modify", "message"),
    [
        (
            lambda w: w.update({f"extra.{i}": torch.ones(1) for i in range(6)}),
            r"6 of the checkpoint's parameters are not part of a MobileViT: extra\.0, extra\.1, .* and 2 more",
        ),
        (lambda w: w.pop("stages.2.1.norm.bias"), r"lacks 1 of the model's parameters: mobilevit\..*layernorm\.bias"),
        (lambda w: w.pop("final_conv.bn.running_mean"), "lacks 1 .*conv_1x1_exp.normalization.running_mean"),
        (lambda w: w.pop("stem.conv.weight"), r"^mobilevit\.conv_stem\.convolution\.weight: missing"),
        (lambda w: w.pop("head.fc.weight"), r"^classifier\.weight: missing"),
        (
            lambda w: w.update({"stages.3.1.conv_1x1.weight": torch.ones(88, 64, 1, 1)}),
            r"widths match no MobileViT: got \[16, 16, 24, 48, 64, 80\] and \[64, 88, 96\], expected xxs \[16, 16, 24",
        ),
        (
            lambda w: w.update({"final_conv.conv.weight": torch.ones(640, 80, 1, 1)}),
            r"final_conv\.conv\.weight: got shape \(640, 80, 1, 1\), expected \(320, 80, 1, 1\)",
        ),
        (
            lambda w: w.update({"head.fc.bias": torch.ones(5, dtype=torch.int8)}),
            r"head\.fc\.bias: got torch\.int8, expected floating point",
        ),
        (
            lambda w: w.update({"stages.2.1.transformer.0.attn.qkv.weight": torch.ones(190, 64)}),
            r"attn\.qkv\.weight: got shape \(190, 64\), expected a first dimension divisible by 3",
        ),
        (
            lambda w: w.update({"module.stem.conv.weight": w["stem.conv.weight"]}),
            r"1 of the checkpoint's parameters are not part of a MobileViT: module\.stem\.conv\.weight",
        ),
        (
            lambda w: w.update({"mobilevit.conv_stem.convolution.weight": w["stem.conv.weight"]}),
            r"got a second tensor for mobilevit\.conv_stem\.convolution\.weight",
        ),
    ],
)
def test_state_dicts_that_do_not_match_raise(timm_file, tmp_path, output_dir, modify, message):
    file = save_modified(timm_file, tmp_path / "modified.pth", modify)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(file, output_dir)
    assert list(tmp_path.iterdir()) == [file]


def test_weights_that_are_not_finite_raise(official_classifier, tmp_path, output_dir):
    file = save_modified(
        official_classifier, tmp_path / "modified.pt", lambda w: w["classifier.fc.bias"].fill_(float("nan"))
    )
    with pytest.raises(ValueError, match=r"^modified\.pt: got NaN in classifier\.bias, expected finite weights"):
        convert_checkpoint(file, output_dir)
    assert not output_dir.exists()


def test_missing_or_additional_official_parameters_raise(official_segmenter, tmp_path, output_dir):
    weights = torch.load(official_segmenter)
    for key in list(weights)[::80]:
        for modify in (lambda w, key=key: w.pop(key), lambda w, key=key: w.update({key + "_2": w[key]})):
            file = save_modified(official_segmenter, tmp_path / "modified.pt", modify)
            with pytest.raises(ValueError, match=r"lacks [13] of|missing or invalid|1 of .* are not part"):
                convert_checkpoint(file, output_dir)
