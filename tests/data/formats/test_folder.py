"""Dataset folders: links and paths that lead out of them."""

import pytest
from dataset_files import coco_json, problem_kinds, sample_names, save_image, write

from mobilevit_hf.data.reading import load_dataset


@pytest.mark.parametrize(
    "path",
    ["../secret.jpg", "images/../../secret.jpg", "{}/secret.jpg", "..\\secret.jpg", "link.jpg", "out/secret.jpg"],
)
def test_paths_out_of_the_folder_are_not_followed(tmp_path, path):
    save_image(tmp_path / "secret.jpg")
    root = tmp_path / "data"
    save_image(root / "images" / "a.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "out").symlink_to(tmp_path)
    images = [{"id": n, "file_name": name} for n, name in enumerate(("a.jpg", path.format(tmp_path)))]
    write(root / "coco.json", coco_json([], images=images))
    dataset = load_dataset(root)
    assert sample_names(dataset.splits["train"]) == ["images/a.jpg"]
    assert problem_kinds(dataset) == [(path.format(tmp_path), "missing image")]


def test_links_within_the_folder_are_followed(tmp_path):
    save_image(tmp_path / "secret.jpg")
    root = tmp_path / "data"
    save_image(root / "a" / "1.jpg")
    save_image(root / "b" / "1.jpg")
    (root / "a" / "2.jpg").symlink_to("../b/1.jpg")
    (root / "a" / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "a" / "cycle").symlink_to(root)
    dataset = load_dataset(root, validation_fraction=0)
    assert sample_names(dataset.splits["train"]) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert problem_kinds(dataset) == [("a/3.jpg", "missing image"), ("a/cycle", "missing image")]


def test_links_of_the_hub_cache_are_followed(tmp_path):
    root = tmp_path / "datasets--user--name" / "snapshots" / "1234"
    save_image(root.parents[1] / "blobs" / "5678.jpg")
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.jpg").symlink_to("../../../blobs/5678.jpg")
    assert sample_names(load_dataset(root).splits["train"]) == ["a/1.jpg"]


def test_two_folders_for_a_split_raise(class_folders):
    save_image(class_folders / "valid" / "owl" / "1.jpg")
    with pytest.raises(ValueError, match="val and valid"):
        load_dataset(class_folders)


@pytest.mark.parametrize(("folder", "split"), [("valid", "validation"), ("dev", "validation"), ("Test", "test")])
def test_split_names(tmp_path, folder, split):
    for name in ("training", folder):
        save_image(tmp_path / name / "a" / "1.png")
    assert set(load_dataset(tmp_path, validation_fraction=0).splits) == {"train", split}
