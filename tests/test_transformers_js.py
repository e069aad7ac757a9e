"""A published classifier in transformers.js: Node and a browser compute what stock transformers does."""

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import open_chromium
from conftest import QuietHandler
from formula import formula_image
from hub_server import HubServer
from PIL import Image
from transformers import MobileViTImageProcessor
from transformers_js.install import NotInstalled, install

import mobilevit_hf
from mobilevit_hf.backends.export import export_program
from mobilevit_hf.hub import Given, publish

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

REPO = "user/scenes"
SIZES = [(150, 200), (240, 160), (130, 190), (200, 200), (99, 140), (300, 260)]  # of photos: height, width
# Every photo's own class: a photo with its red and blue exchanged is another one.
LABELS = {number: f"scene {number // 2}, {'bgr' if number % 2 else 'rgb'}" for number in range(2 * len(SIZES))}
PIXELS = [formula_image(64, 64), torch.cat([formula_image(96, 128), formula_image(96, 128).flip(1, 3)])]


def draw_photo(number):
    """Soft discs before a gradient, with some noise."""
    generator = np.random.default_rng(number // 2 + len(SIZES))  # seeds of scenes that every way of resizing can tell
    height, width = SIZES[number // 2]
    y, x = np.mgrid[0:height, 0:width]
    top, bottom = generator.uniform(0, 255, (2, 3))
    values = top + (bottom - top) * (y / height)[..., None]
    for _ in range(8):
        distance = np.hypot(y - generator.uniform(0, height), x - generator.uniform(0, width))
        cover = (1 / (1 + np.exp((distance - generator.uniform(10, 60)) / 4)))[..., None]
        values = cover * generator.uniform(0, 255, 3) + (1 - cover) * values
    values = (values + generator.normal(0, 2, values.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values[..., ::-1].copy() if number % 2 else values)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The program for Node and the browser, with photos and `image.png`, which is of the processor's size."""
    folder = tmp_path_factory.mktemp("site")
    for path in (Path(__file__).parent / "transformers_js").glob("*.*"):
        shutil.copy(path, folder)
    for number in LABELS:
        draw_photo(number).save(folder / f"{number}.jpg", quality=95)
    draw_photo(0).resize((96, 72)).save(folder / "image.png")
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_model, site, tmp_path_factory):
    """A folder with a classifier that tells the photos apart, its image processor and its ONNX file."""
    model = tiny_model(mobilevit_hf.MobileViTForImageClassification, id2label=LABELS, label2id=None)
    processor = MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    photos = processor([Image.open(site / f"{number}.jpg") for number in LABELS], return_tensors="pt")
    with torch.no_grad():
        features = model.mobilevit(**photos).pooler_output
        centered = features - features.mean(0)
        # The logit is higher the nearer an image's features are to those of the class's photo.
        scale = 4 / centered.square().sum(1).mean()
        model.classifier.weight.copy_(scale * centered)
        model.classifier.bias.copy_(-scale * (features.square().sum(1) - features.mean(0).square().sum()) / 2)
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "onnx").mkdir()
    export_program(
        model, "image-classification", "onnx", folder / "onnx" / "model.onnx", photos.pixel_values, "float32"
    )
    return folder


@pytest.fixture(scope="module")
def hub(classifier):
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        server.take_over(patch)
        publish(classifier, REPO, given=Given(license="mit"), say=lambda line: None)
        yield server


@pytest.fixture(scope="module")
def expected(hub, site, run_python, tmp_path_factory):
    """Stock transformers' answers, alone in a clean process, from the same repository."""
    torch.save(PIXELS, site / "pixels.pt")
    answers = run_python(
        f"""
        import json, torch, transformers
        from PIL import Image

        classify = transformers.pipeline("image-classification", model={REPO!r})
        assert type(classify.model) is transformers.MobileViTForImageClassification
        image = classify.image_processor(Image.open({str(site / "image.png")!r}), return_tensors="pt")
        with torch.no_grad():
            logits = [classify.model(pixels).logits.tolist() for pixels in torch.load({str(site / "pixels.pt")!r})]
            answers = {{"pixels": logits, "image": classify.model(**image).logits.tolist()}}
        photos = [f"{site}/{{number}}.jpg" for number in range({len(LABELS)})]
        answers["labels"] = [best["label"] for (best,) in classify(photos, top_k=1)]
        print(json.dumps(answers))
        """,
        hub.environment(tmp_path_factory.mktemp("home")),
        without_package=True,
    )
    return json.loads(answers)


@pytest.fixture(scope="module")
def site_url(site):
    """The address of the site, with transformers.js in it."""
    try:
        (site / "node_modules").symlink_to(install() / "node_modules")
    except NotInstalled as problem:
        pytest.skip(str(problem))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask_node(question, site, site_url):
    node = shutil.which("node")
    if node is None or not re.match(r"v[2-9]\d\.", subprocess.check_output([node, "--version"], text=True)):
        pytest.skip("there is no Node of version 20 or later on this machine")
    process = subprocess.run(
        [node, "node.mjs"], input=json.dumps(question), cwd=site, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def ask_chromium(question, site, site_url):
    with open_chromium() as browser:
        page = browser.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site_url}/index.html")
        answers = page.evaluate("question => classify(question)", question)
    assert all(url.startswith((site_url, question["hub"], "blob:")) for url in asked), asked
    return answers


@pytest.fixture(scope="module", params=[ask_node, ask_chromium], ids=["node", "chromium"])
def answers(request, site, site_url, hub):
    """What transformers.js answers, from the same repository."""
    question = {
        "hub": hub.url,
        "repository": REPO,
        "pixels": [{"values": pixels.flatten().tolist(), "shape": pixels.shape} for pixels in PIXELS],
        "image": f"{site_url}/image.png",
        "photos": [f"{site_url}/{number}.jpg" for number in LABELS],
    }
    return request.param(question, site, site_url)


def test_logits_on_pixels(answers, expected):
    """Of any batch and size."""
    for logits, expected_logits in zip(answers["pixels"], expected["pixels"], strict=True):
        np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4)


def test_logits_on_a_image_without_resize(answers, expected):
    """Its image processor flips channels, rescales and crops as stock's does."""
    np.testing.assert_allclose(answers["image"], expected["image"], rtol=0, atol=1e-4)


def test_top_labels_on_photos(answers, expected):
    assert answers["labels"] == expected["labels"] == list(LABELS.values())
