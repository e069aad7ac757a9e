"""Sections of a classifier's report."""

from collections.abc import Iterable, Sequence

import numpy as np

from ..data.types import Sample
from ..evaluation.calibration import reliability
from ..evaluation.predictions import ClassifiedImages
from ..evaluation.results import EvaluationResult
from ..visualization import ClassifiedImage, draw_predictions
from .folder import Photo, ReportFolder, load_photos
from .page import Fact, Gallery, PhotoTile, Section, Table
from .text import Subject, describe_other_images, percent, spread

# Images in the galleries and grids, and rows of the table of mistakes.
NUM_MISTAKES, NUM_HITS, NUM_SAMPLES, NUM_ROWS = 24, 24, 12, 50


def classification_sections(
    folder: ReportFolder, result: EvaluationResult, samples: Iterable[Sample] | None, subject: Subject
) -> list[Section]:
    """Draw the figures of a classifier's evaluation and return its sections."""
    images = result.predictions
    assert isinstance(images, ClassifiedImages)
    is_correct = images.targets == images.predictions
    by_confidence = np.argsort(-images.scores, kind="stable")
    mistakes = by_confidence[~is_correct[by_confidence]]
    hits = by_confidence[::-1][is_correct[by_confidence[::-1]]]
    shown = spread(len(images.names), NUM_SAMPLES)
    rows = {"mistakes": mistakes[:NUM_MISTAKES], "hits": hits[:NUM_HITS], "samples": shown}
    photos = load_photos(samples, images.indices[np.concatenate([*rows.values()])].tolist())
    drawer = _Drawer(folder, images, photos, subject)
    return [
        _mistakes_section(drawer, rows["mistakes"], mistakes),
        _confusion_section(folder, result, subject),
        _class_section(result, subject),
        _calibration_section(folder, images, subject),
        _samples_section(drawer, rows["samples"]),
        _hits_section(drawer, rows["hits"]),
    ]


class _Drawer:
    """Draws rows of the predictions as tiles and grids."""

    def __init__(
        self, folder: ReportFolder, images: ClassifiedImages, photos: dict[int, Photo], subject: Subject
    ) -> None:
        self.folder, self.images, self.photos, self.subject = folder, images, photos, subject

    def entries(self, rows: Sequence[int] | np.ndarray) -> list[ClassifiedImage]:
        """Return images with their predictions."""
        images, classes = self.images, self.subject.classes
        return [
            ClassifiedImage(
                self.photos[index].image,
                images.names[row],
                classes[images.targets[row]],
                classes[images.predictions[row]],
                float(images.scores[row]),
                float(images.target_scores[row]),
            )
            for row in rows
            if (index := int(images.indices[row])) in self.photos
        ]

    def save_grid(self, file: str, rows: Sequence[int] | np.ndarray, title: str) -> None:
        """Save a grid, if there is an image to show."""
        if entries := self.entries(rows):
            title = f"{title}: {self.subject.images}"
            self.folder.save_image(file, draw_predictions(entries, self.subject.classes, title=title))

    def gallery(self, file: str, rows: Sequence[int] | np.ndarray, caption: str) -> list[Gallery]:
        """Return a gallery of the page that shows the same as a grid; none without photos."""
        tiles = [_tile(entry) for entry in self.entries(rows)]
        return [Gallery(tiles, caption, file)] if tiles else []


def _tile(entry: ClassifiedImage) -> PhotoTile:
    style = "correct" if entry.prediction == entry.target else "wrong"
    facts = [
        Fact(f"target: {entry.target} {entry.target_score:.2f}", "target"),
        Fact(f"predicted: {entry.prediction} {entry.score:.2f}", style),
    ]
    return PhotoTile(entry.image, entry.file, f"Labeled {entry.target}, predicted {entry.prediction}", facts)


def _mistakes_section(drawer: _Drawer, shown: np.ndarray, mistakes: np.ndarray) -> Section:
    title, images, classes = "Likely mislabeled images", drawer.images, drawer.subject.classes
    if not len(mistakes):
        return Section(title, [], f"No mistakes ({drawer.subject.images}).")
    drawer.save_grid("mistakes.png", shown, f"Most confident mistakes ({len(shown)} of {len(mistakes)})")
    rows = [
        (
            images.names[row],
            classes[images.targets[row]],
            classes[images.predictions[row]],
            f"{images.scores[row]:.3f}",
            f"{images.target_scores[row]:.3f}",
        )
        for row in mistakes[:NUM_ROWS]
    ]
    table = Table(
        ("File", "Target (label)", "Predicted", "Score", "Score of the target"),
        rows,
        f"The {len(rows)} most confident of {len(mistakes)} mistakes. predictions.csv has all images.",
        num_labels=3,
        is_code=True,
    )
    caption = (
        f"Most confident mistakes first ({len(shown)} of {len(mistakes)}; {drawer.subject.images}). The numbers are "
        "the model's probabilities of the label and of the predicted class."
    )
    other_images, command = describe_other_images(drawer.subject)
    text = (
        "Where the model is sure of another class than the label, the label is often wrong. Check these images first, "
        "from the top: a wrong label is to be corrected, a real mistake shows what the model has not learned. "
        f"{other_images}"
    )
    return Section(title, [*drawer.gallery("mistakes.png", shown, caption), table], text, command)


