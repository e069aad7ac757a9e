"""`mobilevit check-data`: tables, JSON, image grid and exit codes."""

import json
import re

import numpy as np
import pytest
from dataset_files import save_noise_images, voc_xml, write_voc_dataset
from mask_files import save_image, write_mask_dataset, write_text_files
from PIL import Image

from mobilevit_hf.cli import console
from mobilevit_hf.training.state import TrainingResult
from mobilevit_hf.visualization import class_colors


@pytest.fixture
def class_folders(tmp_path):
    """Class folders with 6 + 3 training images, and 2 + 2 images in each of the other splits."""
    folder = tmp_path / "class_folders"
    names = [f"train/cat/{i}.png" for i in range(6)] + [f"train/dog/{i}.png" for i in range(3)]
    names += [f"{split}/{name}/{i}.png" for split in ("validation", "test") for name in ("cat", "dog") for i in (0, 1)]
    save_noise_images(folder, names)
    return folder


def test_json_of_a_valid_dataset(mobilevit, class_folders):
    code, out, err = mobilevit("check-data", class_folders, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["task"], report["format"]) == ("image-classification", "imagefolder")
    assert report["splits"] == {
        "train": {"samples": 9, "classes": {"cat": 6, "dog": 3}},
        "validation": {"samples": 4, "classes": {"cat": 2, "dog": 2}},
        "test": {"samples": 4, "classes": {"cat": 2, "dog": 2}},
    }
    assert report["imbalance"] == 2
    assert report["widths"] == {"min": 20, "median": 28, "max": 36}
    assert report["heights"] == {"min": 48, "median": 56, "max": 64}
    assert report["bad"] == []
    assert report["bad_by_kind"] == {}


def test_tables_show_counts_and_problems(mobilevit, class_folders):
    (class_folders / "train/dog/bad.png").write_text("no image")
    code, out, _ = mobilevit("check-data", class_folders)
    rows = [line.split() for line in out.splitlines()]
    assert code == 1
    assert ["class", "train", "validation", "test"] in rows
    assert ["cat", "6", "2", "2"] in rows
    assert ["total", "images", "9", "4", "4"] in rows
    assert "largest class / smallest class: 2.0" in out
    assert "width: 20 to 36 px (median 28), height: 48 to 64 px (median 56)" in out
    assert "unreadable image: 1" in out
    assert "train/dog/bad.png: not an image" in out
    assert "5.6% of the samples are invalid." in out  # 1 of 18
    assert "Training would abort: more than 5.0% are invalid. Fix them, or raise --max-bad to skip them." in out
    assert "Training would abort" not in mobilevit("check-data", class_folders, "--max-bad", "0.06")[1]


def test_json_of_a_detection_dataset(mobilevit, tmp_path):
    annotations = {}
    for i in range(4):
        annotations[f"a{i}"] = voc_xml(("cat", 1, 1, 20, 20), ("dog", 5, 5, 5, 9))
        annotations[f"b{i}"] = voc_xml(("dog", 1, 1, 30, 20))
    write_voc_dataset(tmp_path / "voc", annotations)
    code, out, _ = mobilevit("check-data", tmp_path / "voc", "--json")
    report = json.loads(out)
    assert code == 1
    assert (report["task"], report["format"]) == ("object-detection", "voc")
    assert report["bad_by_kind"] == {"box without area": 4}
    assert sum(sum(split["classes"].values()) for split in report["splits"].values()) == 8
    assert report["boxes_per_image"] == {"min": 1, "median": 1, "max": 1}


def test_hostile_names_are_escaped(mobilevit, tmp_path):
    names = ["a[red]b.png", "c\x1b[31m\n.png", ":dog:.png", "-rf.png", "\udcff.png"]
    folder = tmp_path / "[bold]\x1b[2J"
    save_noise_images(folder, [f"{kind}/{i}.png" for kind in ("cat", "c[red]\x1b:dog:") for i in range(3)])
    for name in names:
        (folder / "cat" / name).write_text("no image")
    code, out, err = mobilevit("check-data", folder)
    assert code == 1
    assert "\x1b" not in out + err
    for text in ("a[red]b.png", "c\\x1b[31m\\n.png", ":dog:.png", "-rf.png", "\\xff.png", "c[red]\\x1b:dog:"):
        assert text in out
    code, out, _ = mobilevit("check-data", folder, "--json")
    assert {problem["name"] for problem in json.loads(out)["bad"]} == {f"cat/{name}" for name in names}


