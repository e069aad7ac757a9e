"""The check of a dataset: what it counts, what it finds bad and leaves out, and how it tells."""

import hashlib
import json
import threading
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_hf.data import checks
from mobilevit_hf.data.checks import check_dataset, drop_bad
from mobilevit_hf.data.images import UnreadableImageError, load_image
from mobilevit_hf.data.types import Dataset, Objects, Problem, Sample
from mobilevit_hf.visualization import class_colors, draw_image_grid


def noise(seed, width=24, height=16):
    """An image unlike all others."""
    values = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def classification(folder, count, **problems):
    """A dataset of that many images of two classes in each of two splits."""
    samples = []
    for i in range(2 * count):
        noise(i).save(folder / f"{i}.png")
        samples.append(Sample(f"{i}.png", folder / f"{i}.png", label=i % 2))
    splits = {"train": samples[:count], "validation": samples[count:]}
    return Dataset("image-classification", ("cat", "dog"), splits, "imagefolder", **problems)


def detection(folder, *objects, size=(100, 80)):
    """A dataset of one split, with an image for each list of (x1, y1, x2, y2, label)."""
    samples = []
    for i, rows in enumerate(objects):
        noise(i, *size).save(folder / f"{i}.png")
        found = Objects.from_lists([row[:4] for row in rows], [row[4] for row in rows])
        samples.append(Sample(f"{i}.png", folder / f"{i}.png", objects=found))
    return Dataset("object-detection", ("cat", "dog"), {"train": samples}, "coco")


def decode_with(load, monkeypatch):
    monkeypatch.setattr(checks, "LazyImage", lambda image: SimpleNamespace(load=lambda: load(image)))


def found(report):
    return [(problem.name, problem.kind) for problem in report.problems]


