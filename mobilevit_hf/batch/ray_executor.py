"""Chunks on a Ray cluster: the driver of Ray runs in a process of its own, which is started again when it is lost.

Ray ends the process of a driver that loses the head of its cluster, and writes to the standard output. Finished chunks
are parts on the disk, so another driver continues with the others.
"""

import importlib.util
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

from ..environment import pip_command
from .types import Chunk, ChunkResult, Job

# Chunks of a Ray dataset, whose descriptions are in memory at once; its actors load the model once.
CHUNKS_PER_DATASET = 1000
# Time for the head of a cluster to come back.
HEAD_TIMEOUT_S = 60
# Drivers lost in a row without a finished chunk, after which the job ends.
MAX_LOST_DRIVERS = 3
# Time for a driver to end after SIGTERM.
TERMINATE_TIMEOUT_S = 10

RUN_ON_NODE = "Run the command on a node of the cluster, with RAY_AUTH_MODE=token if the cluster has a token."
RESUME = "Start the cluster again and run the command with --resume: finished parts are kept."

DRIVER = [sys.executable, "-c", "from mobilevit_hf.batch.ray_driver import main; main()"]
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # A worker may be killed before it has started.
    "RAY_DATA_MAX_CONSECUTIVE_ACTOR_INIT_DEATHS": "3",
    # The driver ends when the head has been gone for this long. Default: 60.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}


@dataclass(frozen=True)
class DriverTask:
    """What a driver runs.

    Attributes:
        job: The job.
        chunks: Its chunks.
        address: See `RayExecutor`.
        workers: Maximum number of workers, None for as many as the cluster has GPUs or CPUs for.
    """

    job: Job
    chunks: list[Chunk]
    address: str
    workers: int | None


@dataclass(frozen=True)
class Connected:
    """First message of a driver: the address of its cluster, None for a cluster that ends with the driver."""

    address: str | None


@dataclass(frozen=True)
class Failed:
    """Last message of a driver that failed.

    Attributes:
        reason: One line.
        is_final: Whether another driver would fail too.
    """

    reason: str
    is_final: bool


class RayExecutor:
    """Runs chunks in a pool of Ray actors: one per GPU of the cluster, or per `job.threads` CPUs (default: 1).

    Args:
        address: Address of the cluster, such as "10.0.0.1:6379"; "local" for a new one on this machine, which ends
            with the job; or "auto": that of `RAY_ADDRESS`, otherwise one on this machine, or a new one.
        workers: Maximum number of workers. Default: as many as the cluster has room for, also when it grows.

    Raises:
        ValueError: If Ray is not installed or the address is malformed.
        ConnectionError: If no cluster answers at the address.
    """

    def __init__(self, address: str = "auto", workers: int | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ValueError(f"ray: got no installation of Ray, expected one. Run {pip_command('ray')}.")
        self.address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
        if self.address not in ("auto", "local"):
            _check_address(self.address)
        self.workers = workers
        self.connected: Connected | None = None

    def run(self, chunks: Iterable[Chunk], job: Job) -> Iterator[ChunkResult]:
        """Yield the results of chunks in any order, each as soon as its part is written.

        Killed workers and nodes are replaced, and their chunks are repeated. A driver that loses the head of the
        cluster is replaced when the head is back.

        Raises:
            ValueError: If a chunk can't be processed, or if the cluster has no room for a worker.
            ConnectionError: If the driver can't connect, or the head of the cluster does not come back.
        """
        chunks = iter(chunks)
        while batch := list(islice(chunks, CHUNKS_PER_DATASET)):
            yield from self._run_dataset(batch, job)

    def _run_dataset(self, chunks: list[Chunk], job: Job) -> Iterator[ChunkResult]:
        pending, lost = {chunk.index: chunk for chunk in chunks}, 0
        while pending:
            reason = "the driver was killed"
            task = DriverTask(job, list(pending.values()), self.address, self.workers)
            with closing(_run_driver(task)) as messages:
                for message in messages:
                    match message:
                        case Connected():
                            self.connected = message
                        case Failed(reason, is_final):
                            if is_final:
                                raise ValueError(reason)
                        case ChunkResult() if pending.pop(message.index, None):
                            lost = 0
                            yield message
            if pending:
                lost += 1
                self._wait(lost, reason)

    def _wait(self, lost: int, reason: str) -> None:
        """Wait for the head of the cluster to come back, after a driver was lost."""
        if self.connected is None:
            text = f"got {self.address} and no connection ({reason}), expected a cluster"
            raise ConnectionError(f"ray: {text}. {RUN_ON_NODE}")
        if lost > MAX_LOST_DRIVERS:
            raise ConnectionError(f"ray: got {lost} failures in a row ({reason}), expected predictions. {RESUME}")
        deadline, address = time.monotonic() + HEAD_TIMEOUT_S, self.connected.address
        while address and not _is_reachable(address):
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"ray: got no connection to the head of the cluster at {address} for {HEAD_TIMEOUT_S} seconds, "
                    f"expected it to come back. {RESUME}"
                )
            time.sleep(1)


def _run_driver(task: DriverTask) -> Generator[Any]:
    """Yield the messages of a driver in a new process until it ends."""
    with tempfile.TemporaryFile() as log, _start(log) as driver:
        with suppress(BrokenPipeError):  # killed at once
            pickle.dump(task, driver.stdin)
            driver.stdin.close()
        failed = None
        with suppress(EOFError, pickle.UnpicklingError):  # killed, perhaps within a message
            while True:
                yield (failed := pickle.load(driver.stdout))
        if driver.wait() and not isinstance(failed, Failed):
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = log.read().decode(errors="replace").split("\n")
            yield Failed(
                next((line.strip() for line in reversed(lines) if line.strip()), "no message"), is_final=False
            )


@contextmanager
def _start(log: IO[bytes]) -> Generator[Any]:
    # Ray's processes would get the signals of the terminal, in a group with this one.
    driver: Any = subprocess.Popen(
        DRIVER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=ENVIRONMENT | os.environ,
        start_new_session=True,
    )
    try:
        yield driver
    finally:
        driver.terminate()
        try:
            driver.wait(TERMINATE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
        driver.stdout.close()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        raise ValueError(f"ray: got {address}, expected HOST:PORT of the head of a cluster, such as 10.0.0.1:6379.")
    return host.strip("[]"), int(port)


def _is_reachable(address: str) -> bool:
    try:
        with socket.create_connection(_split(address), timeout=5):
            return True
    except OSError:
        return False


def _check_address(address: str) -> None:
    if not _is_reachable(address):
        raise ConnectionError(
            f"ray: got {address}, where no cluster answers, expected the head of a running one. Start it with "
            "`ray start --head`, or leave the address out for a cluster on this machine."
        )
