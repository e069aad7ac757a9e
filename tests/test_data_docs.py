"""The datasets of docs/data-formats.md, created from its trees and contents of files, are read as the page says."""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple, get_args

import numpy as np
import pytest
from PIL import Image

from mobilevit_hf.data.checks import check_dataset
from mobilevit_hf.data.reading import DATA_FORMATS, load_dataset
from mobilevit_hf.data.types import ProblemKind

PAGE = (Path(__file__).parents[1] / "docs/data-formats.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"(?:^`([^`\n]+)`:\n\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^([│├└─ \xa0]*)(\S+)$")
MASK = re.compile(r"masks/|annot/|SegmentationClass/|gtFine/|_mask\.|-tag-")
CLASSIFICATION, DETECTION, SEGMENTATION = "image-classification", "object-detection", "image-segmentation"
BOTH, ALL = {"train", "validation"}, {"train", "validation", "test"}

# Task, first classes and splits of the datasets of each section, in the order of the page.
EXPECTED = {
    "Class folders": [(CLASSIFICATION, ("cat", "dog"), {"train"}), (CLASSIFICATION, ("cat", "dog"), ALL)],
    "CSV files": [
        (CLASSIFICATION, ("cat", "dog"), {"train"}),
        (CLASSIFICATION, ("cat", "dog"), {"train"}),
        (CLASSIFICATION, ("cat", "dog"), {"train", "test"}),
        (DETECTION, ("car", "person"), {"train"}),
    ],
    "Metadata files": [(DETECTION, ("car", "person"), BOTH)],
    "COCO": [(DETECTION, ("car", "person"), BOTH)] * 2,
    "Pascal VOC": [(DETECTION, ("car",), BOTH)],
    "YOLO": [
        (DETECTION, ("car", "person"), BOTH),
        (DETECTION, ("car", "person"), BOTH),
        (DETECTION, ("car", "person"), {"train"}),
    ],
    "Images and masks": [
        (SEGMENTATION, ("background", "car", "person"), {"train"}),
        (SEGMENTATION, ("background", "car", "person"), BOTH),
        (SEGMENTATION, ("background", "foreground"), {"train"}),
        (SEGMENTATION, ("background", "aeroplane", "bicycle"), BOTH),
        (SEGMENTATION, ("road", "sidewalk"), BOTH),
    ],
    "Label Studio": [(SEGMENTATION, ("background", "car"), {"train"})],
}


class DocumentedDataset(NamedTuple):
    """Names of the files of a tree, and contents of text files by name, those behind the tree first."""

    data_format: str
    files: list[str]
    contents: dict[str, str]


def list_files(tree):
    """Return the files of a tree, relative to its first line."""
    folders, files = [], []
    for line in tree.splitlines()[1:]:
        prefix, name = ROW.match(line).groups()
        del folders[len(prefix) // 4 - 1 :]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        else:
            files.append("/".join([*folders, name]))
    return files


def read_section(text):
    """Return the datasets of a section. Contents of a tree are also those of later trees without their own."""
    datasets, contents = [], {}
    data_format = re.match(r"\n?\(`(\w+)`\)", text)
    for name, _, body in FENCE.findall(text):
        if name:
            contents = {name: body} | {key: value for key, value in contents.items() if key != name}
            if datasets:
                datasets[-1] = datasets[-1]._replace(contents=contents)
        elif "──" in body:
            datasets.append(DocumentedDataset(data_format[1], list_files(body), contents))
    return datasets


SECTIONS = {title: read_section(text) for title, text in SECTION.findall(PAGE) if title in EXPECTED}
CASES = [(title, index) for title, datasets in SECTIONS.items() for index in range(len(datasets))]


def is_image(name):
    return name.endswith((".jpg", ".png")) and not MASK.search(name)


def find_content(name, contents):
    """Return the content of a text file: that of its path, its name, or the first one of its suffix and split."""
    path = PurePosixPath(name)
    split = "val" if "val" in name else "train"
    for matches in (
        lambda key: key == name,
        lambda key: PurePosixPath(key).name == path.name,
        lambda key: PurePosixPath(key).suffix == path.suffix and split in key,
    ):
        if found := next(filter(matches, contents), None):
            return contents[found]
    raise AssertionError(f"The page has no content of {name}.")


def write_image(path, name):
    """Write noise, or a mask with two or three values."""
    if MASK.search(name):
        values = (7, 8) if "gtFine" in name else (0, 255) if re.search(r"_mask\.|-tag-", name) else (0, 1, 2)
        image = np.kron(np.resize(values, (3, 4)), np.ones((8, 8))).astype(np.uint8)
    else:
        random = np.random.default_rng(list(name.encode()))
        image = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(path)


def test_page_describes_each_format():
    assert {title: len(datasets) for title, datasets in SECTIONS.items()} == {
        title: len(datasets) for title, datasets in EXPECTED.items()
    }
    for data_format in DATA_FORMATS:
        assert f"\n(`{data_format}`) " in PAGE


@pytest.mark.parametrize("kind", get_args(ProblemKind))
def test_page_describes_each_kind_of_problem(kind):
    assert f"`{kind}`" in PAGE.partition("## What check-data reports")[2]


@pytest.mark.parametrize(("title", "index"), CASES)
def test_dataset_of_page_is_read(title, index, tmp_path):
    documented = SECTIONS[title][index]
    task, classes, splits = EXPECTED[title][index]
    for name in documented.files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png"):
            write_image(path, name)
        else:
            path.write_text(find_content(name, documented.contents), encoding="utf-8")
    dataset = load_dataset(tmp_path, validation_fraction=0.0)
    report = check_dataset(dataset)
    assert (dataset.task, dataset.data_format) == (task, documented.data_format)
    assert dataset.classes[: len(classes)] == classes
    assert set(dataset.splits) == splits
    assert not report.problems
    assert sum(report.num_samples.values()) == sum(map(is_image, documented.files))
