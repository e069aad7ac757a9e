"""Datasets of the datasets library, saved, streamed and on the Hub: what is read of them."""

import pickle

import datasets
import pytest
from hub_server import HubServer
from huggingface_hub import constants
from PIL import Image
from pyarrow import parquet
from written_data import boxes, image_file, names, problems, save_image, sizes, write

from mobilevit_hf.data.reading import load_dataset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def image_bytes(color=0):
    return image_file(Image.new("RGB", (40, 30), (color, 90, 30)))


def labelled_rows(count, **columns):
    features = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["cat", "dog"])}
    values = {
        "img": [{"bytes": image_bytes(color=n), "path": None} for n in range(count)],
        "fine_label": [n % 2 for n in range(count)],
    }
    features |= {name: datasets.Value("int64") for name in columns}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


def object_rows(entries, form, **columns):
    """Rows of images of 40x30 pixels with objects, as a list of dictionaries or a dictionary of lists."""
    category = datasets.ClassLabel(names=["cat", "dog"])
    bbox = datasets.List(datasets.Value("float32"))
    if form == "entries":
        feature = datasets.List({"bbox": bbox, "category": category})
        values = [[{"bbox": box, "category": label} for label, box in row] for row in entries]
    else:
        feature = {"bbox": datasets.List(bbox), "category": datasets.List(category)}
        values = [{"bbox": [box for _, box in row], "category": [label for label, _ in row]} for row in entries]
    features = {"image": datasets.Image(), "objects": feature} | {name: datasets.Value("int64") for name in columns}
    values = {"image": [{"bytes": image_bytes(), "path": None}] * len(entries), "objects": values}
    return datasets.Dataset.from_dict(values | columns, features=datasets.Features(features))


def save(rows, root, how):
    root.mkdir()
    if how == "disk":
        datasets.DatasetDict(rows).save_to_disk(str(root))
    else:
        for split, found in rows.items():
            found.to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return root


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_rows_with_labels(tmp_path, how):
    rows = {"train": labelled_rows(20, coarse=list(range(20))), "test": labelled_rows(3, coarse=[0] * 3)}
    dataset = load_dataset(save(rows, tmp_path / "data", how))
    assert (dataset.task, dataset.data_format) == ("image-classification", "datasets")
    assert dataset.classes == ("cat", "dog")
    assert sizes(dataset) == {"train": 18, "validation": 2, "test": 3}
    samples = [*dataset.splits["train"], *dataset.splits["validation"]]
    assert {(s.name, s.image, s.label) for s in samples} == {
        (f"train[{n}]", image_bytes(color=n), n % 2) for n in range(20)
    }
    assert [s.label for s in dataset.splits["validation"]] in ([0, 1], [1, 0])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["lists", "entries"])
@pytest.mark.parametrize("stated", [False, True])
def test_rows_with_objects(tmp_path, form, streaming, stated):
    entries = [
        [(1, [1, 2, 3, 4]), (0, [5, 6, 7, 8])],
        [(0, [1, 2, 0, 4]), (0, [35, 6, 20, 8])],
        [(1, [1, 2, 0, 4])],
        [],
    ]
    columns = {"width": [40] * 4, "height": [30] * 4} if stated else {}
    root = save({"train": object_rows(entries, form, **columns)}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, streaming=streaming, validation_fraction=0)
    assert (dataset.task, dataset.classes) == ("object-detection", ("cat", "dog"))
    for _ in range(2):  # a second round over a stream finds the same, and says nothing twice
        assert [(s.name, boxes(s)) for s in dataset.splits["train"]] == [
            ("train[0]", [(1, [1, 2, 4, 6]), (0, [5, 6, 12, 14])]),
            ("train[1]", [(0, [35, 6, 40, 14])]),
            ("train[3]", []),
        ]
    assert problems(dataset) == [
        ("train[1]", "box outside the image"),
        ("train[1]", "box without area"),
        ("train[2]", "box without area"),
    ]


