"""Checks before a run is resumed: its checkpoints, arguments and dataset."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.checks import DatasetReport
from ..data.formats.table import SampleStream
from ..data.types import Dataset, Sample
from ..io import quote_words
from ..records import RESULTS_FILE
from .arguments import HUB, TaskArguments, TrainArguments
from .checkpoint import find_checkpoints, load_checkpoint
from .output_dir import FOLDS_FOLDER, HISTORY_FILE, RECIPE_FILE, TABLE_FILE, TRACKER_PROJECT, list_files

# Arguments that extend a run.
DURATION = ("num_train_epochs", "max_steps", "max_minutes", "early_stopping_patience")
# Arguments that may differ when a run is resumed, as those of the Hub: they don't affect the computation of a step.
MAY_CHANGE = (
    *DURATION, "resume", "output_dir", "save_steps", "save_total_limit", "logging_steps", "report_to",
    "dataloader_num_workers", "per_device_eval_batch_size", "compile", "max_bad",
)  # fmt: skip
# Arguments that may differ with another number of processes, so that a step keeps its number of images.
BATCH_SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps")


def find_resume_checkpoint(arguments: TrainArguments, log: Callable[[str], object]) -> dict[str, Any] | None:
    """Return the latest intact checkpoint in the output directory, None if a new run can start in it.

    Damaged checkpoints are logged.

    Raises:
        ValueError: If the directory has files of something else, files although `resume` is None, or only damaged
            checkpoints.
    """
    folder, damaged = Path(str(arguments.output_dir)), []
    files, checkpoints = list_files(folder), find_checkpoints(folder)
    own = {RECIPE_FILE, HISTORY_FILE, TABLE_FILE, TRACKER_PROJECT} | (
        {FOLDS_FOLDER} if arguments.cross_validation else set()
    )
    others = [name for name in files if name not in own]
    if others and not checkpoints:
        raise ValueError(
            f"output_dir: got {folder} with {', '.join(others[:3])}{', …' * (len(others) > 3)} but no checkpoint, "
            "expected a run to resume or an empty directory. Choose another --output-dir."
        )
    if files and arguments.resume is None:
        raise ValueError(
            f"output_dir: {folder} is not empty. Resume the run in it (--resume auto), or choose another --output-dir."
        )
    for path in reversed(checkpoints):
        try:
            saved = load_checkpoint(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        if damaged:
            log(f"{'; '.join(damaged)}. Resuming from {path.name}, the last intact checkpoint.")
        return saved
    if damaged:
        raise ValueError(f"output_dir: {'; '.join(damaged)}; there is no intact one. Choose another --output-dir.")
    return None


def check_incomplete(arguments: TaskArguments, saved: dict[str, Any]) -> None:
    """Check that a run to resume has not ended, unless its duration is to be extended."""
    is_extended = any(getattr(arguments, name) != saved["arguments"][name] for name in DURATION)
    if saved["progress"] >= 1 and not is_extended:
        raise_if_complete(Path(str(arguments.output_dir)), saved["state"]["step"])


def raise_if_complete(output_dir: Path, step: int) -> None:
    """Raise a ValueError if a run that trained to the end has also written its results."""
    if (output_dir / RESULTS_FILE).exists():
        raise ValueError(
            f"{output_dir}: this run is complete ({step} steps). Extend it (--num-train-epochs, --max-steps, "
            "--max-minutes, --early-stopping-patience), or choose another --output-dir."
        )


def check_resumed_arguments(
    arguments: TaskArguments, saved: dict[str, Any], *, also: Sequence[str] = (), may_change: Sequence[str] = ()
) -> None:
    """Check that a resumed run has the arguments of its checkpoint.

    Those in `MAY_CHANGE` but not in `also`, and those in `may_change`, may differ.
    """
    changing = {*MAY_CHANGE, *may_change}.difference(also)
    fixed = {f.name for f in dataclasses.fields(arguments) if f.metadata["panel"] != HUB} - changing
    if not arguments.streaming:
        fixed.remove("data")  # compared by `check_resumed_data`, wherever the dataset is
    own = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments) if f.name in fixed}
    changed = [name for name, value in own.items() if name in saved and saved[name] != value]
    if changed:
        shown = ", ".join(f"{name} (was {saved[name]}, is {own[name]})" for name in changed)
        raise ValueError(
            f"{arguments.output_dir}: can't resume with other arguments: {shown}. Pass the same, or another "
            "--output-dir."
        )


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Return what identifies a dataset for a resumed run, without decoding images: classes, images and annotations.

    The test split is left out, which training does not depend on.
    """
    splits = {name: split for name, split in dataset.splits.items() if isinstance(split, Sequence) and name != "test"}
    stream = dataset.splits.get("train")
    return {
        "classes": list(dataset.classes),
        "images": {name: len(split) for name, split in splits.items()},
        "shards": {"train": stream.num_shards} if isinstance(stream, SampleStream) else {},
        "annotations": {name: _hash_annotations(split) for name, split in splits.items()},
    }


def describe_images(report: DatasetReport) -> dict[str, Any]:
    """Return what identifies decoded images and masks: numbers of valid images and hashes of all pixels."""
    images = {"valid_images": report.num_samples, "pixels": report.pixel_hashes, "masks": report.mask_hashes}
    return {kind: {name: value for name, value in values.items() if name != "test"} for kind, values in images.items()}


def check_resumed_data(arguments: TaskArguments, data: dict[str, Any], saved: dict[str, Any]) -> None:
    """Check that a resumed run has the dataset of its checkpoint, both described by `describe_data`.

    Raises:
        ValueError: If they differ. The message names the first difference.
    """
    if difference := find_difference(data, saved):
        raise ValueError(
            f"{arguments.data}: got {difference}. Restore the dataset to resume, or train the saved weights on this "
            f"one: --model {quote_words(str(arguments.output_dir))} --output-dir NEW"
        )


def find_difference(data: dict[str, Any], saved: dict[str, Any], origin: str = "the checkpoint") -> str | None:
    """Return the first difference of two datasets, as `X, expected Y`."""
    classes, before = data["classes"], saved["classes"]
    if classes != before:
        added, removed = (
            ", ".join(name for name in names if name not in others) or "none"
            for names, others in ((classes, before), (before, classes))
        )
        if added == removed:
            return f"the classes in the order {', '.join(classes)}, expected {', '.join(before)}"
        return f"other classes than {origin} (added: {added}; removed: {removed}), expected the same"
    for kind, text in (
        ("images", "{} {} images"),
        ("shards", "{} shards of the {} split"),
        ("valid_images", "{} valid {} images"),
    ):
        for split in sorted({*data.get(kind, ()), *saved.get(kind, ())} if kind in data else ()):
            counts = [values[kind].get(split, 0) for values in (data, saved)]
            if counts[0] != counts[1]:
                return f"{text.format(counts[0], split)}, expected {counts[1]} as in {origin}"
    for kind, text in (
        ("annotations", "file names, labels or boxes"),
        ("pixels", "images under the same names"),
        ("masks", "masks under the same names"),
    ):
        for split, value in data.get(kind, {}).items():
            if value != saved.get(kind, {}).get(split):
                return f"other {text} in the {split} split, expected those of {origin}"
    return None


def _hash_annotations(samples: Iterable[Sample]) -> str:
    """Return a hash of the names, labels and objects of samples."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.name}\0{sample.label}\0".encode(errors="surrogateescape"))
        if sample.objects is not None:
            for tensor in (sample.objects.boxes, sample.objects.labels, sample.objects.iscrowd):
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
