"""`load_dataset`: formats, real datasets, and errors."""

import numpy as np
import pytest
from dataset_files import coco_json, problem_kinds, save_image, split_sizes, voc_xml, write, write_voc_dataset
from hostile_files import HEIC, damaged_metadata

from mobilevit_hf.data.reading import load_dataset


@pytest.mark.parametrize(
    "rows",
    [
        "1 0.5 0.5 0.5 0.4\n0 0.25 0.5 0.5 0.4",  # other classes
        "0 0.5 0.5 0.5 0.4\n1 0.25 0.5 0.3 0.4",  # another box
        "0 0.5 0.5 0.5 0.4",  # a missing box
    ],
)
def test_ambiguous_format_raises(tmp_path, rows):
    write_voc_dataset(tmp_path, {"a": voc_xml(("dog", 0, 9, 20, 21), ("cat", 10, 9, 30, 21))})
    write(tmp_path / "classes.txt", "cat\ndog")
    write(tmp_path / "labels" / "a.txt", rows)
    with pytest.raises(ValueError, match=r"voc or yolo, which differ in JPEGImages/a.jpg\. .*voc.* or .*yolo"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, data_format="voc").classes == ("cat", "dog")


def test_formats_with_the_same_objects_are_read_once(tmp_path):
    write_voc_dataset(tmp_path, {"a": voc_xml(("dog", 1, 10, 20, 21), ("cat", 11, 10, 30, 21)), "b": voc_xml()})
    save_image(tmp_path / "JPEGImages" / "c.jpg")  # without annotations
    write(tmp_path / "classes.txt", "cat\ndog\nbird")
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.5 0.4\n1 0.25 0.5 0.5 0.4")
    dataset = load_dataset(tmp_path)
    assert dataset.data_format == "voc"
    assert "Read as voc; the files of yolo describe the same objects." in dataset.notes


def test_missing_source_raises(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        load_dataset(tmp_path / "missing")


def test_empty_folder_raises(tmp_path):
    with pytest.raises(ValueError, match="got no dataset"):
        load_dataset(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="got no dataset"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match="got no images in class folders"):
        load_dataset(tmp_path, data_format="imagefolder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_format": "tfrecord"}, "expected one of"),
        ({"validation_fraction": 1}, "less than 1"),
        ({"validation_fraction": -0.1}, "at least 0"),
        ({"streaming": True}, "streaming: got"),
        ({"revision": "main"}, "on the Hub"),
        ({"data_format": "coco"}, "got no COCO annotations"),
        ({"data_format": "voc"}, "got no XML files"),
        ({"data_format": "yolo"}, r"classes\.txt"),
    ],
)
def test_invalid_arguments_raise(class_folders, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(class_folders, **options)


@pytest.mark.parametrize("data_format", ["coco", "voc", "yolo", "csv"])
def test_wrong_format_names_the_right_one(class_folders, data_format):
    with pytest.raises(ValueError, match=r'looks like data_format="imagefolder"\.$'):
        load_dataset(class_folders, data_format=data_format)


def test_unsupported_file_raises(tmp_path):
    save_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a file"):
        load_dataset(tmp_path / "a.png")


def test_dataset_without_valid_images_raises(tmp_path):
    write(tmp_path / "coco.json", coco_json([]))
    with pytest.raises(ValueError, match=r"1 problems.*a\.jpg"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "data_format", "num_classes", "counts"),
    [
        ("clothing", "imagefolder", 10, {"train": 3068, "validation": 341, "test": 372}),
        ("bccd", "voc", 3, {"train": 205, "validation": 87, "test": 72}),
        ("corn-leaf", "imagefolder", 4, {"train": 54, "validation": 6}),
    ],
)
def test_real_datasets(reference_data, name, data_format, num_classes, counts):
    dataset = load_dataset(reference_data / "data" / name)
    assert dataset.data_format == data_format
    assert len(dataset.classes) == num_classes
    assert split_sizes(dataset) == counts


def test_boxes_of_a_real_dataset(reference_data):
    root = reference_data / "data" / "bccd"
    dataset = load_dataset(root)
    assert problem_kinds(dataset) == [(f"JPEGImages/BloodImage_00{n}.jpg", "box without area") for n in (338, 343)]
    num_annotated = sum(path.read_text().count("<object>") for path in (root / "Annotations").iterdir())
    assert sum(len(s.objects.labels) for samples in dataset.splits.values() for s in samples) == num_annotated - 2


@pytest.mark.parametrize("data_format", ["imagefolder", "voc"])
def test_images_of_rare_formats_are_read_and_others_counted(tmp_path, data_format):
    folders = ("cat", "dog") if data_format == "imagefolder" else ("JPEGImages",)
    for folder in folders:
        save_image(tmp_path / folder / "a.JPG")
        save_image(tmp_path / folder / "b.png")
        (tmp_path / folder / "b.png").rename(tmp_path / folder / "b.jfif")
        (tmp_path / folder / "IMG_1.HEIC").write_bytes(HEIC)
        for name in ("IMG_1.MOV", "raw.CR2", "raw.nef", "logo.svg", "layers.psd"):
            (tmp_path / folder / name).write_bytes(b"")
    if data_format == "voc":
        for stem in ("a", "b", "IMG_1"):
            write(tmp_path / "Annotations" / f"{stem}.xml", voc_xml(("cat", 1, 2, 7, 14)))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert split_sizes(dataset) == {"train": 3 * len(folders)}
    assert dataset.problems == []
    (note,) = (note for note in dataset.notes if "not read as images" in note)
    for suffix in (".mov", ".cr2", ".nef", ".svg", ".psd"):
        assert f"{len(folders)} {suffix} (" in note


def test_folder_without_readable_images_names_what_it_has(tmp_path):
    for name in ("cat/a.NEF", "dog/b.NEF", "dog/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 \.nef \(camera raw.*1 \.mp4 \(video"):
        load_dataset(tmp_path)


def test_damaged_metadata_costs_no_annotated_image(tmp_path):
    files = damaged_metadata(np.random.default_rng(0))
    for name, (damaged, _) in files.items():
        (tmp_path / name).write_bytes(damaged)
    images = [{"id": i, "file_name": name} for i, name in enumerate(files)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 5, 6]} for i in range(len(files))]
    write(tmp_path / "annotations.json", coco_json([], images=images, annotations=boxes))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.problems == []
    assert split_sizes(dataset) == {"train": len(files)}


def test_missing_images_are_looked_for_in_the_folder(tmp_path):
    write_voc_dataset(tmp_path, {"a": voc_xml(("dog", 1, 10, 20, 21))})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"no file of the name a.*Add the images: .* any folder of"):
        load_dataset(tmp_path)


def test_two_coco_files_of_a_split_name_the_path_of_one(tmp_path):
    for name in ("annotations.json", "annotations_unofficial.json"):
        write(tmp_path / name, coco_json([[1, 2, 9, 9]]))
    with pytest.raises(ValueError, match=r"and no images, .* Pass the path of one, such as .*annotations\.json"):
        load_dataset(tmp_path)
