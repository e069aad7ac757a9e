"""The demo page: its event handlers, and the page in a browser."""

import base64
import csv
import json
import re
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from browser import open_chromium

pytest.importorskip("gradio")

import gradio
import httpx
import numpy as np

from mobilevit_hf import demo
from mobilevit_hf.demo import app, inference, middleware
from mobilevit_hf.visualization import class_colors

CLASSIFICATION, DETECTION, THRESHOLD = "image-classification", "object-detection", 0.02


def test_threshold_is_recommended_by_the_detector(models, detector_dir):
    def visible_and_value(model):
        update = app.select_model(inference.load_pipeline, model)
        return update["visible"], update.get("value")

    assert visible_and_value(models[DETECTION]) == (True, THRESHOLD)
    assert visible_and_value(str(detector_dir)) == (True, 0.5)
    assert visible_and_value(models[CLASSIFICATION])[0] is False


def test_labels_are_escaped_in_html():
    html = app._format_counts([{"label": "<b>cat", "score": 1}] * 2, ["<b>cat"], 0.5)
    assert "2 &lt;b&gt;cat" in html
    assert "No objects above 0.5" in app._format_counts([], ["cat"], 0.5)
    assert "&lt;i&gt;" in app._format_error("<i>")


def test_segments_are_drawn_with_their_fractions(segmenter_dir, files, image, tmp_path):
    shutil.copy(files["one.png"], tmp_path / "upload.png")
    load = inference.load_pipeline
    labels, panel, drawn, note, *_ = app.predict_image(
        load, str(tmp_path / "upload.png"), str(segmenter_dir), "torch", 0.5
    )
    assert (labels["visible"], panel["visible"]) == (False, True)
    assert drawn.size == image.size
    assert drawn.tobytes() != image.tobytes()
    segments = load(str(segmenter_dir), "torch")(image)
    for segment in segments:
        fraction = (np.asarray(segment["mask"]) > 0).mean()
        color = class_colors(["cat", "dog", "fish", "owl"])[segment["label"]]
        assert f'background: rgb{color}"></span>{segment["label"]} {fraction:.1%}</span>' in note
    assert app._find_threshold(load, str(segmenter_dir))[1] is False


def test_fixed_models_have_names_without_paths(models, tmp_path, capsys):
    detector = models[DETECTION]
    shutil.copytree(detector, tmp_path / "detector")
    page = demo.build_app([detector, str(tmp_path / "detector")], fixed=True)
    dropdown = next(block for block in page.blocks.values() if block.get_block_name() == "dropdown")
    assert dropdown.choices == [("detector", "detector"), ("detector (2)", "detector (2)")]
    assert str(Path(detector).parent) not in json.dumps(page.get_config_file(), default=str)
    load = partial(app.load_fixed, {"detector": str(tmp_path / "missing")})
    with pytest.raises(ValueError, match=r"^detector can't be run with PyTorch: see the server's log\.$"):
        load("detector", "torch")
    assert "missing" in capsys.readouterr().err


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(models, files, tmp_path_factory):
    names = list(models.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = demo.build_app(names, examples=[(files["one.png"], names[1])])
        demo.launch(page, prevent_thread_lock=True, quiet=True)
        yield page.local_url
        page.close(verbose=False)


def upload(url, name, data):
    """Upload a file as the page does, and return its payload for an event."""
    paths = httpx.post(f"{url}gradio_api/upload", files={"files": (name, data)}).raise_for_status().json()
    return {"path": paths[0], "meta": {"_type": "gradio.FileData"}}


def call(url, name, *data):
    """Return the last message of an event, "complete" or "error", and its data."""
    response = httpx.post(f"{url}gradio_api/call/{name}", json={"data": data})
    if response.is_error:
        return str(response.status_code), response.text
    event = httpx.get(f"{url}gradio_api/call/{name}/{response.json()['event_id']}", timeout=60).text
    *_, kind, text = event.strip().splitlines()
    return kind.removeprefix("event: "), json.loads(text.removeprefix("data: "))


def wait_until_deleted(path):
    deadline = time.monotonic() + 30
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not path.exists()


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "gradio_api/file=x", "gradio_api/queue/data"])
@pytest.mark.parametrize("header", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}])
def test_requests_of_other_sites_are_rejected(url, path, header):
    response = httpx.get(url + path, headers=header)
    assert response.status_code == 403
    preflight = header | {"access-control-request-method": "POST"}
    response = httpx.options(url + path, headers={"origin": "http://evil.example"} | preflight)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_upload_is_deleted_after_the_answer(url, models, files, monkeypatch):
    monkeypatch.setattr(app, "DELETE_SECONDS", 0)
    for name in ("one.png", "broken.jpg"):
        file = upload(url, name, files[name].read_bytes())
        path = Path(file["path"])
        assert path.is_file()
        first = call(url, "predict", file, models[DETECTION], "torch", THRESHOLD)
        assert first[0] == "complete"
        assert wait_until_deleted(path)
        again = call(url, "predict", file, models[DETECTION], "torch", THRESHOLD)  # with other settings, say
        assert again[1][2] == first[1][2]
    assert not [path for path in Path(gradio.utils.get_upload_folder()).glob("*/*") if path.name != "history.txt"]