def fill(folder, names):
    """Images, all different and at most 40x64 pixels, at these paths below a folder."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(i, 20 + i, 64 - i).save(folder / name)


@pytest.fixture
def photos(tmp_path):
    """Class folders in three splits: 6 + 3 images to train on, 3 + 3 for each of the others."""
    folder = tmp_path / "photos"
    names = [f"train/cat/{i}.png" for i in range(6)] + [f"train/dog/{i}.png" for i in range(3)]
    names += [f"{split}/{name}/{i}.png" for split in ("validation", "test") for name in ("cat", "dog") for i in (0, 1)]
    fill(folder, names)
    return folder


# --- what is there ---------------------------------------------------------------------------------------------------


def test_a_clean_folder_is_counted(mobilevit, photos):
    code, out, err = mobilevit("check-data", photos, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["task"], report["format"]) == ("image-classification", "imagefolder")
    assert report["splits"] == {
        "train": {"samples": 9, "classes": {"cat": 6, "dog": 3}},
        "validation": {"samples": 4, "classes": {"cat": 2, "dog": 2}},
        "test": {"samples": 4, "classes": {"cat": 2, "dog": 2}},
    }
    assert report["imbalance"] == 2
    assert report["widths"] == {"min": 20, "median": 28, "max": 36}
    assert report["heights"] == {"min": 48, "median": 56, "max": 64}
    assert report["bad"] == []
    assert report["bad_by_kind"] == {}


def test_the_tables_say_the_same(mobilevit, photos):
    (photos / "train/dog/bad.png").write_text("no image")
    code, out, _ = mobilevit("check-data", photos)
    rows = [line.split() for line in out.splitlines()]
    assert code == 1
    assert ["class", "train", "validation", "test"] in rows
    assert ["cat", "6", "2", "2"] in rows
    assert ["images", "9", "4", "4"] in rows
    assert "largest class / smallest: 2.0" in out
    assert "width: 20 to 36 px (median 28), height: 48 to 64 px (median 56)" in out
    assert "unreadable image: 1" in out
    assert "train/dog/bad.png: not an image" in out
    assert "5.6% of the samples are bad." in out  # 1 of 18
    assert "Training would stop: more than 5.0% are bad." in out
    assert "Training would stop" not in mobilevit("check-data", photos, "--max-bad", "0.06")[1]


def test_boxes_are_counted_and_measured(tmp_path):
    first = [(0, 0, 50, 80, 0), (10, 10, 20, 18, 1)]  # a half and a hundredth of the image
    report = check_dataset(detection(tmp_path, first, [(5, 5, 25, 21, 0)], []))
    assert report.samples == {"train": 3}
    assert report.counts == {"train": {"cat": 2, "dog": 1}}
    assert report.boxes_per_image == (0, 1, 2)
    assert report.box_sides == pytest.approx((0.1, 0.2, 0.5**0.5))
    assert report.problems == ()


def test_upright_sizes_count(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(0, 30, 10).save(tmp_path / "a.jpg", exif=exif)
    objects = Objects.from_lists([[0, 15, 9, 29]], [0])
    samples = [Sample("a.jpg", tmp_path / "a.jpg", objects=objects)]
    report = check_dataset(Dataset("object-detection", ("cat",), {"train": samples}, "coco"))
    assert (report.widths.max, report.heights.max) == (10, 30)
    assert found(report) == []


def test_images_stay_closed_if_asked(tmp_path, monkeypatch):
    decode_with(lambda image: pytest.fail("opened"), monkeypatch)
    report = check_dataset(classification(tmp_path, 4), decode=False)
    assert report.samples == {"train": 4, "validation": 4}
    assert report.counts["train"] == {"cat": 2, "dog": 2}
    assert report.widths is None


def test_images_need_not_be_files(tmp_path):
    """They may be the bytes of a file or decoded, as in a dataset of the Hub."""
    noise(0).save(tmp_path / "0.png")
    images = [(tmp_path / "0.png").read_bytes(), noise(1), b"no image", b""]
    samples = [Sample(f"train[{i}]", image, label=0) for i, image in enumerate(images)]
    report = check_dataset(Dataset("image-classification", ("cat",), {"train": samples}, "datasets"))
    assert report.widths == (24, 24, 24)
    assert found(report) == [("train[2]", "unreadable image"), ("train[3]", "unreadable image")]


def test_a_class_without_samples_has_no_imbalance(tmp_path):
    dataset = classification(tmp_path, 4)
    dataset.classes = ("cat", "dog", "owl")
    report = check_dataset(dataset)
    assert report.imbalance is None
    assert report.counts["train"]["owl"] == 0


# --- what is bad -----------------------------------------------------------------------------------------------------


def test_what_only_a_full_decode_finds(tmp_path):
    """Of each format a file that loses its last tenth, whose header is whole."""
    dataset = classification(tmp_path, 4)
    for suffix in ("jpg", "png", "bmp", "gif", "tif"):
        path = tmp_path / f"cut.{suffix}"
        noise(99, 64, 64).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 9 // 10])
        with Image.open(path) as image:
            assert image.size == (64, 64)
        dataset.splits["train"].append(Sample(path.name, path, label=0))
    report = check_dataset(dataset)
    assert found(report) == [(f"cut.{s}", "unreadable image") for s in ("jpg", "png", "bmp", "gif", "tif")]
    assert report.samples == {"train": 4, "validation": 4}


def test_the_same_image_in_two_splits(mobilevit, photos):
    """Copied, saved anew in another format, or turned by EXIF: equal pixels. One other pixel makes another image."""
    original = photos / "test/cat/0.png"
    (photos / "train/dog/copy.png").write_bytes(original.read_bytes())
    image = Image.open(original)
    image.save(photos / "train/cat/saved anew.bmp")
    exif = Image.Exif()
    exif[0x0112] = 3
    image.transpose(Image.Transpose.ROTATE_180).save(photos / "validation/cat/turned.png", exif=exif)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(photos / "train/cat/other.png")
    for split, size in (("train", (8, 2)), ("test", (2, 8))):
        Image.new("RGB", size).save(photos / split / "cat/black.png")  # equal bytes, unequal images
    (photos / "train/cat/twice.png").write_bytes((photos / "train/cat/1.png").read_bytes())  # harmless in one split
    code, out, _ = mobilevit("check-data", photos, "--json")
    assert code == 1
    report = json.loads(out)
    assert report["bad_by_kind"] == {"same image in two splits": 3}
    assert {problem["name"]: problem["reason"] for problem in report["bad"]} == {
        "train/dog/copy.png": "equal to validation: validation/cat/turned.png",
        "train/cat/saved anew.bmp": "equal to validation: validation/cat/turned.png",
        "validation/cat/turned.png": "equal to test: test/cat/0.png",
    }


def test_boxes_that_cannot_be(tmp_path):
    good = (10, 10, 20, 20, 1)
    rows = {
        "box without area": [(10, 10, 10, 20, 0), (10, 30, 20, 20, 0), (5, 5, float("nan"), 9, 0)],
        "box outside the image": [(-9, 0, 5, 5, 0), (90, 70, 101.5, 80, 0), (0, 0, 50, 90, 0), (200, 0, 300, 9, 0)],
        "unknown class": [(1, 1, 5, 5, 2), (1, 1, 5, 5, -1)],
    }
    for kind, bad in rows.items():
        dataset = detection(tmp_path, [good], [bad[0], good, *bad[1:]], bad, [], [(-0.6, 0, 100.8, 80, 0)])
        report = check_dataset(dataset)
        assert found(report) == [("1.png", kind)] * len(bad) + [("2.png", kind)] * len(bad)
        assert report.counts == {"train": {"cat": 1, "dog": 2}}
        kept = drop_bad(dataset, report, max_bad=0.4).splits["train"]
        assert [sample.name for sample in kept] == ["0.png", "1.png", "3.png", "4.png"]
        assert [len(sample.objects.boxes) for sample in kept] == [1, 1, 0, 1]
        assert kept[1].objects.boxes.tolist() == [[10, 10, 20, 20]]
        assert kept[1].objects.labels.tolist() == [1]
        assert kept[1].objects.areas.tolist() == [100]
        assert kept[-1].name == "4.png"
        assert [sample.name for sample in kept[1:3]] == ["1.png", "3.png"]


def test_labels_that_are_no_class(tmp_path):
    dataset = classification(tmp_path, 2)
    for label in (-1, 2, None):
        dataset.splits["train"].append(Sample(f"{label}.png", noise(7), label=label))
    assert found(check_dataset(dataset, decode=False)) == [
        (f"{label}.png", "unknown class") for label in (-1, 2, None)
    ]


def test_what_reading_found_counts_too(tmp_path):
    """Of 10 images one that reading left out and two that are here; one of these has two problems."""
    problems = [Problem("gone.png", "missing image", "no such file"), Problem("0.png", "empty label file", "empty")]
    dataset = classification(tmp_path, 4, problems=problems, notes=["a note"])
    (tmp_path / "0.png").write_text("")
    (tmp_path / "1.png").write_text("")
    report = check_dataset(dataset)
    assert report.bad_share == pytest.approx(3 / 9)
    assert report.problem_counts == {"unreadable image": 2, "missing image": 1, "empty label file": 1}
    assert next(iter(report.problem_counts)) == "unreadable image"
    assert report.problems[:2] == tuple(problems)
    assert report.notes == ("a note",)


# --- what is left ----------------------------------------------------------------------------------------------------


def test_training_stops_past_the_share_it_is_given(tmp_path):
    dataset = classification(tmp_path, 20)
    for i in (3, 8):
        (tmp_path / f"{i}.png").write_text("no image")
    report = check_dataset(dataset)
    assert report.bad_share == 0.05
    kept = drop_bad(dataset, report)
    assert [s.name for s in kept.splits["train"]] == [f"{i}.png" for i in range(20) if i not in (3, 8)]
    assert kept.splits["validation"] is dataset.splits["validation"]
    assert [len(split) for split in dataset.splits.values()] == [20, 20]

    for i in range(10, 20):
        (tmp_path / f"{i}.png").write_text("no image")
    report = check_dataset(dataset)
    with pytest.raises(ValueError) as error:
        drop_bad(dataset, report)
    message = str(error.value)
    assert "30.0% of the samples are bad, expected at most 5.0%" in message
    for i in (3, 8, 10, 11, 12):
        assert f"{i}.png: unreadable image (not an image" in message
    assert "13.png" not in message
    assert "and 7 more" in message
    assert len(drop_bad(dataset, report, max_bad=0.3).splits["train"]) == 8


def test_a_split_with_nothing_left(tmp_path):
    dataset = classification(tmp_path, 2)
    for sample in dataset.splits["validation"]:
        sample.image.write_text("no image")
    with pytest.raises(ValueError, match="split validation: got no good sample"):
        drop_bad(dataset, check_dataset(dataset), max_bad=1)


def test_of_a_image_in_two_splits_the_later_split_keeps_it(tmp_path):
    dataset = classification(tmp_path, 3)
    dataset.splits["test"] = [dataset.splits["train"][0], dataset.splits["validation"][1]]
    kept = drop_bad(dataset, check_dataset(dataset), max_bad=0.5).splits
    assert [sample.name for sample in kept["train"]] == ["1.png", "2.png"]
    assert [sample.name for sample in kept["validation"]] == ["3.png", "5.png"]
    assert [sample.name for sample in kept["test"]] == ["0.png", "4.png"]


# --- how it works ----------------------------------------------------------------------------------------------------


def test_several_at_once_and_in_order(tmp_path, monkeypatch):
    """The first image waits for the third, and still comes first."""
    dataset = classification(tmp_path, 6)
    third = threading.Event()

    def load(path):
        if path.name == "2.png":
            third.set()
        assert path.name != "0.png" or third.wait(10)
        raise UnreadableImageError(path.name)

    decode_with(load, monkeypatch)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 3)
    assert [problem.name for problem in check_dataset(dataset).problems] == [f"{i}.png" for i in range(12)]


def test_samples_are_made_when_their_turn_comes(monkeypatch):
    """So a dataset whose samples hold images doesn't fill the memory."""
    counts, most, lock = Counter(), 0, threading.Lock()

    class Rows(list):
        def __iter__(self):
            nonlocal most
            for i in range(300):
                with lock:
                    counts["open"] += 1
                    most = max(most, counts["open"])
                yield Sample(f"train[{i}]", i, label=0)

    def load(image):
        with lock:
            counts["open"] -= 1
        return noise(image)

    decode_with(load, monkeypatch)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 2)
    report = check_dataset(Dataset("image-classification", ("cat",), {"train": Rows()}, "datasets"))
    assert report.samples == {"train": 300}
    assert 1 < most < 20


