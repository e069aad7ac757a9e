"""Fixtures of the server's tests: applications on the loopback interface."""

import contextlib
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import NamedTuple

import pytest

import mobilevit_hf


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict
    content: bytes

    @property
    def json(self):
        return json.loads(self.content)


class RunningApp:
    """An application in uvicorn, in a thread.

    Attributes:
        url: URL of the server.
        loaded: Set when the model is loaded, or can't be.
        errors: Error of loading the model.
        server: The server of uvicorn.
    """

    def __init__(self, load, limits, **options):
        import uvicorn

        from mobilevit_hf.serving import Limits, build_app

        self.loaded, self.errors = threading.Event(), []
        app = build_app(load, name="model", limits=Limits(**limits), on_loaded=self._report, **options)
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning"))
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        with contextlib.suppress(SystemExit):  # of an application that can't start
            self.server.run([self.listener])

    def _report(self, error):
        self.errors += [error] if error else []
        self.loaded.set()

    def request(self, method, path, body=None, **headers):
        """Return the answer to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, body=None, **headers):
        """Return the answer to an image, or to an object as JSON."""
        if isinstance(body, dict):
            body, headers = json.dumps(body), {"Content_Type": "application/json"} | headers
        return self.request("POST", "/", body, **headers)

    def metric(self, name, **labels):
        """Return the value of a metric."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.request("GET", "/metrics").content.decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return next(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def stop(self):
        """Stop after the accepted requests."""
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def run_app():
    """Function that starts an application and waits until its model is loaded."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package)
    with contextlib.ExitStack() as stack:

        def run(load, *, wait=True, api_key=None, load_in_background=True, **limits):
            app = RunningApp(load, limits, api_key=api_key, load_in_background=load_in_background)
            stack.callback(app.stop)
            if wait:
                assert app.loaded.wait(60)
                assert app.errors == []
            return app

        yield run


@pytest.fixture(scope="module")
def classifier(checkpoints):
    """Pipeline of a tiny classifier."""
    return mobilevit_hf.pipeline("image-classification", checkpoints["image-classification"], device="cpu")


@pytest.fixture(scope="module")
def jpeg(image):
    """Content of a JPEG file."""
    file = BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def threads():
    """Pool of threads for concurrent requests."""
    with ThreadPoolExecutor(40) as pool:
        yield pool


class GatedPipeline:
    """A pipeline whose model waits until `free` is set."""

    def __init__(self, pipeline):
        self.pipeline, self.free, self.started = pipeline, threading.Event(), threading.Semaphore(0)
        self.free.set()  # for the warm-up

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def forward(self, *args, **kwargs):
        self.started.release()
        assert self.free.wait(60)
        return self.pipeline.forward(*args, **kwargs)

    def close(self):
        """Make the model wait, and forget the calls so far."""
        self.free.clear()
        while self.started.acquire(blocking=False):
            pass


@pytest.fixture
def gated(classifier):
    """Pipeline of a tiny classifier whose model can be made to wait."""
    gated = GatedPipeline(classifier)
    yield gated
    gated.free.set()
