"""Batch sampler for training: multi-scale batches (paper, section 3.3) or batches of one size."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import Sampler


class SampleSpec(NamedTuple):
    """Item of a training batch."""

    index: int  # of the sample
    height: int  # of the image in the batch, in pixels
    width: int
    seed: int  # of the augmentation


class BatchShape(NamedTuple):
    """Shape of a batch: `size` images of height x width pixels."""

    height: int
    width: int
    size: int


def multi_scale_shapes(
    base: BatchShape,
    *,
    heights: tuple[int, int] = (160, 320),
    widths: tuple[int, int] = (160, 320),
    num_scales: int = 5,
    divisor: int = 32,
) -> list[BatchShape]:
    """Return the shapes of multi-scale batches, all with about the same number of pixels.

    Args:
        base: Shape at the image size of inference. It is part of the result.
        heights: Minimum and maximum height.
        widths: Minimum and maximum width.
        num_scales: Number of sizes, evenly spaced before rounding; `base` may add one.
        divisor: Heights and widths are multiples of it.

    Returns:
        Shapes by increasing size. With the paper's settings: 327 of 160², 227 of 192², 128 of 256², 101 of 288², 81
        of 320².

    Raises:
        ValueError: If a number is out of range.
    """
    for name, value in {**base._asdict(), "num_scales": num_scales, "divisor": divisor}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected 1 or more.")
    for name, (minimum, maximum) in {"heights": heights, "widths": widths}.items():
        if not 0 < minimum <= maximum:
            raise ValueError(f"{name}: got {minimum} to {maximum}, expected a minimum and a maximum in pixels.")
    sizes = zip(_spaced(*heights, num_scales, divisor), _spaced(*widths, num_scales, divisor), strict=True)
    pixels = base.height * base.width * base.size
    return [
        BatchShape(height, width, max(1, pixels // (height * width)))
        for height, width in sorted({*sizes, (base.height, base.width)})
    ]


def _spaced(minimum: int, maximum: int, count: int, divisor: int) -> list[int]:
    """Return evenly spaced numbers, each rounded to a multiple of the divisor (halves up)."""
    step = (maximum - minimum) / max(1, count - 1)
    return [max(divisor, int(minimum + i * step + divisor / 2) // divisor * divisor) for i in range(count)]


class MultiScaleBatchSampler(Sampler[list[SampleSpec]]):
    """Shuffled batches of an epoch, for one of several processes.

    At each step, the batches of all processes have the same shape. If the samples can't be distributed evenly or the
    last batch is not full, it is filled with samples from the start of the order, so every sample occurs at least
    once, few occur twice, and none occurs twice in a batch, except that a single sample is repeated once: batch
    normalization needs two. Order and shapes equal those of the official code's
    `variable_batch_sampler` with seed 0.

    The sampler has no state to save: `set_epoch(epoch, start_batch)` continues in the middle of an epoch. The batches
    of all processes consume its order from the start to the end, so that another number of processes, or other
    shapes, continue with the samples that are left: `set_epoch(epoch, start_sample=...)`.

    Args:
        num_samples: Number of samples.
        shapes: One shape, or several of which each step uses a random one, see `multi_scale_shapes`.
        seed: Seed of order, shapes and augmentation, together with the epoch.
        rank: Rank of this process, 0..num_replicas-1.
        num_replicas: Number of processes that train together. Each gets batches of the sizes in `shapes`.

    Raises:
        ValueError: If there are no samples or shapes, or the rank is out of range.
    """

    def __init__(
        self, num_samples: int, shapes: Sequence[BatchShape], *, seed: int = 0, rank: int = 0, num_replicas: int = 1
    ) -> None:
        if num_samples < 1:
            raise ValueError("num_samples: got 0, expected at least one training sample.")
        if not shapes or min(map(min, shapes)) < 1:
            raise ValueError(f"shapes: got {list(shapes)}, expected heights, widths and batch sizes of 1 or more.")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank: got {rank}, expected 0..{num_replicas - 1} for num_replicas={num_replicas}.")
        self.shapes = [BatchShape(*shape) for shape in shapes]
        self.num_samples, self.seed, self.rank, self.num_replicas = num_samples, seed, rank, num_replicas
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0, *, start_sample: int = 0, order_replicas: int = 0) -> None:
        """Set the epoch, and skip the samples and batches before its position.

        Args:
            epoch: Number of the epoch.
            start_batch: Number of batches to skip.
            start_sample: Position in the epoch's order at which its batches start, see `position`.
            order_replicas: Number of processes that the epoch began with, which its order depends on; 0: the current.
        """
        self.epoch, self.start_batch, self.start_sample = epoch, start_batch, start_sample
        self._rng = random.Random(epoch + 1_000_003 * self.seed)  # runs with different seeds share no epoch
        replicas = order_replicas or self.num_replicas
        padded = -(-self.num_samples // replicas) * replicas
        order = [index % self.num_samples for index in range(padded)]
        self._rng.shuffle(order)
        self.order_length, left = len(order), order[start_sample:]
        if left:  # after a start with another number of processes, they may not divide evenly
            left += (order * self.num_replicas)[: -len(left) % self.num_replicas]
        self._order = left[self.rank :: self.num_replicas]
        self._shapes = list(self._choose_shapes())
        self._first_seed = self._rng.getrandbits(32)

    def position(self, batches: int) -> int:
        """Return the number of samples that the batches of all processes have consumed after `batches` of each."""
        return self.start_sample + self.num_replicas * sum(shape.size for shape in self._shapes[:batches])

    def __len__(self) -> int:
        return max(0, len(self._shapes) - self.start_batch)

    def __iter__(self) -> Iterator[list[SampleSpec]]:
        start, order = 0, self._order
        for number, (height, width, size) in enumerate(self._shapes):
            positions = range(start, start + size)
            start += size
            if number >= self.start_batch:
                yield [SampleSpec(order[i % len(order)], height, width, self._seed_at(i)) for i in positions]

    def _choose_shapes(self) -> Iterator[BatchShape]:
        position = 0
        while position < len(self._order):
            shape = self._rng.choice(self.shapes)
            yield shape._replace(size=min(shape.size, max(2, len(self._order))))
            position += shape.size

    def _seed_at(self, position: int) -> int:
        """Return a seed that is unique within the epoch, across processes."""
        return (self._first_seed + self.start_sample + position * self.num_replicas + self.rank) % 2**32
