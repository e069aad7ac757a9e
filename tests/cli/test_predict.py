"""`mobilevit predict`: the predictions of the pipeline, one line per error."""

import errno
import json
import os
import shutil
import socketserver
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from formula import formula_state_dict
from hostile_files import damaged_metadata, write_hostile_files
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from PIL import Image
from rich.console import Console
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

import mobilevit_hf
from mobilevit_hf import cli, io
from mobilevit_hf.data.images import load_image
from mobilevit_hf.visualization import class_colors

# Number of cells on the sample image.
SMEAR = {"RBC": 18, "WBC": 2}


@pytest.fixture
def photos(image, tmp_path):
    """Folder with three images of different shapes and formats."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    image.save(folder / "a.jpg")
    image.rotate(90, expand=True).save(folder / "b.png")
    image.convert("CMYK").resize((70, 200)).save(folder / "more" / "c.jpg")
    return folder


# --- classification --------------------------------------------------------------------------------------------------


def test_predictions_equal_those_of_the_stock_pipeline(mobilevit, classifier, photos):
    code, out, err = mobilevit("predict", photos, "--model", classifier, "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [str(photos / name) for name in ("a.jpg", "b.png", "more/c.jpg")]
    stock = transformers.pipeline("image-classification", model=str(classifier))
    for line in lines:
        expected = stock(line["image"])
        assert [p["label"] for p in line["predictions"]] == [p["label"] for p in expected]
        assert [p["score"] for p in line["predictions"]] == pytest.approx([p["score"] for p in expected], abs=1e-5)


def test_damaged_metadata_costs_no_prediction(mobilevit, classifier, image, tmp_path):
    files = damaged_metadata(np.random.default_rng(0))
    for name, (damaged, _) in files.items():
        (tmp_path / name).write_bytes(damaged)
    code, out, err = mobilevit("predict", tmp_path, "--model", classifier, "--json")
    assert (code, err) == (0, "")
    assert {Path(json.loads(line)["image"]).name for line in out.splitlines() if "predictions" in line} == set(files)

    image.save(tmp_path / "truncated.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "truncated.jpg").read_bytes()[:-100])
    code, out, err = mobilevit("predict", tmp_path, "--model", classifier, "--json")
    assert code == 1
    assert err == f"warning: 1 of {len(files) + 1} images could not be read.\n"
    failed = [json.loads(line) for line in out.splitlines() if "error" in json.loads(line)]
    assert [Path(line["image"]).name for line in failed] == ["truncated.jpg"]
    assert "truncated" in failed[0]["error"]


def test_files_that_are_not_read_are_noted(mobilevit, classifier, photos):
    for name in ("IMG_3.dng", "IMG_4.svg"):
        (photos / name).write_bytes(b"")
    code, _, err = mobilevit("predict", photos, "--model", classifier)
    assert code == 0
    assert "1 .dng (camera raw" in err
    assert "1 .svg (vector" in err


def test_videos_are_unreadable_images(mobilevit, classifier, photos):
    """In a folder, named (here both, but reported once) and by URL."""
    for name in ("IMG_1.MOV", "b.mp4", "more/c.webm"):
        (photos / name).write_bytes(b"")
    arguments = ["predict", photos, photos / "b.mp4", "http://127.0.0.1:9/d.mkv", "--model", classifier]
    code, _, err = mobilevit(*arguments)
    assert code == 1
    lines = [line for line in err.splitlines() if line.startswith("unreadable:")]
    names = [line.split(": .")[0].rpartition("/")[2] for line in lines]
    assert names == ["IMG_1.MOV", "b.mp4", "c.webm", "d.mkv"]
    assert all("is not read: video or animation; extract its frames" in line for line in lines)
    assert "4 of 7 images could not be read" in err
    code, out, _ = mobilevit(*arguments, "--json")
    assert len([line for line in map(json.loads, out.splitlines()) if "video" in line.get("error", "")]) == 4


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_first_frame_of_an_animation_is_predicted(mobilevit, classifier, image, tmp_path, suffix):
    frames = [image, image.rotate(90), image.rotate(180)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    Image.open(tmp_path / f"a.{suffix}").convert("RGB").save(tmp_path / "first.bmp")
    code, out, err = mobilevit("predict", tmp_path, "--model", classifier, "--json")
    assert code == 0
    assert err == f"note: {tmp_path / f'a.{suffix}'}: animated; predicted on its first frame.\n"
    animated, first = [json.loads(line)["predictions"] for line in out.splitlines()]
    assert animated == first


def test_images_are_predicted_in_batches(mobilevit, classifier, image, tmp_path, monkeypatch):
    monkeypatch.setattr("mobilevit_hf.batch.prediction.BATCH_SIZE", 2)
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
def test_progress_bar_leaves_a_redirected_stream_alone(mobilevit, classifier, photos, monkeypatch, terminal):
    """With one of the two streams on a terminal, the bar is shown there and the other has the usual content."""
    monkeypatch.setattr("mobilevit_hf.cli.predict.MIN_TRACKED", 1)
    (photos / "z.jpg").write_text("no image")
    monkeypatch.setattr(cli.console, terminal, Console(stderr=terminal == "messages", force_terminal=True))
    _, out, err = mobilevit("predict", photos, "--model", classifier, "--json")
    streams = {"output": out, "messages": err}
    assert "Predicting" in streams.pop(terminal)
    (other,) = streams.values()
    assert "Predicting" not in other
    if terminal == "messages":
        assert [json.loads(line)["image"] for line in other.splitlines()] == sorted(map(str, photos.rglob("*.*")))
    else:
        assert "1 of 4 images could not be read" in other


def test_table_of_labels(mobilevit, classifier, photos):
    code, out, _ = mobilevit("predict", photos / "a.jpg", "--model", classifier, "--top-k", 2)
    assert code == 0
    assert str(photos / "a.jpg") in out
    assert out.count("%") == 2


def test_sample_photo_is_used_without_an_image(mobilevit, classifier):
    code, out, err = mobilevit("predict", "--model", classifier)
    assert code == 0
    assert "sample photo" in err
    assert "%" in out


def test_url_gives_the_predictions_of_the_file(mobilevit, classifier, photos, served_file):
    url = served_file("a.jpg", (photos / "a.jpg").read_bytes())
    outputs = [mobilevit("predict", source, "--model", classifier, "--json")[1] for source in (url, photos / "a.jpg")]
    assert json.loads(outputs[0])["predictions"] == json.loads(outputs[1])["predictions"]


# --- detection -------------------------------------------------------------------------------------------------------


@pytest.fixture
def rotated_photo(image, photos):
    """Photo with EXIF rotation by 90°, next to the three others."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(photos / "rotated.jpg", exif=exif)
    return photos / "rotated.jpg"


