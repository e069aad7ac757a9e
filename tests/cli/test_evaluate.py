import ast
import csv
import json
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
import transformers
from dataset_files import make_images
from evaluation_cases import save_balanced_classifier
from formula import formula_state_dict, official_shapes
from hub_server import HubServer
from huggingface_hub import HfApi
from metric_cases import reference_map
from PIL import Image
from transformers import AutoImageProcessor

import mobilevit_hf
from mobilevit_hf.convert.labels import LABEL_SETS
from mobilevit_hf.reports.files import REPORT_FILES

NAMES = ["cat", "dog", "fish", "owl"]


@pytest.fixture(scope="module")
def labeled_images(tmp_path_factory):
    """Class folders of the tiny classifier's classes, with images of several formats and sizes."""
    folder = tmp_path_factory.mktemp("labeled_images")
    for i, image in enumerate(make_images(30)):
        file = folder / NAMES[i * i % 4 if i % 3 else i % 4] / f"{i}.{'jpg' if i % 2 else 'png'}"
        file.parent.mkdir(exist_ok=True)
        (image.rotate(90, expand=True) if i % 5 == 0 else image).save(file)
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_fields, tmp_path_factory):
    """The folder of a tiny classifier that predicts every class."""
    return save_balanced_classifier(tmp_path_factory.mktemp("classifier"), tiny_fields)


@pytest.fixture(scope="module")
def stock_predictions(classifier, labeled_images):
    """[target, prediction] of each image by transformers' pipeline."""
    classify = transformers.pipeline("image-classification", model=str(classifier))
    assert type(classify.model) is transformers.MobileViTForImageClassification
    return [[file.parent.name, classify(str(file))[0]["label"]] for file in sorted(labeled_images.glob("*/*"))]


# --- classification --------------------------------------------------------------------------------------------------


def test_accuracy_equals_that_of_the_stock_pipeline(mobilevit, classifier, labeled_images, stock_predictions):
    code, out, err = mobilevit("evaluate", classifier, labeled_images, "--split", "all", "--json", "--batch-size", 4)
    assert code == 0, err
    result = json.loads(out)
    assert (result["task"], result["split"], result["num_images"]) == ("image-classification", "all", 30)
    hits = [target == prediction for target, prediction in stock_predictions]
    assert 3 < sum(hits) < 27
    assert len({prediction for _, prediction in stock_predictions}) == 4
    assert result["metrics"]["accuracy"] == sum(hits) / len(hits)
    for name, row in result["metrics"]["per_class"].items():
        of_class = [target == prediction for target, prediction in stock_predictions if target == name]
        assert (row["support"], row["recall"]) == (len(of_class), sum(of_class) / len(of_class))


def test_json_has_confusion_matrix_and_mistakes(mobilevit, monkeypatch, classifier, labeled_images, stock_predictions):
    _, out, _ = mobilevit("evaluate", classifier, labeled_images, "--split", "all", "--json")
    result = json.loads(out)
    pairs = [tuple(pair) for pair in stock_predictions]
    assert result["confusion"] == [[pairs.count((target, prediction)) for prediction in NAMES] for target in NAMES]
    mistakes = result["mistakes"]
    assert sorted((m["target"], m["prediction"]) for m in mistakes) == sorted(p for p in pairs if len(set(p)) == 2)
    assert all(m["name"].startswith(m["target"]) for m in mistakes)
    assert [m["score"] for m in mistakes] == sorted((m["score"] for m in mistakes), reverse=True)
    monkeypatch.setattr("mobilevit_hf.cli.evaluate.MAX_CONFUSION", 3)
    _, out, _ = mobilevit("evaluate", classifier, labeled_images, "--split", "all", "--json")
    assert "confusion" not in json.loads(out)


def test_intervals_are_those_of_resampled_images(mobilevit, classifier, labeled_images, stock_predictions):
    _, out, _ = mobilevit("evaluate", classifier, labeled_images, "--split", "all", "--json")
    intervals = json.loads(out)["intervals"]
    generator = np.random.default_rng(1)
    resampled = {"accuracy": [], "macro_f1": []}
    for _ in range(2000):
        pairs = [stock_predictions[i] for i in generator.integers(0, len(stock_predictions), len(stock_predictions))]
        resampled["accuracy"].append(np.mean([target == prediction for target, prediction in pairs]))
        scores = []
        for name in {name for pair in pairs for name in pair}:
            hits = sum(pair == [name, name] for pair in pairs)
            scores.append(2 * hits / sum(pair.count(name) for pair in pairs))
        resampled["macro_f1"].append(np.mean(scores))
    assert intervals.keys() == resampled.keys()
    for name, values in resampled.items():
        assert intervals[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.035)
    _, again, _ = mobilevit("evaluate", classifier, labeled_images, "--split", "all", "--json")
    assert json.loads(again)["intervals"] == intervals


