"""Predictions and latencies of the demo."""

import re

import numpy as np
import pytest
import transformers

pytest.importorskip("gradio")

from mobilevit_hf.demo import inference

CLASSIFICATION, DETECTION, THRESHOLD = "image-classification", "object-detection", 0.02


def test_pipelines_are_cached(models):
    first = inference.load_pipeline(models[DETECTION], "torch")
    assert inference.load_pipeline(models[DETECTION], "torch") is first
    assert inference.load_pipeline(models[CLASSIFICATION], "torch") is not first
    assert inference.load_pipeline(models[DETECTION], "torch") is first


def test_latency_is_the_median_of_warm_calls(monkeypatch):
    calls, clock = [], iter([0, 0.1, 1, 1.3, 2, 2.2, 3, 3.9])  # 100, 300, 200 and 900 ms: more than one second
    monkeypatch.setattr(inference.time, "perf_counter", lambda: next(clock))

    class FakePipeline:
        task = CLASSIFICATION

        def __call__(self, image, top_k):
            calls.append(image)
            return [{"label": "cat", "score": 0.25}, {"label": "dog", "score": 0.75}]

    predictions, milliseconds, timed = inference.predict_timed(FakePipeline(), "image", 0.5)
    assert [prediction["label"] for prediction in predictions] == ["dog", "cat"]
    assert milliseconds == pytest.approx(250)
    assert (timed, len(calls)) == (4, 5)


@pytest.mark.slow
def test_table_of_labels(models, files, stock_predictions):
    pipeline = inference.load_pipeline(models[CLASSIFICATION], "torch")
    table = inference.predict_files(pipeline, map(str, files.values()), 0.5)
    assert table.headers == ["file", "label", "score", "error"]
    rows = {row[0]: row[1:] for row in table.rows}
    for name in ("one.png", "two.jpg"):
        best = stock_predictions(CLASSIFICATION, name)[0]
        assert rows[name][0] == best["label"]
        assert rows[name][1] == pytest.approx(best["score"], abs=1e-3)
        assert rows[name][2] == ""
    for name in ("broken.jpg", "notes.txt"):
        assert rows[name][:2] == ["", ""]
        assert "not an image" in rows[name][2]


@pytest.mark.slow
def test_table_of_counts(models, files, stock_predictions):
    pipeline = inference.load_pipeline(models[DETECTION], "torch")
    table = inference.predict_files(pipeline, [str(files["one.png"]), str(files["two.jpg"])], THRESHOLD)
    targets = [inference.count_labels(stock_predictions(DETECTION, name)) for name in ("one.png", "two.jpg")]
    assert any(targets)
    assert set(table.headers) == {"file", *targets[0], *targets[1]}  # without errors
    for row, target in zip(table.rows, targets, strict=True):
        counts = dict(zip(table.headers[1:], row[1:], strict=True))
        assert {label: number for label, number in counts.items() if number} == target
    empty = inference.predict_files(pipeline, [str(files["one.png"]), str(files["notes.txt"])], 0.999)
    assert empty.headers == ["file", "error"]
    assert empty.rows[0] == ["one.png", ""]


@pytest.mark.slow
def test_backends_are_compared(models, files, stock_predictions):
    path, load = str(files["one.png"]), inference.load_pipeline
    tables = list(inference.compare_backends(load, models[CLASSIFICATION], path, 0.5))
    (table,) = {id(table): table for table in tables}.values()
    assert [row[0] for row in table.rows] == list(inference.backend_titles().values())
    best = stock_predictions(CLASSIFICATION, "one.png")[0]
    for _, milliseconds, prediction in table.rows:
        assert float(milliseconds) > 0
        assert prediction.startswith(f"{best['label']} ")


def test_unsupported_backend_has_an_error_message(files, monkeypatch, tmp_path):
    config = transformers.ResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], embedding_size=8, id2label={0: "cat", 1: "dog"}
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    monkeypatch.setattr(inference, "backend_titles", lambda: {"torch": "PyTorch", "onnx": "ONNX Runtime"})
    *_, table = inference.compare_backends(inference.load_pipeline, str(tmp_path), str(files["one.png"]), 0.5)
    assert re.match(r"(cat|dog) \d", table.rows[0][2])
    assert table.rows[1][:2] == ["ONNX Runtime", ""]
    assert table.rows[1][2]


def test_segments_are_predicted_and_tabulated(segmenter_dir, files, image):
    stock = transformers.pipeline("image-segmentation", str(segmenter_dir))(image)
    expected = {s["label"]: np.mean(np.asarray(s["mask"]) > 0) for s in stock}
    load = inference.load_pipeline
    predictions = inference.predict(load(str(segmenter_dir), "torch"), image, 0.5)
    assert {p["label"]: p["fraction"] for p in predictions} == pytest.approx(expected)
    summary = inference.summarize("image-segmentation", predictions, 0.5)
    largest = max(expected, key=expected.get)
    assert summary.startswith(f"{largest} {expected[largest]:.1%}, ")
    table = inference.predict_files(load(str(segmenter_dir), "torch"), [str(files["one.png"])], 0.5)
    assert dict(zip(table.headers[1:], table.rows[0][1:], strict=True)) == pytest.approx(expected, abs=1e-4)