def assert_equal_detections(detections, expected):
    assert [p["label"] for p in detections] == [p["label"] for p in expected]
    assert [p["score"] for p in detections] == pytest.approx([p["score"] for p in expected], abs=1e-5)
    for one, other in zip(detections, expected, strict=True):
        assert one["box"] == pytest.approx(other["box"], abs=1)  # rounded, then truncated to pixels


@pytest.mark.parametrize("batch_size", [2, 8])
def test_detections_equal_those_of_the_stock_pipeline(
    mobilevit, detector_dir, photos, rotated_photo, monkeypatch, batch_size
):
    monkeypatch.setattr("mobilevit_hf.batch.prediction.BATCH_SIZE", batch_size)
    code, out, err = mobilevit("predict", photos, "--model", detector_dir, "--threshold", "0.4", "--json")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == sorted(map(str, photos.rglob("*.*")))
    stock = transformers.pipeline("object-detection", model=str(detector_dir))
    for line in lines:
        expected = stock(line["image"], threshold=0.4)
        assert len(expected) > 3
        assert_equal_detections(line["predictions"], expected)
        assert "saved" not in line


def test_other_detector_with_inputs_of_several_sizes(mobilevit, photos, tmp_path):
    """YOLOS: the processor returns inputs of different sizes, and boxes are not sorted."""
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
        detections = stock(line["image"], threshold=0)
        expected = sorted(detections, key=lambda detection: detection["score"], reverse=True)
        assert len(expected) == 10
        assert expected != detections
        assert_equal_detections(line["predictions"], expected)


