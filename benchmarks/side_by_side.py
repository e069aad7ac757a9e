"""Time this package and its peers side by side.

Every candidate lives in a process of its own, so that no one's allocator, threads or peak memory touch another's. The
processes take turns, one round each, in an order that rotates; while one runs the others wait, blocked on a pipe. A
ratio compares calls of the same round, and the median over the rounds is reported, so that a machine that slows down
on the way slows all candidates.

Two allocator modes: `same` calls `mobilevit_hf.tune_allocator()` in every process, so that what is left is the
difference between the models; `users` calls it in ours only, as this package's commands do.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

VARIANTS = ("xxs", "xs", "s")
ALLOCATORS = {
    "same": "the same allocator settings for all: tune_allocator() in every process",
    "users": "as users run it: ours after tune_allocator(), the others with the allocator's defaults",
}
NUM_CLASSES = 1000
ROUND_SECONDS = 0.5  # a round of one candidate repeats its call for about this long


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison: what to install and import for it."""

    package: str
    module: str


OURS = "ours"
CANDIDATES = {
    "stock": Candidate("transformers", "transformers.models.mobilevit.modeling_mobilevit"),
    "timm contiguous": Candidate("timm", "timm"),
    "timm channels_last": Candidate("timm", "timm"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf"),
}


@dataclass(frozen=True)
class Case:
    """One setting in which all candidates are compared.

    Args:
        variant: "xxs", "xs" or "s".
        batch: Images per call.
        size: Height and width of the images.
        allocator: A key of `ALLOCATORS`.
        threads: PyTorch's number of threads, None for its default.
        fields: The config of the variant, for the candidates whose class takes one.
    """

    variant: str
    batch: int
    size: int
    allocator: str
    threads: int | None
    fields: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.variant}, batch {self.batch}, {self.size}x{self.size}, allocator: {self.allocator}"


Call = Callable[[], Any]
Build = Callable[[str, Case], Call]


# In the worker's process ---------------------------------------------------------------------------------------------


def build_model(candidate: str, case: Case) -> Any:
    """The candidate's classifier in its memory layout, with PyTorch's default initialization for all of them.

    Stock transformers initializes batch normalization close to zero; equal weights keep that out of the timings.
    """
    import torch

    if candidate.startswith("timm"):
        import timm

        model = timm.create_model(f"mobilevit_{case.variant}", num_classes=NUM_CLASSES)
    elif candidate == "stock":
        from transformers import MobileViTConfig, MobileViTForImageClassification

        model = MobileViTForImageClassification(MobileViTConfig(**case.fields))
    else:
        from mobilevit_hf import MobileViTConfig, MobileViTForImageClassification

        model = MobileViTForImageClassification(MobileViTConfig(**case.fields))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model.to(memory_format=torch.channels_last) if uses_channels_last(candidate) else model


def uses_channels_last(candidate: str) -> bool:
    """Whether the candidate's model is kept in channels_last."""
    return candidate in ("timm channels_last", OURS)


def random_images(candidate: str, case: Case) -> Any:
    """A batch of random images; for timm in channels_last already laid out so, which its calls then save."""
    import torch

    images = torch.rand(case.batch, 3, case.size, case.size)
    return images.to(memory_format=torch.channels_last) if candidate == "timm channels_last" else images


def logits_of(output: Any) -> Any:
    """The class scores in a transformers output, or timm's plain tensor."""
    return getattr(output, "logits", output)


def load_module(name: str) -> Any:
    """Load a module of `mobilevit_hf` without the rest of the package in a peer's process."""
    spec = importlib.util.find_spec("mobilevit_hf")
    file = Path(spec.submodule_search_locations[0]) / f"{name}.py"
    module_spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def take_turns(answer: Callable[..., None]) -> Iterator[None]:
    """Ask for one call after the other: for each number on stdin one that isn't timed, and as many that are.

    Each number is answered with the mean time of its calls. Ends when stdin does.
    """
    peak_memory = load_module("environment").peak_memory
    for line in sys.stdin:
        calls = int(line)
        yield
        start = time.perf_counter()
        for _ in range(calls):
            yield
        answer(seconds=(time.perf_counter() - start) / calls, peak_mib=peak_memory())


def call_in_turns(call: Call, turns: Iterator[None]) -> None:
    """Make each call that is asked for."""
    for _ in turns:
        call()