def test_held_out_images_are_measured_and_named(mobilevit, classifier, labeled_images):
    """Images without splits are those of a training, or a test set: the note names the option for the latter."""
    _, out, err = mobilevit("evaluate", classifier, labeled_images)
    assert "validation: 4 images" in out
    assert "Measured on the 4 images that training holds out. All: --split all." in err


def test_table_of_a_classifier(mobilevit, classifier, labeled_images):
    code, out, err = mobilevit("evaluate", classifier, labeled_images, "--split", "all")
    assert code == 0
    assert "No validation split" in err
    assert "--split all" not in err
    assert re.search(r"(?i)accuracy +\d+\.\d% +95% CI: \d", out)
    for name in NAMES:
        assert name in out


def test_limit_selects_images_of_all_classes(mobilevit, classifier, labeled_images):
    _, out, _ = mobilevit("evaluate", classifier, labeled_images, "--split", "all", "--limit", 15, "--json")
    result = json.loads(out)
    assert result["num_images"] == 15
    assert all(row["support"] > 0 for row in result["metrics"]["per_class"].values())


@pytest.mark.slow
def test_hub_model_on_the_validation_split_of_imagenet_1k(
    run_python, classifier, labeled_images, stock_predictions, tmp_path
):
    """mobilevit evaluate apple/mobilevit-small imagenet-1k, with both on a local Hub."""
    files = sorted(labeled_images.glob("*/*"))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[*NAMES[::-1]])}
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [file.parent.name for file in files],
    }
    parquet = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(parquet)
    with HubServer(user="apple") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("apple/mobilevit-small")
        api.upload_folder(repo_id="apple/mobilevit-small", folder_path=classifier)
        api.create_repo("ILSVRC/imagenet-1k", repo_type="dataset")
        where = {"repo_id": "ILSVRC/imagenet-1k", "repo_type": "dataset"}
        for name in ("train", "validation"):
            api.upload_file(path_or_fileobj=parquet, path_in_repo=f"data/{name}-00000-of-00001.parquet", **where)
        code = """
        from mobilevit_hf import cli
        words = ["evaluate", "apple/mobilevit-small", "imagenet-1k", "--json", "--save", "report"]
        cli.app(words, standalone_mode=False)
        import pathlib
        print(sorted(path.name for path in pathlib.Path("report").iterdir()))
        print("predicted: " in pathlib.Path("report/report.html").read_text())
        """
        out = run_python(code, hub.environment(tmp_path / "home"))
        requested = [request.path for request in hub.requests]
    printed, files, has_images = out.splitlines()[-3:]
    assert {"mistakes.png", "samples.png", "least_confident.png"} <= set(ast.literal_eval(files))
    assert has_images == "True"  # the stream is read again for them
    result = json.loads(printed)
    assert (result["split"], result["num_images"]) == ("validation", 30)
    assert result["metrics"]["accuracy"] == np.mean([target == prediction for target, prediction in stock_predictions])
    assert any("validation" in path for path in requested)
    assert not list((tmp_path / "home").rglob("*.arrow"))  # streamed: nothing is cached


# --- detection -------------------------------------------------------------------------------------------------------


STOCK_DETECTIONS = """
import json, pathlib, transformers
detect = transformers.pipeline("object-detection", model={model!r}, trust_remote_code=True)
assert "mobilevit_hf" not in {{type(detect.model).__module__.split(".")[0]}}
files = sorted(pathlib.Path({images!r}).iterdir())
rounded = {{p.name: detect(str(p), threshold=0.01) for p in files}}
# The same detections before the pipeline rounds boxes to whole pixels.
detect._get_bounding_box = lambda box: dict(zip(("xmin", "ymin", "xmax", "ymax"), box.tolist()))
exact = {{p.name: detect(str(p), threshold=0.01) for p in files}}
print(json.dumps([rounded, exact]))
"""


