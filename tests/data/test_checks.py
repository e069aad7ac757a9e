"""Dataset checks: statistics, problems, and the remaining valid samples."""

import hashlib
import threading
import warnings
from collections import Counter

import numpy as np
import pytest
from dataset_files import make_images, noise_image, orientation_exif, save_noise_images, voc_xml, write_voc_dataset
from hostile_files import unusual_images
from PIL import Image

from mobilevit_hf.data import checks
from mobilevit_hf.data.checks import check_dataset, drop_invalid
from mobilevit_hf.data.images import UnreadableImageError, load_image
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.types import Dataset, Objects, Problem, Sample


def make_classification_dataset(folder, count, **problems):
    """Create a dataset of two splits with `count` images each, and two classes."""
    samples = []
    for i in range(2 * count):
        noise_image(i).save(folder / f"{i}.png")
        samples.append(Sample(f"{i}.png", folder / f"{i}.png", label=i % 2))
    splits = {"train": samples[:count], "validation": samples[count:]}
    return Dataset("image-classification", ("cat", "dog"), splits, "imagefolder", **problems)


def make_detection_dataset(folder, *objects, size=(100, 80)):
    """Create a dataset of one split, with an image for each list of (x1, y1, x2, y2, label)."""
    samples = []
    for i, rows in enumerate(objects):
        noise_image(i, *size).save(folder / f"{i}.png")
        boxes = Objects.from_lists([row[:4] for row in rows], [row[4] for row in rows])
        samples.append(Sample(f"{i}.png", folder / f"{i}.png", objects=boxes))
    return Dataset("object-detection", ("cat", "dog"), {"train": samples}, "coco")


def patch_decoder(load, monkeypatch):
    monkeypatch.setattr(checks, "load_with_losses", lambda image: (load(image), []))


def report_problems(report):
    return [(problem.name, problem.kind) for problem in report.problems]


def test_report_counts_and_measures_boxes(tmp_path):
    first = [(0, 0, 50, 80, 0), (10, 10, 20, 18, 1)]  # 1/2 and 1/100 of the image
    report = check_dataset(make_detection_dataset(tmp_path, first, [(5, 5, 25, 21, 0)], []))
    assert report.num_samples == {"train": 3}
    assert report.counts == {"train": {"cat": 2, "dog": 1}}
    assert report.boxes_per_image == (0, 1, 2)
    assert report.box_sides == pytest.approx((0.1, 0.2, 0.5**0.5))
    assert report.problems == ()


def test_report_uses_upright_sizes(tmp_path):
    noise_image(0, 30, 10).save(tmp_path / "a.jpg", exif=orientation_exif(6))
    objects = Objects.from_lists([[0, 15, 9, 29]], [0])
    samples = [Sample("a.jpg", tmp_path / "a.jpg", objects=objects)]
    report = check_dataset(Dataset("object-detection", ("cat",), {"train": samples}, "coco"))
    assert (report.widths.max, report.heights.max) == (10, 30)
    assert report_problems(report) == []


def test_without_decoding_only_annotations_are_counted(tmp_path, monkeypatch):
    patch_decoder(lambda image: pytest.fail("opened"), monkeypatch)
    report = check_dataset(make_classification_dataset(tmp_path, 4), decode=False)
    assert report.num_samples == {"train": 4, "validation": 4}
    assert report.counts["train"] == {"cat": 2, "dog": 2}
    assert report.widths is None


def test_images_may_be_bytes_or_decoded(tmp_path):
    noise_image(0).save(tmp_path / "0.png")
    images = [(tmp_path / "0.png").read_bytes(), noise_image(1), b"no image", b""]
    samples = [Sample(f"train[{i}]", image, label=0) for i, image in enumerate(images)]
    report = check_dataset(Dataset("image-classification", ("cat",), {"train": samples}, "datasets"))
    assert report.widths == (24, 24, 24)
    assert report_problems(report) == [("train[2]", "unreadable image"), ("train[3]", "unreadable image")]


