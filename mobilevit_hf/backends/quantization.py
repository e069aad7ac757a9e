"""Images to quantize a model on, and the accuracy drop of a quantized model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.image_formats import find_images
from ..data.reading import load_dataset
from ..data.types import Dataset, Problem, Sample, UnlabeledImagesError
from ..evaluation.evaluator import evaluate_model
from ..evaluation.inference import Prepared, prepare_ahead
from ..tasks import TASKS, TaskName
from .runtime import ExportedModel, processor_of_outputs
from .verify import compare, stack_pixels

# Mean KL divergence of MobileViT-XXS from float32: 0.0017 nats with 300 images, 0.0019 with 100.
MAX_CALIBRATION_IMAGES = 300
MAX_EVALUATION_IMAGES = 1000


@dataclass
class CalibrationImages:
    """Images to quantize with and, disjoint from them where possible, to measure the accuracy drop on.

    Attributes:
        calibration: (N, 3, H, W) outputs of the image processor.
        samples: Images to measure the drop on; labeled if `classes` is set.
        classes: Class names, None without labels for the model's task.
        problems: Images that can't be read, in both parts.
        note: Why the drop is measured without labels, empty with labels.
    """

    calibration: Tensor
    samples: Sequence[Sample]
    classes: tuple[str, ...] | None
    problems: list[Problem] = field(default_factory=list)
    note: str = ""


def load_calibration_images(source: str, task: TaskName, processor: BaseImageProcessor) -> CalibrationImages:
    """Load images to quantize with and to measure the accuracy drop on.

    Args:
        source: A dataset that `load_dataset` reads: its training split calibrates, its validation split evaluates. Of
            a dataset for another task, the labels are not used. Or a folder of images without annotations, of which
            up to half calibrate.

    Raises:
        ValueError: If annotations can't be read, there are too few readable images, or the image processor's outputs
            differ in size.
    """
    dataset = _load_dataset(source, task)
    if dataset is None:
        names, _, _ = find_images([source])
        if len(names) < 2:
            raise ValueError(f"calibration: got {len(names)} images in {source}, expected at least 2. Add images.")
        samples = Random(0).sample([Sample(name, name) for name in names], len(names))
        half = min(MAX_CALIBRATION_IMAGES, len(samples) // 2)
        calibration, evaluation, classes, problems = samples[:half], samples[half:], None, []
        note = f"{source} has no labels"
    else:
        train = list(dataset.splits.get("train") or next(iter(dataset.splits.values())))
        calibration = Random(0).sample(train, min(MAX_CALIBRATION_IMAGES, len(train)))
        evaluation = list(dataset.splits.get("validation", calibration))
        classes = dataset.classes if dataset.task == task else None
        problems = list(dataset.problems)
        note = "" if classes else f"{source} has labels for {dataset.task}, not {task}"
    evaluation = Random(0).sample(evaluation, min(MAX_EVALUATION_IMAGES, len(evaluation)))
    pixels, unreadable = _load_pixels(processor, calibration)
    note = f"{note}: the agreement with the torch model is measured instead of the accuracy." if note else ""
    return CalibrationImages(pixels, evaluation, classes, problems + unreadable, note)


def _load_dataset(source: str, task: TaskName) -> Dataset | None:
    """Load a dataset with annotations for a task or, without such annotations, for another.

    Returns:
        The dataset, None for a folder of images without annotations.

    Raises:
        ValueError: If there are annotations that can't be read: images without labels are not assumed then, as masks
            may be among them.
    """
    try:
        return load_dataset(source, task=task)
    except ValueError as error:
        try:
            return load_dataset(source)
        except UnlabeledImagesError:
            return None
        except ValueError:
            raise ValueError(
                f"calibration: {error} Or pass a folder with nothing but images, which need no labels."
            ) from error


def _load_pixels(processor: BaseImageProcessor, samples: Sequence[Sample]) -> tuple[Tensor, list[Problem]]:
    """Return the preprocessed samples, (N, 3, H, W), and the unreadable ones."""
    prepared = list(prepare_ahead(processor, enumerate(samples), ahead=16))
    pixels = [item.inputs["pixel_values"][0] for item in prepared if isinstance(item, Prepared)]
    problems = [item.problem for item in prepared if not isinstance(item, Prepared)]
    if not pixels:
        first = f" The first: {problems[0].name}: {problems[0].reason}." if problems else ""
        raise ValueError(f"calibration: got {len(samples)} images, of which none can be read.{first}")
    return stack_pixels(pixels), problems


class AccuracyDrop(NamedTuple):
    """Accuracy of an exported model compared with its torch model.

    Attributes:
        metric: "accuracy", "map_50" or "mean_iou" with labels; otherwise "agreement" with the torch model, which
            bounds the drop in accuracy.
        model, exported: Value of the torch model and of the exported model, 0..1.
        num_images: Number of images it was measured on.
    """

    metric: str
    model: float
    exported: float
    num_images: int

    @property
    def points(self) -> float:
        """Drop in percentage points, negative for a gain."""
        return 100 * (self.model - self.exported)


def measure_drop(
    model: PreTrainedModel,
    exported: ExportedModel,
    task: TaskName,
    processor: BaseImageProcessor,
    images: CalibrationImages,
) -> AccuracyDrop:
    """Measure both models on the same images, with labels if available.

    Raises:
        ValueError: If no image can be read, or the classes don't match the model's.
    """
    if images.classes is None:
        pixels, _ = _load_pixels(processor, images.samples)
        agreement = compare(model, exported, pixels, task, processor).agreement
        return AccuracyDrop("agreement", 1.0, agreement, len(pixels))
    models: tuple[Any, ...] = (model, exported)
    results = [
        evaluate_model(each, processor_of_outputs(each, processor), images.samples, images.classes, resamples=0)
        for each in models
    ]
    metric = "map_50" if task == "object-detection" else TASKS[task].headline_metric
    values = [float(result.metrics[metric]) for result in results]
    return AccuracyDrop(metric, values[0], values[1], results[0].num_images)


def check_drop(drop: AccuracyDrop, max_drop: float) -> None:
    """Raise a ValueError if the accuracy drops by more than `max_drop` percentage points."""
    if not drop.points <= max_drop:  # also true for NaN
        raise ValueError(
            f"int8: {drop.metric} drops from {drop.model:.1%} to {drop.exported:.1%} on {drop.num_images} images, by "
            f"{drop.points:.1f} points, expected at most {max_drop:g}. Nothing was written. Calibrate with images "
            "more like those the model will see, allow more with --max-drop, or leave out --quantization."
        )