def write_coco(folder, detect, names, ids, size, count=12, threshold=0.3, split="val2017"):
    """Write a COCO dataset with objects near a detector's detections, some of them crowds; return its annotations."""
    generator = np.random.default_rng(5)
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for i, image in enumerate(make_images(count, size)):
        image.save(folder / split / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
        detections = sorted(detect(image, threshold=threshold), key=lambda detection: -detection["score"])[:40]
        for detection in detections[:: 1 + i % 3]:
            x1, y1, x2, y2 = (side + generator.normal(0, size[0] / 60) for side in detection["box"].values())
            x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1])
            if x2 - x1 < 4 or y2 - y1 < 4:
                continue
            entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            category = ids[names.index(detection["label"])]
            crowd = int(generator.random() < 0.1)
            annotations.append(
                entry | {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": category, "iscrowd": crowd}
            )
    categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return content


def compute_coco_map(content, detections):
    """Return map and map_50 of pycocotools for the pipeline's detections by file name."""
    categories = {category["name"]: category["id"] for category in content["categories"]}
    results = [
        {
            "image_id": image["id"],
            "category_id": categories[detection["label"]],
            "score": detection["score"],
            "bbox": [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]],
        }
        for image in content["images"]
        for detection in detections[image["file_name"]]
        for box in [detection["box"]]
    ]
    return reference_map(content, results)


@pytest.fixture(scope="module")
def detection_dataset(detector_dir, tmp_path_factory):
    """A COCO dataset for the tiny detector, with categories in another order than its classes, and its annotations."""
    folder = tmp_path_factory.mktemp("coco")
    detect = mobilevit_hf.pipeline("object-detection", str(detector_dir))
    return folder, write_coco(folder, detect, ["owl", "cat", "fish", "dog"], [3, 7, 8, 90], (640, 480))


@pytest.mark.slow
def test_map_equals_that_of_the_stock_pipeline(mobilevit, run_python, detector_dir, detection_dataset):
    """The metrics take exact boxes; the pipeline's rounding to whole pixels changes the third digit at this size."""
    folder, content = detection_dataset
    code, out, err = mobilevit("evaluate", detector_dir, folder, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["task"], result["split"], result["num_images"]) == ("object-detection", "validation", 12)
    script = STOCK_DETECTIONS.format(model=str(detector_dir), images=str(folder / "val2017"))
    rounded, exact = json.loads(run_python(script, without_package=True).splitlines()[-1])
    expected = compute_coco_map(content, exact)
    assert 0.05 < expected[0] < 0.95
    measured = [result["metrics"]["map"], result["metrics"]["map_50"]]
    assert measured == pytest.approx(expected, abs=1e-4)
    assert measured == pytest.approx(compute_coco_map(content, rounded), abs=1e-2)
    for name, value in zip(("map", "map_50"), expected, strict=True):
        low, high = result["intervals"][name]
        assert 0 < low < value < high < 1


def test_official_detector_on_coco(mobilevit, tmp_path):
    """mobilevit convert det.pt OUT --labels coco && mobilevit evaluate OUT COCO"""
    weights = formula_state_dict(official_shapes("detection", 1 + 80))
    torch.save(weights, tmp_path / "det.pt")
    model = tmp_path / "model"
    assert mobilevit("convert", tmp_path / "det.pt", model, "--labels", "coco")[0] == 0
    names = LABEL_SETS["coco"]
    ids = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    detect = mobilevit_hf.pipeline("object-detection", str(model))
    folder = tmp_path / "coco"
    content = write_coco(folder, detect, names, ids, (320, 240), count=3, threshold=0.02)
    code, out, err = mobilevit("evaluate", model, folder, "--json")
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    detect._get_bounding_box = lambda box: dict(zip(("xmin", "ymin", "xmax", "ymax"), box.tolist(), strict=True))
    detections = {
        i["file_name"]: detect(str(folder / "val2017" / i["file_name"]), threshold=0.01) for i in content["images"]
    }
    expected = compute_coco_map(content, detections)
    assert expected[0] > 0.01
    assert [metrics["map"], metrics["map_50"]] == pytest.approx(expected, abs=1e-4)


def test_table_of_a_detector(mobilevit, detector_dir, detection_dataset):
    _, out, _ = mobilevit("evaluate", detector_dir, detection_dataset[0])
    assert re.search(r"mAP.* +\d+\.\d% +95% CI: \d", out)
    assert re.search(r"best threshold 0\.\d+: F1 \d", out)


