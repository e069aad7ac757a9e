"""Tables of labels or boxes next to images."""

import pytest
from dataset_files import labeled_boxes, noise_image, problem_kinds, sample_names, save_image, split_sizes, write

from mobilevit_hf.data.reading import load_dataset

NAMES = [f"{n:03}" for n in range(6)]
LABELS = ["cat", "dog", "cat", "dog", "dog", "cat"]
IDS = [f"{name},{label}" for name, label in zip(NAMES, LABELS, strict=True)]
FILES = [f"{name}.png,{label}" for name, label in zip(NAMES, LABELS, strict=True)]
ONE_HOT = [f"{name}.png,{label == 'cat':d}, {label == 'dog':d}" for name, label in zip(NAMES, LABELS, strict=True)]

# Name and lines of a table of the images `images/000.png` to `images/005.png`.
TABLES = {
    "columns": ("labels.csv", ["filename,label", *FILES]),
    "names without suffix": ("labels.csv", ["id,breed", *IDS]),
    "any names": ("ground_truth.csv", ["photo,what", *FILES]),
    "no header": ("labels.csv", FILES),
    "label first": ("labels.csv", ["label,image", *(",".join(reversed(row.split(","))) for row in FILES)]),
    "nested": ("meta/info/labels.csv", ["filename,label", *FILES]),
    "next to the images": ("images/annotations.csv", ["filename,label", *FILES]),
    "metadata of other columns": ("metadata.csv", ["image,class", *FILES]),
    "paths": ("labels.csv", ["path,label", *(f"images/{row}" for row in FILES)]),
    "paths of another machine": (
        "labels.csv",
        ["path,label", *(f"/content/drive/data/images/{row}" for row in FILES)],
    ),
    "Windows paths": ("labels.csv", ["path,label", *(f"C:\\data\\images\\{row}" for row in FILES)]),
    "semicolons": ("labels.csv", ["filename;label", *(row.replace(",", ";") for row in FILES)]),
    "tabs": ("labels.tsv", ["filename\tlabel", *(row.replace(",", "\t") for row in FILES)]),
    "text list": ("train.txt", [f"images/{row.replace(',', ' ')}" for row in FILES]),
    "more columns": (
        "train.csv",
        ["id,filename,label,width,height", *(f"{n},{r},24,16" for n, r in enumerate(FILES))],
    ),
    "one-hot": ("_classes.csv", ["filename, cat, dog", *ONE_HOT]),
}


def write_table(root, name, lines, images="images"):
    for number, image in enumerate(NAMES):
        (root / images).mkdir(parents=True, exist_ok=True)
        noise_image(number).save(root / images / f"{image}.png")
    write(root / name, "\n".join(lines) + "\n")


def labels_by_name(dataset):
    samples = [sample for split in dataset.splits.values() for sample in split]
    return [dataset.classes[sample.label] for sample in sorted(samples, key=lambda sample: sample.name)]


@pytest.mark.parametrize("layout", TABLES)
def test_labels_are_read(tmp_path, layout):
    write_table(tmp_path, *TABLES[layout])
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.data_format, dataset.task, dataset.classes) == ("csv", "image-classification", ("cat", "dog"))
    assert labels_by_name(dataset) == LABELS
    assert not dataset.problems
    assert any(TABLES[layout][0] in note for note in dataset.notes)


