"""Load a model and serve it until the process is asked to end."""

import math
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from transformers import Pipeline

from ..allocator import tune_allocator
from ..model_sources import read_task, resolve_model
from ..pipelines import pipeline
from ..tasks import EXPORTABLE_TASKS
from .app import build_app
from .limits import Limits
from .listener import listen

API_KEY_VARIABLE = "MOBILEVIT_API_KEY"
# After the timeout of the last request, for its answer to be sent.
SHUTDOWN_SECONDS = 5


def load_pipeline(model: str, *, backend: str = "torch", **options: Any) -> Pipeline:
    """Return the pipeline of a model, for its task.

    Args:
        model: Directory, built-in name or Hub id of a classifier, detector or segmentation model.
        backend: See `mobilevit_hf.pipeline`.
        options: Its other arguments; None for its defaults.

    Raises:
        ValueError: If the model does not exist or can't be loaded.
    """
    folder = resolve_model(model, folder=None if backend == "torch" else backend)
    task = read_task(model, folder, EXPORTABLE_TASKS).name
    given = {name: value for name, value in options.items() if value is not None}
    return pipeline(task, str(folder), backend=backend, trust_remote_code=False, **given)


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    backend: str = "torch",
    quantization: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    on_ready: Callable[[str], object] = print,
) -> bool:
    """Serve a model by HTTP in the format of the Inference API, until SIGTERM or SIGINT.

    Requests that were accepted are answered before the function returns. With the environment variable
    MOBILEVIT_API_KEY, requests for predictions need its value as bearer token.

    Args:
        model: See `load_pipeline`.
        host: Name or address to listen on; 0.0.0.0 accepts connections from other machines.
        port: Port; 0 for one that is free.
        backend, quantization, dtype, device, threads: See `mobilevit_hf.pipeline`.
        limits: Limits of requests and batches.
        on_ready: Called with the server's URL when the model is loaded.

    Returns:
        Whether the model was loaded before the signal; otherwise a thread is still loading it.

    Raises:
        ValueError: If the model does not exist or can't be loaded.
        OSError: If the address is not available.
    """
    limits = limits or Limits()
    options = {"quantization": quantization, "dtype": dtype, "device": device, "threads": threads}
    tune_allocator()
    with listen(host, port) as listener:
        name = host.strip("[]")
        url = f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"
        outcomes: list[Exception | None] = []

        def report_loaded(error: Exception | None) -> None:
            outcomes.append(error)
            if error is None:
                on_ready(url)
            else:
                server.should_exit = True

        app = build_app(
            partial(load_pipeline, model, backend=backend, **options),
            name=Path(model).resolve().name if Path(model).is_dir() else model,
            limits=limits,
            api_key=os.environ.get(API_KEY_VARIABLE),
            on_loaded=report_loaded,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.timeout) + SHUTDOWN_SECONDS,
        )
        server = _Server(config)
        server.run([listener])
    for error in filter(None, outcomes):
        raise error
    return bool(outcomes)


class _Server(uvicorn.Server):
    """A server that returns after a signal instead of ending the process by the signal."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle SIGINT and SIGTERM; a second SIGINT ends the server at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
