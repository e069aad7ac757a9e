"""Write the report of a training or an evaluation."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..data.types import Sample
from ..evaluation.confidence_intervals import FEW_IMAGES
from ..evaluation.predictions import ClassifiedImages, DetectedImage
from ..evaluation.results import EvaluationResult
from ..io import atomic_folder
from ..records import CROSS_VALIDATION
from ..tasks import METRICS, TASKS, TaskName
from ..visualization import LabeledImage, draw_image_grid
from .augmented import augmented_gallery
from .classification import classification_sections
from .detection import DetectionReport
from .files import PREDICTIONS_FILE, REPORT_FILE, REPORT_FILES
from .folder import ReportFolder
from .page import Figure, Gallery, Page, Section, Table, render_page
from .predictions import write_predictions
from .segmentation import SegmentationReport
from .text import Subject, count, interval, metrics_table, percent

NUM_AUGMENTED = 24


def write_report(
    folder: Path,
    result: EvaluationResult | None,
    samples: Iterable[Sample] | None,
    *,
    title: str,
    split: str = "validation",
    dataset: str | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    metric: str | None = None,
    best_step: int | None = None,
    classes: Sequence[str] = (),
    counts: Mapping[str, Mapping[str, int]] | None = None,
    train_batches: Sequence[LabeledImage] = (),
    test: EvaluationResult | None = None,
    headline: tuple[str, str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `report.html`, its figures as PNG files and `predictions.csv` into a folder, all or none.

    Figures of an earlier report that this one lacks are removed. The page and the files contain no path but the names
    of the samples.

    Args:
        folder: Existing folder.
        result: Evaluation of the saved weights; None without an evaluated split.
        samples: The evaluated samples, in the same order; a stream is read again up to the last image that is shown.
            None: show no images.
        title: Name of the model.
        split: Evaluated split; `CROSS_VALIDATION` for the folds of one, whose predictions are pooled.
        dataset: Name of the dataset, None if it may not be shown.
        history: Lines of the training log.
        metric: Headline metric, which selected the weights of a training. Default: that of the task.
        best_step: Step whose weights were saved.
        classes: Class names of the model; needed without a result only.
        counts: Number of images, or objects of a detection dataset, by split and class. Default: of the evaluated
            split.
        train_batches: Images of augmented training batches, see `augmented_images`.
        test: Evaluation of the saved weights on the test split.
        headline: Title and value of the headline metric, and text on its uncertainty. Default: those of the result.
        facts: Further facts for the header, such as steps and duration of a training, by name.
        notes: Sentences below the headline metric, such as how the weights were selected.
        files: Other files to name on the page, with a description, by path relative to the folder.
        texts: Further text files to write with the report, by name.

    Returns:
        Paths of the files, the page first.
    """
    with atomic_folder(folder) as scratch:
        report = ReportFolder(scratch)
        names = list(result.classes if result and result.classes else classes)
        subject = Subject(split, result.num_images if result else 0, names)
        sections = [_metrics_section(result, test, subject)]
        if result:
            sections += _task_sections(report, result, samples, subject)
            write_predictions(scratch / PREDICTIONS_FILE, result)
        if history:
            sections.append(_curves_section(report, history, metric, best_step, subject, result))
        sections.append(_data_section(report, result, subject, counts, train_batches))
        page = Page(
            title=title,
            subtitle=_subtitle(subject, dataset, result),
            headline=headline or _headline(result, metric, subject),
            facts=facts or {},
            notes=[*notes, *(result.notes if result else ())],
            warnings=_warnings(result, subject),
            sections=[section for section in sections if section.blocks or section.text],
            files={**_describe_files(result), **(files or {})},
        )
        shown = {b.file for section in page.sections for b in section.blocks if isinstance(b, Figure)}
        html = render_page(page, {file: (scratch / file).read_bytes() for file in shown}, texts or ())
        for name, text in (texts or {}).items():
            (scratch / name).write_text(text, encoding="utf-8")
        (scratch / REPORT_FILE).write_text(html, encoding="utf-8", errors="backslashreplace")
        written = sorted((file.name for file in scratch.iterdir()), key=lambda name: (name != REPORT_FILE, name))
    for name in set(REPORT_FILES).difference(written):
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in written]


