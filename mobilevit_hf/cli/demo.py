"""`mobilevit demo`: a page to try models on."""

import contextlib
import importlib.util
import socket
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..model_sources import DEFAULT_MODEL, builtin_models
from ..samples import SAMPLES, write_sample
from . import console

# Who calls by these names is at this machine.
LOOPBACK = ("127.0.0.1", "localhost")


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Directory, built-in name or Hub id; again for more. Default: the built-in ones."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
) -> None:
    """Try models on a page in the browser.

    Photos in, labels or boxes out, engines side by side. With --host for others than this machine, nobody can name
    another model on the page. Ctrl-C ends it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("The page needs gradio, not installed here: pip install gradio")
    _check_address(host, port)
    from ..demo import build_app, launch  # gradio takes seconds to import

    builtin = builtin_models()
    models = list(dict.fromkeys([*(model or []), *builtin])) or [DEFAULT_MODEL]
    with tempfile.TemporaryDirectory() as folder:
        samples = [(write_sample(name, Path(folder)), name) for name in builtin if name in SAMPLES]
        with console.messages.status("Preparing the page"):
            app = build_app(models, fixed=host not in LOOPBACK, examples=samples)
            launch(
                app, server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True
            )
        with contextlib.suppress(KeyboardInterrupt):
            console.output.print(app.local_url, soft_wrap=True, highlight=False)
            console.say("running", "Ctrl-C ends it.", color="green")
            app.block_thread()


def _check_address(host: str, port: int) -> None:
    """See that the page can listen there, before models are loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"The page can't be at {host}:{port} ({reason}). Give another --port or --host.") from error
