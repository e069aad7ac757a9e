"""Sections of a detector's report."""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np

from ..data.types import Sample
from ..evaluation.average_precision import group_by_class
from ..evaluation.curves import precision_recall_curves, threshold_curve
from ..evaluation.detection_errors import detection_errors
from ..evaluation.matcher import box_ious
from ..evaluation.outcomes import Outcomes, count_by_class, find_outcomes
from ..evaluation.predictions import DetectedImage
from ..evaluation.results import EvaluationResult
from ..visualization import ComparedImage, Outcome, draw_comparisons, draw_outcomes
from .folder import Photo, ReportFolder, load_photos
from .page import Fact, Figure, Gallery, PhotoTile, Section, Table
from .text import Subject, count, describe_other_images, percent, spread

# Images in the galleries and grids, and rows of the table of likely annotation errors.
NUM_MISTAKES, NUM_SAMPLES, NUM_ROWS = 12, 6, 50
# Of a wrong box with an object that it may be meant for, as in TIDE (arXiv 2008.08115).
MIN_IOU = 0.1
LABELS_LEFT_OUT = "Every box is drawn; labels that would cover others are left out."
ERROR_TEXTS = {
    "localization": "correct class, but the box overlaps the object too little (IoU 0.10 to 0.50)",
    "classification": "the box fits (IoU 0.50 or more), but the class is another one",
    "both": "another class, and the box overlaps the object too little",
    "duplicate": "a second box for an object that has one",
    "background": "no object is annotated there (IoU below 0.10)",
    "missed": "object without a box",
}
AP_COLUMNS = {
    "map": "AP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "AP small",
    "map_medium": "AP medium",
    "map_large": "AP large",
    "mar_100": "AR",
}


