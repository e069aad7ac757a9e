"""Run a model on samples as the pipeline does, decoding ahead in threads."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BaseImageProcessor, BatchFeature, PreTrainedModel

from ..data.images import UnreadableImageError, load_image
from ..data.types import Problem, Sample

# Decoding and resizing are quick beside the network on a CPU; a GPU waits for all threads there are.
MAX_THREADS = 8


@dataclass(frozen=True)
class Prepared:
    """An image as the model takes it.

    Attributes:
        place: Of the sample among all.
        sample: Where it comes from.
        inputs: The processor's, for a batch of one.
        size: Height and width of the image in pixels.
    """

    place: int
    sample: Sample
    inputs: BatchFeature
    size: tuple[int, int]


@dataclass(frozen=True)
class Unreadable:
    """An image that can't be read, and its place among all samples."""

    place: int
    problem: Problem


def prepare_ahead(
    processor: BaseImageProcessor, samples: Iterable[tuple[int, Sample]], ahead: int
) -> Iterator[Prepared | Unreadable]:
    """Prepare samples, each with its place, in threads while the model runs, in order, so many before they are asked
    for."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    pending = deque()
    try:
        for place, sample in samples:
            pending.append(pool.submit(_prepare, processor, place, sample))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(processor: BaseImageProcessor, place: int, sample: Sample) -> Prepared | Unreadable:
    """One image by itself, as the pipeline does it: of a batch some processors make something else."""
    try:
        image = load_image(sample.image)
    except UnreadableImageError as error:
        return Unreadable(place, Problem(sample.name, "unreadable image", str(error)))
    inputs = processor(images=[image], return_tensors="pt")
    return Prepared(place, sample, inputs, (image.height, image.width))


def make_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """So many at a time; the last may be fewer."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def group_by_shape(batch: Sequence[Prepared]) -> list[list[Prepared]]:
    """The images by the shapes of their inputs: other detectors take each image in a size of its own."""
    groups: dict[tuple[Any, ...], list[Prepared]] = {}
    for prepared in batch:
        groups.setdefault(tuple(value.shape for value in prepared.inputs.values()), []).append(prepared)
    return list(groups.values())


@torch.inference_mode()
def forward(model: PreTrainedModel, group: Sequence[Prepared]) -> Any:
    """The model's outputs for images whose inputs have equal shapes."""
    inputs = {name: torch.cat([prepared.inputs[name] for prepared in group]) for name in group[0].inputs}
    return model(**BatchFeature(inputs).to(model.device, model.dtype))