@pytest.mark.parametrize("arguments", [["{folder}/gone"], ["{folder}", "--data-format", "abacus"], ["{empty}"]])
def test_errors_are_one_line(mobilevit, class_folders, tmp_path, arguments):
    (tmp_path / "empty").mkdir()
    paths = {"folder": class_folders, "empty": tmp_path / "empty"}
    code, out, err = mobilevit("check-data", *(argument.format(**paths) for argument in arguments))
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")


def test_image_grid_in_a_missing_folder_is_an_error(mobilevit, class_folders):
    code, out, err = mobilevit("check-data", class_folders, "--image-grid", class_folders / "missing/grid.png")
    assert (code, out) == (2, "")
    assert err.startswith("error: --image-grid: folder ")


def test_relative_box_size_is_in_percent(mobilevit, tmp_path):
    write_voc_dataset(tmp_path / "voc", {f"{i}": voc_xml(("cat", 1, 1, 20, 20)) for i in range(4)})
    assert re.search(
        r"relative box size .*: \d+\.\d% to \d+\.\d% \(median", mobilevit("check-data", tmp_path / "voc")[1]
    )


def test_image_grid_shows_all_classes(mobilevit, tmp_path):
    names = [f"class {i}" for i in range(5)]
    save_noise_images(tmp_path / "photos", [f"{name}/{i}.png" for name in names for i in range(4)])
    (tmp_path / "photos/class 0/0.png").write_text("no image")
    file = tmp_path / "grid.png"
    code, out, _ = mobilevit("check-data", tmp_path / "photos", "--image-grid", file)
    assert code == 1
    assert str(file) in out
    pixels = np.asarray(Image.open(file))
    for color in class_colors(names).values():
        assert (pixels == color).all(-1).sum() > 500
    _, out, _ = mobilevit("check-data", tmp_path / "photos", "--image-grid", file, "--json")
    assert json.loads(out)["image_grid"] == str(file.with_name("grid-2.png"))


@pytest.mark.parametrize("command", [["check-data"], ["train"]])
def test_advice_names_options(mobilevit, tmp_path, command):
    save_noise_images(tmp_path, ["cat/1.png", "cat/2.png"])
    code, out, err = mobilevit(*command, tmp_path)
    assert (code, out) == (2, "")
    assert "--data-format imagefolder" in err
    assert "data_format" not in err


@pytest.fixture
def polygon_folder(tmp_path):
    """Images with YOLO polygons, of the left half, which are read as boxes by default."""
    for i in (1, 2):
        save_image(tmp_path / f"data/images/{i}.png", i)
    rows = {f"data/labels/{i}.txt": "0 0 0 0.5 0 0.5 0.5 0.5 1 0 1\n" for i in (1, 2)}
    write_text_files(tmp_path, rows | {"data/data.yaml": "train: images\nnames: [cat]\n"})
    return tmp_path / "data"


def test_notes_name_options(mobilevit, polygon_folder):
    expected = "The objects also have masks. To train on them: --task image-segmentation."
    assert f"note: {expected}" in mobilevit("check-data", polygon_folder)[1].splitlines()
    assert expected in json.loads(mobilevit("check-data", polygon_folder, "--json")[1])["notes"]


def test_notes_of_training_name_options(mobilevit, monkeypatch, tmp_path):
    def train(arguments, callback):
        callback.on_message('Set data_format="coco", or task="image-segmentation".')
        return TrainingResult(tmp_path, "accuracy", 0.5, 1, 1.0)

    monkeypatch.setattr("mobilevit_hf.training.trainer.train", train)
    code, _, err = mobilevit("train", "data", "--output-dir", tmp_path / "run")
    assert code == 0
    assert err.splitlines()[0] == "note: Set --data-format coco, or --task image-segmentation."


