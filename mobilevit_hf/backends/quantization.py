"""Programs in int8 that answer like the model: how to make one of images without labels, and what it costs.

Quantization after training, for OpenVINO by NNCF, with two choices that hold the accuracy of MobileViT:

- Ranges of activations are those with the least error on a histogram of all values. NNCF's default, the mean of each
  image's smallest and largest value, cuts off what half of the images have; the extremes of all waste steps.
- What no layer with weights reads stays in float32: a detector's decoded boxes would be rounded to 1/256 of an image.

Depthwise convolutions get a range for each channel anyway, which folded batch normalization makes very different.
"""

import importlib.util
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from ..data.images import find_images
from ..data.reading import load_dataset
from ..data.types import Problem, Sample
from ..evaluation.evaluator import evaluate_model
from ..evaluation.inference import Prepared, prepare_ahead
from .export import quiet
from .runtime import EngineModel
from .verify import compare, stack

if TYPE_CHECKING:
    import openvino

# Answers of a MobileViT-XXS were 0.0017 nats from the model's with 300 images, 0.0019 with 100 (mean KL divergence).
CALIBRATION_IMAGES = 300
CHECK_IMAGES = 1000
AHEAD = 16

# Layers with weights: what is ahead of them is quantized, and what is behind the last of them is not.
LAYERS = ("Convolution", "GroupConvolution", "MatMul")


def quantize_openvino(model: "openvino.Model", batches: Iterable[np.ndarray]) -> "openvino.Model":
    """A copy of an OpenVINO model whose weights and activations are int8.

    Args:
        model: In float32, batch normalizations folded, with one input.
        batches: Images like those it will see, each (B, 3, H, W) float32 as the image processor returns them; no
            labels. Some hundred are enough; they are all in memory at once.

    Raises:
        ValueError: If NNCF is not installed, or there are no images.
    """
    if importlib.util.find_spec("nncf") is None:
        raise ValueError("int8 needs nncf, not installed here: pip install nncf")
    images = [image[None] for batch in batches for image in np.asarray(batch, dtype=np.float32)]
    if not images:
        raise ValueError("calibration: got no images, expected some like those the model will see.")
    with _quiet():
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        return nncf.quantize(
            model.clone(),
            nncf.Dataset(images),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,  # SiLU's values lie on one side of 0: so does their range
            ignored_scope=nncf.IgnoredScope(names=_behind_the_layers(model), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM
            ),
        )


def _behind_the_layers(model: "openvino.Model") -> list[str]:
    """The names of the operations that lead to no layer with weights: what is made of the last ones' outputs."""
    ahead: set[str] = set()
    waiting = [node for node in model.get_ops() if node.get_type_name() in LAYERS]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in ahead:
            ahead.add(node.get_friendly_name())
            waiting += [value.get_node() for value in node.input_values()]
    return [node.get_friendly_name() for node in model.get_ops() if node.get_friendly_name() not in ahead]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's remarks and progress bars from the user."""
    with quiet(), redirect_stdout(io.StringIO()):
        import nncf

        level = nncf.nncf_logger.level
        nncf.set_log_level(logging.ERROR)
        try:
            yield
        finally:
            nncf.set_log_level(level)


@dataclass
class CalibrationImages:
    """What a model is quantized with, and what it is checked on afterwards: other images.

    Attributes:
        calibration: (N, 3, H, W) as the image processor returns them.
        samples: To check on; with labels if there are `classes`.
        classes: The names of the labels, None if there are no labels for the model's task.
        problems: What could not be read of either.
    """

    calibration: Tensor
    samples: Sequence[Sample]
    classes: tuple[str, ...] | None
    problems: list[Problem] = field(default_factory=list)


