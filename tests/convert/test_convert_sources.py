"""Official, timm and stock checkpoints become directories that stock transformers loads, and see what they saw."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import timm
import torch
import transformers
from formula import DATA, fill, formula_image, timm_model
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torchvision.transforms import v2

import mobilevit_hf
from mobilevit_hf.convert.conversion import convert_checkpoint
from mobilevit_hf.convert.rules import translate
from mobilevit_hf.modeling.configuration_mobilevit import VARIANTS

GOLDEN = np.load(DATA / "formula_golden.npz")


def stock_model(model_class=transformers.MobileViTForImageClassification, variant="xxs", **fields):
    """A stock model with varied parameters and statistics."""
    row = {key: list(value) if isinstance(value, tuple) else value for key, value in VARIANTS[variant].items()}
    return fill(model_class(transformers.MobileViTConfig(**{**row, "num_labels": 3, **fields}))).eval()


def image(height=300, width=400):
    """A photo-like image: smooth waves, a few edges."""
    values = formula_image(height, width)[0].permute(1, 2, 0).numpy()
    values[height // 4 : height // 2, width // 5 : width // 3] = (0.9, 0.2, 0.1)
    return Image.fromarray((values * 255).round().astype(np.uint8))


def logits(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels).logits


def processor_of(folder):
    return transformers.AutoImageProcessor.from_pretrained(folder)


# --- official --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [transformers, mobilevit_hf])
def test_official_classifier_gives_the_official_outputs(official_classifier, out, library):
    report = convert_checkpoint(official_classifier, out)
    assert (report.origin, report.task, report.variant) == ("official", "image-classification", "xxs")
    assert (report.num_labels, report.ignored, report.output_dir) == (10, (), out)
    model = library.MobileViTForImageClassification.from_pretrained(out)
    for size in ((256, 256), (128, 192), (225, 257)):
        golden = GOLDEN["cls_logits_{}x{}".format(*size)]
        np.testing.assert_allclose(logits(model, formula_image(*size)), golden, atol=1e-4)


@pytest.mark.parametrize("library", [transformers, mobilevit_hf])
def test_official_deeplabv3_gives_the_official_outputs(official_segmenter, out, library):
    report = convert_checkpoint(official_segmenter, out)
    assert (report.origin, report.task, report.variant) == ("official", "image-segmentation", "xxs")
    assert (report.num_labels, report.ignored) == (4, ())
    assert any("Output stride" in note for note in report.notes)
    model = library.MobileViTForSemanticSegmentation.from_pretrained(out)
    assert (model.config.output_stride, model.config.image_size) == (16, 512)
    golden = GOLDEN["seg_logits_lowres_192x256"]
    np.testing.assert_allclose(logits(model, formula_image(192, 256)), golden, atol=5e-4)


def test_training_leftovers_in_official_deeplabv3_are_ignored_and_named(official_segmenter, tmp_path, out):
    leftovers = {
        "seg_head.aux_head.0.block.conv.weight": torch.zeros(128, 64, 3, 3),
        "encoder.classifier.fc.weight": torch.zeros(1000, 320),
        "encoder.conv_1x1_exp.block.conv.weight": torch.zeros(320, 80, 1, 1),
    }
    torch.save(torch.load(official_segmenter) | leftovers, tmp_path / "seg.pt")
    assert set(convert_checkpoint(tmp_path / "seg.pt", out).ignored) == set(leftovers)


@pytest.mark.parametrize(
    ("choice", "order", "assumed"), [(None, "bgr", True), ("bgr", "bgr", False), ("rgb", "rgb", False)]
)
def test_official_channel_order_is_bgr_unless_told(official_classifier, out, choice, order, assumed):
    report = convert_checkpoint(official_classifier, out, channel_order=choice)
    assert (report.channel_order, report.channel_order_assumed) == (order, assumed)
    assert any("BGR" in note and "--channel-order rgb" in note for note in report.notes) == assumed
    assert processor_of(out).do_flip_channel_order == (order == "bgr")


def test_official_reference_outputs(reference_data, out):
    inputs = np.load(reference_data / "reference/cls_inputs.npz")
    outputs = np.load(reference_data / "reference/cls_xxs_io.npz")
    convert_checkpoint(reference_data / "reference/cls_xxs.pt", out)
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(out)
    for size in inputs.files:
        expected = outputs[f"logits_plainln_{size}"]
        np.testing.assert_allclose(logits(model, torch.from_numpy(inputs[size])), expected, atol=1e-4)


def test_official_reference_segmentation(reference_data, out):
    inputs = np.load(reference_data / "reference/seg_inputs.npz")
    outputs = np.load(reference_data / "reference/segpaper_xxs_io.npz")
    first_version = np.load(reference_data / "reference/segpaper_xxs_v01_io.npz")
    convert_checkpoint(reference_data / "reference/segpaper_xxs.pt", out)
    model = mobilevit_hf.MobileViTForSemanticSegmentation.from_pretrained(out)
    for size in inputs.files:
        scores = logits(model, torch.from_numpy(inputs[size]))
        np.testing.assert_allclose(scores, outputs[f"logits_lowres_{size}"], atol=5e-4)
    scores = torch.nn.functional.interpolate(scores, scale_factor=16, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(scores[..., ::4, ::4], first_version["logits_sub4_300x260"], atol=5e-4)


@pytest.mark.parametrize("name", ["cls_xxs", "segpaper_s"])
def test_official_names_follow_the_reference_map(reference_data, name):
    reference = json.loads((reference_data / f"reference/keymap_{name}_official_to_transformers.json").read_text())
    # a width that can be cut in thirds, each of which shows where it came from
    tensors = {key: torch.arange(6) + 10 * i for i, key in enumerate(reference)}
    translation = translate(tensors, "official")
    assert translation.ignored == ()
    assert set(translation.tensors) == {target for targets in reference.values() for target in targets}
    for source, targets in reference.items():
        pieces = [translation.tensors[target] for target in targets]
        assert torch.equal(torch.cat(pieces), tensors[source])
        assert {translation.sources[target] for target in targets} == {source}


def test_official_preprocessing_follows_the_reference(reference_data, official_classifier, out):
    reference = np.load(reference_data / "reference/preproc.npz")
    image = Image.fromarray(reference["image_rgb_u8"])
    convert_checkpoint(official_classifier, out, channel_order="rgb")
    pixels = processor_of(out)(image, return_tensors="np").pixel_values[0] * 255
    np.testing.assert_allclose(pixels, reference["v04_cls_resize288_bilinear_crop256_rgb"], atol=1.01)
    convert_checkpoint(official_classifier, out.with_name("bgr"))
    pixels = processor_of(out.with_name("bgr"))(image, return_tensors="np").pixel_values[0] * 255
    # OpenCV does not smooth before it makes an image smaller: near on average is all there can be
    assert np.abs(pixels - reference["v01_cls_resize288_crop256_cv2_bgr"]).mean() < 3
    assert np.abs(pixels[::-1] - reference["v01_cls_resize288_crop256_cv2_bgr"]).mean() > 6


@pytest.mark.parametrize("task", ["image-classification", "image-segmentation"])
def test_official_preprocessing_is_apples(task, official_classifier, official_segmenter, out):
    classify = task == "image-classification"
    resize, crop = (288, 256) if classify else (544, 512)
    convert_checkpoint(official_classifier if classify else official_segmenter, out)
    transform = v2.Compose(
        [v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    )
    processor = processor_of(out)
    assert type(processor) is transformers.MobileViTImageProcessor
    pixels = processor(image(), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, transform(image()).flip(0), atol=1.5 / 255, rtol=0)
    assert processor(image().convert("L"), return_tensors="pt").pixel_values.shape == (1, 3, crop, crop)


# --- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
def test_timm_gives_the_same_outputs(tmp_path, out, variant):
    source = timm_model(variant)
    torch.save(source.state_dict(), tmp_path / "model.pth")
    report = convert_checkpoint(tmp_path / "model.pth", out)
    assert (report.origin, report.task, report.variant) == ("timm", "image-classification", variant)
    assert (report.num_labels, report.channel_order, report.channel_order_assumed) == (5, "rgb", False)
    model = transformers.MobileViTForImageClassification.from_pretrained(out)
    for size in ((128, 128), (96, 200)):  # the second needs resizing to whole patches
        pixels = formula_image(*size)
        with torch.no_grad():
            expected = source(pixels)
        assert expected.std() > 0.1
        torch.testing.assert_close(logits(model, pixels), expected, atol=1e-4, rtol=0)


def test_timm_default_preprocessing(timm_file, out):
    report = convert_checkpoint(timm_file, out)
    assert any("timm's default" in note for note in report.notes)
    settings = timm.data.resolve_data_config(model=timm.create_model("mobilevit_xxs"))
    expected = create_transform(**settings)(image())
    pixels = processor_of(out)(image(), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels, expected, atol=2 / 255, rtol=0)
    assert mobilevit_hf.MobileViTConfig.from_pretrained(out).image_size == 256


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_timm_channel_order_and_image_size(timm_file, out, order):
    report = convert_checkpoint(timm_file, out, channel_order=order, image_size=224)
    transform = v2.Compose(
        [
            v2.Resize(248, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    expected = transform(image(248, 320))
    pixels = processor_of(out)(image(248, 320), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(pixels if order == "rgb" else pixels.flip(0), expected, atol=2 / 255, rtol=0)
    assert report.channel_order == order
    assert mobilevit_hf.MobileViTConfig.from_pretrained(out).image_size == 224


def write_timm_folder(folder, weights="model.safetensors", num_classes=5, **pretrained_cfg):
    """A model as timm pushes it to the Hub."""
    folder.mkdir()
    state_dict = timm_model(num_classes=num_classes).state_dict()
    save = save_file if weights.endswith(".safetensors") else torch.save
    save(state_dict, folder / weights)
    config = {"architecture": "mobilevit_xxs", "num_classes": num_classes, "pretrained_cfg": pretrained_cfg}
    config |= {key: pretrained_cfg.pop(key) for key in ("label_names",) if key in pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_timm_folder_tells_preprocessing_and_labels(tmp_path, out, weights, crop_mode):
    settings = {
        "input_size": [3, 192, 192],
        "crop_pct": 0.75,
        "interpolation": "bilinear",
        "crop_mode": crop_mode,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    folder = write_timm_folder(tmp_path / "timm", weights, **settings, label_names=["a", "b", "c", "d", "e"])
    report = convert_checkpoint(folder if weights == "model.safetensors" else folder / weights, out)
    assert report.notes == ()
    saved = json.loads((out / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "BitImageProcessor"
    expected = create_transform(**settings)(image(288, 384))
    pixels = processor_of(out)(image(288, 384), return_tensors="pt").pixel_values[0]
    assert pixels.shape == (3, 192, 192)
    torch.testing.assert_close(pixels, expected, atol=2 / 255 / 0.224, rtol=0)
    config = transformers.MobileViTConfig.from_pretrained(out)
    assert list(config.id2label.values()) == ["a", "b", "c", "d", "e"]
    assert config.image_size == 192


def test_timm_names_by_number_and_given_names_win(tmp_path, out):
    folder = write_timm_folder(tmp_path / "timm", label_names={str(i): f"n{i}" for i in (3, 1, 4, 0, 2)})
    convert_checkpoint(folder, out)
    assert transformers.MobileViTConfig.from_pretrained(out).id2label == {i: f"n{i}" for i in range(5)}
    convert_checkpoint(folder, out.with_name("named"), labels=["v", "w", "x", "y", "z"])
    assert transformers.MobileViTConfig.from_pretrained(out.with_name("named")).label2id["z"] == 4


def test_foreign_configuration_beside_a_timm_file_is_left_alone(timm_file, tmp_path, out):
    (tmp_path / "model.pth").write_bytes(timm_file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "vit", "input_size": [3, 64, 64], "label_names": ["a"]}')
    convert_checkpoint(tmp_path / "model.pth", out)
    config = transformers.MobileViTConfig.from_pretrained(out)
    assert (config.image_size, config.num_labels) == (256, 5)


def test_headless_timm_becomes_a_backbone_to_train_from(tmp_path, out):
    source = timm_model(num_classes=0)
    torch.save(source.state_dict(), tmp_path / "backbone.pth")
    report = convert_checkpoint(tmp_path / "backbone.pth", out)
    assert (report.task, report.num_labels, report.variant) == ("image-feature-extraction", None, "xxs")
    assert json.loads((out / "config.json").read_text())["architectures"] == ["MobileViTModel"]
    pixels = formula_image(64, 96)
    with torch.no_grad():
        expected = source(pixels)
        stock = transformers.MobileViTModel.from_pretrained(out).eval()
        torch.testing.assert_close(stock(pixels).pooler_output, expected, atol=1e-4, rtol=0)
        classifier = mobilevit_hf.MobileViTForImageClassification.from_pretrained(out, num_labels=7).eval()
        torch.testing.assert_close(classifier.mobilevit(pixels).pooler_output, expected, atol=1e-4, rtol=0)
    segmenter, loading = mobilevit_hf.MobileViTForSemanticSegmentation.from_pretrained(out, output_loading_info=True)
    assert all(name.startswith("segmentation_head.") for name in loading["missing_keys"])
    stem = segmenter.mobilevit.conv_stem.convolution.weight
    assert torch.equal(stem, source.state_dict()["stem.conv.weight"])


def test_corn_checkpoint_sees_what_it_saw(reference_data, out):
    names = ["Corn_Blight", "Common_Rust", "Gray_Leaf_Spot", "Healthy", "Unclassified"]
    file = reference_data / "weights/timm_mobilevit_xxs_corn.pth"
    convert_checkpoint(file, out, labels=names, image_size=224)
    source = timm.create_model("mobilevit_xxs", num_classes=5).eval()
    source.load_state_dict(torch.load(file, map_location="cpu"))
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(names))
    processor = processor_of(out)
    photos = sorted((reference_data / "data/corn-leaf").glob("*/*"))[::4]
    correct = 0
    for photo in photos:
        pixels = processor(Image.open(photo).convert("RGB"), return_tensors="pt").pixel_values
        with torch.no_grad():
            expected = source(pixels)
        found = logits(model, pixels)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        correct += photo.parent.name.endswith(model.config.id2label[found.argmax().item()].removeprefix("Corn"))
    assert correct == len(photos)  # in BGR or without the right size some are lost


def test_shared_backbone(reference_data, out):
    file = reference_data / "weights/timm_mobilevit_xxs_backbone.pth"
    assert convert_checkpoint(file, out).task == "image-feature-extraction"
    source = timm.create_model("mobilevit_xxs", num_classes=0).eval()
    source.load_state_dict(torch.load(file, map_location="cpu"))
    model = mobilevit_hf.MobileViTModel.from_pretrained(out).eval()
    with torch.no_grad():
        pixels = formula_image(160, 160)
        torch.testing.assert_close(model(pixels).pooler_output, source(pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, {"channel_order": "bgr"}, "no stock image processor both turns"),
        ({"input_size": [3, 256, 192]}, {}, "unusable pretrained_cfg.*square input_size"),
        ({"input_size": [1, 256, 256]}, {}, "3 channels"),
        ({"input_size": 256}, {}, "unusable pretrained_cfg"),
        ({"interpolation": "magic"}, {}, "unusable pretrained_cfg.*MAGIC"),
        ({"crop_pct": 0}, {}, "0 < crop_pct <= 1"),
        ({"std": [1, 1, 0]}, {}, "unusable pretrained_cfg"),
        ({"crop_mode": "border"}, {}, "crop_mode is 'border'"),
        ({"label_names": ["a", "b"]}, {}, "label_names in config.json: got 2, expected 5"),
        ({"label_names": 7}, {}, "label_names in config.json: got 7, expected 5"),
        ({"label_names": {"1": "a", "2": "b", "3": "c", "4": "d", "5": "e"}}, {}, "got None, expected text"),
    ],
)
def test_wrong_timm_configurations(tmp_path, out, settings, options, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(write_timm_folder(tmp_path / "timm", **settings), out, **options)


# --- stock -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MobileViTForImageClassification", "MobileViTForSemanticSegmentation"])
def test_stock_folder_round_trip(tmp_path, out, name):
    model = stock_model(
        getattr(transformers, name),
        id2label={0: "a", 1: "b", 2: "c"},
        label2id={"a": 0, "b": 1, "c": 2},
        image_size=160,
        output_stride=8,
        classifier_dropout_prob=0.3,
    )
    model.save_pretrained(tmp_path / "stock")
    own = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 180}, "resample": 3}
    own |= {"crop_size": {"height": 160, "width": 160}, "do_flip_channel_order": False}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(own))
    report = convert_checkpoint(tmp_path / "stock", out)
    assert (report.origin, report.variant, report.num_labels) == ("transformers", "xxs", 3)
    assert (report.channel_order, report.channel_order_assumed, report.notes) == ("rgb", False, ())
    loaded = getattr(transformers, name).from_pretrained(out)
    expected = model.config.to_dict()
    assert {**loaded.config.to_dict(), "_name_or_path": expected["_name_or_path"]} == expected
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    saved = json.loads((out / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in own} == own


def test_stock_folder_with_other_choices(tmp_path, out):
    stock_model().save_pretrained(tmp_path / "stock")
    own = {"feature_extractor_type": "MobileViTFeatureExtractor", "size": {"shortest_edge": 288}, "resample": 2}
    own |= {"crop_size": {"height": 256, "width": 256}, "do_flip_channel_order": True}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(own))
    report = convert_checkpoint(tmp_path / "stock", out, labels=["x", "y", "z"], channel_order="rgb", image_size=128)
    assert report.channel_order == "rgb"
    saved = json.loads((out / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "MobileViTImageProcessor"
    assert saved["size"] == {"shortest_edge": 144}
    assert saved["crop_size"] == {"height": 128, "width": 128}
    assert saved["do_flip_channel_order"] is False
    config = transformers.MobileViTConfig.from_pretrained(out)
    assert (config.id2label, config.image_size) == ({0: "x", 1: "y", 2: "z"}, 128)


@pytest.mark.parametrize("variant", ["xxs", "xs", "s"])
@pytest.mark.parametrize(
    "name", ["MobileViTForImageClassification", "MobileViTForSemanticSegmentation", "MobileViTModel"]
)
def test_bare_stock_file(tmp_path, out, name, variant):
    model = stock_model(getattr(transformers, name), variant)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    report = convert_checkpoint(tmp_path / "weights.safetensors", out)
    assert (report.origin, report.variant) == ("transformers", variant)
    assert (report.channel_order, report.channel_order_assumed) == ("bgr", True)
    written = load_file(out / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in written.items())
    config = transformers.MobileViTConfig.from_pretrained(out)
    assert config.architectures == [name]
    assert config.output_stride == (16 if "Segmentation" in name else 32)
    for field in ("hidden_sizes", "neck_hidden_sizes"):
        assert tuple(getattr(config, field)) == VARIANTS[variant][field]


def test_stock_configuration_may_describe_other_widths(tmp_path, out):
    stock_model(hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 48]).save_pretrained(
        tmp_path / "s"
    )
    report = convert_checkpoint(tmp_path / "s", out)
    assert report.variant is None
    assert any("BGR" in note for note in report.notes)
    assert transformers.MobileViTForImageClassification.from_pretrained(out).config.hidden_sizes == [16, 24, 32]


def test_bare_stock_file_with_another_pyramid(tmp_path, out):
    model = stock_model(transformers.MobileViTForSemanticSegmentation, aspp_out_channels=48, output_stride=16)
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    convert_checkpoint(tmp_path / "weights.bin", out)
    loaded = transformers.MobileViTForSemanticSegmentation.from_pretrained(out)
    torch.testing.assert_close(logits(loaded, formula_image(64, 64)), logits(model, formula_image(64, 64)))


def test_pointers_to_code_stay_behind(tmp_path, out):
    stock_model().save_pretrained(tmp_path / "stock")
    config = json.loads((tmp_path / "stock/config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "mine.Mine"}
    (tmp_path / "stock/config.json").write_text(json.dumps(config))
    convert_checkpoint(tmp_path / "stock", out)
    assert "auto_map" not in json.loads((out / "config.json").read_text())


def test_converted_folder_converts_to_itself(official_classifier, out):
    convert_checkpoint(official_classifier, out, channel_order="rgb")
    report = convert_checkpoint(out, out.with_name("again"))
    assert (report.origin, report.channel_order, report.notes) == ("transformers", "rgb", ())
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (out / file).read_bytes() == (out.with_name("again") / file).read_bytes()


@pytest.mark.slow
def test_stock_pipeline_in_a_clean_process(official_classifier, out, tmp_path):
    """Nothing of this package is needed to use the result."""
    convert_checkpoint(official_classifier, out, labels=[f"class {i}" for i in range(10)])
    image().save(tmp_path / "image.png")
    script = """
        import sys
        from transformers import pipeline
        answers = pipeline("image-classification", model=sys.argv[1])(sys.argv[2], top_k=10)
        assert "mobilevit_hf" not in sys.modules
        print([answer["label"] for answer in answers])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(out), str(tmp_path / "image.png")]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    model = mobilevit_hf.MobileViTForImageClassification.from_pretrained(out)
    scores = logits(model, processor_of(out)(image(), return_tensors="pt").pixel_values)[0]
    assert found.strip() == str([f"class {i}" for i in scores.argsort(descending=True).tolist()])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json: not a readable configuration"),
        ("config.json", "[]", "got a list, expected an object"),
        ("config.json", '{"model_type": "vit"}', "got model_type 'vit', expected 'mobilevit'"),
        (
            "config.json",
            '{"model_type": "mobilevit", "hidden_sizes": 5}',
            "config.json beside the weights can't be used",
        ),
        ("config.json", '{"model_type": "mobilevit"}', "has 2 labels, the classifier 3"),
        ("config.json", '{"model_type": "mobilevit", "id2label": {"0": 1, "1": 2, "2": 3}}', r"got shape .* expected"),
        ("preprocessor_config.json", "{", r"preprocessor_config\.json: not a stock image processor"),
        ("preprocessor_config.json", '{"image_processor_type": "Mine"}', "not a stock image processor"),
        ("preprocessor_config.json", '{"image_processor_type": "BitImageProcessor"}', "BitImageProcessor can't turn"),
    ],
)
def test_wrong_stock_folders(tmp_path, out, file, content, message):
    stock_model().save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "stock", out, channel_order="bgr" if "Bit" in content else None)
    assert not out.exists()


def test_code_beside_a_stock_checkpoint_never_runs(tmp_path, out):
    stock_model().save_pretrained(tmp_path / "stock")
    own = {"auto_map": {"AutoImageProcessor": "mine.Mine"}, "image_processor_type": "Mine"}
    (tmp_path / "stock/preprocessor_config.json").write_text(json.dumps(own))
    (tmp_path / "stock/mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'made by the checkpoint')!r})\n")
    with pytest.raises(ValueError, match="not a stock image processor") as caught:
        convert_checkpoint(tmp_path / "stock", out)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"stock"}
