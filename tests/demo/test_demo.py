"""The page to try models on: its parts, its command, and the page itself in a browser."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from browser import open_chromium
from PIL import Image

pytest.importorskip("gradio")

from mobilevit_hf import demo
from mobilevit_hf.demo import app, inference

DETECTION, THRESHOLD = "object-detection", 0.02


@pytest.fixture(scope="module", autouse=True)
def _fresh_pipelines(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILEVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    inference.load_predictor.cache_clear()


@pytest.fixture(scope="module")
def models(checkpoints, detector, tmp_path_factory):
    """A classifier and a detector with a threshold of its own, by task."""
    own = Path(shutil.copytree(detector, tmp_path_factory.mktemp("models") / "detector"))
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"recommended_threshold": THRESHOLD}))
    return {"image-classification": str(checkpoints["image-classification"]), DETECTION: str(own)}


@pytest.fixture(scope="module")
def photos(image, tmp_path_factory):
    """Two photos, one upright only by its EXIF, and files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    image.save(folder / "one.png")
    turned = Image.Exif()
    turned[274] = 6
    image.convert("CMYK").save(folder / "two.jpg", exif=turned, quality=95)
    (folder / "broken.jpg").write_bytes(b"no image at all")
    (folder / "notes.txt").write_text("a text")
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(models, photos, run_python):
    """What stock transformers says, in a process without this package, by task and photo."""
    answers = run_python(
        f"""
        import json, transformers
        from PIL import Image, ImageOps

        answers = {{}}
        for task, folder in {models!r}.items():
            ask = transformers.pipeline(task, folder, trust_remote_code=True)
            options = {{"threshold": {THRESHOLD}}} if task == {DETECTION!r} else {{"top_k": 3}}
            for path in {[str(photos[name]) for name in ("one.png", "two.jpg")]!r}:
                image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
                answers[f"{{task}} {{path}}"] = ask(image, **options)
        print(json.dumps(answers))
        """,
        without_package=True,
    )
    return lambda task, name: json.loads(answers)[f"{task} {photos[name]}"]


def count(found):
    labels = [one["label"] for one in found]
    return {label: labels.count(label) for label in labels}


# --- its parts -------------------------------------------------------------------------------------------------------


def test_a_pipeline_is_made_once(models):
    first = inference.load_predictor(models[DETECTION], "torch")
    assert inference.load_predictor(models[DETECTION], "torch") is first
    assert inference.load_predictor(models["image-classification"], "torch") is not first
    assert inference.load_predictor(models[DETECTION], "torch") is first


def test_the_time_is_the_median_of_warm_calls(monkeypatch):
    calls, clock = [], iter([0, 0.1, 1, 1.3, 2, 2.2, 3, 3.9])  # 100, 300, 200 ms, then one that fills the second
    monkeypatch.setattr(inference.time, "perf_counter", lambda: next(clock))

    class Predictor:
        task = "image-classification"

        def __call__(self, image, top_k):
            calls.append(image)
            return [{"label": "cat", "score": 0.25}, {"label": "dog", "score": 0.75}]

    found, milliseconds, timed = inference.answer_timed(Predictor(), "image", 0.5)
    assert [one["label"] for one in found] == ["dog", "cat"]
    assert milliseconds == pytest.approx(250)
    assert (timed, len(calls)) == (4, 5)


def test_files_to_a_table_of_labels(models, photos, expected):
    predictor = inference.load_predictor(models["image-classification"], "torch")
    table = inference.answer_files(predictor, photos.values(), 0.5)
    assert table.headers == ["file", "label", "score", "problem"]
    rows = {row[0]: row[1:] for row in table.rows}
    for name in ("one.png", "two.jpg"):
        best = expected("image-classification", name)[0]
        assert rows[name][0] == best["label"]
        assert rows[name][1] == pytest.approx(best["score"], abs=1e-3)
        assert rows[name][2] == ""
    for name in ("broken.jpg", "notes.txt"):
        assert rows[name][:2] == ["", ""]
        assert "not an image" in rows[name][2]


