"""Datasets of the Hub."""

import datasets
import pytest
from dataset_files import labeled_rows, save_rows, write
from hub_server import HubServer
from huggingface_hub import constants

from mobilevit_hf.data.reading import load_dataset


def test_unreachable_hub_raises(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="can't be reached"):
        load_dataset("user/name")


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
