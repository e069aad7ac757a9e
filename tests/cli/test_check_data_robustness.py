"""`mobilevit check-data` with malformed datasets: every file is counted or reported, in bounded memory."""

import json
import os

import numpy as np
import pytest
from hostile_files import decompression_bombs, encode, noise, non_images, unusual_images, write_hostile_files
from PIL import EpsImagePlugin, Image

from mobilevit_hf.data.formats.folder import DataFolder


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_file_is_counted_or_reported(mobilevit, tmp_path, count):
    names = write_hostile_files(tmp_path / "files", count)
    code, out, err = mobilevit("check-data", tmp_path / "files", "--json", "--image-grid", tmp_path / "grid.png")
    assert (code, err) == (1, "")
    report = json.loads(out)
    bad = {problem["name"] for problem in report["bad"]}
    assert bad < names
    assert sum(split["samples"] for split in report["splits"].values()) + len(bad) == count
    readable = unusual_images(np.random.default_rng(0))
    assert not {name for name in bad if name.split("/")[1] in readable}
    refused = decompression_bombs(np.random.default_rng(0)) | non_images(np.random.default_rng(0))
    assert {name for name in names if name.split("/")[1] in refused} <= bad

    code, out, err = mobilevit("check-data", tmp_path / "files")
    assert code == 1
    assert all(c.isprintable() or c == "\n" for c in out + err)


def test_postscript_is_never_executed(mobilevit, tmp_path, monkeypatch):
    """Pillow would pass PostScript to Ghostscript, whatever the file name."""
    program, mark = tmp_path / "bin" / "gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "files/class/script.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(non_images(np.random.default_rng(0))["script.jpg"])
    code, out, _ = mobilevit("check-data", tmp_path / "files", "--data-format", "imagefolder", "--json")
    assert not mark.exists()
    assert code == 1
    assert "not an image" in json.loads(out)["bad"][0]["reason"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes need os.mkfifo")
def test_named_pipe_is_reported(mobilevit, tmp_path):
    folder = tmp_path / "files" / "cat"
    folder.mkdir(parents=True)
    (folder / "good.png").write_bytes(encode(noise(np.random.default_rng(0)), "png"))
    os.mkfifo(folder / "pipe.png")
    assert DataFolder(tmp_path / "files").entries("cat")["pipe.png"] != "file"  # otherwise the next line never returns
    code, out, _ = mobilevit("check-data", tmp_path / "files", "--data-format", "imagefolder", "--json")
    assert code == 1
    assert [problem["name"] for problem in json.loads(out)["bad"]] == ["cat/pipe.png"]


@pytest.mark.parametrize("name", ["~unknown-user/x", "x" * 5000])
@pytest.mark.parametrize("command", [["check-data"], ["evaluate", "MODEL"], ["train"]])
def test_dataset_name_that_is_no_valid_path(mobilevit, detector_dir, command, name):
    code, out, err = mobilevit(*(str(detector_dir) if word == "MODEL" else word for word in command), name)
    assert (code, out) == (2, "")
    assert "no file or folder" in err
    assert len(err.splitlines()) == 1


def test_one_image_per_class_leaves_no_validation_split(mobilevit, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.png")
    _, out, _ = mobilevit("check-data", tmp_path, "--json")
    report = json.loads(out)
    assert {name: split["samples"] for name, split in report["splits"].items()} == {"train": 2}
    assert "none was split off" in report["notes"][0]


def test_invalid_metadata_rows_are_reported(mobilevit, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").mkdir()
    rows = [{"label": "cat"}, {"file_name": "0.png", "label": ""}, {"file_name": "0.png", "label": "cat"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = mobilevit("check-data", tmp_path, "--json")
    report = json.loads(out)
    assert report["splits"] == {"train": {"samples": 1, "classes": {"cat": 1}}}
    assert [problem["reason"] for problem in report["bad"]] == [
        "a row without `file_name`",
        "no value in the column `label`",
    ]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "label": 10**12}))
    code, _, err = mobilevit("check-data", tmp_path)
    assert code == 2
    assert "got class 1000000000000, expected at most" in err


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_measured(run_python):
    """Function that runs the command in a process with 8 cores and returns exit code, output and memory in MiB."""

    def run(*arguments):
        out = run_python(f"""
            import contextlib, io, json, os, resource, sys
            from PIL import Image
            from mobilevit_hf import cli

            def peak():
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

            Image.init()
            os.cpu_count = lambda: 8
            sys.argv = {["mobilevit", *map(str, arguments)]!r}
            before, out = peak(), io.StringIO()
            with contextlib.redirect_stdout(out):
                try:
                    cli.main()
                except SystemExit as end:
                    code = end.code
            print(json.dumps([code, out.getvalue(), peak() - before]))
        """)
        return json.loads(out)

    return run


@pytest.mark.slow
def test_decompression_bombs_take_no_memory(run_measured, tmp_path):
    files = decompression_bombs(np.random.default_rng(0))
    del files["below the limit.png"]  # needs the memory of an image of its size
    for i, label in enumerate("ab"):
        folder = tmp_path / "files" / label
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / f"{i} {name}").write_bytes(data)
        (folder / "good.png").write_bytes(encode(noise(np.random.default_rng(i)), "png"))
    code, out, growth = run_measured("check-data", tmp_path / "files", "--json")
    assert code == 1
    assert len(json.loads(out)["bad"]) == 2 * len(files)
    assert growth < 300


@pytest.mark.slow
def test_large_images_are_decoded_one_at_a_time(run_measured, tmp_path):
    """Eight cores, and eight images of 81 megapixels, each a few kB as PNG and 232 MiB as RGB."""
    data = encode(Image.new("RGB", (9000, 9000)), "png")
    for i in range(8):
        path = tmp_path / "files" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    code, out, growth = run_measured("check-data", tmp_path / "files", "--json")
    assert code == 1
    assert json.loads(out)["bad_by_kind"].keys() == {"same image in two splits", "same image in two classes"}
    assert growth < 1600


# --- annotations -----------------------------------------------------------------------------------------------------


BOX = {"bbox": [4, 5, 20, 10], "categories": ["cat"]}


COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 48, "height": 40}, {"id": 2, "file_name": "1.png"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [4, 5, 20, 10], "area": 200, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [1.5, 1.5, 9, 9]},
    ],
    "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}],
}

