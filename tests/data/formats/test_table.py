"""Rows of the `datasets` library, map-style and streamed."""

import datasets
import pyarrow
import pytest
from dataset_files import (
    color_png,
    labeled_boxes,
    labeled_rows,
    problem_kinds,
    sample_names,
    save_image,
    save_rows,
    split_sizes,
)
from PIL import Image
from pyarrow import parquet

from mobilevit_hf.data.reading import load_dataset


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def object_rows(entries, layout, **columns):
    """Return rows of images of 40x30 pixels with objects, as a list of dictionaries or a dictionary of lists."""
    category = datasets.ClassLabel(names=["cat", "dog"])
    bbox = datasets.List(datasets.Value("float32"))
    if layout == "entries":
        feature = datasets.List({"bbox": bbox, "category": category})
        values = [[{"bbox": box, "category": label} for label, box in row] for row in entries]
    else:
        feature = {"bbox": datasets.List(bbox), "category": datasets.List(category)}
        values = [{"bbox": [box for _, box in row], "category": [label for label, _ in row]} for row in entries]
    features = {"image": datasets.Image(), "objects": feature} | {name: datasets.Value("int64") for name in columns}
    values = {"image": [{"bytes": color_png(), "path": None}] * len(entries), "objects": values}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


@pytest.mark.parametrize("storage", ["disk", "parquet"])
def test_rows_with_labels(tmp_path, storage):
    rows = {"train": labeled_rows(20, coarse=list(range(20))), "test": labeled_rows(3, coarse=[0] * 3)}
    dataset = load_dataset(save_rows(rows, tmp_path / "data", storage))
    assert (dataset.task, dataset.data_format) == ("image-classification", "datasets")
    assert dataset.classes == ("cat", "dog")
    assert split_sizes(dataset) == {"train": 18, "validation": 2, "test": 3}
    samples = [*dataset.splits["train"], *dataset.splits["validation"]]
    assert {(s.name, s.image, s.label) for s in samples} == {
        (f"train[{n}]", color_png(color=n), n % 2) for n in range(20)
    }
    assert [s.label for s in dataset.splits["validation"]] in ([0, 1], [1, 0])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", ["lists", "entries"])
@pytest.mark.parametrize("has_size", [False, True])
def test_rows_with_objects(tmp_path, layout, streaming, has_size):
    entries = [
        [(1, [1, 2, 3, 4]), (0, [5, 6, 7, 8])],
        [(0, [1, 2, 0, 4]), (0, [35, 6, 20, 8])],
        [(1, [1, 2, 0, 4])],
        [],
    ]
    columns = {"width": [40] * 4, "height": [30] * 4} if has_size else {}
    root = save_rows({"train": object_rows(entries, layout, **columns)}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, streaming=streaming, validation_fraction=0)
    assert (dataset.task, dataset.classes) == ("object-detection", ("cat", "dog"))
    for _ in range(2):  # the second iteration of a stream adds no problems
        assert [(s.name, labeled_boxes(s)) for s in dataset.splits["train"]] == [
            ("train[0]", [(1, [1, 2, 4, 6]), (0, [5, 6, 12, 14])]),
            ("train[1]", [(0, [35, 6, 40, 14])]),
            ("train[3]", []),
        ]
    assert problem_kinds(dataset) == [
        ("train[1]", "box outside the image"),
        ("train[1]", "box without area"),
        ("train[2]", "box without area"),
    ]


def test_validation_split_of_a_stream_depends_on_content(tmp_path):
    rows = {"train": labeled_rows(200)}
    dataset = load_dataset(save_rows(rows, tmp_path / "data", "parquet"), streaming=True, validation_fraction=0.2)
    train, validation = ({sample.image for sample in dataset.splits[split]} for split in ("train", "validation"))
    assert not hasattr(dataset.splits["train"], "__len__")
    assert not train & validation
    assert len(train | validation) == 200
    assert 20 < len(validation) < 60
    assert "hash" in dataset.notes[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_out_of_the_dataset_are_not_followed(tmp_path, streaming):
    save_image(tmp_path / "secret.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    images = [{"bytes": color_png(), "path": None}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    images += [{"bytes": None, "path": "http://localhost/x.png"}, None]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0] * 4}, features=features)
    (tmp_path / "data").mkdir()
    parquet.write_table(rows.with_format("arrow")[:], tmp_path / "data" / "train.parquet")
    dataset = load_dataset(tmp_path / "data", streaming=streaming, validation_fraction=0)
    assert sample_names(dataset.splits["train"]) == ["train[0]"]
    assert problem_kinds(dataset) == [(f"train[{n}]", "missing image") for n in (1, 2, 3)]


def test_parquet_rows_cannot_name_local_files(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "private.png")
    (tmp_path / "data").mkdir()
    private = tmp_path / "private.png"
    paths = [f"file://{private}::hf://datasets/a/b/c.png", f"zip://{private}::file://{private}::hf://a", str(private)]
    images = [{"bytes": private.read_bytes(), "path": None}, *({"bytes": None, "path": path} for path in paths)]
    parquet.write_table(pyarrow.table({"image": images, "label": ["cat"] * 4}), tmp_path / "data/train.parquet")
    dataset = load_dataset(tmp_path / "data")
    assert [sample.name for sample in dataset.splits["train"]] == ["train[0]"]
    assert [problem.kind for problem in dataset.problems] == ["missing image"] * 3


def test_rows_without_labels_are_dropped(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [{"bytes": color_png(), "path": None}] * 3
    rows = {
        "train": datasets.Dataset.from_dict({"image": images, "label": [0, 1, None]}, features=features),
        "test": datasets.Dataset.from_dict({"image": images, "label": [-1] * 3}, features=features),
    }
    dataset = load_dataset(save_rows(rows, tmp_path / "data", "disk"), validation_fraction=0)
    assert split_sizes(dataset) == {"train": 2}
    assert problem_kinds(dataset) == [("train[2]", "unknown class")]
    assert any("test" in note for note in dataset.notes)


def test_string_labels(tmp_path):
    images = [{"bytes": color_png(), "path": None}] * 3
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "label": ["dog", "cat", "dog"]}, features=features)
    root = save_rows({"train": rows}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, validation_fraction=0)
    assert dataset.classes == ("cat", "dog")
    assert [sample.label for sample in dataset.splits["train"]] == [1, 0, 1]
    with pytest.raises(ValueError, match="doesn't name the classes"):
        load_dataset(root, streaming=True)


def test_missing_columns_raise(tmp_path):
    root = save_rows({"train": datasets.Dataset.from_dict({"text": ["a"]})}, tmp_path / "text", "disk")
    with pytest.raises(ValueError, match="one column of images, got text"):
        load_dataset(root)
    root = save_rows({"train": labeled_rows(2).remove_columns("fine_label")}, tmp_path / "bare", "disk")
    with pytest.raises(ValueError, match=r"`label` or `objects`, got img"):
        load_dataset(root)
