import json
import shutil

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

import mobilevit_hf
from mobilevit_hf.batch import predict_dataset
from mobilevit_hf.batch.output import OutputFolder
from mobilevit_hf.data.images import load_image


@pytest.fixture
def photos(image, tmp_path):
    """Folder of 11 images, of which one can't be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        image.rotate(36 * i).resize((64 + i, 48)).save(folder / f"{i}.png")
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(autouse=True)
def _default_allocator(monkeypatch):
    monkeypatch.setattr("mobilevit_hf.batch.worker.tune_allocator", lambda: True)


def read_rows(folder, output_format="parquet"):
    """Return the rows of all parts by the name of the image; none is there twice."""
    rows = []
    for path in sorted(folder.glob(f"part-*.{output_format}")):
        lines = path.read_text().splitlines() if output_format == "jsonl" else []
        rows += map(json.loads, lines) if lines else pq.read_table(path).to_pylist()
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row for row in rows}


def test_every_image_has_a_row(photos, classifier_dir, tmp_path):
    summary = predict_dataset(photos, tmp_path / "out", classifier_dir, chunk_size=4)
    rows = read_rows(tmp_path / "out")
    assert sorted(rows) == [*(f"{i}.png" for i in range(10)), "bad.jpg"]
    assert (summary.images, summary.unreadable, summary.parts, summary.resumed_parts) == (11, 1, 3, 0)
    bad = rows.pop("bad.jpg")
    assert (bad["width"], bad["predictions"]) == (None, None)
    assert "not an image" in bad["error"]
    assert [rows[f"{i}.png"]["width"] for i in range(10)] == [64 + i for i in range(10)]
    assert (tmp_path / "out" / "_SUCCESS").is_file()


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_folder_of_parts_is_a_dataset(photos, classifier_dir, tmp_path, output_format):
    (photos / "bad.jpg").unlink()
    predict_dataset(photos, tmp_path / "out", classifier_dir, chunk_size=4, output_format=output_format)
    dataset = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(dataset["image"]) == [f"{i}.png" for i in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "object-detection", "image-segmentation"])
@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_predictions_equal_those_of_the_command(
    mobilevit, photos, classifier_dir, detector_dir, segmenter_dir, tmp_path, task, output_format
):
    models = {
        "image-classification": classifier_dir,
        "object-detection": detector_dir,
        "image-segmentation": segmenter_dir,
    }
    arguments = {"threshold": 0.1} if task == "object-detection" else {}
    options = [text for name, value in arguments.items() for text in (f"--{name}", value)]
    _, out, _ = mobilevit("predict", photos, "--model", models[task], "--json", *options)
    predict_dataset(photos, tmp_path / "out", models[task], chunk_size=3, output_format=output_format, **arguments)
    rows, count = read_rows(tmp_path / "out", output_format), 0
    for expected in map(json.loads, out.splitlines()):
        row = rows.pop(expected["image"].removeprefix(f"{photos}/"))
        assert row["error"] == expected.get("error")
        assert row["predictions"] == expected.get("predictions")
        count += len(row["predictions"] or [])
    assert not rows
    assert count > 10


def test_embeddings_are_the_pooled_output_of_the_encoder(photos, classifier_dir, tmp_path):
    predict_dataset(photos, tmp_path / "out", classifier_dir, embeddings=True)
    rows = read_rows(tmp_path / "out")
    extractor = mobilevit_hf.pipeline("image-feature-extraction", str(classifier_dir))
    for i in range(10):
        expected = extractor(load_image(photos / f"{i}.png"), pool=True)[0]
        np.testing.assert_allclose(rows[f"{i}.png"]["embedding"], expected, atol=1e-4)
    assert rows["bad.jpg"]["embedding"] is None


@pytest.mark.slow
@pytest.mark.parametrize("task", ["object-detection", "image-segmentation"])
def test_embeddings_of_a_model_without_pooling_are_means_of_its_features(
    photos, detector_dir, segmenter_dir, tmp_path, task
):
    model = detector_dir if task == "object-detection" else segmenter_dir
    predict_dataset(photos, tmp_path / "out", model, embeddings=True)
    rows = read_rows(tmp_path / "out")
    plain = mobilevit_hf.MobileViTSSDLiteForObjectDetection
    if task == "image-segmentation":
        plain = mobilevit_hf.MobileViTForSemanticSegmentation
    loaded = plain.from_pretrained(model).eval()
    from transformers import AutoImageProcessor

    inputs = AutoImageProcessor.from_pretrained(model)(load_image(photos / "3.png"), return_tensors="pt")
    expected = loaded(**inputs, output_hidden_states=True).hidden_states[-1].mean(dim=(-2, -1))[0]
    np.testing.assert_allclose(rows["3.png"]["embedding"], expected.detach(), atol=1e-4)


def test_resume_predicts_the_missing_parts_only(photos, classifier_dir, tmp_path, monkeypatch):
    from mobilevit_hf.batch import worker

    out = tmp_path / "out"
    predict_dataset(photos, out, classifier_dir, chunk_size=3)
    complete = read_rows(out)
    (out / "part-00000001.parquet").unlink()
    (out / "part-00000003.parquet").unlink()
    (out / "_SUCCESS").unlink()
    chunks, process_chunk = [], worker.process_chunk
    monkeypatch.setattr(worker, "process_chunk", lambda job, chunk: chunks.append(chunk) or process_chunk(job, chunk))
    summary = predict_dataset(photos, out, classifier_dir, chunk_size=3, resume=True)
    assert [chunk.index for chunk in chunks] == [1, 3]
    assert read_rows(out) == complete
    assert (summary.images, summary.unreadable, summary.resumed_parts) == (11, 1, 2)
    assert (out / "_SUCCESS").exists()


def test_resume_has_the_images_of_the_start(photos, classifier_dir, tmp_path):
    out = tmp_path / "out"
    predict_dataset(photos, out, classifier_dir, chunk_size=3)
    (out / "part-00000000.parquet").unlink()
    names = set(pq.read_table(out / "part-00000001.parquet")["image"].to_pylist())
    for i in range(3):
        shutil.copy(photos / "1.png", photos / f"new{i}.png")
    summary = predict_dataset(photos, out, classifier_dir, resume=True)
    assert summary.images == 11
    assert names <= set(read_rows(out))
    assert any("3 more files" in note for note in summary.notes)


def test_job_that_was_killed_while_its_source_was_listed_starts_again(photos, classifier_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "_chunks").write_text('{"index": 0')
    assert predict_dataset(photos, out, classifier_dir).images == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 1}, "top_k: got 1, expected 5"),
        ({"embeddings": True}, "embeddings: got true, expected false"),
        ({"output_format": "jsonl"}, "output_format: got jsonl, expected parquet"),
        ({"chunk_size": 7}, "chunk_size: got 7, expected 500"),
    ],
)
def test_resume_with_other_options_names_the_difference(photos, classifier_dir, tmp_path, change, message):
    predict_dataset(photos, tmp_path / "out", classifier_dir)
    with pytest.raises(ValueError, match=message):
        predict_dataset(photos, tmp_path / "out", classifier_dir, resume=True, **change)


def test_resume_with_other_weights_is_an_error(photos, classifier_dir, tmp_path):
    shutil.copytree(classifier_dir, tmp_path / "model")
    predict_dataset(photos, tmp_path / "out", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    with pytest.raises(ValueError, match=r"model: got .* with other weights or settings"):
        predict_dataset(photos, tmp_path / "out", tmp_path / "model", resume=True)


def test_resume_with_another_source_is_an_error(photos, classifier_dir, tmp_path):
    predict_dataset(photos, tmp_path / "out", classifier_dir)
    with pytest.raises(ValueError, match=r"source: got .*0.png, expected .*photos as when"):
        predict_dataset(photos / "0.png", tmp_path / "out", classifier_dir, resume=True)


def test_existing_output_is_kept(photos, classifier_dir, tmp_path):
    predict_dataset(photos, tmp_path / "out", classifier_dir)
    with pytest.raises(ValueError, match=r"output: .*out exists. Continue it with --resume"):
        predict_dataset(photos, tmp_path / "out", classifier_dir)
    with pytest.raises(ValueError, match="with other files"):
        predict_dataset(photos, photos, classifier_dir)


def test_damaged_part_is_named(photos, classifier_dir, tmp_path):
    predict_dataset(photos, tmp_path / "out", classifier_dir)
    (tmp_path / "out" / "part-00000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"part-00000000.parquet: can't be read"):
        predict_dataset(photos, tmp_path / "out", classifier_dir, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_size": 0}, "chunk_size: got 0"),
        ({"workers": 0}, "workers: got 0"),
        ({"output_format": "csv"}, "output_format: got 'csv'"),
        ({"backend": "tvm"}, "backend: got 'tvm'"),
        ({"embeddings": True, "backend": "onnx"}, "embeddings: got True for onnx"),
        ({"quantization": "int8"}, "quantization: got 'int8' for torch"),
        ({"device": "tpu"}, "device: got tpu for torch, expected auto or cpu"),
        ({"device": "cuda", "backend": "onnx"}, "device: got cuda for onnx, expected auto or cpu"),
        ({"threshold": 0.5}, "threshold: not for image-classification"),
    ],
)
def test_invalid_arguments_are_rejected_before_the_output_exists(photos, classifier_dir, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_dataset(photos, tmp_path / "out", classifier_dir, **arguments)
    assert not (tmp_path / "out").exists()


def test_missing_quantized_file_is_an_error_before_the_output_exists(photos, classifier_dir, tmp_path):
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="has no int8 file for openvino"):
        predict_dataset(photos, tmp_path / "out", classifier_dir, backend="openvino", quantization="int8")
    assert not (tmp_path / "out").exists()


def test_source_without_images_is_an_error(classifier_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="got no images in"):
        predict_dataset(tmp_path / "empty", tmp_path / "out", classifier_dir)
    assert OutputFolder(str(tmp_path / "out")).names() == []


def test_bucket_to_bucket(photos, classifier_dir, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/source/photos", recursive=True)
    summary = predict_dataset("memory://source/photos", "memory://source/out", classifier_dir, chunk_size=4)
    assert (summary.images, summary.unreadable) == (11, 1)
    memory.rm_file("/source/out/part-00000001.parquet")
    predict_dataset("memory://source/photos", "memory://source/out", classifier_dir, resume=True)
    memory.get("/source/out", str(tmp_path / "out"), recursive=True)
    predict_dataset(photos, tmp_path / "local", classifier_dir)
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "local")
    memory.rm("/source", recursive=True)


def test_progress_counts_images_and_errors(photos, classifier_dir, tmp_path):
    progress = []
    predict_dataset(photos, tmp_path / "out", classifier_dir, chunk_size=4, on_progress=progress.append)
    assert [step.chunks for step in progress] == [0, 1, 2, 3]
    assert (progress[-1].images, progress[-1].total_images, progress[-1].unreadable) == (11, 11, 1)
    assert [name for step in progress for name, _ in step.examples] == ["bad.jpg"]


def test_missing_model_leaves_no_output(photos, tmp_path):
    with pytest.raises(ValueError, match="missing"):
        predict_dataset(photos, tmp_path / "out", str(tmp_path / "missing"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_exported_model_has_the_predictions_of_the_command(mobilevit, photos, classifier_dir, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("MOBILEVIT_CACHE", str(tmp_path / "cache"))
    options = ["--model", classifier_dir, "--backend", "onnx"]
    _, out, _ = mobilevit("predict", photos, "--json", *options)
    predict_dataset(photos, tmp_path / "out", classifier_dir, backend="onnx", chunk_size=3)
    rows = read_rows(tmp_path / "out")
    for expected in map(json.loads, out.splitlines()):
        row = rows.pop(expected["image"].removeprefix(f"{photos}/"))
        assert row["predictions"] == expected.get("predictions")
    assert not rows


@pytest.mark.slow
def test_image_with_a_path_outside_of_unicode(classifier_dir, image, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    try:
        image.save(bytes(folder) + b"/\xff.png", "PNG")
    except OSError:
        pytest.skip("a file system of Unicode names")
    predict_dataset(folder, tmp_path / "out", classifier_dir)
    assert read_rows(tmp_path / "out")["\\udcff.png"]["width"] == Image.open(bytes(folder) + b"/\xff.png").width
