"""Examples of deployments: the container image's files and health check, and Ray Serve."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from conftest import PACKAGE_PARENT
from huggingface_hub import InferenceClient
from ray_cluster import environment, free_ports

from mobilevit_hf.samples import write_sample

EXAMPLES = PACKAGE_PARENT / "examples/serving"


@pytest.fixture(scope="module")
def dockerfile():
    """Arguments of the instructions of the Dockerfile, by instruction."""
    lines = (EXAMPLES / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, arguments = line.partition(" ")
            instructions.setdefault(name, []).append(arguments)
    return instructions


def test_copied_files_are_those_that_the_build_needs(dockerfile):
    copied = [path for line in dockerfile["COPY"] for path in line.split()[:-1]]
    assert all((PACKAGE_PARENT / path).exists() for path in copied)
    project = (PACKAGE_PARENT / "pyproject.toml").read_text()
    (readme,) = re.findall(r'fragments = \[\{ path = "(.+?)"', project)
    (license_file,) = re.findall(r'^license-files = \["(.+?)"', project, re.MULTILINE)
    assert {readme, license_file} <= set(copied)
    assert "mobilevit_hf" in copied


def test_container_runs_as_a_user_without_privileges(dockerfile):
    (user,) = dockerfile["USER"]
    assert any(f"useradd --create-home --uid 1000 {user}" in line for line in dockerfile["RUN"])


def test_command_of_the_container_is_valid(dockerfile, mobilevit):
    program, *arguments = json.loads(dockerfile["ENTRYPOINT"][0]) + json.loads(dockerfile["CMD"][0])
    assert program == "mobilevit"
    code, _, err = mobilevit(*arguments, "--timeout", "0")  # parsed up to this option
    assert (code, err.startswith("error: --timeout")) == (2, True)


def test_health_check_of_the_container(dockerfile, run_app, classifier):
    app = run_app(lambda: classifier)
    options, _, command = dockerfile["HEALTHCHECK"][0].partition("CMD ")
    assert shlex.split(options)
    program, *arguments = json.loads(command)
    assert (program, arguments[0]) == ("python", "-c")
    code = arguments[1].replace(":8000/", f":{app.port}/")
    assert code != arguments[1]
    exec(code)
    with pytest.raises(OSError):
        exec(code.replace("/health", "/unhealthy"))


@pytest.mark.slow
def test_ray_serve_answers_requests(tmp_path):
    pytest.importorskip("ray.serve")
    sample = write_sample("garments", tmp_path)
    (port,) = free_ports(1)
    command = [sys.executable, str(EXAMPLES / "ray_serve.py"), "garments", "--replicas", "1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment(tmp_path) | {"TMPDIR": "/tmp"}, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while not _is_healthy(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(1)
        client = InferenceClient(base_url=f"http://127.0.0.1:{port}")
        predictions = client.image_classification(sample, top_k=2)
        assert len(predictions) == 2
        assert predictions[0].label == client.image_classification(Path(sample).read_bytes())[0].label
        process.send_signal(signal.SIGINT)
        process.wait(120)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()


def _is_healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except OSError:
        return False


def test_help_of_the_example_is_printed_before_the_slow_imports(tmp_path):
    for module in ("ray", "torch"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit(3)")
    command = [sys.executable, str(EXAMPLES / "ray_serve.py"), "--help"]
    process = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "MODEL" in process.stdout