def test_table_of_detections(mobilevit, detector_dir, photos):
    photo = photos / "a.jpg"
    code, out, _ = mobilevit("predict", photo, "--model", detector_dir)
    _, counts, head, *rows = out.splitlines()
    expected = transformers.pipeline("object-detection", model=str(detector_dir))(str(photo))
    assert code == 0
    numbers = Counter(detection["label"] for detection in expected)
    assert {tuple(part.split()) for part in counts.split(",")} == {(str(n), label) for label, n in numbers.items()}
    assert head.split() == ["label", "score", "xmin", "ymin", "xmax", "ymax"]
    rows = [row.split() for row in rows]
    assert [row[:2] for row in rows] == [[detection["label"], f"{detection['score']:.3f}"] for detection in expected]
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    for row, detection in zip(rows, expected, strict=True):
        assert list(map(int, row[2:])) == pytest.approx(list(detection["box"].values()), abs=1)


def test_image_without_detections(mobilevit, detector_dir, photos, tmp_path):
    options = ["--model", detector_dir, "--threshold", "0.999", "--save", tmp_path / "out"]
    arguments = ["predict", photos / "b.png", *options]
    assert "nothing above 0.999" in mobilevit(*arguments)[1]
    line = json.loads(mobilevit(*arguments, "--json")[1])
    assert line["predictions"] == []
    assert np.array_equal(Image.open(line["saved"]), Image.open(photos / "b.png"))


def test_saved_images_differ_at_the_boxes_only(mobilevit, detector_dir, photos, rotated_photo, tmp_path):
    """Saved images are upright, have the original size, and differ only at boxes and labels."""
    (photos / "bad.jpg").write_text("no image")
    out_folder = tmp_path / "some" / "out"
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    code, out, _ = mobilevit(
        "predict", photos, "--model", detector_dir, "--threshold", "0.6", "--json", "--save", out_folder
    )
    assert code == 1
    lines = [line for line in map(json.loads, out.splitlines()) if "saved" in line]
    assert {line["saved"] for line in lines} == {str(path) for path in out_folder.iterdir()}
    assert sorted(path.name for path in out_folder.iterdir()) == ["a.jpg", "b.png", "c.jpg", "rotated.jpg"]
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
    for line in lines:
        image, saved = load_image(line["image"]), Image.open(line["saved"])
        assert saved.size == image.size
        assert saved.format == ("PNG" if line["saved"].endswith("png") else "JPEG")
        untouched = np.ones((image.height, image.width), dtype=bool)
        for detection in line["predictions"]:
            box = detection["box"]
            untouched[max(0, box["ymin"] - 24) : box["ymax"] + 8] = False
        difference = np.abs(np.asarray(saved).astype(int) - np.asarray(image)).max(-1)
        assert line["predictions"]
        assert difference.max() > 64
        if untouched.any():
            assert difference[untouched].max() <= (0 if saved.format == "PNG" else 24)


def test_box_colors_follow_the_class_index(mobilevit, detector_dir, photos, tmp_path):
    """The color of a label depends on its index among the model's classes, not on the image."""
    options = ["--threshold", "0.5", "--json", "--save", tmp_path]
    line = json.loads(mobilevit("predict", photos / "b.png", "--model", detector_dir, *options)[1])
    pixels = np.asarray(Image.open(line["saved"]))
    colors = class_colors(["cat", "dog", "fish", "owl"])
    labels = {detection["label"] for detection in line["predictions"]}
    assert 1 < len(labels) < 4
    for label, color in colors.items():
        assert ((pixels == color).all(-1).sum() > 50) == (label in labels)
    box = line["predictions"][0]["box"]  # the best one is drawn last
    edge = pixels[box["ymin"] : box["ymax"] + 1, box["xmin"]]
    assert (edge == colors[line["predictions"][0]["label"]]).all(-1).mean() > 0.5


def test_saved_images_never_overwrite_a_file(mobilevit, detector_dir, image, tmp_path, served_file):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png")
    url = served_file("a.png", (tmp_path / "one" / "a.png").read_bytes()) + "?size=1.5"
    before = (tmp_path / "one" / "a.png").read_bytes()
    sources = [tmp_path / "one" / "a.png", tmp_path / "two" / "a.png", url]
    arguments = ["predict", *sources, "--model", detector_dir, "--json", "--save", tmp_path / "one"]
    saved = [json.loads(line)["saved"] for line in mobilevit(*arguments)[1].splitlines()]
    assert saved == [str(tmp_path / "one" / f"a-{number}.png") for number in (2, 3, 4)]
    assert (tmp_path / "one" / "a.png").read_bytes() == before
    out = mobilevit("predict", sources[0], "--model", detector_dir, "--save", tmp_path / "two")[1]
    assert "a-2.png" in out.replace("\n", "")


