"""Time data loading: timm's loader, torchvision's datasets and transforms, and ours.

All read the same files and apply a random resized crop and a horizontal flip with probability 0.5; pixels are
floats in 0..1. A call is an epoch.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_by_side import describe_environment
from workers import OURS, Call, Candidate, WorkerError, available, compare, serve

CANDIDATES = {
    "torchvision": Candidate("torchvision", "torchvision"),
    "timm": Candidate("timm", "timm.data"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.data.dataloader"),
}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}  # read by all candidates


@dataclass(frozen=True)
class Case:
    """A setting in which all candidates are compared.

    Attributes:
        folder: Folder of images, in folders by class.
        images: Number of images.
        size: Height and width after the crop.
        workers: Number of loader processes; 0 decodes in the main process.
        batch: Batch size.
        allocator: "same", see `side_by_side`.
        threads: PyTorch's number of threads.
    """

    folder: str
    images: int
    size: int
    workers: int
    batch: int
    allocator: str = "same"
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.size}x{self.size}, {self.workers} workers, batch {self.batch}"


def torchvision_loader(case: Case) -> Iterable[Any]:
    """Return a loader as in torchvision's documentation, with uint8 tensors until the last transform."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = [
        v2.ToImage(),
        v2.RandomResizedCrop(case.size, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    return DataLoader(
        ImageFolder(case.folder, v2.Compose(steps)),
        case.batch,
        shuffle=True,
        num_workers=case.workers,
        persistent_workers=case.workers > 0,
    )


def timm_loader(case: Case) -> Iterable[Any]:
    """Return timm's loader with its prefetcher, which collates uint8 and converts to float afterwards."""
    import torch
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", root=case.folder),
        (3, case.size, case.size),
        case.batch,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=case.workers,
        persistent_workers=case.workers > 0,
        pin_memory=False,
        device=torch.device("cpu"),
    )


def our_loader(case: Case) -> Iterable[Any]:
    """Return our loader with an RGB, bilinear image processor."""
    from transformers import MobileViTImageProcessor

    from mobilevit_hf.data.dataloader import ImageDataset, make_dataloader
    from mobilevit_hf.data.sampler import BatchShape, MultiScaleBatchSampler
    from mobilevit_hf.data.transforms import make_transform
    from mobilevit_hf.data.types import Sample

    crop_size = {"height": case.size, "width": case.size}
    processor = MobileViTImageProcessor(crop_size=crop_size, resample=2, do_flip_channel_order=False)
    samples = [Sample(str(path), str(path), label=0) for path in sorted(Path(case.folder).rglob("*.*"))]
    transform = make_transform("image-classification", processor, training=True)
    batches = MultiScaleBatchSampler(len(samples), [BatchShape(case.size, case.size, case.batch)])
    return make_dataloader(ImageDataset(samples, transform), batches, num_workers=case.workers)


LOADERS = {"torchvision": torchvision_loader, "timm": timm_loader, OURS: our_loader}


def build(candidate: str, case: Case) -> Call:
    """Return a call that loads one epoch."""
    import torch

    loader = LOADERS[candidate](case)

    def call() -> None:
        for batch in loader:
            images = batch["pixel_values"] if isinstance(batch, dict) else batch[0]
            assert images.dtype == torch.float32
            assert images.shape[1:] == (3, case.size, case.size)
            assert 0 <= images.min() <= images.max() <= 1.001

    return call


def choose_images(source: Path, count: int) -> list[Path]:
    """Return `count` images of a folder, evenly spaced in sorted order."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < count:
        sys.exit(f"{source}: got {len(paths)} images, expected at least {count}. Decrease --batches or --batch.")
    return paths[:: len(paths) // count][:count]


def link_images(source: Path, folder: Path, count: int) -> None:
    """Link `count` images of the source into `folder` as a dataset of one class."""
    (folder / "all").mkdir()
    for number, path in enumerate(choose_images(source, count)):
        (folder / "all" / f"{number:06}{path.suffix}").symlink_to(path.resolve())


def main() -> None:
    """Run the command line, or a worker process."""
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        candidate = request["candidate"]
        serve(build, CANDIDATES[candidate].module, candidate, Case(**request["case"]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of images, searched recursively")
    parser.add_argument("--batches", type=int, default=16, help="full batches per epoch")
    parser.add_argument("--sizes", nargs="+", type=int, default=[160, 256], help="height and width after the crop")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="number of loader processes")
    parser.add_argument("--batch", type=int, default=32, help="batch size")
    parser.add_argument("--rounds", type=int, default=7, help="rounds per candidate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    args = parser.parse_args()
    count = args.batches * args.batch
    environment, candidates, results = describe_environment(), available(CANDIDATES), []
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        link_images(args.data, Path(name), count)
        for size in args.sizes:
            for workers in args.workers:
                case = Case(name, count, size, workers, args.batch)
                print(case, file=sys.stderr, flush=True)
                try:
                    results.append(compare(case, candidates, args.rounds))
                except WorkerError as error:
                    sys.exit(f"\nA candidate failed. {error}")
    print_report(results, environment)
    if args.json:
        args.json.write_text(
            json.dumps({"environment": environment, "results": results}, indent=2) + "\n", encoding="utf-8"
        )


def print_report(results: list[dict[str, Any]], environment: dict[str, Any]) -> None:
    """Print throughput and speedup of ours."""
    print(f"{'case':<22} {'candidate':<12} {'images/s':>10} {'speedup of ours':>18}")
    for result in results:
        for name, row in result["candidates"].items():
            rate = result["images"] / statistics.median(row["rounds_ms"]) * 1000
            case = f"{result['size']}x{result['size']}, {result['workers']} workers"
            print(f"{case:<22} {name:<12} {rate:>10.0f} {row['speedup_of_ours']:>17.2f}x")
    print(
        "images/s: median over the rounds. speedup of ours: duration of the candidate divided by that of ours in the "
        "same round, median.\nData loading only, without a model."
    )
    print("\n".join(f"{name}: {value}" for name, value in environment.items()))


if __name__ == "__main__":
    main()
