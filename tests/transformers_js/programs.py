"""Publish models to a loopback Hub, and run JavaScript programs with them in Node and in Chromium."""

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
from hub_server import HubServer

from mobilevit_hf.backends.export import export_model
from mobilevit_hf.hub import CardOptions, publish
from transformers_js.install import NotInstalledError, install

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "browser.md"
WEBGPU = ("--enable-unsafe-webgpu",)  # on Linux, where it may be computed by the CPU


def copy_with_exports(model, folder, images):
    """Copy a model folder, export its files for transformers.js in all precisions, and return the copy.

    The images to calibrate with are copied next to it: the site also has the files of transformers.js.
    """
    shutil.copytree(model, folder)
    calibration = folder.with_name("calibration")
    calibration.mkdir()
    for image in images:
        shutil.copy(image, calibration)
    options = {"interface": "transformers.js", "log": lambda line: None, "note": lambda line: None}
    export_model(folder, folder, "onnx", dtype="float32", **options)
    export_model(folder, folder, "onnx", dtype="float16", **options)
    export_model(folder, folder, "onnx", quantization="int8", calibration=str(calibration), max_drop=30, **options)
    return folder


@contextmanager
def publish_to_hub(folder, repo):
    """Yield a loopback Hub with a published model folder."""
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        server.patch_client(patch)
        publish(folder, repo, card_options=CardOptions(license="mit"), log=lambda line: None)
        yield server


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


def run_documented(pattern, exported, site):
    """Return the standard output of the program in the documentation that a pattern is in, for an exported folder."""
    (snippet,) = re.findall(rf"```js\n([^`]*{pattern}[^`]*)```", DOCUMENTATION.read_text())
    (site / "exported").unlink(missing_ok=True)
    (site / "exported").symlink_to(exported)
    (site / "documented.mjs").write_text(snippet)
    return run_program("documented.mjs", site=site)


def run_card_snippet(hub, repo, site):
    """Return the program in a model card, and its standard output."""
    snippet = hub.files(repo)["README.md"].decode().partition("```js\n")[2].partition("```")[0]
    settings = f'import {{ useHub }} from "./hub.mjs";\nuseHub({json.dumps(hub.url)});\n'
    (site / "card.mjs").write_text(settings + snippet)
    return snippet, run_program("card.mjs", site=site)


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
