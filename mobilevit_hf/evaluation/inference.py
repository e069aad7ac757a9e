"""Run a model on samples as the pipeline does, with decoding and preprocessing ahead in threads."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, BatchFeature, PreTrainedModel

from ..data.images import UnreadableImageError, load_image
from ..data.masks import MaskSizeError, UnreadableMaskError
from ..data.types import Problem, Sample
from ..modeling.finite import NonFiniteOutputError, check_finite_outputs
from ..threads import map_ahead

# Outputs that metrics are computed from.
OUTPUTS = ("logits", "pred_boxes")


@dataclass(frozen=True)
class Prepared:
    """A preprocessed image, by the index of its sample."""

    index: int
    sample: Sample
    inputs: BatchFeature  # with a batch dimension of one
    size: tuple[int, int]  # height and width of the image in pixels
    mask: np.ndarray | None = None  # (H, W) uint8 classes of the dataset; segmentation only


@dataclass(frozen=True)
class Unreadable:
    """An image that can't be read, or whose mask can't, by the index of its sample."""

    index: int
    problem: Problem


def prepare_ahead(
    processor: BaseImageProcessor, samples: Iterable[tuple[int, Sample]], ahead: int
) -> Iterator[Prepared | Unreadable]:
    """Decode and preprocess indexed samples in threads, in order; see `map_ahead`."""
    return map_ahead(partial(_prepare, processor), samples, ahead)


def _prepare(processor: BaseImageProcessor, indexed: tuple[int, Sample]) -> Prepared | Unreadable:
    """Preprocess one image at a time, as the pipeline does: some processors pad the images of a batch."""
    index, sample = indexed
    try:
        image = load_image(sample.image)
        size = (image.height, image.width)
        mask = sample.mask.read(size=size) if sample.mask else None
    except MaskSizeError as error:
        return Unreadable(index, Problem(sample.name, "mask of another size", str(error)))
    except UnreadableMaskError as error:
        return Unreadable(index, Problem(sample.name, "unreadable mask", str(error)))
    except UnreadableImageError as error:
        return Unreadable(index, Problem(sample.name, "unreadable image", str(error)))
    return Prepared(index, sample, processor(images=[image], return_tensors="pt"), size, mask)


def make_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` items; the last one may be shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def group_by_shape(batch: Sequence[Prepared]) -> list[list[Prepared]]:
    """Group images by the shapes of their inputs: some detectors resize each image to another size."""
    groups = defaultdict(list)
    for prepared in batch:
        groups[tuple(value.shape for value in prepared.inputs.values())].append(prepared)
    return list(groups.values())


@torch.inference_mode()
def forward(model: PreTrainedModel, group: Sequence[Prepared], labels: Any = None) -> Any:
    """Return the model's outputs for images with inputs of equal shapes, with its loss if there are labels.

    Raises:
        ValueError: If the outputs for an image are not finite.
    """
    inputs = {name: torch.cat([prepared.inputs[name] for prepared in group]) for name in group[0].inputs}
    try:
        targets = {} if labels is None else {"labels": labels}
        outputs = model(**BatchFeature(inputs).to(model.device, model.dtype), **targets)
        check_finite_outputs(outputs, OUTPUTS)
    except NonFiniteOutputError as error:
        raise ValueError(f"{group[error.index].sample.name}: {error.reason}") from error
    return outputs
