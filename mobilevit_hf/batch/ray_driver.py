"""The driver of a Ray job, in a process of its own: see `ray_executor`."""

import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import ray
import ray.data
from ray.data import ActorPoolStrategy

from .. import __version__
from .executors import MAX_DEATHS
from .ray_executor import Connected, DriverTask, Failed
from .types import Chunk, ChunkResult, Job
from .worker import process_chunk

# A chunk runs while the next one waits in its actor.
CHUNKS_PER_ACTOR = 2
# Memory for chunks and results of a cluster that the job starts, in bytes.
OBJECT_STORE_BYTES = 256 * 2**20
# For a cluster to start or to answer.
CONNECT_TIMEOUT_S = 90
# Between checks of the cluster and of the parent process.
WATCH_INTERVAL_S = 2
EXIT_LOST = 3


class Attempts:
    """Counts how often each chunk was started."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, index: int) -> int:
        """Count a start of a chunk; return how often it was started."""
        self._counts[index] = self._counts.get(index, 0) + 1
        return self._counts[index]


class ChunkActor:
    """Processes chunks; the model is loaded with the first one.

    Args:
        job: The job.
        version: Version of this package in the driver.
        attempts: Handle of the actor `Attempts`.
    """

    def __init__(self, job: Job, version: str, attempts: Any) -> None:
        self.job, self.version, self.attempts = job, version, attempts

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Return the results of chunks: a `ChunkResult` or the message of an error, pickled."""
        return {"result": [pickle.dumps(self._process(pickle.loads(chunk))) for chunk in batch["chunk"]]}

    def _process(self, chunk: Chunk) -> ChunkResult | str:
        if self.version != __version__:
            return f"ray: got mobilevit-hf {__version__} on a node, expected {self.version}. Install it on all nodes."
        if ray.get(self.attempts.add.remote(chunk.index)) > MAX_DEATHS:
            names = chunk.names or (chunk.name,)
            images = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            return (
                f"{chunk.location}: got {MAX_DEATHS} workers that died in {images}, expected images that can be "
                "decoded in the memory of a worker. Use fewer workers or remove the image, and resume."
            )
        try:
            return process_chunk(self.job, chunk)
        except (ValueError, OSError) as error:
            return str(error) or type(error).__name__
        except Exception as error:
            return f"{chunk.location}: got an unexpected {type(error).__name__} ({error}), expected predictions."


def main() -> None:
    """Read a `DriverTask` from the standard input and write messages to the standard output."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Ray and its workers write to the standard output
    task: DriverTask = pickle.load(sys.stdin.buffer)
    timer = threading.Timer(CONNECT_TIMEOUT_S, os._exit, [EXIT_LOST])
    timer.start()
    try:
        address = _connect(task.address)
        timer.cancel()
        threading.Thread(target=_watch, args=[os.getppid()], daemon=True).start()
        _send(messages, Connected(address))
        for result in _results(task):
            if isinstance(result, str):
                raise ValueError(result)
            _send(messages, result)
    except ValueError as error:
        _send(messages, Failed(str(error), is_final=True))
    except Exception as error:
        if not ray.is_initialized():
            raise
        _exit_if_lost()
        reason = " ".join(str(error).split())
        if "No module named 'mobilevit_hf" in reason:
            text = "ray: got a node without mobilevit-hf, expected it on all nodes. Install it there."
            _send(messages, Failed(text, is_final=True))
        else:
            _send(messages, Failed(f"{type(error).__name__}: {reason[-300:]}", is_final=False))
    finally:
        timer.cancel()
        ray.shutdown()


def _send(messages: BinaryIO, message: Any) -> None:
    messages.write(pickle.dumps(message))
    messages.flush()


def _connect(address: str) -> str | None:
    """Connect to a cluster; return its address, None for a new cluster that ends with this process."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address != "local":
        try:
            found = ray.init(address, **options).address_info["gcs_address"]
            return found if address == "auto" else address
        except ConnectionError:
            if address != "auto":
                raise
    ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options)
    return None


def _watch(parent: int) -> None:
    """End this process when the parent process or the cluster is gone; Ray alone may wait for ever."""
    while True:
        time.sleep(WATCH_INTERVAL_S)
        if os.getppid() != parent:
            os._exit(EXIT_LOST)
        _exit_if_lost()


def _exit_if_lost() -> None:
    """End this process if the cluster does not answer, or no longer has its node: the head was started again."""
    try:
        node = ray.get_runtime_context().get_node_id()
        if any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes()):
            return
        print("the head of the cluster was started again", file=sys.stderr)
    except Exception as error:
        print(error, file=sys.stderr)
    os._exit(EXIT_LOST)


def _results(task: DriverTask) -> Iterator[ChunkResult | str]:
    """Yield the result or error of each chunk."""
    resources = _resources(task.job)
    if "GPU" in resources:
        job = replace(task.job, device="cuda")
    else:
        job = replace(task.job, device=task.job.device and "cpu", threads=int(resources["CPU"]))
    chunks = [{"chunk": pickle.dumps(chunk)} for chunk in task.chunks]
    slots = max(1, int(min(ray.cluster_resources().get(kind, 0) / number for kind, number in resources.items())))
    counter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
    dataset = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        ChunkActor,
        fn_constructor_args=(job, __version__, counter.remote()),
        batch_size=1,
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=task.workers,
            initial_size=min(slots, task.workers or slots, len(chunks)),
            max_tasks_in_flight_per_actor=CHUNKS_PER_ACTOR,
        ),
        num_cpus=resources.get("CPU"),
        num_gpus=resources.get("GPU"),
    )
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        yield from (pickle.loads(result) for result in batch["result"])


def _resources(job: Job) -> dict[str, float]:
    """Return the resources of an actor: a GPU, or the CPUs of its threads.

    Raises:
        ValueError: If no node of the cluster has them.
    """
    has_gpus = job.backend == "torch" and ray.cluster_resources().get("GPU", 0) >= 1
    wants_gpu = job.device == "cuda" or (job.device == "auto" and has_gpus)
    kind, number = ("GPU", 1) if wants_gpu else ("CPU", job.threads or 1)
    largest = max(entry["Resources"].get(kind, 0) for entry in ray.nodes() if entry["Alive"])
    if largest < number:
        option = "device: got cuda" if wants_gpu else f"threads: got {number}"
        raise ValueError(f"{option}, expected at most the {largest:g} {kind}s of the largest node of the Ray cluster.")
    return {kind: number}
