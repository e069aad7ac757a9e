"""Mask folders: public layouts, class names, colors and values that are not classes."""

import numpy as np
import pytest
from dataset_files import noise_image, problem_kinds, split_sizes, voc_xml
from mask_files import VOC_COLORS, blocks, save_image, save_mask, write_mask_dataset, write_text_files
from PIL import ExifTags, Image

from mobilevit_hf.data.checks import check_dataset
from mobilevit_hf.data.reading import load_dataset
from mobilevit_hf.data.types import IGNORE_INDEX

# Pairs of image and mask, and the sizes of the splits.
LAYOUTS = {
    "folders": ([(f"images/{i}.jpg", f"masks/{i}.png") for i in range(3)], {"train": 3}),
    "wrapped": ([(f"a/b/images/{i}.jpg", f"a/b/labels/{i}.png") for i in range(3)], {"train": 3}),
    "splits in folders": (
        [(f"images/{s}/{i}.jpg", f"annotations/{s}/{i}.png") for s in ("training", "validation") for i in range(2)],
        {"train": 2, "validation": 2},
    ),
    "folders in splits": (
        [(f"{s}/images/{i}.jpg", f"{s}/masks/{i}.png") for s in ("train", "val", "test") for i in range(2)],
        {"train": 2, "validation": 2, "test": 2},
    ),
    "SegNet": (
        [(f"{s}/{i}.png", f"{s}annot/{i}.png") for s in ("train", "val", "test") for i in range(2)],
        {"train": 2, "validation": 2, "test": 2},
    ),
    "CamVid": ([(f"701_StillsRaw_full/{i}.png", f"LabeledApproved_full/{i}_L.png") for i in "ab"], {"train": 2}),
    "Carvana": ([(f"train/{i}_01.jpg", f"train_masks/{i}_01_mask.gif") for i in range(2)], {"train": 2}),
    "Roboflow": (
        [(f"{s}/{i}.jpg", f"{s}/{i}_mask.png") for s in ("train", "valid") for i in range(2)],
        {"train": 2, "validation": 2},
    ),
    "DeepGlobe": ([(f"train/{i}_sat.jpg", f"train/{i}_mask.png") for i in range(2)], {"train": 2}),
    "Supervisely": ([(f"ds0/img/{i}.jpg", f"ds0/masks_machine/{i}.jpg.png") for i in range(2)], {"train": 2}),
    "beginnings": ([(f"image/image_{i}.png", f"mask/mask_{i}.png") for i in range(2)], {"train": 2}),
    "Cityscapes": (
        [
            (f"leftImg8bit/{s}/{c}/{c}_0_{i}_leftImg8bit.png", f"gtFine/{s}/{c}/{c}_0_{i}_gtFine_labelTrainIds.png")
            for s, c in (("train", "aachen"), ("train", "bochum"), ("val", "munster"))
            for i in range(2)
        ],
        {"train": 4, "validation": 2},
    ),
    "uppercase": ([(f"Images/IMG_{i}.JPG", f"Masks/img_{i}.PNG") for i in range(2)], {"train": 2}),
    "names in several splits": (
        [(f"{s}/{i}.jpg", f"masks/{s}/{i}.png") for s in ("train", "test") for i in range(2)],
        {"train": 2, "test": 2},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognized(tmp_path, layout):
    names, sizes = LAYOUTS[layout]
    masks = write_mask_dataset(tmp_path, names)
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.task, split_sizes(dataset), dataset.problems) == ("image-segmentation", sizes, [])
    read = {sample.name: sample.mask.read() for split in dataset.splits.values() for sample in split}
    prefix = "a/b/" if layout == "wrapped" and "a/b/images/0.jpg" not in read else ""
    assert {f"{prefix}{name}" for name in read} == set(masks)
    for name, mask in read.items():
        np.testing.assert_array_equal(mask, masks[f"{prefix}{name}"])


def test_voc_reads_palette_masks_and_segmentation_lists(tmp_path):
    names = [(f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png") for i in range(6)]
    masks = write_mask_dataset(tmp_path, names, values=(0, 1, 15, 255), palette=[(i, 0, 0) for i in range(256)])
    save_image(tmp_path / "JPEGImages" / "other.jpg")
    for i in range(6):
        save_mask(tmp_path / f"SegmentationObject/{i}.png", values=(0, 1, 2))
    write_text_files(
        tmp_path,
        {
            "ImageSets/Segmentation/train.txt": "0\n1\n2\n",
            "ImageSets/Segmentation/val.txt": "3\n4\n",
            "ImageSets/Segmentation/trainval.txt": "0\n1\n2\n3\n4\n",
            "ImageSets/Main/train.txt": "0\n",
        },
    )
    dataset = load_dataset(tmp_path)
    assert split_sizes(dataset) == {"train": 3, "validation": 2}
    assert (len(dataset.classes), dataset.classes[15]) == (21, "person")
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), masks["JPEGImages/0.jpg"])
    assert "SegmentationObject" in " ".join(dataset.notes)


def test_cityscapes_ids_become_the_19_evaluated_classes(tmp_path):
    names = [("leftImg8bit/train/a/a_0_leftImg8bit.png", "gtFine/train/a/a_0_gtFine_labelIds.png")]
    masks = write_mask_dataset(tmp_path, names, values=(0, 7, 24, 33))
    for ending in ("color", "instanceIds"):
        save_mask(tmp_path / f"gtFine/train/a/a_0_gtFine_{ending}.png")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    expected = np.array([255, *[0] * 33])
    expected[[0, 7, 24, 33]] = 255, 0, 11, 18
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample.mask.read(), expected[masks[sample.name]])
    assert (len(dataset.classes), dataset.classes[11]) == (19, "person")


