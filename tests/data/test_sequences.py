"""Lazy sequences of samples."""

import pickle

import pytest
from dataset_files import labeled_rows, save_rows

from mobilevit_hf.data.reading import load_dataset


def test_samples_can_be_pickled_and_indexed(tmp_path, class_folders, coco_dataset):
    rows = load_dataset(save_rows({"train": labeled_rows(4)}, tmp_path / "rows", "disk"))
    for dataset in (rows, load_dataset(class_folders), load_dataset(coco_dataset)):
        train = dataset.splits["train"]
        copy = pickle.loads(pickle.dumps(train))
        assert [repr(sample) for sample in copy] == [repr(sample) for sample in train]
        assert repr(train[-1]) == repr(train[len(train) - 1]) == repr(train[-2:][1])
        with pytest.raises(IndexError):
            train[len(train)]
