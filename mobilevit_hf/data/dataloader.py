"""Batches of decoded and augmented images, made by worker processes while the model computes."""

import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, default_collate

from .decoding import LazyImage
from .images import UnreadableImageError
from .sampler import Draw, TrainingBatches
from .transforms import Finish, Mix, Transform
from .types import Sample

GRACE_SECONDS = 5  # that a worker lives on after SIGTERM: a step's time, and more


class UnreadableSampleError(UnreadableImageError):
    """A sample's image can't be decoded; the message names it, in one line."""

    def __init__(self, message: str) -> None:
        # Out of a worker process it comes with that one's traceback before it.
        super().__init__(message.strip().rpartition("\n")[2].removeprefix(f"{__name__}.UnreadableSampleError: "))


class ImageDataset(torch.utils.data.Dataset):
    """Samples, decoded and transformed when they are drawn.

    What a `Draw` gives depends on nothing but itself: not on the process or on what was drawn before.

    Args:
        samples: The samples.
        transform: As `make_transform` returns it; that of training for `Draw`s, that of evaluation for plain numbers.
        mix: As `make_mix` returns it.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, mix: Mix | None = None) -> None:
        self.samples, self.transform, self.mix = samples, transform, mix

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """One sample as the transform returns it; see `prepare`."""
        batch = self.__getitems__([draw])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, draws: Sequence[Draw | int]) -> dict[str, Any]:
        """A batch, which DataLoader asks for at once."""
        return prepare([(draw, self.samples[_index_of(draw)]) for draw in draws], self.transform, self.mix)


def prepare(
    drawn: Sequence[tuple[Draw | int, Sample]], transform: Transform, mix: Mix | None = None
) -> dict[str, Any]:
    """Decode and transform samples to a batch.

    Returns:
        `pixel_values` (B, 3, H, W), and `labels`: classes (B,) int64, or (B, K) where they are mixed, or in detection
        a list of dicts, whose `image_id` (1,) is the sample's number.

    Raises:
        UnreadableSampleError: If an image can't be decoded.
        ValueError: If the sizes of the images differ.
    """
    images, labels = zip(*(_prepare_one(draw, sample, transform) for draw, sample in drawn), strict=True)
    sizes = {tuple(image.shape[-2:]) for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"got images of {len(sizes)} sizes in a batch, such as {sorted(sizes)[:2]}, expected one size. Let the "
            "image processor crop or resize them to a height and a width, or take one at a time."
        )
    first, pixels = drawn[0][0], default_collate(images)
    if isinstance(first, Draw):
        pixels = Unfinished(transform.finish, pixels)
        pixels = pixels if mix is None and torch.utils.data.get_worker_info() else pixels.finish()
    labels = Labels(labels) if isinstance(labels[0], dict) else torch.tensor(labels)
    if mix is not None:
        with seeded(first.seed):
            pixels, labels = mix(pixels, labels)
    return {"pixel_values": pixels, "labels": labels}


def _prepare_one(draw: Draw | int, sample: Sample, transform: Transform) -> tuple[Tensor, Any]:
    """An image and its labels: for training not finished, which is faster for a whole batch."""
    try:
        image = LazyImage(sample.image)
        if isinstance(draw, Draw):
            with seeded(draw.seed):
                pixels, labels = transform.augment(image, sample, (draw.height, draw.width))
        else:
            pixels, labels = transform(image, sample).values()
    except UnreadableImageError as error:
        raise UnreadableSampleError(
            f"{sample.name}: {error}. Mend or remove it; `mobilevit check-data` finds all such files."
        ) from error
    if isinstance(labels, dict):
        labels["image_id"] = torch.tensor([_index_of(draw)])
    return pixels, labels


def _index_of(draw: Draw | int) -> int:
    return draw.index if isinstance(draw, Draw) else draw


class Labels(list[dict[str, Tensor]]):
    """The labels of a batch in detection, a dict for each image.

    Between processes they go by value: in shared memory every one of their many small tensors would be an open file.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _labels_of_arrays, ([{name: value.numpy() for name, value in label.items()} for label in self],)


def _labels_of_arrays(labels: list[dict[str, Any]]) -> Labels:
    return Labels({name: torch.from_numpy(value) for name, value in label.items()} for label in labels)


