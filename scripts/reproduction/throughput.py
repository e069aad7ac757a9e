"""Throughput model of a training: the time that data loading, GPUs and network need, and which of them limits.

Per step, the slower of two counts, as workers load the next batches while a step is computed:

    loading      images of a step / (loading processes x images/s of one core)
    computation  images of a GPU / (images/s of one GPU) + bytes of the all-reduce / bandwidth

The gradients are averaged after the backward pass, in a ring: each of N GPUs sends and receives 2 (N - 1) / N times
the size of the parameters in float32.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from mobilevit_hf.io import read_json, write_text

BYTES = 4  # of a float32 gradient
BACKWARD = 2  # FLOPs of a backward pass, as a multiple of those of the forward pass
MEASURED_FILE = "throughput.json"
PART = 8  # images of a batch that the measurement of the loading reads


@dataclass(frozen=True)
class Rates:
    """Measured rates in images per second.

    Attributes:
        load: Training images that one core decodes, augments and collates.
        prepare: Validation images that one core decodes and preprocesses.
        gpu: Training images of one GPU with random inputs: forward, backward, AdamW and EMA; None if not measured.
        hardware: Processor and GPU of the measurement.
    """

    load: float
    prepare: float
    gpu: float | None = None
    hardware: str = ""


@dataclass(frozen=True)
class Workload:
    """What a training computes.

    Attributes:
        images: Number of training images.
        epochs: Number of passes over them.
        step_images: Mean number of images per step and process.
        processes: Number of processes, with one GPU each.
        loaders: Loading processes of all processes together.
        parameters: Number of trained parameters.
        macs: Multiply-accumulates of the forward pass of an image, on average over the image sizes.
        validation_images: Number of validation images.
        evaluations: Number of evaluations on them.
    """

    images: int
    epochs: float
    step_images: float
    processes: int
    loaders: int
    parameters: int
    macs: float
    validation_images: int
    evaluations: int

    @property
    def steps(self) -> float:
        """Number of optimizer steps."""
        return self.images * self.epochs / (self.step_images * self.processes)

    @property
    def flops(self) -> float:
        """Floating-point operations of forward and backward passes of the training, two per multiply-accumulate."""
        return 2 * (1 + BACKWARD) * self.macs * self.images * self.epochs

    @property
    def all_reduce_bytes(self) -> float:
        """Bytes that each GPU sends, and receives, per step."""
        return BYTES * self.parameters * 2 * (self.processes - 1) / self.processes


@dataclass(frozen=True)
class Estimate:
    """Hours of the parts of a training; `compute` is None, and `total` a lower bound, if the GPU was not measured."""

    load: float
    compute: float | None
    all_reduce: float
    evaluate: float
    total: float
    limit: str


def estimate(workload: Workload, rates: Rates, *, cores: int, bandwidth: float) -> Estimate:
    """Estimate the duration of a training.

    Args:
        workload: Training.
        rates: Measured rates.
        cores: CPU cores of all machines together.
        bandwidth: Bytes per second between GPUs, in one direction.
    """
    loaders = min(workload.loaders, cores)
    step_images = workload.step_images * workload.processes
    load = step_images / (loaders * rates.load)
    all_reduce = workload.all_reduce_bytes / bandwidth
    compute = workload.step_images / rates.gpu if rates.gpu else None
    parts = {"data loading": load, "computation": (compute or 0.0) + all_reduce}
    # Every image is also decoded once in the check before the training.
    checked = workload.images + (1 + workload.evaluations) * workload.validation_images
    evaluate = checked / (cores * rates.prepare)
    hours = workload.steps / 3600
    return Estimate(
        load=load * hours,
        compute=None if compute is None else compute * hours,
        all_reduce=all_reduce * hours,
        evaluate=evaluate / 3600,
        total=max(parts.values()) * hours + evaluate / 3600,
        limit=max(parts, key=lambda name: parts[name]) if rates.gpu else "not known without a measured GPU",
    )


def describe(
    workload: Workload, rates: Rates, *, cores: int, bandwidth: float, price: float | None = None
) -> list[str]:
    """Return the estimate as lines; `price` is that of a GPU hour."""
    result = estimate(workload, rates, cores=cores, bandwidth=bandwidth)
    processes, loaders = workload.processes, min(workload.loaders, cores)
    gpu = f"{rates.gpu:,.0f} images/s" if rates.gpu else "not measured; use --measure or --gpu-images-per-second"
    computed = "" if result.compute is None else f" -> {result.compute:.1f} h"
    rows = {
        "training": f"{workload.steps:,.0f} steps of {processes} x {workload.step_images:.1f} images, "
        f"{workload.epochs:g} epochs of {workload.images:,}",
        "model": f"{workload.parameters / 1e6:.2f} M parameters, {workload.macs / 1e9:.2f} G multiply-accumulates per "
        f"image, {workload.flops:.2g} FLOPs in total",
        "data loading": f"{rates.load:.0f} images/s per core ({rates.hardware}) x {loaders} processes -> "
        f"{result.load:.1f} h",
        "GPU": f"{gpu}{computed}",
        "all-reduce": f"{workload.all_reduce_bytes / 1e6:.1f} MB per step and GPU at {bandwidth / 1e9:g} GB/s -> "
        f"{result.all_reduce:.2f} h",
        "evaluation": f"{workload.evaluations} x {workload.validation_images:,} images, and one check of all, at "
        f"{rates.prepare:.0f} images/s per core x {cores} cores -> {result.evaluate:.1f} h",
        "total": f"{'' if rates.gpu else 'at least '}{result.total:.1f} h; limit: {result.limit}",
    }
    if price is not None:
        cost = result.total * processes * price
        rows["cost"] = f"{'' if rates.gpu else 'at least '}{cost:,.0f} at {price:g} per GPU hour"
    return [f"  {name:<13} {text}" for name, text in rows.items()]


# --- measurement -----------------------------------------------------------------------------------------------------


def measure_rate(step: Callable[[], int], seconds: float) -> float:
    """Return the images per CPU second of a function that returns its number of images, without its first call.

    CPU seconds are those of a core that other programs don't share.
    """
    step()
    images, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds or not images:
        images += step()
    return images / elapsed


def measure_loading(
    task: Any, processor: Any, samples: Sequence[Any], shapes: list[Any], options: dict[str, Any], seconds: float
) -> float:
    """Return the training images per second that this process decodes and augments, on one thread.

    Args:
        task: Task name.
        processor: Image processor of the model.
        samples: Samples of a dataset, which are repeated.
        shapes: Batch shapes, `BatchShape`; each step has a random one.
        options: Options of the training transform.
        seconds: Duration of the measurement.
    """
    from mobilevit_hf.data.dataloader import ImageDataset
    from mobilevit_hf.data.sampler import MultiScaleBatchSampler
    from mobilevit_hf.data.transforms import make_transform

    size = 4 * max(shape.size for shape in shapes)
    repeated = [samples[number % len(samples)] for number in range(size)]
    dataset = ImageDataset(repeated, make_transform(task, processor, training=True, **options))
    sampler = MultiScaleBatchSampler(size, shapes)
    # Parts of the batches, so that a measurement of seconds covers all shapes as often as a training.
    specs = cycle(spec for batch in sampler for spec in batch[:: max(1, len(batch) // PART)])
    return measure_rate(lambda: len(dataset.__getitems__([next(specs)])["pixel_values"]), seconds)


def measure_preparation(processor: Any, samples: Sequence[Any], seconds: float) -> float:
    """Return the validation images per second that this process decodes and preprocesses, on one thread."""
    from mobilevit_hf.data.images import load_image

    images = cycle([sample.image for sample in samples])
    return measure_rate(
        lambda: len(processor(images=[load_image(next(images))], return_tensors="pt")["pixel_values"]), seconds
    )


def measure_gpu(
    model: Any, make_labels: Callable[[int, int, int], Any], shapes: list[Any], device: str, precision: str, steps: int
) -> float:
    """Return the training images per second of a device with random inputs, on average over the batch shapes.

    Args:
        model: Model in training mode, which returns a loss.
        make_labels: Function that returns labels for a number of images, a height and a width.
        shapes: Batch shapes, `BatchShape`, which a training uses equally often.
        device: Device.
        precision: fp16, bf16 or fp32.
        steps: Number of measured steps per shape; two before them are not measured.
    """
    import torch

    from mobilevit_hf.training.ema import EMA
    from mobilevit_hf.training.optimization import create_optimizer

    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer, ema = create_optimizer(model, learning_rate=1e-4, weight_decay=0.01), EMA(model, 0.9995, warmup=False)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    scaler = torch.amp.GradScaler(enabled=precision == "fp16" and device.startswith("cuda"))
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    images, seconds = 0, 0.0
    for height, width, size in shapes:
        pixels = torch.rand(size, 3, height, width, device=device).to(memory_format=torch.channels_last)
        labels = make_labels(size, height, width)
        start = 0.0
        for step in range(-2, steps):
            if step == 0:
                synchronize()
                start = time.perf_counter()
            with torch.autocast(device.partition(":")[0], dtype=dtype, enabled=dtype is not None):
                loss = model(pixel_values=pixels, labels=labels).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            ema.update()
        synchronize()
        images, seconds = images + size * steps, seconds + time.perf_counter() - start
    return images / seconds


def count_macs(model: Any, side: int) -> float:
    """Return the multiply-accumulates of convolutions, linear layers and attention products for a square image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(pixel_values=torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 2


def read_rates(folder: Path, default: Rates, variant: str) -> Rates:
    """Return the rates measured on this machine, of a file in a folder, or else the given ones."""
    path = folder / MEASURED_FILE
    values = read_json(path).get(variant) if path.is_file() else None
    return Rates(**values) if values else default


def write_rates(folder: Path, rates: Rates, variant: str) -> None:
    """Write the rates of a model to a file in a folder, next to those of others."""
    path = folder / MEASURED_FILE
    content = read_json(path) if path.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content | {variant: dataclasses.asdict(rates)}, indent=2) + "\n")
