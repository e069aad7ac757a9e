"""Cross-validation: train and measure a model per fold, then train the one to keep on all images."""

import dataclasses
import json
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from accelerate import Accelerator
from transformers import BaseImageProcessor, PreTrainedModel

from ..backends.pytorch import load_model
from ..data.duplicates import MAX_COMPARED, find_near_duplicates, make_thumbnail
from ..data.images import load_image
from ..data.sequences import ConcatSequence, Subset
from ..data.splits import assign_folds
from ..data.types import Dataset, Sample
from ..evaluation import EvaluationResult
from ..evaluation.evaluator import THRESHOLD_DIGITS, evaluate_folds
from ..io import quote_words, read_json, write_text
from ..model_sources import load_image_processor
from ..records import RESULTS_FILE, CrossValidationRecord, ResultsRecord, read_record
from .arguments import TaskArguments, TrainArguments
from .callbacks import TrainerCallback, TrainingProgress
from .checkpoint import CHECKPOINT_FOLDER, explain_full_disk
from .output_dir import FOLDS_FOLDER
from .push_to_hub import check_publication
from .resume import DURATION, check_resumed_arguments, check_resumed_data, describe_data
from .setup import TrainingData, check_options, read_data
from .signals import StoppedError
from .state import TrainingResult
from .summary import POOLED_SPLITS, describe_split

# In `FOLDS_FOLDER`: arguments and dataset of the finished folds.
STATE_FILE = "state.json"


# `trainer.train_part`, which this module can't import: the trainer starts the cross-validation.
TrainPart: TypeAlias = Callable[..., TrainingResult]


def cross_validate(
    arguments: TrainArguments,
    accelerator: Accelerator,
    callback: TrainerCallback,
    train_part: TrainPart,
    began: float,
) -> TrainingResult:
    """Train `arguments.cross_validation` models, each measured on its own fold, then the model to keep on all folds.

    The folds consist of the training and the validation split; the test split is measured with the kept model only.
    Every model is trained to the end and its last weights are measured: no fold selects weights, as none is left to
    select those of the kept model. The folds are in `FOLDS_FOLDER`; a resumed run does not repeat the finished ones.
    The report of the kept model shows the predictions of all folds. The time limit is divided between all models.

    Raises:
        ValueError: If there are several processes, a stream, early stopping, or fewer images than folds; otherwise as
            `train`.
        StoppedError: If a signal stopped the run.
    """
    _check_options(arguments, accelerator)
    num_folds, folder = int(arguments.cross_validation or 0), Path(str(arguments.output_dir))
    requested, _ = check_options(arguments, accelerator, callback)
    if arguments.push_to_hub:
        check_publication(requested, callback.on_message)
    data = read_data(requested, accelerator, callback)
    metric = requested.for_task(data.dataset.task).metric_for_best_model
    pool = ConcatSequence([_sequence(data.dataset, name) for name in POOLED_SPLITS if name in data.dataset.splits])
    folds = _assign_folds(pool, num_folds, data.dataset.classes, callback)
    _check_state(requested, data, folder / FOLDS_FOLDER / STATE_FILE)

    rows = {"cross-validation": f"{num_folds} folds, then the saved model on all {len(pool)} images"}
    if "test" in data.report.num_samples:
        rows["test"] = f"{describe_split(data.report, 'test')}; measured with the saved model"
    setup_seconds, records = time.monotonic() - began, []

    def seconds_per_model() -> float | None:
        used = setup_seconds + sum(record.seconds or 0 for record in records)
        limit = arguments.max_minutes
        return None if limit is None else (60 * limit - used) / (num_folds + 1 - len(records))

    requested = dataclasses.replace(requested, resume="auto")
    with _explain_stop(folder, num_folds):
        for number in range(num_folds):
            part = _PartCallback(callback, f"fold {number + 1} of {num_folds}", number, num_folds + 1, rows)
            own_folder = folder / FOLDS_FOLDER / f"fold-{number + 1}"
            if not (own_folder / RESULTS_FILE).exists():
                own_folder.mkdir(exist_ok=True)
                own = dataclasses.replace(requested, output_dir=str(own_folder), push_to_hub=False)
                train_part(own, part, select_fold(data, pool, folds, number), max_seconds=seconds_per_model())
            records.append(_read_fold(own_folder))
            value, count = records[-1].metrics[metric], records[-1].num_images
            part.on_message(f"{metric} {value:.3f} on {count} images", "validation")
        part = _PartCallback(callback, "model on all folds", num_folds, num_folds + 1)
        summary, started = summarize_folds(records), time.monotonic()
        pooled = _pool_folds(requested.for_task(data.dataset.task), data.dataset, pool, folds, summary, accelerator)
        setup_seconds += time.monotonic() - started
        return train_part(
            requested,
            part,
            select_fold(data, pool, folds, None),
            max_seconds=seconds_per_model(),
            cross_validation=summary,
            pooled=pooled,
        )


