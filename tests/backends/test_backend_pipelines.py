"""`mobilevit_hf.pipeline` and `mobilevit predict` on other backends give the predictions of stock transformers."""

import json
import threading

import pytest
from backend_support import BACKENDS, TASKS, require_backend, split_scores, torch_pipeline

import mobilevit_hf
from mobilevit_hf.backends.formats import FORMATS
from mobilevit_hf.backends.openvino import OpenVINORuntime

CASES = [(task, backend) for task in TASKS for backend in BACKENDS if task in FORMATS[backend].tasks]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "backend"), CASES)
def test_predictions_equal_torch_single_batched_and_from_eight_threads(task, backend, model_dirs, images):
    require_backend(backend)
    pipeline = mobilevit_hf.pipeline(task, model_dirs[task], backend=backend)
    stock = torch_pipeline(task, model_dirs[task])
    assert type(pipeline) is type(stock)
    options = {"threshold": 0.05} if task == "object-detection" else {}
    expected = stock(images, **options)
    assert any(expected)
    batch = {} if task == "image-segmentation" else {"batch_size": 4}
    single = [pipeline(image, **options) for image in images]
    for predictions in (single, pipeline(images, **batch, **options)):
        for actual, reference in zip(predictions, expected, strict=True):
            (values, scores), (expected_values, expected_scores) = split_scores(actual), split_scores(reference)
            assert values == expected_values
            assert scores == pytest.approx(expected_scores, abs=1e-4)
    by_thread = [None] * 8

    def predict(i):
        by_thread[i] = [pipeline(image, **options) for image in images]

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(list(map(split_scores, predicted)) == list(map(split_scores, single)) for predicted in by_thread)


@pytest.mark.slow
def test_predict_command_runs_the_backend(model_dirs, images, tmp_path, mobilevit, monkeypatch):
    require_backend("openvino")
    calls, call = [], OpenVINORuntime.__call__
    monkeypatch.setattr(OpenVINORuntime, "__call__", lambda *args: calls.append(args) or call(*args))
    images[0].save(tmp_path / "a.png")
    command = ("predict", tmp_path / "a.png", "--model", model_dirs["image-classification"], "--json")
    _, torch_output, _ = mobilevit(*command)
    assert not calls
    code, output, _ = mobilevit(*command, "--backend", "openvino", "--dtype", "float32")
    assert code == 0
    assert calls
    (actual,), (expected,) = (
        [json.loads(line)["predictions"] for line in text.splitlines()] for text in (output, torch_output)
    )
    assert [each["label"] for each in actual] == [each["label"] for each in expected]
    assert [each["score"] for each in actual] == pytest.approx([each["score"] for each in expected], abs=1e-4)


@pytest.mark.slow
def test_threads_apply_to_torch_and_runtime(model_dirs, run_python):
    folder = model_dirs["image-classification"]
    code = f"""
        import torch, mobilevit_hf
        mobilevit_hf.pipeline("image-classification", {str(folder)!r}, threads=1)
        print(torch.get_num_threads())
    """
    assert run_python(code).strip() == "1"
    require_backend("onnx")
    pipeline = mobilevit_hf.pipeline("image-classification", folder, backend="onnx", threads=3)
    assert pipeline.model.runtime.session.get_session_options().intra_op_num_threads == 3


@pytest.mark.slow
def test_compiled_pipeline_gives_the_same_predictions(model_dirs, images):
    folder = model_dirs["image-classification"]
    compiled = mobilevit_hf.pipeline("image-classification", folder, compile=True)
    assert compiled.model._compiled_call_impl is not None
    values, scores = split_scores(compiled(images[0]))
    expected_values, expected_scores = split_scores(torch_pipeline("image-classification", folder)(images[0]))
    assert values == expected_values
    assert scores == pytest.approx(expected_scores, abs=1e-4)


def test_compile_requires_the_torch_backend(model_dirs):
    with pytest.raises(ValueError, match="compile: got True for onnx"):
        mobilevit_hf.pipeline("image-classification", model_dirs["image-classification"], backend="onnx", compile=True)