def test_empty_class_has_no_imbalance(tmp_path):
    dataset = make_classification_dataset(tmp_path, 4)
    dataset.classes = ("cat", "dog", "owl")
    report = check_dataset(dataset)
    assert report.imbalance is None
    assert report.counts["train"]["owl"] == 0


def test_truncated_files_are_unreadable(tmp_path):
    """The header of the files is intact; the last tenth is missing."""
    dataset = make_classification_dataset(tmp_path, 4)
    for suffix in ("jpg", "png", "bmp", "gif", "tif"):
        path = tmp_path / f"cut.{suffix}"
        noise_image(99, 64, 64).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 9 // 10])
        with Image.open(path) as image:
            assert image.size == (64, 64)
        dataset.splits["train"].append(Sample(path.name, path, label=0))
    report = check_dataset(dataset)
    assert report_problems(report) == [(f"cut.{s}", "unreadable image") for s in ("jpg", "png", "bmp", "gif", "tif")]
    assert report.num_samples == {"train": 4, "validation": 4}


def test_equal_pixels_in_two_splits_are_reported(tmp_path):
    """Pixels are compared, not files: copies, other formats and EXIF rotation are found."""
    folders = [f"{split}/{name}" for split in ("train", "validation", "test") for name in ("cat", "dog")]
    save_noise_images(tmp_path, [f"{folder}/{i}.png" for folder in folders for i in range(3)])
    original = tmp_path / "test/cat/0.png"
    (tmp_path / "train/dog/copy.png").write_bytes(original.read_bytes())
    image = Image.open(original)
    image.save(tmp_path / "train/cat/other format.bmp")
    rotated = image.transpose(Image.Transpose.ROTATE_180)
    rotated.save(tmp_path / "validation/cat/rotated.png", exif=orientation_exif(3))
    image.putpixel((0, 0), (1, 2, 3))
    image.save(tmp_path / "train/cat/one other pixel.png")
    for split, size in (("train", (8, 2)), ("test", (2, 8))):
        Image.new("RGB", size).save(tmp_path / split / "cat/black.png")  # equal bytes in another shape
    (tmp_path / "train/cat/duplicate.png").write_bytes((tmp_path / "train/cat/1.png").read_bytes())  # in one split
    report = check_dataset(load_dataset(tmp_path))
    assert report.problem_counts == {"same image in two splits": 3, "same image in two classes": 1}
    duplicates = [problem for problem in report.problems if problem.kind == "same image in two splits"]
    assert {problem.name: problem.reason for problem in duplicates} == {
        "train/dog/copy.png": "equal to validation: validation/cat/rotated.png; their classes differ: dog and cat",
        "train/cat/other format.bmp": "equal to validation: validation/cat/rotated.png",
        "validation/cat/rotated.png": "equal to test: test/cat/0.png",
    }


def test_equal_images_of_two_classes_are_reported_and_used(tmp_path):
    folders = [f"{split}/{name}" for split in ("train", "validation") for name in ("cat", "dog", "owl")]
    save_noise_images(tmp_path, [f"{folder}/{i}.png" for folder in folders for i in range(3)])
    image = Image.open(tmp_path / "train/cat/1.png")
    image.save(tmp_path / "train/dog/other format.bmp")
    image.save(tmp_path / "train/cat/same class.png")
    dataset = load_dataset(tmp_path)
    report = check_dataset(dataset)
    assert report.problems == (
        Problem(
            "train/dog/other format.bmp",
            "same image in two classes",
            "its class is dog; equal to train/cat/1.png, whose class is cat",
        ),
    )
    assert report.invalid_fraction == 0
    assert len(drop_invalid(dataset, report).splits["train"]) == 11


