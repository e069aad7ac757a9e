"""Metadata files of image folders."""

import json

import pytest
from dataset_files import labeled_boxes, problem_kinds, save_image, write

from mobilevit_hf.data.reading import load_dataset

OBJECTS = {
    "lists": {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "categories": ["dog", "cat"]},
    "entries": [{"bbox": [1, 2, 3, 4], "category": "dog"}, {"bbox": [5, 6, 7, 8], "category": "cat"}],
}


@pytest.mark.parametrize("layout", OBJECTS)
@pytest.mark.parametrize("in_splits", [True, False])
def test_metadata_with_boxes(tmp_path, layout, in_splits):
    for split in ("train", "test"):
        save_image(tmp_path / split / "a.png")
        prefix = "" if in_splits else f"{split}/"
        path = tmp_path / (f"{split}/" if in_splits else "") / "metadata.jsonl"
        with open(path, "a") as file:
            file.write(json.dumps({"file_name": f"{prefix}a.png", "objects": OBJECTS[layout]}) + "\n")
    dataset = load_dataset(tmp_path)
    assert (dataset.data_format, dataset.task, dataset.classes) == ("imagefolder", "object-detection", ("cat", "dog"))
    for split in ("train", "test"):
        (sample,) = dataset.splits[split]
        assert sample.name == f"{split}/a.png"
        assert labeled_boxes(sample) == [(1, [1, 2, 4, 6]), (0, [5, 6, 12, 14])]


def test_csv_with_class_numbers_and_invalid_rows(tmp_path):
    for name in "abc":
        save_image(tmp_path / f"{name}.png")
    rows = {
        "a.png": {"bbox": [[1, 2, 3, 4], [5, 6, 0, 8]], "category": [2, 0], "area": [7, 7]},
        "b.png": {"bbox": [[1, 2, 3, 4]], "category": []},
        "c.png": {"bbox": [], "category": []},
        "../d.png": {"bbox": [], "category": []},
    }
    quoted = {name: json.dumps(row).replace('"', '""') for name, row in rows.items()}
    write(tmp_path / "metadata.csv", "file_name,objects\n" + "".join(f'{n},"{text}"\n' for n, text in quoted.items()))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == ("0", "1", "2")
    assert [labeled_boxes(sample) for sample in dataset.splits["train"]] == [[(2, [1, 2, 4, 6])], []]
    assert dataset.splits["train"][0].objects.areas.tolist() == [7]
    assert problem_kinds(dataset) == [
        ("a.png", "box without area"),
        ("b.png", "unreadable annotation"),
        ("metadata.csv", "missing image"),
    ]


def test_metadata_with_labels_or_captions(tmp_path):
    for name in ("x/a.png", "y/b.png"):
        save_image(tmp_path / name)
    rows = [{"file_name": "x/a.png", "label": "dog"}, {"file_name": "y/b.png", "label": "cat"}]
    write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert [dataset.classes[sample.label] for sample in dataset.splits["train"]] == ["dog", "cat"]
    write(tmp_path / "metadata.jsonl", "\n".join(json.dumps({"file_name": row["file_name"]}) for row in rows))
    assert load_dataset(tmp_path).classes == ("x", "y")
