"""Order of streamed samples: complete passes, and the same continuation from every position."""

from collections import Counter
from itertools import islice

import pytest

from mobilevit_hf.data.stream import Lane, LanePosition, count_lanes
from mobilevit_hf.data.types import Sample


class Shards:
    """Samples in shards of the given sizes; those of the names in `invalid` are missing."""

    def __init__(self, *sizes, invalid=()):
        self.sizes, self.invalid, self.rows_read = sizes, invalid, 0

    @property
    def num_shards(self):
        return len(self.sizes)

    def read_shard(self, shard, start=0):
        for row in range(start, self.sizes[shard]):
            self.rows_read += 1
            name = f"{shard}/{row}"
            yield None if name in self.invalid else Sample(name, b"", label=0)


def names(items):
    return [sample.name for _, _, sample in items]


def all_names(shards):
    return {f"{shard}/{row}" for shard, size in enumerate(shards.sizes) for row in range(size)} - {*shards.invalid}


@pytest.mark.parametrize(
    ("num_shards", "expected"), [(1, 1), (2, 2), (3, 2), (8, 8), (63, 32), (64, 64), (294, 64), (0, 1)]
)
def test_number_of_lanes(num_shards, expected):
    assert count_lanes(num_shards) == expected


@pytest.mark.parametrize("num_lanes", [1, 2, 4])
def test_each_pass_of_all_lanes_has_every_valid_sample_once(num_lanes):
    shards = Shards(7, 0, 5, 12, 1, 9, invalid={"0/3", "3/11"})
    passes = [Counter() for _ in range(3)]
    for number in range(num_lanes):
        lane = Lane(shards, number, num_lanes, block_size=4)
        for _, _, sample in lane:
            if lane.position.epoch == len(passes):
                break
            passes[lane.position.epoch][sample.name] += 1
    assert all(counts == Counter(all_names(shards)) for counts in passes)


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_lane_continues_from_every_position(block_size):
    shards = Shards(7, 5, 12, 3, invalid={"2/0", "3/2"})
    options = {"seed": 3, "block_size": block_size}
    lane = Lane(shards, 1, 2, **options)
    items, positions = [], [lane.position]
    for item in islice(lane, 40):
        items.append(item)
        positions.append(lane.position)
    assert positions[-1].epoch >= 1
    for start, position in enumerate(positions):
        assert list(islice(Lane(shards, 1, 2, position=position, **options), 40 - start)) == items[start:]


def test_position_costs_at_most_a_block_and_the_row_that_is_read_ahead():
    shards = Shards(1000)
    lane = Lane(shards, 0, 1, block_size=10)
    list(islice(lane, 555))
    shards.rows_read = 0
    next(iter(Lane(shards, 0, 1, block_size=10, position=lane.position)))
    assert shards.rows_read <= 11


def test_order_is_shuffled_and_depends_on_pass_and_seed():
    shards = Shards(*8 * [5])
    first, second = (names(islice(Lane(shards, 0, 1, seed=seed, block_size=10), 80)) for seed in (0, 1))
    orders = [first[:40], first[40:], second[:40]]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in (*orders, sorted(first[:40]))}) == 4
    blocks = [{name.partition("/")[0] for name in first[start : start + 10]} for start in range(0, 80, 10)]
    assert all(len(shards) == 2 for shards in blocks)
    assert blocks[:4] != blocks[4:]
    seeds = [seed for _, seed, _ in islice(Lane(shards, 0, 1), 80)]
    assert len({*seeds}) == 80


def test_lane_without_samples_in_a_pass_continues_with_other_shards():
    shards = Shards(0, 3)
    assert sorted({*names(islice(Lane(shards, 0, 2), 12)), *names(islice(Lane(shards, 1, 2), 12))}) == [
        "1/0",
        "1/1",
        "1/2",
    ]


def test_stream_without_samples_raises():
    with pytest.raises(ValueError, match="streaming: got no valid training sample"):
        next(iter(Lane(Shards(3, 2, invalid={f"{a}/{b}" for a in (0, 1) for b in (0, 1, 2)}), 0, 2)))


def test_start_position_is_the_beginning():
    shards = Shards(5, 5)
    assert names(islice(Lane(shards, 0, 1, position=LanePosition()), 7)) == names(islice(Lane(shards, 0, 1), 7))
