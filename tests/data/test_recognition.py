"""The format of last resort: wrapped datasets, folders that are no classes, and annotations that are not read."""

import numpy as np
import pytest
from dataset_files import coco_json, noise_image, save_image, save_noise_images, split_sizes, voc_xml, write
from PIL import Image

from mobilevit_hf.data.reading import load_dataset

# Images of a classifier, by a wrapper or the names of its splits.
CLASS_LAYOUTS = {
    "wrapped": (["pets/cat", "pets/dog"], {"train"}),
    "wrapped twice": (["archive/pets/cat", "archive/pets/dog"], {"train"}),
    "wrapped splits": (["chest/train/cat", "chest/train/dog", "chest/test/cat", "chest/test/dog"], {"train", "test"}),
    "capital splits": (["Training/cat", "Training/dog", "TEST/cat", "TEST/dog"], {"train", "test"}),
    "words in splits": (["train set/cat", "train set/dog", "test_set/cat", "test_set/dog"], {"train", "test"}),
    "splits that wrap": (["seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_test/seg_test/cat"], None),
    "unlabeled images": (["seg_train/cat", "seg_train/dog", "seg_pred/seg_pred"], {"train"}),
    "images in splits": (["train/images/cat", "train/images/dog", "val/images/dog"], {"train", "validation"}),
    "unlabeled test": (["train/cat", "train/dog", "test"], {"train"}),
    "a copy in itself": (["train/cat", "train/dog", "pets/train/cat", "pets/train/dog"], {"train"}),
}


def add_images(root, folders, count=2):
    for number, folder in enumerate(folders):
        for i in range(count):
            (root / folder).mkdir(parents=True, exist_ok=True)
            noise_image(10 * number + i).save(root / folder / f"{number}{i}.png")


@pytest.mark.parametrize("data_format", [None, "imagefolder"])
@pytest.mark.parametrize("layout", CLASS_LAYOUTS)
def test_class_folders_are_found(tmp_path, layout, data_format):
    folders, splits = CLASS_LAYOUTS[layout]
    add_images(tmp_path, [*folders, "__MACOSX/cat", ".git/x"])
    for name in ("README.md", "LICENSE", "pets/README.txt", ".DS_Store", "docs/index.html"):
        write(tmp_path / name, "about this dataset")
    dataset = load_dataset(tmp_path, data_format=data_format, validation_fraction=0)
    assert dataset.classes == ("cat", "dog")
    assert dataset.data_format == "imagefolder"
    assert set(dataset.splits) == (splits or {"train", "test"})
    wrapper = folders[0].rsplit("/", 1)[0] if layout.startswith("wrapped") else None
    assert wrapper is None or any(wrapper.removesuffix("/train") in note for note in dataset.notes)


def test_images_outside_of_a_wrapper_are_noted(tmp_path):
    add_images(tmp_path, ["pets/cat", "pets/dog"])
    save_image(tmp_path / "logo.png")
    notes = " ".join(load_dataset(tmp_path).notes)
    assert "folder pets" in notes
    assert "Skipped 1 images elsewhere, such as logo.png" in notes


def test_a_dataset_next_to_other_images_is_entered(tmp_path):
    add_images(tmp_path, ["docs"])
    save_image(tmp_path / "BCCD" / "JPEGImages" / "a.jpg", (40, 30))
    write(tmp_path / "BCCD" / "Annotations" / "a.xml", voc_xml(("cell", 1, 2, 30, 20)))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.data_format, dataset.classes, split_sizes(dataset)) == ("voc", ("cell",), {"train": 1})


UNLABELED = {
    "flat": [""],
    "one folder": ["images"],
    "wrapped": ["data/images"],
    "one class": ["cat"],
    "one class in splits": ["train/cat", "test/cat"],
    "splits without classes": ["train", "test"],
    "named splits without classes": ["train_images", "test_images"],
    "splits of a subject": ["cars_train", "cars_test"],
    "parts": ["photos_part_1", "photos_part_2"],
    "image folders in splits": ["train/images", "valid/images"],
}


