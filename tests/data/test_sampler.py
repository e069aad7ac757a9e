"""Batch sampler: the official code's shapes and order, complete epochs, and the same steps in every process."""

import itertools
import json
from collections import Counter

import pytest
from torch.utils.data import DistributedSampler

from mobilevit_hf.data.sampler import BatchShape, MultiScaleBatchSampler, multi_scale_shapes

SHAPES = [BatchShape(32, 32, 9), BatchShape(48, 64, 4), BatchShape(64, 64, 2)]


def run_epoch(batches, epoch, start_batch=0):
    batches.set_epoch(epoch, start_batch)
    return list(batches)


def batch_shape(batch):
    assert len({(spec.height, spec.width) for spec in batch}) == 1
    return batch[0].height, batch[0].width, len(batch)


def sample_indices(epoch):
    return [spec.index for batch in epoch for spec in batch]


def test_shapes_of_the_paper():
    shapes = multi_scale_shapes(BatchShape(256, 256, 128))
    assert shapes == [(160, 160, 327), (192, 192, 227), (256, 256, 128), (288, 288, 101), (320, 320, 81)]


def test_shapes_match_the_official_code(reference_data):
    reference = json.loads((reference_data / "reference" / "train_sampler.json").read_text())
    for case in reference["image_batch_pairs"]:
        kwargs = case["kwargs"]
        shapes = multi_scale_shapes(
            BatchShape(kwargs["crop_size_h"], kwargs["crop_size_w"], kwargs["batch_size_gpu0"]),
            heights=(kwargs.get("min_crop_size_h", 160), kwargs.get("max_crop_size_h", 320)),
            widths=(kwargs.get("min_crop_size_w", 160), kwargs.get("max_crop_size_w", 320)),
            num_scales=kwargs.get("max_scales", 5),
            divisor=kwargs.get("check_scale_div_factor", 32),
        )
        assert [list(shape) for shape in shapes] == case["img_batch_tuples"]
    for size in (1, 16, 32, 100, 128):
        expected = reference[f"vbs_yaml_bs{size}"]["img_batch_tuples"]
        assert [list(shape) for shape in multi_scale_shapes(BatchShape(256, 256, size))] == expected


@pytest.mark.parametrize(
    ("name", "num_samples", "rank", "num_replicas"),
    [
        ("vbs_yaml_bs128", 5000, 0, 1),
        ("vbs_yaml_bs32", 5000, 0, 1),
        ("vbs_ddp_rank0_of8_bs128", 20000, 0, 8),
        ("vbs_ddp_rank3_of8_bs128", 20000, 3, 8),
    ],
)
def test_epochs_match_the_official_code(name, num_samples, rank, num_replicas, reference_data):
    reference = json.loads((reference_data / "reference" / "train_sampler.json").read_text())[name]
    batches = MultiScaleBatchSampler(num_samples, reference["img_batch_tuples"], rank=rank, num_replicas=num_replicas)
    epochs = {key: value for key, value in reference.items() if key.startswith("epoch")}
    assert epochs
    for key, expected in epochs.items():
        epoch = run_epoch(batches, int(key.removeprefix("epoch").partition("_")[0]))
        assert [[*batch_shape(batch), batch[0].index, batch[-1].index] for batch in epoch] == expected


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1]])
@pytest.mark.parametrize("num_samples", [2, 7, 40, 101])
def test_epoch_contains_every_sample_and_few_twice(num_samples, shapes):
    epoch = run_epoch(MultiScaleBatchSampler(num_samples, shapes), 3)
    counts = Counter(sample_indices(epoch))
    assert set(counts) == set(range(num_samples))
    assert sum(counts.values()) - num_samples < len(epoch[-1])
    for batch in epoch:
        assert len({spec.index for spec in batch}) == len(batch)
        assert len(batch) in {min(shape.size, num_samples) for shape in shapes}
    assert {batch_shape(batch)[:2] for batch in epoch} <= {shape[:2] for shape in shapes}


def test_single_sample_is_repeated_with_another_augmentation():
    ((first, second),) = run_epoch(MultiScaleBatchSampler(1, SHAPES[:1]), 0)
    assert first.index == second.index == 0
    assert first.seed != second.seed


def test_all_shapes_are_used():
    epoch = run_epoch(MultiScaleBatchSampler(2000, SHAPES), 0)
    counts = Counter(batch_shape(batch) for batch in epoch)
    assert set(counts) == set(SHAPES)
    assert min(counts.values()) > len(epoch) / 6


@pytest.mark.parametrize(("num_samples", "num_replicas"), [(101, 4), (96, 4), (2, 3), (1, 8)])
def test_processes_share_samples_and_step_shapes(num_samples, num_replicas):
    ranks = [
        MultiScaleBatchSampler(num_samples, SHAPES, rank=r, num_replicas=num_replicas) for r in range(num_replicas)
    ]
    for epoch in range(3):
        epochs = [run_epoch(batches, epoch) for batches in ranks]
        schedules = {tuple(map(batch_shape, batches)) for batches in epochs}
        assert len(schedules) == 1
        assert {len(batches) for batches in ranks} == {len(schedules.pop())}
        reference = DistributedSampler(range(num_samples), num_replicas, 0)
        own = [
            sample_indices(batches)[: len(reference)] for batches in epochs
        ]  # without the padding of the last batch
        counts = Counter(itertools.chain(*own))
        assert set(counts) == set(range(num_samples))
        assert sum(counts.values()) == reference.total_size
        seeds = [spec.seed for batches in epochs for batch in batches for spec in batch]
        assert len(set(seeds)) == len(seeds)


