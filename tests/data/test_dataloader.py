"""Dataloaders: batches independent of the number of workers, augmentation per epoch, errors, and streams."""

import multiprocessing
import os
import pickle
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForObjectDetection, MobileViTImageProcessor

from mobilevit_hf import MobileViTSSDLiteImageProcessor
from mobilevit_hf.data.dataloader import (
    ImageDataset,
    ImageStream,
    UnreadableSampleError,
    explain_killed_worker,
    make_dataloader,
)
from mobilevit_hf.data.masks import Mask
from mobilevit_hf.data.sampler import BatchShape, MultiScaleBatchSampler
from mobilevit_hf.data.transforms import make_mix, make_transform
from mobilevit_hf.data.types import Objects, Sample

PROCESSOR = MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
DETECTOR_PROCESSOR = MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64})
SHAPES = [BatchShape(32, 32, 4), BatchShape(48, 40, 3)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Samples of 14 random images with a class and boxes; the third has no boxes."""
    folder, rng, samples = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(14):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels).resize((80 + number, 60), Image.Resampling.NEAREST).save(path)
        boxes = [] if number == 2 else [[5, 5, 40 + number, 50], [30, 10, 70, 45]][: 1 + number % 2]
        objects = Objects.from_lists(boxes, [number % 4] * len(boxes))
        samples.append(Sample(f"train/{path.name}", str(path), label=number % 4, objects=objects))
    return samples


@pytest.fixture(scope="module")
def labeled_samples(samples):
    """Classification samples of the same images."""
    return [Sample(sample.name, sample.image, label=sample.label) for sample in samples]


def make_training_transform(samples, **options):
    task, processor = ("image-classification", PROCESSOR)
    if samples[0].objects is not None:
        task, processor = ("object-detection", DETECTOR_PROCESSOR)
    return make_transform(task, processor, training=True, **options)


def assert_equal_batches(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch["pixel_values"], other["pixel_values"])
        if isinstance(batch["labels"], torch.Tensor):
            assert torch.equal(batch["labels"], other["labels"])
            continue
        for label, other_label in zip(batch["labels"], other["labels"], strict=True):
            assert label.keys() == other_label.keys()
            assert all(torch.equal(label[name], other_label[name]) for name in label)


@pytest.mark.parametrize("fixture", ["labeled_samples", "samples"])
def test_batches_are_independent_of_workers_and_earlier_batches(fixture, request):
    samples = request.getfixturevalue(fixture)
    mix = make_mix(4, mixup=0.2, cutmix=1.0) if fixture == "labeled_samples" else None
    data = ImageDataset(samples, make_training_transform(samples), mix)
    epochs = {}
    for workers in (0, 2):
        batches = MultiScaleBatchSampler(len(samples), SHAPES, seed=3)
        loader = make_dataloader(data, batches, num_workers=workers)
        for epoch in (0, 1):
            batches.set_epoch(epoch)
            assert len(loader) == len(batches)
            torch.manual_seed(workers)
            epochs[workers, epoch] = list(loader)
        batches.set_epoch(1, start_batch=2)
        assert_equal_batches(list(loader), epochs[workers, 1][2:])
    for epoch in (0, 1):
        assert_equal_batches(epochs[0, epoch], epochs[2, epoch])
    first, second = epochs[0, 0][0]["pixel_values"], epochs[0, 1][0]["pixel_values"]
    assert first.shape != second.shape or not torch.equal(first, second)


def test_augmentation_differs_in_each_epoch(labeled_samples):
    data = ImageDataset(labeled_samples, make_training_transform(labeled_samples))
    batches = MultiScaleBatchSampler(1, [BatchShape(32, 32, 1)])
    images = []
    for epoch in range(5):
        batches.set_epoch(epoch)
        images += [batch["pixel_values"] for batch in make_dataloader(data, batches)]
    assert len({pixels.numpy().tobytes() for pixels in images}) == 5


def test_loading_does_not_change_the_random_state(labeled_samples):
    data = ImageDataset(labeled_samples, make_training_transform(labeled_samples), make_mix(4, mixup=0.2))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(make_dataloader(data, MultiScaleBatchSampler(len(labeled_samples), SHAPES)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_yields_all_samples_in_order(samples, workers):
    data = ImageDataset(samples, make_transform("object-detection", DETECTOR_PROCESSOR, training=False))
    batches = list(make_dataloader(data, 4, num_workers=workers))
    assert [len(batch["pixel_values"]) for batch in batches] == [4, 4, 4, 2]
    labels = [label for batch in batches for label in batch["labels"]]
    assert [int(label["image_id"]) for label in labels] == list(range(14))
    for label, sample in zip(labels, samples, strict=True):
        width, height = 80 + int(label["image_id"]), 60
        assert label["orig_size"].tolist() == [height, width]
        # Reference: the processor called with COCO annotations.
        annotations = [
            {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": int(category)}
            for (x1, y1, x2, y2), category in zip(sample.objects.boxes.tolist(), sample.objects.labels, strict=True)
        ]
        inputs = DETECTOR_PROCESSOR(
            Image.open(sample.image),
            annotations={"image_id": int(label["image_id"]), "annotations": annotations},
            return_tensors="pt",
        )
        (expected,) = inputs["labels"]
        assert expected.keys() == label.keys()
        for name, value in expected.items():
            torch.testing.assert_close(label[name], value)
        pixels = batches[int(label["image_id"]) // 4]["pixel_values"][int(label["image_id"]) % 4]
        torch.testing.assert_close(pixels, inputs["pixel_values"][0], rtol=0, atol=1e-3)


def test_detector_trains_on_the_batches(samples, detector_dir):
    model = AutoModelForObjectDetection.from_pretrained(detector_dir).train()
    batches = MultiScaleBatchSampler(14, [BatchShape(64, 64, 7)])
    loader = make_dataloader(ImageDataset(samples, make_training_transform(samples)), batches, num_workers=1)
    for batch in loader:
        model(**batch).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.fixture
def loading(labeled_samples):
    """Iterator over batches that a worker prepares."""
    data = ImageDataset(labeled_samples, make_training_transform(labeled_samples))
    loader = make_dataloader(data, MultiScaleBatchSampler(len(labeled_samples), [(32, 32, 1)]), num_workers=1)
    batches = iter(loader)
    next(batches)  # the worker has started
    return batches


def test_worker_ignores_signals_to_the_process_group(loading):
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    assert len(list(loading)) == 13
    assert worker.is_alive()


def test_killed_worker_error_is_one_line(loading):
    def load():
        with explain_killed_worker():
            worker.kill()
            worker.join()
            list(loading)

    (worker,) = multiprocessing.active_children()
    with pytest.raises(ValueError, match=r"process was killed.*\. Use .*--dataloader-num-workers") as error:
        load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("Bus error. It is possible that", "shared memory ran out"), ("Killed. ", "memory ran out"), (None, "full")],
)
def test_killed_worker_is_found_behind_other_errors(reason, expected):
    """Torch raises the error in any code of the main thread, such as while a file is written."""

    def write():
        with explain_killed_worker():
            try:
                raise RuntimeError(f"DataLoader worker (pid 12) is killed by signal: {reason}" if reason else "other")
            except RuntimeError as error:
                raise ValueError("the disk is full") from error

    with pytest.raises(ValueError, match=expected):
        write()


@pytest.mark.slow
def test_worker_ends_with_a_killed_process(samples, run_python, tmp_path):
    paths = [sample.image for sample in samples]
    script = f"""
        import multiprocessing, os, signal
        from mobilevit_hf.data.sampler import BatchShape, MultiScaleBatchSampler
        from mobilevit_hf.data.types import Sample
        from mobilevit_hf.data.dataloader import ImageDataset, make_dataloader
        from mobilevit_hf.data.transforms import make_transform
        from transformers import MobileViTImageProcessor

        samples = [Sample(path, path, label=0) for path in {paths!r}]
        transform = make_transform("image-classification", MobileViTImageProcessor(), training=True)
        data, batches = ImageDataset(samples, transform), MultiScaleBatchSampler(14, [BatchShape(32, 32, 7)])
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(read)
            loader = make_dataloader(data, batches, num_workers=2)
            next(iter(loader))
            os.kill(os.getpid(), signal.SIGKILL)
        os.close(write)
        signal.alarm(60)
        print(os.read(read, 1))  # returns when the process and its workers have ended
        """
    assert run_python(script) == "b''\n"


@pytest.mark.slow
def test_process_exits_with_an_open_dataloader(samples, run_python):
    paths = [sample.image for sample in samples]
    output = run_python(f"""
        import signal
        from mobilevit_hf.data.sampler import BatchShape, MultiScaleBatchSampler
        from mobilevit_hf.data.types import Sample
        from mobilevit_hf.data.dataloader import ImageDataset, make_dataloader
        from mobilevit_hf.data.transforms import make_transform
        from transformers import MobileViTImageProcessor

        signal.alarm(60)  # otherwise a worker that does not exit would block forever
        samples = [Sample(path, path, label=0) for path in {paths!r}]
        transform = make_transform("image-classification", MobileViTImageProcessor(), training=True)
        data, batches = ImageDataset(samples, transform), MultiScaleBatchSampler(14, [BatchShape(32, 32, 7)])
        loader = make_dataloader(data, batches, num_workers=1)
        print(len(next(iter(loader))["labels"]))
        """)
    assert output == "7\n"


def test_mixed_labels_are_soft(labeled_samples):
    data = ImageDataset(labeled_samples, make_training_transform(labeled_samples), make_mix(4, cutmix=1.0))
    (batch, *_) = make_dataloader(data, MultiScaleBatchSampler(14, SHAPES[:1]))
    assert batch["labels"].shape == (4, 4)
    torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(4))
    assert F.cross_entropy(torch.zeros(4, 4), batch["labels"]).item() == pytest.approx(np.log(4))


def test_labels_are_sent_between_processes_by_value(samples):
    data = ImageDataset(samples, make_training_transform(samples))
    batches = MultiScaleBatchSampler(14, [BatchShape(32, 32, 14)])
    labels = next(iter(make_dataloader(data, batches)))["labels"]
    (received,) = make_dataloader(data, batches, num_workers=1)
    assert isinstance(received["labels"], list)
    assert not any(value.is_shared() for label in received["labels"] for value in label.values())
    for label, other in zip(labels, pickle.loads(pickle.dumps(labels)), strict=True):
        assert all(torch.equal(label[name], other[name]) and label[name].dtype == other[name].dtype for name in label)


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        ("missing", 0),
        ("truncated", 0),
        ("no image", 0),
        pytest.param("truncated", 1, marks=pytest.mark.slow),  # DataLoader waits seconds for a failed worker
    ],
)
def test_unreadable_image_error_names_the_sample(labeled_samples, workers, damage, tmp_path):
    path = tmp_path / "bad.jpg"
    data = Path(labeled_samples[0].image).read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"text")
    if damage == "missing":
        path.unlink()
    samples = [*labeled_samples[:5], Sample("train/bad.jpg", str(path), label=0)]
    for transform, batches in (
        (make_training_transform(labeled_samples), MultiScaleBatchSampler(6, SHAPES[:1])),
        (make_transform("image-classification", PROCESSOR, training=False), 2),
    ):
        loader = make_dataloader(ImageDataset(samples, transform), batches, num_workers=workers)
        with pytest.raises(UnreadableSampleError, match=r"\Atrain/bad\.jpg: .*check-data.*\Z") as caught:
            list(loader)
        assert "Traceback" not in str(caught.value)


def test_images_of_different_sizes_raise(labeled_samples):
    processor = MobileViTImageProcessor(size={"shortest_edge": 40}, do_center_crop=False)
    data = ImageDataset(labeled_samples, make_transform("image-classification", processor, training=False))
    with pytest.raises(ValueError, match=r"images of \d+ sizes in a batch"):
        list(make_dataloader(data, 4))
    assert len(list(make_dataloader(data, 1))) == 14


class Shards:
    """Samples without a length, in shards of every n-th."""

    def __init__(self, samples, num_shards=1):
        self.samples, self.num_shards = samples, num_shards

    def read_shard(self, shard, start=0):
        return iter(self.samples[shard :: self.num_shards][start:])


def make_streams(samples, num_replicas=1, num_shards=1, batch_size=2, **options):
    """Return the streams of all processes."""
    arguments = (Shards(samples, num_shards), make_training_transform(samples), batch_size, (32, 32))
    return [ImageStream(*arguments, rank=rank, num_replicas=num_replicas, **options) for rank in range(num_replicas)]


def read_streams(streams, steps, workers=0):
    """Return the first batches of all processes, in the order of their numbers."""
    batches = [islice(make_dataloader(stream, num_workers=workers), steps) for stream in streams]
    return [batch for step in zip(*batches, strict=True) for batch in step]


@pytest.mark.parametrize(
    ("workers", "num_replicas"), [(0, 2), (0, 3), (2, 1), pytest.param(2, 3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("num_shards", [1, 4])
def test_batches_of_a_stream_are_independent_of_processes_and_workers(samples, workers, num_replicas, num_shards):
    expected = read_streams(make_streams(samples, 1, num_shards), 12)
    batches = read_streams(make_streams(samples, num_replicas, num_shards), 12 // num_replicas, workers)
    assert [batch["names"] for batch in batches] == [batch["names"] for batch in expected]
    assert [batch["position"] for batch in batches] == [batch["position"] for batch in expected]
    assert_equal_batches(batches, expected)
    names = [name for batch in expected[: 14 // 2] for name in batch["names"]]
    assert num_shards > 1 or sorted(names) == sorted(sample.name for sample in samples)


@pytest.mark.parametrize(("start", "num_replicas"), [(1, 1), (5, 2), (9, 3)])
def test_stream_continues_with_any_number_of_processes(samples, start, num_replicas):
    expected = read_streams(make_streams(samples, 1, 4), 15)
    positions = {lane: position for lane, _, position in (batch["position"] for batch in expected[:start])}
    streams = make_streams(samples, num_replicas, 4)
    for stream in streams:
        stream.start, stream.positions = start, positions
    assert_equal_batches(read_streams(streams, (15 - start) // num_replicas), expected[start:])


def test_worker_reads_only_its_lanes(labeled_samples):
    class CountedShards(Shards):
        def read_shard(self, shard, start=0):
            read.append(shard)
            return super().read_shard(shard, start)

    read, streams = [], make_streams(labeled_samples, 2, 4)
    for stream in streams:
        stream.samples = CountedShards(labeled_samples, 4)
    shards = []
    for stream in streams:
        list(islice(stream, 2))
        shards.append({*read})
        read.clear()
    assert len(shards[0]) == len(shards[1]) == 2
    assert not shards[0] & shards[1]


@pytest.fixture
def masked_samples(samples):
    """Samples of the same images with masks of four classes and ignored pixels."""
    rng = np.random.default_rng(0)
    return [
        Sample(sample.name, sample.image, mask=Mask(rng.choice([0, 1, 2, 3, 255], (60, 80 + i)).astype(np.uint8)))
        for i, sample in enumerate(samples)
    ]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_of_masks(masked_samples, workers):
    transform = make_transform("image-segmentation", PROCESSOR, training=True)
    sampler = MultiScaleBatchSampler(len(masked_samples), [*SHAPES, BatchShape(64, 32, 1)], seed=1)
    shapes = set()
    for batch in make_dataloader(ImageDataset(masked_samples, transform), sampler, num_workers=workers):
        pixels, labels = batch["pixel_values"], batch["labels"]
        assert labels.shape == (len(pixels), *pixels.shape[2:])
        assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 255}
        shapes.add(tuple(labels.shape))
    assert len(shapes) > 1


@pytest.mark.slow
def test_batches_of_masks_are_independent_of_workers(masked_samples):
    transform = make_transform("image-segmentation", PROCESSOR, training=True)
    batches = [
        list(
            make_dataloader(
                ImageDataset(masked_samples, transform), MultiScaleBatchSampler(14, SHAPES), num_workers=workers
            )
        )
        for workers in (0, 2)
    ]
    for batch, other in zip(*batches, strict=True):
        assert (batch["labels"] == other["labels"]).all()
        assert (batch["pixel_values"] == other["pixel_values"]).all()


def test_evaluation_batches_of_masks(masked_samples):
    transform = make_transform("image-segmentation", PROCESSOR, training=False)
    batches = list(make_dataloader(ImageDataset(masked_samples, transform), 4))
    assert [tuple(batch["labels"].shape) for batch in batches] == [(4, 32, 32)] * 3 + [(2, 32, 32)]


def test_cutmix_leaves_masks_unchanged(masked_samples):
    transform = make_transform("image-segmentation", PROCESSOR, training=True)
    mixed = ImageDataset(masked_samples, transform, make_mix(4, cutmix=1.0))
    specs = next(iter(MultiScaleBatchSampler(14, SHAPES)))
    labels = mixed.__getitems__(specs)["labels"]
    assert (labels == ImageDataset(masked_samples, transform).__getitems__(specs)["labels"]).all()


def test_a_mask_of_another_size_names_the_sample(masked_samples):
    masked_samples[1] = Sample("train/1.jpg", masked_samples[1].image, mask=Mask(np.zeros((10, 10), np.uint8)))
    transform = make_transform("image-segmentation", PROCESSOR, training=True)
    with pytest.raises(UnreadableSampleError, match=r"train/1\.jpg: mask of 10x10 pixels, image of 81x60"):
        ImageDataset(masked_samples, transform)[1]