def test_equal_images_with_other_objects_are_reported(tmp_path):
    dataset = make_detection_dataset(tmp_path, [(1, 1, 9, 9, 0)], [(1, 1, 9, 9, 1)], [(5, 5, 9, 9, 0)], [])
    for i in (1, 2, 3):
        (tmp_path / f"{i}.png").write_bytes((tmp_path / "0.png").read_bytes())
    reasons = {problem.name: problem.reason for problem in check_dataset(dataset).problems}
    assert reasons == {
        "1.png": "its class is dog; equal to 0.png, whose class is cat",
        "3.png": "its class is none; equal to 0.png, whose class is cat",
    }


def test_images_of_two_classes_that_look_alike_are_noted(tmp_path):
    for i, image in enumerate(make_images(8)):
        path = tmp_path / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    Image.open(tmp_path / "cat/0.png").save(tmp_path / "dog/copy.jpg", quality=60)
    report = check_dataset(load_dataset(tmp_path, validation_fraction=0))
    assert report.problems == ()
    (note,) = (note for note in report.notes if "look alike" in note)
    assert note.endswith("different classes: 1, such as cat/0.png (cat) and dog/copy.jpg (dog).")


def test_losses_of_decoding_are_counted(tmp_path):
    dataset = make_classification_dataset(tmp_path, 4)
    for name in ("rgba.png", "transparent.gif", "16 bit.png", "cmyk.jpg", "animated.gif", "photo.HEIC"):
        (tmp_path / name).write_bytes(unusual_images(np.random.default_rng(0))[name])
        dataset.splits["train"].append(Sample(name, tmp_path / name, label=0))
    report = check_dataset(dataset)
    assert report.problems == ()
    counts = {note.split()[0]: note.split(". To avoid it")[0].split(" in ")[-1] for note in report.notes}
    assert counts == {
        "Transparency": "2 of 14 images, such as rgba.png, transparent.gif",
        "Pixels": "1 of 14 images, such as 16 bit.png",
        "Only": "1 of 14 images, such as animated.gif",
        "CMYK": "1 of 14 images, such as cmyk.jpg",
    }


def test_invalid_boxes_are_reported_and_dropped(tmp_path):
    valid = (10, 10, 20, 20, 1)
    rows = {
        "box without area": [(10, 10, 10, 20, 0), (10, 30, 20, 20, 0), (5, 5, float("nan"), 9, 0)],
        "box outside the image": [(-9, 0, 5, 5, 0), (90, 70, 101.5, 80, 0), (0, 0, 50, 90, 0), (200, 0, 300, 9, 0)],
        "unknown class": [(1, 1, 5, 5, 2), (1, 1, 5, 5, -1)],
    }
    for kind, invalid in rows.items():
        mixed, tolerated = [invalid[0], valid, *invalid[1:]], [(-0.6, 0, 100.8, 80, 0)]
        dataset = make_detection_dataset(tmp_path, [valid], mixed, invalid, [], tolerated)
        report = check_dataset(dataset)
        assert report_problems(report) == [("1.png", kind)] * len(invalid) + [("2.png", kind)] * len(invalid)
        assert report.counts == {"train": {"cat": 1, "dog": 2}}
        kept = drop_invalid(dataset, report, max_bad=0.4).splits["train"]
        assert [sample.name for sample in kept] == ["0.png", "1.png", "3.png", "4.png"]
        assert [len(sample.objects.boxes) for sample in kept] == [1, 1, 0, 1]
        assert kept[1].objects.boxes.tolist() == [[10, 10, 20, 20]]
        assert kept[1].objects.labels.tolist() == [1]
        assert kept[1].objects.areas.tolist() == [100]
        assert kept[-1].name == "4.png"
        assert [sample.name for sample in kept[1:3]] == ["1.png", "3.png"]


def test_unknown_labels_are_reported(tmp_path):
    dataset = make_classification_dataset(tmp_path, 2)
    for label in (-1, 2, None):
        dataset.splits["train"].append(Sample(f"{label}.png", noise_image(7), label=label))
    assert report_problems(check_dataset(dataset, decode=False)) == [
        (f"{label}.png", "unknown class") for label in (-1, 2, None)
    ]


