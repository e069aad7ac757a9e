"""`mobilevit demo`: try models in the browser."""

import contextlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from ..environment import pip_command
from ..io import quote_words, user_path
from ..model_sources import DEFAULT_MODEL, builtin_models, resolve_model
from ..serving.listener import listen
from . import console

STATIC_MODEL = "garments"  # without --model


def demo(
    context: typer.Context,
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
    static: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a page that runs one model in the visitor's browser to this folder instead."
        ),
    ] = None,
) -> None:
    """Start a web page to try models on images.

    The page classifies or segments images, or detects objects in them, and compares the installed backends. If it
    accepts connections from other machines, only the given models can be selected. Press Ctrl-C to stop.

    With --static, the page needs no server but one of static files, images never leave the visitor's device, and it
    works offline after the first visit.
    """
    if static is not None:
        given = [
            f"--{name.partition('_')[0]}" for name in ("host", "port", "open_browser") if _is_given(context, name)
        ]
        if given:
            raise ValueError(f"{given[0]}: got it with --static, which starts no server. Leave out one of them.")
        _write_static_page(static, model or [])
        return
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"gradio is not installed. Install it: {pip_command('demo')}")
    listen(host, port).close()  # before models are loaded
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


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _write_static_page(folder: Path, models: list[str]) -> None:
    if len(models) > 1:
        raise ValueError(f"--model: got {len(models)} models, expected one with --static. Write a page for each.")
    from ..demo.static_page import build_static_page

    folder = user_path(folder)
    with console.messages.status("Exporting the model"):
        sizes = build_static_page(models[0] if models else STATIC_MODEL, folder)
    console.log("done", f"{len(sizes)} files, {decimal(sum(sizes.values()))}. Serve them:", color="green")
    console.output.print(f"python -m http.server -d {quote_words(folder)}", soft_wrap=True, highlight=False)
