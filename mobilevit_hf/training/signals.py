"""Handling of SIGINT (Ctrl-C) and SIGTERM during training, and errors that end it."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class StoppedError(Exception):
    """Training was stopped by a signal, after a checkpoint was saved."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class SharedError(ValueError):
    """Error of another process that ends this one too; the first process of each node prints it."""


@contextmanager
def catch_signals() -> Generator[list[int], None, None]:
    """Collect the numbers of received signals in a list; the second signal is handled as before the context.

    Outside the main thread, which alone may set handlers, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    previous = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        restore()