def test_detector_without_detections_or_objects(mobilevit, detector_dir, tmp_path):
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(detector_dir, model)
    AutoImageProcessor.from_pretrained(detector_dir, score_threshold=1.0).save_pretrained(model)
    (data / "annotations").mkdir(parents=True)
    next(make_images(1)).save(data / "0.png")
    content = {"images": [{"id": 0, "file_name": "0.png"}], "annotations": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (data / "annotations/instances_test.json").write_text(json.dumps(content))
    code, out, _ = mobilevit("evaluate", model, data)
    assert code == 0
    assert re.search(r"mAP.* +-", out)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged_images(labeled_images, tmp_path):
    """The labeled images and a file that is not an image."""
    folder = tmp_path / "damaged"
    for file in labeled_images.glob("*/*"):
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
    (folder / "dog" / "[red]bad.jpg").write_text("no image")
    return folder


def test_unreadable_images_are_skipped_listed_and_counted(mobilevit, classifier, labeled_images, damaged_images):
    _, expected, _ = mobilevit("evaluate", classifier, labeled_images, "--split", "all", "--json")
    code, out, err = mobilevit("evaluate", classifier, damaged_images, "--split", "all")
    assert code == 1
    assert "dog/[red]bad.jpg: not an image" in err
    assert "1 of 31 images could not be read" in err
    assert "30 images" in out
    code, out, _ = mobilevit("evaluate", classifier, damaged_images, "--split", "all", "--json")
    assert code == 1
    result = json.loads(out)
    assert result["metrics"] == json.loads(expected)["metrics"]
    assert [(p["name"], p["kind"]) for p in result["problems"]] == [("dog/[red]bad.jpg", "unreadable image")]


def test_too_many_unreadable_images_are_an_error(mobilevit, classifier, damaged_images):
    code, out, err = mobilevit("evaluate", classifier, damaged_images, "--split", "all", "--max-bad", 0.03)
    assert (code, out) == (2, "")
    assert re.search(r"error: .*bad\.jpg", err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{detector}", "{labeled}"], "image-classification.*object-detection"),
        (["{classifier}", "{boxes}"], "object-detection.*image-classification"),
        (["{classifier}", "{labeled}", "--split", "exam"], "exam.*train, validation, all"),
        (["{classifier}", "{labeled}/none"], "none"),
        (["{labeled}", "{classifier}"], "expected the model first. Swap them."),
    ],
)
def test_invalid_arguments_print_one_line(
    mobilevit, classifier_dir, detector_dir, labeled_images, detection_dataset, arguments, message
):
    folders = {
        "classifier": classifier_dir,
        "detector": detector_dir,
        "labeled": labeled_images,
        "boxes": detection_dataset[0],
    }
    code, out, err = mobilevit("evaluate", *(argument.format(**folders) for argument in arguments))
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert err.count("\n") == 1


# --- segmentation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """PASCAL VOC 2012 with two images in its validation split, and masks of palette files with a border of 255."""
    folder = tmp_path_factory.mktemp("VOC2012")
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    for index, image in enumerate(make_images(3, size=(100, 80))):
        mask = np.zeros((80, 100), np.uint8)
        mask[20:60, 10:50], mask[30:70, 55:95] = 15, 7 + index
        mask[20:60, 8:10] = 255
        palette = Image.fromarray(mask, mode="P")
        palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
        palette.save(folder / "SegmentationClass" / f"2007_00000{index}.png")
        image.save(folder / "JPEGImages" / f"2007_00000{index}.jpg")
    (folder / "ImageSets/Segmentation/train.txt").write_text("2007_000000\n")
    (folder / "ImageSets/Segmentation/val.txt").write_text("2007_000001\n2007_000002\n")
    return folder


