"""Dataset folders: links and paths that lead out of them."""

import json

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


@pytest.mark.parametrize("data_format", [None, "yolo"])
def test_linked_images_and_folders_are_read(tmp_path, data_format):
    save_image(tmp_path / "elsewhere" / "b" / "1.jpg")
    root = tmp_path / "data" / "images"
    save_image(root / "a" / "1.jpg")
    (root / "a" / "2.jpg").symlink_to("1.jpg")
    (root / "a" / "3.jpg").symlink_to(tmp_path / "elsewhere" / "b" / "1.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "b")
    if data_format:
        write(tmp_path / "data" / "classes.txt", "cat")
        for name in ("a/3.txt", "b/1.txt"):
            write(tmp_path / "data" / "labels" / name, "0 0.5 0.5 0.1 0.1")
    dataset = load_dataset(tmp_path / "data", data_format=data_format, validation_fraction=0)
    names = ["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg"]
    assert sample_names(dataset.splits["train"]) == [f"images/{name}" if data_format else name for name in names]
    assert not dataset.problems


def make_cycles(root):
    """Make links to themselves, to a parent, in a cycle of two folders, to nothing and to a file that is no image."""
    (root / "a" / "self.jpg").symlink_to("self.jpg")
    (root / "a" / "up").symlink_to("../..")
    (root / "a" / "x").symlink_to("../b")
    (root / "b" / "y").symlink_to(".")
    (root / "b" / "z").symlink_to("../a")
    (root / "b" / "missing.png").symlink_to("nothing.png")
    (root / "b" / "hosts").symlink_to("/etc/hosts")


def test_links_in_a_cycle_are_reported(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg"):
        save_image(tmp_path / name)
    make_cycles(tmp_path)
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert sample_names(dataset.splits["train"]) == ["a/1.jpg", "a/x/1.jpg", "b/1.jpg", "b/z/1.jpg"]
    reported = {name for name, kind in problem_kinds(dataset) if kind == "missing image"}
    assert reported >= {"a/self.jpg", "a/up", "b/y", "b/missing.png", "b/hosts", "a/x/y", "a/x/z", "b/z/x", "b/z/up"}
    assert len(reported) == len(dataset.problems)


def test_links_to_the_same_folder_are_read_once_per_link(tmp_path):
    save_image(tmp_path / "a" / "x" / "1.jpg")
    save_image(tmp_path / "b" / "1.jpg")
    (tmp_path / "b" / "y").symlink_to("../a/x")
    assert len(load_dataset(tmp_path, validation_fraction=0).splits["train"]) == 3


def test_links_of_the_hub_cache_are_followed(tmp_path):
    root = tmp_path / "datasets--user--name" / "snapshots" / "1234"
    save_image(root.parents[1] / "blobs" / "5678.jpg")
    for name in "ab":
        (root / "data" / name).mkdir(parents=True, exist_ok=True)
        (root / "data" / name / "1.jpg").symlink_to("../../../../blobs/5678.jpg")
    (root / "data" / "metadata.jsonl").symlink_to("../../../blobs/9")
    rows = [{"file_name": f"{name}/1.jpg", "label": name * 2} for name in "ab"]
    write(root.parents[1] / "blobs" / "9", "\n".join(map(json.dumps, rows)))
    dataset = load_dataset(root, validation_fraction=0)
    assert (dataset.classes, len(dataset.splits["train"])) == (("aa", "bb"), 2)


def test_nested_folders_are_bounded(tmp_path):
    for name in "ab":
        save_image(tmp_path / name / "1.jpg")
    (tmp_path.joinpath("a", *["d"] * 500)).mkdir(parents=True)
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert len(dataset.splits["train"]) == 2
    assert [problem.reason for problem in dataset.problems] == ["a folder within more than 64 others"]


def test_hidden_folders_and_runs_are_no_data(tmp_path):
    for name in ("cat", "dog", ".git", "__MACOSX", "@eaDir", "mobilevit-samples", "runs/x", "runs/y", "model", "exp"):
        save_image(tmp_path / name / "1.jpg")
    for name in ("runs/x/run.json", "runs/y/model.safetensors", "model/model.safetensors", "exp/args.yaml"):
        write(tmp_path / name, "")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert " ".join(dataset.notes).count("the output of a training run") == 3


def test_two_folders_for_a_split_raise(class_folders):
    save_image(class_folders / "valid" / "owl" / "1.jpg")
    with pytest.raises(ValueError, match="val and valid"):
        load_dataset(class_folders)


@pytest.mark.parametrize(("folder", "split"), [("valid", "validation"), ("dev", "validation"), ("Test", "test")])
def test_split_names(tmp_path, folder, split):
    for name in ("training", folder):
        for label in "ab":
            save_image(tmp_path / name / label / "1.png")
    assert set(load_dataset(tmp_path, validation_fraction=0).splits) == {"train", split}