def _samples_section(drawer: _Drawer, shown: np.ndarray) -> Section:
    drawer.save_grid("samples.png", shown, "Predictions on a sample of the images")
    caption = f"Evenly spaced images, not chosen by their errors ({drawer.subject.images})."
    return Section("Sample images", drawer.gallery("samples.png", shown, caption))


def _hits_section(drawer: _Drawer, shown: np.ndarray) -> Section:
    title = "Least confident hits"
    if not len(shown):
        return Section(title, [], f"No image is classified correctly ({drawer.subject.images}).")
    drawer.save_grid("least_confident.png", shown, title)
    caption = f"Correct predictions with the lowest probability first ({drawer.subject.images})."
    text = "Images that the model only just gets right: more training images like these help most."
    return Section(title, drawer.gallery("least_confident.png", shown, caption), text)


def _confusion_section(folder: ReportFolder, result: EvaluationResult, subject: Subject) -> Section:
    from ..visualization import plots

    confusion = np.asarray(result.confusion)
    counts = folder.save_plot(
        "confusion_matrix.png",
        plots.plot_confusion_matrix(confusion, subject.classes, title=f"Confusion matrix: {subject.images}"),
        "Confusion matrix with numbers of images",
        f"Number of images by label (row) and prediction (column); {subject.images}. Off the diagonal are mistakes.",
    )
    normalized = folder.save_plot(
        "confusion_matrix_normalized.png",
        plots.plot_confusion_matrix(
            confusion, subject.classes, title=f"Confusion matrix, normalized: {subject.images}", normalized=True
        ),
        "Confusion matrix normalized by target class",
        "The same as percentages of each row: the diagonal is the recall of the class.",
    )
    return Section("Confusion matrix", [counts, normalized, *confusion_table(confusion, subject, "Images")])


def confusion_table(confusion: np.ndarray, subject: Subject, unit: str) -> list[Table]:
    """Return a table of the most frequent confusions of images or pixels, the `unit`; none without mistakes."""
    wrong = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [np.unravel_index(index, wrong.shape) for index in order]
    rows = [
        (subject.classes[t], subject.classes[p], f"{wrong[t, p]:,}", percent(wrong[t, p] / confusion[t].sum()))
        for t, p in pairs
        if wrong[t, p]
    ]
    columns = ("Target", "Predicted", unit, "Of the target class")
    return [Table(columns, rows, "Most frequent confusions", num_labels=2)] if rows else []


def _class_section(result: EvaluationResult, subject: Subject) -> Section:
    rows = [
        (
            name,
            *(_with_interval(values[column], ends.get(column)) for column in ("precision", "recall")),
            percent(values["f1"]),
            f"{values['support']}",
        )
        for name, values in sorted(result.metrics["per_class"].items(), key=lambda item: item[1]["f1"])
        for ends in [result.class_intervals.get(name, {})]
    ]
    columns = ("Class", "Precision", "Recall", "F1", "Images")
    caption = f"Lowest F1 first, with 95% confidence intervals ({subject.images})."
    return Section("Classes", [Table(columns, rows, caption)])


def _with_interval(value: float, ends: Sequence[float] | None) -> str:
    return percent(value) + (f" ({ends[0]:.0%} to {ends[1]:.0%})" if ends else "")


def _calibration_section(folder: ReportFolder, images: ClassifiedImages, subject: Subject) -> Section:
    from ..visualization import plots

    bins = reliability(images.scores, images.targets == images.predictions)
    plot = plots.plot_reliability(
        bins.confidence, bins.accuracy, bins.counts, bins.ece, title=f"Reliability diagram: {subject.images}"
    )
    gap = float(images.scores.mean() - (images.targets == images.predictions).mean())
    tendency = "overconfident" if gap > 0 else "underconfident"
    figure = folder.save_plot(
        "reliability.png",
        plot,
        f"Reliability diagram with an expected calibration error of {percent(bins.ece)}",
        f"Accuracy of the images in {len(bins.counts)} bins of the predicted probability ({subject.images}). Bars "
        "below the diagonal: the model is overconfident; above: underconfident.",
    )
    text = (
        f"Expected calibration error (ECE): {percent(bins.ece)}, the mean difference between probability and "
        f"accuracy. On average the model is {tendency} by {percent(abs(gap))}."
    )
    return Section("Calibration", [figure], text)
