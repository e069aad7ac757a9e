"""Files of a report."""

from pathlib import Path

from ..io import TEMP_PREFIX
from ..records import RESULTS_FILE

REPORT_FILE, PREDICTIONS_FILE = "report.html", "predictions.csv"
FIGURES = (
    "curves.png",
    "confusion_matrix.png",
    "confusion_matrix_normalized.png",
    "reliability.png",
    "mistakes.png",
    "least_confident.png",
    "samples.png",
    "average_precision.png",
    "precision_recall.png",
    "thresholds.png",
    "detection_errors.png",
    "class_counts.png",
    "boxes.png",
    "train_batches.png",
)
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