def test_lists_with_two_columns_pair_files_of_any_names(tmp_path):
    for i in range(3):
        save_image(tmp_path / f"photos/p{i}.png", i)
        save_mask(tmp_path / f"labels/l{2 - i}.png", seed=i)
    save_image(tmp_path / "photos/l0.png")
    rows = [f"/Data/photos/p{i}.png /Data/labels/l{2 - i}.png" for i in range(3)]
    write_text_files(tmp_path, {"train.txt": "\n".join(rows[:2]), "test.txt": rows[2]})
    dataset = load_dataset(tmp_path, validation_fraction=0, task="image-segmentation")
    assert split_sizes(dataset) == {"train": 2, "test": 1}
    np.testing.assert_array_equal(dataset.splits["test"][0].mask.read(), blocks((0, 1, 2), seed=2))


def test_lists_with_two_columns_are_no_classes(tmp_path):
    names = [(f"train/{i}.png", f"trainannot/{i}.png") for i in range(4)]
    write_mask_dataset(tmp_path, names)
    rows = [f"/SegNet/CamVid/{image} /SegNet/CamVid/{mask}" for image, mask in names]
    write_text_files(tmp_path, {"train.txt": "\n".join(rows[:3]), "val.txt": rows[3]})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.task == "image-segmentation"
    assert split_sizes(dataset) == {"train": 3, "validation": 1}


def test_images_in_no_list_need_no_mask(tmp_path):
    write_mask_dataset(tmp_path, [(f"JPEGImages/{i}.png", f"SegmentationClass/{i}.png") for i in range(4)])
    for name in ("listed", "other"):
        save_image(tmp_path / f"JPEGImages/{name}.png")
    lists = {"ImageSets/Segmentation/train.txt": "0\n1\nlisted\n", "ImageSets/Segmentation/val.txt": "2\n3\n"}
    write_text_files(tmp_path, lists)
    dataset = load_dataset(tmp_path)
    assert problem_kinds(dataset) == [("JPEGImages/listed.png", "missing mask")]
    assert "Skipped 1 images without a mask, such as JPEGImages/other.png." in dataset.notes


NAMES = ("road", "car", "tree")
CLASS_FILES = {
    "classes.txt": "road\ncar\ntree\n",
    "labels.txt": "0 road\n1 car\n2 tree\n",
    "label_map.txt": "0: road\n1: car\n2: tree\n",
    "id2label.json": {"0": "road", "1": "car", "2": "tree"},
    "label2id.json": {"road": 0, "car": 1, "tree": 2},
    "classes.json": ["road", "car", "tree"],
    "label_map.pbtxt": "\n".join(f'item {{\n id: {i}\n name: "{name}"\n}}' for i, name in enumerate(NAMES)),
    "data.yaml": "names: [road, car, tree]\n",
    "classes.yaml": "names:\n  0: road\n  1: car\n  2: tree\n",
    "_classes.csv": "Pixel Value, Class\n0, road\n1, car\n2, tree\n",
}