# --- built-in models -------------------------------------------------------------------------------------------------


@pytest.fixture
def predict_offline(mobilevit, monkeypatch, tmp_path):
    """Function that runs `mobilevit predict` in an empty folder without a Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: mobilevit("predict", *arguments)


def test_samples_are_predicted_offline(predict_offline, tmp_path):
    code, out, err = predict_offline("--json")
    assert code == 0
    cells, garment = map(json.loads, out.splitlines())
    assert Counter(detection["label"] for detection in cells["predictions"]) == SMEAR
    assert garment["predictions"][0]["label"] == "t-shirt"
    assert garment["predictions"][0]["score"] > 0.5
    with Image.open(cells["saved"]) as drawn, Image.open(cells["image"]) as smear:
        assert np.any(np.asarray(drawn) != np.asarray(smear))
    for command in ("predict photo.jpg --model garments", "--model apple/mobilevit", "train images/"):
        assert command in err


def test_samples_are_summarized_and_can_be_repeated(predict_offline):
    code, out, _ = predict_offline()
    assert code == 0
    assert "2 WBC" in out
    assert "t-shirt" in out
    code, out, _ = predict_offline()  # with the existing files
    assert code == 0


def test_task_options_apply_to_the_matching_sample(predict_offline, tmp_path):
    code, out, _ = predict_offline("--top-k", 1, "--threshold", 0.9, "--save", tmp_path / "drawn", "--json")
    assert code == 0
    cells, garment = map(json.loads, out.splitlines())
    assert len(garment["predictions"]) == 1
    assert all(detection["score"] > 0.9 for detection in cells["predictions"])
    assert cells["saved"] == str(tmp_path / "drawn" / "blood-cells.png")


def test_builtin_model_without_an_image_uses_its_sample(predict_offline):
    code, out, _ = predict_offline("--model", "garments", "--json", "--top-k", 1)
    assert code == 0
    assert json.loads(out)["predictions"][0]["label"] == "t-shirt"


def test_folder_named_like_a_builtin_model_is_ignored(predict_offline, tmp_path):
    (tmp_path / "garments").mkdir()
    assert predict_offline()[0] == 0
    assert predict_offline("--model", "garments")[0] == 0


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_hub_model_is_cached_and_a_missing_one_is_an_error(
    task, checkpoints, detector_dir, photos, run_python, tmp_path, monkeypatch
):
    """In a clean process: downloaded by its id, then read from the cache while the Hub is unreachable."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    model = detector_dir if task == "object-detection" else checkpoints[task]
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
    assert "user/nothing" in lines[2]
    assert lines[3] == "exit 2"