@pytest.mark.parametrize("file", ["labels.csv", "images/metadata.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path, encoding, file):
    write_table(tmp_path, "x", [])
    rows = [f"{name}.png,{'äé'[n % 2]}" for n, name in enumerate(NAMES)]
    (tmp_path / file).write_text("\n".join(["file_name,label", *rows]), encoding=encoding)
    assert load_dataset(tmp_path).classes == ("ä", "é")


def test_a_single_file_is_read(tmp_path):
    write_table(tmp_path, *TABLES["columns"])
    write(tmp_path / "other.csv", "filename,label\n000.png,x\n001.png,y\n")
    with pytest.raises(ValueError, match=r"labels\.csv, other\.csv"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / "labels.csv").classes == ("cat", "dog")


@pytest.mark.parametrize("marked", ["column", "files", "folders"])
def test_splits(tmp_path, marked):
    train, test = FILES[:4], FILES[4:]
    write_table(tmp_path, "x", [])
    if marked == "column":
        rows = [*(f"{row},train" for row in train), *(f"{row},Test" for row in test)]
        write(tmp_path / "labels.csv", "\n".join(["filename,label,split", *rows]))
    elif marked == "files":
        for name, rows in {"train_labels": train, "test_labels": test, "all_labels": FILES}.items():
            write(tmp_path / f"{name}.csv", "\n".join(["filename,label", *rows]))
    else:
        (tmp_path / "images").rename(tmp_path / "train")
        (tmp_path / "test").mkdir()
        for name in NAMES[4:]:
            (tmp_path / "train" / f"{name}.png").rename(tmp_path / "test" / f"{name}.png")
        write(tmp_path / "labels.csv", "\n".join(["filename,label", *FILES]))
    assert split_sizes(load_dataset(tmp_path, validation_fraction=0)) == {"train": 4, "test": 2}


def test_kaggle_competition(tmp_path):
    write_table(tmp_path, "train.csv", ["image_id,label", *IDS], images="train_images")
    save_image(tmp_path / "test_images" / "900.png")
    write(tmp_path / "sample_submission.csv", "image_id,label\n900.png,cat\n")
    write(tmp_path / "label_map.json", {"0": "cat"})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.classes, split_sizes(dataset)) == (("cat", "dog"), {"train": 6})
    assert "test_images/900.png" in " ".join(dataset.notes)


def test_missing_and_ambiguous_rows_are_reported(tmp_path):
    rows = [*FILES[:4], "404.png,cat", "000.png,dog", "001.png,dog", "005.png,", ",dog"]
    write_table(tmp_path, "labels.csv", ["filename,label", *rows])
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert problem_kinds(dataset) == [
        ("", "missing image"),
        ("404.png", "missing image"),
        ("images/000.png", "unreadable annotation"),
        ("images/005.png", "unreadable annotation"),
    ]
    assert "Skipped 2 images in no row, such as images/004.png." in dataset.notes


def test_classes_that_are_numbers_are_in_numerical_order(tmp_path):
    rows = [f"{name}.png,{number}" for name, number in zip(NAMES, (10, 2, 1, 10, 2, 1), strict=True)]
    write_table(tmp_path, "labels.csv", ["filename,label", *rows])
    assert load_dataset(tmp_path).classes == ("1", "2", "10")


@pytest.mark.parametrize("folders", ["cat dog", "train test"])
def test_class_folders_are_preferred_if_they_agree(tmp_path, folders):
    values = {}
    for folder in folders.split():
        for i in range(4):
            save_image(tmp_path / folder / f"{folder}{i}.png")
            values[f"{folder}{i}.png"] = folder if "cat" in folders else "xy"[i % 2]
    write(tmp_path / "list.csv", "filename,label\n" + "".join(f"{name},{label}\n" for name, label in values.items()))
    dataset = load_dataset(tmp_path)
    assert dataset.data_format == ("imagefolder" if "cat" in folders else "csv")
    assert "list.csv" in " ".join(dataset.notes)


@pytest.mark.parametrize("rows", ["index", "split"])
def test_class_folders_are_preferred_to_lists(tmp_path, rows):
    for number, name in enumerate(NAMES):
        save_image(tmp_path / "images" / LABELS[number] / f"{name}.png")
    lines = [
        f"{n} {LABELS[n]}/{name}.png" if rows == "index" else f"{LABELS[n]}/{name}" for n, name in enumerate(NAMES)
    ]
    write(tmp_path / "images.txt", "\n".join(lines))
    dataset = load_dataset(tmp_path)
    assert (dataset.data_format, dataset.classes) == ("imagefolder", ("cat", "dog"))


def test_numbers_that_equal_names_of_images_are_no_file_names(tmp_path):
    """As in the German traffic signs: coordinates and classes are names of the images in `Meta`."""
    for name in [*(f"Train/{name}.png" for name in NAMES), "Meta/1.png", "Meta/2.png"]:
        save_image(tmp_path / name)
    rows = [f"1,2,{1 + n % 2},Train/{name}.png" for n, name in enumerate(NAMES)]
    write(tmp_path / "Train.csv", "\n".join(["Roi.X1,Roi.X2,ClassId,Path", *rows]))
    write(tmp_path / "Meta.csv", "Path,ClassId,ShapeId\nMeta/1.png,1,0\nMeta/2.png,2,1\n")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.classes, split_sizes(dataset)) == (("1", "2"), {"train": 6})
    assert not dataset.problems