@pytest.mark.parametrize("file", CLASS_FILES)
def test_class_files(tmp_path, file):
    masks = write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")])
    write_text_files(tmp_path, {file: CLASS_FILES[file]})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == NAMES
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), masks["images/a.png"])


PALETTES = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:0,0,0::\ncar:128,0,0::\ntree:0,128,0::\nsky:128,128,0::\n",
    "class_dict.csv": "name,r,g,b\nroad,0,0,0\ncar,128,0,0\ntree,0,128,0\nsky,128,128,0\n",
    "label_colors.txt": "0 0 0\troad\n128 0 0\tcar\n0 128 0\ttree\n128 128 0\tsky\n",
    "palette.json": {"road": [0, 0, 0], "car": [128, 0, 0], "tree": [0, 128, 0], "sky": [128, 128, 0]},
    "meta.json": {
        "classes": [
            {"title": name, "shape": "any", "color": color, "id": 17 - i}
            for i, (name, color) in enumerate(
                {"road": "#000000", "car": "#800000", "tree": "#008000", "sky": "#808000"}.items()
            )
        ]
    },
}


@pytest.mark.parametrize("stored", ["colors", "palette"])
@pytest.mark.parametrize("file", PALETTES)
def test_colors_are_matched_to_a_palette_file(tmp_path, file, stored):
    options = {stored: VOC_COLORS}
    masks = write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")], values=(0, 1, 2, 3), **options)
    write_text_files(tmp_path, {file: PALETTES[file]})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == (*NAMES, "sky")
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), masks["images/a.png"])