def test_files_to_a_table_of_counts(models, photos, expected):
    predictor = inference.load_predictor(models[DETECTION], "torch")
    table = inference.answer_files(predictor, [photos["one.png"], photos["two.jpg"]], THRESHOLD)
    counts = [count(expected(DETECTION, name)) for name in ("one.png", "two.jpg")]
    assert any(counts)
    assert set(table.headers) == {"file", *counts[0], *counts[1]}  # and no problem
    for row, numbers in zip(table.rows, counts, strict=True):
        found = dict(zip(table.headers[1:], row[1:], strict=True))
        assert {label: number for label, number in found.items() if number} == numbers
    nothing = inference.answer_files(predictor, [photos["one.png"], photos["notes.txt"]], 0.999)
    assert nothing.headers == ["file", "problem"]
    assert nothing.rows[0] == ["one.png", ""]


def test_a_detector_recommends_its_threshold(models, detector):
    def shown(model):
        update = app.choose_model(model)
        return update["visible"], update.get("value")

    assert shown(models[DETECTION]) == (True, THRESHOLD)
    assert shown(str(detector)) == (True, 0.5)
    assert shown(models["image-classification"])[0] is False


def test_names_are_text_on_the_page():
    html = app._counts([{"label": "<b>cat", "score": 1}] * 2, ["<b>cat"], 0.5)
    assert "2 &lt;b&gt;cat" in html
    assert "Nothing above 0.5" in app._counts([], ["cat"], 0.5)
    assert "&lt;i&gt;" in app._problem("<i>")


@pytest.mark.slow
def test_backends_side_by_side(models, photos, expected, monkeypatch):
    image = Image.open(photos["one.png"])
    model = models["image-classification"]
    tables = list(inference.compare_backends(model, image, 0.5))
    (table,) = {id(table): table for table in tables}.values()
    assert [row[0] for row in table.rows] == list(inference.backend_titles().values())
    best = expected("image-classification", "one.png")[0]
    for _, milliseconds, answer in table.rows:
        assert float(milliseconds) > 0
        assert answer.startswith(f"{best['label']} ")


def test_a_backend_that_cannot_says_why(photos, monkeypatch, tmp_path):
    config = transformers.ResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], embedding_size=8, id2label={0: "cat", 1: "dog"}
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    monkeypatch.setattr(inference, "backend_titles", lambda: {"torch": "PyTorch", "onnx": "ONNX Runtime"})
    *_, table = inference.compare_backends(str(tmp_path), Image.open(photos["one.png"]), 0.5)
    assert re.match(r"(cat|dog) \d", table.rows[0][2])
    assert table.rows[1][:2] == ["ONNX Runtime", ""]
    assert table.rows[1][2]