def serve(
    build: Build,
    module: str,
    candidate: str,
    case: Case,
    run: Callable[[Any, Iterator[None]], None] = call_in_turns,
) -> None:
    """Be a candidate's process: build, then answer each number of calls on stdin with their time on stdout.

    Every answer is a line of JSON; what else the libraries print goes to stderr. Ends when stdin does.

    Args:
        build: Makes what is run, given the candidate's name and the case.
        module: To be imported before memory is first looked at.
        candidate: The candidate's name.
        case: The setting.
        run: Makes the calls that `take_turns` asks for with what `build` made. What can't be called again and again,
            such as a loop in a library, asks for the next turn by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")

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
        answer(imported_mib=imported_mib, threads=torch.get_num_threads())
        run(call, take_turns(answer))
    except Exception:
        answer(error=traceback.format_exc())


# In the parent -------------------------------------------------------------------------------------------------------


class WorkerError(RuntimeError):
    """A candidate's process failed; the message holds its traceback."""


class Worker:
    """A candidate's process, seen from the parent."""

    def __init__(self, candidate: str, case: Case) -> None:
        self.candidate = candidate
        request = json.dumps({"candidate": candidate, "case": asdict(case)})
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=_environment_without_allocator_settings(),
        )
        self.imported_mib = self.peak_mib = math.nan
        self.threads = 0
        self.calls = 1
        self.seconds: list[float] = []

    def wait_until_ready(self) -> None:
        """Wait until the candidate is built."""
        answer = self._read()
        self.imported_mib, self.threads = answer["imported_mib"], answer["threads"]

    def calibrate(self) -> None:
        """Choose how many calls make a round."""
        self.calls = max(1, round(ROUND_SECONDS / self._run(1)))

    def run_round(self) -> None:
        """Take a turn."""
        self.seconds.append(self._run(self.calls))

    def close(self) -> None:
        """End the process, by the end of its stdin if it catches the signal."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def _run(self, calls: int) -> float:
        with contextlib.suppress(BrokenPipeError):  # then reading says why
            self.process.stdin.write(f"{calls}\n")
        answer = self._read()
        self.peak_mib = answer["peak_mib"]
        return answer["seconds"]

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended with exit code {self.process.wait()}"}
        if "error" in answer:
            raise WorkerError(f"{self.candidate}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _environment_without_allocator_settings() -> dict[str, str]:
    """This process's environment, so that a default allocator is one."""
    settings = ("MALLOC_", "GLIBC_TUNABLES")
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)}


def compare(case: Case, candidates: list[str], rounds: int) -> dict[str, Any]:
    """Run one case: all candidates take turns, in an order that rotates with the round."""
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
        return _summarise(case, workers)


def _summarise(case: Case, workers: list[Worker]) -> dict[str, Any]:
    ours = next(worker for worker in workers if worker.candidate == OURS)
    fields = {key: value for key, value in asdict(case).items() if key != "fields"}
    candidates = {
        worker.candidate: {
            "median_ms": statistics.median(worker.seconds) * 1000,
            "min_ms": min(worker.seconds) * 1000,
            "times_ours": statistics.median(
                theirs / own for theirs, own in zip(worker.seconds, ours.seconds, strict=True)
            ),
            "peak_mib": worker.peak_mib,
            "imported_mib": worker.imported_mib,
            "calls_per_round": worker.calls,
            "rounds_ms": [seconds * 1000 for seconds in worker.seconds],
        }
        for worker in workers
    }
    return {**fields, "threads": ours.threads, "candidates": candidates}


def available(candidates: dict[str, Candidate]) -> Iterator[str]:
    """The candidates that are installed; the others are named on stderr."""
    for name, candidate in candidates.items():
        if importlib.util.find_spec(candidate.package):
            yield name
        else:
            print(f"{name}: left out, {candidate.package} is not installed.", file=sys.stderr)


def machine_facts() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    from mobilevit_hf.training.record import cpu_name

    packages = ("torch", "torchvision", "transformers", "timm", "mobilevit-hf")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'no glibc'}",
        "python": platform.python_version(),
        **{package: version for package in packages if (version := _version(package))},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "command": shlex.join(["python", *sys.argv]),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return getattr(sys.modules.get(package.replace("-", "_")), "__version__", None)


