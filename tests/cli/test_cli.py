"""The mobilevit command as a person uses it: images in, labels or boxes out, a line for each thing that is wrong."""

import errno
import json
import os
import shutil
import socketserver
import threading
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from formula import formula_state_dict
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from PIL import Image
from rich.console import Console
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

import mobilevit_hf
from mobilevit_hf import cli, io, model_sources
from mobilevit_hf.data.images import load_image
from mobilevit_hf.visualization import class_colors


@pytest.fixture
def classifier(checkpoints):
    return checkpoints["image-classification"]


@pytest.fixture
def photos(image, tmp_path):
    """A folder with three images of different shapes and kinds."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    image.save(folder / "a.jpg")
    image.rotate(90, expand=True).save(folder / "b.png")
    image.convert("CMYK").resize((70, 200)).save(folder / "more" / "c.jpg")
    return folder


def test_answers_are_those_of_stock_pipeline(mobilevit, classifier, photos):
    code, out, err = mobilevit("predict", photos, "--model", classifier, "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [str(photos / name) for name in ("a.jpg", "b.png", "more/c.jpg")]
    stock = transformers.pipeline("image-classification", model=str(classifier))
    for line in lines:
        expected = stock(line["image"])
        assert [p["label"] for p in line["predictions"]] == [p["label"] for p in expected]
        assert [p["score"] for p in line["predictions"]] == pytest.approx([p["score"] for p in expected], abs=1e-5)


def test_more_images_than_a_batch(mobilevit, classifier, image, tmp_path, monkeypatch):
    monkeypatch.setattr("mobilevit_hf.cli.predict.BATCH_SIZE", 2)
    for i in range(5):
        image.rotate(72 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    code, out, _ = mobilevit("predict", tmp_path, "--model", classifier, "--json", "--top-k", 1)
    assert code == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [str(tmp_path / f"{i}.png") for i in range(5)]
    classify = mobilevit_hf.pipeline("image-classification", str(classifier))
    for i in (0, 2, 3, 4):
        (expected,) = classify(load_image(tmp_path / f"{i}.png"), top_k=1)
        assert lines[i]["predictions"][0]["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert "not an image" in lines[1]["error"]


@pytest.mark.parametrize("terminal", ["output", "messages"])
def test_a_progress_bar_leaves_the_other_stream_alone(mobilevit, classifier, photos, monkeypatch, terminal):
    """With only one of the two streams on a terminal, the bar is there and the other holds what it should."""
    monkeypatch.setattr("mobilevit_hf.cli.predict.BATCH_SIZE", 1)
    (photos / "z.jpg").write_text("no image")
    monkeypatch.setattr(cli.console, terminal, Console(stderr=terminal == "messages", force_terminal=True))
    _, out, err = mobilevit("predict", photos, "--model", classifier, "--json")
    streams = {"output": out, "messages": err}
    assert "Looking at images" in streams.pop(terminal)
    (other,) = streams.values()
    assert "Looking" not in other
    if terminal == "messages":
        assert [json.loads(line)["image"] for line in other.splitlines()] == sorted(map(str, photos.rglob("*.*")))
    else:
        assert "1 of 4 could not be read" in other


def test_the_table(mobilevit, classifier, photos):
    code, out, _ = mobilevit("predict", photos / "a.jpg", "--model", classifier, "--top-k", 2)
    assert code == 0
    assert str(photos / "a.jpg") in out
    assert out.count("%") == 2


def test_without_a_image_it_shows_a_sample(mobilevit, classifier):
    code, out, err = mobilevit("predict", "--model", classifier)
    assert code == 0
    assert "sample photo" in err
    assert "%" in out


def test_unreadable_images_are_named_and_the_rest_answered(mobilevit, classifier, photos):
    (photos / "bad.jpg").write_text("not an image")
    code, out, err = mobilevit("predict", photos, photos / "gone.jpg", "--model", classifier)
    assert code == 1
    assert "bad.jpg: not an image" in err
    assert "gone.jpg: no such file" in err
    assert "2 of 5" in err
    assert out.count("a.jpg") == 1
    assert "b.png" in out
    assert "c.jpg" in out


def test_hostile_names_are_written_out(mobilevit, classifier, image, tmp_path):
    name = "a[red]\x1b[31m\n.png"
    image.save(tmp_path / name)
    (tmp_path / "\x1b[2J.jpg").write_text("no image")
    _, out, err = mobilevit("predict", tmp_path, "--model", classifier)
    assert "\x1b" not in out + err
    assert "a[red]\\x1b[31m\\n.png" in out
    assert "\\x1b[2J.jpg" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/model"], "can't be a Hub id"),
        (["--model", "{photo}"], "mobilevit convert"),
        (["--model", "{folder}"], "config.json"),
        (["--model", "{segmenter}"], "expected an image classifier or an object detector"),
        (["--model", "{classifier}", "--device", "cuda"], "no such device"),
        (["--model", "{classifier}", "--device", "abacus"], "abacus"),
        (["--model", "{classifier}", "--top-k", "0"], "--top-k"),
        (["--model", "{classifier}", "--threshold", "0.5"], "--threshold: not for image-classification"),
        (["--model", "{classifier}", "--save", "{out}"], "--save: not for image-classification"),
        (["--model", "{detector}", "--top-k", "5"], "--top-k: not for object-detection"),
        (["--model", "{detector}", "--threshold", "1.1"], "--threshold"),
        (["--model", "{detector}", "--save", "{photo}"], "--save"),
    ],
)
def test_mistakes_get_one_line(mobilevit, checkpoints, detector, photos, arguments, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = {
        "photo": photos / "a.jpg",
        "folder": photos,
        "segmenter": checkpoints["image-segmentation"],
        "classifier": checkpoints["image-classification"],
        "detector": detector,
        "out": photos / "out",
    }
    code, out, err = mobilevit("predict", photos / "a.jpg", *(a.format(**places) for a in arguments))
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (photos / "out").exists()


def test_an_empty_folder_is_an_error(mobilevit, tmp_path):
    code, _, err = mobilevit("predict", tmp_path)
    assert code == 1
    assert "no images in this folder" in " ".join(err.split())


def test_a_url(mobilevit, classifier, photos, served_file):
    url = served_file("a.jpg", (photos / "a.jpg").read_bytes())
    answers = [mobilevit("predict", source, "--model", classifier, "--json")[1] for source in (url, photos / "a.jpg")]
    assert json.loads(answers[0])["predictions"] == json.loads(answers[1])["predictions"]


def test_models_are_looked_up_as_path_then_built_in(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assets = tmp_path / "assets"
    shutil.copytree(classifier, assets / "garments")
    monkeypatch.setattr(model_sources, "ASSETS", assets)
    assert model_sources.builtin_models() == ["garments"]
    assert model_sources.resolve_model("garments") == assets / "garments"
    shutil.copytree(classifier, tmp_path / "garments")
    assert model_sources.resolve_model("garments").resolve() == tmp_path / "garments"


def test_no_hub_is_one_line(mobilevit, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    code, _, err = mobilevit("predict", photos / "a.jpg")
    assert code == 2
    assert "apple/mobilevit-xx-small" in err
    assert "pass a local directory" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_a_model_of_the_hub(task, checkpoints, detector, photos, run_python, tmp_path, monkeypatch):
    """In a clean process: found by its id, again once downloaded, and a clear word where there is none."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    model = detector if task == "object-detection" else checkpoints[task]
    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("user/repo")
        api.upload_folder(repo_id="user/repo", folder_path=model)
        code = f"""
            import sys, contextlib
            from mobilevit_hf import cli
            from huggingface_hub import constants

            def mobilevit(*arguments):
                sys.argv = ["mobilevit", *arguments]
                with contextlib.redirect_stderr(sys.stdout):
                    try:
                        cli.main()
                    except SystemExit as end:
                        print("exit", end.code)

            photo = {str(photos / "a.jpg")!r}
            mobilevit("predict", photo, "--model", "user/repo", "--json")
            mobilevit("predict", photo, "--model", "user/nothing")
            constants.ENDPOINT = "http://127.0.0.1:9"
            mobilevit("predict", photo, "--model", "user/repo", "--json")
        """
        lines = run_python(code, env=hub.environment(tmp_path / "home")).splitlines()
    stock = transformers.pipeline(task, model=str(model))
    expected = [prediction["score"] for prediction in stock(str(photos / "a.jpg"))]
    assert lines[1] == lines[-1] == "exit 0"
    for line in (lines[0], lines[-2]):
        assert [p["score"] for p in json.loads(line)["predictions"]] == pytest.approx(expected, abs=1e-5)
    assert "There is no directory user/nothing" in lines[2]
    assert lines[3] == "exit 2"


