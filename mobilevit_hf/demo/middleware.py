"""ASGI middleware of the demo page: which sites may send requests, and how large these may be.

Gradio's and Starlette's own checks cover a part: Gradio answers any Host, and limits a file but not a request;
`TrustedHostMiddleware` matches names only, not ranges such as 127.0.0.0/8, and not the Origin.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..data.images import MAX_DOWNLOAD_BYTES

# Of an upload, of which each file may have `MAX_DOWNLOAD_BYTES`, and of any other request.
MAX_UPLOAD_BYTES, MAX_REQUEST_BYTES = 8 * MAX_DOWNLOAD_BYTES, 256 * 2**10
# In paths of Gradio's routes that the page does not use: they convert videos and fetch URLs on behalf of any visitor.
UNUSED_ROUTES = ("/process_recording", "://")


def is_loopback(host: str) -> bool:
    """Return whether a name or IP address (IPv6 with or without brackets) is that of the loopback interface."""
    address = _parse_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _parse_host(header: str) -> str | None:
    """Return the lowercase name or address in a Host header `name[:port]`, None if the header is invalid."""
    try:
        parts = urlsplit(f"//{header}")
        valid = parts.netloc == header and parts.username is None and (parts.port is None or parts.port > 0)
    except ValueError:
        return None
    return parts.hostname if valid else None


class HostMiddleware:
    """Reject requests whose Host is not the server's, or whose Origin is another site.

    A site in a visitor's browser can send requests to this server, and read the responses if the site's name resolves
    to the server's address (DNS rebinding). The Host header then has the name of the site: only names of this machine
    are accepted. A server for other machines accepts any IP address too, because an address can't be rebound, and the
    server may be behind a router or in a container.

    Args:
        app: The application.
        server_name: Name or address on which the server listens; 0.0.0.0 and :: stand for all addresses.
    """

    def __init__(self, app: ASGIApp, server_name: str) -> None:
        self.app, self.is_local = app, is_loopback(server_name)
        self.names = {server_name.lower()}
        if not self.is_local:
            name = socket.gethostname().lower()
            self.names |= {name, name.partition(".")[0], f"{name.partition('.')[0]}.local", socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a rejected request with status 403 and one line of text."""
        reason = self._find_reason(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008, reason)(scope, receive, send)
        else:
            await PlainTextResponse(reason, status_code=403)(scope, receive, send)

    def _find_reason(self, headers: Headers) -> str | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        name = _parse_host(hosts[0]) if len(hosts) == 1 else None
        if name is None or not self._accepts(name):
            return f"Host: got {name}, expected a name of this machine. Start the demo with this name as --host."
        if len(origins) > 1 or not all(_is_same_site(origin, hosts[0], name) for origin in origins):
            return "Origin: got another site, expected the demo itself. Open the demo in its own tab."
        return None

    def _accepts(self, name: str) -> bool:
        is_address = _parse_address(name) is not None
        return is_loopback(name) or name in self.names or (is_address and not self.is_local)


def _is_same_site(origin: str, host: str, name: str) -> bool:
    """Return whether an Origin has the Host's name and port, or both are loopback names: tunnels change the port."""
    _, _, netloc = origin.partition("://")  # "null" has none
    origin_name = _parse_host(netloc)
    return netloc.lower() == host.lower() or bool(origin_name and is_loopback(origin_name) and is_loopback(name))


class SizeMiddleware:
    """Reject requests with more than `MAX_UPLOAD_BYTES` or `MAX_REQUEST_BYTES`, and those to `UNUSED_ROUTES`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 413 or 404, before the body is read or when the limit is reached."""
        path = scope.get("path", "").rstrip("/")
        is_upload = path.endswith("/upload")
        limit = MAX_UPLOAD_BYTES if is_upload else MAX_REQUEST_BYTES
        message, size, complete = f"More than the maximum allowed size of {limit} bytes.", 0, False

        async def receive_limited() -> Message:
            nonlocal size, complete
            event = await receive()
            size += len(event.get("body", b""))
            if size > limit:
                raise MultiPartException(message) if is_upload else HTTPException(413, message)
            if is_upload and event["type"] == "http.disconnect" and not complete:
                raise MultiPartException("The upload was interrupted.")  # for which Gradio deletes the partial files
            complete = complete or not event.get("more_body", False)
            return event

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif any(route in path for route in UNUSED_ROUTES):
            await PlainTextResponse("Not found.", status_code=404)(scope, receive, send)
        elif int(Headers(scope=scope).get("content-length", 0)) > limit:
            await PlainTextResponse(message, status_code=413)(scope, receive, send)
        else:
            await self.app(scope, receive_limited, send)
