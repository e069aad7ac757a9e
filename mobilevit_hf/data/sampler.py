"""Which images make a batch and at what size: the paper's multi-scale batches (section 3.3), or one size."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One place in a batch.

    Attributes:
        index: The sample.
        height: The image's height in the batch, in pixels.
        width: Its width.
        seed: Of this draw's augmentation.
    """

    index: int
    height: int
    width: int
    seed: int


class BatchShape(NamedTuple):
    """How a batch can look: `size` images of height x width pixels."""

    height: int
    width: int
    size: int


def scale_batches(
    base: BatchShape,
    *,
    heights: tuple[int, int] = (160, 320),
    widths: tuple[int, int] = (160, 320),
    num_scales: int = 5,
    divisor: int = 32,
) -> list[BatchShape]:
    """The shapes of multi-scale batches, which all hold about as many pixels.

    Args:
        base: The shape at the size that the model is tested with; one of those returned.
        heights: The least and the greatest height.
        widths: The least and the greatest width.
        num_scales: How many sizes, evenly spaced before they are rounded; the base may add one.
        divisor: Heights and widths are multiples of it.

    Returns:
        By size, the smallest images first. The paper's: 327 of 160², 227 of 192², 128 of 256², 101 of 288², 81 of
        320².

    Raises:
        ValueError: If a number can't be used.
    """
    for name, value in {**base._asdict(), "num_scales": num_scales, "divisor": divisor}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected 1 or more.")
    for name, (least, greatest) in {"heights": heights, "widths": widths}.items():
        if not 0 < least <= greatest:
            raise ValueError(f"{name}: got {least} to {greatest}, expected the least and the greatest side in pixels.")
    sizes = zip(_spaced(*heights, num_scales, divisor), _spaced(*widths, num_scales, divisor), strict=True)
    pixels = base.height * base.width * base.size
    return [
        BatchShape(height, width, max(1, pixels // (height * width)))
        for height, width in sorted({*sizes, (base.height, base.width)})
    ]


def _spaced(least: int, greatest: int, count: int, divisor: int) -> list[int]:
    """`count` evenly spaced numbers, each rounded to a multiple of the divisor (halves up)."""
    step = (greatest - least) / max(1, count - 1)
    return [max(divisor, int(least + i * step + divisor / 2) // divisor * divisor) for i in range(count)]


class TrainingBatches(Sampler[list[Draw]]):
    """The batches of an epoch, in an order of their own in every epoch, for one of several processes.

    At each step all processes have a batch of the same shape. Where the samples can't be shared out evenly, or the
    last batch isn't full, samples from the front of the order fill it up, so that every sample comes at least once
    and few come twice; a batch holds a sample once. Order and shapes are those of the official code's
    `variable_batch_sampler` with seed 0.

    There is no state to save: `set_epoch(epoch, start_batch)` goes on in the middle of an epoch as if it had not been
    interrupted. (A loader's workers draw ahead of the training, so only the training knows where it is.)

    Args:
        num_samples: How many samples there are.
        shapes: One shape, or those to choose from at each step, such as `scale_batches` returns.
        seed: With the epoch it decides the order, the shapes and the augmentation.
        rank: This process's number among `num_replicas`.
        num_replicas: How many processes train together; each gets batches of the given sizes.

    Raises:
        ValueError: If there is no sample or no shape, or the rank is not one of the processes'.
    """

    def __init__(
        self, num_samples: int, shapes: Sequence[BatchShape], *, seed: int = 0, rank: int = 0, num_replicas: int = 1
    ) -> None:
        if num_samples < 1:
            raise ValueError("num_samples: got 0, expected at least one sample to train on.")
        if not shapes or min(map(min, shapes)) < 1:
            raise ValueError(f"shapes: got {list(shapes)}, expected heights, widths and batch sizes of 1 or more.")
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"rank: got {rank}, expected 0..{num_replicas - 1} as there are {num_replicas} processes."
            )
        self.shapes = [BatchShape(*shape) for shape in shapes]
        self.num_samples, self.seed, self.rank, self.num_replicas = num_samples, seed, rank, num_replicas
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Go to an epoch, and leave out its first `start_batch` batches."""
        self.epoch, self.start_batch = epoch, start_batch
        self._rng = random.Random(epoch + 1_000_003 * self.seed)  # two runs share no epoch
        shared = -(-self.num_samples // self.num_replicas) * self.num_replicas
        order = [place % self.num_samples for place in range(shared)]
        self._rng.shuffle(order)
        self._order = order[self.rank :: self.num_replicas]
        self._shapes = list(self._choose_shapes())
        self._first_seed = self._rng.getrandbits(32)

    def __len__(self) -> int:
        return max(0, len(self._shapes) - self.start_batch)

    def __iter__(self) -> Iterator[list[Draw]]:
        start = 0
        for number, (height, width, size) in enumerate(self._shapes):
            places = range(start, start + size)
            start += size
            if number >= self.start_batch:
                yield [
                    Draw(self._order[place % len(self._order)], height, width, self._seed_of(place))
                    for place in places
                ]

    def _choose_shapes(self) -> Iterator[BatchShape]:
        place = 0
        while place < len(self._order):
            shape = self._rng.choice(self.shapes)
            yield shape._replace(size=min(shape.size, len(self._order)))
            place += shape.size

    def _seed_of(self, place: int) -> int:
        """Another one for every place of the epoch in every process."""
        return (self._first_seed + place * self.num_replicas + self.rank) % 2**32
