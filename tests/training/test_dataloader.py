"""Batches of a training run: image sizes, distribution over processes, worker processes."""

from types import SimpleNamespace

import pytest
import torch
from training_runs import SCRIPT_OF

from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.training.arguments import TrainArguments
from mobilevit_hf.training.dataloader import TrainingDataLoader, batch_shapes, check_batches
from mobilevit_hf.training.initialization import create_classifier, create_detector
from mobilevit_hf.training.state import TrainerState
from mobilevit_hf.training.tasks import TRAINING_TASKS


def test_multi_scale_shapes_are_those_of_the_paper():
    assert batch_shapes("off", 256, 128, 0.3) == [(256, 256, 128)]
    paper = [(160, 160, 327), (192, 192, 227), (256, 256, 128), (288, 288, 101), (320, 320, 81)]
    assert batch_shapes("on", 256, 128, 0.3) == paper  # section 3.3


@pytest.mark.parametrize(
    ("task", "options", "is_valid"),
    [
        ("object-detection", {"per_device_train_batch_size": 1}, False),
        ("object-detection", {"per_device_train_batch_size": 2, "multi_scale": "on"}, False),
        ("object-detection", {"per_device_train_batch_size": 1, "image_size": 288, "multi_scale": "off"}, True),
        ("object-detection", {"per_device_train_batch_size": 2}, True),
        ("image-classification", {"per_device_train_batch_size": 1, "image_size": 32}, False),
        ("image-classification", {"per_device_train_batch_size": 1, "image_size": 64}, True),
    ],
)
def test_batches_that_batch_normalization_rejects_raise(task, options, is_valid):
    arguments = TrainArguments(model="xxs", **options).for_task(task)
    stride = {"object-detection": 256, "image-classification": 32}[task]
    size = arguments.image_size or 224
    if is_valid:
        check_batches(arguments, size, stride)
        return
    with pytest.raises(ValueError, match=r"per_device_train_batch_size: got [12], .*Increase it or --image-size"):
        check_batches(arguments, size, stride)


@pytest.mark.parametrize("image_size", [64, 96, 100, 160, 224, 256, 320])
def test_progressive_shapes_grow_to_the_input_size(image_size):
    epochs = [batch_shapes("progressive", image_size, 8, step / 100) for step in range(101)]
    assert all(len(shapes) == 1 and shapes[0].size == 8 for shapes in epochs)
    assert all(shapes[0].height == shapes[0].width for shapes in epochs)
    sides = [shapes[0].height for shapes in epochs]
    assert sides == sorted(sides)
    assert set(sides[50:]) == {image_size}
    assert all(side % 32 == 0 or side == image_size for side in sides)
    assert sides[0] < image_size or image_size == 64
    assert sides[0] >= 0.5 * image_size


@pytest.mark.parametrize("multi_scale", ["on", "progressive", "off"])
@pytest.mark.parametrize("task", list(SCRIPT_OF))
def test_processes_get_equal_shapes_and_distinct_images(task, multi_scale, small_datasets, initial_checkpoint):
    source = str(small_datasets[task])
    options = {"data": source, "model": str(initial_checkpoint), "image_size": 128, "per_device_train_batch_size": 4}
    arguments = TrainArguments(**options, multi_scale=multi_scale, dataloader_num_workers=0).for_task(task)
    dataset = load_dataset(source)
    create = create_classifier if task == "image-classification" else create_detector
    loaders = [
        TrainingDataLoader(
            arguments,
            TRAINING_TASKS[task](arguments, dataset),
            create(arguments, dataset.classes, None),
            SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu")),
        )
        for rank in range(2)
    ]
    shapes, orders = set(), set()
    for epoch in range(4):
        names = []
        for batches in zip(
            *(loader.epoch(TrainerState(epoch=epoch, epoch_progress=epoch / 4)) for loader in loaders), strict=True
        ):
            sizes = {tuple(batch["pixel_values"].shape) for _, batch in batches}
            assert len(sizes) == 1
            shapes |= sizes
            first, second = (name_samples() for name_samples, _ in batches)
            assert not set(first) & set(second)
            assert len(first) == len(second) == next(iter(sizes))[0]
            names += first + second
        assert set(names) == {sample.name for sample in dataset.splits["train"]}
        orders.add(tuple(names))
    assert len(orders) == 4
    sides = {shape[2] for shape in shapes}
    allowed = {"on": {96, 128, 160}, "progressive": {96, 128}, "off": {128}}[multi_scale]
    assert sides <= allowed
    assert len(sides) > 1 or multi_scale == "off"


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [("cpu", 2, 1, 1), ("cpu", 16, 1, 1), ("cpu", 1, 1, 0), ("cpu", 2, 4, 0), ("cuda", 16, 1, 8), ("cuda", 2, 4, 0)],
)
def test_default_number_of_workers(device, cores, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: cores)
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    loader = SimpleNamespace(arguments=TrainArguments(), accelerator=accelerator, sampler=object())
    assert TrainingDataLoader._num_workers(loader) == expected


def test_processes_of_other_nodes_do_not_share_the_cores(monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=32)
    loader = SimpleNamespace(arguments=TrainArguments(), accelerator=accelerator, sampler=object())
    assert TrainingDataLoader._num_workers(loader) == 3


@pytest.mark.parametrize(("lanes", "processes", "expected"), [(64, 8, 8), (4, 1, 4), (8, 8, 1), (1, 2, 1), (64, 3, 1)])
def test_workers_share_the_lanes_of_a_stream_evenly(lanes, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 128)
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=processes)
    stream = SimpleNamespace(num_lanes=lanes)
    loader = SimpleNamespace(arguments=TrainArguments(), accelerator=accelerator, sampler=None, stream=stream)
    assert TrainingDataLoader._num_workers(loader) == expected