def test_order_depends_on_epoch_and_seed_only():
    batches = MultiScaleBatchSampler(50, SHAPES, seed=1)
    first, second = run_epoch(batches, 0), run_epoch(batches, 1)
    assert sample_indices(first) != sample_indices(second)
    assert not {spec.seed for batch in first for spec in batch} & {spec.seed for batch in second for spec in batch}
    assert run_epoch(MultiScaleBatchSampler(50, SHAPES, seed=1), 0) == first
    assert run_epoch(MultiScaleBatchSampler(50, SHAPES, seed=2), 0) != first
    assert run_epoch(MultiScaleBatchSampler(50, SHAPES, seed=0), 1) != first


def test_epoch_resumes_at_start_batch():
    batches = MultiScaleBatchSampler(80, SHAPES, rank=1, num_replicas=2)
    complete = run_epoch(batches, 5)
    for start in (1, 3, len(complete)):
        assert run_epoch(MultiScaleBatchSampler(80, SHAPES, rank=1, num_replicas=2), 5, start) == complete[start:]
        batches.set_epoch(5, start)
        assert len(batches) == len(complete) - start
    assert len(run_epoch(batches, 6)) == len(batches)  # the next epoch starts at its first batch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiScaleBatchSampler(0, SHAPES), "num_samples: got 0"),
        (lambda: MultiScaleBatchSampler(5, []), "shapes: got"),
        (lambda: MultiScaleBatchSampler(5, [(32, 32, 0)]), "shapes: got"),
        (lambda: MultiScaleBatchSampler(5, SHAPES, rank=2, num_replicas=2), r"rank: got 2, expected 0\.\.1"),
        (lambda: multi_scale_shapes(BatchShape(256, 256, 0)), "size: got 0"),
        (lambda: multi_scale_shapes(BatchShape(256, 256, 8), divisor=0), "divisor: got 0"),
        (lambda: multi_scale_shapes(BatchShape(256, 256, 8), heights=(320, 160)), "heights: got 320 to 160"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1]])
@pytest.mark.parametrize(("num_samples", "before", "now"), [(96, 4, 2), (96, 1, 3), (101, 3, 2), (40, 2, 5)])
@pytest.mark.parametrize("steps", [1, 2, 100])
def test_other_processes_continue_with_the_samples_that_are_left(num_samples, before, now, steps, shapes):
    def start(processes, **position):
        samplers = [
            MultiScaleBatchSampler(num_samples, shapes, rank=r, num_replicas=processes) for r in range(processes)
        ]
        for sampler in samplers:
            sampler.set_epoch(2, **position)
        return samplers

    first = start(before)
    steps = min(steps, len(first[0]))
    position = first[0].position(steps)
    done = [index for sampler in first for batch in list(sampler)[:steps] for index in sample_indices([batch])]
    assert position == len(done)
    second = start(now, start_sample=position, order_replicas=before)
    schedules = {tuple(map(batch_shape, sampler)) for sampler in second}
    assert len(schedules) == 1
    left = [index for sampler in second for index in sample_indices(sampler)]
    counts = Counter(done + left)
    assert set(counts) == set(range(num_samples))
    # Samples that fill the last step, and those that make the numbers of both processes divide the samples.
    largest = max(shape.size for shape in shapes)
    assert sum(counts.values()) - num_samples <= max(before, now) * largest + before + now
    if position >= num_samples:
        assert not left
    if num_samples == 96 and shapes == SHAPES[:1] and steps == 1:
        order = [index for group in zip(*map(sample_indices, start(1)), strict=True) for index in group]
        assert set(done) == set(order[:position])


def test_no_sample_is_lost_or_repeated_with_another_number_of_processes():
    """Sizes that divide evenly: every sample exactly once, wherever the first processes stop."""
    for before, now in ((4, 2), (2, 4), (1, 4), (4, 1)):
        for steps in range(96 // (4 * before) + 1):
            first = [
                MultiScaleBatchSampler(96, [BatchShape(32, 32, 4)], rank=r, num_replicas=before) for r in range(before)
            ]
            done = [index for sampler in first for index in sample_indices(list(sampler)[:steps])]
            second = [
                MultiScaleBatchSampler(96, [BatchShape(32, 32, 4)], rank=r, num_replicas=now) for r in range(now)
            ]
            for sampler in second:
                sampler.set_epoch(0, start_sample=len(done), order_replicas=before)
            left = [index for sampler in second for index in sample_indices(sampler)]
            is_even = (96 - len(done)) % (4 * now) == 0
            counts = Counter(done + left)
            assert set(counts) == set(range(96))
            assert not is_even or sum(counts.values()) == 96