def test_unreachable_hub_prints_one_line(mobilevit, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    code, _, err = mobilevit("predict", photos / "a.jpg")
    assert code == 2
    assert "apple/mobilevit-xx-small" in err
    assert "pass a local directory" in err
    assert len(err.strip().splitlines()) == 1


HTTP = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "


@pytest.mark.parametrize(
    ("to_head", "to_all"),
    [(b"SSH-2.0-something\r\n", b""), (HTTP + b"0\r\n\r\n", b""), (HTTP + b"0\r\n\r\n", HTTP + b"6\r\n\r\n<html>")],
    ids=["not-http", "connection-closed", "not-json"],
)
def test_invalid_hub_response_prints_one_line(mobilevit, photos, monkeypatch, tmp_path, to_head, to_all):
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


# --- invalid input ---------------------------------------------------------------------------------------------------


def test_unreadable_images_are_reported_and_skipped(mobilevit, classifier, photos):
    (photos / "bad.jpg").write_text("not an image")
    code, out, err = mobilevit("predict", photos, photos / "gone.jpg", "--model", classifier)
    assert code == 1
    assert "bad.jpg: not an image" in err
    assert "gone.jpg: no such file" in err
    assert "2 of 5" in err
    assert out.count("a.jpg") == 1
    assert "b.png" in out
    assert "c.jpg" in out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_image_of_a_non_finite_output_is_named(mobilevit, overflowing_dir, tmp_path, options):
    for i, color in enumerate(["black", "white", "black"]):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{i}.png")
    (tmp_path / "0.jpg").write_text("no image")
    code, out, err = mobilevit("predict", tmp_path, "--model", overflowing_dir, *options)
    assert code == 2
    assert f"error: {tmp_path / '1.png'}: got NaN in logits, expected finite outputs" in err
    assert "NaN" not in out


def test_control_characters_and_markup_in_names_are_escaped(mobilevit, classifier, image, tmp_path):
    name = "a[red]\x1b[31m\n.png"
    image.save(tmp_path / name)
    (tmp_path / "\x1b[2J.jpg").write_text("no image")
    _, out, err = mobilevit("predict", tmp_path, "--model", classifier)
    assert "\x1b" not in out + err
    assert "a[red]\\x1b[31m\\n.png" in out
    assert "\\x1b[2J.jpg" in err


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_every_file_is_predicted_or_reported(mobilevit, checkpoints, detector_dir, tmp_path, task, count):
    names = write_hostile_files(tmp_path / "files", count)
    model = detector_dir if task == "object-detection" else checkpoints[task]
    arguments = ["predict", tmp_path / "files", "--model", model, "--device", "cpu"]
    code, out, err = mobilevit(*arguments, "--json")
    assert code == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert sorted(line["image"] for line in lines) == sorted(str(tmp_path / "files" / name) for name in names)
    failed = [line for line in lines if "error" in line]
    assert all("predictions" in line for line in lines if "error" not in line)
    *notes, warning = err.splitlines()
    assert all(line.endswith("animated; predicted on its first frame.") for line in notes)
    assert warning == f"warning: {len(failed)} of {count} images could not be read."

    code, out, err = mobilevit(*arguments, "--save", tmp_path / "out")
    assert code == 1, err
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert err.count("unreadable: ") == len(failed)
    assert len(list((tmp_path / "out").iterdir())) == count - len(failed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/model"], "can't be a Hub id"),
        (["--model", "{photo}"], "mobilevit convert"),
        (["--model", "{folder}"], "config.json"),
        (["--model", "{backbone}"], "expected an image classifier or an object detector or a semantic segmentation"),
        (["--model", "{classifier}", "--device", "cuda"], "no such device"),
        (["--model", "{classifier}", "--device", "abacus"], "abacus"),
        (["--model", "{classifier}", "--top-k", "0"], "--top-k"),
        (["--model", "{classifier}", "--threshold", "0.5"], "--threshold: not for image-classification"),
        (["--model", "{detector}", "--save", "{out}", "--sort"], "--sort: not for object-detection"),
        (["--model", "{classifier}", "--sort"], "--sort: got no folder"),
        (["--model", "{detector}", "--top-k", "5"], "--top-k: not for object-detection"),
        (["--model", "{detector}", "--threshold", "1.1"], "--threshold"),
        (["--model", "{detector}", "--save", "{photo}"], "--save"),
    ],
)
def test_invalid_options_are_rejected(mobilevit, checkpoints, detector_dir, photos, arguments, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    paths = {
        "photo": photos / "a.jpg",
        "folder": photos,
        "backbone": checkpoints["image-feature-extraction"],
        "classifier": checkpoints["image-classification"],
        "detector": detector_dir,
        "out": photos / "out",
    }
    code, out, err = mobilevit("predict", photos / "a.jpg", *(a.format(**paths) for a in arguments))
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (photos / "out").exists()


def test_empty_folder_is_reported(mobilevit, tmp_path):
    code, _, err = mobilevit("predict", tmp_path)
    assert code == 1
    assert "no images in this folder" in " ".join(err.split())


def test_full_disk_prints_one_line_and_leaves_no_partial_image(mobilevit, detector_dir, photos, tmp_path, monkeypatch):
    def raise_disk_full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(io, "_sync", raise_disk_full)
    code, _, err = mobilevit("predict", photos, "--model", detector_dir, "--save", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: [Errno 28] No space left on device")
    assert len(err.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("image_size", None, "invalid config.json"),
        ("id2label", ["cat"], "invalid config.json"),
        ("id2label", {"0": "cat"}, "which has 1 labels"),
    ],
)
def test_invalid_configuration_prints_one_line(mobilevit, classifier, photos, tmp_path, field, value, words):
    shutil.copytree(classifier, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    code, _, err = mobilevit("predict", photos / "a.jpg", "--model", tmp_path / "model")
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_checkpoint_is_never_executed(mobilevit, detector_dir, photos, tmp_path, monkeypatch, known):
    """A saved detector contains code. Ours is not needed; for an unknown model type there is no prompt either."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(detector_dir, folder)
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
