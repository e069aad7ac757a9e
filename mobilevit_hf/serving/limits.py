"""Limits of the server. Importing this module does not import torch: they are defaults of the command."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the server. An image has at most `data.images.MAX_PIXELS` pixels besides.

    Attributes:
        max_batch_size: Images per call of the model.
        max_wait_ms: Milliseconds that an image waits for others that are being decoded, if the batch is not full. A
            request without others never waits.
        max_queue: Requests that are accepted at a time; others are refused with status 503. Each may hold an image of
            `max_image_bytes` in memory.
        max_image_bytes: Size of an image file.
        timeout: Seconds from the arrival of a request to its answer.
    """

    max_batch_size: int = 8
    max_wait_ms: float = 5
    max_queue: int = 256
    max_image_bytes: int = 20_000_000
    timeout: float = 30

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ValueError: If one is out of range.
        """
        for name in ("max_batch_size", "max_queue", "max_image_bytes"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1. Pass a larger number.")
        if not 0 <= self.max_wait_ms < math.inf:
            raise ValueError(
                f"max_wait_ms: got {self.max_wait_ms}, expected a number of at least 0. Pass 0 not to wait."
            )
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout: got {self.timeout}, expected a number above 0. Pass a number of seconds.")
