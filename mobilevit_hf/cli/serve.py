"""`mobilevit serve`: answer requests for predictions by HTTP."""

import os
from functools import partial
from typing import Annotated

import typer

from ..backends.formats import check_packages
from ..model_sources import resolve_model
from ..serving.limits import Limits
from ..serving.listener import listen
from . import console
from .options import Backend, Device, DeviceOption, Dtype, ModelArgument, Quantization, check_device

PACKAGES = ("starlette", "uvicorn", "prometheus_client")
DEFAULTS = Limits()

runtime_option = partial(typer.Option, rich_help_panel="Runtime")
limit_option = partial(typer.Option, rich_help_panel="Limits")


def serve(
    model: ModelArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    device: DeviceOption = Device.auto,
    backend: Annotated[Backend, runtime_option(help="Runtime; all but torch run on the CPU.")] = Backend.torch,
    dtype: Annotated[Dtype, runtime_option(help="Precision, as for predict.")] = Dtype.auto,
    quantization: Annotated[Quantization | None, runtime_option(help="Use the quantized file of the model.")] = None,
    threads: Annotated[
        int | None, runtime_option(min=1, help="Number of CPU threads. Default: torch's number of threads.")
    ] = None,
    max_batch_size: Annotated[
        int, limit_option(min=1, help="Images per call of the model.")
    ] = DEFAULTS.max_batch_size,
    max_wait_ms: Annotated[
        float,
        limit_option(
            min=0,
            help="Milliseconds that an image waits for others that are being decoded; a request without others never "
            "waits.",
        ),
    ] = DEFAULTS.max_wait_ms,
    max_queue: Annotated[
        int, limit_option(min=1, help="Requests that are accepted at a time; others are refused with status 503.")
    ] = DEFAULTS.max_queue,
    max_image_bytes: Annotated[
        int, limit_option(min=1, help="Size of an image file; larger ones are refused with status 413.")
    ] = DEFAULTS.max_image_bytes,
    timeout: Annotated[float, limit_option(help="Seconds per request.")] = DEFAULTS.timeout,
) -> None:
    """Serve a model by HTTP, in the format of the Inference API.

    Requests to / are those of huggingface_hub.InferenceClient(URL). GET /health returns status 200 when the model is
    loaded, GET /metrics counts requests for Prometheus. With MOBILEVIT_API_KEY set, requests need it as bearer token.
    Ctrl-C or SIGTERM stops the server after the accepted requests are answered.
    """
    limits = Limits(
        max_batch_size=max_batch_size,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        max_image_bytes=max_image_bytes,
        timeout=timeout,
    )
    check_packages("serve", PACKAGES, "serve")
    check_device(device, backend)
    listen(host, port).close()
    is_torch = backend is Backend.torch
    resolve_model(model, folder=None if is_torch else str(backend))
    from ..serving import serve  # takes seconds

    is_loaded = serve(
        model,
        host=host,
        port=port,
        backend=str(backend),
        quantization=quantization and str(quantization),
        dtype=None if is_torch and dtype is Dtype.auto else str(dtype),
        device=console.pick_device(device) if is_torch else None,
        threads=threads,
        limits=limits,
        on_ready=_report_ready,
    )
    if not is_loaded:
        os._exit(0)  # at the end of the interpreter, a thread that is loading the model would abort the process


def _report_ready(url: str) -> None:
    console.output.print(url, soft_wrap=True, highlight=False)
    console.log("running", "Press Ctrl-C to stop.", color="green")
