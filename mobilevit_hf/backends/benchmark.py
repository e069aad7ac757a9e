"""How fast a model is on each engine, and how large: every engine in a process of its own, in turns."""

import contextlib
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..allocator import tune_allocator
from ..environment import peak_memory
from .formats import BACKENDS, QUANTIZATIONS, check_request, dtype_name

# A turn of an engine repeats its call for about this long.
TURN_SECONDS = 0.5


class Setting(NamedTuple):
    """An engine and what it computes in."""

    backend: str
    dtype: str
    quantization: str | None

    def __str__(self) -> str:
        precision = self.quantization or self.dtype
        return self.backend if precision == "float32" else f"{self.backend}:{precision}"


def parse_setting(text: str) -> Setting:
    """`backend`, `backend:dtype` or `backend:int8`.

    Raises:
        ValueError: If it is none of these.
    """
    backend, _, precision = text.strip().partition(":")
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if precision in QUANTIZATIONS:
        return Setting(backend, "float32", precision)
    return Setting(backend, dtype_name(precision or None), None)


@dataclass(frozen=True)
class Timing:
    """A model on one engine, at one size of batch and image.

    Attributes:
        setting: The engine.
        batch, height, width: Of the images.
        p50_ms, p95_ms: Of a call, from the images' tensor to the outputs', in milliseconds.
        images_per_second: By the median.
        peak_mib: The most memory that the process has had resident by then, libraries included.
        file_bytes: Of the program with its weights.
    """

    setting: Setting
    batch: int
    height: int
    width: int
    p50_ms: float
    p95_ms: float
    images_per_second: float
    peak_mib: float
    file_bytes: int


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates for one image in convolutions and linear layers; the products in attention not counted.

    Args:
        model: Any that takes `pixel_values`.
        height, width: Of the image, in pixels.
    """
    model, total = copy.deepcopy(model).to("meta").eval(), 0

    def count(layer: nn.Conv2d | nn.Linear, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # an output is the product with one row, or one kernel

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(pixel_values=torch.empty(1, 3, height, width, device="meta"))
    return total


# --- in an engine's process ------------------------------------------------------------------------------------------


def _serve(connection: Connection, task: str, folder: str, setting: Setting, threads: int | None) -> None:
    """Answer each (batch, height, width, calls) with the seconds of each call; the first answer is the file's size."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what engines remark on their own workings
    try:
        call, file_bytes = _load(task, folder, setting, threads)
        connection.send(file_bytes)
        while (request := connection.recv()) is not None:
            *shape, calls = request
            pixels = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(0))
            seconds = []
            for _ in range(calls + 1):
                start = time.perf_counter()
                call(pixels)
                seconds.append(time.perf_counter() - start)
            connection.send((seconds[1:], peak_memory()))  # the first call of a turn finds cold caches
    except Exception as error:
        connection.send(str(error) or type(error).__name__)


def _load(task: str, folder: str, setting: Setting, threads: int | None) -> tuple[Callable[[torch.Tensor], Any], int]:
    from ..pipelines import pipeline

    tune_allocator()
    options = {"quantization": setting.quantization, "dtype": setting.dtype, "threads": threads}
    model = pipeline(task, folder, backend=setting.backend, trust_remote_code=False, **options).model
    if setting.backend == "torch":
        files = Path(folder).glob("*.safetensors")
        size, dtype = sum(file.stat().st_size for file in files), model.dtype
        return torch.inference_mode()(lambda pixels: model(pixel_values=pixels.to(dtype))), size
    return lambda pixels: model(pixel_values=pixels), model.file_bytes


# --- in the one that measures ----------------------------------------------------------------------------------------


class Engine:
    """An engine's process.

    Raises:
        ValueError: If it can't run the model.
    """

    def __init__(self, task: str, folder: Path, setting: Setting, threads: int | None) -> None:
        # Not forked: an engine's threads don't survive that.
        context = get_context("spawn")
        self.setting = setting
        self.connection, theirs = context.Pipe()
        arguments = (theirs, task, os.fspath(folder), setting, threads)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.file_bytes: int = self._receive()

    def time(self, shape: tuple[int, int, int], calls: int) -> tuple[list[float], float]:
        """The seconds of each of so many calls on (B, H, W) images, and the peak memory in MiB."""
        self.connection.send((*shape, calls))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join()

    def _receive(self) -> Any:
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            answer = f"its process ended with code {self.process.exitcode}"
        if isinstance(answer, str):
            raise ValueError(f"{self.setting}: {answer}")
        return answer


def measure(
    task: str,
    folder: Path,
    settings: Sequence[Setting],
    shapes: Sequence[tuple[int, int, int]],
    rounds: int,
    threads: int | None = None,
) -> Iterator[Timing]:
    """Time a model on engines, which take turns, so that a machine that slows down on the way slows all of them.

    Args:
        task: The model's.
        folder: Where it is.
        settings: The engines.
        shapes: (B, H, W) of the images, random ones.
        rounds: Turns of each engine for each shape.
        threads: For each engine. Default: torch's number, which follows the machine.

    Raises:
        ValueError: If an engine can't run the model.
    """
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(contextlib.closing(Engine(task, folder, setting, threads))) for setting in settings
        ]
        for shape in shapes:
            calls = [max(1, round(TURN_SECONDS / statistics.mean(engine.time(shape, 1)[0]))) for engine in engines]
            seconds: list[list[float]] = [[] for _ in engines]
            peaks = [0.0] * len(engines)
            for turn in range(rounds):
                for place in [(turn + shift) % len(engines) for shift in range(len(engines))]:
                    found, peaks[place] = engines[place].time(shape, calls[place])
                    seconds[place] += found
            for engine, times, peak in zip(engines, seconds, peaks, strict=True):
                median = statistics.median(times)
                p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else median
                yield Timing(
                    engine.setting, *shape, median * 1000, p95 * 1000, shape[0] / median, peak, engine.file_bytes
                )


def possible_settings(task: str) -> list[Setting]:
    """Every engine that is installed and can run the task, in float32."""
    found = [Setting("torch", "float32", None)]
    for name in BACKENDS[1:]:
        with contextlib.suppress(ValueError):
            check_request(name, task, "float32", None)
            found.append(Setting(name, "float32", None))
    return found
