"""Latency, throughput, memory and size of a model on each backend, in processes of their own that take turns."""

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
from torch.utils.flop_counter import FlopCounterMode

from ..allocator import tune_allocator
from ..environment import peak_memory
from ..model_sources import load_image_processor
from ..modeling.fused_mobilevit import fold_batch_norm
from ..tasks import TaskName
from .formats import AUTO, BACKENDS, DTYPES, FORMATS, QUANTIZATIONS, check_backend, dtype_name
from .loader import load_backend_model
from .pytorch import load_model

TURN_SECONDS = 0.5  # approximate
BUSY_RATIO = 1.5  # of p95 to the median, above which other programs disturbed the measurement


class Setting(NamedTuple):
    """A backend and its precision."""

    backend: str
    dtype: str
    quantization: str | None

    def __str__(self) -> str:
        precision = self.quantization or self.dtype
        return self.backend if precision == "float32" else f"{self.backend}:{precision}"


def parse_setting(text: str) -> Setting:
    """Parse `backend`, `backend:dtype` or `backend:int8`.

    Raises:
        ValueError: If the backend or the precision is unknown.
    """
    backend, _, precision = text.strip().partition(":")
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}.")
    if precision in QUANTIZATIONS:
        return Setting(backend, "float32", precision)
    setting = Setting(backend, dtype_name(precision or None), None)
    if setting[:2] == ("torch", AUTO):
        raise ValueError(f"dtype: got {AUTO} for torch, expected one of {', '.join(DTYPES)}.")
    return setting


def available_settings(task: str, *, any_size: bool = False) -> list[Setting]:
    """Return all installed backends that support the task, in float32.

    Args:
        any_size: Leave out backends whose files take images of the model's size only.
    """
    settings = [Setting("torch", "float32", None)]
    for name in BACKENDS[1:]:
        with contextlib.suppress(ValueError):
            check_backend(name, task, "float32", None)
            if FORMATS[name].dynamic_shapes or not any_size:
                settings.append(Setting(name, "float32", None))
    return settings


@dataclass(frozen=True)
class Timing:
    """A measurement of one backend at one batch and image size.

    Attributes:
        height, width: Image size in pixels.
        p50_ms, p95_ms: Median and 95th percentile of the milliseconds per call, from input tensor to output tensors.
        images_per_second: Throughput at the median.
        peak_mib: Peak resident memory of the process so far in MiB, libraries included.
        file_bytes: Size of the model file with its weights.
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

    @property
    def busy(self) -> bool:
        """Whether the machine was busy: p95 is over `BUSY_RATIO` times the median."""
        return self.p95_ms > BUSY_RATIO * self.p50_ms


def count_macs(model: nn.Module, height: int, width: int) -> int:
    """Return the multiply-accumulates for one image in convolutions and linear layers, without attention products.

    They are half the FLOPs that torch's `FlopCounterMode` counts.
    """
    model = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=torch.empty(1, 3, height, width, device="meta"))
    flops = counter.get_flop_counts()["Global"]
    operators = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
    return sum(flops.get(operator, 0) for operator in operators) // 2


def _serve(connection: Connection, task: TaskName, folder: str, setting: Setting, threads: int | None) -> None:
    """Send the file size, then the seconds per call and the peak memory for each received (B, H, W, calls)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # log messages of the runtimes
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
            connection.send((seconds[1:], peak_memory()))  # caches are cold in the first call of a turn
    except Exception as error:  # raised in the measuring process
        connection.send(str(error) or type(error).__name__)


def _load(
    task: TaskName, folder: str, setting: Setting, threads: int | None
) -> tuple[Callable[[torch.Tensor], Any], int]:
    tune_allocator()
    model, _ = load_model(task, folder, {"trust_remote_code": False})
    if setting.backend != "torch":
        processor = load_image_processor(folder, trust_remote_code=False)
        exported = load_backend_model(model, task, processor, **setting._asdict(), threads=threads, source=folder)
        return lambda pixels: exported(pixel_values=pixels), exported.file_bytes
    if setting.quantization:
        raise ValueError(
            f"quantization: got {setting.quantization!r} for torch, expected None. Use openvino, onnx or litert."
        )
    if threads:
        torch.set_num_threads(threads)
    dtype = getattr(torch, setting.dtype)
    fused = fold_batch_norm(model).to(dtype)
    file_bytes = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return torch.inference_mode()(lambda pixels: fused(pixel_values=pixels.to(dtype))), file_bytes


class BackendProcess:
    """The process of a backend. Its methods raise a ValueError if the backend can't run the model."""

    def __init__(self, task: TaskName, folder: Path, setting: Setting, threads: int | None) -> None:
        context = get_context("spawn")  # the runtimes' threads do not survive a fork
        self.setting = setting
        self.connection, child_connection = context.Pipe()
        arguments = (child_connection, task, os.fspath(folder), setting, threads)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        child_connection.close()
        self.file_bytes: int = self._receive()

    def time(self, shape: tuple[int, int, int], calls: int) -> tuple[list[float], float]:
        """Return the seconds of each of `calls` calls on (B, H, W) images, and the peak memory in MiB."""
        self.connection.send((*shape, calls))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join()

    def _receive(self) -> Any:
        try:
            message = self.connection.recv()
        except EOFError:
            self.process.join()
            message = f"its process ended with code {self.process.exitcode}"
        if isinstance(message, str):
            raise ValueError(f"{self.setting}: {message}")
        return message


def measure(
    task: TaskName,
    folder: Path,
    settings: Sequence[Setting],
    shapes: Sequence[tuple[int, int, int]],
    rounds: int,
    threads: int | None = None,
) -> Iterator[Timing]:
    """Time a model on backends that take turns, so that a slowdown of the machine affects all of them.

    Args:
        shapes: (B, H, W) of the random input images.
        rounds: Number of turns per backend and shape.
        threads: Number of threads per backend. Default: torch's number of threads.

    Raises:
        ValueError: If a backend can't run the model.
    """
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(contextlib.closing(BackendProcess(task, folder, setting, threads)))
            for setting in settings
        ]
        for shape in shapes:
            calls = [max(1, round(TURN_SECONDS / statistics.mean(each.time(shape, 1)[0]))) for each in processes]
            seconds: list[list[float]] = [[] for _ in processes]
            peaks = [0.0] * len(processes)
            for turn in range(rounds):
                for index in [(turn + offset) % len(processes) for offset in range(len(processes))]:
                    measured, peaks[index] = processes[index].time(shape, calls[index])
                    seconds[index] += measured
            for process, times, peak in zip(processes, seconds, peaks, strict=True):
                median = statistics.median(times)
                p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else median
                yield Timing(
                    process.setting, *shape, median * 1000, p95 * 1000, shape[0] / median, peak, process.file_bytes
                )