def test_report_includes_problems_of_reading(tmp_path):
    """Of 9 images, one was skipped while reading, and two can't be decoded, one of which has two problems."""
    problems = [Problem("gone.png", "missing image", "no such file"), Problem("0.png", "empty label file", "empty")]
    dataset = make_classification_dataset(tmp_path, 4, problems=problems, notes=["a note"])
    (tmp_path / "0.png").write_text("")
    (tmp_path / "1.png").write_text("")
    report = check_dataset(dataset)
    assert report.invalid_fraction == pytest.approx(3 / 9)
    assert report.problem_counts == {"unreadable image": 2, "missing image": 1, "empty label file": 1}
    assert next(iter(report.problem_counts)) == "unreadable image"
    assert report.problems[:2] == tuple(problems)
    assert report.notes == ("a note",)


def test_drop_invalid_raises_above_max_bad(tmp_path):
    dataset = make_classification_dataset(tmp_path, 20)
    for i in (3, 8):
        (tmp_path / f"{i}.png").write_text("no image")
    report = check_dataset(dataset)
    assert report.invalid_fraction == 0.05
    kept = drop_invalid(dataset, report)
    assert [s.name for s in kept.splits["train"]] == [f"{i}.png" for i in range(20) if i not in (3, 8)]
    assert kept.splits["validation"] is dataset.splits["validation"]
    assert [len(split) for split in dataset.splits.values()] == [20, 20]

    for i in range(10, 20):
        (tmp_path / f"{i}.png").write_text("no image")
    report = check_dataset(dataset)
    with pytest.raises(ValueError) as error:
        drop_invalid(dataset, report)
    message = str(error.value)
    assert "got 30.0% invalid samples, expected at most 5.0%" in message
    for i in (3, 8, 10, 11, 12):
        assert f"{i}.png: unreadable image (not an image" in message
    assert "13.png" not in message
    assert "and 7 more" in message
    assert len(drop_invalid(dataset, report, max_bad=0.3).splits["train"]) == 8


def test_drop_invalid_raises_for_an_empty_split(tmp_path):
    dataset = make_classification_dataset(tmp_path, 2)
    for sample in dataset.splits["validation"]:
        sample.image.write_text("no image")
    with pytest.raises(ValueError, match="split validation: got no valid sample"):
        drop_invalid(dataset, check_dataset(dataset), max_bad=1)


def test_equal_splits_leave_no_training_image(tmp_path):
    dataset = make_classification_dataset(tmp_path, 2)
    dataset.splits["validation"] = dataset.splits["train"]
    with pytest.raises(ValueError, match="split train: got no valid sample but 2 images that another split contains"):
        drop_invalid(dataset, check_dataset(dataset))


def test_duplicate_stays_in_the_later_split(tmp_path):
    dataset = make_classification_dataset(tmp_path, 3)
    dataset.splits["test"] = [dataset.splits["train"][0], dataset.splits["validation"][1]]
    report = check_dataset(dataset)
    assert report.invalid_fraction == 0
    kept = drop_invalid(dataset, report, max_bad=0).splits
    assert [sample.name for sample in kept["train"]] == ["1.png", "2.png"]
    assert [sample.name for sample in kept["validation"]] == ["3.png", "5.png"]
    assert [sample.name for sample in kept["test"]] == ["0.png", "4.png"]


def test_images_are_decoded_in_parallel_and_reported_in_order(tmp_path, monkeypatch):
    """Decoding the first image waits for the third."""
    dataset = make_classification_dataset(tmp_path, 6)
    third = threading.Event()

    def load(path):
        if path.name == "2.png":
            third.set()
        assert path.name != "0.png" or third.wait(10)
        raise UnreadableImageError(path.name)

    patch_decoder(load, monkeypatch)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 3)
    assert [problem.name for problem in check_dataset(dataset).problems] == [f"{i}.png" for i in range(12)]