def test_files_are_deleted_after_the_answer(url, models, files):
    uploads = [upload(url, name, path.read_bytes()) for name, path in files.items()]
    kind, (note, table, cleared) = call(url, "predict_files", uploads, models[CLASSIFICATION], "torch", 0.5)
    assert (kind, cleared) == ("complete", None)
    assert "one.png" in table
    data = base64.b64decode(re.search('base64,([^"]*)', note)[1]).decode()
    assert {row["file"] for row in csv.DictReader(data.splitlines())} == files.keys()
    assert not [file for file in uploads if Path(file["path"]).exists()]


def test_number_of_files_and_pixels_is_limited(url, models, files, monkeypatch):
    file = upload(url, "one.png", files["one.png"].read_bytes())
    rest = models[CLASSIFICATION], "torch", 0.5
    _, (note, table, _) = call(url, "predict_files", [file] * 101, *rest)
    assert "got 101 files, expected at most 100" in note
    assert not table
    assert call(url, "predict_files", [file] * 5000, *rest)[0] == "413"
    header = b"P5 10000 10000 255 "  # 100 megapixels each, without content
    uploads = [upload(url, f"{number}.pgm", header) for number in range(13)]
    _, (note, *_) = call(url, "predict_files", uploads, *rest)
    assert "got 1300 megapixels, expected at most 1200" in note
    assert not [file for file in uploads if Path(file["path"]).exists()]


@pytest.mark.parametrize("size", [1, 3])
def test_large_upload_is_rejected_while_it_is_received(url, size, monkeypatch):
    monkeypatch.setattr(middleware, "MAX_UPLOAD_BYTES", 2 * 2**20)
    sent = []

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        for _ in range(size):
            sent.append(0)
            yield bytes(2**20)
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = httpx.post(f"{url}gradio_api/upload", content=body(), headers=headers)
    assert response.status_code == (200 if size == 1 else 413)
    folder = Path(gradio.utils.get_upload_folder())
    assert not list(folder.glob("tmp*"))  # partial files
    app.delete_uploads(str(path) for path in folder.glob("*/a.jpg"))


def test_file_size_is_limited(url, monkeypatch):
    blocks = httpx.get(f"{url}config").json()
    assert blocks["max_file_size"] == 64 * 2**20


@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_files_of_the_server_are_rejected(url, models, meta):
    """Such requests are not sent by the page. The error does not depend on whether the file exists."""
    model = models[CLASSIFICATION]
    for name, one in (("predict", True), ("predict_files", False)):
        errors = set()
        for path in ("/etc/hostname", "/etc/missing", str(Path(model, "config.json").absolute())):
            file = {"path": path} | meta
            kind, error = call(url, name, file if one else [file], model, "torch", 0.5)
            assert kind == "error"
            errors.add(str(error))
        assert len(errors) == 1
    file = {"path": "http://example.com/a.jpg"} | meta
    assert call(url, "predict", file, model, "torch", 0.5)[0] == "error"


