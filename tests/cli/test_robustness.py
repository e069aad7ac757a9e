"""Files that nobody should send, and names that nobody should give: each is answered or named, in bounded memory."""

import io
import json
import os
import struct
import warnings
import zlib

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import EpsImagePlugin, Image
from pyarrow import parquet

from mobilevit_hf.data.formats.folder import DataFolder
from mobilevit_hf.data.reading import load_dataset

PACKER = zlib.compressobj(1)
ZEROS = b"".join(PACKER.compress(bytes(2**20)) for _ in range(100)) + PACKER.flush()  # 100 MiB
SUFFIXES = ("jpg", "png", "gif", "bmp", "webp", "tif", "ppm")
NAMES = [
    "two\nlines",
    "\x1b[2J\x1b[31mred",
    "\udcff\udcfe bytes",
    "-rf",
    "--json",
    "[bold]markup[",
    ":dog:",
    "$HOME `id` $(id)",
    "\u202egpj",
    "猫 кошка",
    " spaces ",
    "x" * 240,
    "dots...",
    "a\\..\\b",
    "100%s {0}",
    "\x7f\x9b",
]


def noise(rng, width=48, height=40):
    return Image.fromarray(rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8))


def encode(image, suffix, **options):
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[f".{suffix}"], **options)
    return file.getvalue()


