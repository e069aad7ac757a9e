"""Summary of a training run before its first step: hardware, data, and length."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..data.checks import DatasetReport
from ..environment import describe_hardware
from ..evaluation.confidence_intervals import FEW_IMAGES, wilson_interval
from ..io import count_noun
from ..modeling.variants_mobilevit import VARIANTS
from ..tasks import METRICS, TASKS, TaskName

if TYPE_CHECKING:
    from .setup import Run

# Datasets with more classes show the range of their sizes.
MAX_CLASSES = 12
# Splits that a cross-validation measures on.
POOLED_SPLITS = ("train", "validation")
EXAMPLE_ACCURACY = 0.8
# Half of the metric's interval times √images; the detector of blood cells has 0.26. XXS on CamVid has 0.075, but its
# images are alike.
UNCERTAINTY: dict[TaskName, float] = {"object-detection": 0.25, "image-segmentation": 0.25}
NUM_FOLDS = 5


def summarize_run(run: "Run", report: DatasetReport, image_size: int) -> dict[str, str]:
    """Return the device, the initial checkpoint, the images per split and class, and the length of a run, by title."""
    arguments, accelerator = run.arguments, run.accelerator
    hardware = describe_hardware(accelerator.device, num_processes=accelerator.num_processes)
    name = hardware.get("gpu") or hardware["cpu"]
    device = f"{hardware['device']}{f' ({name})' if name else ''}"
    if threads := hardware.get("threads"):
        device += f", {count_noun(threads, 'thread')}"
    if accelerator.num_processes > 1:
        device += f", {accelerator.num_processes} processes"
    model, batch_size = arguments.model, count_noun(arguments.per_device_train_batch_size, "image")
    if arguments.gradient_accumulation_steps > 1:
        batch_size += f", {arguments.gradient_accumulation_steps} batches per step"
    if accelerator.num_processes > 1:
        batch_size += ", per process"
    return {
        "device": device,
        "initial checkpoint": f"none: {model} with random weights" if model in VARIANTS else str(model),
        **{
            split: describe_split(report, split, is_stream=not isinstance(run.task.dataset.splits[split], Sequence))
            for split in report.num_samples
        },
        "image size": f"{image_size}x{image_size} pixels",
        "batch size": batch_size,
        "length": _describe_length(run),
    }


def warn_of_few_images(report: DatasetReport) -> str | None:
    """Return a warning about the uncertainty of a small validation split, None if it is large or missing."""
    count = report.num_samples.get("validation", 0)
    if not 0 < count < FEW_IMAGES:
        return None
    if uncertainty := UNCERTAINTY.get(report.task):
        title = METRICS[TASKS[report.task].headline_metric].title.partition(" (")[0]
        title = title if title == "mAP" else title[0].lower() + title[1:]
        meaning = f"The 95% interval of its {title} is often ±{uncertainty / math.sqrt(count):.2f} or more"
    else:
        correct = round(EXAMPLE_ACCURACY * count)
        low, high = wilson_interval(correct, count)
        meaning = f"With {correct} of them correct, the 95% interval of the accuracy is {low:.2f} to {high:.2f}"
    total = sum(report.num_samples.get(name, 0) for name in POOLED_SPLITS)
    return (
        f"The validation split has only {count_noun(count, 'image')}. {meaning}, and the best of several evaluations "
        f"is optimistic. --cross-validation {NUM_FOLDS} measures on all {total} images: it trains {NUM_FOLDS + 1} "
        "times."
    )


def describe_split(report: DatasetReport, split: str, *, is_stream: bool = False) -> str:
    """Return the number of images of a split, and of images or objects of each class, or of its pixels in percent."""
    counts, text = report.counts[split], count_noun(report.num_samples[split], "image")
    if is_stream:
        text = f"streamed; the first {text}"
    if report.task == "object-detection":
        text += f", {count_noun(sum(counts.values()), 'object')}"
    if report.task == "image-segmentation":
        pixels = max(1, sum(counts.values()))
        return f"{text}: {_describe_counts({name: count / pixels for name, count in counts.items()}, '.1%')}"
    return f"{text}: {_describe_counts(counts)}"


def _describe_counts(values: Mapping[str, float], form: str = "") -> str:
    """Return the value of each class, or the range of many, in a format such as `.1%`."""
    if len(values) <= MAX_CLASSES:
        return ", ".join(f"{name} {value:{form}}" for name, value in values.items())
    smallest, largest = (choose(values, key=values.__getitem__) for choose in (min, max))
    return (
        f"{len(values)} classes of {values[smallest]:{form}} ({smallest}) to {values[largest]:{form}} ({largest}), "
        f"median {statistics.median(values.values()):{form or 'g'}}"
    )


def _describe_length(run: "Run") -> str:
    arguments, per_epoch, parts = run.arguments, run.loader.steps_per_epoch, []
    if run.num_steps:
        epochs = f" ({run.num_steps / per_epoch:.3g} epochs)" if per_epoch else ""
        parts.append(f"{count_noun(run.num_steps, 'step')}{epochs}")
    if arguments.max_minutes:
        parts.append(f"{'at most ' if parts else ''}{arguments.max_minutes:g} min")
    return ", ".join(parts)