@pytest.fixture(scope="module")
def voc_model(tiny_model, tmp_path_factory):
    """A tiny model with the classes, and the image processor of Apple's checkpoints, smaller."""
    classes = (
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person"
    )
    names = [*classes.split(), "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
    fields = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = tiny_model(mobilevit_hf.MobileViTForSemanticSegmentation, output_stride=16, **fields)
    processor = transformers.MobileViTImageProcessor(
        size={"shortest_edge": 68}, crop_size={"height": 64, "width": 64}, do_flip_channel_order=True
    )
    folder = tmp_path_factory.mktemp("voc_model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_mean_iou_on_voc_is_that_of_whole_images(mobilevit, voc_model, voc):
    """The crop of the image processor would move the masks; the paper resizes whole images."""
    code, out, err = mobilevit("evaluate", voc_model, voc, "--split", "validation", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert "Measured on whole images resized to 64x64, as in the paper" in " ".join(err.split())
    processor = AutoImageProcessor.from_pretrained(voc_model, do_center_crop=False, size={"height": 64, "width": 64})
    segment = transformers.pipeline("image-segmentation", model=str(voc_model), image_processor=processor)
    names = [segment.model.config.id2label[index] for index in range(21)]
    pairs = []
    for name in ("2007_000001", "2007_000002"):
        prediction = np.full((80, 100), -1)
        for part in segment(str(voc / f"JPEGImages/{name}.jpg")):
            prediction[np.asarray(part["mask"]) > 0] = names.index(part["label"])
        with Image.open(voc / f"SegmentationClass/{name}.png") as image:
            pairs.append((np.asarray(image).ravel(), prediction.ravel()))
    target, predicted = np.concatenate(pairs, axis=1)
    predicted, target = predicted[target != 255], target[target != 255]
    classes = sorted({*target.tolist(), *predicted.tolist()})
    ious = {
        names[label]: ((target == label) & (predicted == label)).sum()
        / ((target == label) | (predicted == label)).sum()
        for label in classes
    }
    assert result["task"] == "image-segmentation"
    assert {name: row["iou"] for name, row in result["metrics"]["per_class"].items()} == pytest.approx(ious, abs=2e-3)
    assert result["metrics"]["mean_iou"] == pytest.approx(np.mean([*ious.values()]), abs=1e-3)
    assert np.sum(result["confusion"]) == len(target)
    assert [mistake["name"] for mistake in result["mistakes"]] != []


def test_table_of_a_segmentation_model(mobilevit, voc_model, voc):
    code, out, err = mobilevit("evaluate", voc_model, voc, "--split", "validation")
    assert code == 0, err
    for title in ("Mean IoU", "Pixel accuracy", "Mean Dice", "Boundary IoU"):
        assert re.search(rf"{title} +\d+\.\d% +95% CI: ", out), title
    assert re.search(r"class +IoU +Dice +accuracy +pixels", out)
    assert re.search(r"person +\d+\.\d% +\d+\.\d% +\d+\.\d% +3,200", out)


def test_saved_report_of_a_segmentation_model(mobilevit, voc_model, voc, tmp_path):
    code, _, err = mobilevit("evaluate", voc_model, voc, "--split", "validation", "--save", tmp_path / "report")
    assert code == 0, err
    files = {file.name for file in (tmp_path / "report").iterdir()}
    assert {"report.html", "predictions.csv", "results.json", "worst_images.png", "class_iou.png"} <= files
    with (tmp_path / "report/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["JPEGImages/2007_000001.jpg", "JPEGImages/2007_000002.jpg"]
    assert rows[0]["iou person"] != ""


# --- reports ---------------------------------------------------------------------------------------------------------


def test_saved_report_has_the_figures_of_json(mobilevit, classifier, labeled_images, tmp_path):
    arguments = ("evaluate", classifier, labeled_images, "--split", "all", "--max-bad", 1)
    folder = tmp_path / "new/report"
    code, out, err = mobilevit(*arguments, "--json", "--save", folder)
    assert code == 0, err
    assert str(folder / "report.html") in err
    printed, saved = json.loads(out), json.loads((folder / "results.json").read_text())
    assert saved == printed
    page = (folder / "report.html").read_text()
    assert f"{printed['metrics']['accuracy']:.1%}" in page
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert np.mean([row["target"] == row["prediction"] for row in rows]) == printed["metrics"]["accuracy"]
    assert sorted(row["file"] for row in rows) == sorted(
        file.relative_to(labeled_images).as_posix() for file in labeled_images.glob("*/*")
    )
    code, out, _ = mobilevit(*arguments, "--limit", 8, "--save", folder)  # replaces the earlier report
    assert code == 0
    assert out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert len((folder / "predictions.csv").read_text().splitlines()) == 9
    assert {path.name for path in folder.iterdir()} <= {*REPORT_FILES, "results.json"}


@pytest.mark.parametrize("kind", ["folder with a file", "file", "below a file"])
def test_folder_with_other_files_is_rejected_before_anything_is_read(kind, mobilevit, tmp_path):
    folder = tmp_path / "report"
    if kind == "folder with a file":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        (folder / "report.html").write_text("earlier")
    else:
        folder.write_text("mine")
    path = folder / "below" if kind == "below a file" else folder
    code, out, err = mobilevit("evaluate", "no-such-model", "no-such-data", "--save", path)
    assert code == 2
    assert not out
    (line,) = err.splitlines()
    assert line.startswith("error: --save: got ")
    assert "notes.txt" in line or "is a file" in line
    before = {"notes.txt", "report.html"} if kind == "folder with a file" else {"report"}
    assert {file.name for file in (folder if folder.is_dir() else tmp_path).iterdir()} == before


def test_failed_evaluation_creates_no_folder(mobilevit, classifier, tmp_path):
    (tmp_path / "data/cat").mkdir(parents=True)
    (tmp_path / "data/cat/broken.jpg").write_bytes(b"broken")
    code, _, _ = mobilevit("evaluate", classifier, tmp_path / "data", "--save", tmp_path / "report")
    assert code == 2
    assert not (tmp_path / "report").exists()
