"""Executors of one machine: this process, or several."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from transformers.utils import logging

from .types import Chunk, ChunkResult, Job

# Workers that may die in the same chunk, for example because an image ends the process that decodes it.
MAX_DEATHS = 3
STOP_SECONDS = 10
Message = tuple[ChunkResult | None, Exception | None]


class SerialExecutor:
    """Processes chunks in this process."""

    def run(self, chunks: Iterable[Chunk], job: Job) -> Iterator[ChunkResult]:
        """Yield the results of chunks. See `Executor`."""
        from .worker import process_chunk

        for chunk in chunks:
            yield process_chunk(job, chunk)


class ProcessExecutor:
    """Processes chunks in several processes, each of which loads the model once.

    A process that dies is replaced, and its chunk is processed again. When this process is killed, its workers end.

    Args:
        workers: Number of processes. On several GPUs, they take turns.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, chunks: Iterable[Chunk], job: Job) -> Iterator[ChunkResult]:
        """Yield the results of chunks in any order. See `Executor`.

        Raises:
            ValueError: Also if `MAX_DEATHS` workers died while they processed the same chunk.
        """
        job = replace(job, threads=job.threads or max(1, (os.cpu_count() or 1) // self.workers))
        remaining, deaths = iter(chunks), Counter[int]()
        busy: dict[Any, Worker] = {}  # by their connection
        try:
            for index in range(self.workers):
                if chunk := next(remaining, None):
                    worker = Worker(job, index, chunk)
                    busy[worker.connection] = worker
            while busy:
                for connection in wait(list(busy)):
                    worker = busy.pop(connection)
                    message = worker.receive()
                    if message is None:  # it died
                        deaths[worker.chunk.index] += 1
                        if deaths[worker.chunk.index] == MAX_DEATHS:
                            raise ValueError(_describe_deaths(worker))
                        worker.stop()
                        worker = Worker(job, worker.index, worker.chunk)
                        busy[worker.connection] = worker
                        continue
                    result, error = message
                    if error:
                        worker.stop()
                        raise error
                    if chunk := next(remaining, None):
                        worker.send(chunk)
                        busy[worker.connection] = worker
                    else:
                        worker.stop()
                    if result:
                        yield result
        finally:
            for worker in busy.values():
                worker.process.terminate()
            for worker in busy.values():
                worker.stop()


class Worker:
    """A process that processes one chunk after the other.

    It has a pipe of its own: a process that is killed can leave a shared queue locked.

    Args:
        job: The job.
        index: Number of the worker, from 0.
        chunk: Its first chunk.
    """

    def __init__(self, job: Job, index: int, chunk: Chunk) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks in any state
        self.index, self.chunk = index, chunk
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, job, index), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe is closed when the process ends
        self.send(chunk)

    def send(self, chunk: Chunk) -> None:
        """Send a chunk; `receive` returns None if the process is dead."""
        self.chunk = chunk
        with suppress(OSError):
            self.connection.send(chunk)

    def receive(self) -> Message | None:
        """Return the result of the chunk or its error, None if the process has died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        """End the process, at once if it is terminated, or else when it has sent its result."""
        self.connection.close()
        self.process.join(STOP_SECONDS)
        self.process.kill()
        self.process.join()
        self.process.close()


def _work(connection: Connection, job: Job, index: int) -> None:
    """Process the chunks that are received until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for all its processes: the parent ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable_progress_bar()  # of loading weights, in each process
    try:
        with suppress(EOFError, OSError):
            while True:
                connection.send(_process(job, connection.recv(), index))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an exception in a finalizer would be printed


def _process(job: Job, chunk: Chunk, index: int) -> Message:
    try:
        import torch

        from .worker import process_chunk

        if torch.cuda.is_available():
            torch.cuda.set_device(index % torch.cuda.device_count())
        return process_chunk(job, chunk), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a class whose arguments are not those of its constructor
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _end_with_parent() -> None:
    """Wait for the end of the parent process, and end this one: its part is incomplete and not visible."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _describe_deaths(worker: Worker) -> str:
    names = worker.chunk.names or (worker.chunk.name,)
    worker.process.join(STOP_SECONDS)
    code = worker.process.exitcode
    how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
    images = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    return (
        f"{worker.chunk.location}: got {MAX_DEATHS} workers that died ({how}) in {images}, expected images that can "
        "be decoded in the memory of a worker. Use fewer workers or remove the image, and resume."
    )
