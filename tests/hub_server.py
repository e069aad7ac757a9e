"""In-memory Hugging Face Hub on the loopback interface, for the real `huggingface_hub` client without the network.

Every commit stays available by its sha. `huggingface_hub` reads `HF_ENDPOINT` on import: run a subprocess with
`environment()`; in this process use `patch_client()` or `HfApi(endpoint=hub.url, token=hub.token)`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".onnx", ".pte", ".parquet", ".arrow", ".png", ".jpg", ".jpeg"}
# Tests check that this token is never shown.
TOKEN = "hf_aSecretTokenThatIsNeverShown123456"

# README of a new Space, as the Hub writes it.
SPACE_README = """\
---
title: Space
emoji: 🐢
sdk: {sdk}
sdk_version: 6.0.0
app_file: app.py
pinned: false
---

Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference
"""
LFS_THRESHOLD = 10 * 1024 * 1024  # bytes; a larger file is stored with LFS whatever its suffix


@dataclass(frozen=True)
class Request:
    """A received request. `repr` omits the body, and the headers because they contain the token."""

    method: str
    path: str  # still percent-encoded, without the query
    query: str
    headers: Message = field(repr=False)
    body: bytes = field(repr=False)

    def flag(self, name: str) -> bool:
        """Return whether the query sets `name`."""
        return parse_qs(self.query).get(name, [""])[0].lower() in {"1", "true"}


@dataclass(frozen=True)
class Response:
    """A complete response."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class HubError(Exception):
    """An error response. The client distinguishes 404s by `code`."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.response = Response.json({"error": message}, status, headers)


@dataclass
class Fault:
    """A fault for the next matching requests: an error response, a closed connection, or no response at all."""

    method: str
    path: re.Pattern[str]
    times: int
    response: Response | None = None
    cut: int | None = None  # bytes of the request or response body after which the connection is closed
    cut_answer: bool = False


class File:
    """Content of a file with its git blob id and, for LFS, the SHA-256 of its pointer."""

    def __init__(self, data: bytes, lfs: bool) -> None:
        self.data = data
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        blob = pointer if lfs else data
        self.oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
        self.etag = sha256 if lfs else self.oid  # the client compares content by it
        self.lfs = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": len(pointer)} if lfs else None


@dataclass(frozen=True)
class Commit:
    """All files of a repository at a commit."""

    sha: str
    date: str
    files: dict[str, File]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return files and their folders by path, as the API lists them."""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in self.files.items():
            for folder in map(str, PurePosixPath(path).parents[:-1]):
                entries[folder] = {"type": "directory", "path": folder, "oid": _sha1(self.sha, folder), "size": 0}
            entries[path] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.data), "lfs": file.lfs}
        return dict(sorted(entries.items()))


