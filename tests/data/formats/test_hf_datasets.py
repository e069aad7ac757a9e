"""Datasets of the Hub."""

import io
import tarfile

import datasets
import numpy as np
import pytest
from dataset_files import color_png, labeled_rows, noise_image, png_bytes, problem_kinds, save_rows, write
from hub_server import HubServer
from huggingface_hub import constants
from mask_files import blocks
from PIL import Image

from mobilevit_hf.data.images import load_image
from mobilevit_hf.data.reading import load_dataset


def test_unreachable_hub_raises(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="can't be reached"):
        load_dataset("user/name")


def test_missing_name_in_offline_mode_is_no_error_of_the_hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nothing: no file or folder of this name.* unset HF_HUB_OFFLINE"):
        load_dataset("nothing")


@pytest.mark.parametrize(
    ("column", "names"), [("label", ["dog", "cat"]), ("label", ["cat"]), ("kind", ["cat", "dog"])]
)
def test_splits_with_different_classes_are_rejected(tmp_path, column, names):
    def rows(column, names):
        features = datasets.Features({"image": datasets.Image(), column: datasets.ClassLabel(names=names)})
        images = [{"bytes": b"x", "path": None}] * 2
        return datasets.Dataset.from_dict({"image": images, column: [0, 0]}, features=features)

    splits = {"train": rows("label", ["cat", "dog"]), "test": rows(column, names)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match="the splits differ in their columns or classes"):
        load_dataset(tmp_path)


@pytest.mark.slow
def test_hub_datasets(run_python, tmp_path):
    save_rows({"train": labeled_rows(20), "test": labeled_rows(4)}, tmp_path / "data", "parquet")
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


def mask_rows(count):
    """Return rows with an image and a mask of three classes, and the masks."""
    masks = [blocks((0, 1, 2), seed) for seed in range(count)]
    features = {"pixels": datasets.Image(), "label": datasets.Image()}
    values = {
        "pixels": [{"bytes": png_bytes(noise_image(seed)), "path": None} for seed in range(count)],
        "label": [{"bytes": png_bytes(Image.fromarray(mask)), "path": None} for mask in masks],
    }
    return datasets.Dataset.from_dict(values, features=datasets.Features(features)), masks


@pytest.mark.parametrize("storage", ["disk", "parquet"])
def test_masks_of_rows(tmp_path, storage):
    rows, masks = mask_rows(3)
    root = save_rows({"train": rows, "test": rows.select([0])}, tmp_path / "data", storage)
    (root / "id2label.json").write_text('{"0": "road", "1": "car", "2": "tree"}')
    dataset = load_dataset(root, validation_fraction=0)
    assert (dataset.task, dataset.classes) == ("image-segmentation", ("road", "car", "tree"))
    for sample, mask in zip(dataset.splits["train"], masks, strict=True):
        np.testing.assert_array_equal(sample.mask.read(), mask)
        assert load_image(sample.image).size == (24, 16)


def test_streamed_masks_need_class_names(tmp_path):
    rows, masks = mask_rows(2)
    root = save_rows({"train": rows}, tmp_path / "data", "parquet")
    with pytest.raises(ValueError, match=r"which streaming requires.*id2label\.json"):
        load_dataset(root, streaming=True, validation_fraction=0)
    (root / "id2label.json").write_text('["road", "car", "tree"]')
    dataset = load_dataset(root, streaming=True, validation_fraction=0)
    assert [sample.mask.read().tolist() for sample in dataset.splits["train"]] == [mask.tolist() for mask in masks]


def test_masks_without_names_get_their_values_as_classes(tmp_path):
    root = save_rows({"train": mask_rows(2)[0]}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, validation_fraction=0)
    assert dataset.classes == ("class 0", "class 1", "class 2")
    assert "classes.txt" in " ".join(dataset.notes)


def test_labels_come_before_masks_unless_segmentation_is_asked_for(tmp_path):
    rows = labeled_rows(2).add_column("scene", [0, 1])
    rows = rows.add_column("mask", [{"bytes": png_bytes(Image.new("L", (40, 30), n)), "path": None} for n in (0, 1)])
    rows = rows.cast_column("mask", datasets.Image())
    root = save_rows({"train": rows}, tmp_path / "data", "parquet")
    dataset = load_dataset(root, validation_fraction=0)
    assert dataset.task == "image-classification"
    assert "The column mask of masks is not used" in " ".join(dataset.notes)
    assert load_dataset(root, validation_fraction=0, task="image-segmentation").classes == ("class 0", "class 1")


def test_a_row_without_a_mask_is_a_problem(tmp_path):
    rows = mask_rows(3)[0]
    values = {name: [{"bytes": row["bytes"], "path": None} for row in column] for name, column in undecoded(rows)}
    values["label"][1] = None
    root = save_rows({"train": datasets.Dataset.from_dict(values, features=rows.features)}, tmp_path / "data", "disk")
    dataset = load_dataset(root, validation_fraction=0)
    assert [sample.name for sample in dataset.splits["train"]] == ["train[0]", "train[2]"]
    assert problem_kinds(dataset) == [("train[1]", "missing mask")]


def undecoded(rows):
    """Yield the columns of rows with the files of their images."""
    for name in rows.column_names:
        yield name, rows.cast_column(name, datasets.Image(decode=False))[:][name]


@pytest.mark.slow
def test_masks_on_the_hub(run_python, tmp_path):
    save_rows({"train": mask_rows(3)[0]}, tmp_path / "data", "parquet")
    write(tmp_path / "data" / "id2label.json", {"0": "road", "1": "car", "2": "tree"})
    code = f"""
        from huggingface_hub import HfApi
        HfApi().create_repo("user/streets", repo_type="dataset")
        HfApi().upload_folder(folder_path={str(tmp_path / "data")!r}, repo_id="user/streets", repo_type="dataset")
        from mobilevit_hf.data.reading import load_dataset
        for streaming in (False, True):
            dataset = load_dataset("user/streets", streaming=streaming, validation_fraction=0)
            print(dataset.task, dataset.classes, [sample.mask.read().sum() for sample in dataset.splits["train"]])
    """
    with HubServer() as hub:
        downloaded, streamed = run_python(code, hub.environment(tmp_path / "home")).splitlines()
    assert downloaded == streamed
    assert downloaded.startswith("image-segmentation ('road', 'car', 'tree')")


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_shards(tmp_path, streaming):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:04}.tar", "w") as archive:
            for number in range(2 * shard, 2 * shard + 2):
                for suffix, content in (("cls", str(number % 3).encode()), ("png", color_png(color=number))):
                    entry = tarfile.TarInfo(f"{number:04}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    if streaming:
        with pytest.raises(ValueError, match=r"which streaming requires\. Add classes\.txt"):
            load_dataset(tmp_path, streaming=True, validation_fraction=0)
    else:
        (tmp_path / "classes.txt").write_text("cat\n")  # fewer names than numbers
        assert load_dataset(tmp_path).classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    dataset = load_dataset(tmp_path, streaming=streaming, validation_fraction=0)
    assert dataset.classes == ("cat", "dog", "owl")
    samples = [*dataset.splits["train"]]
    assert [(sample.label, sample.image) for sample in samples] == [(n % 3, color_png(color=n)) for n in range(4)]
    if streaming:
        assert dataset.splits["train"].num_shards == 2
        assert [sample.name for sample in samples] == ["train[0, 0]", "train[0, 1]", "train[1, 0]", "train[1, 1]"]
