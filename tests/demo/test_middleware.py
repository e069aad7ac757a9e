"""Requests of other sites and large requests."""

import socket

import pytest

pytest.importorskip("gradio")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from mobilevit_hf.demo import is_loopback
from mobilevit_hf.demo.middleware import MAX_REQUEST_BYTES, HostMiddleware, SizeMiddleware


async def echo(request):
    return PlainTextResponse(str(len(await request.body())))


async def accept(socket):
    await socket.accept()
    await socket.close()


def make_client(*middleware):
    routes = [Route("/{path:path}", echo, methods=["GET", "POST"]), WebSocketRoute("/socket", accept)]
    return TestClient(Starlette(routes=routes, middleware=list(middleware)))


def status(client, **headers):
    return client.get("/", headers=headers).status_code


@pytest.fixture
def local():
    return make_client(Middleware(HostMiddleware, server_name="127.0.0.1"))


@pytest.fixture
def public():
    return make_client(Middleware(HostMiddleware, server_name="0.0.0.0"))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:7860", "127.9.8.7", "[::1]", "[::1]:7860"])
def test_loopback_hosts_are_accepted(local, public, host):
    assert status(local, host=host) == 200
    assert status(public, host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil"),
        *("evil@127.0.0.1", "127.0.0.1, evil.example", "127.0.0.1:port", "[::1", "localhost/evil", ""),
    ],
)
def test_other_hosts_are_rejected(local, public, host):
    for client in (local, public):
        response = client.get("/", headers={"host": host})
        assert response.status_code == 403
        assert response.text.count("\n") == 0


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "[2001:db8::1]"])
def test_addresses_are_accepted_by_a_server_for_other_machines(local, public, address):
    assert status(public, host=f"{address}:7860") == 200
    assert status(local, host=f"{address}:7860") == 403


def test_names_of_the_machine_are_accepted_by_a_server_for_other_machines(local, public):
    assert status(public, host=f"{socket.gethostname()}:7860") == 200
    named = make_client(Middleware(HostMiddleware, server_name="Demo.Example"))
    assert status(named, host="demo.example:7860") == 200
    assert status(public, host="demo.example:7860") == 403


@pytest.mark.parametrize("name", ["host", "origin"])
def test_repeated_header_is_rejected(local, name):
    value = "http://localhost" if name == "origin" else "localhost"
    assert local.get("/", headers=[("host", "localhost"), (name, value), (name, value)]).status_code == 403


@pytest.mark.parametrize(
    ("origin", "host", "accepted"),
    [
        ("http://localhost:7860", "localhost:7860", True),
        ("http://localhost:3000", "127.0.0.1:7860", True),
        ("https://[::1]", "localhost:7860", True),
        ("https://192.168.1.5:7860", "192.168.1.5:7860", True),
        ("http://192.168.1.6:7860", "192.168.1.5:7860", False),
        ("http://192.168.1.5:7860", "localhost:7860", False),
        ("http://localhost:7860", "192.168.1.5:7860", False),
        ("http://evil.example", "localhost:7860", False),
        ("http://localhost.evil.example", "localhost", False),
        ("null", "localhost", False),
        ("", "localhost", False),
        ("file://", "localhost", False),
    ],
)
def test_origin_is_the_demo(public, origin, host, accepted):
    assert status(public, origin=origin, host=host) == (200 if accepted else 403)


def test_websockets_of_other_sites_are_rejected(local):
    with local.websocket_connect("/socket", headers={"host": "localhost"}):
        pass
    for headers in ({"host": "evil.example"}, {"host": "localhost", "origin": "http://evil.example"}):
        with pytest.raises(WebSocketDisconnect), local.websocket_connect("/socket", headers=headers):
            pass


@pytest.mark.parametrize(
    ("host", "expected"), [("localhost", True), ("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("x", False)]
)
def test_is_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("stream", [False, True])
def test_large_request_is_rejected(stream):
    client = make_client(Middleware(SizeMiddleware))
    for size in (MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1):
        body = iter([bytes(size - 1), b"1"]) if stream else bytes(size)
        response = client.post("/queue/join", content=body)
        assert response.status_code == (200 if size == MAX_REQUEST_BYTES else 413)
        assert client.post("/upload", content=bytes(size)).status_code == 200


@pytest.mark.parametrize("path", ["/process_recording", "/file=http://127.0.0.1/", "/proxy=https://a.hf.space/"])
def test_unused_routes_are_rejected(path):
    client = make_client(Middleware(SizeMiddleware))
    assert client.get(path).status_code == 404