# --- detectors -------------------------------------------------------------------------------------------------------


@pytest.fixture
def turned(image, photos):
    """A photo that its EXIF data says to turn by 90°; the folder has three others."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(photos / "turned.jpg", exif=exif)
    return photos / "turned.jpg"


def assert_same_boxes(found, expected):
    assert [p["label"] for p in found] == [p["label"] for p in expected]
    assert [p["score"] for p in found] == pytest.approx([p["score"] for p in expected], abs=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert one["box"] == pytest.approx(other["box"], abs=1)  # rounding, then cut to whole pixels


@pytest.mark.parametrize("batch_size", [2, 8])
def test_boxes_are_those_of_stock_pipeline(mobilevit, detector, photos, turned, monkeypatch, batch_size):
    monkeypatch.setattr("mobilevit_hf.cli.predict.BATCH_SIZE", batch_size)
    code, out, err = mobilevit("predict", photos, "--model", detector, "--threshold", "0.4", "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == sorted(map(str, photos.rglob("*.*")))
    stock = transformers.pipeline("object-detection", model=str(detector))
    for line in lines:
        expected = stock(line["image"], threshold=0.4)
        assert len(expected) > 3
        assert_same_boxes(line["predictions"], expected)
        assert "saved" not in line


def test_other_detectors_and_images_of_several_sizes(mobilevit, photos, tmp_path):
    """Its processor makes inputs of different sizes, and its boxes come in no order."""
    folder = tmp_path / "yolos"
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 96],
        num_detection_tokens=10,
        num_labels=3,
    )
    model = YolosForObjectDetection(config)
    model.load_state_dict(formula_state_dict({name: tuple(value.shape) for name, value in model.state_dict().items()}))
    model.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    code, out, _ = mobilevit("predict", photos, "--model", folder, "--threshold", "0", "--json")
    assert code == 0
    stock = transformers.pipeline("object-detection", model=str(folder))
    for line in map(json.loads, out.splitlines()):
        answer = stock(line["image"], threshold=0)
        expected = sorted(answer, key=lambda found: found["score"], reverse=True)
        assert len(expected) == 10
        assert expected != answer
        assert_same_boxes(line["predictions"], expected)


def test_the_table_of_boxes(mobilevit, detector, photos):
    photo = photos / "a.jpg"
    code, out, _ = mobilevit("predict", photo, "--model", detector)
    _, counts, head, *rows = out.splitlines()
    expected = transformers.pipeline("object-detection", model=str(detector))(str(photo))
    assert code == 0
    numbers = Counter(found["label"] for found in expected)
    assert {tuple(part.split()) for part in counts.split(",")} == {(str(n), label) for label, n in numbers.items()}
    assert head.split() == ["label", "score", "xmin", "ymin", "xmax", "ymax"]
    rows = [row.split() for row in rows]
    assert [row[:2] for row in rows] == [[found["label"], f"{found['score']:.3f}"] for found in expected]
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    for row, found in zip(rows, expected, strict=True):
        assert list(map(int, row[2:])) == pytest.approx(list(found["box"].values()), abs=1)


def test_nothing_above_the_threshold(mobilevit, detector, photos, tmp_path):
    arguments = ["predict", photos / "b.png", "--model", detector, "--threshold", "0.999", "--save", tmp_path / "out"]
    assert "nothing above 0.999" in mobilevit(*arguments)[1]
    line = json.loads(mobilevit(*arguments, "--json")[1])
    assert line["predictions"] == []
    assert np.array_equal(Image.open(line["saved"]), Image.open(photos / "b.png"))


def test_saved_images(mobilevit, detector, photos, turned, tmp_path):
    """Each upright, at its size, and other than before where its boxes and their labels are, and only there."""
    (photos / "bad.jpg").write_text("no image")
    out_folder = tmp_path / "some" / "out"
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    code, out, _ = mobilevit(
        "predict", photos, "--model", detector, "--threshold", "0.6", "--json", "--save", out_folder
    )
    assert code == 1
    lines = [line for line in map(json.loads, out.splitlines()) if "saved" in line]
    assert {line["saved"] for line in lines} == {str(path) for path in out_folder.iterdir()}
    assert sorted(path.name for path in out_folder.iterdir()) == ["a.jpg", "b.png", "c.jpg", "turned.jpg"]
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
    for line in lines:
        image, saved = load_image(line["image"]), Image.open(line["saved"])
        assert saved.size == image.size
        assert saved.format == ("PNG" if line["saved"].endswith("png") else "JPEG")
        untouched = np.ones((image.height, image.width), dtype=bool)
        for found in line["predictions"]:
            box = found["box"]
            untouched[max(0, box["ymin"] - 24) : box["ymax"] + 8] = False
        difference = np.abs(np.asarray(saved).astype(int) - np.asarray(image)).max(-1)
        assert line["predictions"]
        assert difference.max() > 64
        if untouched.any():
            assert difference[untouched].max() <= (0 if saved.format == "PNG" else 24)


def test_a_full_disk_is_one_line_and_leaves_no_half_image(mobilevit, detector, photos, tmp_path, monkeypatch):
    def wait_for_the_disk(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(io, "_sync", wait_for_the_disk)
    code, _, err = mobilevit("predict", photos, "--model", detector, "--save", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: [Errno 28] No space left on device")
    assert len(err.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_colors_follow_the_models_classes(mobilevit, detector, photos, tmp_path):
    """Whatever is on the image: each label's color is the one at its place among the model's four classes."""
    arguments = ["predict", photos / "b.png", "--model", detector, "--threshold", "0.5", "--json", "--save", tmp_path]
    line = json.loads(mobilevit(*arguments)[1])
    pixels = np.asarray(Image.open(line["saved"]))
    colors = class_colors(["cat", "dog", "fish", "owl"])
    labels = {found["label"] for found in line["predictions"]}
    assert 1 < len(labels) < 4
    for label, color in colors.items():
        assert ((pixels == color).all(-1).sum() > 50) == (label in labels)
    box = line["predictions"][0]["box"]  # the best, which is drawn last
    edge = pixels[box["ymin"] : box["ymax"] + 1, box["xmin"]]
    assert (edge == colors[line["predictions"][0]["label"]]).all(-1).mean() > 0.5


def test_images_of_one_name_and_files_that_are_there(mobilevit, detector, image, tmp_path, served_file):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png")
    url = served_file("a.png", (tmp_path / "one" / "a.png").read_bytes()) + "?size=1.5"
    before = (tmp_path / "one" / "a.png").read_bytes()
    sources = [tmp_path / "one" / "a.png", tmp_path / "two" / "a.png", url]
    arguments = ["predict", *sources, "--model", detector, "--json", "--save", tmp_path / "one"]
    saved = [json.loads(line)["saved"] for line in mobilevit(*arguments)[1].splitlines()]
    assert saved == [str(tmp_path / "one" / f"a-{number}.png") for number in (2, 3, 4)]
    assert (tmp_path / "one" / "a.png").read_bytes() == before
    out = mobilevit("predict", sources[0], "--model", detector, "--save", tmp_path / "two")[1]
    assert "a-2.png" in out.replace("\n", "")


@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_checkpoint_never_runs(mobilevit, detector, photos, tmp_path, monkeypatch, known):
    """A detector brings its code along. Ours is known here; with another one nothing may even be asked."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(detector, folder)
    code_files = list(folder.glob("*.py"))
    assert code_files
    for file in code_files:
        file.write_text(f"open({str(mark)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]
    if not known:
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "unknown"}))
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    code, out, err = mobilevit("predict", photos / "a.jpg", "--model", folder)
    assert not mark.exists()
    if known:
        assert (code, err) == (0, "")
        assert "xmin" in out
    else:
        assert code == 2
        assert "custom code" in err


