"""Loaders: the same batches whatever the number of workers, other augmentation every epoch, clear errors, streams."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForObjectDetection, MobileViTImageProcessor

from mobilevit_hf import MobileViTSSDLiteImageProcessor
from mobilevit_hf.data.dataloader import ImageDataset, ImageStream, UnreadableSampleError, make_loader
from mobilevit_hf.data.sampler import BatchShape, TrainingBatches
from mobilevit_hf.data.transforms import make_mix, make_transform
from mobilevit_hf.data.types import Objects, Sample

PROCESSOR = MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
DETECTOR_PROCESSOR = MobileViTSSDLiteImageProcessor(size={"height": 64, "width": 64})
SHAPES = [BatchShape(32, 32, 4), BatchShape(48, 40, 3)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Fourteen images of noise, with a class and boxes each; the third has none."""
    folder, rng, found = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(14):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels).resize((80 + number, 60), Image.Resampling.NEAREST).save(path)
        boxes = [] if number == 2 else [[5, 5, 40 + number, 50], [30, 10, 70, 45]][: 1 + number % 2]
        objects = Objects.from_lists(boxes, [number % 4] * len(boxes))
        found.append(Sample(f"train/{path.name}", str(path), label=number % 4, objects=objects))
    return found


@pytest.fixture(scope="module")
def classes(samples):
    return [Sample(sample.name, sample.image, label=sample.label) for sample in samples]


def training(samples, **options):
    task, processor = ("image-classification", PROCESSOR)
    if samples[0].objects is not None:
        task, processor = ("object-detection", DETECTOR_PROCESSOR)
    return make_transform(task, processor, training=True, **options)


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch["pixel_values"], other["pixel_values"])
        if isinstance(batch["labels"], torch.Tensor):
            assert torch.equal(batch["labels"], other["labels"])
            continue
        for label, other_label in zip(batch["labels"], other["labels"], strict=True):
            assert label.keys() == other_label.keys()
            assert all(torch.equal(label[name], other_label[name]) for name in label)


@pytest.mark.parametrize("task", ["classes", "samples"])
def test_batches_do_not_depend_on_workers_or_on_what_was_before(task, request):
    samples = request.getfixturevalue(task)
    mix = make_mix(4, mixup=0.2, cutmix=1.0) if task == "classes" else None
    data = ImageDataset(samples, training(samples), mix)
    epochs = {}
    for workers in (0, 2):
        batches = TrainingBatches(len(samples), SHAPES, seed=3)
        loader = make_loader(data, batches, num_workers=workers)
        for epoch in (0, 1):
            batches.set_epoch(epoch)
            assert len(loader) == len(batches)
            torch.manual_seed(workers)
            epochs[workers, epoch] = list(loader)
        batches.set_epoch(1, start_batch=2)
        assert_equal(list(loader), epochs[workers, 1][2:])
    for epoch in (0, 1):
        assert_equal(epochs[0, epoch], epochs[2, epoch])
    first, second = epochs[0, 0][0]["pixel_values"], epochs[0, 1][0]["pixel_values"]
    assert first.shape != second.shape or not torch.equal(first, second)


def test_each_draw_is_augmented_differently(classes):
    data = ImageDataset(classes, training(classes))
    batches = TrainingBatches(1, [BatchShape(32, 32, 1)])
    drawn = []
    for epoch in range(5):
        batches.set_epoch(epoch)
        drawn += [batch["pixel_values"] for batch in make_loader(data, batches)]
    assert len({pixels.numpy().tobytes() for pixels in drawn}) == 5


def test_loading_leaves_the_training_s_chance_alone(classes):
    data = ImageDataset(classes, training(classes), make_mix(4, mixup=0.2))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(make_loader(data, TrainingBatches(len(classes), SHAPES)))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_all_in_order(samples, workers):
    data = ImageDataset(samples, make_transform("object-detection", DETECTOR_PROCESSOR, training=False))
    batches = list(make_loader(data, 4, num_workers=workers))
    assert [len(batch["pixel_values"]) for batch in batches] == [4, 4, 4, 2]
    labels = [label for batch in batches for label in batch["labels"]]
    assert [int(label["image_id"]) for label in labels] == list(range(14))
    for label, sample in zip(labels, samples, strict=True):
        width, height = 80 + int(label["image_id"]), 60
        assert label["orig_size"].tolist() == [height, width]
        # What a user's call gives.
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


def test_a_detector_trains_on_the_batches(samples, detector):
    model = AutoModelForObjectDetection.from_pretrained(detector).train()
    loader = make_loader(
        ImageDataset(samples, training(samples)), TrainingBatches(14, [BatchShape(64, 64, 7)]), num_workers=1
    )
    for batch in loader:
        model(**batch).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.slow
def test_a_program_ends_whoever_still_holds_its_loader(samples, run_python):
    paths = [sample.image for sample in samples]
    output = run_python(f"""
        import signal
        from mobilevit_hf.data.sampler import BatchShape, TrainingBatches
        from mobilevit_hf.data.types import Sample
        from mobilevit_hf.data.dataloader import ImageDataset, make_loader
        from mobilevit_hf.data.transforms import make_transform
        from transformers import MobileViTImageProcessor

        signal.alarm(60)  # else a worker that does not end would be waited for without end
        samples = [Sample(path, path, label=0) for path in {paths!r}]
        transform = make_transform("image-classification", MobileViTImageProcessor(), training=True)
        data, batches = ImageDataset(samples, transform), TrainingBatches(14, [BatchShape(32, 32, 7)])
        loader = make_loader(data, batches, num_workers=1)
        print(len(next(iter(loader))["labels"]))
        """)
    assert output == "7\n"