@pytest.mark.parametrize("path", ["file=/etc/hostname", "file=http://127.0.0.1/", "proxy=http://x.hf.space/"])
def test_other_files_are_not_served(url, path):
    assert httpx.get(f"{url}gradio_api/{path}").status_code in (403, 404)


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    """The page at the width of a phone; it requests no external resources."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    page.locator("input[type=file]").first.wait_for(state="attached")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [address for address in requests if not address.startswith((url, "data:", "blob:"))] == []
    page.close()


def select_model(page, model):
    box = page.get_by_label(re.compile("^Model"))
    box.fill(model)
    box.press("Enter")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one.png", "two.jpg"])
def test_image_is_classified(page, files, stock_predictions, name):
    page.locator("input[type=file]").first.set_input_files(files[name])
    page.get_by_text("ms with PyTorch").wait_for()
    rows = [text.split() for text in page.locator(".confidence-set").all_inner_texts()]
    predictions = stock_predictions(CLASSIFICATION, name)
    assert [row[0] for row in rows][:3] == [prediction["label"] for prediction in predictions]
    assert [row[-1] for row in rows][:3] == [f"{prediction['score']:.0%}" for prediction in predictions]


@pytest.mark.slow
def test_objects_are_detected(page, models, files, stock_predictions):
    """With a model whose name is typed; its recommended threshold is set."""
    select_model(page, models[DETECTION])
    page.wait_for_function(
        "value => document.querySelector('input[type=number]')?.value === value", arg=str(THRESHOLD)
    )
    page.locator("input[type=file]").first.set_input_files(files["two.jpg"])
    page.locator(".note .chip").first.wait_for()
    counts = dict(reversed(text.split(" ", 1)) for text in page.locator(".note .chip").all_inner_texts())
    targets = inference.count_labels(stock_predictions(DETECTION, "two.jpg"))
    assert counts == {label: str(number) for label, number in targets.items()}
    image = page.locator("#detections img")
    width, height = image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert (width, height) == (96, 128)  # upright


@pytest.mark.slow
def test_example_selects_its_model(page, models, files):
    page.locator(".gallery-item").click()
    page.locator(".note .chip").first.wait_for()
    assert page.get_by_label(re.compile("^Model")).input_value() == models[DETECTION]
    page.get_by_role("button", name="Remove").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(files["broken.jpg"])  # read by our loader
    page.get_by_role("alert").get_by_text("This image can't be read").wait_for()


@pytest.mark.slow
def test_unreadable_image_shows_an_error(page, files):
    page.locator("input[type=file]").first.set_input_files(files["broken.jpg"])
    page.get_by_role("alert").get_by_text("This image can't be read: not an image").wait_for()
    assert "Traceback" not in page.content()
    page.locator("input[type=file]").first.set_input_files(files["one.png"])  # the next one works
    page.get_by_text("ms with PyTorch").wait_for()


@pytest.mark.slow
def test_missing_model_shows_an_error(page, tmp_path):
    select_model(page, str(tmp_path))
    page.get_by_text(re.compile("config.json")).first.wait_for()


@pytest.mark.slow
def test_files_are_predicted_and_downloaded(page, files, stock_predictions, tmp_path):
    page.get_by_role("tab", name="Files").click()
    page.locator("input[type=file]").last.set_input_files(list(files.values()))
    page.locator("tr.file").nth(len(files) - 1).wait_for()
    page.get_by_role("button", name="Predict").click()
    with page.expect_download() as download:
        page.get_by_text("Download CSV").click()
    download.value.save_as(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows.keys() == files.keys()
    for name in ("one.png", "two.jpg"):
        assert rows[name]["label"] == stock_predictions(CLASSIFICATION, name)[0]["label"]
    assert "not an image" in rows["broken.jpg"]["error"]
    assert page.get_by_text(rows["broken.jpg"]["error"]).count()