def test_cvat_segmentation_masks(tmp_path):
    names = [(f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png") for i in range(2)]
    masks = write_mask_dataset(tmp_path, names, values=(0, 1, 2, 3), colors=VOC_COLORS)
    write_text_files(
        tmp_path, {"labelmap.txt": PALETTES["labelmap.txt"], "ImageSets/Segmentation/default.txt": "0\n1\n"}
    )
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.classes, split_sizes(dataset)) == ((*NAMES, "sky"), {"train": 2})
    np.testing.assert_array_equal(dataset.splits["train"][1].mask.read(), masks["JPEGImages/1.jpg"])


def test_unknown_colors_are_ignored_and_counted(tmp_path):
    colors = [*VOC_COLORS[:3], (1, 2, 3)]
    write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")], values=(0, 1, 2, 3), colors=colors)
    write_text_files(tmp_path, {"class_dict.csv": PALETTES["class_dict.csv"]})
    mask = load_dataset(tmp_path, validation_fraction=0).splits["train"][0].mask
    labels, unknown = mask.inspect()
    assert unknown == {0x010203: int((labels == IGNORE_INDEX).sum())}
    assert mask.encoding.describe(0x010203) == "color (1, 2, 3)"


def test_color_masks_without_a_palette_raise(tmp_path):
    write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")], values=(0, 1, 2, 3), colors=VOC_COLORS)
    with pytest.raises(
        ValueError, match=r"color masks and no palette.*\(128, 0, 0\).*Add a file classes\.csv with the columns name,r"
    ):
        load_dataset(tmp_path)


@pytest.mark.parametrize("file", [None, "class_dict.csv"])
def test_color_masks_in_jpeg_files_raise(tmp_path, file):
    write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")], values=(0, 1, 2, 3), colors=VOC_COLORS)
    mask = tmp_path / "masks" / "a.png"
    with Image.open(mask) as image:
        image.convert("RGB").save(mask.with_suffix(".jpg"), quality=50)
    mask.unlink()
    write_text_files(tmp_path, {file: PALETTES[file]} if file else {})
    with pytest.raises(ValueError, match=r"JPEG files such as a\.jpg.*Save masks as PNG"):
        load_dataset(tmp_path)


def test_few_colors_without_a_palette_are_problems_with_advice(tmp_path):
    """Most pixels are black, as in masks of small objects."""
    values = (0, 0, 0, 0, 0, 1)
    write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")], values=values, colors=VOC_COLORS)
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert "Add a file classes.csv with the columns name,r,g,b" in " ".join(dataset.notes)
    assert [problem.kind for problem in check_dataset(dataset).problems] == ["color mask without a palette"]


@pytest.mark.parametrize("names", [("#road", "#car", "tree"), ("1", "2", "3"), ("7", "#8", "9")])
@pytest.mark.parametrize("head", ["", "# names of classes\n"])
def test_names_may_be_numbers_or_start_with_a_hash(tmp_path, names, head):
    write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")])
    write_text_files(tmp_path, {"classes.txt": head + "\n".join(names)})
    assert load_dataset(tmp_path, validation_fraction=0).classes == names


def test_number_of_classes_before_their_names(tmp_path):
    write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")])
    write_text_files(tmp_path, {"classes.txt": "3\nroad\ncar\ntree\n"})
    assert load_dataset(tmp_path, validation_fraction=0).classes == ("road", "car", "tree")


def test_classes_in_jpeg_masks_raise(tmp_path):
    (tmp_path / "masks").mkdir()
    for i in range(3):
        save_image(tmp_path / f"images/{i}.png")
        mask = Image.fromarray(100 * blocks((0, 1, 2), i)).resize((48, 32), Image.Resampling.NEAREST).rotate(20)
        mask.save(tmp_path / f"masks/{i}.jpg", quality=70)
    with pytest.raises(ValueError, match=r"different values in JPEG files, such as 0\.jpg.*Save masks as PNG"):
        load_dataset(tmp_path)


def test_unreadable_mask_is_named(tmp_path):
    write_mask_dataset(tmp_path, [(f"images/{i}.jpg", f"masks/{i}.png") for i in range(3)])
    (tmp_path / "masks/1.png").write_bytes(b"")
    (problem,) = check_dataset(load_dataset(tmp_path, validation_fraction=0)).problems
    assert (problem.name, problem.kind) == ("images/1.jpg", "unreadable mask")
    assert problem.reason.startswith("masks/1.png: ")


def test_mask_of_an_image_before_its_rotation(tmp_path):
    write_mask_dataset(tmp_path, [("images/a.jpg", "masks/a.png"), ("images/b.jpg", "masks/b.png")])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    noise_image(0, 24, 16).save(tmp_path / "images/a.jpg", exif=exif)
    (problem,) = check_dataset(load_dataset(tmp_path, validation_fraction=0)).problems
    assert problem.reason == (
        "mask of 24x16 pixels, image of 16x24; the orientation in EXIF applies to the image, not to its mask"
    )


def test_gray_masks_of_three_channels_are_values(tmp_path):
    colors = [(i, i, i) for i in range(3)]
    masks = write_mask_dataset(tmp_path, [("images/a.png", "masks/a.png")], colors=colors)
    dataset = load_dataset(tmp_path, validation_fraction=0)
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), masks["images/a.png"])


def load_values(root, values, classes=None):
    """Return the classes, label by value, and notes of a dataset with masks of some values."""
    masks = write_mask_dataset(root, [("images/a.png", "masks/a.png")], values=values)
    if classes:
        write_text_files(root, {"classes.txt": classes})
    dataset = load_dataset(root, validation_fraction=0)
    labels, unknown = dataset.splits["train"][0].mask.inspect()
    assert not unknown
    by_value = {value: labels[masks["images/a.png"] == value].tolist() for value in values}
    assert all(len(set(part)) == 1 for part in by_value.values())
    return dataset.classes, {value: part[0] for value, part in by_value.items()}, " ".join(dataset.notes)


@pytest.mark.parametrize(
    ("values", "file", "classes", "labels", "note"),
    [
        ((0, 1, 2, 255), None, ("class 0", "class 1", "class 2"), (0, 1, 2, 255), "classes.txt"),
        ((1, 2, 3), None, ("class 1", "class 2", "class 3"), (0, 1, 2), "values of the masks"),  # Oxford pets
        ((0, 255), None, ("background", "foreground"), (0, 1), "255"),
        ((0, 255), "road", ("background", "road"), (0, 1), "255"),
        ((0, 1), "car", ("background", "car"), (0, 1), "value 1"),
        ((0, 1, 2), "road\ncar", ("road", "car"), (0, 1, 255), "Value 2"),  # CamVid
        ((0, 1, 2), "road\ncar\nUnlabelled", ("road", "car"), (0, 1, 255), "Unlabelled"),
        ((0, 1, 2), "void\nroad\ncar", ("road", "car"), (255, 0, 1), "void"),
        ((1, 2, 3), "road\ncar\ntree", ("road", "car", "tree"), (0, 1, 2), "value 1"),
        ((0, 1, 2), "1 road\n2 car", ("background", "road", "car"), (0, 1, 2), "background"),
        ((0, 1, 2), "0 ignore\n1 road\n2 car", ("road", "car"), (255, 0, 1), "ignore"),
    ],
)
def test_values_of_classes(tmp_path, values, file, classes, labels, note):
    names, by_value, notes = load_values(tmp_path, values, file)
    assert (names, by_value) == (classes, dict(zip(values, labels, strict=True)))
    assert note in notes