def test_a_full_disk_leaves_the_table_and_says_so(models, photos, monkeypatch, tmp_path):
    def write(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(app, "write_text", write)
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        scratch, paths = SimpleNamespace(name=folder), [str(photos["one.png"])]
        note, table, download = app.answer_all(scratch, paths, models[DETECTION], "torch", 0.5)
    assert "The answers can&#x27;t be kept as CSV: [Errno 28] No space left on device" in note
    assert "one.png" in table
    assert not download["visible"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_without_gradio(mobilevit, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, out, err = mobilevit("demo")
    assert (code, out) == (2, "")
    assert err == "error: The page needs gradio, not installed here: pip install gradio\n"


def test_a_port_that_is_taken(mobilevit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, _, err = mobilevit("demo", "--port", port)
    assert code == 2
    assert err.startswith(f"error: The page can't be at 127.0.0.1:{port} (")
    assert err.count("\n") == 1


def test_a_model_that_is_not_there(mobilevit, tmp_path):
    code, _, err = mobilevit("demo", "--no-open", "--port", free_port(), "--model", tmp_path)
    assert code == 2
    assert "holds no config.json" in err


@pytest.mark.parametrize(("host", "fixed"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_no_folder_is_named_from_elsewhere(mobilevit, monkeypatch, models, host, fixed):
    asked = {}

    def build(models, **options):
        asked.update(options, models=models)
        raise ValueError("enough")

    monkeypatch.setattr(demo, "build_app", build)
    monkeypatch.setattr(
        "mobilevit_hf.cli.demo._check_address", lambda *address: None
    )  # tests listen on the loopback only
    model = models[DETECTION]
    mobilevit("demo", "--host", host, "--port", free_port(), "--model", model, "--model", model)
    assert asked["fixed"] is fixed
    assert asked["models"][0] == model
    assert asked["models"].count(model) == 1


@pytest.mark.slow
def test_control_c_ends_it(models, tmp_path):
    command = [sys.executable, "-m", "mobilevit_hf", "demo", "--no-open", "--port", str(free_port())]
    process = subprocess.Popen(
        [*command, "--model", models["image-classification"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == f"http://127.0.0.1:{command[-1]}/\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(models, photos):
    names = list(models.values())
    page = demo.build_app(names, examples=[(photos["one.png"], names[1])])
    demo.launch(page, prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    """The page at a phone's width; it asks for nothing from elsewhere."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.locator("input[type=file]").first.wait_for(state="attached")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []
    page.close()


def choose(page, model):
    box = page.get_by_label(re.compile("^Model"))
    box.fill(model)
    box.press("Enter")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one.png", "two.jpg"])
def test_a_photo_to_a_classifier(page, photos, expected, name):
    page.locator("input[type=file]").first.set_input_files(photos[name])
    page.get_by_text("ms with PyTorch").wait_for()
    rows = [text.split() for text in page.locator(".confidence-set").all_inner_texts()]
    best = expected("image-classification", name)
    assert [row[0] for row in rows][:3] == [one["label"] for one in best]
    assert [row[-1] for row in rows][:3] == [f"{one['score']:.0%}" for one in best]


@pytest.mark.slow
def test_a_photo_to_a_detector(page, models, photos, expected):
    """A model whose name is typed; its own threshold is set."""
    choose(page, models[DETECTION])
    page.wait_for_function(
        "value => document.querySelector('input[type=number]')?.value === value", arg=str(THRESHOLD)
    )
    page.locator("input[type=file]").first.set_input_files(photos["two.jpg"])
    page.locator(".note .chip").first.wait_for()
    shown = dict(reversed(text.split(" ", 1)) for text in page.locator(".note .chip").all_inner_texts())
    assert shown == {label: str(number) for label, number in count(expected(DETECTION, "two.jpg")).items()}
    drawn = page.locator("#found img")
    width, height = drawn.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert (width, height) == (96, 128)  # upright


@pytest.mark.slow
def test_an_example_brings_its_model(page, models, photos):
    page.locator(".gallery-item").click()
    page.locator(".note .chip").first.wait_for()
    assert page.get_by_label(re.compile("^Model")).input_value() == models[DETECTION]
    page.get_by_role("button", name="Remove").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(photos["broken.jpg"])  # read as any other
    page.get_by_role("alert").get_by_text("This image can't be read").wait_for()


@pytest.mark.slow
def test_a_visitor_reads_no_file_of_the_server(url, models, tmp_path):
    """A request that names one, as no page would send it."""
    model = models["image-classification"]
    for name in ("/etc/hostname", str(Path(model, "config.json").absolute())):
        data = [{"path": name, "meta": {"_type": "gradio.FileData"}}, model, "torch", 0.5]
        request = urllib.request.Request(
            f"{url}gradio_api/call/answer", json.dumps({"data": data}).encode(), {"Content-Type": "application/json"}
        )
        event = json.load(urllib.request.urlopen(request))["event_id"]
        said = urllib.request.urlopen(f"{url}gradio_api/call/answer/{event}").read().decode()
        assert "event: error" in said
        assert "can't be read" not in said


@pytest.mark.slow
def test_a_file_that_is_no_image(page, photos):
    page.locator("input[type=file]").first.set_input_files(photos["broken.jpg"])
    page.get_by_role("alert").get_by_text("This image can't be read: not an image").wait_for()
    assert "Traceback" not in page.content()
    page.locator("input[type=file]").first.set_input_files(photos["one.png"])  # and the next one is answered
    page.get_by_text("ms with PyTorch").wait_for()


@pytest.mark.slow
def test_a_model_that_cannot_be_had(page, tmp_path):
    choose(page, str(tmp_path))
    page.get_by_text("holds no config.json").first.wait_for()


@pytest.mark.slow
def test_many_files(page, photos, expected, tmp_path):
    page.get_by_role("tab", name="Files").click()
    page.locator("input[type=file]").last.set_input_files(list(photos.values()))
    page.locator("tr.file").nth(len(photos) - 1).wait_for()
    page.get_by_role("button", name="Answer").click()
    with page.expect_download() as download:
        page.get_by_text("Download as CSV").click()
    download.value.save_as(tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows.keys() == photos.keys()
    for name in ("one.png", "two.jpg"):
        assert rows[name]["label"] == expected("image-classification", name)[0]["label"]
    assert "not an image" in rows["broken.jpg"]["problem"]
    assert page.get_by_text(rows["broken.jpg"]["problem"]).count()
