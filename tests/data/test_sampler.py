"""Multi-scale batches: the official code's shapes and order, every sample, the same schedule in every process."""

import itertools
import json
from collections import Counter

import pytest
from torch.utils.data import DistributedSampler

from mobilevit_hf.data.sampler import BatchShape, TrainingBatches, scale_batches

SMALL = [BatchShape(32, 32, 9), BatchShape(48, 64, 4), BatchShape(64, 64, 2)]


def epoch_of(batches, epoch, start_batch=0):
    batches.set_epoch(epoch, start_batch)
    return list(batches)


def shape_of(batch):
    assert len({(draw.height, draw.width) for draw in batch}) == 1
    return batch[0].height, batch[0].width, len(batch)


def indices_of(epoch):
    return [draw.index for batch in epoch for draw in batch]


def test_the_paper_s_shapes():
    shapes = scale_batches(BatchShape(256, 256, 128))
    assert shapes == [(160, 160, 327), (192, 192, 227), (256, 256, 128), (288, 288, 101), (320, 320, 81)]


def test_shapes_as_the_official_code(reference_data):
    reference = json.loads((reference_data / "reference" / "train_sampler.json").read_text())
    for case in reference["image_batch_pairs"]:
        given = case["kwargs"]
        shapes = scale_batches(
            BatchShape(given["crop_size_h"], given["crop_size_w"], given["batch_size_gpu0"]),
            heights=(given.get("min_crop_size_h", 160), given.get("max_crop_size_h", 320)),
            widths=(given.get("min_crop_size_w", 160), given.get("max_crop_size_w", 320)),
            num_scales=given.get("max_scales", 5),
            divisor=given.get("check_scale_div_factor", 32),
        )
        assert [list(shape) for shape in shapes] == case["img_batch_tuples"]
    for size in (1, 16, 32, 100, 128):
        expected = reference[f"vbs_yaml_bs{size}"]["img_batch_tuples"]
        assert [list(shape) for shape in scale_batches(BatchShape(256, 256, size))] == expected


@pytest.mark.parametrize(
    ("name", "num_samples", "rank", "num_replicas"),
    [
        ("vbs_yaml_bs128", 5000, 0, 1),
        ("vbs_yaml_bs32", 5000, 0, 1),
        ("vbs_ddp_rank0_of8_bs128", 20000, 0, 8),
        ("vbs_ddp_rank3_of8_bs128", 20000, 3, 8),
    ],
)
def test_epochs_as_the_official_code(name, num_samples, rank, num_replicas, reference_data):
    reference = json.loads((reference_data / "reference" / "train_sampler.json").read_text())[name]
    batches = TrainingBatches(num_samples, reference["img_batch_tuples"], rank=rank, num_replicas=num_replicas)
    epochs = {key: value for key, value in reference.items() if key.startswith("epoch")}
    assert epochs
    for key, expected in epochs.items():
        epoch = epoch_of(batches, int(key.removeprefix("epoch").partition("_")[0]))
        assert [[*shape_of(batch), batch[0].index, batch[-1].index] for batch in epoch] == expected


@pytest.mark.parametrize("shapes", [SMALL, SMALL[:1]])
@pytest.mark.parametrize("num_samples", [1, 2, 7, 40, 101])
def test_every_sample_comes_and_few_come_twice(num_samples, shapes):
    epoch = epoch_of(TrainingBatches(num_samples, shapes), 3)
    counts = Counter(indices_of(epoch))
    assert set(counts) == set(range(num_samples))
    assert sum(counts.values()) - num_samples < len(epoch[-1])
    for batch in epoch:
        assert len({draw.index for draw in batch}) == len(batch)
        assert len(batch) in {min(shape.size, num_samples) for shape in shapes}
    assert {shape_of(batch)[:2] for batch in epoch} <= {shape[:2] for shape in shapes}


def test_all_shapes_are_drawn():
    epoch = epoch_of(TrainingBatches(2000, SMALL), 0)
    counts = Counter(shape_of(batch) for batch in epoch)
    assert set(counts) == set(SMALL)
    assert min(counts.values()) > len(epoch) / 6


@pytest.mark.parametrize(("num_samples", "num_replicas"), [(101, 4), (96, 4), (2, 3), (1, 8)])
def test_processes_step_together_and_share_the_samples(num_samples, num_replicas):
    ranks = [TrainingBatches(num_samples, SMALL, rank=r, num_replicas=num_replicas) for r in range(num_replicas)]
    for epoch in range(3):
        epochs = [epoch_of(batches, epoch) for batches in ranks]
        schedules = {tuple(map(shape_of, batches)) for batches in epochs}
        assert len(schedules) == 1
        assert {len(batches) for batches in ranks} == {len(schedules.pop())}
        theirs = DistributedSampler(range(num_samples), num_replicas, 0)
        own = [indices_of(batches)[: len(theirs)] for batches in epochs]  # behind them the last batch is filled up
        counts = Counter(itertools.chain(*own))
        assert set(counts) == set(range(num_samples))
        assert sum(counts.values()) == theirs.total_size
        seeds = [draw.seed for batches in epochs for batch in batches for draw in batch]
        assert len(set(seeds)) == len(seeds)


def test_epochs_and_seeds_differ_and_come_again():
    batches = TrainingBatches(50, SMALL, seed=1)
    first, second = epoch_of(batches, 0), epoch_of(batches, 1)
    assert indices_of(first) != indices_of(second)
    assert not {draw.seed for batch in first for draw in batch} & {draw.seed for batch in second for draw in batch}
    assert epoch_of(TrainingBatches(50, SMALL, seed=1), 0) == first
    assert epoch_of(TrainingBatches(50, SMALL, seed=2), 0) != first
    assert epoch_of(TrainingBatches(50, SMALL, seed=0), 1) != first


def test_going_on_in_the_middle_of_an_epoch():
    batches = TrainingBatches(80, SMALL, rank=1, num_replicas=2)
    whole = epoch_of(batches, 5)
    for start in (1, 3, len(whole)):
        assert epoch_of(TrainingBatches(80, SMALL, rank=1, num_replicas=2), 5, start) == whole[start:]
        batches.set_epoch(5, start)
        assert len(batches) == len(whole) - start
    assert len(epoch_of(batches, 6)) == len(batches)  # the next one is whole again


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingBatches(0, SMALL), "num_samples: got 0"),
        (lambda: TrainingBatches(5, []), "shapes: got"),
        (lambda: TrainingBatches(5, [(32, 32, 0)]), "shapes: got"),
        (lambda: TrainingBatches(5, SMALL, rank=2, num_replicas=2), r"rank: got 2, expected 0\.\.1"),
        (lambda: scale_batches(BatchShape(256, 256, 0)), "size: got 0"),
        (lambda: scale_batches(BatchShape(256, 256, 8), divisor=0), "divisor: got 0"),
        (lambda: scale_batches(BatchShape(256, 256, 8), heights=(320, 160)), "heights: got 320 to 160"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
