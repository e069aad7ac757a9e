"""The ASGI application: routes, limits and errors."""

import asyncio
import contextlib
import hmac
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import Pipeline

from ..data.images import UnreadableImageError
from ..modeling.finite import NonFiniteOutputError
from ..redaction import redact_message
from ..threads import num_workers, worker_pool
from .batcher import Batcher
from .limits import Limits
from .metrics import Metrics
from .predictor import Predictor, Tensors, batch_key
from .requests import PARAMETERS, RequestError, is_json, max_body_bytes, parse_request, too_large

RETRY_SECONDS = 1
CLIENT_CLOSED_REQUEST = 499  # status of nginx, for the metrics: it is not sent
# Of the Inference API and of Inference Endpoints.
PREDICTION_PATHS = ("/", "/models/{model:path}", "/pipeline/{task:path}")

logger = logging.getLogger(__name__)


def build_app(
    load: Callable[[], Pipeline],
    *,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    load_in_background: bool = True,
    on_loaded: Callable[[Exception | None], object] = lambda error: None,
) -> Starlette:
    """Return an ASGI application that answers requests in the format of the Inference API.

    Args:
        load: Function that returns a pipeline of `mobilevit_hf.pipeline`. It is called in a thread when the
            application starts.
        name: Name of the model in answers.
        limits: Limits of requests and batches.
        api_key: Bearer token that requests for predictions need.
        load_in_background: Refuse requests with status 503 until the model is loaded. Otherwise the application starts
            after that, and not at all if the model can't be loaded.
        on_loaded: Called in the event loop when the model is loaded, or with the error.
    """
    service = Service(load, name, limits or Limits(), api_key, load_in_background, on_loaded)
    routes = [Route(path, service.predict, methods=["POST"]) for path in PREDICTION_PATHS]
    routes += [
        Route("/health", service.report_health),
        Route("/live", _report_live),
        Route("/info", service.report_info),
        Route("/metrics", service.report_metrics),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _format_http_error}, lifespan=service.run)


