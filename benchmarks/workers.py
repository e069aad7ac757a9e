"""Processes of the candidates of a comparison, and their synchronization.

Every candidate runs in its own process, so that allocator settings, threads and peak memory are independent. The
processes take turns, one round each, in rotating order; the others wait, blocked on a pipe. A ratio compares calls of
the same round, and the median over the rounds is reported, so that a machine that slows down affects all candidates
alike.
"""

import contextlib
import importlib
import importlib.util
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

ROUND_SECONDS = 0.5  # duration of a candidate's round, which repeats its call
OURS = "ours"

Call = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """A row of the comparison.

    Attributes:
        package: Package that must be installed.
        module: Module to import before memory is measured.
    """

    package: str
    module: str


@cache
def is_installed(package: str) -> bool:
    """Return whether a package is installed; a missing one is printed to stderr, once."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package}: not installed, skipped.", file=sys.stderr)
    return found


def available(candidates: dict[str, Candidate]) -> list[str]:
    """Return the names of the installed candidates."""
    return [name for name, candidate in candidates.items() if is_installed(candidate.package)]


# --- worker process --------------------------------------------------------------------------------------------------


def load_module(name: str) -> Any:
    """Load a module of `mobilevit_hf` without importing the package."""
    spec = importlib.util.find_spec("mobilevit_hf")
    file = Path(spec.submodule_search_locations[0]) / f"{name}.py"
    module_spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def take_turns(reply: Callable[..., None]) -> Iterator[None]:
    """Yield once per call: for each number on stdin one warm-up call and that many timed calls.

    Each number is answered with the mean duration of the timed calls. Ends with stdin.
    """
    peak_memory = load_module("environment").peak_memory
    for line in sys.stdin:
        calls = int(line)
        yield
        start = time.perf_counter()
        for _ in range(calls):
            yield
        reply(seconds=(time.perf_counter() - start) / calls, peak_mib=peak_memory())


def call_in_turns(call: Call, turns: Iterator[None]) -> None:
    """Call once per turn."""
    for _ in turns:
        call()


def serve(
    build: Callable[[str, Any], Any],
    module: str,
    candidate: str,
    case: Any,
    run: Callable[[Any, Iterator[None]], None] = call_in_turns,
) -> None:
    """Run a candidate's process: build, then answer each number of calls on stdin with their duration on stdout.

    Every reply is a line of JSON; other output of the libraries goes to stderr. Ends with stdin.

    Args:
        build: Builds what is run, given the candidate's name and the case.
        module: Module to import before memory is measured.
        candidate: Name of the candidate.
        case: Setting, with `threads` and `allocator`.
        run: Runs what `build` returned once per turn of `take_turns`. A loop inside a library takes turns itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which ends its workers
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(**fields: Any) -> None:
        replies.write(json.dumps(fields) + "\n")

    try:
        import torch

        importlib.import_module(module)
        if case.threads:
            torch.set_num_threads(case.threads)
        allocator = load_module("allocator")
        imported_mib = load_module("environment").peak_memory()
        if case.allocator == "same" or candidate.startswith(OURS):
            allocator.tune_allocator()
        torch.manual_seed(0)
        call = build(candidate, case)
        reply(imported_mib=imported_mib, threads=torch.get_num_threads())
        run(call, take_turns(reply))
    except Exception:
        reply(error=traceback.format_exc())


# --- parent process --------------------------------------------------------------------------------------------------


class WorkerError(RuntimeError):
    """A candidate's process failed; the message contains its traceback."""


class Worker:
    """A candidate's process."""

    def __init__(self, candidate: str, case: Any) -> None:
        self.candidate = candidate
        request = json.dumps({"candidate": candidate, "case": asdict(case)})
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment_without_allocator_settings(),
            encoding="utf-8",
        )
        self.imported_mib = self.peak_mib = math.nan
        self.threads = 0
        self.calls = 1
        self.seconds: list[float] = []

    def wait_until_ready(self) -> None:
        """Wait until the candidate is built."""
        reply = self._read()
        self.imported_mib, self.threads = reply["imported_mib"], reply["threads"]

    def calibrate(self) -> None:
        """Set the number of calls per round."""
        self.calls = max(1, round(ROUND_SECONDS / self._run(1)))

    def run_round(self) -> None:
        """Run one round and record its mean call duration."""
        self.seconds.append(self._run(self.calls))

    def close(self) -> None:
        """End the process, by the end of its stdin if it catches the signal."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def _run(self, calls: int) -> float:
        with contextlib.suppress(BrokenPipeError):  # _read raises the reason
            self.process.stdin.write(f"{calls}\n")
        reply = self._read()
        self.peak_mib = reply["peak_mib"]
        return reply["seconds"]

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        reply = json.loads(line) if line else {"error": f"exit code {self.process.wait()}"}
        if "error" in reply:
            raise WorkerError(f"{self.candidate}: {reply['error']}")
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def yolo_environment(folder: str) -> dict[str, str]:
    """Return environment variables for ultralytics: no downloads, no installations, settings in this folder."""
    return {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": folder}


def environment_without_allocator_settings() -> dict[str, str]:
    settings = ("MALLOC_", "GLIBC_TUNABLES")
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)}


def compare(case: Any, candidates: list[str], rounds: int) -> dict[str, Any]:
    """Run all candidates of a case in turns, in an order that rotates with the round.

    Returns:
        The fields of the case, `threads`, and the timings and memory of each candidate.
    """
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(candidate, case)) for candidate in candidates]
        for worker in workers:
            worker.wait_until_ready()
        for worker in workers:
            worker.calibrate()
        for round_number in range(rounds):
            shift = round_number % len(workers)
            for worker in workers[shift:] + workers[:shift]:
                worker.run_round()
        return _summarize(case, workers)


def _summarize(case: Any, workers: list[Worker]) -> dict[str, Any]:
    ours = next(worker for worker in workers if worker.candidate == OURS)
    fields = {key: value for key, value in asdict(case).items() if key != "fields"}
    candidates = {
        worker.candidate: {
            "median_ms": statistics.median(worker.seconds) * 1000,
            "min_ms": min(worker.seconds) * 1000,
            "speedup_of_ours": statistics.median(
                other / own for other, own in zip(worker.seconds, ours.seconds, strict=True)
            ),
            "peak_mib": worker.peak_mib,
            "imported_mib": worker.imported_mib,
            "calls_per_round": worker.calls,
            "rounds_ms": [seconds * 1000 for seconds in worker.seconds],
        }
        for worker in workers
    }
    return {**fields, "threads": ours.threads, "candidates": candidates}