@pytest.mark.parametrize("layout", UNLABELED)
def test_folders_that_are_no_classes_raise(tmp_path, layout):
    add_images(tmp_path, UNLABELED[layout])
    with pytest.raises(ValueError, match=r"expected (at least two classes|a folder for each class)") as error:
        load_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folders", [["cat"], ["data/cat"], ["train/cat"]])
def test_one_class_is_read_on_request(tmp_path, folders):
    add_images(tmp_path, folders)
    assert load_dataset(tmp_path, data_format="imagefolder").classes == ("cat",)


LABELME = {"version": "5.0", "shapes": [{"label": "cat", "points": [[1, 2], [3, 4]]}], "imagePath": "00.png"}
STUDIO = [{"id": 1, "annotations": [{"result": [{"type": "rectanglelabels"}]}], "data": {"image": "/data/00.png"}}]
VIA = {"_via_settings": {}, "_via_img_metadata": {"00.png1": {"filename": "00.png", "regions": []}}}
CVAT = '<annotations><version>1.1</version><image id="0" name="00.png" width="24" height="16"/></annotations>'
DATUMARO = {"dm_format_version": "1.0", "info": {}, "categories": {}, "items": [{"id": "00", "annotations": []}]}
OTHER_TOOLS = {
    "result.json": (STUDIO, "Label Studio"),
    "project-1.json": ([{"image": "/data/00.png", "choice": "cat", "annotator": 1}], "Label Studio"),
    "project-1.csv": ('image,id,label\n/data/upload/00.png,1,"[{""rectanglelabels"": [""cat""]}]"\n', "Label Studio"),
    "images/00.json": (LABELME, "LabelMe"),
    "via_project.json": (VIA, "VGG Image Annotator"),
    "annotations.xml": (CVAT, "CVAT"),
    "annotations/default.json": (DATUMARO, "Datumaro"),
    "ann/00.png.json": ({"size": {}, "objects": [{"classTitle": "cat", "points": {}}]}, "Supervisely"),
    "_annotations.createml.json": ([{"image": "00.png", "annotations": [{"coordinates": {}}]}], "CreateML"),
    "train.tfrecord": ("", "TFRecord"),
    "data/train.record-00000-of-00002": ("", "TFRecord"),
    "anno.mat": ("", "MATLAB"),
    "labels.xlsx": ("", "Excel"),
    "captions.jsonl": (
        '{"file": "00.png", "suffix": "cat"}\n{"file": "01.png", "suffix": "dog"}\n',
        "names the images",
    ),
    "output.manifest": ('{"source-ref": "s3://a/00.png"}\n{"source-ref": "s3://a/01.png"}\n', "names the images"),
    "notes.txt": ("00.png: a cat\n01.png: a dog\n", "names the images"),
}


@pytest.mark.parametrize("file", OTHER_TOOLS)
def test_unread_annotations_next_to_one_folder_are_named(tmp_path, file):
    content, tool = OTHER_TOOLS[file]
    add_images(tmp_path, ["images"])
    write(tmp_path / file, content)
    with pytest.raises(ValueError, match=f"{file}.*{tool}.*(COCO JSON|CSV)"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("folders", "action"), [(["images"], "Give each label file the name"), ([], "Add the images")]
)
def test_label_files_without_their_images_are_named(tmp_path, folders, action):
    add_images(tmp_path, folders)
    for name in ("0a1b2c3d-x.txt", "0a1b2c3d-y.txt"):
        write(tmp_path / "labels" / name, "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match=rf"labels/0a1b2c3d-x\.txt and 1 more \(rows .*YOLO\).*{action}"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("file", ["result.json", "annotations.xml", "cat/00.json"])
def test_unread_annotations_next_to_class_folders_raise(tmp_path, file):
    add_images(tmp_path, ["cat", "dog"])
    write(tmp_path / file, OTHER_TOOLS.get(file, (LABELME, ""))[0])
    with pytest.raises(ValueError, match=f'annotations that are not read: {file}.*data_format="imagefolder"'):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, data_format="imagefolder").classes == ("cat", "dog")


