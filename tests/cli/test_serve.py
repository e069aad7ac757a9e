"""The `mobilevit serve` command: errors before the start, and the process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from huggingface_hub import InferenceClient

from mobilevit_hf.environment import pip_command
from mobilevit_hf.samples import write_sample

SERVE = [sys.executable, "-m", "mobilevit_hf", "serve"]


@pytest.fixture
def _serve_extra():
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package)


def test_missing_package_is_a_one_line_error(mobilevit, monkeypatch):
    for package in ("starlette", "uvicorn", "prometheus_client"):
        monkeypatch.setitem(sys.modules, package, None)
    code, out, err = mobilevit("serve", "garments")
    assert (code, out) == (2, "")
    assert err.startswith("error: serve requires starlette, uvicorn and prometheus-client, which are not installed.")
    assert pip_command("serve") in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("_serve_extra")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeout", "0"], "--timeout: got 0.0, expected a number above 0. Pass a number of seconds."),
        (["--backend", "onnx", "--device", "cuda"], "--device cuda: onnx runs on the CPU."),
        (["--host", "256.0.0.1"], "Can't listen on 256.0.0.1:8000 ("),
    ],
)
def test_invalid_option_is_a_one_line_error(mobilevit, options, message):
    code, out, err = mobilevit("serve", "garments", *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("_serve_extra")
def test_port_in_use_is_a_one_line_error(mobilevit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, _, err = mobilevit("serve", "garments", "--port", port)
    assert code == 2
    assert err.startswith(f"error: Can't listen on 127.0.0.1:{port} (")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("_serve_extra")
def test_missing_model_is_an_error(mobilevit, tmp_path):
    code, out, err = mobilevit("serve", tmp_path, "--port", 0)
    assert (code, out) == (2, "")
    assert "config.json" in err


# --- process ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def start_server(_serve_extra, tmp_path):
    """Function that starts a server and returns the process and its URL, None if it ended before it was ready."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **environment):
            (tmp_path / "tmp").mkdir(exist_ok=True)
            process = subprocess.Popen(
                [*SERVE, *map(str, arguments), "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "HF_HUB_OFFLINE": "1"} | environment,
            )
            stack.callback(process.kill)
            return process, process.stdout.readline().strip() or None

        yield start


@pytest.mark.slow
@pytest.mark.parametrize("model", ["garments", "blood-cells"])
def test_answers_are_those_of_predict(start_server, mobilevit, model, tmp_path):
    sample = write_sample(model, tmp_path)
    _, out, _ = mobilevit("predict", sample, "--model", model, "--json", "--device", "cpu")
    expected = json.loads(out)["predictions"]
    _, url = start_server(model, "--device", "cpu")
    client = InferenceClient(base_url=url)
    if model == "garments":
        predictions = [{"label": p.label, "score": p.score} for p in client.image_classification(sample)]
        assert predictions == [p | {"score": pytest.approx(p["score"], abs=1e-5)} for p in expected]
        return
    detections = [
        {"score": p.score, "label": p.label, "box": {key: p.box[key] for key in ("xmin", "ymin", "xmax", "ymax")}}
        for p in client.object_detection(sample)
    ]
    assert len(detections) > 10
    assert detections == [p | {"score": pytest.approx(p["score"], abs=1e-5)} for p in expected]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_server_after_accepted_requests(start_server, number, tmp_path):
    sample = write_sample("garments", tmp_path)
    process, url = start_server("garments")
    outcomes, stop = [], threading.Event()

    def send():
        client = InferenceClient(base_url=url)
        while not stop.is_set():
            try:
                outcomes.append(client.image_classification(sample, top_k=1)[0].label)
            except Exception as error:  # refused: no request was accepted
                if "refused" in str(error) or "disconnected" in str(error) or "reset" in str(error):
                    return
                outcomes.append(repr(error))
                return

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(send) for _ in range(16)]
        while len(outcomes) < 32:
            time.sleep(0.01)
        process.send_signal(number)
        code = process.wait(30)
        stop.set()
        for client in clients:
            client.result()
    assert code == 0
    assert len(set(outcomes)) == 1, set(outcomes)
    assert process.stderr.read().count("\n") == 1  # "running"


@pytest.mark.slow
def test_signal_while_the_model_is_loaded_ends_the_server(start_server, classifier, tmp_path):
    code = (
        "import sys, time, mobilevit_hf.serving.server as server\n"
        "from mobilevit_hf import cli\n"
        "def pipeline(*args, **kwargs):\n    print('loading', flush=True)\n    time.sleep(600)\n"
        "server.pipeline = pipeline\n"
        f"sys.argv = ['mobilevit', 'serve', {str(classifier)!r}, '--port', '0']\n"
        "cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr.read() == ""


@pytest.mark.slow
def test_killed_server_leaves_nothing_behind(start_server, classifier, image, tmp_path):
    image.save(tmp_path / "image.png")
    process, url = start_server(classifier)
    InferenceClient(base_url=url).image_classification(tmp_path / "image.png")
    assert psutil.Process(process.pid).children(recursive=True) == []
    process.kill()
    process.wait()
    assert list((tmp_path / "tmp").iterdir()) == []
    again, other_url = start_server(classifier)
    assert other_url
    again.kill()


@pytest.mark.slow
def test_model_that_cannot_be_loaded_ends_the_server(start_server, classifier_dir):
    Path(classifier_dir, "model.safetensors").write_bytes(b"damaged")
    process, url = start_server(classifier_dir)
    assert url is None
    assert process.wait(60) == 2
    error = process.stderr.read()
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_api_key_of_the_environment_is_required(start_server, classifier, image, tmp_path):
    image.save(tmp_path / "image.png")
    _, url = start_server(classifier, MOBILEVIT_API_KEY="secret")
    assert InferenceClient(base_url=url, token="secret").image_classification(tmp_path / "image.png")
    with pytest.raises(Exception, match="401"):
        InferenceClient(base_url=url, token="other").image_classification(tmp_path / "image.png")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_backends_have_the_answers_of_torch(start_server, mobilevit, backend, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime"}.get(backend, backend))
    sample = write_sample("garments", tmp_path)
    _, out, _ = mobilevit("predict", sample, "--model", "garments", "--json", "--device", "cpu")
    expected = {p["label"]: pytest.approx(p["score"], abs=1e-3) for p in json.loads(out)["predictions"]}
    _, url = start_server("garments", "--backend", backend, "--dtype", "float32")
    predictions = InferenceClient(base_url=url).image_classification(sample)
    assert {prediction.label: prediction.score for prediction in predictions} == expected
