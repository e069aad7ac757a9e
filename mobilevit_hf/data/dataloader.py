"""Batches of decoded and augmented images, prepared by worker processes while the model computes."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, islice
from typing import Any

import fsspec.asyn
import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler, default_collate

from .images import LazyImage, UnreadableImageError
from .sampler import MultiScaleBatchSampler, SampleSpec
from .stream import Lane, LanePosition, ShardedSamples, count_lanes
from .transforms import Mix, TrainingTransform, Transform
from .types import Sample

# Start of torch's errors for a worker that exited.
WORKER_ERROR = "DataLoader worker (pid"
# Usual causes of the signals in them.
CAUSES = {"Killed": ", usually because memory ran out", "Bus error": ", usually because shared memory ran out"}


class UnreadableSampleError(UnreadableImageError):
    """The image of a sample can't be decoded. The message names the sample, in one line."""

    def __init__(self, message: str) -> None:
        # An error of a worker process is created again with the worker's traceback in front of the message.
        super().__init__(message.strip().rpartition("\n")[2].removeprefix(f"{__name__}.UnreadableSampleError: "))


class ImageDataset(torch.utils.data.Dataset):
    """Map-style dataset that decodes and transforms samples on access.

    The item of a `SampleSpec` depends on the spec alone, not on the process or on earlier accesses.

    Args:
        samples: Samples of a split.
        transform: Transform from `make_transform`.
        mix: Mixup and cutmix from `make_mix`.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, mix: Mix | None = None) -> None:
        self.samples, self.transform, self.mix = samples, transform, mix

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: SampleSpec | int) -> dict[str, Any]:
        batch = self.__getitems__([index])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence[SampleSpec | int]) -> dict[str, Any]:
        """Return a batch; called by `DataLoader`."""
        return make_batch([(index, self.samples[_index_of(index)]) for index in indices], self.transform, self.mix)


def make_batch(
    items: Sequence[tuple[SampleSpec | int, Sample]], transform: Transform, mix: Mix | None = None
) -> dict[str, Any]:
    """Decode, transform and collate samples, each given with its index, or in training with its spec.

    Returns:
        `pixel_values` (B, 3, H, W), and `labels`: classes (B,) int64, or (B, K) if they are mixed, in segmentation (B,
        H, W), or in detection a list of dicts, whose `image_id` (1,) is the index of the sample.

    Raises:
        UnreadableSampleError: If an image can't be decoded.
        ValueError: If the images differ in size.
    """
    images, image_labels = zip(*(_transform_sample(spec, sample, transform) for spec, sample in items), strict=True)
    sizes = {tuple(image.shape[-2:]) for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"got images of {len(sizes)} sizes in a batch, such as {sorted(sizes)[:2]}, expected one size. Use an "
            "image processor that crops or resizes to a fixed height and width, or a batch size of 1."
        )
    labels = Labels(image_labels) if isinstance(image_labels[0], dict) else default_collate(list(image_labels))
    pixels, first = default_collate(list(images)), items[0][0]
    is_sent = torch.utils.data.get_worker_info() is not None
    if isinstance(labels, Tensor) and labels.dtype == torch.uint8:
        labels = Deferred(_to_int64, labels) if is_sent else labels.long()
    if isinstance(first, SampleSpec) and isinstance(transform, TrainingTransform):
        if mix is None and is_sent:
            return {"pixel_values": Deferred(transform.normalize, pixels), "labels": labels}
        pixels = transform.normalize(pixels)
    if mix is not None and isinstance(labels, Tensor) and labels.ndim == 1:
        with seeded(first.seed) if isinstance(first, SampleSpec) else nullcontext():
            pixels, labels = mix(pixels, labels)
    return {"pixel_values": pixels, "labels": labels}


def _transform_sample(spec: SampleSpec | int, sample: Sample, transform: Transform) -> tuple[Tensor, Any]:
    """Return an image, in training before normalization, which is faster for a whole batch, and its labels."""
    try:
        image = LazyImage(sample.image)
        if isinstance(spec, SampleSpec) and isinstance(transform, TrainingTransform):
            with seeded(spec.seed):
                pixels, labels = transform.augment(image, sample, (spec.height, spec.width))
        else:
            pixels, labels = transform(image, sample).values()
    except UnreadableImageError as error:
        raise UnreadableSampleError(
            f"{sample.name}: {error}. Fix or remove it; `mobilevit check-data` lists all such files."
        ) from error
    if isinstance(labels, dict):
        labels["image_id"] = torch.tensor([_index_of(spec)])
    return pixels, labels


def _index_of(spec: SampleSpec | int) -> int:
    return spec.index if isinstance(spec, SampleSpec) else spec


class Labels(list[dict[str, Tensor]]):
    """Labels of a detection batch, a dict for each image.

    They are sent between processes by value: in shared memory, each of the many small tensors would be an open file.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _labels_from_arrays, ([{name: value.numpy() for name, value in label.items()} for label in self],)


def _labels_from_arrays(labels: list[dict[str, Any]]) -> Labels:
    return Labels({name: torch.from_numpy(value) for name, value in label.items()} for label in labels)


def _to_int64(labels: Tensor) -> Tensor:
    return labels.long()


@dataclass
class Deferred:
    """A tensor of uint8 that is converted when another process receives it: larger types are slower to send."""

    convert: Callable[[Tensor], Tensor]
    values: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return self.convert, (self.values,)


