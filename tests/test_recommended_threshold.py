"""One image has one number of detections: the recommended threshold applies on every path to a prediction."""

import json
import re
import shutil
from pathlib import Path

import pytest
from backend_support import require_backend

import mobilevit_hf
from mobilevit_hf.data.images import load_image
from mobilevit_hf.hub import CardOptions, collect_metadata, render_card

THRESHOLD = 0.3


@pytest.fixture(scope="module")
def detector(detector_dir, tmp_path_factory):
    """Folder of a detector that recommends another threshold than transformers' default of 0.5."""
    folder = Path(shutil.copytree(detector_dir, tmp_path_factory.mktemp("recommending") / "detector"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"recommended_threshold": THRESHOLD}))
    return folder


@pytest.fixture(scope="module")
def photo(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def counts(detector, photo):
    """Number of detections by threshold, from the image processor alone."""
    model = mobilevit_hf.MobileViTSSDLiteForObjectDetection.from_pretrained(detector).eval()
    processor = mobilevit_hf.MobileViTSSDLiteImageProcessor.from_pretrained(detector)
    outputs = model(**processor(load_image(photo), return_tensors="pt"))
    counts = {
        threshold: len(processor.post_process_object_detection(outputs, threshold)[0]["scores"])
        for threshold in (THRESHOLD, 0.5, 0.7)
    }
    assert len(set(counts.values())) == 3
    return counts


def test_pipeline(detector, photo, counts):
    detect = mobilevit_hf.pipeline("object-detection", detector)
    assert len(detect(str(photo))) == counts[THRESHOLD]
    assert [len(detections) for detections in detect([str(photo)] * 2)] == [counts[THRESHOLD]] * 2
    assert len(detect(str(photo), threshold=0.5)) == counts[0.5]
    detect = mobilevit_hf.pipeline("object-detection", detector, threshold=0.7)
    assert len(detect(str(photo))) == counts[0.7]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.slow
def test_pipeline_of_an_exported_model(detector, photo, counts, backend, tmp_path, monkeypatch):
    require_backend(backend)
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path))
    detect = mobilevit_hf.pipeline("object-detection", detector, backend=backend)
    assert len(detect(str(photo))) == counts[THRESHOLD]


def test_command(mobilevit, detector, photo, counts):
    arguments = ["predict", photo, "--model", detector, "--json"]
    assert len(json.loads(mobilevit(*arguments)[1])["predictions"]) == counts[THRESHOLD]
    assert len(json.loads(mobilevit(*arguments, "--threshold", 0.5)[1])["predictions"]) == counts[0.5]


def test_demo(detector, photo, counts):
    pytest.importorskip("gradio")
    from mobilevit_hf.demo.app import _find_threshold
    from mobilevit_hf.demo.inference import load_pipeline, predict_files

    threshold, _ = _find_threshold(load_pipeline, str(detector))
    _, (row,) = predict_files(load_pipeline(str(detector), "torch"), [str(photo)], threshold)
    assert sum(row[1:]) == counts[THRESHOLD]


@pytest.mark.slow
def test_stock_pipeline_with_the_code_of_the_checkpoint(detector, photo, counts, run_python, tmp_path):
    """Explicit thresholds, transformers' default included, are obeyed; a copy and the parts work alike."""
    code = f"""
        import transformers

        make, photo, copy = transformers.pipeline, {str(photo)!r}, {str(tmp_path / "copy")!r}
        detect = make("object-detection", {str(detector)!r}, trust_remote_code=True)
        print(len(detect(photo)), len(detect([photo])[0]), len(detect(photo, threshold=0.5)))
        print(len(make("object-detection", {str(detector)!r}, trust_remote_code=True, threshold=0.5)(photo)))
        detect.save_pretrained(copy)
        print(len(make("object-detection", copy, trust_remote_code=True)(photo)))
        parts = dict(model=detect.model, image_processor=detect.image_processor)
        print(len(make("object-detection", **parts)(photo, threshold={THRESHOLD})))
        """
    low, high = counts[THRESHOLD], counts[0.5]
    assert list(map(int, run_python(code, without_package=True).split())) == [low, low, high, high, low, low]
    assert "custom_pipelines" not in json.loads((tmp_path / "copy" / "config.json").read_text())


@pytest.mark.slow
def test_stock_pipeline_with_this_package_needs_the_threshold(detector, photo, counts, run_python):
    """transformers' own class has no way to know it, so it keeps its default."""
    code = f"""
        import mobilevit_hf, transformers

        detect = transformers.pipeline("object-detection", {str(detector)!r})
        print(len(detect({str(photo)!r})), len(detect({str(photo)!r}, threshold={THRESHOLD})))
        """
    assert list(map(int, run_python(code).split())) == [counts[0.5], counts[THRESHOLD]]


@pytest.mark.slow
def test_snippets_of_the_card(detector, photo, counts, run_python):
    card = render_card(collect_metadata(detector, CardOptions(license="mit")), str(detector))
    snippets = re.findall(r"```python\n(.*?)```", card, re.S)
    for code, without_package in zip(snippets, (True, False), strict=True):
        code = re.sub(r"print\((.*)\)", r"print(len(\1))", code.replace("photo.jpg", str(photo)))
        assert int(run_python(code, without_package=without_package)) == counts[THRESHOLD]
