"""The data of a training: read, checked, and in batches."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data.checks import DatasetReport, check_dataset, drop_bad
from ..data.dataloader import ImageDataset, ImageStream, make_loader
from ..data.reading import load_dataset
from ..data.sampler import BatchShape, Draw, TrainingBatches, scale_batches
from ..data.transforms import make_transform
from ..data.types import Dataset
from .arguments import TrainArguments
from .initialization import STRIDE, Start
from .tasks import TrainingTask

# The paper's sizes of training images, over the size that the model is tested with.
LEAST_SCALE, GREATEST_SCALE, NUM_SCALES = 160 / 256, 320 / 256, 5
# Growing images: from which share of the training on, and how large over the size that the model is tested with.
GROWTH = ((0.0, 0.625), (0.25, 0.8), (0.5, 1.0))

MAX_WORKERS = 8


def read_data(arguments: TrainArguments, accelerator: Accelerator) -> tuple[Dataset, DatasetReport]:
    """The dataset without what is bad, and a report of it. One process looks at the images, for all of them.

    Raises:
        ValueError: If there is no such dataset, it has no training images, or too much of it is bad.
    """
    dataset = load_dataset(
        arguments.data,
        data_format=arguments.data_format,
        validation_fraction=arguments.validation_fraction,
        streaming=arguments.streaming,
    )
    if "train" not in dataset.splits:
        raise ValueError(f"{arguments.data} has no training split: got {', '.join(dataset.splits)}. Add one.")
    dataset.splits.pop("test", None)  # not looked at before `mobilevit evaluate`
    reports: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            reports = [check_dataset(dataset)]
        except Exception as error:  # raised again below, in all processes
            reports = [error]
    broadcast_object_list(reports)
    if isinstance(reports[0], Exception):
        raise reports[0]
    return drop_bad(dataset, reports[0], arguments.max_bad), reports[0]


def batch_shapes(multi_scale: str, image_size: int, batch_size: int, progress: float) -> list[BatchShape]:
    """The shapes that the batches of an epoch can have.

    Args:
        multi_scale: "off": one; "on": the paper's five sizes around the model's (section 3.3), with as many pixels in
            a batch; "progressive": images grow (arXiv 2104.00298, section 4), and a batch stays one of `batch_size`.
        image_size: Side of the images the model is tested with, in pixels.
        batch_size: Images in a batch at that size.
        progress: How much of the training lies behind, 0..1.
    """
    base = BatchShape(image_size, image_size, batch_size)
    if multi_scale == "off":
        return [base]
    if multi_scale == "on":
        sides = (round(LEAST_SCALE * image_size), round(GREATEST_SCALE * image_size))
        return scale_batches(base, heights=sides, widths=sides, num_scales=NUM_SCALES, divisor=STRIDE)
    share = [share for start, share in GROWTH if progress >= start][-1]
    side = min(image_size, max(2 * STRIDE, math.ceil(share * image_size / STRIDE) * STRIDE))
    return [BatchShape(side, side, batch_size)]


class TrainingInputs:
    """The batches of a training, one epoch after the other.

    Args:
        arguments: Those of the training, complete for the task.
        task: What is trained.
        start: Its model and image processor.
        accelerator: Which of the processes this is, and where batches go.
    """

    def __init__(self, arguments: TrainArguments, task: TrainingTask, start: Start, accelerator: Accelerator) -> None:
        self.arguments, self.image_size, self.accelerator = arguments, start.image_size, accelerator
        self.samples = task.dataset.splits["train"]
        processor, name = start.processor, task.dataset.task
        transform = make_transform(name, processor, training=True, **task.augmentation())
        shares = {"rank": accelerator.process_index, "num_replicas": accelerator.num_processes}
        batch_size, seed = arguments.per_device_train_batch_size, arguments.seed
        self.batches = None
        if isinstance(self.samples, Sequence):
            self.batches = TrainingBatches(len(self.samples), self._shapes(0.0), seed=seed, **shares)
            data = ImageDataset(self.samples, transform, task.mix())
        else:
            size = (start.image_size, start.image_size)
            data = self.stream = ImageStream(
                self.samples, transform, batch_size, size, mix=task.mix(), seed=seed, **shares
            )
        self.loader = make_loader(
            data, self.batches, num_workers=self._num_workers(), pin_memory=accelerator.device.type == "cuda"
        )

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch at the model's size, None if nobody knows."""
        if self.batches is None:
            return None
        images = self.arguments.per_device_train_batch_size * self.arguments.gradient_accumulation_steps
        return -(-len(self.samples) // (images * self.accelerator.num_processes))

    @property
    def batches_per_epoch(self) -> int | None:
        """How many batches this process has in the current epoch, None if nobody knows."""
        return None if self.batches is None else len(self.batches) + self.batches.start_batch

    def epoch(self, number: int, start_batch: int, progress: float) -> Iterator[tuple[list[Draw], dict[str, Any]]]:
        """The batches of an epoch from one on, with what was drawn for each (nothing is known of a stream's).

        Args:
            number: The epoch's.
            start_batch: The first batch to return.
            progress: How much of the training lay behind when the epoch began, 0..1.
        """
        if self.batches is None:
            self.stream.set_epoch(number)
            for place, batch in enumerate(self.loader):
                if place >= start_batch:
                    yield [], self._to_device(batch)
            return
        self.batches.shapes = self._shapes(progress)
        self.batches.set_epoch(number, start_batch)
        for draws, batch in zip(self.batches, self.loader, strict=True):
            yield draws, self._to_device(batch)

    def close(self) -> None:
        """End the processes that load, which else would wait for Python's exit; there are no more epochs."""
        self.loader = None

    def names(self, draws: Sequence[Draw]) -> list[str]:
        """The names of the images of a batch."""
        return [self.samples[draw.index].name for draw in draws]

    def _shapes(self, progress: float) -> list[BatchShape]:
        a = self.arguments
        return batch_shapes(a.multi_scale, self.image_size, a.per_device_train_batch_size, progress)

    def _num_workers(self) -> int:
        """As asked for, or so many that loading keeps up: on a CPU one, which works while the model computes."""
        if self.arguments.dataloader_num_workers is not None:
            return self.arguments.dataloader_num_workers
        cores = torch.multiprocessing.cpu_count() // self.accelerator.num_processes
        return max(0, min(1 if self.accelerator.device.type == "cpu" else MAX_WORKERS, cores - 1))

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device, labels = self.accelerator.device, batch["labels"]
        if not isinstance(labels, torch.Tensor):
            labels = [{name: value.to(device, non_blocking=True) for name, value in label.items()} for label in labels]
        else:
            labels = labels.to(device, non_blocking=True)
        return {"pixel_values": batch["pixel_values"].to(device, non_blocking=True), "labels": labels}