def test_value_0_of_ade20k_is_ignored(tmp_path):
    masks = write_mask_dataset(tmp_path, [("images/training/a.jpg", "annotations/training/a.png")])
    rows = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t10\t1\t1\twall\n2\t0.1\t9\t1\t1\tbuilding, edifice\n"
    write_text_files(tmp_path, {"objectInfo150.txt": rows})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == ("wall", "building, edifice")
    expected = np.array([255, 0, 1], np.uint8)[masks["images/training/a.jpg"]]
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), expected)


def test_binary_masks_of_lossy_compression_are_rounded(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[10:50, 13:41] = 255
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    noise_image(0, 64, 64).save(tmp_path / "images/a.png")
    Image.fromarray(mask).save(tmp_path / "masks/a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "masks/a.jpg")))) > 10
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == ("background", "foreground")
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), mask // 255)


def test_missing_files_are_reported_by_name(tmp_path):
    write_mask_dataset(tmp_path, [(f"images/{i}.png", f"masks/{i}.png") for i in range(4)])
    save_image(tmp_path / "images/alone.png")
    save_mask(tmp_path / "masks/orphan.png")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert split_sizes(dataset) == {"train": 4}
    assert problem_kinds(dataset) == [("images/alone.png", "missing mask"), ("masks/orphan.png", "missing image")]


def test_folders_without_masks_are_skipped_with_a_note(tmp_path):
    write_mask_dataset(tmp_path, [(f"train/{i}.png", f"train_masks/{i}.png") for i in range(2)])
    save_image(tmp_path / "test/3.png")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (split_sizes(dataset), dataset.problems) == ({"train": 2}, [])
    assert "Skipped 1 images without a mask, such as test/3.png" in " ".join(dataset.notes)


def test_masks_of_16_bits(tmp_path):
    save_image(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    values = blocks((0, 1, 2)).astype(np.uint16)
    Image.fromarray(values * 1000).save(tmp_path / "masks/a.png")
    write_text_files(tmp_path, {"id2label.json": {"0": "road", "1000": "car", "2000": "tree"}})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), values)


@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_folders_of_other_names_are_recognized_by_content(tmp_path, splits):
    names = [(f"{split}original_x/{i}.jpg", f"{split}segmented_y/{i}.png") for split in splits for i in range(4)]
    masks = write_mask_dataset(tmp_path, names)
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.task, sum(split_sizes(dataset).values())) == ("image-segmentation", len(names))
    for sample in dataset.splits["train"]:
        np.testing.assert_array_equal(sample.mask.read(), masks[sample.name])
    assert "segmented_y as the masks of" in " ".join(dataset.notes)
    assert "data_format" in " ".join(dataset.notes)


def test_classes_of_photos_with_the_same_names_are_no_masks(tmp_path):
    for i in range(4):
        save_image(tmp_path / f"cat/{i}.png", i)
        save_image(tmp_path / f"dog/{i}.png", 10 + i)
    assert load_dataset(tmp_path, validation_fraction=0).task == "image-classification"


def test_oxford_pets_with_boxes_lists_and_trimaps(tmp_path):
    names = [(f"images/Abyssinian_{i}.jpg", f"annotations/trimaps/Abyssinian_{i}.png") for i in range(4)]
    masks = write_mask_dataset(tmp_path, names, values=(1, 2, 3))
    write_text_files(
        tmp_path,
        {
            "annotations/trainval.txt": "".join(f"Abyssinian_{i} 1 1 1\n" for i in range(3)),
            "annotations/test.txt": "Abyssinian_3 1 1 1\n",
            "annotations/xmls/Abyssinian_0.xml": voc_xml(("cat", 1, 1, 9, 9), size=(24, 16)),
        },
    )
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.task, 'task="image-segmentation"' in " ".join(dataset.notes)) == ("object-detection", True)
    dataset = load_dataset(tmp_path, validation_fraction=0, task="image-segmentation")
    assert (split_sizes(dataset), dataset.problems) == ({"train": 3, "test": 1}, [])
    assert dataset.classes == ("class 1", "class 2", "class 3")
    np.testing.assert_array_equal(dataset.splits["test"][0].mask.read(), masks[names[3][0]] - 1)