def _task_sections(
    folder: ReportFolder, result: EvaluationResult, samples: Iterable[Sample] | None, subject: Subject
) -> list[Section]:
    if isinstance(result.predictions, ClassifiedImages):
        return classification_sections(folder, result, samples, subject)
    if not result.predictions:  # a result of metrics alone
        return []
    report = SegmentationReport if result.task == "image-segmentation" else DetectionReport
    return report(folder, result, samples, subject).sections()


# --- header ----------------------------------------------------------------------------------------------------------


def _subtitle(subject: Subject, dataset: str | None, result: EvaluationResult | None) -> str:
    source = f" of {dataset}" if dataset else ""
    date = datetime.now(UTC).date().isoformat()
    if result is None:
        return f"Trained without a validation split{f' on {dataset}' if dataset else ''}, {date}"
    images = count(subject.num_images, "image")
    if subject.split == CROSS_VALIDATION:
        return f"Cross-validation{f' on {dataset}' if dataset else ''}: {images}, {date}"
    return f"Evaluation on the {subject.split} split{source}: {images}, {date}"


def _headline(result: EvaluationResult | None, metric: str | None, subject: Subject) -> tuple[str, str, str] | None:
    if result is None:
        return None
    name = metric if metric in result.metrics else TASKS[result.task].headline_metric
    ends = interval(result.intervals.get(name))
    text = f"(95% confidence interval {ends}; {subject.images})" if ends else f"({subject.images})"
    return METRICS[name].title, percent(result.metrics[name]), text


def _warnings(result: EvaluationResult | None, subject: Subject) -> list[str]:
    warnings = []
    if result and subject.num_images < FEW_IMAGES:
        is_pooled = subject.split == CROSS_VALIDATION
        warnings.append(
            f"Only {count(subject.num_images, 'image')}: all figures on this page are rough estimates. Use at least "
            f"{FEW_IMAGES} images{'' if is_pooled else ', or cross-validation (mobilevit train --cross-validation)'}."
        )
    if result and result.problems:
        names = ", ".join(problem.name for problem in result.problems[:5])
        warnings.append(f"{count(len(result.problems), 'image')} could not be read and are left out, such as {names}.")
    return warnings


def _describe_files(result: EvaluationResult | None) -> dict[str, str]:
    if result is None:
        return {}
    columns: dict[TaskName, str] = {
        "image-classification": "a row per image: file, target, prediction, score, target_score, correct",
        "object-detection": "a row per box of any score (kind prediction) and per object (kind object): file, kind, "
        "label, score, corners in pixels, outcome at IoU 0.50 and the score threshold",
        "image-segmentation": "a row per image: file, mean IoU, pixel accuracy, IoU of each class",
    }
    return {PREDICTIONS_FILE: columns[result.task]}


# --- sections --------------------------------------------------------------------------------------------------------


def _metrics_section(result: EvaluationResult | None, test: EvaluationResult | None, subject: Subject) -> Section:
    tables: list[Table] = []
    if result:
        images = count(subject.num_images, "image")
        caption = f"{subject.split.capitalize()} split: {images}"
        if subject.split == CROSS_VALIDATION:
            caption = (
                f"Predictions of all folds together: {images}, each predicted by the model that was not trained on it"
            )
        tables.append(metrics_table(result, caption))
    if test:
        caption = f"Test split: {count(test.num_images, 'image')}, measured once, at the end"
        if subject.split == CROSS_VALIDATION:
            caption += ", with the saved model"
        tables.append(metrics_table(test, caption))
    return Section("Metrics", tables)