def test_large_images_come_one_at_a_time(tmp_path, monkeypatch):
    dataset = classification(tmp_path, 8)
    inside = threading.Semaphore(1)

    def load(image):
        assert inside.acquire(blocking=False), "two at once"
        image = load_image(image)
        inside.release()
        return image

    decode_with(load, monkeypatch)
    monkeypatch.setattr(checks, "LARGE_PIXELS", 24 * 16 - 1)
    monkeypatch.setattr(checks.os, "cpu_count", lambda: 8)
    assert check_dataset(dataset).samples == {"train": 8, "validation": 8}


def test_of_a_stream_the_first_samples_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "STREAM_SAMPLES", 5)
    dataset = classification(tmp_path, 3)
    (tmp_path / "1.png").write_text("no image")
    samples = dataset.splits["train"]

    class Stream:
        def __iter__(self):
            while True:
                yield from samples

    dataset.splits["train"] = Stream()
    calls = []
    report = check_dataset(dataset, progress=lambda *numbers: calls.append(numbers))
    assert found(report) == [("1.png", "unreadable image")] * 2
    assert report.samples == {"train": 3, "validation": 3}
    assert any("train" in note and "5" in note for note in report.notes)
    assert calls == [(done, None) for done in range(1, 9)]
    assert drop_bad(dataset, report, max_bad=0.5).splits["train"] is dataset.splits["train"]