class DetectionReport:
    """Draws the figures of a detector's evaluation at a score threshold."""

    def __init__(
        self,
        folder: ReportFolder,
        result: EvaluationResult,
        samples: Iterable[Sample] | None,
        subject: Subject,
    ) -> None:
        self.folder, self.result, self.subject = folder, result, subject
        self.threshold = -1.0 if result.threshold is None else result.threshold  # all boxes without one
        self.images = cast(list[DetectedImage], result.predictions)
        self.matches = group_by_class([image.matches for image in self.images])
        self.outcomes = [find_outcomes(image, self.threshold) for image in self.images]
        errors = np.array([int(o.missed.sum() + o.false_positives.sum()) for o in self.outcomes])
        worst = np.argsort(-errors, kind="stable")
        self.worst = worst[errors[worst] > 0]
        self.shown = spread(len(self.images), NUM_SAMPLES)
        rows = np.concatenate([self.worst[:NUM_MISTAKES], self.shown])
        self.photos = load_photos(samples, [self.images[row].index for row in rows])

    def sections(self) -> list[Section]:
        """Draw the figures and return the sections."""
        return [
            self._mistakes(),
            self._samples(),
            self._classes(),
            self._thresholds(),
            self._confusion(),
            self._errors(),
        ]

    # --- images ------------------------------------------------------------------------------------------------------

    def _compare(self, row: int, photo: Photo) -> ComparedImage:
        return ComparedImage(
            photo.image,
            self.images[row].name,
            [
                outcome.scale(photo.scale)
                for outcome in list_outcomes(self.images[row], self.outcomes[row], self.subject)
            ],
        )

    def _entries(self, rows: np.ndarray) -> list[ComparedImage]:
        photos = ((row, self.photos.get(self.images[row].index)) for row in rows.tolist())
        return [self._compare(row, photo) for row, photo in photos if photo]

    def _draw(self, file: str, rows: np.ndarray, title: str, caption: str) -> list[Gallery]:
        """Save a grid and return a gallery; none without photos."""
        classes, entries = self.subject.classes, self._entries(rows)
        if not entries:
            return []
        title = f"{title}: {self._at_threshold()}"
        self.folder.save_image(file, draw_comparisons(entries, classes, title=title))
        return [Gallery([_tile(entry, classes) for entry in entries], caption, file, is_wide=True, has_legend=True)]

    def _at_threshold(self) -> str:
        return f"score threshold {self.threshold:.3f}, IoU 0.50; {self.subject.images}"

    def _mistakes(self) -> Section:
        title, shown = "Likely annotation errors", self.worst[:NUM_MISTAKES]
        if not len(shown):
            return Section(title, [], f"No errors ({self._at_threshold()}).")
        summary = f"images with the most errors ({len(shown)} of {len(self.worst)})"
        caption = f"The {summary}, worst first: {self._at_threshold()}. {LABELS_LEFT_OUT}"
        gallery = self._draw("mistakes.png", shown, summary.capitalize(), caption)
        other_images, command = describe_other_images(self.subject)
        text = (
            "A confident box where no object is annotated is often an object that the annotation lacks, or labels "
            "otherwise. Check the images below from the top, then the table of the most confident wrong boxes. "
            f"{other_images}"
        )
        return Section(title, [*gallery, *self._suspects()], text, command)

    def _suspects(self) -> list[Table]:
        """Return a table of the most confident wrong boxes."""
        classes = self.subject.classes
        boxes = [
            (float(image.matches.scores[index]), image, index)
            for image, outcomes in zip(self.images, self.outcomes, strict=True)
            for index in np.flatnonzero(outcomes.false_positives).tolist()
        ]
        if not boxes:
            return []
        boxes.sort(key=lambda box: -box[0])
        rows = [
            (
                image.name,
                classes[image.matches.labels[index]],
                describe_overlap(image, index, classes),
                f"{score:.3f}",
                *(f"{corner:.0f}" for corner in image.boxes[index]),
            )
            for score, image, index in boxes[:NUM_ROWS]
        ]
        columns = ("File", "Predicted", "Annotation there", "Score", "x1", "y1", "x2", "y2")
        caption = (
            f"The {len(rows)} most confident of {count(len(boxes), 'wrong box')}, corners in pixels. predictions.csv "
            "has all boxes."
        )
        return [Table(columns, rows, caption, num_labels=3, is_code=True)]

    def _samples(self) -> Section:
        title = "Sample images"
        caption = f"Evenly spaced images, not chosen by their errors: {self._at_threshold()}. {LABELS_LEFT_OUT}"
        return Section(title, self._draw("samples.png", self.shown, title, caption))

    # --- figures -----------------------------------------------------------------------------------------------------

    def _classes(self) -> Section:
        counts = count_by_class(self.images, self.threshold, len(self.subject.classes))
        rows = [
            (
                name,
                f"{numbers.objects}",
                percent(numbers.precision),
                percent(numbers.recall),
                percent(numbers.f1),
                f"{numbers.mean_error:+.2f}",
                f"{numbers.mean_absolute_error:.2f}",
            )
            for name, numbers in zip(self.subject.classes, counts, strict=True)
        ]
        columns = ("Class", "Objects", "Precision", "Recall", "F1", "Count error, mean", "Count error, absolute")
        caption = (
            f"Boxes at the {self._at_threshold()}. The count error of an image is its number of boxes minus that of "
            "objects: the mean shows a bias, the mean of the absolute values the typical error."
        )
        return Section("Classes", [*self._average_precision(), Table(columns, rows, caption)])

    def _average_precision(self) -> list[Figure | Table]:
        """Return plot and table of the average precision, and the precision-recall curves."""
        from ..visualization import detection_plots, plots

        by_class = self.result.metrics["per_class_metrics"]
        if not by_class:
            return []
        where = self.subject.images
        bars = self.folder.save_plot(
            "average_precision.png",
            plots.plot_average_precision(self.result.metrics["per_class"], title=f"Average precision: {where}"),
            "Average precision of each class",
            f"Average precision of each class, mean over the IoU thresholds 0.50 to 0.95 ({where}).",
        )
        rows = [
            (name, *(percent(values[column]) for column in AP_COLUMNS), f"{values['support']}")
            for name, values in sorted(by_class.items(), key=lambda item: item[1]["map"])
        ]
        caption = (
            f"Average precision (AP) and recall (AR) of all boxes, lowest AP first ({where}). Small, medium, large: "
            "area below 32², to 96² and above 96² pixels."
        )
        blocks: list[Figure | Table] = [bars, Table(("Class", *AP_COLUMNS.values(), "Objects"), rows, caption)]
        curves = {
            self.subject.classes[label]: (curve.recall, curve.precision, curve.average_precision)
            for label, curve in precision_recall_curves(self.matches).items()
        }
        if curves:
            title = f"Precision and recall: {where}"
            plot = detection_plots.plot_precision_recall(curves, self.subject.classes, title=title)
            caption = f"Precision over recall of each class at IoU 0.50 ({where}); the area is AP50."
            blocks.append(self.folder.save_plot("precision_recall.png", plot, "Precision-recall curves", caption))
        return blocks

    def _thresholds(self) -> Section:
        from ..visualization import detection_plots

        title, curve = "Score threshold", threshold_curve(self.matches)
        if not len(curve.thresholds):
            return Section(title, [])
        values = {name: getattr(curve, name) for name in ("precision", "recall", "f1")}
        chosen, best = self.result.recommended_threshold, self.result.best_threshold
        label = "recommended" if chosen else "highest F1"
        plot = detection_plots.plot_thresholds(
            curve.thresholds, values, self.threshold, label=label, title=f"Score threshold: {self.subject.images}"
        )
        caption = (
            f"F1, precision and recall of the boxes with a score above the threshold, all classes together, IoU 0.50 "
            f"({self.subject.images}). The line marks the {label} threshold, {self.threshold:.3f}."
        )
        figure = self.folder.save_plot("thresholds.png", plot, "F1, precision and recall over the threshold", caption)
        rows = [
            (name, f"{t.value:.3f}", percent(t.f1), percent(t.precision), percent(t.recall))
            for name, t in (("Recommended by the model", chosen), ("Highest F1 on this split", best))
            if t
        ]
        return Section(title, [figure, Table(("Threshold", "Value", "F1", "Precision", "Recall"), rows)])

    def _confusion(self) -> Section:
        from ..visualization import plots

        names, confusion = [*self.subject.classes, "background"], np.asarray(self.result.confusion)
        blocks = [
            self.folder.save_plot(
                file,
                plots.plot_confusion_matrix(
                    confusion, names, title=f"{title}: {self.subject.images}", normalized=normalized, unit="objects"
                ),
                f"{title} with background",
                caption,
            )
            for file, title, normalized, caption in (
                (
                    "confusion_matrix.png",
                    "Confusion matrix",
                    False,
                    f"Number of objects by label (row) and prediction (column); {self._at_threshold()}. Column "
                    "background: missed objects; row background: boxes where no object is annotated.",
                ),
                (
                    "confusion_matrix_normalized.png",
                    "Confusion matrix, normalized",
                    True,
                    "The same as percentages of each row: the diagonal is the recall of the class.",
                ),
            )
        ]
        return Section("Confusion matrix", blocks)

    def _errors(self) -> Section:
        from ..visualization import detection_plots

        title, errors = "Types of errors", detection_errors(self.images, self.threshold)
        gains = {name: (error.count, error.gain) for name, error in errors.items()}
        plot = detection_plots.plot_detection_errors(gains, title=f"{title}: {self.subject.images}")
        caption = (
            f"What each type of error costs ({self.subject.images}): mAP50 that would be gained without these errors, "
            f"and their number at the score threshold {self.threshold:.3f}. The gain is that of boxes of all scores: "
            "an object that is missed at the threshold costs nothing if a box with a lower score fits it."
        )
        figure = self.folder.save_plot("detection_errors.png", plot, "Gain in mAP50 by type of error", caption)
        rows = [
            (name, ERROR_TEXTS[name], f"{error.count}", f"{100 * error.gain:+.1f}") for name, error in errors.items()
        ]
        table = Table(("Type", "Meaning", "Errors", "mAP50 to gain"), rows, num_labels=2, is_prose=True)
        text = (
            "Localization against classification: a model that finds objects but places boxes badly needs better "
            "boxes or a larger image size; one that confuses classes needs clearer labels. The types are those of "
            "TIDE (arXiv 2008.08115)."
        )
        return Section(title, [figure, table], text)


