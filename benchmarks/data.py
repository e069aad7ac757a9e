"""Batches of augmented images from files: timm's loader, torchvision's datasets and transforms, and ours.

All read the same files and make of each a random resized crop, mirrored half the time, as floats in 0..1. A call is an
epoch.
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

import side_by_side
from side_by_side import OURS, Call, Candidate

CANDIDATES = {
    "torchvision": Candidate("torchvision", "torchvision"),
    "timm": Candidate("timm", "timm.data"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf"),
}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}  # those that all candidates look for


@dataclass(frozen=True)
class Case:
    """One setting in which all candidates are compared.

    Args:
        folder: Where the images are, in folders by class.
        images: How many there are.
        size: Height and width that they are cropped and resized to.
        workers: Processes that decode; 0 for the one that waits.
        batch: Images in a batch.
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
    """As torchvision's documentation advises: tensors of bytes until the end."""
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
    """With its prefetcher, which collates bytes and makes them floats afterwards."""
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
    """With the image processor of a checkpoint from timm's colors: RGB, bilinear."""
    from transformers import MobileViTImageProcessor

    from mobilevit_hf.data.dataloader import ImageDataset, make_loader
    from mobilevit_hf.data.sampler import BatchShape, TrainingBatches
    from mobilevit_hf.data.transforms import make_transform
    from mobilevit_hf.data.types import Sample

    crop_size = {"height": case.size, "width": case.size}
    processor = MobileViTImageProcessor(crop_size=crop_size, resample=2, do_flip_channel_order=False)
    samples = [Sample(str(path), str(path), label=0) for path in sorted(Path(case.folder).rglob("*.*"))]
    transform = make_transform("image-classification", processor, training=True)
    batches = TrainingBatches(len(samples), [BatchShape(case.size, case.size, case.batch)])
    return make_loader(ImageDataset(samples, transform), batches, num_workers=case.workers)


LOADERS = {"torchvision": torchvision_loader, "timm": timm_loader, OURS: our_loader}


def build(candidate: str, case: Case) -> Call:
    """An epoch: every image once."""
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
    """So many of a folder's images, spread over all of them."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < count:
        sys.exit(f"{source}: got {len(paths)} images, expected {count} or more. Lower --batches or --batch.")
    return paths[:: len(paths) // count][:count]


def link_images(source: Path, folder: Path, count: int) -> None:
    """Make `folder` a dataset of one class with links to `count` of the source's images."""
    (folder / "all").mkdir()
    for number, path in enumerate(choose_images(source, count)):
        (folder / "all" / f"{number:06}{path.suffix}").symlink_to(path.resolve())


def main() -> None:
    """The command line; a worker's too."""
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        candidate = request["candidate"]
        side_by_side.serve(build, CANDIDATES[candidate].module, candidate, Case(**request["case"]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of images, with or without folders in it")
    parser.add_argument("--batches", type=int, default=16, help="in an epoch, all of them full")
    parser.add_argument("--sizes", nargs="+", type=int, default=[160, 256], help="height and width of the result")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="processes that decode")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each candidate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    args = parser.parse_args()
    count = args.batches * args.batch
    facts, candidates, results = side_by_side.machine_facts(), list(side_by_side.available(CANDIDATES)), []
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        link_images(args.data, Path(name), count)
        for size in args.sizes:
            for workers in args.workers:
                case = Case(name, count, size, workers, args.batch)
                print(case, file=sys.stderr, flush=True)
                try:
                    results.append(side_by_side.compare(case, candidates, args.rounds))
                except side_by_side.WorkerError as error:
                    sys.exit(f"\nA candidate failed. {error}")
    print_report(results, facts)
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "results": results}, indent=2) + "\n")


def print_report(results: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Images a second of each, and how many times theirs ours are."""
    print(f"{'case':<22} {'candidate':<12} {'images/s':>10} {'ours is faster by':>18}")
    for result in results:
        for name, row in result["candidates"].items():
            rate = result["images"] / statistics.median(row["rounds_ms"]) * 1000
            case = f"{result['size']}x{result['size']}, {result['workers']} workers"
            print(f"{case:<22} {name:<12} {rate:>10.0f} {row['times_ours']:>17.2f}x")
    print(
        "images/s: median over the rounds. faster by: the candidate's time over ours in the same round, median.\n"
        "Loading alone: nothing is computed with the batches."
    )
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