def test_progress_and_warnings(tmp_path):
    calls = []
    before = list(warnings.filters)
    check_dataset(classification(tmp_path, 10), progress=lambda *numbers: calls.append(numbers))
    assert calls == [(done, 20) for done in range(1, 21)]
    assert warnings.filters == before


# --- the command -----------------------------------------------------------------------------------------------------


def write_voc(folder, boxes, stated=(40, 30), actual=(40, 30)):
    for part in ("Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for i, rows in enumerate(boxes):
        noise(i, *actual).save(folder / f"JPEGImages/{i}.jpg")
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for x1, y1, x2, y2, name in rows
        )
        size = f"<size><width>{stated[0]}</width><height>{stated[1]}</height><depth>3</depth></size>"
        (folder / f"Annotations/{i}.xml").write_text(
            f"<annotation><filename>{i}.jpg</filename>{size}{objects}</annotation>"
        )


def test_boxes_through_the_command(mobilevit, tmp_path):
    write_voc(tmp_path / "voc", [[(1, 1, 20, 20, "cat"), (5, 5, 5, 9, "dog")], [(1, 1, 30, 20, "dog")]] * 4)
    code, out, _ = mobilevit("check-data", tmp_path / "voc", "--json")
    report = json.loads(out)
    assert code == 1
    assert (report["task"], report["format"]) == ("object-detection", "voc")
    assert report["bad_by_kind"] == {"box without area": 4}
    assert sum(sum(split["classes"].values()) for split in report["splits"].values()) == 8
    assert report["boxes_per_image"] == {"min": 1, "median": 1, "max": 1}


def test_an_annotation_that_states_another_size(mobilevit, tmp_path):
    write_voc(tmp_path / "voc", [[(1, 1, 20, 20, "cat")], [(100, 1, 190, 20, "cat")]], stated=(200, 150))
    code, out, _ = mobilevit("check-data", tmp_path / "voc")
    assert code == 1
    assert "box outside the image: 1" in out
    assert "1.jpg: box (100, 1, 190, 20), label 0, image 40x30" in out


