"""A published segmentation model in transformers.js, in Node and a browser, gives the labels of stock transformers."""

import json
import shutil

import numpy as np
import pytest
from test_transformers_js_detection import draw_cells
from transformers_js.programs import (
    copy_with_exports,
    publish_to_hub,
    run_card_snippet,
    run_chromium,
    run_documented,
    run_node,
    run_webgpu,
)

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

REPO = "user/shapes"
NUM_PHOTOS = 5  # of several sizes, one with the model's


@pytest.fixture(scope="module")
def site(image, tmp_path_factory):
    """Folder with the photos; the last one has the size of the model."""
    folder = tmp_path_factory.mktemp("site")
    for number in range(NUM_PHOTOS - 1):
        draw_cells(number).save(folder / f"{number}.png")
    image.resize((96, 64)).save(folder / f"{NUM_PHOTOS - 1}.png")
    return folder


@pytest.fixture(scope="module")
def segmenter(segmenter_dir, site, tmp_path_factory):
    """Folder with the tiny segmentation model and its ONNX files for transformers.js."""
    return copy_with_exports(segmenter_dir, tmp_path_factory.mktemp("models") / "shapes", site.glob("*.png"))


@pytest.fixture(scope="module")
def hub(segmenter):
    """A loopback Hub with the published model."""
    with publish_to_hub(segmenter, REPO) as server:
        yield server


@pytest.fixture(scope="module")
def expected(hub, site, run_python, tmp_path_factory):
    """Class name of each pixel by stock transformers in a clean process, from the same repository."""
    paths = run_python(
        f"""
        import json, numpy as np, transformers

        segment = transformers.pipeline("image-segmentation", model={REPO!r})
        for number in range({NUM_PHOTOS}):
            segments = segment(f"{site}/{{number}}.png")
            names = np.full(np.array(segments[0]["mask"]).shape, "", dtype="<U8")
            for each in segments:
                names[np.array(each["mask"]) > 0] = each["label"]
            np.save(f"{site}/{{number}}.npy", names)
            print(json.dumps(f"{site}/{{number}}.npy"))
        """,
        hub.environment(tmp_path_factory.mktemp("home")),
        without_package=True,
    )
    names = [np.load(json.loads(path)) for path in paths.splitlines()]
    assert all(len(np.unique(each)) > 1 for each in names[-1:])
    return names


def make_arguments(hub, site_url, dtype=None, number=NUM_PHOTOS):
    photos = [f"{site_url}/{index}.png" for index in range(number)]
    return {"hub": hub.url, "model": REPO, "photos": photos, "options": {"dtype": dtype}}


def agreements(results, expected):
    """Return the fraction of pixels with the same class name by photo."""
    fractions = []
    for result, names in zip(results, expected, strict=True):
        assert (result["height"], result["width"]) == names.shape
        fractions.append((np.array(result["names"])[result["pixels"]].reshape(names.shape) == names).mean())
    return fractions


@pytest.mark.parametrize("run", [run_node, run_chromium])
def test_labels_equal(run, site, site_url, hub, expected):
    results = run("segment", make_arguments(hub, site_url), site, site_url)
    *others, same_size = agreements(results, expected)
    assert same_size > 0.999
    assert min(others) > 0.99  # the image is resized by the file, which rounds differently


@pytest.mark.parametrize("run", [run_node, run_chromium])
def test_labels_in_half_precision_are_nearly_equal(run, site, site_url, hub, expected):
    results = run("segment", make_arguments(hub, site_url, "fp16"), site, site_url)
    assert min(agreements(results, expected)) > 0.98


@pytest.mark.parametrize("run", [run_node, run_chromium])
def test_labels_of_the_quantized_model_are_similar(run, site, site_url, hub, expected):
    results = run("segment", make_arguments(hub, site_url, "q8"), site, site_url)
    fractions = agreements(results, expected)
    assert np.mean(fractions) > 0.9
    assert min(fractions) < 0.9999  # else another file was loaded


def test_labels_on_webgpu_equal(site, site_url, hub, expected):
    """On one photo, which takes up to 30 seconds without a GPU."""
    results = run_webgpu("segment", make_arguments(hub, site_url, number=1), site, site_url)
    assert min(agreements(results, expected[:1])) > 0.99


def test_exported_folder_runs_without_a_hub(site, site_url, segmenter, expected):
    photos = [str(site / f"{number}.png") for number in range(NUM_PHOTOS)]
    arguments = {"hub": None, "model": str(segmenter / "onnx"), "photos": photos, "options": {}}
    assert min(agreements(run_node("segment", arguments, site, site_url), expected)) > 0.99


def test_snippet_of_the_card_runs(site, site_url, hub, expected):
    shutil.copy(site / f"{NUM_PHOTOS - 1}.png", site / "photo.jpg")
    _, output = run_card_snippet(hub, REPO, site)
    assert output.count("label:") == len(np.unique(expected[-1]))


def test_documented_program_runs_on_an_exported_folder(site, site_url, segmenter, expected):
    shutil.copy(site / f"{NUM_PHOTOS - 1}.png", site / "photo.jpg")
    output = run_documented(r'"image-segmentation", "\./exported/onnx"', segmenter, site)
    assert output.count("label:") == len(np.unique(expected[-1]))
