"""Files that annotations refer to."""

import pytest
from dataset_files import save_image

from mobilevit_hf.data.formats.folder import DataFolder
from mobilevit_hf.data.formats.lookup import FileIndex, Reference, match_files, split_of, split_of_file


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/a.jpg", "images/a.jpg"),
        ("./images/../images/a.jpg", "images/a.jpg"),
        ("images\\A.JPG", "images/a.jpg"),
        ("images/a", "images/a.jpg"),
        ("images/a.png", None),  # may be a mask
        ("images/b.v2", "images/b.v2.png"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),  # decomposed, as macOS writes names into archives
        ("../images/a.jpg", None),
        ("/images/a.jpg", None),
        ("C:\\images\\a.jpg", None),
    ],
)
def test_find_compares_names_without_case(tmp_path, path, expected):
    for name in ("images/a.jpg", "images/b.v2.png", "caf\u00e9.jpg"):
        save_image(tmp_path / name)
    assert FileIndex.of_images(DataFolder(tmp_path)).find(path) == expected


@pytest.mark.parametrize(
    ("path", "split", "expected"),
    [
        ("/home/someone/data/a/1.jpg", None, "x/a/1.jpg"),
        ("C:\\data\\b\\1.jpg", None, "x/b/1.jpg"),
        ("http://host/%62/1.jpg", None, "x/b/1.jpg"),
        ("/data/local-files/?d=b/1.jpg", None, "x/b/1.jpg"),
        ("/data/upload/1/0a1b2c3d-2.jpg", None, "train/2.jpg"),  # with Label Studio's prefix
        ("0a1b2c3d-9.jpg", None, "x/0a1b2c3d-9.jpg"),
        ("upload/1.jpg", None, None),  # in both folders
        ("data/2.jpg", None, "train/2.jpg"),
        ("data/2.jpg", "validation", None),  # which has a folder of its own
        ("data/3.jpg", "validation", "val/3.jpg"),
        ("data/2.jpg", "test", "train/2.jpg"),  # which has none
    ],
)
def test_paths_of_another_machine_match_by_the_name_if_unambiguous(tmp_path, path, split, expected):
    for name in ("x/a/1.jpg", "x/b/1.jpg", "train/2.jpg", "val/3.jpg", "x/0a1b2c3d-9.jpg", "x/9.jpg"):
        save_image(tmp_path / name)
    folder = DataFolder(tmp_path)
    ((found, reason),) = match_files(FileIndex.of_images(folder), [Reference([path], [path])], "are similar", split)
    assert found == expected
    assert bool(reason) == (not expected)
    assert len(folder.notes) == bool(expected)


def test_files_of_other_annotations_do_not_match(tmp_path):
    """Frames of one video are not those of another one of which they have the names."""
    for name in ("a/1.jpg", "a/2.jpg", "c/3.jpg"):
        save_image(tmp_path / name)
    index = FileIndex.of_images(DataFolder(tmp_path))
    paths = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "x/3.jpg", "y/3.jpg"]
    found = [name for name, _ in match_files(index, [Reference([path], [path]) for path in paths])]
    assert found == ["a/1.jpg", None, None, "c/3.jpg", None]


@pytest.mark.parametrize(
    ("directory", "split"),
    [
        ("images/train2017", "train"),
        ("Valid/images", "validation"),
        ("obj_Validation_data", "validation"),
        ("train_images/site-1", "train"),
        ("crash_test_photos", None),
        ("train_test", None),
        ("images", None),
        (".", None),
    ],
)
def test_split_of_folders(directory, split):
    assert split_of(directory) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("annotations/instances_val2017.json", "validation"),
        ("train_annotations.json", "train"),
        ("test/_annotations.coco.json", "test"),
        ("annotations/dev/result.json", "validation"),
        ("instances_default.json", None),
    ],
)
def test_split_of_files(name, split):
    assert split_of_file(name) == split