def test_samples_are_created_lazily(monkeypatch):
    """A dataset whose samples contain images would otherwise exhaust the memory."""
    counts, max_open, lock = Counter(), 0, threading.Lock()

    class Rows(list):
        def __iter__(self):
            nonlocal max_open
            for i in range(300):
                with lock:
                    counts["open"] += 1
                    max_open = max(max_open, counts["open"])
                yield Sample(f"train[{i}]", i, label=0)

    def load(image):
        with lock:
            counts["open"] -= 1
        return noise_image(image)

    patch_decoder(load, monkeypatch)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 2)
    report = check_dataset(Dataset("image-classification", ("cat",), {"train": Rows()}, "datasets"))
    assert report.num_samples == {"train": 300}
    assert 1 < max_open < 20


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    dataset = make_classification_dataset(tmp_path, 8)
    inside = threading.Semaphore(1)

    def load(image):
        assert inside.acquire(blocking=False), "two at once"
        image = load_image(image)
        inside.release()
        return image

    patch_decoder(load, monkeypatch)
    monkeypatch.setattr(checks, "LARGE_PIXELS", 24 * 16 - 1)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 8)
    assert check_dataset(dataset).num_samples == {"train": 8, "validation": 8}


def test_first_samples_of_a_stream_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "STREAM_SAMPLES", 5)
    dataset = make_classification_dataset(tmp_path, 3)
    (tmp_path / "1.png").write_text("no image")
    samples = dataset.splits["train"]

    class Stream:
        def __iter__(self):
            while True:
                yield from samples

    dataset.splits["train"] = Stream()
    calls = []
    report = check_dataset(dataset, progress=lambda *numbers: calls.append(numbers))
    assert report_problems(report) == [("1.png", "unreadable image")] * 2
    assert report.num_samples == {"train": 3, "validation": 3}
    assert any("train" in note and "5" in note for note in report.notes)
    assert calls == [(done, None) for done in range(1, 9)]
    assert drop_invalid(dataset, report, max_bad=0.5).splits["train"] is dataset.splits["train"]


def test_progress_is_reported_and_warning_filters_are_restored(tmp_path):
    calls = []
    before = list(warnings.filters)
    check_dataset(make_classification_dataset(tmp_path, 10), progress=lambda *numbers: calls.append(numbers))
    assert calls == [(done, 20) for done in range(1, 21)]
    assert warnings.filters == before


def test_box_outside_of_the_decoded_image_is_reported(tmp_path):
    """The annotated size differs from the size of the image."""
    boxes = {"a": ("cat", 1, 1, 20, 20), "b": ("cat", 100, 1, 190, 20)}
    write_voc_dataset(tmp_path, {name: voc_xml(box, size=(200, 150)) for name, box in boxes.items()})
    (problem,) = check_dataset(load_dataset(tmp_path)).problems
    assert (problem.name, problem.kind) == ("JPEGImages/b.jpg", "box outside the image")
    assert problem.reason == "box (100, 1, 190, 20), label 0, image 40x30"


def test_report_of_bccd(reference_data):
    report = check_dataset(load_dataset(reference_data / "data/bccd"))
    assert {problem.name for problem in report.problems} == {f"JPEGImages/BloodImage_00{n}.jpg" for n in (338, 343)}
    assert report.problem_counts == {"box without area": 2}
    assert report.num_samples == {"train": 205, "validation": 87, "test": 72}


@pytest.mark.slow
def test_report_of_clothing(reference_data):
    folder = reference_data / "data/clothing"
    report = check_dataset(load_dataset(folder))
    assert not report.problems
    for split, counts in report.counts.items():
        class_folders = [path for path in (folder / split).iterdir() if path.is_dir()]
        assert counts == {path.name: len(list(path.iterdir())) for path in class_folders}
    digests = [hashlib.md5(path.read_bytes()).digest() for path in folder.rglob("*.jpg")]
    assert len(digests) == sum(report.num_samples.values())
    assert len(set(digests)) == len(digests)
