"""Preprocessing in threads while a model runs, and torch's number of threads next to a runtime's."""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")

# Decoding and resizing are fast compared with the network on a CPU; a GPU waits for as many threads as there are.
MAX_THREADS = 8


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


@contextmanager
def one_torch_thread() -> Generator[None]:
    """Run torch's operators in the calling thread alone, for pre- and post-processing next to another runtime.

    Threads of torch and of ONNX Runtime or OpenVINO wait for work by spinning, on cores that the others need: on two
    cores an image processor takes 28 ms instead of 1.6. Other threads keep their number of threads, unlike with
    `torch.set_num_threads`, whose number is also that of all threads that use torch for the first time.
    """
    torch.get_num_threads()  # the first call in a thread sets its number
    with _openmp().limit(limits=1):
        yield


def _limit_worker() -> None:
    torch.get_num_threads()
    _openmp().limit(limits=1)


_limit = MAX_THREADS


def limit_workers(number: int) -> None:
    """Limit `num_workers` in this process, one of several on the machine."""
    global _limit
    _limit = number


def num_workers() -> int:
    """Return the default number of threads of `map_ahead`."""
    return min(_limit, MAX_THREADS, os.cpu_count() or 1)


def worker_pool(workers: int) -> ThreadPoolExecutor:
    """Return a pool of threads, each of which runs torch's operators alone."""
    return ThreadPoolExecutor(workers, initializer=_limit_worker)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int, workers: int | None = None
) -> Generator[Result]:
    """Yield `function(item)` for each item, in order, computed in threads while the caller uses earlier results.

    Items are drawn in a thread of their own, one at a time, so a result never waits for a later item. At most `ahead`
    results are computed or kept at a time. An error is raised at the position of its item.

    Args:
        workers: Number of threads that compute. Default: `num_workers()`.
    """
    slots, stopped = threading.Semaphore(ahead), threading.Event()
    results: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
    pool = worker_pool(workers or num_workers())

    def draw() -> None:
        end = None
        try:
            iterator = iter(items)
            while slots.acquire() and not stopped.is_set():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                results.put(pool.submit(function, item))
        except BaseException as error:  # raised by the caller
            end = Future()
            end.set_exception(error)
        results.put(end)

    # A daemon, because a source may block forever, for example on a queue of requests.
    threading.Thread(target=draw, daemon=True).start()
    try:
        while (result := results.get()) is not None:
            yield result.result()
            slots.release()
    finally:
        stopped.set()
        slots.release()
        pool.shutdown(cancel_futures=True)