def png(width, height, *chunks, data=b""):
    """A PNG file that says it is this large, 8-bit RGB."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bombs(rng):
    """Small files that ask for much memory, by name; none is an image."""
    jpeg = encode(noise(rng), "jpg")
    sizes = jpeg.index(b"\xff\xc0") + 5
    return {
        "huge.png": png(30_000, 30_000),
        "huger.png": png(2**31 - 1, 2**31 - 1),
        "empty.png": png(0, 0),
        "below the limit.png": png(9_999, 9_999),
        "text.png": png(8, 8, (b"zTXt", b"Comment\0\0" + ZEROS), data=bytes(8)),
        "profile.png": png(8, 8, (b"iCCP", b"icc\0\0" + ZEROS), data=bytes(8)),
        "huge.jpg": jpeg[:sizes] + struct.pack(">HH", 65_500, 65_500) + jpeg[sizes + 4 :],
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + encode(noise(rng), "gif")[13:],
        "huge.ppm": b"P6 99999 99999 255\n" + bytes(99),
        "huge.bmp": b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, 50_000, 50_000, 1, 24) + bytes(24),
        "negative.bmp": b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, -5, 5, 1, 24) + bytes(24),
        "huge.tif": encode(Image.new("1", (20_000, 20_000)), "tif", compression="group4"),
        "huge.webp": encode(noise(rng), "webp", lossless=True)[:21] + b"\xff" * 4 + bytes(99),
    }


def odd_images(rng):
    """Images of rare kinds, all of which can be read, by name."""
    image = noise(rng)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    deep = Image.fromarray(rng.integers(0, 2**16, size=(40, 48), dtype=np.uint16))
    return {
        "cmyk.jpg": encode(image.convert("CMYK"), "jpg"),
        "gray.jpg": encode(image.convert("L"), "jpg"),
        "progressive.jpeg": encode(image, "jpg", progressive=True),
        "16 bit.png": encode(deep, "png"),
        "16 bit.tiff": encode(deep, "tif"),
        "rgba.png": encode(image.convert("RGBA"), "png"),
        "rgba.webp": encode(image.convert("RGBA"), "webp"),
        "la.png": encode(image.convert("LA"), "png"),
        "palette.png": encode(image.convert("P"), "png", transparency=3),
        "1 bit.png": encode(image.convert("1"), "png"),
        "cmyk.tif": encode(image.convert("CMYK"), "tif"),
        "turned.jpg": encode(image, "jpg", exif=exif),
        "animated.gif": encode(image, "gif", save_all=True, append_images=[noise(rng)]),
        "long.png": encode(Image.new("RGB", (20_000, 3), "red"), "png"),
        "high.jpg": encode(Image.new("RGB", (2, 20_000), "red"), "jpg"),
        "pixel.gif": encode(image.resize((1, 1)), "gif"),
        "really a png.jpg": encode(image, "png"),
        "really a bmp.PNG": encode(image, "bmp"),
    }


def no_images(rng):
    """Files that end like images and are none, by name."""
    return {
        "empty.jpg": b"",
        "text.jpg": b"hello",
        "page.png": b"<html><svg xmlns='http://www.w3.org/2000/svg'/></html>",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n{} loop\n",
        "zeros.png": bytes(1000),
        "noise.webp": rng.bytes(1000),
        "float.tif": encode(Image.fromarray(rng.random((40, 48), dtype=np.float32)), "tif"),
    }


def mutated(rng, suffix):
    """An image with some bits flipped, or cut, or both, or with a piece of it repeated."""
    data = np.frombuffer(encode(noise(rng), suffix), dtype=np.uint8).copy()
    kind = rng.integers(4)
    if kind != 1:
        places = rng.integers(0, min(len(data), 200 if rng.integers(2) else len(data)), size=rng.integers(1, 12))
        data[places] ^= (1 << rng.integers(0, 8, size=len(places))).astype(np.uint8)
    if kind in (1, 2):
        data = data[: rng.integers(1, len(data))]
    if kind == 3:
        start, end = np.sort(rng.integers(0, len(data), size=2))
        data = np.concatenate([data[:end], data[start:]])
    return data.tobytes()


def write_files(folder, count, seed=0):
    """Hostile files in two class folders; returns their paths below the folder."""
    rng = np.random.default_rng(seed)
    files = bombs(rng) | odd_images(rng) | no_images(rng)
    files |= {f"{name}.png": encode(noise(rng), "png") for name in NAMES[::2]}
    files |= {f"{name}.jpg": b"no image" for name in NAMES[1::2]}
    for i in range(count - len(files)):
        suffix = SUFFIXES[i % len(SUFFIXES)]
        wrong = SUFFIXES[rng.integers(len(SUFFIXES))]
        files[f"{i}.{wrong if i % 5 == 0 else suffix}"] = mutated(rng, suffix)
    names = set()
    for i, (name, data) in enumerate(files.items()):
        path = folder / ("good", "-bad")[i % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        names.add(str(path.relative_to(folder)))
    assert len(names) == count
    return names


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_file_is_counted_or_named(mobilevit, tmp_path, count):
    names = write_files(tmp_path / "files", count)
    code, out, err = mobilevit("check-data", tmp_path / "files", "--json", "--sheet", tmp_path / "sheet.png")
    assert (code, err) == (1, "")
    report = json.loads(out)
    bad = {problem["name"] for problem in report["bad"]}
    assert bad < names
    assert sum(split["samples"] for split in report["splits"].values()) + len(bad) == count
    readable = odd_images(np.random.default_rng(0))
    assert not {name for name in bad if name.split("/")[1] in readable}
    refused = bombs(np.random.default_rng(0)) | no_images(np.random.default_rng(0))
    assert {name for name in names if name.split("/")[1] in refused} <= bad

    code, out, err = mobilevit("check-data", tmp_path / "files")
    assert code == 1
    assert all(c.isprintable() or c == "\n" for c in out + err)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["image-classification", "object-detection"])
def test_every_file_is_answered_or_named(mobilevit, checkpoints, detector, tmp_path, task, count):
    names = write_files(tmp_path / "files", count)
    model = detector if task == "object-detection" else checkpoints[task]
    arguments = ["predict", tmp_path / "files", "--model", model, "--device", "cpu"]
    code, out, err = mobilevit(*arguments, "--json")
    assert code == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert sorted(line["image"] for line in lines) == sorted(str(tmp_path / "files" / name) for name in names)
    failed = [line for line in lines if "error" in line]
    assert all("predictions" in line for line in lines if "error" not in line)
    assert err == f"{len(failed)} of {count} could not be read.\n"

    save = ["--save", tmp_path / "out"] if task == "object-detection" else []
    code, out, err = mobilevit(*arguments, *save)
    assert code == 1, err
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert err.count("unreadable: ") == len(failed)
    if save:
        assert len(list((tmp_path / "out").iterdir())) == count - len(failed)


def test_nothing_that_a_image_holds_is_run(mobilevit, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    program, mark = tmp_path / "bin" / "gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "files/class/script.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(no_images(np.random.default_rng(0))["script.jpg"])
    code, out, _ = mobilevit("check-data", tmp_path / "files", "--json", "--max-bad", 1)
    assert not mark.exists()
    assert code == 1
    assert "not an image" in json.loads(out)["bad"][0]["reason"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(mobilevit, tmp_path):
    folder = tmp_path / "files" / "cat"
    folder.mkdir(parents=True)
    (folder / "good.png").write_bytes(encode(noise(np.random.default_rng(0)), "png"))
    os.mkfifo(folder / "pipe.png")
    assert DataFolder(tmp_path / "files").entries("cat")["pipe.png"] != "file"  # or the next line never ends
    code, out, _ = mobilevit("check-data", tmp_path / "files", "--json")
    assert code == 1
    assert [problem["name"] for problem in json.loads(out)["bad"]] == ["cat/pipe.png"]


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def grow(run_python):
    """Run the command in a process of its own, as on eight cores; returns exit code, output and growth in MiB."""

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
def test_bombs_take_no_memory(grow, tmp_path):
    files = bombs(np.random.default_rng(0))
    del files["below the limit.png"]  # which may take what an image of its size takes
    folder = tmp_path / "files" / "class"
    folder.mkdir(parents=True)
    for i in range(2):
        for name, data in files.items():
            (folder / f"{i} {name}").write_bytes(data)
    (folder / "good.png").write_bytes(encode(noise(np.random.default_rng(0)), "png"))
    code, out, growth = grow("check-data", tmp_path / "files", "--json")
    assert code == 1
    assert len(json.loads(out)["bad"]) == 2 * len(files)
    assert growth < 300


@pytest.mark.slow
def test_large_images_take_the_memory_of_one(grow, tmp_path):
    """Eight cores, and eight images of 81 megapixels in a few kB each, which are 232 MiB as RGB."""
    data = encode(Image.new("RGB", (9000, 9000)), "png")
    for i in range(8):
        path = tmp_path / "files" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    code, out, growth = grow("check-data", tmp_path / "files", "--json")
    assert code == 1
    assert json.loads(out)["bad_by_kind"].keys() == {"same image in two splits"}
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
LAUGHS = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha"}">' for i in range(12))
# 30 MB once it is written out. It could as well be more than all memory.
NESTED_YAML = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'ha'] * 9)}]\n" for i in range(7))


def write(folder, files):
    """Text files by their paths below a folder, and two images beside them, which no other has the size of."""
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
    place = file_name.removesuffix("secret.png") or "."
    files = {f"labels/{i}.txt": "0 0.5 0.5 0.2 0.2\n" for i in range(2)}
    return files | {"data.yaml": f"names: [cat]\ntrain: {json.dumps(place)}\n"}


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "{folder}/secret.png", "labels/../../secret.png", "..\\secret.png", "link.png", "up/secret.png"],
)
@pytest.mark.parametrize("make", [coco, voc, voc_list, metadata, labels, yolo, yolo_folder])
def test_paths_out_of_the_folder_are_not_followed(mobilevit, tmp_path, make, path):
    """The other image can be told by its size."""
    noise(np.random.default_rng(1), 77, 33).save(tmp_path / "secret.png")
    (tmp_path / "secret.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "secret.xml").write_text(XML.format("secret.png"))
    write(tmp_path / "data", make(path.format(folder=tmp_path)))
    (tmp_path / "data/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data/up").symlink_to(tmp_path)
    code, out, err = mobilevit("check-data", tmp_path / "data", "--json")
    if code == 2:
        assert len(err.splitlines()) == 1
        return
    report = json.loads(out)
    assert report["widths"]["max"] == 48
    assert make is yolo_folder or code == 1


def test_linked_class_folders_are_not_followed(mobilevit, tmp_path):
    noise(np.random.default_rng(1), 77, 33).save(tmp_path / "secret.png")
    write(tmp_path / "data/cat", {})
    (tmp_path / "data/dog").symlink_to(tmp_path)
    (tmp_path / "data/cat/link.png").symlink_to(tmp_path / "secret.png")
    code, out, _ = mobilevit("check-data", tmp_path / "data", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["widths"]["max"] == 48
    assert {problem["name"] for problem in report["bad"]} == {"cat/link.png", "dog"}


ODD = [
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


def variants(content):
    """Copies of nested lists and dictionaries with one odd value in each place."""
    yield from ODD
    if isinstance(content, dict):
        yield from ({k: v for k, v in content.items() if k != key} for key in content)
        yield from (content | {key: odd} for key, value in content.items() for odd in variants(value))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from ([*content[:i], odd, *content[i + 1 :]] for odd in variants(value))


def odd_coco():
    for content in variants(COCO):
        yield {"train.json": json.dumps(content)}
    text = json.dumps(COCO)
    for broken in ("", "[" * 100_000, text[:99], "\ufeff" + text, text.encode("utf-16"), b"\xff" + text.encode()):
        yield {"train.json": broken}


def odd_metadata():
    first = json.dumps({"file_name": "0.png", "objects": BOX})
    for row in variants({"file_name": "1.png", "objects": BOX}):
        yield {"metadata.jsonl": f"{first}\n{json.dumps(row)}\n"}
    for row in variants({"file_name": "1.png", "label": "cat"}):
        yield {"metadata.jsonl": '{"file_name": "0.png", "label": "cat"}\n' + json.dumps(row)}
    for broken in ("", "[" * 100_000, first[:30], "\0", b"\xff\xfe", "file_name\n"):
        yield {"metadata.jsonl": broken}
        yield {"metadata.csv": broken}
    yield {"metadata.csv": "file_name,label\n0.png\n,cat\n1.png,cat,dog\n" + "x" * 200_000}


def odd_voc():
    whole = XML.format("1.png")
    for text in ("1.png", "48", "40", "cat", "4", "5", "24", "15"):
        for odd in ("", "x", "nan", "inf", "-1", "1e400", "9" * 5000, "<a/>", "&lt;", "&#27;[2J", "\n"):
            yield {"0.xml": XML.format("0.png"), "1.xml": whole.replace(f">{text}<", f">{odd}<")}
    for tag in ("annotation", "filename", "size", "width", "object", "name", "bndbox", "xmin"):
        yield {"0.xml": XML.format("0.png"), "1.xml": whole.replace(f"{tag}>", "other>")}
    for broken in (
        "",
        " ",
        whole[:99],
        "<a>" * 100_000,
        "<a>" * 10_000 + "</a>" * 10_000,
        f"<!DOCTYPE a [{LAUGHS}]><annotation><filename>&a11;</filename></annotation>",
        f"<!DOCTYPE a [{LAUGHS}]><annotation><filename>&a11;</filename></annotation>".encode("utf-16"),
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><filename>&b;</filename></annotation>',
        b'<?xml version="1.0" encoding="utf-7"?>+ADw-annotation/+AD4-',
        b'<?xml version="1.0" encoding="nothing"?><annotation/>',
        b"\xff\xfe\0",
    ):
        yield {"0.xml": XML.format("0.png"), "1.xml": broken}


def odd_yolo():
    names = "names: [cat, dog]\ntrain: train.txt\n"
    files = {"train.txt": "0.png\n1.png\n", "labels/0.txt": "0 0.5 0.5 0.2 0.2\n"}
    for odd in ("", "x", "nan", "inf", "-1", "1e400", "9" * 5000, "0.5", "\x1b[2J"):
        for i in range(5):
            line = ["1", "0.5", "0.5", "0.2", "0.2"]
            line[i] = odd
            yield files | {"data.yaml": names, "labels/1.txt": " ".join(line)}
    for broken in ("", "\0", b"\xff\xfe", "1 " * 100_000, "1 0.5 0.5"):
        yield files | {"data.yaml": names, "labels/1.txt": broken}
        yield files | {"data.yaml": names, "train.txt": broken}
    for content in variants({"names": ["cat", "dog"], "train": "train.txt", "nc": 2, "path": "."}):
        yield files | {"data.yaml": json.dumps(content)}
    for broken in ("names: [", "names:\n  - !!python/object/apply:os.getcwd []", "names: *a", "names: {a: b}", "\0"):
        yield files | {"data.yaml": "names:\n" + broken}
        yield files | {"data.yaml": broken + "\n" + names}
    for last in ("names: *a6\n", "names: [*a6]\n", "train: *a6\n", "val: [*a6]\n", "path: *a6\n"):
        yield files | {"data.yaml": f"{NESTED_YAML}names: [cat]\ntrain: train.txt\n{last}"}


@pytest.mark.parametrize("make", [odd_coco, odd_metadata, odd_voc, odd_yolo])
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_annotations_are_counted_or_named(mobilevit, tmp_path, make, step):
    for i, files in enumerate(list(make())[::step]):
        folder = tmp_path / str(i)
        write(folder, files)
        code, out, err = mobilevit("check-data", folder, "--json")
        assert len(out + err) < 100_000, files
        if code == 2:
            assert out == ""
            assert len(err.splitlines()) == 1, files
        else:
            report = json.loads(out)
            assert report["widths"]["max"] == 48
            assert bool(report["bad"]) == (code == 1)


@pytest.mark.parametrize("name", ["~nobody-has-this-name/x", "x" * 5000])
@pytest.mark.parametrize("command", [["check-data"], ["evaluate", "MODEL"], ["train"]])
def test_a_data_set_by_a_name_that_is_no_path(mobilevit, detector, command, name):
    code, out, err = mobilevit(*(str(detector) if word == "MODEL" else word for word in command), name)
    assert (code, out) == (2, "")
    assert "There is no" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["~nobody-has-this-name/x", "OUT"], "no such file or directory"),
        (["WEIGHTS", "OUT", "--labels", "~nobody-has-this-name/x"], "no file ~nobody-has-this-name/x"),
    ],
    ids=["source", "labels"],
)
def test_a_home_of_nobody_holds_no_checkpoint(mobilevit, detector, tmp_path, arguments, expected):
    places = {"WEIGHTS": detector / "model.safetensors", "OUT": tmp_path / "out"}
    code, out, err = mobilevit("convert", *(str(places.get(word, word)) for word in arguments))
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_image_of_each_class_is_none_too_few(mobilevit, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.png")
    _, out, _ = mobilevit("check-data", tmp_path, "--json")
    report = json.loads(out)
    assert {split: found["samples"] for split, found in report["splits"].items()} == {"train": 2}
    assert "none was cut off" in report["notes"][0]


def test_metadata_that_says_too_little_or_too_much(mobilevit, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").mkdir()
    rows = [{"label": "cat"}, {"file_name": "0.png", "label": ""}, {"file_name": "0.png", "label": "cat"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = mobilevit("check-data", tmp_path, "--json")
    report = json.loads(out)
    assert report["splits"] == {"train": {"samples": 1, "classes": {"cat": 1}}}
    assert [problem["reason"].split(":")[0] for problem in report["bad"]] == ["a row has no `file_name`", "no label"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "label": 10**12}))
    code, _, err = mobilevit("check-data", tmp_path)
    assert code == 2
    assert "got class 1000000000000, expected at most" in err


def test_a_folder_that_is_called_like_a_file_of_yolo(mobilevit, tmp_path):
    (tmp_path / "data.yaml").mkdir()
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("1", (9500, 9500)).save(tmp_path / "images/0.png")  # Pillow warns of its size
    (tmp_path / "labels/0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    with warnings.catch_warnings(action="error"):
        assert len(load_dataset(tmp_path, data_format="yolo").splits["train"]) == 1


def test_a_row_names_no_file_of_this_machine(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "mine.png")
    (tmp_path / "data").mkdir()
    mine = tmp_path / "mine.png"
    paths = [f"file://{mine}::hf://datasets/a/b/c.png", f"zip://{mine}::file://{mine}::hf://a", str(mine)]
    images = [{"bytes": mine.read_bytes(), "path": None}, *({"bytes": None, "path": path} for path in paths)]
    parquet.write_table(pyarrow.table({"image": images, "label": ["cat"] * 4}), tmp_path / "data/train.parquet")
    dataset = load_dataset(tmp_path / "data")
    assert [sample.name for sample in dataset.splits["train"]] == ["train[0]"]
    assert [problem.kind for problem in dataset.problems] == ["missing image"] * 3


@pytest.mark.parametrize(
    ("column", "names"), [("label", ["dog", "cat"]), ("label", ["cat"]), ("kind", ["cat", "dog"])]
)
def test_splits_whose_classes_differ_are_not_mixed_up(tmp_path, column, names):
    def rows(column, names):
        features = datasets.Features({"image": datasets.Image(), column: datasets.ClassLabel(names=names)})
        images = [{"bytes": b"x", "path": None}] * 2
        return datasets.Dataset.from_dict({"image": images, column: [0, 0]}, features=features)

    splits = {"train": rows("label", ["cat", "dog"]), "test": rows(column, names)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match="its splits differ in their columns or classes"):
        load_dataset(tmp_path)