def test_errors_of_an_option_name_options_but_not_in_paths(monkeypatch):
    monkeypatch.setattr(console, "option_names", {"max_steps": "--max-steps", "seed": "--seed"})
    text = "seed: got runs/max_steps with max_steps, a seed, or max_steps."
    assert console.name_options(text) == "--seed: got runs/max_steps with --max-steps, a seed, or --max-steps."
    assert console.name_options("recipe.yaml: got max_steps.") == "recipe.yaml: got max_steps."


def test_tables_show_the_pixels_of_polygons(mobilevit, polygon_folder):
    code, out, _ = mobilevit("check-data", polygon_folder, "--task", "image-segmentation")
    assert code == 0
    assert "image-segmentation, yolo" in out
    assert "cat 50.00% 50.00%" in [" ".join(row.split()) for row in out.splitlines()]


@pytest.fixture
def mask_folder(tmp_path):
    """Images with masks of three classes in two splits: 4 and 2 images, of which one mask has another size."""
    names = [(f"{s}/images/{i}.png", f"{s}/masks/{i}.png") for s, n in (("train", 4), ("val", 2)) for i in range(n)]
    write_mask_dataset(tmp_path / "data", names, values=(0, 1, 2, 2, 2, 255))
    write_text_files(tmp_path / "data", {"classes.txt": "road\ncar\ntree\n"})
    Image.new("L", (8, 8)).save(tmp_path / "data/train/masks/3.png")
    return tmp_path / "data"


def test_tables_show_the_pixels_of_masks(mobilevit, mask_folder):
    code, out, _ = mobilevit("check-data", mask_folder)
    rows = [line.split() for line in out.splitlines()]
    assert code == 1
    assert "image-segmentation, maskfolder" in out
    assert ["road", "20.00%", "20.00%"] in rows
    assert ["tree", "60.00%", "60.00%"] in rows
    assert ["ignored,", "of", "all", "pixels", "16.67%", "16.67%"] in rows
    assert ["total", "images", "3", "2"] in rows
    assert "mask of another size: 1" in out
    assert "train/images/3.png: mask of 8x8 pixels, image of 24x16" in out


def test_json_of_masks(mobilevit, mask_folder):
    report = json.loads(mobilevit("check-data", mask_folder, "--json")[1])
    assert report["splits"]["validation"] == {
        "samples": 2,
        "classes": {"road": 128, "car": 128, "tree": 384},
        "fractions": {"road": 0.2, "car": 0.2, "tree": 0.6},
        "ignored_pixels": 128,
    }
    assert report["bad_by_kind"] == {"mask of another size": 1}


def test_image_grid_shows_masks(mobilevit, mask_folder, tmp_path):
    mobilevit("check-data", mask_folder, "--image-grid", tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).reshape(-1, 3)
    for name, color in class_colors(("road", "car", "tree")).items():
        assert (np.abs(pixels.astype(int) - color).max(axis=1) <= 2).sum() > 50, name


def test_task_chooses_the_annotations(mobilevit, tmp_path):
    write_voc_dataset(tmp_path / "voc", {str(i): voc_xml(("cell", 1, 2, 30, 20)) for i in range(4)})
    for i in range(4):
        mask = tmp_path / f"voc/SegmentationClass/{i}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(mask)
    report = json.loads(mobilevit("check-data", tmp_path / "voc", "--json")[1])
    assert report["task"] == "object-detection"
    assert any("--task image-segmentation" in note for note in report["notes"])
    chosen = json.loads(mobilevit("check-data", tmp_path / "voc", "--task", "image-segmentation", "--json")[1])
    assert (chosen["task"], len(chosen["splits"]["train"]["classes"])) == ("image-segmentation", 21)
    code, _, error = mobilevit("check-data", tmp_path / "voc", "--task", "image-classification")
    assert (code, error.count("\n")) == (2, 1)
