import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from detection_cases import make_detected_image
from PIL import Image
from report_cases import CLASSES, classification_result, detection_result, make_samples, png, segmentation_result

from mobilevit_hf.evaluation.predictions import ClassifiedImages
from mobilevit_hf.reports import write_report
from mobilevit_hf.reports.files import REPORT_FILES
from mobilevit_hf.visualization import LabeledImage

CLASSIFICATION_FILES = {
    "report.html",
    "predictions.csv",
    "confusion_matrix.png",
    "confusion_matrix_normalized.png",
    "reliability.png",
    "mistakes.png",
    "least_confident.png",
    "samples.png",
    "class_counts.png",
}
DETECTION_FILES = {
    "report.html",
    "predictions.csv",
    "confusion_matrix.png",
    "confusion_matrix_normalized.png",
    "average_precision.png",
    "precision_recall.png",
    "thresholds.png",
    "detection_errors.png",
    "mistakes.png",
    "samples.png",
    "class_counts.png",
    "boxes.png",
}
SEGMENTATION_FILES = {
    "report.html",
    "predictions.csv",
    "confusion_matrix_normalized.png",
    "class_iou.png",
    "worst_images.png",
    "best_images.png",
    "class_counts.png",
}
HOSTILE = ["<script>alert(1)</script>.jpg", '"><img src=x onerror=1>.jpg', "&amp;.jpg", "\udc80.jpg", "猫.jpg"]


class PageParser(HTMLParser):
    """Texts, tags with their attributes, and rows of the tables of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.rows, self.in_cell = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if not data.strip():
            return
        self.texts.append(" ".join(data.split()))
        if self.in_cell:
            self.rows[-1][-1] += data.strip()

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write(folder, result, samples, **options):
    """Write a report; return its page and the names of its files."""
    files = write_report(folder, result, samples, **{"title": "Model", **options})
    assert files[0].name == "report.html"
    assert {file.name for file in files} == {file.name for file in folder.iterdir()}
    return PageParser(files[0].read_text()), {file.name for file in files}


@pytest.fixture(scope="module")
def classification(tmp_path_factory):
    """Page, file names and folder of a classifier's report."""
    result, folder = classification_result(), tmp_path_factory.mktemp("classification")
    return *write(folder, result, make_samples(result.predictions.names), dataset="pets"), folder


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    """Page, file names and folder of a detector's report."""
    result, folder = detection_result(), tmp_path_factory.mktemp("detection")
    samples = make_samples([image.name for image in result.predictions], (300, 300))
    return *write(folder, result, samples, dataset="pets"), folder


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    """Page, file names and folder of a segmentation model's report."""
    result, folder = segmentation_result(), tmp_path_factory.mktemp("segmentation")
    return *write(folder, result, make_samples([image.name for image in result.predictions]), dataset="pets"), folder


@pytest.fixture
def no_plots(monkeypatch):
    """Plots are one small image: drawing them takes longer than all the rest."""
    monkeypatch.setattr("mobilevit_hf.visualization.plots.save_plot", lambda figure, path: path.write_bytes(png()))