XML = (
    "<annotation><filename>{}</filename><size><width>48</width><height>40</height><depth>3</depth></size>"
    "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>4</xmin><ymin>5</ymin><xmax>24</xmax>"
    "<ymax>15</ymax></bndbox></object></annotation>"
)


NESTED_ENTITIES = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha"}">' for i in range(12))


# 30 MB when expanded; with more levels, more than any memory.
NESTED_YAML = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'ha'] * 9)}]\n" for i in range(7))


def write_dataset(folder, files):
    """Write text files by relative path, and two images of 48x40 pixels."""
    rng = np.random.default_rng(0)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        (folder / f"{i}.png").write_bytes(encode(noise(rng), "png"))


def coco(file_name):
    image = {"id": 3, "file_name": file_name}
    box = {"id": 3, "image_id": 3, "category_id": 3, "bbox": [1, 1, 9, 9]}
    content = COCO | {"images": [*COCO["images"], image], "annotations": [*COCO["annotations"], box]}
    return {"train.json": json.dumps(content)}


def voc(file_name):
    return {f"{i}.xml": XML.format(f"{i}.png") for i in range(2)} | {"2.xml": XML.format(file_name)}


def voc_list(file_name):
    files = {f"Annotations/{i}.xml": XML.format(f"../{i}.png") for i in range(2)}
    return files | {"ImageSets/Main/train.txt": f"0\n1\n{file_name.removesuffix('.png')}\n"}


def metadata(file_name):
    names = ["0.png", "1.png", file_name]
    return {"metadata.jsonl": "".join(json.dumps({"file_name": name, "objects": BOX}) + "\n" for name in names)}