def test_hostile_names_are_written_out(mobilevit, tmp_path):
    names = ["a[red]b.png", "c\x1b[31m\n.png", ":dog:.png", "-rf.png", "\udcff.png"]
    folder = tmp_path / "[bold]\x1b[2J"
    fill(folder, [f"{kind}/{i}.png" for kind in ("cat", "c[red]\x1b:dog:") for i in range(3)])
    for name in names:
        (folder / "cat" / name).write_text("no image")
    code, out, err = mobilevit("check-data", folder)
    assert code == 1
    assert "\x1b" not in out + err
    for text in ("a[red]b.png", "c\\x1b[31m\\n.png", ":dog:.png", "-rf.png", "\\xff.png", "c[red]\\x1b:dog:"):
        assert text in out
    code, out, _ = mobilevit("check-data", folder, "--json")
    assert {problem["name"] for problem in json.loads(out)["bad"]} == {f"cat/{name}" for name in names}


@pytest.mark.parametrize("arguments", [["{folder}/gone"], ["{folder}", "--data-format", "abacus"], ["{empty}"]])
def test_mistakes_get_one_line(mobilevit, photos, tmp_path, arguments):
    (tmp_path / "empty").mkdir()
    code, out, err = mobilevit("check-data", *(a.format(folder=photos, empty=tmp_path / "empty") for a in arguments))
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")


# --- the sheet -------------------------------------------------------------------------------------------------------


def test_a_sheet_shows_all_classes(mobilevit, tmp_path):
    names = [f"class {i}" for i in range(5)]
    fill(tmp_path / "photos", [f"{name}/{i}.png" for name in names for i in range(4)])
    (tmp_path / "photos/class 0/0.png").write_text("no image")
    file = tmp_path / "some/sheet.png"
    code, out, _ = mobilevit("check-data", tmp_path / "photos", "--sheet", file)
    assert code == 1
    assert str(file) in out
    pixels = np.asarray(Image.open(file))
    for color in class_colors(names).values():
        assert (pixels == color).all(-1).sum() > 500
    assert json.loads(mobilevit("check-data", tmp_path / "photos", "--sheet", file, "--json")[1])["sheet"] == str(
        file.with_name("sheet-2.png")
    )


def test_boxes_on_a_sheet_are_where_they_are_on_the_image():
    image = Image.new("RGB", (200, 100), "white")
    boxes = torch.tensor([[20.0, 10.0, 100.0, 90.0]])
    images = [(image, ["dog"], boxes), (image, [], boxes[:0])]
    sheet = np.asarray(draw_image_grid(images, ["cat", "dog"], side=400, columns=1))
    rows, columns = np.nonzero((sheet == class_colors(["cat", "dog"])["dog"]).all(-1))
    top = 20 + 200  # the padding, and the empty half of the tile
    inside = rows < top + 200  # above the name
    assert abs(rows[inside].min() - (top + 20)) <= 2
    assert abs(rows[inside].max() - (top + 180)) <= 2
    assert abs(columns[inside].min() - (20 + 40)) <= 2
    assert abs(columns[inside].max() - (20 + 200)) <= 2


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (3, 5)])
@pytest.mark.parametrize("name", ["", "two\nlines", "猫", "x" * 300, "\x1b[31m"])
def test_a_sheet_of_odd_images_and_names(size, name):
    image = Image.new("RGB", size, "red")
    boxes = torch.tensor([[0.0, 0.0, *size], [0.0, 0.0, 0.4, 0.4]])
    images = [(image, [name], None), (image, [name, name], boxes), (image, [], boxes[:0])]
    sheet = draw_image_grid(images, [name], side=64, columns=2)
    assert sheet.width == 3 * 3 + 2 * 64
    assert (np.asarray(sheet)[:70] == (255, 0, 0)).all(-1).any()


# --- real data -------------------------------------------------------------------------------------------------------


def test_blood_cells(mobilevit, reference_data):
    report = json.loads(mobilevit("check-data", reference_data / "data/bccd", "--json")[1])
    assert {p["name"] for p in report["bad"]} == {f"JPEGImages/BloodImage_00{n}.jpg" for n in (338, 343)}
    assert report["bad_by_kind"] == {"box without area": 2}
    assert {name: split["samples"] for name, split in report["splits"].items()} == {
        "train": 205,
        "validation": 87,
        "test": 72,
    }


@pytest.mark.slow
def test_garments(mobilevit, reference_data):
    folder = reference_data / "data/clothing"
    code, out, _ = mobilevit("check-data", folder, "--json")
    assert code == 0
    report = json.loads(out)
    for split, counted in report["splits"].items():
        kinds = [path for path in (folder / split).iterdir() if path.is_dir()]
        assert counted["classes"] == {kind.name: len(list(kind.iterdir())) for kind in kinds}
    digests = [hashlib.md5(path.read_bytes()).digest() for path in folder.rglob("*.jpg")]
    assert len(digests) == sum(split["samples"] for split in report["splits"].values())
    assert len(set(digests)) == len(digests)