@pytest.mark.parametrize("file", ["classes.txt", "class_indices.json", "train_list.mat", "requirements.txt"])
def test_other_files_next_to_class_folders_are_skipped(tmp_path, file):
    add_images(tmp_path, ["cat", "dog"])
    write(tmp_path / file, "cat\ndog\n")
    assert load_dataset(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    "folders",
    [("images", "masks"), ("images", "trimaps"), ("train", "trainannot"), ("train/images", "train/labels")],
)
def test_folders_of_masks_are_recognized(tmp_path, folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    for i in range(3):
        noise_image(i).save(tmp_path / folders[0] / f"{i}.jpg")
        Image.fromarray(np.full((16, 24), i, np.uint8)).save(tmp_path / folders[1] / f"{i}.png")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.task, dataset.data_format) == ("image-segmentation", "maskfolder")
    assert [sample.name for sample in dataset.splits["train"]] == [f"{folders[0]}/{i}.jpg" for i in range(3)]
    with pytest.raises(ValueError, match=r'mask images in .*task="image-segmentation"'):
        load_dataset(tmp_path, task="image-classification")


def test_masks_next_to_images_are_recognized(tmp_path):
    for name in ("train/1.png", "train/1_mask.png", "valid/2.png", "valid/2_mask.png"):
        image = noise_image(1) if "mask" not in name else Image.new("L", (24, 16), 1)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    dataset = load_dataset(tmp_path)
    assert (dataset.task, split_sizes(dataset)) == ("image-segmentation", {"train": 1, "validation": 1})


def test_boxes_are_preferred_to_masks_with_a_note(tmp_path):
    save_noise_images(tmp_path, ["images/a.jpg"])
    noise_image(0, 40, 30).save(tmp_path / "images" / "a.jpg")
    write(tmp_path / "annotations" / "a.xml", voc_xml(("cell", 1, 2, 30, 20)))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.task == "object-detection"
    assert 'task="image-segmentation"' in " ".join(dataset.notes)
    dataset = load_dataset(tmp_path, validation_fraction=0, task="image-segmentation")
    assert (dataset.task, dataset.classes) == ("image-segmentation", ("class 0", "class 1"))


def test_masks_are_preferred_to_coco_in_segmentation(tmp_path):
    (tmp_path / "masks").mkdir()
    noise_image(0, 40, 30).save(tmp_path / "a.jpg")
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    write(tmp_path / "data.json", coco_json([[1, 2, 3, 4]]))
    assert load_dataset(tmp_path, validation_fraction=0).task == "object-detection"
    dataset = load_dataset(tmp_path, validation_fraction=0, task="image-segmentation")
    assert dataset.data_format == "maskfolder"
    assert 'data_format="coco"' in " ".join(dataset.notes)


def test_folders_that_all_contain_the_same_classes_raise(tmp_path):
    add_images(tmp_path, [f"raw/{kind}/{name}" for kind in ("color", "gray") for name in ("cat", "dog")])
    with pytest.raises(ValueError, match=f"Pass one of them, such as {tmp_path}/raw/color"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, data_format="imagefolder").classes == ("color", "gray")
    assert load_dataset(tmp_path / "raw" / "color").classes == ("cat", "dog")


def test_masks_within_class_folders_are_skipped(tmp_path):
    for name in ("covid", "normal"):
        add_images(tmp_path, [f"{name}/images", f"{name}/masks"])
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.classes, split_sizes(dataset)) == (("covid", "normal"), {"train": 4})
    assert "covid/masks" in " ".join(dataset.notes)