def describe_overlap(image: DetectedImage, index: int, classes: Sequence[str]) -> str:
    """Return the class and the IoU of the annotated object that overlaps a detection most, "none" below `MIN_IOU`."""
    if not len(image.object_boxes):
        return "none"
    box, objects = image.boxes[index : index + 1].astype(np.float64), image.object_boxes.astype(np.float64)
    ious = box_ious(box, objects, np.zeros(len(objects), dtype=bool))[0]
    nearest = int(ious.argmax())
    return (
        f"{classes[image.matches.objects[nearest]]} (IoU {ious[nearest]:.2f})" if ious[nearest] >= MIN_IOU else "none"
    )


def list_outcomes(image: DetectedImage, outcomes: Outcomes, subject: Subject) -> list[Outcome]:
    """Return the true positives, false positives and missed objects of an image."""
    matches, classes = image.matches, subject.classes
    detections = [
        Outcome(
            "true positive" if outcomes.hits[i] else "false positive",
            classes[matches.labels[i]],
            tuple(image.boxes[i].tolist()),
            float(matches.scores[i]),
        )
        for i in np.flatnonzero(outcomes.true_positives | outcomes.false_positives)
    ]
    missed = [
        Outcome("missed", classes[matches.objects[i]], tuple(image.object_boxes[i].tolist()))
        for i in np.flatnonzero(outcomes.missed)
    ]
    return [*detections, *missed]


def _tile(entry: ComparedImage, classes: Sequence[str]) -> PhotoTile:
    numbers = {
        kind: sum(o.kind == kind for o in entry.outcomes) for kind in ("true positive", "false positive", "missed")
    }
    facts = [
        Fact(f"true positives: {numbers['true positive']}", "correct"),
        Fact(f"false positives: {numbers['false positive']}", "wrong"),
        Fact(f"missed: {numbers['missed']}", "missed"),
    ]
    alt = ", ".join(fact.text for fact in facts)
    return PhotoTile(draw_outcomes(entry.image, entry.outcomes, classes), entry.file, alt, facts)