def print_report(results: list[dict[str, Any]], facts: dict[str, Any], notes: list[str]) -> None:
    """One table for each allocator mode, then what the figures depend on."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=100)
    for allocator, meaning in ALLOCATORS.items():
        rows = [result for result in results if result["allocator"] == allocator]
        if not rows:
            continue
        table = Table("case", "candidate", title=f"Allocator: {allocator}", title_justify="left")
        for column in ("ms", "least ms", "x ours", "peak MiB", "imports"):
            table.add_column(column, justify="right")
        for result in rows:
            for position, (name, row) in enumerate(result["candidates"].items()):
                label = f"{result['variant']}, batch {result['batch']}" if position == 0 else ""
                numbers = (
                    f"{row['median_ms']:.1f}",
                    f"{row['min_ms']:.1f}",
                    f"{row['times_ours']:.2f}",
                    f"{row['peak_mib']:.0f}",
                    f"{row['imported_mib']:.0f}",
                )
                table.add_row(label, name, *numbers, end_section=name == OURS)
        console.print(table)
        console.print(f"{meaning[0].upper()}{meaning[1:]}.\n")
    for note in notes:
        console.print(note, markup=False)
    threads = sorted({result["threads"] for result in results})
    facts = {**facts, "threads": ", ".join(map(str, threads))}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))


COLUMNS_NOTE = (
    "ms: of one call, median over the rounds. x ours: the candidate's time over ours in the same round, median. "
    "peak: the most memory the process had resident, shared libraries included; imports: that before the model."
)


def main(
    description: str,
    build: Build,
    check: Callable[[Case], str],
    *,
    variants: list[str],
    batches: list[int],
    notes: list[str],
    size: int = 256,
    candidates: dict[str, Candidate] = CANDIDATES,
) -> None:
    """The command line of a benchmark.

    Args:
        description: What the benchmark does, for `--help`.
        build: Makes the call that is timed, given the candidate's name and the case; runs in the worker.
        check: Says in a line what was checked about a variant, such as how far ours and stock are apart.
        variants: The default variants.
        batches: The default batch sizes.
        notes: What the reader of the table should know.
        size: The default height and width of the images.
        candidates: Whom to compare, ours last.
    """
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        candidate = request["candidate"]
        serve(build, candidates[candidate].module, candidate, Case(**request["case"]))
        return
    args = _parse_arguments(description, variants, batches, size)
    try:
        _run_and_report(args, build_cases(args), list(available(candidates)), check, notes)
    except WorkerError as error:
        sys.exit(f"\nA candidate failed. {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parse_arguments(description: str, variants: list[str], batches: list[int], size: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=variants)
    parser.add_argument("--batches", nargs="+", type=_positive, default=batches, help="images per call")
    parser.add_argument("--size", type=_positive, default=size, help="height and width of the images")
    parser.add_argument("--rounds", type=_positive, default=7, help="turns of each candidate")
    parser.add_argument("--allocator", choices=(*ALLOCATORS, "both"), default="both", help="; ".join(ALLOCATORS))
    parser.add_argument("--threads", type=_positive, help="PyTorch's threads (its own choice if not given)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected 1 or more")
    return number


def build_cases(args: argparse.Namespace) -> list[Case]:
    """Every combination asked for, the small ones first."""
    from mobilevit_hf import MobileViTConfig

    allocators = list(ALLOCATORS) if args.allocator == "both" else [args.allocator]
    configs = {name: MobileViTConfig.from_variant(name, num_labels=NUM_CLASSES) for name in args.variants}
    fields = ("hidden_sizes", "neck_hidden_sizes", "expand_ratio", "hidden_dropout_prob", "num_labels")
    return [
        Case(variant, batch, args.size, allocator, args.threads, {name: getattr(config, name) for name in fields})
        for allocator in allocators
        for variant, config in configs.items()
        for batch in args.batches
    ]


def _run_and_report(
    args: argparse.Namespace, cases: list[Case], candidates: list[str], check: Callable[[Case], str], notes: list[str]
) -> None:
    facts = machine_facts()
    notes = [*notes, COLUMNS_NOTE, *(check(case) for case in {case.variant: case for case in cases}.values())]
    results: list[dict[str, Any]] = []
    try:
        for number, case in enumerate(cases, start=1):
            print(f"[{number}/{len(cases)}] {case}", file=sys.stderr, flush=True)
            results.append(compare(case, candidates, args.rounds))
    finally:
        if results:
            print_report(results, facts, notes)
        if args.json:
            args.json.write_text(json.dumps({"facts": facts, "notes": notes, "results": results}, indent=2) + "\n")
