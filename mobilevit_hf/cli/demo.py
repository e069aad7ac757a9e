"""`mobilevit demo`: try models in the browser."""

import contextlib
import importlib.util
import os
import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..environment import pip_command
from ..model_sources import DEFAULT_MODEL, builtin_models, resolve_model
from . import console


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Model directory, built-in name or Hub id. Can be repeated. Default: the built-in models.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Start a web page to try models on images.

    The page classifies images or detects objects in them, and compares the installed backends. If it accepts
    connections from other machines, only the given models can be selected. Press Ctrl-C to stop.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"gradio is not installed. Install it: {pip_command('demo')}")
    _check_address(host, port)
    for name in model or []:
        resolve_model(name)
    from ..demo import build_app, is_loopback, launch
    from ..samples import SAMPLES, write_sample

    builtin = builtin_models()
    models = list(dict.fromkeys([*(model or []), *builtin])) or [DEFAULT_MODEL]
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mobilevit-demo-", dir=parent) as folder:
        # Gradio's default is a folder that all users of this machine share.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))
        examples = [(write_sample(name, Path(folder)), name) for name in builtin if name in SAMPLES]
        with console.messages.status("Loading models"):
            app = build_app(models, fixed=not is_loopback(host), examples=examples)
            launch(
                app, server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True
            )
        with contextlib.suppress(KeyboardInterrupt):
            console.output.print(app.local_url, soft_wrap=True, highlight=False)
            console.log("running", "Press Ctrl-C to stop.", color="green")
            app.block_thread()


def _check_address(host: str, port: int) -> None:
    """Check that the address is available, before models are loaded."""
    try:
        name = host.strip("[]")
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((name, port), family=family).close()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"Can't listen on {host}:{port} ({reason}). Pass another --port or --host.") from error