def test_a_stream_is_cut_by_content(tmp_path):
    rows = {"train": labelled_rows(200)}
    dataset = load_dataset(save(rows, tmp_path / "data", "parquet"), streaming=True, validation_fraction=0.2)
    train, validation = ({sample.image for sample in dataset.splits[split]} for split in ("train", "validation"))
    assert not hasattr(dataset.splits["train"], "__len__")
    assert not train & validation
    assert len(train | validation) == 200
    assert 20 < len(validation) < 60
    assert "hash" in dataset.notes[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_reach_no_file_outside(tmp_path, streaming):
    save_image(tmp_path / "secret.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    images = [{"bytes": image_bytes(), "path": None}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    images += [{"bytes": None, "path": "http://localhost/x.png"}, None]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0] * 4}, features=features)
    (tmp_path / "data").mkdir()
    parquet.write_table(rows.with_format("arrow")[:], tmp_path / "data" / "train.parquet")
    dataset = load_dataset(tmp_path / "data", streaming=streaming, validation_fraction=0)
    assert names(dataset.splits["train"]) == ["train[0]"]
    assert problems(dataset) == [(f"train[{n}]", "missing image") for n in (1, 2, 3)]


def test_rows_without_labels(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [{"bytes": image_bytes(), "path": None}] * 3
    rows = {
        "train": datasets.Dataset.from_dict({"image": images, "label": [0, 1, None]}, features=features),
        "test": datasets.Dataset.from_dict({"image": images, "label": [-1] * 3}, features=features),
    }
    dataset = load_dataset(save(rows, tmp_path / "data", "disk"), validation_fraction=0)
    assert sizes(dataset) == {"train": 2}
    assert problems(dataset) == [("train[2]", "unknown class")]
    assert any("test" in note for note in dataset.notes)


def test_rows_with_names_for_labels(tmp_path):
    images = [{"bytes": image_bytes(), "path": None}] * 3
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": images, "label": ["dog", "cat", "dog"]}, features=features)
    root = save({"train": rows}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, validation_fraction=0)
    assert dataset.classes == ("cat", "dog")
    assert [sample.label for sample in dataset.splits["train"]] == [1, 0, 1]
    with pytest.raises(ValueError, match="doesn't name the classes"):
        load_dataset(root, streaming=True)


def test_rows_without_images_or_labels(tmp_path):
    root = save({"train": datasets.Dataset.from_dict({"text": ["a"]})}, tmp_path / "text", "disk")
    with pytest.raises(ValueError, match="one column of images, got text"):
        load_dataset(root)
    root = save({"train": labelled_rows(2).remove_columns("fine_label")}, tmp_path / "bare", "disk")
    with pytest.raises(ValueError, match=r"`label` or `objects`, got img"):
        load_dataset(root)


def test_samples_travel_to_other_processes(tmp_path, class_folders, coco):
    rows = load_dataset(save({"train": labelled_rows(4)}, tmp_path / "rows", "disk"))
    for dataset in (rows, load_dataset(class_folders), load_dataset(coco)):
        train = dataset.splits["train"]
        copy = pickle.loads(pickle.dumps(train))
        assert [repr(sample) for sample in copy] == [repr(sample) for sample in train]
        assert repr(train[-1]) == repr(train[len(train) - 1]) == repr(train[-2:][1])
        with pytest.raises(IndexError):
            train[len(train)]


# The Hub


def test_a_hub_that_is_down(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="can't be reached"):
        load_dataset("user/name")


@pytest.mark.slow
def test_the_hub(run_python, tmp_path):
    save({"train": labelled_rows(20), "test": labelled_rows(4)}, tmp_path / "data", "parquet")
    write(tmp_path / "script" / "script.py", "raise SystemExit")
    code = f"""
        from huggingface_hub import HfApi
        for name, folder in {{"animals": "data", "script": "script"}}.items():
            HfApi().create_repo(f"user/{{name}}", repo_type="dataset", private=True)
            path = {str(tmp_path)!r} + "/" + folder
            HfApi().upload_folder(folder_path=path, repo_id=f"user/{{name}}", repo_type="dataset")

        from mobilevit_hf.data.reading import load_dataset
        for streaming in (False, True):
            dataset = load_dataset("user/animals", streaming=streaming)
            print(dataset.classes, [sample.label for sample in dataset.splits["test"]], dataset.root)
        for name in ("absent", "script"):
            try:
                load_dataset(f"user/{{name}}", token="hf_loopback")
            except ValueError as error:
                print(error, error.__context__)
    """
    with HubServer() as hub:
        downloaded, streamed, absent, script = run_python(code, hub.environment(tmp_path / "home")).splitlines()
    assert downloaded == streamed == "('cat', 'dog') [0, 1, 0, 1] None"
    assert "no such dataset on the Hub" in absent
    assert "can't be read" in script
    assert "hf_loopback" not in absent + script
