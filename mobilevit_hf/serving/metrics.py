"""Metrics of the server in the format of Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts requests and batches.

    Args:
        queue_length: Function that returns the number of accepted requests without an answer.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, queue_length: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("mobilevit_requests", "Answered requests.", ["status"], registry=registry)
        self._seconds = Histogram(
            "mobilevit_request_duration_seconds",
            "Seconds from the arrival of a request to its answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self._images = Counter("mobilevit_images", "Images that the model was run on.", registry=registry)
        self._batches = Histogram(
            "mobilevit_batch_size", "Images per call of the model.", buckets=SIZES, registry=registry
        )
        gauge = Gauge("mobilevit_queue_length", "Accepted requests without an answer.", registry=registry)
        gauge.set_function(queue_length)

    def observe_request(self, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(status).inc()
        self._seconds.observe(seconds)

    def observe_batch(self, size: int) -> None:
        """Count a batch."""
        self._images.inc(size)
        self._batches.observe(size)

    def render(self) -> bytes:
        """Return the metrics."""
        return generate_latest(self._registry)