class Service:
    """State of the server. See `build_app` for the arguments."""

    def __init__(
        self,
        load: Callable[[], Pipeline],
        name: str,
        limits: Limits,
        api_key: str | None,
        load_in_background: bool,
        on_loaded: Callable[[Exception | None], object],
    ) -> None:
        self._load, self._name, self._limits, self._on_loaded = load, name, limits, on_loaded
        self._load_in_background = load_in_background
        self._authorization = f"Bearer {api_key}".encode() if api_key else None
        self._accepted = 0
        self._metrics = Metrics(lambda: self._accepted)
        self._predictor: Predictor | None = None
        self._batcher: Batcher[Tensors, Tensors]
        self._decoders: ThreadPoolExecutor
        self._encoders: ThreadPoolExecutor

    @contextlib.asynccontextmanager
    async def run(self, app: Starlette) -> AsyncGenerator[None]:
        """Load the model; end the threads at shutdown."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()
        # Encoders have a pool of their own: answers don't queue behind images that were sent later.
        self._decoders, self._encoders = worker_pool(num_workers()), worker_pool(num_workers())

        def load() -> None:
            predictor, error = None, None
            try:
                predictor = Predictor(self._load())
                predictor.warm_up(self._limits.max_batch_size)
            except Exception as exception:  # reported by the caller
                error = exception
            with contextlib.suppress(RuntimeError):  # the server was stopped meanwhile
                loop.call_soon_threadsafe(self._start, predictor, error, loaded)

        threading.Thread(target=load, daemon=True, name="load").start()
        try:
            if not self._load_in_background:
                await loaded
            yield
        finally:
            if self._predictor:
                self._batcher.close()
            for pool in (self._decoders, self._encoders):
                pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, predictor: Predictor | None, error: Exception | None, loaded: "asyncio.Future[None]") -> None:
        if predictor and error is None:
            self._batcher = Batcher(
                predictor.forward,
                batch_key,
                threads=predictor.threads,
                max_batch_size=self._limits.max_batch_size,
                max_wait=self._limits.max_wait_ms / 1000,
                on_batch=self._metrics.observe_batch,
            )
            self._predictor = predictor
            loaded.set_result(None)
        elif error and not self._load_in_background:
            loaded.set_exception(error)
        self._on_loaded(error)

    async def predict(self, request: HTTPRequest) -> Response:
        """Answer a request for predictions."""
        start = time.perf_counter()
        try:
            response: Response = await self._answer(request)
        except RequestError as error:
            response = _format_error(error.status, str(error))
        except UnreadableImageError as error:
            response = _format_error(400, f"image: can't be read: {error}")
        except NonFiniteOutputError as error:
            response = _format_error(422, f"image: {error.reason}")
        except ClientDisconnect:
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.error("Request failed: %s", redact_message(reason))
            response = _format_error(500, "internal error. See the server's log.")
        self._metrics.observe_request(response.status_code, time.perf_counter() - start)
        return response

    async def _answer(self, request: HTTPRequest) -> Response:
        given = request.headers.get("authorization", "").encode()
        if self._authorization and not hmac.compare_digest(given, self._authorization):
            raise RequestError(401, "Authorization: got no valid token. Send the server's API key as bearer token.")
        if self._predictor is None:
            raise RequestError(503, f"Model {self._name} is currently loading.")
        _, names_task, task = request.url.path.rpartition("/pipeline/")
        if names_task and task.strip("/") != self._predictor.task:
            raise RequestError(404, f"task: got {task}, expected {self._predictor.task}, the task of {self._name}.")
        if self._accepted >= self._limits.max_queue:
            raise RequestError(503, f"Model {self._name} is busy: {self._accepted} requests wait. Try again later.")
        self._accepted += 1
        is_received = False
        try:
            async with asyncio.timeout(self._limits.timeout):
                body = await self._read_body(request)
                is_received = True
                return await self._run_model(self._predictor, body, request.headers.get("content-type", ""))
        except TimeoutError as error:
            if is_received:
                message = f"timeout: the prediction took more than {self._limits.timeout:g} s. Try again later."
                raise RequestError(504, message) from error
            raise RequestError(408, f"timeout: the request took more than {self._limits.timeout:g} s.") from error
        finally:
            self._accepted -= 1

    async def _read_body(self, request: HTTPRequest) -> bytes:
        maximum = max_body_bytes(request.headers.get("content-type", ""), self._limits.max_image_bytes)
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > maximum:
            raise too_large(self._limits.max_image_bytes)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > maximum:
                raise too_large(self._limits.max_image_bytes)
        return bytes(body)

    async def _run_model(self, predictor: Predictor, body: bytes, content_type: str) -> Response:
        run = asyncio.get_running_loop().run_in_executor
        arguments = body, content_type, predictor.task, self._limits.max_image_bytes
        if is_json(content_type):  # megabytes of base64 take tens of milliseconds
            image, parameters = await run(self._decoders, parse_request, *arguments)
        else:
            image, parameters = parse_request(*arguments)
        outputs = await self._batcher.submit(run(self._decoders, predictor.preprocess, image))
        content = await run(self._encoders, predictor.postprocess, outputs, parameters)
        return Response(content, media_type="application/json")

    async def report_health(self, request: HTTPRequest) -> Response:
        """Return status 200 when the model is loaded, before that 503."""
        is_ready = self._predictor is not None
        return JSONResponse({"status": "ok" if is_ready else "loading"}, 200 if is_ready else 503)

    async def report_info(self, request: HTTPRequest) -> Response:
        """Return the model's name and task, the parameters of its requests, and the limits."""
        if self._predictor is None:
            return _format_error(503, f"Model {self._name} is currently loading.")
        task = self._predictor.task
        info = {"model_id": self._name, "pipeline_tag": task, "parameters": list(PARAMETERS[task])}
        return JSONResponse(info | {"limits": asdict(self._limits)})

    async def report_metrics(self, request: HTTPRequest) -> Response:
        """Return the metrics."""
        return Response(self._metrics.render(), media_type=self._metrics.media_type)


async def _report_live(request: HTTPRequest) -> Response:
    return JSONResponse({"status": "ok"})


async def _format_http_error(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _format_error(status: int, message: str) -> Response:
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse({"error": message}, status, headers)
