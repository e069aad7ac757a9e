"""One prediction at a time, on one thread: more would slow down the measured latency, and each keep its own memory."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from queue import PriorityQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_calls: PriorityQueue = PriorityQueue()
_numbers = count()


def in_turn(rank: int, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """Call a function when no call of a lower rank, or of this rank and earlier, is left. Return its result.

    Args:
        rank: Pixels that this request has had so far, and those of this image: short requests come between the
            images of long ones.
        function: The function; its exceptions are raised here.
        args, options: Its arguments.
    """
    result: Future[R] = Future()
    _calls.put((rank, next(_numbers), result, partial(function, *args, **options)))
    return result.result()


def _work() -> None:
    while True:
        _, _, result, call = _calls.get()
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)
        del result, call  # of hundreds of MB, until the next call


threading.Thread(target=_work, name="predict", daemon=True).start()
