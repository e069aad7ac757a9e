"""The Python programs of docs/phone.md run as written and print the predictions of `pipeline`."""

import json
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import mobilevit_hf
from mobilevit_hf.samples import draw_smear, draw_t_shirt

DOCUMENT = (Path(__file__).parents[1] / "docs" / "phone.md").read_text()
PROGRAMS = {"litert": "ai_edge_litert", "onnx": "onnxruntime"}  # and the packages that they require
# The programs run without what they are to do without.
WITHOUT_TORCH = "import sys, runpy; sys.modules |= dict.fromkeys(['torch', 'transformers', 'mobilevit_hf']); "
TOLERANCE = 0.01  # of scores: Pillow resizes and crops in one step


def find_program(name):
    """Return the Python program whose first line names it."""
    (program,) = re.findall(rf"^```python\n(# run_{name}\.py.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    return program


@pytest.fixture(scope="module")
def exported_file(tmp_path_factory):
    """Function that exports a built-in model, once, and returns the path of its file for images."""

    @cache
    def export(model, backend):
        pytest.importorskip(PROGRAMS[backend])
        if backend == "litert":
            pytest.importorskip("litert_torch")
        folder = tmp_path_factory.mktemp("export")
        (record,) = mobilevit_hf.export_model(model, folder, backend, interface="image")
        return folder / record.file

    return export


@pytest.fixture
def run_program(tmp_path):
    """Function that runs a program on an image and returns the lines that it prints."""

    def run(name, file, photo):
        (tmp_path / "program.py").write_text(find_program(name))
        command = f"sys.argv = [{name!r}, {str(file)!r}, {str(photo)!r}]; runpy.run_path('program.py')"
        process = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH + command], cwd=tmp_path, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_prints_the_classes_of_the_pipeline(name, exported_file, run_program, tmp_path):
    shirt = draw_t_shirt().convert("RGB").resize((300, 400))
    shirt.getexif()[0x0112] = 6  # rotated by 90 degrees
    shirt.save(tmp_path / "shirt.jpg", exif=shirt.getexif())
    assert ImageOps.exif_transpose(Image.open(tmp_path / "shirt.jpg")).size == (400, 300)
    expected = mobilevit_hf.pipeline("image-classification", "garments")(str(tmp_path / "shirt.jpg"), top_k=3)
    lines = run_program(name, exported_file("garments", name), tmp_path / "shirt.jpg")
    assert [line.split()[0] for line in lines] == [prediction["label"] for prediction in expected]
    scores = [float(line.split()[1]) for line in lines]
    np.testing.assert_allclose(scores, [prediction["score"] for prediction in expected], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_prints_the_boxes_of_the_pipeline(name, exported_file, run_program, tmp_path):
    draw_smear().save(tmp_path / "smear.png")  # not square
    expected = mobilevit_hf.pipeline("object-detection", "blood-cells")(str(tmp_path / "smear.png"))
    lines = run_program(name, exported_file("blood-cells", name), tmp_path / "smear.png")
    assert len(expected) == 20
    assert [line.split()[0] for line in lines] == [prediction["label"] for prediction in expected]
    values = np.array([line.split()[1:] for line in lines], dtype=float)
    np.testing.assert_allclose(values[:, 0], [prediction["score"] for prediction in expected], atol=TOLERANCE)
    np.testing.assert_allclose(values[:, 1:], [list(prediction["box"].values()) for prediction in expected], atol=1)


@pytest.fixture
def label_file(tmp_path):
    """ONNX file whose class of each pixel is the red value divided by 64."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    numbers = {"start": 0, "end": 1, "axis": 3}
    constants = [onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [n]) for name, n in numbers.items()]
    constants.append(onnx.helper.make_tensor("bits", onnx.TensorProto.UINT8, [1], [6]))
    nodes = [
        onnx.helper.make_node("Slice", ["image", *numbers], ["red"]),
        onnx.helper.make_node("Squeeze", ["red", "axis"], ["plane"]),
        onnx.helper.make_node("BitShift", ["plane", "bits"], ["labels"], direction="RIGHT"),
    ]
    image, labels = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape)
        for name, shape in (("image", [1, 32, 32, 3]), ("labels", [1, 32, 32]))
    )
    graph = onnx.helper.make_graph(nodes, "labels", [image], [labels], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"names": json.dumps({i: f"class {i}" for i in range(4)})})
    onnx.save(model, tmp_path / "labels.onnx")
    return tmp_path / "labels.onnx"


@pytest.mark.slow
def test_program_prints_the_fraction_of_each_class(label_file, run_program, tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:8, :, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    assert run_program("onnx", label_file, tmp_path / "red.png") == ["class 0 0.750", "class 3 0.250"]


@pytest.mark.slow
def test_program_reports_a_file_that_is_no_image(label_file, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "program.py").write_text(find_program("onnx"))
    command = [sys.executable, "program.py", str(label_file), "text.jpg"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("text.jpg is no readable image: ")
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("model", "value"), [("garments", "crop_pct"), ("blood-cells", "recommended_threshold")])
def test_text_files_are_where_the_kotlin_app_reads_them(model, value, exported_file, tmp_path):
    content = exported_file(model, "litert").read_bytes()
    directory = int.from_bytes(content[-6:-2], "little")
    start = int.from_bytes(content[directory + 42 : directory + 46], "little")
    assert content[start:].startswith(b"PK\x03\x04")
    (tmp_path / "files.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "files.zip") as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == ["labels.txt", value]
    assert all(entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 8 for entry in entries)


@pytest.mark.parametrize("language", ["swift", "kotlin"])
def test_app_is_one_file_without_class_names(language):
    (app,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert app.count("{") == app.count("}")
    config = mobilevit_hf.MobileViTConfig.from_pretrained(mobilevit_hf.builtin("garments"))
    assert not any(f'"{label}"' in app for label in config.id2label.values())
    assert "crop_pct" in app