class Repository:
    """A model, dataset or Space: commits by sha, and the head of each branch."""

    def __init__(self, kind: str, repo_id: str, private: bool) -> None:
        self.id = repo_id
        self.private = private
        self.gated = False
        self.path = repo_id if kind == "model" else f"{kind}s/{repo_id}"
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.add_commit("main", {})

    def commit(self, revision: str) -> Commit:
        """Return the commit of a branch or sha."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "Invalid rev id", "RevisionNotFound")
        return self.commits[sha]

    def add_commit(self, branch: str, files: dict[str, File]) -> Commit:
        """Add a commit of `files` as the head of a branch."""
        # The number of commits makes the sha of a commit without changes unique, as on the Hub.
        sha = _sha1(self.path, branch, len(self.commits), *((path, files[path].oid) for path in sorted(files)))
        self.commits[sha] = Commit(sha, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), files)
        self.branches[branch] = sha
        return self.commits[sha]


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []
API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+(?:/[^/]+)?)"
WEB = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+(?:/[^/]+)?)"
REVISION = r"/(?P<revision>[^/]+)"  # a slash inside is percent-encoded
LFS = WEB + r"\.git/info/lfs/objects"


def route(method: str, pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a method of `HubServer` for requests whose path matches; it returns a `Response` or a value for JSON.

    Its arguments are the request and the named groups of `pattern`, with the `repository` of `kind` and `repo_id`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class HubServer:
    """A Hub on the loopback interface, as a context manager that serves on a free port.

    Attributes:
        url: Endpoint, `http://127.0.0.1:PORT`.
        requests: Requests received so far, in order.
        user, token: User and access token. Only private and gated repositories require the token.
        role: Role of the token in the response of `whoami`.
    """

    def __init__(self, user: str = "user", token: str = "hf_loopback") -> None:
        self.user = user
        self.token = token
        self.role = "write"
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._lfs_objects: dict[str, bytes] = {}  # by SHA-256, shared by all repositories
        self._lock = threading.Lock()

    def __enter__(self) -> HubServer:
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()

    def environment(self, home: str | os.PathLike[str]) -> dict[str, str]:
        """Return the environment of a subprocess that uses this Hub, with its caches in `home`.

        Variables of this process that configure another endpoint are left out.
        """
        excluded = re.compile(r"(HF|HUGGING_?FACE|TRANSFORMERS)_.*|.*_PROXY", re.IGNORECASE)
        switches = ("XET", "TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS")  # without xet, files travel over plain HTTP
        environment = {name: value for name, value in os.environ.items() if not excluded.fullmatch(name)}
        environment |= {"HF_ENDPOINT": self.url, "HF_HOME": os.fspath(home), "HF_TOKEN": self.token}
        return environment | {f"HF_HUB_DISABLE_{switch}": "1" for switch in switches}

    def patch_client(self, patch: Any) -> None:
        """Make `huggingface_hub` in this process use this server until pytest's `monkeypatch` is undone."""
        from huggingface_hub import constants  # reads the environment when it is imported

        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", self.token)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Return the files of a repository at a revision, by path."""
        with self._lock:
            commit = self._repository(repo_type, repo_id).commit(revision)
            return {path: file.data for path, file in sorted(commit.files.items())}

    def fail(
        self,
        method: str,
        path: str,
        status: int,
        times: int = 1,
        code: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer the next `times` requests whose path matches with an error."""
        response = HubError(status, f"Injected error {status}", code, headers).response
        self._faults.append(Fault(method, re.compile(path), times, response))

    def cut(self, method: str, path: str, after: int, times: int = 1, *, answer: bool = False) -> None:
        """Close the connection after `after` bytes of the body of the next requests, or of their responses."""
        self._faults.append(Fault(method, re.compile(path), times, cut=after, cut_answer=answer))

    def stall(self, method: str, path: str, times: int = 1) -> None:
        """Never answer the next requests, until the client closes the connection."""
        self._faults.append(Fault(method, re.compile(path), times))

    def clear_faults(self) -> None:
        """Answer all further requests without faults."""
        self._faults.clear()

    def commits(self, repo_id: str, repo_type: str = "model") -> int:
        """Return the number of commits of a repository; the first is empty."""
        return len(self.repository(repo_id, repo_type).commits)

    def gate(self, repo_id: str, repo_type: str = "model") -> None:
        """Require the token for the files of a repository."""
        self.repository(repo_id, repo_type).gated = True

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        """Return a repository."""
        with self._lock:
            return self._repository(repo_type, repo_id)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the fault for a request, None without one."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, request: Request, fault: Fault | None = None) -> Response | None:
        """Record a request and return its response, None if a fault prevents one."""
        with self._lock:
            self.requests.append(request)
            if fault and not fault.cut_answer:
                return fault.response
            try:
                return self._dispatch(request)
            except HubError as error:
                return error.response

    def _dispatch(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, function in ROUTES:
            if route_method == method and (match := pattern.fullmatch(request.path)):
                values: dict[str, Any] = {name: unquote(text) for name, text in match.groupdict().items() if text}
                if "repo_id" in values:
                    values["repository"] = self._repository(values.pop("kind", "model"), values.pop("repo_id"))
                    self._admit(request, values["repository"])
                answer = function(self, request, **values)
                return answer if isinstance(answer, Response) else Response.json(answer)
        raise HubError(404, "This server has no such route")

    def _repository(self, kind: str, repo_id: str) -> Repository:
        """Return a repository.

        Raises:
            HubError: If it does not exist.
        """
        if (kind, repo_id) not in self._repositories:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self._repositories[kind, repo_id]

    def _admit(self, request: Request, repository: Repository) -> None:
        """Hide private repositories and the files of gated ones without the token."""
        token = request.headers["Authorization"]
        if token == f"Bearer {self.token}" or request.method == "PUT":  # an upload URL is presigned
            return
        if repository.private:
            raise HubError(404 if token else 401, "Repository not found", "RepoNotFound")
        if repository.gated and "/resolve/" in request.path:
            raise HubError(403 if token else 401, f"Access to {repository.id} is restricted", "GatedRepo")

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Any:
        access_token = {"displayName": "test", "role": self.role}
        auth = {"type": "access_token", "accessToken": access_token}
        return {"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": auth}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Any:
        return {"errors": [], "warnings": []}

    @route("POST", "/api/repos/create")
    def create_repo(self, request: Request) -> Any:
        options = json.loads(request.body)
        kind, repo_id = options.get("type") or "model", f"{options.get('organization') or self.user}/{options['name']}"
        exists = (kind, repo_id) in self._repositories
        if not exists:
            repository = Repository(kind, repo_id, options.get("visibility") == "private")
            self._repositories[kind, repo_id] = repository
            if kind == "space":
                readme = SPACE_README.format(sdk=options["sdk"])
                repository.add_commit("main", {"README.md": File(readme.encode(), lfs=False)})
        answer = {"name": repo_id, "url": f"{self.url}/{self._repositories[kind, repo_id].path}"}
        return Response.json(answer | {"error": f"You already created this {kind} repo"}, 409) if exists else answer

    @route("GET", API + "/refs")
    def refs(self, request: Request, repository: Repository) -> Any:
        heads = repository.branches.items()
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in heads]
        return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}

    @route("POST", API + "/branch/(?P<branch>[^/]+)")
    def create_branch(self, request: Request, repository: Repository, branch: str) -> Any:
        if branch in repository.branches:
            raise HubError(409, "Reference already exists")
        repository.branches[branch] = repository.commit(json.loads(request.body).get("startingPoint", "main")).sha
        return {}

    @route("POST", API + "/preupload" + REVISION)
    def preupload(self, request: Request, repository: Repository, revision: str) -> Any:
        present, files = repository.commit(revision).files, []
        for path, size in ((file["path"], file["size"]) for file in json.loads(request.body)["files"]):
            lfs = size > LFS_THRESHOLD or PurePosixPath(path).suffix in LFS_SUFFIXES
            oid = present[path].etag if path in present else None  # the client skips unchanged files by it
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    @route("POST", LFS + "/batch")
    def lfs_batch(self, request: Request, repository: Repository) -> Any:
        objects = []
        for entry in json.loads(request.body)["objects"]:
            href = f"{self.url}/{repository.path}.git/info/lfs/objects/{entry['oid']}"
            actions = {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
            # An object without actions exists already and is not uploaded.
            objects.append(entry | ({} if entry["oid"] in self._lfs_objects else actions))
        return {"transfer": "basic", "objects": objects}

    @route("PUT", LFS + "/(?P<sha256>[0-9a-f]{64})")
    def lfs_upload(self, request: Request, repository: Repository, sha256: str) -> Any:
        if hashlib.sha256(request.body).hexdigest() != sha256:
            raise HubError(400, "The content does not have the announced SHA-256")
        self._lfs_objects[sha256] = request.body
        return Response(200)

    @route("POST", LFS + "/(?P<sha256>[0-9a-f]{64})/verify")
    def lfs_verify(self, request: Request, repository: Repository, sha256: str) -> Any:
        if len(self._lfs_objects.get(sha256, b"")) != json.loads(request.body)["size"]:
            raise HubError(404, "The object is missing or has another size")
        return {}

    @route("POST", API + "/commit" + REVISION)
    def commit(self, request: Request, repository: Repository, revision: str) -> Any:
        head = repository.commit(revision)
        if request.flag("create_pr") or revision not in repository.branches:
            raise HubError(400, "This server commits to branches only")
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        if header["value"].get("parentCommit", head.sha) != head.sha:
            raise HubError(412, "The branch has moved on since the parent commit")
        files = dict(head.files)
        for operation in operations:
            self._apply(operation["key"], operation["value"], files)
        sha = repository.add_commit(revision, files).sha
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repository.path}/commit/{sha}"}

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, File]) -> None:
        """Apply an operation of a commit to a listing."""
        path = value["path"]
        if key == "file":
            files[path] = File(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self._lfs_objects:
                raise HubError(400, "An LFS pointer pointed to a file that does not exist")
            files[path] = File(self._lfs_objects[value["oid"]], lfs=True)
        else:
            folder = f"{path.rstrip('/')}/" if key == "deletedFolder" else None
            deleted = [name for name in files if (name.startswith(folder) if folder else name == path)]
            if not deleted:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in deleted:
                del files[name]

    @route("GET", API + "/tree" + REVISION + "(?:/(?P<path>.+))?")
    def tree(self, request: Request, repository: Repository, revision: str, path: str = "") -> Any:
        entries = repository.commit(revision).entries()
        if path and entries.get(path, {}).get("type") != "directory":
            raise HubError(404, "Entry not found", "EntryNotFound")
        prefix, recursive = f"{path}/" if path else "", request.flag("recursive")
        below = [name for name in entries if name.startswith(prefix)]
        return [entries[name] for name in below if recursive or "/" not in name.removeprefix(prefix)]

    @route("POST", API + "/paths-info" + REVISION)
    def paths_info(self, request: Request, repository: Repository, revision: str) -> Any:
        entries = repository.commit(revision).entries()
        paths = parse_qs(request.body.decode()).get("paths", [])
        return [entries[path] for path in paths if path in entries]

    @route("GET", API + "(?:/revision" + REVISION + ")?")
    def repo_info(self, request: Request, repository: Repository, revision: str = "main") -> Any:
        commit = repository.commit(revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if request.flag("blobs"):
            for sibling, file in ((sibling, commit.files[sibling["rfilename"]]) for sibling in siblings):
                sibling |= {"size": len(file.data), "blobId": file.oid, "lfs": file.lfs}
        author = repository.id.split("/")[0]
        info = {"id": repository.id, "author": author, "sha": commit.sha, "lastModified": commit.date}
        state = {
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
        }
        return info | state | {"tags": [], "siblings": siblings}

    @route("GET", WEB + "/resolve" + REVISION + "/(?P<path>.+)")
    def resolve(self, request: Request, repository: Repository, revision: str, path: str) -> Any:
        commit = repository.commit(revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if (file := commit.files.get(path)) is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        size, byte_range = len(file.data), re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["Range"] or "")
        if not byte_range:
            return Response(200, file.data, headers)
        start, stop = int(byte_range[1]), min(int(byte_range[2] or size) + 1, size)
        if start >= stop:
            raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
        return Response(206, file.data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})


class _Server(ThreadingHTTPServer):
    """A server with one thread per connection, which closes open connections at the end."""

    request_queue_size = 64  # a client opens several connections at once

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Close connections that clients keep alive, on which the server would still answer."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: socket.socket, client_address: Any) -> None:
        """Print the error, unless the client closed the connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Handler that passes requests to the Hub."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, and the second must not wait
    server: _Server

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        size, fault = int(self.headers["Content-Length"] or 0), self.server.hub.take_fault(self.command, path)
        body = self.rfile.read(size if fault is None or fault.cut is None or fault.cut_answer else fault.cut)
        response = self.server.hub.answer(Request(self.command, path, query, self.headers, body), fault)
        if response:
            self._send(response, fault.cut if fault else None)
        elif fault and fault.cut is None:
            self.rfile.read(1)  # returns when the client closes the connection
        if fault and fault.response is None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, response: Response, cut: int | None = None) -> None:
        headers = {"Access-Control-Allow-Origin": "*", "Content-Length": str(len(response.body)), **response.headers}
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:cut])

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: `HubServer.requests` is the log."""


def _sha1(*parts: object) -> str:
    """Return a hash of `parts`."""
    return hashlib.sha1(repr(parts).encode()).hexdigest()
