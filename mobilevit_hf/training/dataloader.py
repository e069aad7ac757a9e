"""Batches of a training run."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from ..data.dataloader import ImageDataset, ImageStream, make_dataloader
from ..data.sampler import BatchShape, MultiScaleBatchSampler, SampleSpec, multi_scale_shapes
from ..data.transforms import make_transform
from ..data.types import Sample
from .arguments import TaskArguments
from .initialization import STRIDE, InitialModel
from .tasks import TrainingTask

# Training image sizes of the paper, relative to the model's input size (section 3.3).
MIN_SCALE, MAX_SCALE, NUM_SCALES = 160 / 256, 320 / 256, 5
# Progressive resizing: (completed fraction of the training, image size relative to the model's input size).
GROWTH = ((0.0, 0.625), (0.25, 0.8), (0.5, 1.0))

MAX_WORKERS = 8


def batch_shapes(multi_scale: str, image_size: int, batch_size: int, progress: float) -> list[BatchShape]:
    """Return the batch shapes of an epoch.

    Args:
        multi_scale: "off": one shape; "on": five sizes around `image_size` with as many pixels per batch as in the
            paper (section 3.3); "progressive": growing images (arXiv 2104.00298, section 4), `batch_size` constant.
        image_size: Input size of the model in pixels.
        batch_size: Images per batch at that size.
        progress: Completed fraction of the training, 0..1.
    """
    base = BatchShape(image_size, image_size, batch_size)
    if multi_scale == "off":
        return [base]
    if multi_scale == "on":
        sides = (round(MIN_SCALE * image_size), round(MAX_SCALE * image_size))
        return multi_scale_shapes(base, heights=sides, widths=sides, num_scales=NUM_SCALES, divisor=STRIDE)
    scale = [scale for start, scale in GROWTH if progress >= start][-1]
    side = min(image_size, max(2 * STRIDE, math.ceil(scale * image_size / STRIDE) * STRIDE))
    return [BatchShape(side, side, batch_size)]


def check_batches(arguments: TaskArguments, image_size: int, stride: int) -> None:
    """Check that batch normalization gets two or more values per channel from every batch.

    Args:
        arguments: Arguments of the run.
        image_size: Input size of the model in pixels.
        stride: Stride of the model's coarsest feature map.

    Raises:
        ValueError: If a batch has a single image that is not larger than the stride.
    """
    batch_size, progresses = arguments.per_device_train_batch_size, [start for start, _ in GROWTH]
    for progress in progresses:
        for height, width, size in batch_shapes(arguments.multi_scale, image_size, batch_size, progress):
            if size == 1 and max(height, width) <= stride:
                raise ValueError(
                    f"per_device_train_batch_size: got {batch_size}, which makes a batch of one image of "
                    f"{height}x{width} pixels, expected two images or more than {stride} pixels for batch "
                    "normalization. Increase it or --image-size."
                )


class TrainingDataLoader:
    """Loader of a run's batches, epoch by epoch."""

    def __init__(
        self, arguments: TaskArguments, task: TrainingTask, initial: InitialModel, accelerator: Accelerator
    ) -> None:
        self.arguments, self.image_size, self.accelerator = arguments, initial.image_size, accelerator
        samples = task.dataset.splits["train"]
        transform = make_transform(task.dataset.task, initial.processor, training=True, **task.augmentation())
        ranks = {"rank": accelerator.process_index, "num_replicas": accelerator.num_processes}
        batch_size, seed = arguments.per_device_train_batch_size, arguments.seed
        self.samples: Sequence[Sample] = ()
        self.sampler = None
        if isinstance(samples, Sequence):
            self.samples = samples
            self.sampler = MultiScaleBatchSampler(len(samples), self._shapes(0.0), seed=seed, **ranks)
            data = self.images = ImageDataset(samples, transform, task.mix())
        else:
            size = (initial.image_size, initial.image_size)
            data = self.stream = ImageStream(samples, transform, batch_size, size, mix=task.mix(), seed=seed, **ranks)
        self.loader: Iterable[Any] = make_dataloader(
            data, self.sampler, num_workers=self._num_workers(), pin_memory=accelerator.device.type == "cuda"
        )

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps per epoch at the model's input size; None for a stream."""
        if self.sampler is None:
            return None
        images = self.arguments.per_device_train_batch_size * self.arguments.gradient_accumulation_steps
        return -(-len(self.samples) // (images * self.accelerator.num_processes))

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches of this process in the current epoch; None for a stream."""
        return None if self.sampler is None else len(self.sampler) + self.sampler.start_batch

    def epoch(
        self, number: int, start_batch: int, progress: float
    ) -> Generator[tuple[list[SampleSpec], dict[str, Any]], None, None]:
        """Yield the batches of an epoch from `start_batch` on, with their sample specs (empty for a stream)."""
        if self.sampler is None:
            self.stream.set_epoch(number)
            for index, batch in enumerate(self.loader):
                if index >= start_batch:
                    yield [], send_to_device(batch, self.accelerator.device, non_blocking=True)
            return
        self.sampler.shapes = self._shapes(progress)
        self.sampler.set_epoch(number, start_batch)
        for specs, batch in zip(self.sampler, self.loader, strict=True):
            yield specs, send_to_device(batch, self.accelerator.device, non_blocking=True)

    def first_batches(self, num_images: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Yield the first batches of the training with at least `num_images`, and the names of their images.

        They are built in this process, from the seeds of the training and without changing its random state. A stream
        yields none, as it can't be read again.
        """
        if self.sampler is None:
            return
        ranks = {"rank": self.sampler.rank, "num_replicas": self.sampler.num_replicas}
        first_epoch = MultiScaleBatchSampler(len(self.samples), self._shapes(0.0), seed=self.arguments.seed, **ranks)
        for specs in first_epoch:
            yield self.images.__getitems__(specs), self.names(specs)
            num_images -= len(specs)
            if num_images <= 0:
                return

    def close(self) -> None:
        """Stop the worker processes, which would otherwise run until Python exits."""
        self.loader = ()

    def names(self, specs: Sequence[SampleSpec]) -> list[str]:
        """Return the sample names of a batch."""
        return [self.samples[spec.index].name for spec in specs]

    def _shapes(self, progress: float) -> list[BatchShape]:
        batch_size = self.arguments.per_device_train_batch_size
        return batch_shapes(self.arguments.multi_scale, self.image_size, batch_size, progress)

    def _num_workers(self) -> int:
        if self.arguments.dataloader_num_workers is not None:
            return self.arguments.dataloader_num_workers
        cores = torch.multiprocessing.cpu_count() // self.accelerator.num_processes
        # On a CPU one process loads while the model computes; more would take cores from the model.
        return max(0, min(1 if self.accelerator.device.type == "cpu" else MAX_WORKERS, cores - 1))
