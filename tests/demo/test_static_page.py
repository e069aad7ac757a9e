"""The static page: its folder, and the page in a browser."""

import json
import re
import shutil
import threading
from functools import partial
from http.server import ThreadingHTTPServer

import numpy as np
import pytest
import torch
import transformers
from browser import FAKE_CAMERA, open_chromium
from conftest import QuietHandler
from torchvision.ops import box_iou
from transformers_suite.fetch import cache_folder

import mobilevit_hf
from mobilevit_hf.data.images import load_image
from mobilevit_hf.demo import onnxruntime_web, static_page
from mobilevit_hf.demo.static_page import build_static_page
from mobilevit_hf.hub.metadata import CardOptions, collect_metadata
from mobilevit_hf.model_sources import builtin
from mobilevit_hf.visualization import class_colors

CLASSIFICATION, DETECTION, THRESHOLD = "image-classification", "object-detection", 0.02
LOGO = '<meta name="generator" content="another page">'


@pytest.fixture
def fake_export(monkeypatch, tmp_path):
    """Replace the exported model and the downloaded runtime by small files."""
    files = [tmp_path / name for name in ("export.onnx", *onnxruntime_web.FILES)]
    for path in files:
        path.write_bytes(path.name.encode())
    monkeypatch.setattr(static_page, "check_backend", lambda *arguments: None)
    monkeypatch.setattr(static_page, "export_image_file", lambda *arguments, **options: (None, files[0]))
    monkeypatch.setattr(static_page, "runtime_files", lambda: files[1:])


@pytest.mark.usefixtures("fake_export")
def test_page_contains_all_files_that_it_loads(models, segmenter_dir, tmp_path):
    for number, model in enumerate([models[CLASSIFICATION], models[DETECTION], str(segmenter_dir)]):
        folder = tmp_path / str(number)
        sizes = build_static_page(model, folder)
        assert sizes == {path.name: path.stat().st_size for path in folder.iterdir()}
        scripts = "".join(path.read_text() for path in folder.glob("*.js")) + (folder / "index.html").read_text()
        names = set(re.findall(r'["/ ]([\w.-]+\.(?:m?js|json|wasm|onnx|css|svg|webmanifest))"', scripts))
        assert names <= sizes.keys()
        cached = json.loads(re.search(r"FILES = (.*);", (folder / "service-worker.js").read_text())[1])
        assert {*cached} == {"./", *sizes} - {"service-worker.js"}
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", (folder / "index.html").read_text())


@pytest.mark.usefixtures("fake_export")
def test_settings_follow_the_model(models, tmp_path):
    build_static_page(models[DETECTION], tmp_path / "page")
    settings = json.loads((tmp_path / "page" / "model.json").read_text())
    assert [each["name"] for each in settings["classes"]] == ["cat", "dog", "fish", "owl"]
    assert settings["threshold"] == THRESHOLD
    resize = {"resize": {"height": 64, "width": 64}, "crop": None, "resample": "bilinear"}
    assert settings["preprocessing"] == resize