def test_loveda_reads_masks_within_folders_that_may_be_classes(tmp_path):
    names = [
        (f"{split}/{area}/images_png/{i}.png", f"{split}/{area}/masks_png/{i}.png")
        for split in ("Train", "Val")
        for area in ("Rural", "Urban")
        for i in range(2)
    ]
    masks = write_mask_dataset(tmp_path, names)
    dataset = load_dataset(tmp_path)
    assert (dataset.task, 'task="image-segmentation"' in " ".join(dataset.notes)) == ("image-classification", True)
    dataset = load_dataset(tmp_path, task="image-segmentation")
    assert split_sizes(dataset) == {"train": 4, "validation": 4}
    for sample in dataset.splits["validation"]:
        np.testing.assert_array_equal(sample.mask.read(), masks[sample.name])


def test_supervisely_masks_of_the_machine(tmp_path):
    names = [(f"ds0/img/{i}.jpg", f"ds0/masks_machine/{i}.png") for i in range(3)]
    masks = write_mask_dataset(tmp_path, names, colors=[(i, i, i) for i in range(3)])
    for i in range(3):
        save_mask(tmp_path / f"ds0/masks_human/{i}.png", colors=VOC_COLORS)
        write_text_files(tmp_path, {f"ds0/ann/{i}.jpg.json": {"objects": [{"classTitle": "cat"}]}})
    write_text_files(tmp_path, {"obj_class_to_machine_color.json": {"cat": [1, 1, 1], "dog": [2, 2, 2]}})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == ("background", "cat", "dog")
    for sample in dataset.splits["train"]:
        np.testing.assert_array_equal(sample.mask.read(), masks[sample.name])


def test_camvid_with_its_color_table(tmp_path):
    names = [(f"701_StillsRaw_full/{i}.png", f"LabeledApproved_full/{i}_L.png") for i in range(3)]
    masks = write_mask_dataset(tmp_path, names, values=(0, 1, 2, 3), colors=VOC_COLORS)
    rows = ("0 0 0\t\tVoid", "128 0 0\t\tCar", "0 128 0\t\tTree", "128 128 0\tRoad")
    write_text_files(tmp_path, {"label_colors.txt": "\n".join(rows)})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert dataset.classes == ("Car", "Tree", "Road")
    expected = np.array([255, 0, 1, 2], np.uint8)[masks[names[0][0]]]
    np.testing.assert_array_equal(dataset.splits["train"][0].mask.read(), expected)


def test_roboflow_semantic_masks(tmp_path):
    names = [
        (f"{split}/{i}_jpg.rf.0a{i}.jpg", f"{split}/{i}_jpg.rf.0a{i}_mask.png")
        for split in ("train", "valid")
        for i in "ab"
    ]
    write_mask_dataset(tmp_path, names)
    classes = "Pixel Value, Class\n0, background\n1, car\n2, tree\n"
    write_text_files(
        tmp_path, {"train/_classes.csv": classes, "valid/_classes.csv": classes, "README.roboflow.txt": "x"}
    )
    dataset = load_dataset(tmp_path)
    assert (dataset.task, split_sizes(dataset)) == ("image-segmentation", {"train": 2, "validation": 2})
    assert dataset.classes == ("background", "car", "tree")


def test_carvana_with_its_csv_of_rle(tmp_path):
    write_mask_dataset(
        tmp_path, [(f"train/a_0{i}.jpg", f"train_masks/a_0{i}_mask.gif") for i in range(4)], values=(0, 1)
    )
    write_text_files(
        tmp_path, {"train_masks.csv": "img,rle_mask\n" + "".join(f"a_0{i}.jpg,{i} 3 9 2\n" for i in range(4))}
    )
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.task, split_sizes(dataset)) == ("image-segmentation", {"train": 4})