def _curves_section(
    folder: ReportFolder,
    history: Sequence[Mapping[str, Any]],
    metric: str | None,
    best_step: int | None,
    subject: Subject,
    result: EvaluationResult | None,
) -> Section:
    from ..visualization import plots

    name = metric or (TASKS[result.task].headline_metric if result else "loss")
    title = METRICS[name].title if name in METRICS else name
    label = f"{title.partition(' (')[0]} (0 to 1)" if name in METRICS else name
    drawn = _name_curves(history, name, title)
    where = f"validation: {count(subject.num_images, 'image')}" if result else "no validation split"
    if subject.split == CROSS_VALIDATION:
        where = "no validation images"
    figure = folder.save_plot(
        "curves.png",
        plots.plot_curves(history, name, title=f"Training curves ({where})", metric_title=label, best_step=best_step),
        f"{drawn} over the steps of the training",
        f"{drawn} over the optimizer steps; {where}.",
    )
    return Section("Training curves", [figure])


def _name_curves(history: Sequence[Mapping[str, Any]], metric: str, title: str) -> str:
    """Return what the training log has curves of, such as "Training loss and learning rate"."""
    logged = {name for line in history for name, value in line.items() if value is not None}
    titles = {
        "loss": "training loss",
        "eval_loss": "validation loss",
        f"eval_{metric}": f"{title[0].lower()}{title[1:]}",
        "learning_rate": "learning rate",
    }
    *names, last = [text for name, text in titles.items() if name in logged] or ["values"]
    text = f"{', '.join(names)} and {last}" if names else last
    return f"{text[0].upper()}{text[1:]}"


def _data_section(
    folder: ReportFolder,
    result: EvaluationResult | None,
    subject: Subject,
    counts: Mapping[str, Mapping[str, int]] | None,
    train_batches: Sequence[LabeledImage],
) -> Section:
    from ..visualization import data_plots

    blocks: list[Figure | Table | Gallery] = []
    is_detection = result is not None and result.task == "object-detection"
    images = cast(list[DetectedImage], result.predictions) if result and is_detection else []
    has_masks = any(image.label_map is not None for image in train_batches) or (
        result is not None and result.task == "image-segmentation"
    )
    unit = "pixels" if has_masks else "objects" if images else "images"
    counts = counts or (_count_classes(result, subject) if result else {})
    if counts and subject.classes:
        plot = data_plots.plot_class_counts(counts, subject.classes, title="Class counts", unit=unit)
        text = f"Number of {unit} of each class, by split."
        if has_masks:
            text = "Fraction of the labeled pixels that each class has, by split."
        blocks.append(folder.save_plot("class_counts.png", plot, text, text))
    boxes = [(box, image.size, label) for image in images for box, label in _objects(image)]
    if boxes:
        corners, sizes, labels = (np.array(column) for column in zip(*boxes, strict=True))
        title = f"Boxes: {subject.images}, {count(len(boxes), 'object')}"
        plot = data_plots.plot_boxes(corners, sizes, labels, subject.classes, title=title)
        caption = f"Relative size of the annotated boxes, and density of their centers ({subject.images})."
        blocks.append(folder.save_plot("boxes.png", plot, "Histograms of box sizes and positions", caption))
    if train_batches:
        shown = train_batches[:NUM_AUGMENTED]
        grid = draw_image_grid(shown, subject.classes, title="Augmented training images", columns=4)
        folder.save_image("train_batches.png", grid)
        blocks.append(augmented_gallery(shown, subject.classes))
    return Section("Data", blocks)


def _objects(image: DetectedImage) -> Iterable[tuple[np.ndarray, int]]:
    return ((box, int(label)) for box, label in zip(image.object_boxes, image.matches.objects, strict=True))


def _count_classes(result: EvaluationResult, subject: Subject) -> dict[str, dict[str, int]]:
    """Return the number of images, objects or pixels of each class in the evaluated split."""
    if isinstance(result.predictions, ClassifiedImages):
        labels = Counter(result.predictions.targets.tolist())
    elif result.task == "image-segmentation":
        pixels = np.zeros(len(subject.classes), int) if result.confusion is None else result.confusion.sum(axis=1)
        labels = Counter(dict(enumerate(pixels.tolist())))
    else:
        images = cast(list[DetectedImage], result.predictions)
        labels = Counter(label for image in images for label in image.matches.objects.tolist())
    return {subject.split: {name: labels[index] for index, name in enumerate(subject.classes)}}