def select_fold(data: TrainingData, pool: Sequence[Sample], folds: Sequence[int], number: int | None) -> TrainingData:
    """Return the dataset with a fold as the validation split, or for None with all folds for training and the test."""
    dataset, splits = data.dataset, {"train": [index for index, fold in enumerate(folds) if fold != number]}
    if number is not None:
        splits["validation"] = [index for index, fold in enumerate(folds) if fold == number]
    selected: dict[str, Any] = {name: Subset(pool, indices) for name, indices in splits.items()}
    if number is None and "test" in dataset.splits:
        selected["test"] = dataset.splits["test"]
    counts = {name: _count_labels(selected[name], dataset.classes) for name in splits}
    report = dataclasses.replace(
        data.report,
        num_samples={name: len(split) for name, split in selected.items()},
        counts={name: counts.get(name) or data.report.counts[name] for name in selected},
        validation_cut_off=False,
    )
    dataset = dataclasses.replace(dataset, splits=selected, validation_cut_off=False)
    return TrainingData(dataset, report, describe_data(dataset))


def summarize_folds(records: Sequence[ResultsRecord]) -> CrossValidationRecord:
    """Return the metrics of the folds, of each metric from those that have it: COCO's -1 stands for no objects."""
    metrics: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.metrics.items():
            if not isinstance(value, dict) and value >= 0:
                metrics.setdefault(name, []).append(value)
    return CrossValidationRecord(
        metrics=metrics,
        std={name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in metrics.items()},
        num_images=[record.num_images or 0 for record in records],
        thresholds=[record.threshold for record in records if record.threshold is not None],
    )


def mean_threshold(record: CrossValidationRecord) -> float | None:
    """Return the mean of the folds' best score thresholds, None for a classifier."""
    return round(statistics.mean(record.thresholds), THRESHOLD_DIGITS) if record.thresholds else None


# --- folds -----------------------------------------------------------------------------------------------------------


def _check_options(arguments: TrainArguments, accelerator: Accelerator) -> None:
    number = arguments.cross_validation
    if accelerator.num_processes > 1:
        raise ValueError(
            f"cross_validation: got {accelerator.num_processes} processes, expected one. Start it without a launcher."
        )
    if arguments.streaming:
        raise ValueError(f"cross_validation: got {number} together with streaming, expected one of them. Remove one.")
    if arguments.early_stopping_patience:
        raise ValueError(
            f"cross_validation: got {number} together with early_stopping_patience, expected one of them: the saved "
            "model has no validation images to stop by. Remove one."
        )


def _sequence(dataset: Dataset, name: str) -> Sequence[Sample]:
    split = dataset.splits[name]
    assert isinstance(split, Sequence)  # `_check_options` excludes streams
    return split


def _assign_folds(
    pool: Sequence[Sample], num_folds: int, classes: Sequence[str], callback: TrainerCallback
) -> list[int]:
    samples = list(pool)
    labels, names = [_labels(sample) for sample in samples], [sample.name for sample in samples]
    if len(samples) < num_folds:
        raise ValueError(
            f"cross_validation: got {num_folds} folds for {len(samples)} images, expected at least one image per "
            "fold. Lower it."
        )
    counts = Counter(classes[label] for image_labels in labels for label in set(image_labels))
    if rare := [f"{name} ({count})" for name, count in sorted(counts.items()) if count < num_folds]:
        callback.on_message(
            f"Classes with fewer images than the {num_folds} folds: {', '.join(rare)}. They are missing from some "
            "folds, whose metrics per class do not include them.",
            "warning",
        )
    duplicates = _find_duplicates(samples)
    folds = assign_folds(labels, names, num_folds, duplicates=duplicates)
    if empty := num_folds - len(set(folds)):
        raise ValueError(
            f"cross_validation: got {num_folds} folds for {num_folds - empty} groups of images that look alike, which "
            "stay in one fold, expected at least one group per fold. Lower it."
        )
    if duplicates:
        callback.on_message(f"Pairs of images that look alike and stay in one fold: {len(duplicates)}.")
    return folds


