"""Pascal VOC XML."""

import pytest
from dataset_files import labeled_boxes, problem_kinds, sample_names, save_image, voc_xml, write, write_voc_dataset

from mobilevit_hf.data.formats import voc
from mobilevit_hf.data.formats.folder import DataFolder
from mobilevit_hf.data.reading import load_dataset


def test_splits_and_boxes(tmp_path):
    annotations = {
        "a": voc_xml(("dog", 1, 2, 11, 12), ("cat", 3.5, 4, 40, 30)),
        "b": voc_xml(("cat", 5, 6, 7, 8), size=(0, 0)),
        "c": voc_xml(("dog", 5, 6, 7, 8)),
        "unlisted": voc_xml(),
    }
    image_sets = {"train": ["a  1"], "val": ["b -1"], "trainval": ["a", "b"], "test": ["c"], "dog_train": ["c"]}
    dataset = load_dataset(write_voc_dataset(tmp_path, annotations, image_sets))
    assert (dataset.task, dataset.data_format, dataset.classes) == ("object-detection", "voc", ("cat", "dog"))
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == {
        "train": ["JPEGImages/a.jpg"],
        "validation": ["JPEGImages/b.jpg"],
        "test": ["JPEGImages/c.jpg"],
    }
    assert labeled_boxes(dataset.splits["train"][0]) == [(1, [1, 2, 11, 12]), (0, [3.5, 4, 40, 30])]
    assert not dataset.problems
    assert "unlisted.jpg" in dataset.notes[0]


@pytest.mark.parametrize(
    ("image_sets", "expected"),
    [
        ({"trainval": "abcd"}, ("abcd", "")),
        ({"train": "ab", "trainval": "abcd"}, ("ab", "cd")),
        ({"val": "a", "trainval": "abcd"}, ("bcd", "a")),
        ({"trainval": "abcd", "test": "d"}, ("abc", "")),
        (None, ("abcd", "")),
    ],
)
def test_trainval_lists(tmp_path, image_sets, expected):
    write_voc_dataset(tmp_path, {name: voc_xml(("cat", 1, 2, 3, 4)) for name in "abcd"}, image_sets)
    splits = load_dataset(tmp_path, validation_fraction=0).splits
    stems = {split: "".join(name[-5] for name in sample_names(samples)) for split, samples in splits.items()}
    assert (stems["train"], stems.get("validation", "")) == expected


def test_unreadable_files_are_problems(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]>' + voc_xml(("&y;", 1, 2, 3, 4))
    annotations = {
        "bomb": bomb,
        "invalid": "<annotation><object>",
        "empty": "",
        "partly_valid": voc_xml(("cat", 1, 2, 3, 4), ("cat", "left", 2, 3, 4), ("", 1, 2, 3, 4)),
        "missing": voc_xml(("cat", 1, 2, 3, 4), filename="../../x.jpg"),
        "without_objects": voc_xml(),
    }
    write_voc_dataset(tmp_path, annotations, {"train": [*annotations, "without_file"]})
    (tmp_path / "Annotations" / "utf16.xml").write_bytes(bomb.encode("utf-16"))
    write(tmp_path / "ImageSets" / "Main" / "val.txt", "utf16")
    (tmp_path / "JPEGImages" / "missing.jpg").unlink()
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert sample_names(dataset.splits["train"]) == ["JPEGImages/partly_valid.jpg", "JPEGImages/without_objects.jpg"]
    assert [len(sample.objects.labels) for sample in dataset.splits["train"]] == [1, 0]
    assert problem_kinds(dataset) == [
        ("Annotations/bomb.xml", "unreadable annotation"),
        ("Annotations/empty.xml", "empty label file"),
        ("Annotations/invalid.xml", "unreadable annotation"),
        ("Annotations/missing.xml", "missing image"),
        ("Annotations/utf16.xml", "unreadable annotation"),
        ("Annotations/without_file.xml", "unreadable annotation"),
        ("Annotations/without_objects.xml", "empty label file"),
        ("JPEGImages/partly_valid.jpg", "unknown class"),
        ("JPEGImages/partly_valid.jpg", "unreadable annotation"),
    ]