# --- the other commands ----------------------------------------------------------------------------------------------


def test_convert(mobilevit, classifier, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    weights = classifier / "model.safetensors"
    code, out, err = mobilevit("convert", weights, tmp_path / "out", "--labels", labels, "--channel-order", "rgb")
    assert code == 0
    assert "4 labels, RGB" in out
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").id2label == dict(enumerate("abcd"))
    assert not transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").do_flip_channel_order
    labels.write_text("a\nb\n")
    code, _, err = mobilevit("convert", weights, tmp_path / "out2", "--labels", labels)
    assert code == 2
    assert "2" in err
    assert "4" in err
    assert not (tmp_path / "out2").exists()


def test_version(mobilevit):
    assert mobilevit("--version")[:2] == (0, f"mobilevit_hf {mobilevit_hf.__version__}\n")


@pytest.mark.slow
def test_corn_leaves(mobilevit, reference_data, tmp_path):
    """Sixty real photos, weights that somebody trained with timm: our command, stock pipeline and timm agree."""
    timm = pytest.importorskip("timm")
    import torch

    labels = ["Corn_Blight", "Common_Rust", "Gray_Leaf_Spot", "Healthy", "Unclassified"]
    truth = {"Northern_Leaf_Blight": "Corn_Blight"}
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    weights = reference_data / "weights" / "timm_mobilevit_xxs_corn.pth"
    model = tmp_path / "corn"
    assert mobilevit("convert", weights, model, "--labels", tmp_path / "labels.txt", "--image-size", 224)[0] == 0

    code, out, _ = mobilevit("predict", reference_data / "data" / "corn-leaf", "--model", model, "--json")
    answers = {line["image"]: line["predictions"] for line in map(json.loads, out.splitlines())}
    assert code == 0
    assert len(answers) == 60
    folders = {name: name.split("/")[-2].removeprefix("Corn___") for name in answers}
    right = sum(answers[name][0]["label"] == truth.get(folder, folder) for name, folder in folders.items())
    assert right >= 58

    stock = transformers.pipeline("image-classification", model=str(model))
    for name, expected in zip(answers, stock(list(answers), batch_size=10), strict=True):
        assert answers[name][0]["label"] == expected[0]["label"]
        assert answers[name][0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)

    peer = timm.create_model("mobilevit_xxs", num_classes=5).eval()
    peer.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    ours = mobilevit_hf.MobileViTForImageClassification.from_pretrained(model).eval()
    pixels = stock.image_processor([load_image(name) for name in answers], return_tensors="pt").pixel_values
    with torch.inference_mode():
        assert (ours(pixels).logits - peer(pixels)).abs().max() < 1e-4


# --- broken checkpoints and connections ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("image_size", None, "config.json can't be used"),
        ("id2label", ["cat"], "config.json can't be used"),
        ("id2label", {"0": "cat"}, "which has 1 labels"),
    ],
)
def test_a_configuration_mended_by_hand(mobilevit, classifier, photos, tmp_path, field, value, words):
    shutil.copytree(classifier, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    code, _, err = mobilevit("predict", photos / "a.jpg", "--model", tmp_path / "model")
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


HTTP = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "


@pytest.mark.parametrize(
    ("to_head", "to_all"),
    [(b"SSH-2.0-something\r\n", b""), (HTTP + b"0\r\n\r\n", b""), (HTTP + b"0\r\n\r\n", HTTP + b"6\r\n\r\n<html>")],
    ids=["not-http", "connection-ends", "not-json"],
)
def test_what_answers_is_no_hub(mobilevit, photos, monkeypatch, tmp_path, to_head, to_all):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(to_head if self.request.recv(65536).startswith(b"HEAD / ") else to_all)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        code, _, err = mobilevit("predict", photos / "a.jpg", "--model", "user/model")
        server.shutdown()
    assert code == 2
    assert "user/model" in err
    assert "pass a local directory" in err
    assert len(err.strip().splitlines()) == 1