class ImageStream(torch.utils.data.IterableDataset):
    """Endless iterable dataset of training batches, see `make_batch`, of samples without a known length.

    Batch n of all processes is made of the next samples of lane n modulo the number of lanes, see `Lane`: neither
    content nor order depends on the numbers of processes and workers. Worker w of process r prepares the batches
    n = start + r + num_replicas * (w + num_workers * i), and reads only the lanes of these. If the product of both
    numbers does not divide the number of lanes, several workers read the same lane, and each decodes its own batches.

    A batch also has the `names` of its samples and its `position`: the lane, n, and the `LanePosition` after it.

    Args:
        samples: Samples of a split.
        transform: Transform from `make_transform` for training.
        batch_size: Number of samples in a batch.
        size: (height, width) of the images.
        mix: Mixup and cutmix from `make_mix`.
        seed: Seed of order and augmentation.
        rank: Rank of this process, 0..num_replicas-1.
        num_replicas: Number of processes that train together.

    Attributes:
        start: Number of the first batch, of all processes.
        positions: Positions of the lanes at `start`; those that are missing are at the start of the dataset.
    """

    def __init__(
        self,
        samples: ShardedSamples,
        transform: Transform,
        batch_size: int,
        size: tuple[int, int],
        *,
        mix: Mix | None = None,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.samples, self.transform, self.mix = samples, transform, mix
        self.batch_size, self.size, self.seed = batch_size, size, seed
        self.rank, self.num_replicas = rank, num_replicas
        self.num_lanes = count_lanes(samples.num_shards)
        self.start, self.positions = 0, dict[int, LanePosition]()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        readers: dict[int, Iterator[tuple[int, list[Any], LanePosition]]] = {}
        first = self.start + self.rank + self.num_replicas * worker_id
        for number in count(first, self.num_replicas * num_workers):
            lane = number % self.num_lanes
            if lane not in readers:
                readers[lane] = self._read_lane(lane)
            _, items, position = next(batch for batch in readers[lane] if batch[0] == number)
            specs = [(SampleSpec(row, *self.size, seed), sample) for row, seed, sample in items]
            batch = make_batch(specs, self.transform, self.mix)
            yield batch | {"names": [sample.name for _, sample in specs], "position": (lane, number, position)}

    def _read_lane(self, number: int) -> Iterator[tuple[int, list[Any], LanePosition]]:
        """Yield number, samples and end position of the batches of a lane."""
        position = self.positions.get(number)
        lane = Lane(self.samples, number, self.num_lanes, seed=self.seed, position=position)
        items = iter(lane)
        for batch in count(self.start + (number - self.start) % self.num_lanes, self.num_lanes):
            yield batch, list(islice(items, self.batch_size)), lane.position


def make_dataloader(
    data: ImageDataset | ImageStream,
    batches: MultiScaleBatchSampler | int | None = None,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Create a dataloader that prefetches batches; those of `ImageDataset` don't depend on the number of workers.

    Args:
        data: Dataset.
        batches: For `ImageDataset`: the batch sampler in training, the batch size in evaluation. None for
            `ImageStream`, which yields batches.
        num_workers: Number of processes that prepare batches, two each in advance; 0 for the calling process.
        pin_memory: Whether to copy batches to page-locked memory, which speeds up the transfer to a GPU.
    """
    batch_sampler: Sampler[list] | None = None
    if isinstance(data, ImageDataset):
        batch_sampler = BatchSampler(range(len(data)), batches, False) if isinstance(batches, int) else batches
    return DataLoader(
        data,
        batch_size=None if batch_sampler is None else 1,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0 and batches is not None,  # workers of a stream get its position at start
        pin_memory=pin_memory,
        collate_fn=dict,  # the datasets return batches
        worker_init_fn=partial(_init_worker, _exit_flag()) if num_workers else None,
        generator=torch.Generator(),  # otherwise each epoch would change the state of the default generator
    )


@cache
def _exit_flag() -> Tensor:
    """Return a flag in shared memory that is set when this process exits."""
    flag = torch.zeros((), dtype=torch.bool).share_memory_()
    atexit.register(flag.fill_, True)
    return flag


def _init_worker(exits: Tensor, worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach all processes of a command: a worker ends with the main process.

    The main process may still need batches to complete a step and save it. When it exits, Python sends SIGTERM to the
    workers and waits for them.
    """
    fsspec.asyn.reset_lock()  # otherwise a forked worker may wait for a thread that only the main process has
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if exits else None)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the main process is killed, at once: a worker holds its locks."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def explain_killed_worker() -> Generator[None, None, None]:
    """Convert the error of a worker that was killed to a ValueError; it can interrupt any code of the main thread."""
    try:
        yield
    except Exception as error:
        if not (reason := _find_worker_error(error)):
            raise
        cause = next((text for signal_name, text in CAUSES.items() if signal_name in reason), "")
        raise ValueError(
            f"A data loading process was killed{cause}: {reason} Use fewer (--dataloader-num-workers, 0 for none) "
            "or smaller batches (--per-device-train-batch-size). Checkpoints are intact; resume with --resume auto."
        ) from error


def _find_worker_error(error: BaseException | None) -> str | None:
    """Return torch's first sentence about a worker that exited, from an error or one of its causes."""
    while error:
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and text.startswith(WORKER_ERROR):
            return text.partition(". ")[0].rstrip(".") + "."
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed PyTorch's random numbers on the CPU, and restore the state of the generator afterwards."""
    with torch.random.fork_rng(devices=()):
        torch.random.default_generator.manual_seed(seed)
        yield