@dataclass
class Unfinished:
    """Images on their way from a worker, which arrive finished: bytes go through memory faster than floats."""

    finishing: Finish
    pixels: Tensor

    def finish(self) -> Tensor:
        """(B, 3, H, W) float32."""
        return self.finishing(self.pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.finishing, (self.pixels,)


class ImageStream(torch.utils.data.IterableDataset):
    """Batches of samples that come one after the other, without a known number of them.

    Every process and worker reads the whole stream and prepares its share. In training all processes have equally
    many batches, all full; samples at the end that don't fill a batch for each worker of each process are left out.

    Args:
        samples: The samples; can be iterated anew in each epoch.
        transform: As `make_transform` returns it.
        batch_size: How many samples a batch has.
        size: (height, width) of the images in training; None for the evaluation of all samples in their order.
        mix: As `make_mix` returns it.
        seed: With the epoch it decides the order and the augmentation.
        buffer_size: The next sample is one of so many, at random.
        rank: This process's number among `num_replicas`.
        num_replicas: How many processes train together.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        transform: Transform,
        batch_size: int,
        size: tuple[int, int] | None = None,
        *,
        mix: Mix | None = None,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.samples, self.transform, self.mix = samples, transform, mix
        self.batch_size, self.size, self.buffer_size = batch_size, size, buffer_size
        self.seed, self.rank, self.num_replicas = seed, rank, num_replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another order and other augmentation from the next iteration on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches, see `prepare`.

        Raises:
            ValueError: If in training there are too few samples for one batch each.
        """
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        shares, share = self.num_replicas * workers, self.rank * workers + number
        samples = self._shuffled() if self.size else enumerate(self.samples)
        full, count = self.batch_size * shares, 0
        while group := list(islice(samples, full)):
            if self.size and len(group) < full:
                if count == 0:
                    raise ValueError(
                        f"got a stream of {len(group)} samples, expected at least {full}: a batch of "
                        f"{self.batch_size} for each of {shares} workers. Lower the batch size, or have fewer workers."
                    )
                return
            count += 1
            if own := group[share::shares]:
                yield prepare(own, self.transform, self.mix)

    def _shuffled(self) -> Iterator[tuple[Draw, Sample]]:
        rng = random.Random(self.epoch + 1_000_003 * self.seed)
        buffer: list[tuple[int, Sample]] = []
        samples = enumerate(self.samples)
        while buffer or (buffer := list(islice(samples, self.buffer_size))):
            place = rng.randrange(len(buffer))
            index, sample = buffer[place]
            if (following := next(samples, None)) is not None:
                buffer[place] = following
            else:
                buffer[place] = buffer[-1]
                buffer.pop()
            yield Draw(index, *self.size, rng.getrandbits(32)), sample


def make_loader(
    data: ImageDataset | ImageStream,
    batches: TrainingBatches | int | None = None,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of batches that are prepared ahead.

    The batches are the same for any number of workers, except those of a stream.

    Args:
        data: `ImageDataset`, or a `ImageStream`, which makes its own batches.
        batches: Of `ImageDataset` in training the batches; in evaluation how many samples each has, in their order.
        num_workers: How many processes prepare batches, two each ahead; 0 for this one.
        pin_memory: Whether batches are put where a GPU gets them from faster.
    """
    if isinstance(batches, int):
        batches = BatchSampler(SequentialSampler(data), batches, drop_last=False)
    return DataLoader(
        data,
        **({"batch_size": None} if batches is None else {"batch_sampler": batches}),
        num_workers=num_workers,
        persistent_workers=num_workers > 0 and batches is not None,  # a stream's learn the epoch when they start
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_alone,
        generator=torch.Generator(),  # else each epoch would draw a random number from the training's
    )


def _leave_signals_alone(worker: int) -> None:
    """Ctrl-C and SIGTERM reach all processes of a command; the one that loads for decides, and workers end with it.

    SIGTERM is also how Python ends workers at its exit, and waits for them: they stay for a while only.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's random numbers on the CPU from a seed; those outside go on as if nothing had been drawn."""
    generator = torch.random.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