def test_parts_of_a_dataset_are_no_classes(tmp_path):
    for number, name in enumerate(NAMES):
        save_image(tmp_path / f"HAM_images_part_{1 + number % 2}" / f"{name}.png")
    rows = [f"x,{name},{label},80.0" for name, label in zip(NAMES, LABELS, strict=True)]
    write(tmp_path / "HAM_metadata.csv", "\n".join(["lesion_id,image_id,dx,age", *rows]))
    assert load_dataset(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize("table", ["caption", "two columns", "fraction", "several labels"])
def test_tables_without_clear_labels_are_named(tmp_path, table):
    rows = {
        "caption": ["filename,caption", *(f"{name}.png,image {name} " + "of a cat" * 20 for name in NAMES)],
        "two columns": ["filename,type1,type2", *(f"{row},x" for row in FILES)],
        "fraction": ["filename,score", *(f"{name}.png,0.{name}1" for name in NAMES)],
        "several labels": ["filename,cat,dog", *(f"{name}.png,1,{n % 2}" for n, name in enumerate(NAMES))],
    }[table]
    write_table(tmp_path, "table.csv", rows)
    with pytest.raises(ValueError, match=r"table\.csv \(columns filename, .*file_name and label"):
        load_dataset(tmp_path)


BOX_TABLES = {
    "TensorFlow": [
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        "{},40,30,cat,1,2,11,12",
        "{},40,30,dog,5,6,25,26",
    ],
    "corners": ["image_id,x1,y1,x2,y2,label", "{},1,2,11,12,cat", "{},5,6,25,26,dog"],
    "OpenImages": [
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax",
        "{},x,cat,1,0.025,0.275,0.0666667,0.4",
        "{},x,dog,1,0.125,0.625,0.2,0.866667",
    ],
    "one column": ["image_id,width,height,bbox,label", '{},40,30,"[1, 2, 10.0, 10]",cat', "{},40,30,5 6 20 20,dog"],
    "no header": ["images/{},1,2,11,12,cat", "images/{},5,6,25,26,dog"],
}


@pytest.mark.parametrize("layout", BOX_TABLES)
def test_boxes_are_read(tmp_path, layout):
    for name in "abc":
        save_image(tmp_path / "images" / f"{name}.png", (40, 30))
    header, *rows = ["", *BOX_TABLES[layout]] if layout == "no header" else BOX_TABLES[layout]
    empty = ["images/b.png,,,,,"] if layout == "no header" else []
    lines = [header, *(row.format("a.png") for row in rows), *empty]
    write(tmp_path / "_annotations.csv", "\n".join(line for line in lines if line) + "\n")
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert (dataset.data_format, dataset.task, dataset.classes) == ("csv", "object-detection", ("cat", "dog"))
    assert sample_names(dataset.splits["train"]) == ["images/a.png"] + ["images/b.png"] * bool(empty)
    (first, box), (second, other) = labeled_boxes(dataset.splits["train"][0])
    assert (first, second) == (0, 1)
    assert box == pytest.approx([1, 2, 11, 12], abs=0.01)
    assert other == pytest.approx([5, 6, 25, 26], abs=0.01)


@pytest.mark.parametrize("columns", ["x,y,w,h", "X_center,Y_center,Width,Height", "bbox_x,bbox_y,bbox_w,bbox_h"])
def test_boxes_with_a_point_of_unclear_meaning_raise(tmp_path, columns):
    save_image(tmp_path / "a.png", (40, 30))
    save_image(tmp_path / "b.png", (40, 30))
    write(tmp_path / "boxes.csv", f"image,{columns},label\na.png,1,2,9,8,cat\na.png,5,6,9,9,dog\nb.png,1,2,9,8,cat\n")
    with pytest.raises(ValueError, match=r"boxes\.csv.*xmin, ymin, xmax and ymax"):
        load_dataset(tmp_path)


def test_coordinates_next_to_labels_are_no_boxes(tmp_path):
    rows = [f"{name}.png,{n},{n},{label}" for n, (name, label) in enumerate(zip(NAMES, LABELS, strict=True))]
    write_table(tmp_path, "labels.csv", ["image,x,y,label", *rows])
    assert load_dataset(tmp_path).task == "image-classification"


def test_boxes_without_classes_are_of_one_class(tmp_path):
    for name in "ab":
        save_image(tmp_path / f"{name}.png", (40, 30))
    rows = ['a,40,30,"[1, 2, 10, 10]",{}', 'a,40,30,"[5, 6, 20, 20]",{}', "b,40,30,,{}"]
    for column, raises in (("source", False), ("kind", True)):
        lines = [f"image_id,width,height,bbox,{column}", *(row.format("x") for row in rows)]
        write(tmp_path / "train.csv", "\n".join(lines))
        if raises:  # the column may be the class
            with pytest.raises(ValueError, match=r"bbox, kind.*Name its columns file_name and label"):
                load_dataset(tmp_path)
            continue
        dataset = load_dataset(tmp_path, validation_fraction=0)
        assert dataset.classes == ("object",)
        assert [len(labeled_boxes(sample)) for sample in dataset.splits["train"]] == [2, 0]


def test_tables_in_splits(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.png", (40, 30))
        write(tmp_path / split / "_annotations.csv", "\n".join(BOX_TABLES["TensorFlow"]).format("a.png", "a.png"))
    assert split_sizes(load_dataset(tmp_path)) == {"train": 1, "validation": 1}
