"""Run the JavaScript programs of this folder in Node and in Chromium."""

import json
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import open_chromium
from conftest import QuietHandler

from transformers_js.install import NotInstalledError, install

WEBGPU = ("--enable-unsafe-webgpu",)  # on Linux, where it may be computed by the CPU


@contextmanager
def serve_site(site):
    """Copy the programs and transformers.js into a folder, and yield the URL at which it is served."""
    for path in Path(__file__).parent.glob("*.*"):
        shutil.copy(path, site)
    try:
        (site / "node_modules").symlink_to(install() / "node_modules")
    except NotInstalledError as error:
        pytest.skip(str(error))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run_node(function, arguments, site, site_url):
    """Return the results of an exported function in Node."""
    return json.loads(run_program("node.mjs", function, site=site, stdin=json.dumps(arguments)))


def run_program(*command, site, stdin=""):
    """Return the standard output of a program in Node."""
    node = shutil.which("node")
    if node is None or not re.match(r"v[2-9]\d\.", subprocess.check_output([node, "--version"], text=True)):
        pytest.skip("Node 20 or later is not installed")
    process = subprocess.run([node, *command], input=stdin, cwd=site, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


def run_chromium(function, arguments, site, site_url):
    """Return the results of an exported function in a page of Chromium."""
    with open_page(site_url, arguments["hub"]) as page:
        return page.evaluate(f"args => {function}(args)", arguments)


def run_webgpu(function, arguments, site, site_url):
    """Return the results of an exported function in a page of Chromium, on WebGPU."""
    with open_page(site_url, arguments["hub"], *WEBGPU) as page:
        if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
            pytest.skip("Chromium has no WebGPU adapter")
        options = arguments["options"] | {"device": "webgpu"}
        return page.evaluate(f"args => {function}(args)", arguments | {"options": options})


@contextmanager
def open_page(site_url, hub_url, *flags):
    """Yield the page with the programs, and check that it requests nothing from other hosts."""
    with open_chromium(*flags) as browser:
        page = browser.new_page()
        urls = []
        page.on("request", lambda request: urls.append(request.url))
        page.goto(f"{site_url}/index.html")
        yield page
    assert all(url.startswith((site_url, hub_url, "blob:")) for url in urls), urls
