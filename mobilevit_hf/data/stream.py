"""Order of a streamed dataset in training: the same for any number of processes and workers, from any position on."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from .types import Sample

# Parts of a stream that are read and shuffled independently of each other, at most as many as it has shards.
MAX_LANES = 64
# Samples that are shuffled together, in all lanes and at least in each.
BUFFER_SIZE, MIN_BLOCK_SIZE = 1000, 128
# A lane gets other shards in the next pass, unless there is only one.
MAX_EMPTY_PASSES = 10


class ShardedSamples(Protocol):
    """Samples of a stream, in files that can be read independently of each other."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        ...

    def read_shard(self, shard: int, start: int = 0) -> Iterator[Sample | None]:
        """Yield the samples of a shard from row `start` on, None for a row without a valid one."""
        ...


class LanePosition(NamedTuple):
    """Position in a lane: the start of a block, and the number of its rows that were taken, in shuffled order."""

    epoch: int = 0  # completed passes over the dataset
    shard: int = 0  # in the lane's order of this pass
    row: int = 0
    taken: int = 0


class Row(NamedTuple):
    """Row of a lane."""

    shard: int  # in the lane's order
    index: int  # in the shard
    sample: Sample | None


def count_lanes(num_shards: int) -> int:
    """Return the number of lanes of a stream: a power of two, which usual numbers of processes divide."""
    return 1 << (min(max(num_shards, 1), MAX_LANES).bit_length() - 1)


class Lane:
    """Endless shuffled samples of every n-th shard, in a new order of the shards in each pass over the dataset.

    Blocks of consecutive rows are shuffled with a seed of their own, so that a position is restored by reading one
    block again. A buffer with random replacements would mix farther, but its content depends on all earlier rows.

    Args:
        samples: Samples of a split.
        number: Index of the lane.
        num_lanes: Number of lanes, see `count_lanes`.
        seed: Seed of the order and of the augmentation.
        position: Position to start from.
        block_size: Rows per block; None: `BUFFER_SIZE` in all lanes together, or `MIN_BLOCK_SIZE`.

    Attributes:
        position: Position after the last sample.
    """

    def __init__(
        self,
        samples: ShardedSamples,
        number: int,
        num_lanes: int,
        *,
        seed: int = 0,
        position: LanePosition | None = None,
        block_size: int | None = None,
    ) -> None:
        self.samples, self.number, self.num_lanes, self.seed = samples, number, num_lanes, seed
        self.position = position or LanePosition()
        self.block_size = block_size or max(MIN_BLOCK_SIZE, BUFFER_SIZE // num_lanes)

    def __iter__(self) -> Iterator[tuple[int, int, Sample]]:
        """Yield the row in its shard, the augmentation's seed and the sample.

        Raises:
            ValueError: If there is no valid sample in `MAX_EMPTY_PASSES` passes per shard.
        """
        empty_passes = 0
        while empty_passes < MAX_EMPTY_PASSES * self.samples.num_shards:
            is_empty = True
            for item in self._read_pass():
                is_empty = False
                yield item
            empty_passes = empty_passes + 1 if is_empty else 0
            self.position = LanePosition(self.position.epoch + 1)
        raise ValueError("streaming: got no valid training sample, expected at least one. Check the dataset.")

    def _read_pass(self) -> Iterator[tuple[int, int, Sample]]:
        epoch, _, _, taken = self.position
        rows = self._read_rows()
        block = list(islice(rows, self.block_size))
        while block:
            start = (epoch, block[0].shard, block[0].index)
            rng = random.Random(" ".join(map(str, (self.seed, self.number, *start))))
            order = rng.sample(range(len(block)), len(block))
            seeds = [rng.getrandbits(32) for _ in block]
            following: list[Row] = []
            for count, index in enumerate(order[taken:], start=taken + 1):
                following += islice(rows, 1)  # one at a time: no pause between blocks
                self.position = LanePosition(*start, count)
                if (sample := block[index].sample) is not None:
                    yield block[index].index, seeds[index], sample
            following += islice(rows, self.block_size - len(following))  # after a start in the middle of a block
            block, taken = following, 0

    def _read_rows(self) -> Iterator[Row]:
        """Yield the rows of the current pass, from the start of the current block on."""
        epoch, first, start, _ = self.position
        shards = list(range(self.samples.num_shards))
        random.Random(f"{self.seed} {epoch}").shuffle(shards)
        for place, shard in enumerate(shards[self.number :: self.num_lanes][first:], start=first):
            for index, sample in enumerate(self.samples.read_shard(shard, start), start=start):
                yield Row(place, index, sample)
            start = 0
