"""Files of a report."""

from pathlib import Path

from ..io import TEMP_PREFIX
from ..records import RESULTS_FILE

REPORT_FILE, PREDICTIONS_FILE = "report.html", "predictions.csv"
# PNGs, described for the page's list of files.
FIGURES = {
    "curves.png": "losses, headline metric and learning rate over the training",
    "confusion_matrix.png": "confusion matrix, numbers",
    "confusion_matrix_normalized.png": "confusion matrix, percentages of the target class",
    "reliability.png": "reliability diagram: accuracy over the predicted probability",
    "mistakes.png": "likely mislabeled images or annotation errors",
    "worst_images.png": "images with the lowest mean IoU: mask, prediction and errors",
    "best_images.png": "images with the highest mean IoU",
    "class_iou.png": "IoU of each class",
    "least_confident.png": "correct predictions with the lowest probability",
    "samples.png": "predictions on a sample of the images",
    "average_precision.png": "average precision of each class",
    "precision_recall.png": "precision over recall of each class",
    "thresholds.png": "F1, precision and recall over the score threshold",
    "detection_errors.png": "types of errors and what they cost",
    "class_counts.png": "number of images, objects or pixels of each class",
    "boxes.png": "sizes and positions of the annotated boxes",
    "train_batches.png": "training images after augmentation",
}
DESCRIPTIONS = {RESULTS_FILE: "all metrics with their intervals, as JSON", **FIGURES}
REPORT_FILES = (REPORT_FILE, PREDICTIONS_FILE, *FIGURES)


def check_report_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or contains nothing but an earlier report, which will be replaced.

    Raises:
        ValueError: If it contains other files, is a file, or can't be created. The message is about `save`.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"save: got {folder}, but {existing} is a file, expected a folder. Pass another one.")
    if existing != folder:
        return
    names = {path.name for path in folder.iterdir() if not path.name.startswith(TEMP_PREFIX)}
    if others := sorted(names.difference({*REPORT_FILES, RESULTS_FILE})):
        raise ValueError(
            f"save: got {folder} with {', '.join(others[:3])}{', …' * (len(others) > 3)}, expected a new folder, an "
            "empty one, or one with an earlier report. Pass another one."
        )
