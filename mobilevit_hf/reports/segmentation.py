"""Sections of a semantic segmentation model's report."""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np

from ..data.types import Sample
from ..evaluation.predictions import SegmentedImage
from ..evaluation.results import EvaluationResult
from ..visualization import SegmentedPhoto, class_colors, draw_label_maps
from ..visualization.colors import FALSE_POSITIVE
from ..visualization.grids import draw_panels, shown_classes
from ..visualization.masks import IGNORED
from .classification import confusion_table
from .folder import ReportFolder, load_photos
from .page import Fact, Gallery, PhotoTile, Section, Table
from .text import Subject, describe_other_images, percent

NUM_SHOWN, NUM_ROWS = 8, 50  # images in the galleries, and rows of the table of images
WRONG, IGNORED_FACT = Fact("wrong pixel", color=FALSE_POSITIVE), Fact("ignored: not labeled", color=IGNORED)


class SegmentationReport:
    """Draws the figures of a semantic segmentation model's evaluation."""

    def __init__(
        self,
        folder: ReportFolder,
        result: EvaluationResult,
        samples: Iterable[Sample] | None,
        subject: Subject,
    ) -> None:
        self.folder, self.result, self.subject = folder, result, subject
        images = cast(list[SegmentedImage], result.predictions)
        labeled = [image for image in images if len(image.pixels)]
        self.ranked = sorted(labeled, key=lambda image: (image.mean_iou, image.index))
        shown = [image for image in self.ranked if image.label_maps is not None]
        self.worst = shown[:NUM_SHOWN]
        self.best = [image for image in shown[::-1][:NUM_SHOWN] if image not in self.worst]
        self.photos = load_photos(samples, [image.index for image in (*self.worst, *self.best)])

    def sections(self) -> list[Section]:
        """Draw the figures and return the sections."""
        return [self._worst(), self._classes(), self._confusion(), self._best()]

    def _worst(self) -> Section:
        title, names = "Worst images", self.subject.classes
        rows = [
            (image.name, describe_confusion(image, names), percent(image.mean_iou), percent(image.pixel_accuracy))
            for image in self.ranked[:NUM_ROWS]
        ]
        caption = (
            f"The {len(rows)} images with the lowest mean IoU, and their most frequent confusion with its fraction of "
            "the pixels. predictions.csv has all images."
        )
        columns = ("File", "Most frequent confusion", "Mean IoU", "Pixel accuracy")
        table = Table(columns, rows, caption, num_labels=2, is_code=True)
        other_images, command = describe_other_images(self.subject)
        text = (
            "Compare target and prediction: where the model is right and the mask is not, correct the mask. "
            f"A real mistake shows what the model has not learned. {other_images}"
        )
        gallery = self._draw("worst_images.png", self.worst, "Images with the lowest mean IoU")
        return Section(title, [*gallery, table], text, command)

    def _best(self) -> Section:
        return Section("Best images", self._draw("best_images.png", self.best, "Images with the highest mean IoU"))

    def _draw(self, file: str, images: Sequence[SegmentedImage], title: str) -> list[Gallery]:
        """Save a grid and return a gallery; none without photos."""
        photos = [self._photo(image) for image in images if image.index in self.photos]
        if not photos:
            return []
        names = self.subject.classes
        caption = f"{title} ({self.subject.images})"
        self.folder.save_image(file, draw_label_maps(photos, names, title=caption))
        tiles = [
            PhotoTile(
                panel.image,
                item.file if panel.is_file else "",
                f"{item.file}: {'image' if panel.is_file else panel.text}",
                [] if panel.is_file else [Fact(panel.text, style="wrong" if index == 3 else "target")],
            )
            for item in photos
            for index, panel in enumerate(draw_panels(item, names))
        ]
        colors = class_colors(names)
        classes = [Fact(name, color=colors[name]) for name in shown_classes(photos, names)]
        return [Gallery(tiles, f"{caption}.", file, classes=[*classes, WRONG, IGNORED_FACT], is_panels=True)]

    def _photo(self, image: SegmentedImage) -> SegmentedPhoto:
        assert image.label_maps is not None
        target, prediction = (label_map.to_array() for label_map in image.label_maps)
        photo = self.photos[image.index].image
        return SegmentedPhoto(photo, image.name, target, prediction, image.mean_iou, image.pixel_accuracy)

    def _classes(self) -> Section:
        from ..visualization import plots

        by_class, where = self.result.metrics["per_class"], self.subject.images
        bars = self.folder.save_plot(
            "class_iou.png",
            plots.plot_average_precision(
                {name: row["iou"] for name, row in by_class.items()}, title=f"IoU: {where}", label="IoU"
            ),
            "IoU of each class",
            f"IoU of each class over the pixels of all images ({where}).",
        )
        total = sum(row["pixels"] for row in by_class.values())
        ordered = sorted(by_class.items(), key=lambda item: item[1]["iou"])
        rows = [
            (
                name,
                *(percent(row[column]) for column in ("iou", "dice", "accuracy")),
                f"{row['pixels']:,}",
                f"{row['pixels'] / total:.2%}",
            )
            for name, row in ordered
        ]
        columns = ("Class", "IoU", "Dice", "Accuracy", "Pixels", "Of all pixels")
        caption = (
            f"Lowest IoU first ({where}). Accuracy: fraction of the class's pixels that are predicted correctly. "
            "Pixels: in the masks, without ignored ones."
        )
        table = Table(columns, rows, caption, bars=[row["iou"] for _, row in ordered])
        return Section("Classes", [table, bars])

    def _confusion(self) -> Section:
        from ..visualization import plots

        title, confusion = "Confusion matrix", np.asarray(self.result.confusion)
        figure = self.folder.save_plot(
            "confusion_matrix_normalized.png",
            plots.plot_confusion_matrix(
                confusion,
                self.subject.classes,
                title=f"{title} of the pixels: {self.subject.images}",
                normalized=True,
                unit="pixels",
            ),
            "Confusion matrix of the pixels, normalized by target class",
            f"Pixels by label (row) and prediction (column), as percentages of each row ({self.subject.images}): the "
            "diagonal is the accuracy of the class.",
        )
        return Section(title, [figure, *confusion_table(confusion, self.subject, "Pixels")])


def describe_confusion(image: SegmentedImage, classes: Sequence[str]) -> str:
    """Return an image's most frequent confusion and its fraction of the pixels, such as "road as car (4.0%)"."""
    confusion = image.most_frequent_confusion
    if confusion is None:
        return "none"
    target, prediction, fraction = confusion
    return f"{classes[target]} as {classes[prediction]} ({percent(fraction)})"
