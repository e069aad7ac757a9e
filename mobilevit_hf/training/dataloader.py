"""Batches of a training run."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from ..data.dataloader import ImageDataset, ImageStream, make_dataloader
from ..data.sampler import BatchShape, MultiScaleBatchSampler, SampleSpec, multi_scale_shapes
from ..data.stream import LanePosition, ShardedSamples
from ..data.transforms import make_transform
from ..data.types import Sample
from .arguments import TaskArguments
from .distributed import count_node_processes
from .initialization import STRIDE, InitialModel
from .state import TrainerState
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


def merge_lanes(
    positions: Iterable[dict[int, tuple[int, tuple[int, ...]]]],
) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Return the latest position of each lane of a stream in the processes, for a checkpoint."""
    latest: dict[int, tuple[int, tuple[int, ...]]] = {}
    for lane, (number, position) in sorted(chain(*(own.items() for own in positions))):
        latest[lane] = (number, tuple(position))
    return latest


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
        self.stream_epoch = 0  # of the last batch of a stream
        self.positions: dict[int, tuple[int, tuple[int, ...]]] = {}  # last batch of a stream's lanes, and its end
        if isinstance(samples, Sequence):
            self.samples = samples
            self.sampler = MultiScaleBatchSampler(len(samples), self._shapes(0.0), seed=seed, **ranks)
            data = self.images = ImageDataset(samples, transform, task.mix())
        else:
            size = (initial.image_size, initial.image_size)
            stream = cast(ShardedSamples, samples)
            data = self.stream = ImageStream(stream, transform, batch_size, size, mix=task.mix(), seed=seed, **ranks)
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
    def num_samples(self) -> int:
        """Number of samples; 0 for a stream."""
        return len(self.samples)

    def epoch(self, state: TrainerState) -> Generator[tuple[Callable[[], list[str]], dict[str, Any]], None, None]:
        """Yield the batches of an epoch from the position of a state on, each with a function that names its samples.

        A stream has no end.
        """
        if self.sampler is None:
            yield from self._read_stream(state)
            return
        self.sampler.shapes = self._shapes(state.epoch_progress)
        self.sampler.set_epoch(
            state.epoch, state.batch, start_sample=state.start, order_replicas=state.order_processes
        )
        for specs, batch in zip(self.sampler, self.loader, strict=True):
            yield partial(self.names, specs), send_to_device(batch, self.accelerator.device, non_blocking=True)

    def _read_stream(self, state: TrainerState) -> Iterator[tuple[Callable[[], list[str]], dict[str, Any]]]:
        self.stream.start, self.positions = self.position(state), dict(state.lanes)
        self.stream.positions = {lane: LanePosition(*values) for lane, (_, values) in state.lanes.items()}
        for batch in self.loader:
            lane, number, position = batch.pop("position")
            names = partial(list, batch.pop("names"))
            self.positions[lane] = (number, position)
            self.stream_epoch = position.epoch
            yield names, send_to_device(batch, self.accelerator.device, non_blocking=True)

    def position(self, state: TrainerState) -> int:
        """Return the position of all processes in the epoch: samples, or batches of a stream."""
        num_replicas = self.accelerator.num_processes
        if self.sampler is None:
            return state.start + num_replicas * state.batch
        return self.sampler.position(state.batch)

    def completed_epochs(self, state: TrainerState) -> float:
        """Return the completed epochs of a state in the current epoch; of a stream, the completed passes."""
        if self.sampler is None:
            return float(self.stream_epoch)
        done, batches = state.start / self.sampler.order_length, len(self.sampler) + self.sampler.start_batch
        return state.epoch + min(1.0, done) + max(0.0, 1 - done) * (state.batch / batches if batches else 0)

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
        cores = torch.multiprocessing.cpu_count() // count_node_processes(self.accelerator)
        # On a CPU one process loads while the model computes; more would take cores from the model.
        workers = max(0, min(1 if self.accelerator.device.type == "cpu" else MAX_WORKERS, cores - 1))
        if self.sampler is None and workers:  # as many as share the lanes of a stream evenly
            lanes, processes = self.stream.num_lanes, self.accelerator.num_processes
            return max((count for count in range(1, workers + 1) if lanes % (count * processes) == 0), default=1)
        return workers
