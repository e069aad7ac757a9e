"""A published detector in transformers.js, in Node and a browser, gives the detections of stock transformers."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou
from transformers_js.programs import (
    copy_with_exports,
    publish_to_hub,
    run_card_snippet,
    run_chromium,
    run_documented,
    run_node,
    run_webgpu,
)

import mobilevit_hf

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

REPO = "user/cells"
SIZES = [(480, 640), (320, 320), (200, 330), (700, 500), (90, 121)]  # height, width of the photos in turns
NUM_PHOTOS = 10
THRESHOLD = 0.1


def draw_cells(number):
    """Return discs on a light background, which look like blood cells."""
    generator = np.random.default_rng(number)
    height, width = SIZES[number % len(SIZES)]
    y, x = np.mgrid[0:height, 0:width]
    values = np.full((height, width, 3), (200.0, 205.0, 215.0))
    radius = min(height, width) / 11
    for _ in range(12):
        distance = np.hypot(y - generator.uniform(0, height), x - generator.uniform(0, width))
        alpha = 0.8 / (1 + np.exp((distance - radius * generator.uniform(0.8, 1.1)) / 2))[..., None]
        color = np.array((215.0, 150.0, 150.0)) * (0.75 + 0.25 * (distance / radius).clip(0, 1))[..., None]
        values = (1 - alpha) * values + alpha * color
    values += generator.normal(0, 3, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder with the photos; one of them is in shades of gray."""
    folder = tmp_path_factory.mktemp("site")
    for number in range(NUM_PHOTOS):
        photo = draw_cells(number)
        (photo.convert("L") if number == 1 else photo).save(folder / f"{number}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def detector(site, tmp_path_factory):
    """Folder with the built-in detector and its ONNX files for transformers.js."""
    folder = tmp_path_factory.mktemp("models") / "cells"
    return copy_with_exports(mobilevit_hf.builtin("blood-cells"), folder, site.glob("*.jpg"))


@pytest.fixture(scope="module")
def hub(detector):
    """A loopback Hub with the published detector."""
    with publish_to_hub(detector, REPO) as server:
        yield server


@pytest.fixture(scope="module")
def expected(hub, site, run_python, tmp_path_factory):
    """Detections of stock transformers in a clean process, from the same repository."""
    detections = run_python(
        f"""
        import json, transformers

        detect = transformers.pipeline("object-detection", model={REPO!r}, trust_remote_code=True)
        photos = [f"{site}/{{number}}.jpg" for number in range({NUM_PHOTOS})]
        print(json.dumps([detect(photo, threshold={THRESHOLD}) for photo in photos]))
        """,
        hub.environment(tmp_path_factory.mktemp("home")),
        without_package=True,
    )
    detections = json.loads(detections)
    assert min(map(len, detections)) >= 3
    return detections


def make_arguments(hub, site_url, dtype=None, number=NUM_PHOTOS):
    return {
        "hub": hub.url,
        "model": REPO,
        "photos": [f"{site_url}/{index}.jpg" for index in range(number)],
        "threshold": THRESHOLD,
        "options": {"dtype": dtype},
    }


def assert_equal(detections, expected):
    """Check for the same objects: boxes within a pixel, scores within 0.01 also around the threshold."""
    assert len(detections) == len(expected)
    for found, others in ((detections, expected), (expected, detections)):
        for each, candidates in zip(found, others, strict=True):
            for detection in each:
                if detection["score"] > THRESHOLD + 0.01:
                    assert any(is_equal(detection, candidate) for candidate in candidates), (detection, candidates)


def is_equal(detection, other):
    return (
        detection["label"] == other["label"]
        and abs(detection["score"] - other["score"]) <= 0.01
        and all(abs(detection["box"][side] - other["box"][side]) <= 1 for side in other["box"])
    )


@pytest.mark.parametrize("dtype", [None, "fp16"])
@pytest.mark.parametrize("run", [run_node, run_chromium])
def test_detections_equal(run, dtype, site, site_url, hub, expected):
    detections = run("detect", make_arguments(hub, site_url, dtype), site, site_url)
    assert_equal(detections, expected)
    assert all(each["score"] >= THRESHOLD for photo in detections for each in photo)


@pytest.mark.parametrize("run", [run_node, run_chromium])
def test_quantized_detector_finds_the_confident_objects(run, site, site_url, hub, expected):
    detections = run("detect", make_arguments(hub, site_url, "q8"), site, site_url)
    with pytest.raises(AssertionError):
        assert_equal(detections, expected)  # else another file was loaded
    for found, objects in zip(detections, expected, strict=True):
        confident = [each for each in objects if each["score"] >= 0.5]
        ious = box_iou(corners(confident), corners(found))
        for i, each in enumerate(confident):
            same = torch.tensor([other["label"] == each["label"] for other in found])
            assert ious[i, same].max() > 0.8


def corners(detections):
    sides = ("xmin", "ymin", "xmax", "ymax")
    return torch.tensor([[each["box"][side] for side in sides] for each in detections]).reshape(-1, 4).float()


def test_detections_on_webgpu_equal(site, site_url, hub, expected):
    """On one photo, which takes up to 30 seconds without a GPU."""
    detections = run_webgpu("detect", make_arguments(hub, site_url, number=1), site, site_url)
    assert_equal(detections, expected[:1])


def test_exported_folder_runs_without_a_hub(site, site_url, detector, expected):
    arguments = {"hub": None, "model": str(detector / "onnx"), "threshold": THRESHOLD, "options": {}}
    photos = [str(site / f"{number}.jpg") for number in range(NUM_PHOTOS)]
    assert_equal(run_node("detect", arguments | {"photos": photos}, site, site_url), expected)


def test_documented_program_runs_on_an_exported_folder(site, site_url, detector, expected):
    shutil.copy(site / "0.jpg", site / "photo.jpg")
    number = sum(each["score"] >= 0.5 for each in expected[0])
    output = run_documented(r'"object-detection", "\./exported/onnx"', detector, site)
    assert output.count("label:") == number > 0


def test_snippet_of_the_card_runs(site, site_url, hub, expected):
    shutil.copy(site / "0.jpg", site / "photo.jpg")
    snippet, output = run_card_snippet(hub, REPO, site)
    threshold = float(re.search(r"threshold: ([\d.]+)", snippet)[1])
    number = sum(each["score"] >= threshold for each in expected[0])
    assert output.count("label:") == number > 0


def test_blood_cells_equal(reference_data, site, site_url, hub):
    """On photos of the BCCD test set."""
    folder = reference_data / "data" / "bccd"
    names = (folder / "ImageSets" / "Main" / "test.txt").read_text().split()[:NUM_PHOTOS]
    for name in names:
        shutil.copy(folder / "JPEGImages" / f"{name}.jpg", site)
    detect = mobilevit_hf.pipeline("object-detection", "blood-cells", device="cpu")
    expected = [detect(str(site / f"{name}.jpg"), threshold=THRESHOLD) for name in names]
    arguments = make_arguments(hub, site_url) | {"photos": [f"{site_url}/{name}.jpg" for name in names]}
    for run in (run_node, run_chromium):
        assert_equal(run("detect", arguments, site, site_url), expected)
