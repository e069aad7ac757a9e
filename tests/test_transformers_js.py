"""A published classifier in transformers.js, in Node and a browser, gives the outputs of stock transformers."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from formula import formula_image
from PIL import Image
from transformers import MobileViTImageProcessor
from transformers_js.programs import publish_to_hub, run_chromium, run_documented, run_node, run_webgpu

import mobilevit_hf
from mobilevit_hf.backends.export import export_file
from mobilevit_hf.backends.onnx import write_onnx_int8
from mobilevit_hf.backends.requests import ExportRequest

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

REPO = "user/scenes"
SIZES = [(150, 200), (240, 160), (130, 190), (200, 200), (99, 140), (300, 260)]  # height, width of the photos
# One class per photo; each scene is also present with red and blue swapped.
LABELS = {number: f"scene {number // 2}, {'bgr' if number % 2 else 'rgb'}" for number in range(2 * len(SIZES))}
TOLERANCES = {None: 1e-4, "fp16": 0.1, "q8": 1.0}  # of logits from -9 to 9
PIXELS = [formula_image(64, 64), torch.cat([formula_image(96, 128), formula_image(96, 128).flip(1, 3)])]


def draw_photo(number):
    """Return soft discs on a gradient, with noise."""
    generator = np.random.default_rng(number // 2 + len(SIZES))  # scenes that stay distinct after any resizing
    height, width = SIZES[number // 2]
    y, x = np.mgrid[0:height, 0:width]
    top, bottom = generator.uniform(0, 255, (2, 3))
    values = top + (bottom - top) * (y / height)[..., None]
    for _ in range(8):
        distance = np.hypot(y - generator.uniform(0, height), x - generator.uniform(0, width))
        alpha = (1 / (1 + np.exp((distance - generator.uniform(10, 60)) / 4)))[..., None]
        values = alpha * generator.uniform(0, 255, 3) + (1 - alpha) * values
    values = (values + generator.normal(0, 2, values.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values[..., ::-1].copy() if number % 2 else values)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder with the photos, and `image.png` in the image processor's size."""
    folder = tmp_path_factory.mktemp("site")
    for number in LABELS:
        draw_photo(number).save(folder / f"{number}.jpg", quality=95)
    draw_photo(0).resize((96, 72)).save(folder / "image.png")
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_model, site, tmp_path_factory):
    """Folder with a classifier that distinguishes the photos, its image processor and its ONNX file."""
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification, id2label=LABELS, label2id=None)
    processor = MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    photos = processor([Image.open(site / f"{number}.jpg") for number in LABELS], return_tensors="pt")
    with torch.no_grad():
        features = model.mobilevit(**photos).pooler_output
        centered = features - features.mean(0)
        # The logit grows as the features approach those of the class's photo.
        scale = 4 / centered.square().sum(1).mean()
        model.classifier.weight.copy_(scale * centered)
        model.classifier.bias.copy_(-scale * (features.square().sum(1) - features.mean(0).square().sum()) / 2)
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "onnx").mkdir()
    request = ExportRequest(model, "image-classification", processor, photos.pixel_values)
    export_file(request, "onnx", folder / "onnx" / "model.onnx")
    write_onnx_int8(request, folder / "onnx" / "model_quantized.onnx", request.pixels)
    export_file(replace(request, dtype="float16"), "onnx", folder / "onnx" / "model_fp16.onnx")
    return folder


@pytest.fixture(scope="module")
def hub(classifier):
    """A loopback Hub with the published classifier."""
    with publish_to_hub(classifier, REPO) as server:
        yield server


@pytest.fixture(scope="module")
def expected(hub, site, run_python, tmp_path_factory):
    """Outputs of stock transformers in a clean process, from the same repository."""
    torch.save(PIXELS, site / "pixels.pt")
    outputs = run_python(
        f"""
        import json, torch, transformers
        from PIL import Image

        classify = transformers.pipeline("image-classification", model={REPO!r})
        assert type(classify.model) is transformers.MobileViTForImageClassification
        image = classify.image_processor(Image.open({str(site / "image.png")!r}), return_tensors="pt")
        with torch.no_grad():
            logits = [classify.model(pixels).logits.tolist() for pixels in torch.load({str(site / "pixels.pt")!r})]
            outputs = {{"pixels": logits, "image": classify.model(**image).logits.tolist()}}
        photos = [f"{site}/{{number}}.jpg" for number in range({len(LABELS)})]
        outputs["labels"] = [best["label"] for (best,) in classify(photos, top_k=1)]
        print(json.dumps(outputs))
        """,
        hub.environment(tmp_path_factory.mktemp("home")),
        without_package=True,
    )
    return json.loads(outputs)


@pytest.fixture(
    scope="module",
    params=[
        (run_node, None),
        (run_node, "fp16"),
        (run_node, "q8"),
        (run_chromium, None),
        (run_chromium, "fp16"),
        (run_chromium, "q8"),
        (run_webgpu, None),
    ],
    ids=["node", "node fp16", "node q8", "chromium", "chromium fp16", "chromium q8", "webgpu"],
)
def outputs(request, site, site_url, hub):
    """Outputs of transformers.js, from the same repository, and the dtype."""
    run, dtype = request.param
    arguments = {
        "hub": hub.url,
        "repository": REPO,
        "options": {"dtype": dtype},
        "pixels": [{"values": pixels.flatten().tolist(), "shape": pixels.shape} for pixels in PIXELS],
        "image": f"{site_url}/image.png",
        "photos": [f"{site_url}/{number}.jpg" for number in LABELS],
    }
    return run("classify", arguments, site, site_url) | {"dtype": dtype}


def test_logits_equal_for_any_batch_and_size(outputs, expected):
    for logits, expected_logits in zip(outputs["pixels"], expected["pixels"], strict=True):
        np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=TOLERANCES[outputs["dtype"]])
        is_exact = np.allclose(logits, expected_logits, rtol=0, atol=TOLERANCES[None])
        assert is_exact == (outputs["dtype"] is None)  # else another file was loaded


def test_image_processor_flips_channels_rescales_and_crops(outputs, expected):
    """Without resizing, which JavaScript does differently."""
    np.testing.assert_allclose(outputs["image"], expected["image"], rtol=0, atol=TOLERANCES[outputs["dtype"]])


def test_top_labels_of_photos_equal(outputs, expected):
    assert outputs["labels"] == expected["labels"] == list(LABELS.values())


def test_documented_program_gives_the_scores_of_python(classifier, site, site_url, tmp_path):
    """With a file that resizes and crops photos itself."""
    mobilevit_hf.export_model(classifier, tmp_path, "onnx", interface="transformers.js", log=lambda line: None)
    classify = mobilevit_hf.pipeline("image-classification", str(classifier), device="cpu")
    for number in (0, 3, 8):
        shutil.copy(site / f"{number}.jpg", site / "photo.jpg")
        best = classify(str(site / "photo.jpg"))[0]
        output = run_documented(r"model_transformers\.js", tmp_path, site)
        label, score = re.search(r"label: '([^']*)', score: ([\d.]+)", output).groups()
        assert label == best["label"] == LABELS[number]
        assert float(score) == pytest.approx(best["score"], abs=0.01)