def labels(file_name):
    names = ["0.png", "1.png", file_name]
    return {"metadata.csv": "file_name,label\n" + "".join(f"{name},cat\n" for name in names)}


def yolo(file_name):
    files = {f"labels/{i}.txt": "0 0.5 0.5 0.2 0.2\n" for i in range(2)}
    return files | {"data.yaml": "names: [cat]\ntrain: train.txt\n", "train.txt": f"0.png\n1.png\n{file_name}\n"}


def yolo_folder(file_name):
    folder = file_name.removesuffix("secret.png") or "."
    files = {f"labels/{i}.txt": "0 0.5 0.5 0.2 0.2\n" for i in range(2)}
    return files | {"data.yaml": f"names: [cat]\ntrain: {json.dumps(folder)}\n"}


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "{folder}/secret.png", "labels/../../secret.png", "..\\secret.png", "link.png", "up/secret.png"],
)
@pytest.mark.parametrize("make", [coco, voc, voc_list, metadata, labels, yolo, yolo_folder])
def test_paths_outside_the_dataset_are_not_followed(mobilevit, tmp_path, make, path):
    """The image outside has another size."""
    noise(np.random.default_rng(1), 77, 33).save(tmp_path / "secret.png")
    (tmp_path / "secret.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "secret.xml").write_text(XML.format("secret.png"))
    write_dataset(tmp_path / "data", make(path.format(folder=tmp_path)))
    if make is not yolo_folder:  # which reads all images of a folder, whatever the path
        (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data/up").symlink_to(tmp_path)
    code, out, err = mobilevit("check-data", tmp_path / "data", "--json")
    if code == 2:
        assert len(err.splitlines()) == 1
        return
    report = json.loads(out)
    assert report["widths"]["max"] == 48
    assert make is yolo_folder or code == 1


def test_links_to_a_parent_are_not_followed(mobilevit, tmp_path):
    write_dataset(tmp_path / "data/cat", {})
    (tmp_path / "data/cow").mkdir()
    noise(np.random.default_rng(1)).save(tmp_path / "data/cow/0.png")
    (tmp_path / "data/dog").symlink_to(tmp_path)
    (tmp_path / "data/cat/dog").symlink_to("..")
    code, out, _ = mobilevit("check-data", tmp_path / "data", "--json")
    assert code == 1
    report = json.loads(out)
    assert list(report["splits"]["train"]["classes"]) == ["cat", "cow"]
    assert {problem["name"] for problem in report["bad"]} == {"cat/dog", "dog"}


INVALID_VALUES = [
    None,
    True,
    -1,
    1e9,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "x",
    "\ud800",
    [],
    [[]],
    {},
    [1, 2, 3, 4],
    "9" * 5000,
]


def mutations(content):
    """Yield copies of nested lists and dictionaries with one invalid value or missing key each."""
    yield from INVALID_VALUES
    if isinstance(content, dict):
        yield from ({k: v for k, v in content.items() if k != key} for key in content)
        yield from (content | {key: invalid} for key, value in content.items() for invalid in mutations(value))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from ([*content[:i], invalid, *content[i + 1 :]] for invalid in mutations(value))


def malformed_coco():
    for content in mutations(COCO):
        yield {"train.json": json.dumps(content)}
    text = json.dumps(COCO)
    for broken in ("", "[" * 100_000, text[:99], "\ufeff" + text, text.encode("utf-16"), b"\xff" + text.encode()):
        yield {"train.json": broken}


def malformed_metadata():
    first = json.dumps({"file_name": "0.png", "objects": BOX})
    for row in mutations({"file_name": "1.png", "objects": BOX}):
        yield {"metadata.jsonl": f"{first}\n{json.dumps(row)}\n"}
    for row in mutations({"file_name": "1.png", "label": "cat"}):
        yield {"metadata.jsonl": '{"file_name": "0.png", "label": "cat"}\n' + json.dumps(row)}
    for broken in ("", "[" * 100_000, first[:30], "\0", b"\xff\xfe", "file_name\n"):
        yield {"metadata.jsonl": broken}
        yield {"metadata.csv": broken}
    yield {"metadata.csv": "file_name,label\n0.png\n,cat\n1.png,cat,dog\n" + "x" * 200_000}


def malformed_voc():
    valid_xml = XML.format("1.png")
    for text in ("1.png", "48", "40", "cat", "4", "5", "24", "15"):
        for invalid in ("", "x", "nan", "inf", "-1", "1e400", "9" * 5000, "<a/>", "&lt;", "&#27;[2J", "\n"):
            yield {"0.xml": XML.format("0.png"), "1.xml": valid_xml.replace(f">{text}<", f">{invalid}<")}
    for tag in ("annotation", "filename", "size", "width", "object", "name", "bndbox", "xmin"):
        yield {"0.xml": XML.format("0.png"), "1.xml": valid_xml.replace(f"{tag}>", "other>")}
    for broken in (
        "",
        " ",
        valid_xml[:99],
        "<a>" * 100_000,
        "<a>" * 10_000 + "</a>" * 10_000,
        f"<!DOCTYPE a [{NESTED_ENTITIES}]><annotation><filename>&a11;</filename></annotation>",
        f"<!DOCTYPE a [{NESTED_ENTITIES}]><annotation><filename>&a11;</filename></annotation>".encode("utf-16"),
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><filename>&b;</filename></annotation>',
        b'<?xml version="1.0" encoding="utf-7"?>+ADw-annotation/+AD4-',
        b'<?xml version="1.0" encoding="nothing"?><annotation/>',
        b"\xff\xfe\0",
    ):
        yield {"0.xml": XML.format("0.png"), "1.xml": broken}


def malformed_yolo():
    names = "names: [cat, dog]\ntrain: train.txt\n"
    files = {"train.txt": "0.png\n1.png\n", "labels/0.txt": "0 0.5 0.5 0.2 0.2\n"}
    for invalid in ("", "x", "nan", "inf", "-1", "1e400", "9" * 5000, "0.5", "\x1b[2J"):
        for i in range(5):
            line = ["1", "0.5", "0.5", "0.2", "0.2"]
            line[i] = invalid
            yield files | {"data.yaml": names, "labels/1.txt": " ".join(line)}
    for broken in ("", "\0", b"\xff\xfe", "1 " * 100_000, "1 0.5 0.5"):
        yield files | {"data.yaml": names, "labels/1.txt": broken}
        yield files | {"data.yaml": names, "train.txt": broken}
    for content in mutations({"names": ["cat", "dog"], "train": "train.txt", "nc": 2, "path": "."}):
        yield files | {"data.yaml": json.dumps(content)}
    for broken in ("names: [", "names:\n  - !!python/object/apply:os.getcwd []", "names: *a", "names: {a: b}", "\0"):
        yield files | {"data.yaml": "names:\n" + broken}
        yield files | {"data.yaml": broken + "\n" + names}
    for last in ("names: *a6\n", "names: [*a6]\n", "train: *a6\n", "val: [*a6]\n", "path: *a6\n"):
        yield files | {"data.yaml": f"{NESTED_YAML}names: [cat]\ntrain: train.txt\n{last}"}


@pytest.mark.parametrize("make", [malformed_coco, malformed_metadata, malformed_voc, malformed_yolo])
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_malformed_annotations_are_counted_or_reported(mobilevit, tmp_path, make, step):
    for i, files in enumerate(list(make())[::step]):
        folder = tmp_path / str(i)
        write_dataset(folder, files)
        code, out, err = mobilevit("check-data", folder, "--json")
        assert len(out + err) < 100_000, files
        if code == 2:
            assert out == ""
            assert len(err.splitlines()) == 1, files
        else:
            report = json.loads(out)
            assert report["widths"]["max"] == 48
            assert bool(report["bad"]) == (code == 1)