@pytest.mark.usefixtures("fake_export")
def test_background_is_not_drawn_at_first(segmenter_dir, tmp_path):
    model = shutil.copytree(segmenter_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["id2label"]["2"] = "Background"
    (model / "config.json").write_text(json.dumps(config))
    build_static_page(str(model), tmp_path / "page")
    settings = json.loads((tmp_path / "page" / "model.json").read_text())
    assert (settings["task"], settings["background"], settings["threshold"]) == ("image-segmentation", [2], None)
    html = (tmp_path / "page" / "index.html").read_text()
    assert "Segments images into 4 classes." in html
    assert 'class="switches"' in html
    assert 'id="threshold"' not in html


@pytest.mark.usefixtures("fake_export")
def test_update_overwrites_an_earlier_page_only(models, tmp_path):
    folder = tmp_path / "page"
    build_static_page(models[CLASSIFICATION], folder)
    (folder / "notes.txt").write_text("mine")
    version = (folder / "service-worker.js").read_text()
    build_static_page(models[CLASSIFICATION], folder)
    assert (folder / "service-worker.js").read_text() == version
    build_static_page(models[DETECTION], folder)
    assert (folder / "service-worker.js").read_text() != version
    assert (folder / "notes.txt").read_text() == "mine"
    for name in ("photo.jpg", "index.html"):
        other = tmp_path / name.replace(".", "-")
        other.mkdir()
        (other / name).write_text(LOGO)
        with pytest.raises(ValueError, match="expected a missing or empty one, or an earlier page"):
            build_static_page(models[CLASSIFICATION], other)
        assert [path.name for path in other.iterdir()] == [name]


@pytest.mark.usefixtures("fake_export")
def test_failed_export_writes_nothing(models, tmp_path, monkeypatch):
    monkeypatch.setattr(static_page, "runtime_files", lambda: (_ for _ in ()).throw(ValueError("no connection")))
    with pytest.raises(ValueError, match="no connection"):
        build_static_page(models[CLASSIFICATION], tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.usefixtures("fake_export")
def test_pickled_weights_are_supported(classifier_dir, tmp_path):
    weights = mobilevit_hf.MobileViTForImageClassification.from_pretrained(classifier_dir).state_dict()
    torch.save(weights, classifier_dir / "pytorch_model.bin")
    (classifier_dir / "model.safetensors").unlink()
    build_static_page(str(classifier_dir), tmp_path / "page")
    assert "No evaluation of this model is recorded." in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.usefixtures("fake_export")
def test_names_are_escaped(classifier_dir, tmp_path):
    config = json.loads((classifier_dir / "config.json").read_text())
    config["id2label"]["0"] = "</script><b>cat & dog"
    (classifier_dir / "config.json").write_text(json.dumps(config))
    build_static_page(str(classifier_dir), tmp_path / "page")
    html = (tmp_path / "page" / "index.html").read_text()
    assert "&lt;/script&gt;&lt;b&gt;cat &amp; dog" in html
    assert "<b>cat" not in html


def test_unsupported_preprocessing_is_an_error(classifier_dir):
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor(resample=0)
    with pytest.raises(ValueError, match=r"got do_resize=True, resample=0 .* expected True and 2 \(bilinear\)"):
        static_page.read_preprocessing(processor, "model")


def test_description_quotes_the_records():
    def describe(name):
        return static_page.describe(collect_metadata(builtin(name), CardOptions(license="mit")), name, "user/model")

    classifier, detector = describe("garments"), describe("blood-cells")
    assert classifier.summary == "Classifies images into 10 classes."
    assert classifier.quality == (
        "Accuracy: 86.0% on 372 images of the test split (95% confidence interval 82.1% to 89.2%)."
    )
    assert detector.quality.startswith("mAP at IoU 0.50: 89.7% on 72 images of the test split (95%")
    assert (
        "At the recommended threshold of 0.43, 81.5% of the detected objects are right, and 80.8%" in detector.quality
    )
    assert "trained on 205 images" in detector.facts
    assert detector.link.endswith("/user/model")


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime():
    """The browser's runtime in the user's cache; skip the test if it can't be downloaded."""
    pytest.importorskip("onnxscript")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_web, "cache_folder", lambda: cache_folder().parent)
        try:
            yield onnxruntime_web.runtime_files()
        except ValueError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def serve(runtime, tmp_path_factory):
    """A function that builds the page of a model and returns its folder and URL."""
    folders, servers = {}, []

    def serve(model):
        if model not in folders:
            folder = tmp_path_factory.mktemp("page")
            build_static_page(model, folder)
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
            servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            folders[model] = folder, f"http://127.0.0.1:{server.server_port}/"
        return folders[model]

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser():
    with open_chromium(*FAKE_CAMERA) as browser:
        yield browser


@pytest.fixture
def open_page(browser, serve):
    """A function that opens the page of a model at the width of a phone.

    At the end: no request to another origin, no error in the console, and no horizontal scrolling.
    """
    opened = []

    def open_page(model, setup="", **options):
        _, url = serve(model)
        context = browser.new_context(viewport={"width": 360, "height": 740}, **options)
        page, problems = context.new_page(), []
        context.on("request", lambda request: problems.append(request.url) if url not in request.url else None)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.add_init_script(setup)
        opened.append((context, page, problems))
        page.goto(url)
        page.get_by_text("Ready").wait_for()
        return page

    yield open_page
    for context, page, problems in opened:
        assert problems == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        context.close()


def choose(page, path):
    """Choose a file, and wait for the answer."""
    page.locator("#time").evaluate("time => (time.textContent = '')")
    page.locator("#file").set_input_files(path)
    page.get_by_text("ms per image").wait_for()


def read_labels(page):
    """Return the labels with their scores in percent."""
    return [tuple(text.split("\n")) for text in page.locator("#labels li").all_inner_texts()]


def read_objects(page):
    """Return labels and boxes of all objects in the table."""
    page.locator("#details").evaluate("details => (details.open = true)")
    rows = [text.split("\t") for text in page.locator("#objects tr").all_inner_texts()]
    return [row[0] for row in rows], torch.tensor([[float(text) for text in row[2:]] for row in rows])


def is_in_view(page, selector):
    box = page.locator(selector).bounding_box()
    return page.evaluate("scrollY") == 0 and box["y"] + box["height"] <= page.viewport_size["height"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one.png", "two.jpg"])
def test_photo_is_classified(open_page, models, files, stock_predictions, name):
    page = open_page(models[CLASSIFICATION])
    choose(page, files[name])
    expected = [(each["label"], f"{each['score']:.1%}") for each in stock_predictions(CLASSIFICATION, name)]
    assert read_labels(page)[:3] == expected
    assert is_in_view(page, "#labels")


@pytest.mark.slow
def test_objects_are_detected(open_page, models, files, stock_predictions):
    page = open_page(models[DETECTION])
    choose(page, files["two.jpg"])
    expected = stock_predictions(DETECTION, "two.jpg")
    labels, boxes = read_objects(page)
    assert labels == [each["label"] for each in expected]
    targets = torch.tensor([list(each["box"].values()) for each in expected], dtype=torch.float)
    assert (boxes - targets).abs().max() <= 1  # the pipeline's are integers
    assert is_in_view(page, "#labels")
    page.locator("#threshold").fill("1")
    assert page.locator("#status").inner_text() == "No objects"
    page.locator("#threshold").fill("0.5")
    assert page.locator("#objects tr").count() == sum(each["score"] > 0.5 for each in expected) > 0


@pytest.mark.slow
def test_classes_of_pixels_are_drawn_and_switched_off(open_page, segmenter_dir, image, tmp_path):
    """On an image of the model's size, which is not resized."""
    image.resize((96, 64)).save(tmp_path / "photo.png")
    segments = transformers.pipeline("image-segmentation", str(segmenter_dir))(str(tmp_path / "photo.png"))
    fractions = {each["label"]: (np.asarray(each["mask"]) > 0).mean() for each in segments}
    page = open_page(str(segmenter_dir))
    choose(page, tmp_path / "photo.png")
    assert page.locator("#status").inner_text() == f"{len(fractions)} classes"
    rows = page.locator("#labels li:visible")
    assert dict(text.split("\n") for text in rows.all_inner_texts()) == {
        label: f"{fraction:.1%}" for label, fraction in fractions.items()
    }
    assert is_in_view(page, "#labels")

    def read_colors():
        """Return the color of the image on the page at the centers of its pixels."""
        values = page.locator("#canvas").evaluate(
            "c => [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        )
        pixels = np.array(values[2:]).reshape(values[1], values[0], 4)[..., :3]
        y, x = ((np.arange(n) + 0.5) * size / n for n, size in ((64, values[1]), (96, values[0])))
        return pixels[np.ix_(y.astype(int), x.astype(int))]

    colors = class_colors(["cat", "dog", "fish", "owl"])
    for switch in page.locator("#labels input:visible").all():
        switch.uncheck()
    original = read_colors()
    for segment in segments:
        page.locator("#labels li", has_text=segment["label"]).locator("input").check()
        inside = np.asarray(segment["mask"]) > 0
        inside = (
            inside & np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
        )
        drawn = read_colors()
        expected = 0.45 * original + 0.55 * np.array(colors[segment["label"]])
        assert np.abs(drawn - expected)[inside].max() <= 3
        page.locator("#labels li", has_text=segment["label"]).locator("input").uncheck()
    np.testing.assert_array_equal(read_colors(), original)


@pytest.mark.slow
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_photo_is_dropped_or_pasted(open_page, models, files, event):
    page = open_page(models[CLASSIFICATION])
    page.evaluate(
        """([event, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "photo.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          const init = event === "drop" ? { dataTransfer: data } : { clipboardData: data };
          const kind = event === "drop" ? DragEvent : ClipboardEvent;
          document.body.dispatchEvent(new kind(event, { ...options, ...init }));
        }""",
        [event, list(files["one.png"].read_bytes())],
    )
    page.get_by_text("ms per image").wait_for()
    dropped = read_labels(page)
    choose(page, files["one.png"])
    assert read_labels(page) == dropped


@pytest.mark.slow
@pytest.mark.parametrize("name", ["broken.jpg", "notes.txt", "truncated.heic"])
def test_unreadable_file_is_an_error_message(open_page, models, files, tmp_path, name):
    path = files.get(name) or tmp_path / name
    path.write_bytes(path.read_bytes() if path.exists() else b"\0\0\0\x18ftypheic")
    page = open_page(models[CLASSIFICATION])
    choose(page, files["one.png"])
    page.locator("#file").set_input_files(path)
    error = page.get_by_role("alert")
    error.wait_for()
    assert error.inner_text().startswith(f"{name} can't be opened.")
    assert ("HEIC" in error.inner_text()) == (name == "truncated.heic")
    assert read_labels(page) == []
    choose(page, files["one.png"])
    assert error.is_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("task", [CLASSIFICATION, DETECTION])
def test_camera_frames_are_answered(open_page, models, task):
    page = open_page(models[task])
    page.get_by_role("button", name="Use camera").click()
    page.get_by_text("frames/s").wait_for()
    number = page.evaluate("document.querySelector('#video').getVideoPlaybackQuality().totalVideoFrames")
    page.wait_for_function(
        "number => document.querySelector('#video').getVideoPlaybackQuality().totalVideoFrames > number", arg=number
    )
    page.get_by_role("button", name="Take photo").click()
    page.get_by_text(re.compile(r"ms per image$")).wait_for()
    assert page.locator("#video").evaluate("video => video.srcObject") is None
    if task == CLASSIFICATION:
        assert len(read_labels(page)) == 4
    page.get_by_role("button", name="Use camera").click()
    page.get_by_role("button", name="Stop camera").click()
    assert page.get_by_role("button", name="Use camera").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [("NotAllowedError", "The camera is blocked."), ("NotFoundError", "There is no camera.")],
)
def test_unavailable_camera_is_an_error_message(open_page, models, error, message):
    reject = f'navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException("", "{error}"); }};'
    page = open_page(models[CLASSIFICATION], setup=reject)
    page.get_by_role("button", name="Use camera").click()
    page.get_by_text(message).wait_for()
    assert page.get_by_role("button", name="Use camera").is_visible()


@pytest.mark.slow
def test_page_works_offline_after_the_first_visit(open_page, models, files):
    page = open_page(models[CLASSIFICATION])
    choose(page, files["one.png"])
    labels = read_labels(page)
    page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    page.context.set_offline(True)
    page.reload()
    page.get_by_text("Ready").wait_for()
    assert page.evaluate("crossOriginIsolated")  # by the service worker: allows threads
    choose(page, files["one.png"])
    assert read_labels(page) == labels


@pytest.mark.slow
def test_update_replaces_the_cached_page(open_page, serve, classifier_dir):
    page = open_page(str(classifier_dir))
    page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    page.reload()
    config = json.loads((classifier_dir / "config.json").read_text())
    config["id2label"]["0"] = "zebra"
    (classifier_dir / "config.json").write_text(json.dumps(config))
    folder, _ = serve(str(classifier_dir))
    build_static_page(str(classifier_dir), folder)
    page.reload()
    page.get_by_text("zebra").wait_for()
    page.wait_for_function("async () => (await caches.keys()).length === 1")


@pytest.mark.slow
def test_policy_forbids_other_origins(browser, serve, models):
    page = browser.new_page()
    page.goto(serve(models[CLASSIFICATION])[1])
    directive = page.evaluate(
        """() => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
          new Image().src = "http://localhost:9/";
        })"""
    )
    assert directive == "img-src"
    page.close()


@pytest.mark.slow
def test_page_opened_as_a_file_explains_how_to_serve_it(browser, serve, models):
    page = browser.new_page()
    page.goto((serve(models[CLASSIFICATION])[0] / "index.html").as_uri())
    page.get_by_text("python -m http.server").wait_for()
    page.close()


def sample_paths(folder, pattern):
    """Return 20 photos from cameras, in their original sizes."""
    paths = sorted(folder.glob(pattern))
    return paths[:: len(paths) // 20][:20]


@pytest.mark.slow
def test_labels_equal_those_of_the_torch_pipeline(open_page, reference_data):
    page, classify = open_page("garments"), mobilevit_hf.pipeline(CLASSIFICATION, "garments")
    for path in sample_paths(reference_data, "data/clothing/test/*/*.jpg"):
        choose(page, path)
        expected = [(each["label"], f"{each['score']:.1%}") for each in classify(str(path), top_k=3)]
        assert read_labels(page)[:3] == expected, path


@pytest.mark.slow
def test_boxes_equal_those_of_the_torch_pipeline(open_page, reference_data):
    page, detect = open_page("blood-cells"), mobilevit_hf.pipeline(DETECTION, "blood-cells")
    threshold = detect.model.config.recommended_threshold
    for path in sample_paths(reference_data, "data/bccd/JPEGImages/*.jpg"):
        choose(page, path)
        labels, boxes = read_objects(page)
        image = load_image(path)
        outputs = detect.model(**detect.image_processor(image, return_tensors="pt"))
        # The pipeline's own boxes are truncated to integers: 5% of a platelet's side.
        sizes = [(image.height, image.width)]
        (expected,) = detect.image_processor.post_process_object_detection(outputs, threshold, sizes)
        assert labels == [detect.model.config.id2label[label] for label in expected["labels"].tolist()], path
        assert box_iou(boxes, expected["boxes"]).diagonal().min() >= 0.95, path