def _find_duplicates(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return the indices of pairs of images that look alike; none for a large dataset, which has enough others."""
    if len(samples) > MAX_COMPARED:
        return []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        thumbnails = list(pool.map(lambda sample: make_thumbnail(load_image(sample.image)), samples))
    return list(find_near_duplicates(thumbnails, [str(index) for index in range(len(samples))]))  # of any classes


def _labels(sample: Sample) -> list[int]:
    if sample.objects is not None:
        return sample.objects.labels.tolist()
    if sample.mask is not None:
        return sample.mask.labels()
    return [] if sample.label is None else [sample.label]


def _count_labels(samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, int]:
    """Return the number of images, objects or pixels of each class."""
    counts = Counter()
    for sample in samples:
        if sample.mask is not None:
            values, pixels = np.unique(sample.mask.read(), return_counts=True)
            counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        else:
            counts.update(_labels(sample))
    return {name: counts[label] for label, name in enumerate(classes)}


def _pool_folds(
    arguments: TaskArguments,
    dataset: Dataset,
    pool: Sequence[Sample],
    folds: Sequence[int],
    record: CrossValidationRecord,
    accelerator: Accelerator,
) -> EvaluationResult:
    """Evaluate the models of all folds, each on its own fold, as one evaluation."""

    def load_folds() -> Iterator[tuple[PreTrainedModel, BaseImageProcessor, list[int]]]:
        for number in sorted(set(folds)):
            folder = str(Path(str(arguments.output_dir)) / FOLDS_FOLDER / f"fold-{number + 1}")
            model, processor = load_model(dataset.task, folder)[0], load_image_processor(folder)
            indices = [index for index, fold in enumerate(folds) if fold == number]
            yield model.to(accelerator.device), processor, indices

    return evaluate_folds(
        load_folds(),
        pool,
        dataset.classes,
        batch_size=arguments.per_device_eval_batch_size,
        max_bad=arguments.max_bad,
        recommended_threshold=mean_threshold(record),
    )


def _read_fold(folder: Path) -> ResultsRecord:
    """Return the results of a finished fold, and remove its checkpoints."""
    record = read_record(folder / RESULTS_FILE, ResultsRecord)
    assert record is not None  # it exists
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
    return record


# --- state and callback ----------------------------------------------------------------------------------------------


def _check_state(arguments: TrainArguments, data: TrainingData, path: Path) -> None:
    """Check that finished folds have the same arguments and dataset, or write these for a later run.

    Unlike a single training, the folds can't be extended: all are trained equally long.
    """
    complete = arguments.for_task(data.dataset.task)
    if saved := read_json(path):
        check_resumed_arguments(complete, saved["arguments"], also=DURATION)
        check_resumed_data(complete, data.identity, saved["data"])
        return
    with explain_full_disk(path.parent.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"arguments": dataclasses.asdict(complete), "data": data.identity}))


@contextmanager
def _explain_stop(folder: Path, num_folds: int) -> Generator[None, None, None]:
    """Replace the message of a signal, which names the folder of a fold."""
    try:
        yield
    except StoppedError as stop:
        raise StoppedError(
            "Stopped. The finished folds and the checkpoint of the current model are saved; resume with --resume auto "
            f"--cross-validation {num_folds} --output-dir {quote_words(folder)}",
            stop.signal,
        ) from stop


class _PartCallback(TrainerCallback):
    """Passes on what one of several trainings reports, with its name and as a part of the whole progress.

    `rows` are added to the summary of the first.
    """

    def __init__(
        self, callback: TrainerCallback, name: str, number: int, total: int, rows: Mapping[str, str] | None = None
    ) -> None:
        self.callback, self.name, self.number, self.total = callback, name, number, total
        self.rows = rows or {}
        self.seconds = 0.0  # estimated duration of this training

    def on_start(self, summary: Mapping[str, str]) -> None:
        """Pass on the first summary."""
        if not self.number:
            titles = {name: f"{name}, fold 1" for name in POOLED_SPLITS}
            self.callback.on_start({titles.get(name, name): text for name, text in summary.items()} | {**self.rows})

    def on_message(self, text: str, kind: str = "note") -> None:
        """Pass on a message; the notes of the first training apply to all."""
        if kind != "note" or not self.number:
            self.callback.on_message(f"{self.name}: {text}", kind)

    def on_progress(self, progress: TrainingProgress) -> None:
        """Pass on the progress; the other trainings are expected to take as long as this one."""
        done = progress.progress
        if done < 1:
            self.seconds = progress.seconds_left / (1 - done)
        total = dataclasses.replace(
            progress,
            progress=(self.number + done) / self.total,
            seconds_left=progress.seconds_left + (self.total - self.number - 1) * self.seconds,
            part=self.name,
        )
        self.callback.on_progress(total)