def test_archives_in_the_folder_are_named(tmp_path):
    write(tmp_path / "train.zip", "")
    with pytest.raises(ValueError, match=r"train\.zip.*Unpack"):
        load_dataset(tmp_path)


def test_archives_next_to_images_are_named(tmp_path):
    save_image(tmp_path / "photos" / "a.jpg")
    write(tmp_path / "labels_my-project-name.zip", "")
    with pytest.raises(ValueError, match=r"one folder of images .*labels_my-project-name\.zip.*Unpack"):
        load_dataset(tmp_path)


def test_a_run_is_no_dataset(tmp_path):
    save_image(tmp_path / "curves.png")
    write(tmp_path / "run.json", {})
    with pytest.raises(ValueError, match="output of a training run"):
        load_dataset(tmp_path)


def test_the_only_readable_format_is_chosen(tmp_path):
    save_image(tmp_path / "images" / "a.jpg", (40, 30))
    write(tmp_path / "annotations" / "a.xml", voc_xml(("cell", 1, 2, 30, 20)))
    write(tmp_path / "data.json", coco_json([[1, 2, 3, 4]], images=[{"id": 1, "file_name": "missing.jpg"}]))
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.data_format == "voc"
    assert "coco" in " ".join(dataset.notes)


def test_several_datasets_raise(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name / "train.parquet", "")
    with pytest.raises(ValueError, match="several datasets, in one, two"):
        load_dataset(tmp_path)


REPOSITORIES = {
    "examples": (["Dataset/0", "Dataset/1", "Examples"], "Dataset"),
    "documentation": (["faces/with", "faces/without", "Readme_images", "Logo", "net/Readme_images"], "faces"),
    "other folders": (["images/cat", "images/dog", "tools/plots", "weights"], "images"),
    "container": (["database/cat", "database/dog", "images"], "database"),
    "splits": (["work/data/cat", "work/data/dog", "work/split/train/cat", "work/split/train/dog"], "work/split"),
    "classes": (["cat", "dog", "docs", "screenshots"], "."),
}


@pytest.mark.parametrize("case", REPOSITORIES)
def test_the_dataset_of_a_repository_is_found(tmp_path, case):
    folders, expected = REPOSITORIES[case]
    add_images(tmp_path, folders)
    (tmp_path / "README.md").write_text("A repository.")
    dataset = load_dataset(tmp_path)
    assert dataset.root == tmp_path / expected
    assert len(dataset.classes) == 2
    assert "Skipped" in " ".join(dataset.notes)


def test_most_images_of_a_repository_are_its_dataset(tmp_path):
    add_images(tmp_path, ["faces/with", "faces/without"], 10)
    add_images(tmp_path, ["other"], 1)
    assert load_dataset(tmp_path).classes == ("faces", "other")
    (tmp_path / "train.py").touch()
    assert load_dataset(tmp_path).classes == ("with", "without")


def test_a_class_may_have_the_name_of_documentation(tmp_path):
    add_images(tmp_path, ["figure", "table"], 51)
    (tmp_path / "README.md").touch()
    assert load_dataset(tmp_path).classes == ("figure", "table")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["dataset/with_mask", "Readme_images", "Logo"], "dataset: got one folder of images"),
        (["docs/img", "assets", "demo"], "images without labels"),
        (["images", "checkpoint/cells"], "not named after classes"),
        (["src/net", "tools/track"], "images without labels"),
        (["data/cat", "data/dog", "more/cat", "more/dog"], "several datasets, in data, more"),
        (["JPEGImages", "SegmentationClass", "SegmentationClassVisualization"], "Give each mask the name"),
    ],
)
def test_a_repository_without_one_dataset_raises(tmp_path, folders, expected):
    add_images(tmp_path, folders)
    (tmp_path / "README.md").write_text("A repository.")
    for folder in folders:
        if folder.startswith(("src", "tools")):
            (tmp_path / folder / "main.py").touch()
    with pytest.raises(ValueError, match=expected):
        load_dataset(tmp_path)
