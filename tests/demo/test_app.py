"""The demo page: its event handlers, and the page in a browser."""

import csv
import errno
import json
import os
import re
import tempfile
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import open_chromium

from mobilevit_hf import demo
from mobilevit_hf.demo import app, inference

CLASSIFICATION, DETECTION, THRESHOLD = "image-classification", "object-detection", 0.02


def test_threshold_is_recommended_by_the_detector(models, detector_dir):
    def visible_and_value(model):
        update = app.select_model(model)
        return update["visible"], update.get("value")

    assert visible_and_value(models[DETECTION]) == (True, THRESHOLD)
    assert visible_and_value(str(detector_dir)) == (True, 0.5)
    assert visible_and_value(models[CLASSIFICATION])[0] is False


def test_labels_are_escaped_in_html():
    html = app._format_counts([{"label": "<b>cat", "score": 1}] * 2, ["<b>cat"], 0.5)
    assert "2 &lt;b&gt;cat" in html
    assert "No objects above 0.5" in app._format_counts([], ["cat"], 0.5)
    assert "&lt;i&gt;" in app._format_error("<i>")


def test_full_disk_keeps_the_table(models, files, monkeypatch, tmp_path):
    def write(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(app, "write_text", write)
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        scratch, paths = SimpleNamespace(name=folder), [str(files["one.png"])]
        note, table, download = app.predict_uploads(scratch, paths, models[DETECTION], "torch", 0.5)
    assert "The CSV file can&#x27;t be written: [Errno 28] No space left on device" in note
    assert "one.png" in table
    assert not download["visible"]


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(models, files):
    names = list(models.values())
    page = demo.build_app(names, examples=[(files["one.png"], names[1])])
    demo.launch(page, prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close(verbose=False)


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
def test_request_for_a_server_file_is_rejected(url, models, tmp_path):
    """Such a request is not sent by the page."""
    model = models[CLASSIFICATION]
    for name in ("/etc/hostname", str(Path(model, "config.json").absolute())):
        data = [{"path": name, "meta": {"_type": "gradio.FileData"}}, model, "torch", 0.5]
        request = urllib.request.Request(
            f"{url}gradio_api/call/predict", json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
        )
        event = json.load(urllib.request.urlopen(request))["event_id"]
        response = urllib.request.urlopen(f"{url}gradio_api/call/predict/{event}").read().decode()
        assert "event: error" in response
        assert "can't be read" not in response


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
