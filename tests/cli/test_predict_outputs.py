"""`mobilevit predict` with --output, --resume, --save and --sort."""

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit_hf.cli.options import PredictionFormat
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.writers import csv_rows


@pytest.fixture
def photos(image, tmp_path):
    """Folder with images of the same names in two subfolders, odd names, and one that is no image."""
    folder = tmp_path / "photos"
    names = ["one/a.jpg", "two/a.jpg", 'x, "y" 日.png', "new\nline.jpg"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.rotate(90 * number, expand=True).save(folder / name)
    return folder


def json_predictions(mobilevit, *arguments):
    """Return the predictions by source."""
    lines = map(json.loads, mobilevit("predict", *arguments, "--json")[1].splitlines())
    return {line["image"]: line["predictions"] for line in lines if "predictions" in line}


def read_csv(path):
    return list(csv.DictReader(path.open(newline="", encoding="utf-8")))


# --- predictions -----------------------------------------------------------------------------------------------------


def test_csv_of_a_classifier_has_the_printed_predictions(mobilevit, classifier, photos, tmp_path):
    (photos / "bad.jpg").write_text("no image")
    path = tmp_path / "predictions.csv"
    code, out, err = mobilevit("predict", photos, "--model", classifier, "--top-k", 2, "--output", path)
    assert (code, out) == (1, "")
    assert "bad.jpg: not an image" in err
    assert f"saved: {path} (4 images)" in err
    expected = json_predictions(mobilevit, photos, "--model", classifier, "--top-k", 2)
    expected = {os.path.relpath(source, photos): value for source, value in expected.items()}
    rows = read_csv(path)
    assert {row["image"] for row in rows} == {"one/a.jpg", "two/a.jpg", 'x, "y" 日.png', "new\nline.jpg"}
    for row in rows:
        first, second = expected[row["image"]]
        assert (row["label"], row["label_2"]) == (first["label"], second["label"])
        assert float(row["score"]) == pytest.approx(first["score"], rel=1e-5)


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_dataset_has_the_printed_boxes_and_copies(mobilevit, detector_dir, photos, tmp_path, name):
    """In the folder of the images, whose copies are not predicted when the run is continued."""
    arguments = [photos, "--model", detector_dir, "--threshold", 0.4]
    expected = json_predictions(mobilevit, *arguments)
    out = photos / "out"
    code, _, err = mobilevit("predict", *arguments, "--output", out, "--format", name)
    assert code == 0, err
    dataset = load_dataset(out, validation_fraction=0)
    assert dataset.data_format == name
    samples = {
        sample.name.split("/", 1)[1].replace("new_line", "new\nline"): sample for sample in dataset.splits["train"]
    }
    samples = {key.replace("x, _y_", 'x, "y"'): sample for key, sample in samples.items()}
    assert {str(photos / key) for key in samples} == set(expected)
    for key, sample in samples.items():
        boxes = [[d["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for d in expected[str(photos / key)]]
        valid = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
        assert sorted(sample.objects.boxes.tolist()) == sorted(valid)
        assert Path(sample.image).read_bytes() == (photos / key).read_bytes()
    code, _, err = mobilevit("predict", *arguments, "--output", out, "--format", name, "--resume")
    assert code == 0
    assert "note: 4 of 4 images are in" in err


def test_json_lines_keep_standard_output_as_it_is(mobilevit, detector_dir, photos, tmp_path):
    arguments = ["predict", photos, "--model", detector_dir, "--json"]
    expected = mobilevit(*arguments)[1]
    code, out, _ = mobilevit(*arguments, "--output", tmp_path / "p.jsonl")
    assert (code, out) == (0, expected)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["predictions"] for line in lines] == [json.loads(line)["predictions"] for line in out.splitlines()]


def test_images_without_detections_are_in_every_format(mobilevit, detector_dir, photos, tmp_path):
    arguments = ["predict", photos, "--model", detector_dir, "--threshold", "1"]
    for name in ("p.csv", "p.jsonl", "p.json"):
        assert mobilevit(*arguments, "--output", tmp_path / name)[0] == 0
    assert [row["label"] for row in read_csv(tmp_path / "p.csv")] == [""] * 4
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 4
    content = json.loads((tmp_path / "p.json").read_text())
    assert (len(content["images"]), content["annotations"]) == (4, [])
    mobilevit(*arguments, "--output", tmp_path / "yolo", "--format", "yolo")
    assert [path.read_text() for path in (tmp_path / "yolo" / "labels").rglob("*.txt")] == [""] * 4


def test_url_is_copied_under_its_host_and_path(mobilevit, detector_dir, photos, served_file, tmp_path):
    content = (photos / "one" / "a.jpg").read_bytes()
    url = served_file("a.jpg", content)
    out = tmp_path / "out"
    code, _, err = mobilevit(
        "predict", url, photos / "one", "--model", detector_dir, "--output", out, "--format", "voc"
    )
    assert code == 0, err
    copies = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.jpg")}
    assert copies == {"JPEGImages/127.0.0.1/a.jpg": content, "JPEGImages/a.jpg": content}


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_interrupted_run_is_continued(mobilevit, classifier, photos, tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    arguments = ["predict", photos, "--model", classifier, "--output"]
    mobilevit(*arguments, tmp_path / "whole.csv")
    with monkeypatch.context() as patch:
        write = csv_rows.CsvWriter.write

        def write_twice(writer, image):
            if len(writer._names) == 2:
                raise KeyboardInterrupt
            write(writer, image)

        patch.setattr(csv_rows.CsvWriter, "write", write_twice)
        code, _, err = mobilevit(*arguments, path)
    assert code == 130
    assert f"note: interrupted; --resume continues {path}." in err
    assert len(read_csv(path)) == 2
    assert mobilevit(*arguments, path)[0] == 2
    code, _, err = mobilevit(*arguments, path, "--resume")
    assert code == 0
    assert f"note: 2 of 4 images are in {path} already." in err
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


# --- saved images ----------------------------------------------------------------------------------------------------


def test_saved_images_of_a_classifier_have_the_label_in_the_corner(mobilevit, classifier, image, tmp_path):
    Image.new("RGB", (320, 240), "black").save(tmp_path / "a.png")
    code, out, _ = mobilevit(
        "predict", tmp_path / "a.png", "--model", classifier, "--save", tmp_path / "out", "--json"
    )
    assert code == 0
    (record,) = map(json.loads, out.splitlines())
    assert record["saved"] == str(tmp_path / "out" / "a.png")
    pixels = np.asarray(Image.open(record["saved"]))
    assert pixels.shape == (240, 320, 3)
    rows, columns = pixels.any(-1).nonzero()
    assert len(rows) > 500
    assert rows.max() < 40
    assert columns.max() < 200


def test_images_are_sorted_into_folders_of_their_predicted_class(mobilevit, classifier, photos, served_file, tmp_path):
    url = served_file("b.jpg", (photos / "two" / "a.jpg").read_bytes())
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    expected = json_predictions(mobilevit, photos, url, "--model", classifier)
    arguments = ["predict", photos, url, "--model", classifier, "--save", tmp_path / "out", "--sort", "--json"]
    for run in (1, 2):
        lines = [json.loads(line) for line in mobilevit(*arguments)[1].splitlines()]
        assert len(lines) == 5
        for line in lines:
            folder = Path(line["saved"]).relative_to(tmp_path / "out").parent
            assert str(folder) == expected[line["image"]][0]["label"]
            content = before.get(Path(line["image"]), before[photos / "two" / "a.jpg"])
            assert Path(line["saved"]).read_bytes() == content
        assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 5 * run
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before


def test_class_names_are_no_paths(mobilevit, classifier, photos, tmp_path):
    shutil.copytree(classifier, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    names = dict(enumerate(["../up", "/root", "", "a/b\n"]))
    config |= {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    out = tmp_path / "some" / "out"
    code, _, err = mobilevit("predict", photos, "--model", tmp_path / "model", "--save", out, "--sort")
    assert code == 0, err
    folders = Counter(path.parent for path in tmp_path.rglob("*.*") if path.is_file() and "some" in path.parts)
    assert sum(folders.values()) == 4
    assert {folder.parent for folder in folders} == {out}


# --- invalid options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "{tmp}/p.txt"], "--output: got {tmp}/p.txt, expected a file that ends with .csv"),
        (["--output", "{tmp}/p"], "without a format"),
        (["--output", "{tmp}/p.txt", "--format", "yolo"], "expected a folder for yolo"),
        (["--output", "{tmp}/p.json"], "expected csv or jsonl for image-classification"),
        (["--output", "{tmp}/no/p.csv"], "--output: folder {tmp}/no does not exist"),
        (["--output", "{tmp}/full.csv"], "--output: {tmp}/full.csv exists. Continue it with --resume"),
        (["--output", "{tmp}/full.csv", "--resume"], "got the columns a,b"),
        (["--output", "{photos}", "--format", "yolo"], "--output: got {photos}, the folder of the images"),
        (["--output", "/dev/full", "--format", "csv"], "/dev/full"),
        (["--format", "csv"], "--format: got no output"),
        (["--resume"], "--resume: got no output"),
        (["--sort"], "--sort: got no folder for the copies. Pass --save DIR."),
    ],
)
def test_invalid_options_are_rejected_before_any_image_is_read(
    mobilevit, classifier, photos, tmp_path, monkeypatch, arguments, words
):
    (tmp_path / "full.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr("mobilevit_hf.data.images.load_first_frame", lambda source: pytest.fail("an image was read"))
    places = {"tmp": tmp_path, "photos": photos}
    before = sorted(tmp_path.rglob("*"))
    code, out, err = mobilevit(
        "predict", photos, "--model", classifier, *(argument.format(**places) for argument in arguments)
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words.format(**places) in err
    assert sorted(tmp_path.rglob("*")) == before


def test_output_without_images_is_rejected(mobilevit):
    code, _, err = mobilevit("predict", "--output", "p.csv")
    assert (code, err) == (2, "error: --output: got no images, expected files, folders or URLs.\n")


def test_formats_of_the_option_are_those_of_the_writers():
    from mobilevit_hf.data.writers.destination import PREDICTION_FORMATS

    assert tuple(map(str, PredictionFormat)) == (*PREDICTION_FORMATS, "parquet")