def read_images(source: str, task: str, processor: BaseImageProcessor, seed: int = 0) -> CalibrationImages:
    """Images to quantize with and to check on.

    Args:
        source: A dataset as `load_dataset` takes it: its training split is for quantizing, its validation split for
            checking. Or a folder of images without labels, of which up to half are for quantizing.
        task: The model's.
        processor: The model's.
        seed: Another number picks others.

    Raises:
        ValueError: If there are too few images that can be read, or they come out in different sizes.
    """
    try:
        dataset = load_dataset(source, seed=seed)
    except ValueError as error:
        names, _ = find_images([source])
        if len(names) < 2:
            raise ValueError(f"calibration: {error}") from error
        samples = Random(seed).sample([Sample(name, name) for name in names], len(names))
        half = min(CALIBRATION_IMAGES, len(samples) // 2)
        first, others, classes, problems = samples[:half], samples[half:], None, []
    else:
        first = list(dataset.splits.get("train") or next(iter(dataset.splits.values())))
        first = Random(seed).sample(first, min(CALIBRATION_IMAGES, len(first)))
        others = list(dataset.splits.get("validation", first))
        classes = dataset.classes if dataset.task == task else None
        problems = list(dataset.problems)
    others = Random(seed).sample(others, min(CHECK_IMAGES, len(others)))
    pixels, unreadable = _prepare(processor, first)
    return CalibrationImages(pixels, others, classes, problems + unreadable)


def _prepare(processor: BaseImageProcessor, samples: Sequence[Sample]) -> tuple[Tensor, list[Problem]]:
    """Samples as the model takes them, (N, 3, H, W), and those that can't be read."""
    ready = list(prepare_ahead(processor, enumerate(samples), AHEAD))
    pixels = [prepared.inputs["pixel_values"][0] for prepared in ready if isinstance(prepared, Prepared)]
    problems = [unreadable.problem for unreadable in ready if not isinstance(unreadable, Prepared)]
    if not pixels:
        first = f" The first is {problems[0].name}: {problems[0].reason}." if problems else ""
        raise ValueError(f"calibration: none of {len(samples)} images can be read.{first}")
    return stack(pixels), problems


class Drop(NamedTuple):
    """What a program's answers are worth, beside its model's.

    Attributes:
        metric: "accuracy" or "map_50" on labels; "agreement" with the model without any, of which an accuracy can't
            lose more.
        model: The metric's value for the model.
        program: And for the program.
        num_images: How many images it was measured on.
    """

    metric: str
    model: float
    program: float
    num_images: int

    @property
    def points(self) -> float:
        """How much was lost, in percentage points; less than 0 if it gained."""
        return 100 * (self.model - self.program)


def measure_drop(
    model: PreTrainedModel, program: EngineModel, task: str, processor: BaseImageProcessor, images: CalibrationImages
) -> Drop:
    """Both on the same images; labels are used if there are some.

    Raises:
        ValueError: If no image can be read, or the classes are not the model's.
    """
    if images.classes is None:
        pixels, _ = _prepare(processor, images.samples)
        return Drop("agreement", 1.0, compare(model, program, pixels, task, processor).agreement, len(pixels))
    results = [
        evaluate_model(each, processor, images.samples, images.classes, resamples=0) for each in (model, program)
    ]
    metric = "map_50" if task == "object-detection" else "accuracy"
    return Drop(metric, *(float(result.metrics[metric]) for result in results), results[0].num_images)


def check_drop(drop: Drop, max_drop: float) -> None:
    """Refuse a program that lost too much.

    Args:
        drop: From `measure_drop`.
        max_drop: How many percentage points it may lose.

    Raises:
        ValueError: If it lost more.
    """
    if not drop.points <= max_drop:  # NaN is too much
        raise ValueError(
            f"int8: {drop.metric} falls from {drop.model:.1%} to {drop.program:.1%} on {drop.num_images} images, "
            f"{drop.points:.1f} points, expected at most {max_drop:g}. Nothing was written. Calibrate with images "
            "more like those it will see, allow more with --max-drop, or leave out --quantization."
        )


__all__ = ["Drop", "CalibrationImages", "check_drop", "measure_drop", "quantize_openvino", "read_images"]