def test_mixed_labels_are_soft(classes):
    data = ImageDataset(classes, training(classes), make_mix(4, cutmix=1.0))
    (batch, *_) = make_loader(data, TrainingBatches(14, SHAPES[:1]))
    assert batch["labels"].shape == (4, 4)
    torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(4))
    assert F.cross_entropy(torch.zeros(4, 4), batch["labels"]).item() == pytest.approx(np.log(4))


def test_labels_travel_between_processes_by_value(samples):
    data = ImageDataset(samples, training(samples))
    batches = TrainingBatches(14, [BatchShape(32, 32, 14)])
    labels = next(iter(make_loader(data, batches)))["labels"]
    (received,) = make_loader(data, batches, num_workers=1)
    assert isinstance(received["labels"], list)
    assert not any(value.is_shared() for label in received["labels"] for value in label.values())
    for label, other in zip(labels, pickle.loads(pickle.dumps(labels)), strict=True):
        assert all(torch.equal(label[name], other[name]) and label[name].dtype == other[name].dtype for name in label)


@pytest.mark.parametrize(
    ("damage", "workers"),
    [
        ("gone", 0),
        ("truncated", 0),
        ("no image", 0),
        pytest.param("truncated", 1, marks=pytest.mark.slow),  # DataLoader waits seconds for a worker that failed
    ],
)
def test_a_image_that_can_t_be_decoded_is_named(classes, workers, damage, tmp_path):
    path = tmp_path / "bad.jpg"
    data = Path(classes[0].image).read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"text")
    if damage == "gone":
        path.unlink()
    bad = [*classes[:5], Sample("train/bad.jpg", str(path), label=0)]
    for transform, batches in (
        (training(classes), TrainingBatches(6, SHAPES[:1])),
        (make_transform("image-classification", PROCESSOR, training=False), 2),
    ):
        loader = make_loader(ImageDataset(bad, transform), batches, num_workers=workers)
        with pytest.raises(UnreadableSampleError, match=r"\Atrain/bad\.jpg: .*check-data.*\Z") as caught:
            list(loader)
        assert "Traceback" not in str(caught.value)


def test_sizes_that_differ_are_refused(classes):
    processor = MobileViTImageProcessor(size={"shortest_edge": 40}, do_center_crop=False)
    data = ImageDataset(classes, make_transform("image-classification", processor, training=False))
    with pytest.raises(ValueError, match=r"images of \d+ sizes in a batch"):
        list(make_loader(data, 4))
    assert len(list(make_loader(data, 1))) == 14


class Stream:
    """Samples without a length."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def stream_of(samples, batch_size=2, size=(32, 32), **options):
    return ImageStream(Stream(samples), training(samples), batch_size, size, **options)


def image_ids(batches):
    return [int(label["image_id"]) for batch in batches for label in batch["labels"]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("num_replicas", [1, 3])
def test_processes_and_workers_share_a_stream(samples, workers, num_replicas):
    shares = [stream_of(samples, 1, rank=rank, num_replicas=num_replicas) for rank in range(num_replicas)]
    batches = [list(make_loader(share, num_workers=workers)) for share in shares]
    in_step = num_replicas * max(1, workers)
    assert {len(own) for own in batches} == {14 // in_step * max(1, workers)}
    ids = [index for own in batches for index in image_ids(own)]
    assert len(set(ids)) == len(ids) == 14 // in_step * in_step


def test_streams_are_shuffled_in_a_buffer(samples):
    stream = stream_of(samples, buffer_size=4)
    epochs = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        epochs.append(list(make_loader(stream)))
    first, second = map(image_ids, epochs)
    assert sorted(first) == sorted(second) == list(range(14))
    assert list(range(14)) != first != second
    assert all(index <= place + 3 for place, index in enumerate(first))
    stream.set_epoch(0)
    assert_equal(list(make_loader(stream)), epochs[0])
    with_workers = make_loader(stream, num_workers=2)
    ids = [tuple(image_ids(with_workers)) for stream.epoch in (0, 1)]  # new workers know the epoch
    assert ids[0] != ids[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_are_evaluated_whole(classes, workers):
    transform = make_transform("image-classification", PROCESSOR, training=False)
    batches = list(make_loader(ImageStream(Stream(classes), transform, 4), num_workers=workers))
    labels = torch.cat([batch["labels"] for batch in batches])
    assert sorted(labels.tolist()) == sorted(sample.label for sample in classes)
    if workers == 0:
        assert labels.tolist() == [sample.label for sample in classes]


def test_a_stream_too_short(classes):
    with pytest.raises(
        ValueError, match=r"got a stream of 14 samples, expected at least 20: a batch of 10 for each of 2"
    ):
        list(make_loader(stream_of(classes, 10, num_replicas=2)))