@pytest.mark.parametrize(
    ("case", "files"),
    [
        ("classification", CLASSIFICATION_FILES),
        ("detection", DETECTION_FILES),
        ("segmentation", SEGMENTATION_FILES),
    ],
)
def test_page_and_figures_are_complete_and_self_contained(case, files, request):
    page, written, folder = request.getfixturevalue(case)
    assert written == files <= set(REPORT_FILES)
    for image in page.attributes("img"):
        assert image["alt"]
        assert image["src"].startswith("data:image/")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert all(link["href"].startswith("#") for link in page.attributes("a"))
    anchors = {attributes.get("id") for _, attributes in page.tags}
    assert {link["href"][1:] for link in page.attributes("a")} <= anchors
    html = (folder / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import| on\w+=", re.sub(r'"data:[^"]*"', "", html))
    assert str(folder) not in html
    for file in written:
        if file.endswith(".png"):
            with Image.open(folder / file) as image:
                image.load()
                assert len(set(image.convert("L").resize((64, 64)).getdata())) > 4, file


def test_header_says_what_was_measured(classification):
    page, _, _ = classification
    text = " ".join(page.texts)
    assert "Evaluation on the validation split of pets: 40 images" in text
    accuracy = classification_result().metrics["accuracy"]
    assert f"{accuracy:.1%} Accuracy (95% confidence interval" in text
    assert "Warning: Only 40 images" in text
    assert next(row for row in page.rows if row[0] == "Loss")[1] == "0.750"


def test_most_confident_mistakes_come_first(classification):
    """The images and the table start with the likely mislabeled images, with file, target, prediction and score."""
    page, _, _ = classification
    images = classification_result().predictions
    wrong = np.flatnonzero(images.targets != images.predictions)
    wrong = wrong[np.argsort(-images.scores[wrong])]
    start = page.rows.index(["File", "Target (label)", "Predicted", "Score", "Score of the target"]) + 1
    assert page.rows[start : start + len(wrong)] == [
        [
            images.names[i],
            CLASSES[images.targets[i]],
            CLASSES[images.predictions[i]],
            f"{images.scores[i]:.3f}",
            f"{images.target_scores[i]:.3f}",
        ]
        for i in wrong
    ]
    first = page.texts.index(f"predicted: {CLASSES[images.predictions[wrong[0]]]} {images.scores[wrong[0]]:.2f}")
    assert page.texts[first - 2 : first] == [
        images.names[wrong[0]],
        f"target: {CLASSES[images.targets[wrong[0]]]} {images.target_scores[wrong[0]]:.2f}",
    ]
    hits = np.flatnonzero(images.targets == images.predictions)
    hits = hits[np.argsort(images.scores[hits], kind="stable")][:24]
    section = page.texts[len(page.texts) - page.texts[::-1].index("Least confident hits") :]
    assert [text for text in section if text in images.names] == [images.names[i] for i in hits]


def test_table_of_mistakes_is_limited_and_the_csv_is_not(tmp_path, no_plots):
    names = [f"{i}.jpg" for i in range(400)]
    page, _ = write(tmp_path, classification_result(names), None)
    start = page.rows.index(["File", "Target (label)", "Predicted", "Score", "Score of the target"]) + 1
    assert [row[0].endswith(".jpg") for row in page.rows[start : start + 51]] == [True] * 50 + [False]
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 401


def test_detector_tables(detection):
    page, _, _ = detection
    result = detection_result()
    values = result.metrics["per_class_metrics"]["dog"]
    row = next(row for row in page.rows if row[0] == "dog")
    assert row[1:3] == [f"{values['map']:.1%}", f"{values['map_50']:.1%}"]
    assert row[-1] == str(values["support"])
    best = result.best_threshold
    assert next(row for row in page.rows if row[0] == "Highest F1 on this split")[1:] == [
        f"{best.value:.3f}",
        f"{best.f1:.1%}",
        f"{best.precision:.1%}",
        f"{best.recall:.1%}",
    ]
    types = [row[0] for row in page.rows if len(row) == 4]
    assert {"localization", "classification", "background", "missed"} <= set(types)


def test_wrong_boxes_are_listed_by_confidence_with_what_is_annotated_there(tmp_path, no_plots):
    box, far, moved = [0, 0, 100, 100], [150, 150, 250, 250], [40, 0, 140, 100]
    image = make_detected_image([(box, 1, 0.8), (far, 0, 0.9), (moved, 0, 0.7)], [(box, 0), ([0, 200, 50, 250], 2)])
    result = detection_result([image])
    result = dataclasses.replace(result, best_threshold=dataclasses.replace(result.best_threshold, value=0.5))
    page, _ = write(tmp_path, result, make_samples(["0.jpg"], (300, 300)))
    start = next(i for i, row in enumerate(page.rows) if row[:3] == ["File", "Predicted", "Annotation there"]) + 1
    assert page.rows[start : start + 3] == [
        ["0.jpg", "cat", "none", "0.900", "150", "150", "250", "250"],
        ["0.jpg", "dog", "cat (IoU 1.00)", "0.800", "0", "0", "100", "100"],
        ["0.jpg", "cat", "cat (IoU 0.43)", "0.700", "40", "0", "140", "100"],
    ]
    assert {"true positives: 0", "false positives: 3", "missed: 2"} <= set(page.texts)


def test_segmentation_has_the_worst_images_first_with_mask_prediction_and_errors(segmentation):
    page, _, _ = segmentation
    images = sorted(segmentation_result().predictions[:-1], key=lambda image: image.mean_iou)
    worst = images[0]
    start = page.texts.index(worst.name)
    assert page.texts[start : start + 5] == [
        worst.name,
        "target",
        f"predicted: IoU {worst.mean_iou:.1%}",
        f"wrong: {1 - worst.pixel_accuracy:.1%}",
        images[1].name,
    ]
    section = page.texts[len(page.texts) - page.texts[::-1].index("Best images") :]
    assert [text for text in section if text.startswith("validation/")] == [image.name for image in images[:-9:-1]]
    table = page.rows[page.rows.index(["File", "Most frequent confusion", "Mean IoU", "Pixel accuracy"]) + 1 :]
    assert [row[0] for row in table[: len(images)]] == [image.name for image in images]
    confusion = worst.confusion * (1 - np.eye(4, dtype=int))
    target, prediction = np.unravel_index(confusion.argmax(), confusion.shape)
    fraction = confusion.max() / worst.confusion.sum()
    assert table[0][1:] == [
        f"{CLASSES[target]} as {CLASSES[prediction]} ({fraction:.1%})",
        f"{worst.mean_iou:.1%}",
        f"{worst.pixel_accuracy:.1%}",
    ]


def test_segmentation_classes_have_bars(segmentation):
    page, _, _ = segmentation
    result = segmentation_result()
    rows = page.rows[page.rows.index(["Class", "IoU", "Dice", "Accuracy", "Pixels", "Of all pixels"]) + 1 :][:4]
    by_class = sorted(result.metrics["per_class"].items(), key=lambda item: item[1]["iou"])
    total = result.confusion.sum()
    assert rows == [
        [
            name,
            f"{values['iou']:.1%}",
            f"{values['dice']:.1%}",
            f"{values['accuracy']:.1%}",
            f"{values['pixels']:,}",
            f"{values['pixels'] / total:.2%}",
        ]
        for name, values in by_class
    ]
    bars = [cell["style"] for cell in page.attributes("td") if "bar" in cell.get("class", "").split()]
    assert bars == [f"--share: {values['iou']:.3f}" for _, values in by_class]


def test_segmentation_without_photos_or_mistakes(tmp_path, no_plots):
    _, files = write(tmp_path, segmentation_result(["a.jpg", "b.jpg"]), None)
    assert files == SEGMENTATION_FILES - {"worst_images.png", "best_images.png"}


@pytest.mark.parametrize("make", [classification_result, detection_result, segmentation_result])
def test_hostile_names_are_texts(make, tmp_path, no_plots):
    classes = ["<b>cat</b>", "$x^$", "'\"&", "猫"]
    if make is classification_result:
        result = make([*HOSTILE * 4], classes=classes)
        samples = make_samples(result.predictions.names)
    elif make is segmentation_result:
        result = make([*HOSTILE * 4], classes=classes)
        samples = make_samples([image.name for image in result.predictions])
    else:
        images = [dataclasses.replace(i, name=HOSTILE[i.index % 5]) for i in detection_result().predictions]
        result = make(images, classes=classes)
        samples = make_samples([image.name for image in images], (300, 300))
    page, _ = write(tmp_path, result, samples, title="<i>", dataset="<u>", split="validation")
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in page.tags}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    text = "\n".join(page.texts)
    assert HOSTILE[0] in text
    assert "<b>cat</b>" in text
    assert "\\udc80.jpg" in text


def test_stream_is_read_once_up_to_the_last_shown_image(tmp_path, no_plots):
    result = classification_result([f"{i}.jpg" for i in range(30)])
    samples, read = make_samples(result.predictions.names), []

    def stream():
        for sample in samples:
            read.append(sample.name)
            yield sample

    _, of_stream = write(tmp_path, result, stream())
    assert len(read) == len(set(read)) <= 30
    stream_page = (tmp_path / "report.html").read_text()
    _, of_list = write(tmp_path, result, samples)
    assert of_stream == of_list
    assert (tmp_path / "report.html").read_text() == stream_page


def test_indices_of_the_predictions_select_the_images(tmp_path, no_plots):
    """An unreadable image has an index but no prediction."""
    result = classification_result([f"{i}.jpg" for i in range(8)])
    shifted = dataclasses.replace(result.predictions, indices=np.arange(8) + 1)
    samples = make_samples(["broken", *result.predictions.names])
    direct = write(tmp_path, result, samples[1:]) and (tmp_path / "samples.png").read_bytes()
    write(tmp_path, dataclasses.replace(result, predictions=shifted), samples)
    assert (tmp_path / "samples.png").read_bytes() == direct


def test_report_replaces_an_earlier_one_of_another_task(tmp_path, no_plots):
    write(tmp_path, detection_result(), None)
    _, files = write(tmp_path, classification_result(), None)
    assert not files & {"average_precision.png", "thresholds.png"}


def test_failed_report_leaves_the_folder_unchanged(tmp_path, monkeypatch, no_plots):
    write(tmp_path, classification_result(), None)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("mobilevit_hf.reports.report.render_page", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, classification_result(seed=1), None, title="Model")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_training_without_validation_split(tmp_path, no_plots):
    history = [{"step": 1, "loss": 0.5, "learning_rate": 0.1}]
    augmented = [LabeledImage(Image.new("RGB", (32, 32), "teal"), "a.jpg", ["cat"])]
    page, files = write(
        tmp_path, None, None, history=history, classes=CLASSES, counts={"train": {"cat": 3}}, train_batches=augmented
    )
    assert files == {"report.html", "curves.png", "class_counts.png", "train_batches.png"}
    text = " ".join(page.texts)
    assert "without a validation split" in text
    assert "Training loss and learning rate over the optimizer steps; no validation split." in text


def test_curves_are_named_as_far_as_they_are_drawn(tmp_path, no_plots):
    history = [{"step": 1, "loss": 0.5, "learning_rate": 0.1}, {"step": 1, "eval_loss": 0.6, "eval_accuracy": 0.5}]
    page, _ = write(tmp_path, classification_result(), None, history=history)
    expected = (
        "Training loss, validation loss, accuracy and learning rate over the optimizer steps; validation: 40 images"
    )
    assert expected in " ".join(page.texts)


def test_figures_of_the_test_split_without_a_validation_split(tmp_path, no_plots):
    page, _ = write(tmp_path, None, None, classes=CLASSES, test=classification_result())
    assert "Test split: 40 images, measured once, at the end" in page.texts


def test_figures_of_the_test_split_have_a_table_of_their_own(tmp_path, no_plots):
    page, _ = write(tmp_path, classification_result(), None, test=classification_result([f"{i}" for i in range(7)]))
    captions = [text for text in page.texts if text.endswith(("images", "at the end"))]
    assert "Validation split: 40 images" in captions
    assert "Test split: 7 images, measured once, at the end" in captions


@pytest.mark.parametrize("correct", [True, False])
def test_classifier_that_is_always_correct_or_always_wrong(correct, tmp_path, no_plots):
    result = classification_result()
    images = result.predictions
    targets = images.predictions if correct else (images.predictions + 1) % len(CLASSES)
    images = ClassifiedImages(
        images.indices, images.names, targets, images.predictions, images.scores, images.target_scores
    )
    _, files = write(tmp_path, dataclasses.replace(result, predictions=images), make_samples(images.names))
    assert files == CLASSIFICATION_FILES - {"mistakes.png" if correct else "least_confident.png"}


@pytest.mark.parametrize(
    ("detections", "objects"), [([], []), ([], [([0, 0, 9, 9], 1)]), ([([0, 0, 9, 9], 1, 0.5)], [])]
)
def test_detector_without_detections_or_objects(detections, objects, tmp_path, no_plots):
    image = make_detected_image(detections, objects)
    result = detection_result([image])
    _, files = write(tmp_path, result, make_samples(["0.jpg"], (300, 300)))
    assert {"report.html", "predictions.csv", "samples.png", "confusion_matrix.png"} <= files
    assert ("mistakes.png" in files) is bool(detections or objects)


@pytest.mark.parametrize("case", ["classification", "detection", "segmentation"])
def test_files_are_listed(case, request):
    page, written, _ = request.getfixturevalue(case)
    listed = page.texts[len(page.texts) - page.texts[::-1].index("Files") :]
    assert set(listed[::2]) == written - {"report.html"}
    assert all(listed[1::2])


def test_class_names_are_titles_of_their_cells(classification):
    page, _, _ = classification
    titles = [attributes.get("title") for attributes in page.attributes("span") if attributes.get("class") == "name"]
    assert set(CLASSES) <= set(titles)


def test_command_is_one_piece(classification):
    page, _, _ = classification
    assert "mobilevit evaluate MODEL DATA --split all --save DIR" in page.texts


def test_results_are_listed_if_written(tmp_path, no_plots):
    page, _ = write(tmp_path, classification_result(), None, texts={"results.json": "{}"})
    assert "results.json" in page.texts
