"""The `mobilevit demo` command."""

import signal
import socket
import subprocess
import sys
from unittest.mock import Mock

import pytest

from mobilevit_hf.environment import pip_command


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_missing_gradio_is_a_one_line_error(mobilevit, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, out, err = mobilevit("demo")
    assert (code, out) == (2, "")
    assert err == f"error: gradio is not installed. Install it: {pip_command('demo')}\n"


def test_port_in_use_is_a_one_line_error(mobilevit):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, _, err = mobilevit("demo", "--port", port)
    assert code == 2
    assert err.startswith(f"error: Can't listen on 127.0.0.1:{port} (")
    assert err.count("\n") == 1


def test_missing_model_is_an_error(mobilevit, tmp_path):
    pytest.importorskip("gradio")
    code, _, err = mobilevit("demo", "--no-open", "--port", free_port(), "--model", tmp_path)
    assert code == 2
    assert "config.json" in err


@pytest.mark.parametrize(("host", "fixed"), [("127.0.0.1", False), ("127.0.0.2", False), ("0.0.0.0", True)])
def test_models_are_fixed_for_other_machines(mobilevit, monkeypatch, detector_dir, host, fixed):
    pytest.importorskip("gradio")
    from mobilevit_hf import demo

    calls = {}

    def build_app(models, **options):
        calls.update(options, models=models)
        raise ValueError("stop")

    monkeypatch.setattr(demo, "build_app", build_app)
    # Tests may listen on the loopback interface only.
    monkeypatch.setattr("mobilevit_hf.cli.demo.listen", Mock())
    model = str(detector_dir)
    mobilevit("demo", "--host", host, "--port", free_port(), "--model", model, "--model", model)
    assert calls["fixed"] is fixed
    assert calls["models"][0] == model
    assert calls["models"].count(model) == 1


def test_static_page_is_written(mobilevit, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setitem(sys.modules, "gradio", None)  # not needed

    def build(model, folder):
        calls.append((model, folder))
        return {"index.html": 1000, "model.onnx": 2000}

    monkeypatch.setattr("mobilevit_hf.demo.static_page.build_static_page", build)
    folder = tmp_path / "my page"
    code, out, err = mobilevit("demo", "--static", folder)
    assert (code, out) == (0, f"python -m http.server -d '{folder}'\n")
    assert "2 files, 3.0 kB" in err
    mobilevit("demo", "--static", folder, "--model", "blood-cells")
    assert calls == [("garments", folder), ("blood-cells", folder)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "80"), "--port: got it with --static"),
        (("--no-open",), "--open: got it with --static"),
        (("--model", "garments", "--model", "blood-cells"), "--model: got 2 models, expected one with --static."),
    ],
)
def test_static_page_with_options_of_the_server_is_an_error(mobilevit, tmp_path, arguments, message):
    code, out, err = mobilevit("demo", "--static", tmp_path / "page", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {message}")
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_interrupt_stops_the_server(checkpoints):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "mobilevit_hf", "demo", "--no-open", "--port", str(free_port())]
    process = subprocess.Popen(
        [*command, "--model", checkpoints["image-classification"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == f"http://127.0.0.1:{command[-1]}/\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err