def test_xml_next_to_the_images_of_each_split(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.JPG")
        write(tmp_path / split / "a.xml", voc_xml(("cat", 1, 2, 3, 4)))
    splits = load_dataset(tmp_path).splits
    assert {split: sample_names(samples) for split, samples in splits.items()} == {
        "train": ["train/a.JPG"],
        "validation": ["valid/a.JPG"],
    }


XML = voc_xml(("cat", 1, 2, 11, 12))


@pytest.mark.parametrize(
    ("xml_file", "image", "filename", "split"),
    [
        ("annots/a.xml", "images/a.jpg", "a.jpg", "train"),
        ("annotation/a.xml", "image/a.png", "whatever.jpg", "train"),
        ("labels/train/a.xml", "images/train/a.jpeg", "", "train"),
        ("val/xml/a.xml", "val/img/a.JPG", "a", "validation"),
        ("train_annotations/a.xml", "train_images/a.jpg", "a.jpg", "train"),
        ("annotations/xmls/a.xml", "images/a.jpg", "a.jpg", "train"),
        ("VOC2007/Annotations/a.xml", "VOC2007/JPEGImages/a.jpg", "a.jpg", "train"),
        ("2024/site 1/a.xml", "2024/site 1/a.jpg", "x.jpg", "train"),
        ("xml/0001.xml", "photos/my photo.jpg", " my photo.jpg ", "train"),
        ("xml/0001.xml", "photos/my photo.jpg", "C:\\photos\\my photo.jpg", "train"),
        ("a.jpg.xml", "a.jpg", "a.jpg", "train"),
    ],
)
def test_layouts(tmp_path, xml_file, image, filename, split):
    save_image(tmp_path / image)
    write(tmp_path / xml_file, voc_xml(("cat", 1, 2, 11, 12), filename=filename))
    write(tmp_path / "requirements.xml", "<project/>")
    assert voc.recognizes(DataFolder(tmp_path))
    dataset = load_dataset(tmp_path, data_format="voc", validation_fraction=0)
    assert {split: sample_names(samples) for split, samples in dataset.splits.items()} == {split: [image]}
    assert labeled_boxes(dataset.splits[split][0]) == [(0, [1, 2, 11, 12])]
    assert problem_kinds(dataset) == [("requirements.xml", "unreadable annotation")]


def test_masks_are_not_the_images(tmp_path):
    """Oxford-IIIT Pet has masks of the same names next to its XML files."""
    save_image(tmp_path / "images" / "a.jpg")
    save_image(tmp_path / "annotations" / "trimaps" / "a.png")
    write(tmp_path / "annotations" / "xmls" / "a.xml", XML)
    assert sample_names(load_dataset(tmp_path, data_format="voc").splits["train"]) == ["images/a.jpg"]


def test_images_of_the_same_name_in_subfolders(tmp_path):
    """Also where one of them is not in a subfolder."""
    for number, name in enumerate(("a", "one/a", "two/more/a"), start=1):
        save_image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write(tmp_path / "Annotations" / f"{name}.xml", voc_xml(("cat", number, 2, 11, 12)))
    samples = load_dataset(tmp_path, validation_fraction=0).splits["train"]
    boxes = {sample.name: labeled_boxes(sample)[0][1][0] for sample in samples}
    assert boxes == {"JPEGImages/a.jpg": 1, "JPEGImages/one/a.jpg": 2, "JPEGImages/two/more/a.jpg": 3}


def test_image_of_another_file_is_not_used(tmp_path):
    """Copies of a file keep the name of their first image."""
    save_image(tmp_path / "JPEGImages" / "b.jpg")
    for name in "ab":
        write(tmp_path / "Annotations" / f"{name}.xml", voc_xml(("cat", 1, 2, 11, 12), filename="b.jpg"))
    dataset = load_dataset(tmp_path)
    assert sample_names(dataset.splits["train"]) == ["JPEGImages/b.jpg"]
    assert problem_kinds(dataset) == [("Annotations/a.xml", "missing image")]


def test_name_in_the_file_tells_a_photo_from_its_mask(tmp_path):
    save_image(tmp_path / "masks" / "a.png")
    save_image(tmp_path / "photos" / "a.jpg")
    write(tmp_path / "xml" / "a.xml", voc_xml(("cat", 1, 2, 11, 12), filename="a.jpg"))
    assert sample_names(load_dataset(tmp_path, data_format="voc").splits["train"]) == ["photos/a.jpg"]


@pytest.mark.parametrize(
    "lines",
    [
        ["my photo 0", "my photo 1"],
        ["my photo 0  1", "my photo 1 -1"],
        ["my photo 0.jpg", "my photo 1.jpg"],
        ["JPEGImages/my photo 0.jpg", "/home/someone/VOC/JPEGImages/my photo 1.jpg"],
        ["..\\JPEGImages\\my photo 0.jpg", "data/my photo 1"],
        ["\ufeffmy photo 0\r", "my photo 1\r"],
    ],
)
def test_names_with_blanks_and_paths_in_lists(tmp_path, lines):
    write_voc_dataset(tmp_path, {f"my photo {n}": XML for n in range(3)}, {"train": lines})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert sample_names(dataset.splits["train"]) == ["JPEGImages/my photo 0.jpg", "JPEGImages/my photo 1.jpg"]
    assert not dataset.problems


def test_list_does_not_match_a_part_of_a_name(tmp_path):
    write_voc_dataset(tmp_path, {"1": XML, "my": XML}, {"train": ["my", "my photo 1"]})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert sample_names(dataset.splits["train"]) == ["JPEGImages/my.jpg"]
    assert len(dataset.problems) == 1


@pytest.mark.parametrize("line", ["./JPEGImages/{0}.jpg ./Annotations/{0}.xml", "{0}", "JPEGImages/{0}.jpg"])
def test_lists_next_to_the_folders(tmp_path, line):
    write_voc_dataset(tmp_path, {"a": XML, "b": XML})
    write(tmp_path / "train.txt", line.format("a"))
    write(tmp_path / "valid.txt", line.format("b"))
    write(tmp_path / "label_list.txt", "cat")
    splits = load_dataset(tmp_path).splits
    assert {split: sample_names(samples) for split, samples in splits.items()} == {
        "train": ["JPEGImages/a.jpg"],
        "validation": ["JPEGImages/b.jpg"],
    }


def test_list_of_images_that_are_not_there_is_noted(tmp_path):
    """The test split of VOC2012 has no annotations."""
    write_voc_dataset(tmp_path, {"a": XML}, {"train": ["a"], "test": ["b", "c"]})
    dataset = load_dataset(tmp_path, validation_fraction=0)
    assert list(dataset.splits) == ["train"]
    assert "2 XML files that ImageSets/Main/test.txt lists" in dataset.notes[0]
    assert not dataset.problems


def test_images_without_a_file_are_noted(tmp_path):
    write_voc_dataset(tmp_path, {"a": XML, "b": XML})
    (tmp_path / "Annotations" / "b.xml").unlink()
    assert "JPEGImages/b.jpg" in load_dataset(tmp_path, validation_fraction=0).notes[0]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("utf-8", "utf-8"),
        ("UTF-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16", "utf-8"),  # as some Windows tools write
        ("gb2312", "gbk"),
        ("iso-8859-1", "latin-1"),
        ("windows-1252", "cp1252"),
    ],
)
def test_encodings(tmp_path, declared, encoding):
    name = "\u732b" if encoding not in ("latin-1", "cp1252") else "chatte \u00e9l\u00e9gante"
    declaration = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else "\n"
    save_image(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_bytes((declaration + voc_xml((name, 1, 2, 11, 12))).encode(encoding))
    dataset = load_dataset(tmp_path)
    assert dataset.data_format == "voc"
    assert dataset.classes == (name,)


BOX = "<xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax>"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"<bndbox>{BOX}</bndbox>", [1, 2, 11, 12]),
        (f"<difficult>Unspecified</difficult><bndbox>{BOX}</bndbox>", [1, 2, 11, 12]),
        ("<bndbox><ymax>12</ymax><xmin> 1.0 </xmin><xmax>1.1e1</xmax><ymin>2</ymin></bndbox>", [1, 2, 11, 12]),
        ("<bndbox><xmin>11</xmin><ymin>2</ymin><xmax>1</xmax><ymax>12</ymax></bndbox>", [1, 2, 11, 12]),
        ("<bndbox><xmin>1</xmin><ymin>12</ymin><xmax>11</xmax><ymax>2</ymax></bndbox>", [1, 2, 11, 12]),
        ("<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>41</xmax><ymax>31</ymax></bndbox>", [0, 0, 40, 30]),
        ("<polygon><x1>1</x1><y1>12</y1><x2>11</x2><y2>5</y2><x3>7</x3><y3>2</y3></polygon>", [1, 2, 11, 12]),
        ("<polygon><pt><x>1</x><y>12</y></pt><pt><x>11</x><y>2</y></pt></polygon>", [1, 2, 11, 12]),
        (f"<bndbox>{BOX}</bndbox><polygon><x1>0</x1><y1>0</y1></polygon>", [1, 2, 11, 12]),
        ("<robndbox><cx>6</cx><cy>7</cy><w>10</w><h>10</h><angle>3.14159265</angle></robndbox>", [1, 2, 11, 12]),
        ("<robndbox><cx>8</cx><cy>8</cy><w>8</w><h>2</h><angle>1.57079633</angle></robndbox>", [7, 4, 9, 12]),
        (f"<part><name>head</name><bndbox>{BOX}</bndbox></part>", None),
        ("<bndbox><xmin>nan</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox>", None),
        ("<polygon><x1>1</x1><y1>a</y1><x2>2</x2><y2>3</y2></polygon>", None),
    ],
)
def test_boxes(tmp_path, content, expected):
    save_image(tmp_path / "a.jpg")
    objects = [f"<object><name> cat </name>{part}</object>" for part in (content, f"<bndbox>{BOX}</bndbox>")]
    write(tmp_path / "a.xml", f"<annotation>{''.join(objects)}</annotation>")
    dataset = load_dataset(tmp_path)
    boxes = [box for _, box in labeled_boxes(dataset.splits["train"][0])]
    assert dataset.classes == ("cat",)
    assert boxes == ([pytest.approx(expected)] if expected else []) + [[1, 2, 11, 12]]
    assert problem_kinds(dataset) == ([] if expected else [("a.jpg", "unreadable annotation")])


@pytest.mark.parametrize(
    ("xml", "kind"),
    [
        ("<a>" * 200_000, "unreadable annotation"),
        (f"<annotation>{'<a>' * 100_000}{'</a>' * 100_000}</annotation>", "missing image"),
        ("<annotations></annotations>", "unreadable annotation"),  # of CVAT for images
        ('<annotation xmlns="https://host/voc"></annotation>', "unreadable annotation"),
    ],
)
def test_other_xml_is_a_problem(tmp_path, xml, kind):
    save_image(tmp_path / "b.jpg")
    write(tmp_path / "b.xml", XML)
    write(tmp_path / "a.xml", xml)
    assert problem_kinds(load_dataset(tmp_path)) == [("a.xml", kind)]
