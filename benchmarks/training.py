"""Training from image files: a plain loop with timm, transformers' Trainer, and ours; all in float32 on the CPU.

All train new weights on the same files, with AdamW, and make of each image a random resized crop of the same size,
mirrored half the time. A call is an epoch of full batches: the time from the last step of one epoch to the last step
of the next, loading included. What comes before the first epoch and behind the last isn't timed, and nothing is
evaluated or saved in between.
"""

import argparse
import contextlib
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import side_by_side
from data import choose_images
from side_by_side import ALLOCATORS, OURS, VARIANTS, Candidate

CANDIDATES = {
    "timm": Candidate("timm", "timm"),
    "Trainer": Candidate("transformers", "transformers.trainer"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.training.trainer"),
}
EPOCHS = 100  # of the training that is watched, most of which never come
NEVER = 1e9  # steps
CROP_SCALE = (0.35, 1.0)  # as in our default recipe
LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 1e-3, 0.01, 0.1
OWN_WORKERS = "own"
END = object()  # no more turns


@dataclass(frozen=True)
class Case:
    """One setting in which all candidates are compared.

    Args:
        data: Where the images are, in folders by class.
        runs: An empty folder for what trainings write.
        classes: How many classes there are.
        batches: Batches in an epoch, all of them full.
        variant: "xxs", "xs" or "s".
        size: Height and width of the images that the model sees.
        workers: Processes that decode; 0 for the one that trains, "own" for each candidate's default.
        batch: Images in a batch.
        allocator: A key of `side_by_side.ALLOCATORS`.
        threads: PyTorch's number of threads, None for its default.
        fields: The config of the variant, for the candidates whose class takes one.
    """

    data: str
    runs: str
    classes: int
    batches: int
    variant: str
    size: int
    workers: int | str
    batch: int
    allocator: str
    threads: int | None
    fields: dict[str, Any]

    def __str__(self) -> str:
        setting = f"{self.variant}, {self.size}x{self.size}, batch {self.batch}, {self.workers} workers"
        return f"{setting}, allocator: {self.allocator}"

    def loader_options(self) -> dict[str, Any]:
        """What PyTorch's loader is told by whoever isn't ours; its default is no worker."""
        workers = 0 if self.workers == OWN_WORKERS else self.workers
        return {"num_workers": workers, "persistent_workers": workers > 0}


AfterStep = Callable[[], bool]
Training = Callable[[AfterStep], None]


def train_in_turns(training: Training, turns: Iterator[None], steps: int) -> None:
    """Train for an epoch when it is this process's turn, and wait in between.

    Args:
        training: Trains; calls its argument after every step, which returns whether it has waited.
        turns: As `side_by_side.take_turns` makes them.
        steps: Steps in an epoch.
    """
    count = 0

    def wait_for_turn() -> None:
        if next(turns, END) is END:
            sys.exit()

    def after_step() -> bool:
        nonlocal count
        count += 1
        if count % steps:
            return False
        wait_for_turn()
        return True

    wait_for_turn()
    training(after_step)
    raise RuntimeError(f"the training is over after {count} steps. Lower --rounds or raise --batches.")


def image_folder(case: Case) -> Any:
    """The images for timm and Trainer: torchvision's dataset and transforms, as in transformers' examples."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(case.size, CROP_SCALE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    return ImageFolder(case.data, transforms.Compose(steps))


def train_timm(case: Case, after_step: AfterStep) -> None:
    """A loop as one writes it: cross entropy, fused AdamW, a cosine, channels_last."""
    import timm
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    model = timm.create_model(f"mobilevit_{case.variant}", num_classes=case.classes)
    model = model.to(memory_format=torch.channels_last).train()
    loader = DataLoader(image_folder(case), case.batch, shuffle=True, **case.loader_options())
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * case.batches)
    for _ in range(EPOCHS):
        for images, labels in loader:
            logits = model(images.to(memory_format=torch.channels_last))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING).backward()
            optimizer.step()
            schedule.step()
            after_step()


def collate(samples: list[tuple[Any, int]]) -> dict[str, Any]:
    """Images and classes as the model's arguments."""
    import torch

    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def train_trainer(case: Case, after_step: AfterStep) -> None:
    """transformers' Trainer and MobileViT, with PyTorch's initialization as in `side_by_side.build_model`."""
    from transformers import (
        MobileViTConfig,
        MobileViTForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Watcher(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            after_step()

    model = MobileViTForImageClassification(MobileViTConfig(**case.fields, num_labels=case.classes))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    arguments = TrainingArguments(
        f"{case.runs}/trainer",
        per_device_train_batch_size=case.batch,
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        label_smoothing_factor=LABEL_SMOOTHING,
        lr_scheduler_type="cosine",
        save_strategy="no",
        remove_unused_columns=False,
        **{f"dataloader_{name}": value for name, value in case.loader_options().items()},
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    dataset = image_folder(case)
    Trainer(model, arguments, train_dataset=dataset, data_collator=collate, callbacks=[Watcher()]).train()


def train_ours(case: Case, after_step: AfterStep) -> None:
    """Our default recipe, but for images of one size, with a line in metrics.jsonl for each epoch."""
    from mobilevit_hf.training import trainer
    from mobilevit_hf.training.arguments import TrainArguments
    from mobilevit_hf.training.callbacks import TrainerCallback, TrainingProgress

    class Watcher(TrainerCallback):
        def on_progress(self, progress: TrainingProgress) -> None:
            if after_step():
                training.meter.skip()  # the others' turns are no part of the line

    trainer.SAVE_SECONDS = math.inf  # nor a reason to save
    arguments = TrainArguments(
        data=case.data,
        model=case.variant,
        output_dir=f"{case.runs}/{OURS}",
        image_size=case.size,
        multi_scale="off",
        per_device_train_batch_size=case.batch,
        num_train_epochs=EPOCHS,
        validation_fraction=0.0,
        max_bad=0.0,  # all train on the same images
        eval_steps=NEVER,
        save_steps=NEVER,
        logging_steps=case.batches,
        dataloader_num_workers=None if case.workers == OWN_WORKERS else case.workers,
        use_cpu=True,
    )
    training = trainer.create_trainer(arguments, Watcher())
    training.train()


TRAININGS = {"timm": train_timm, "Trainer": train_trainer, OURS: train_ours}


def build(candidate: str, case: Case) -> Training:
    """One long training, which is given what to call after every step."""
    return partial(TRAININGS[candidate], case)


def waiting_for_data(case: Case) -> float:
    """The share of its time, 0..1, that ours waited for images: median over the epochs behind the first."""
    lines = map(json.loads, Path(case.runs, OURS, "metrics.jsonl").read_text().splitlines())
    return statistics.median(line["waiting_for_data"] for line in lines if line["step"] > case.batches)


def copy_images(source: Path, folder: Path, count: int) -> int:
    """Fill `folder` with `count` of the source's images, in folders by class. (Ours follows no links out.)

    Returns:
        The number of classes.
    """
    chosen = choose_images(source, count)
    classes = {path.parent.name for path in chosen}
    if len(classes) < 2:
        sys.exit(f"{source}: got images of one class, expected two or more. Give a folder of folders by class.")
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number, path in enumerate(chosen):
        shutil.copyfile(path, folder / path.parent.name / f"{number:06}{path.suffix}")
    return len(classes)


def main() -> None:
    """The command line; a worker's too."""
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        candidate = request["candidate"]
        case = Case(**request["case"])
        run = partial(train_in_turns, steps=case.batches)
        side_by_side.serve(build, CANDIDATES[candidate].module, candidate, case, run)
        return
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of images, in folders by class")
    parser.add_argument("--batches", type=int, default=8, help="in an epoch, all of them full")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["xxs"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[160], help="height and width that the model sees")
    parser.add_argument(
        "--workers",
        nargs="+",
        type=lambda text: text if text == OWN_WORKERS else int(text),
        default=[0, OWN_WORKERS],
        help="processes that decode; own: each one's default",
    )
    parser.add_argument("--batch", type=int, default=32, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each candidate")
    parser.add_argument("--allocator", choices=(*ALLOCATORS, "both"), default="both", help="; ".join(ALLOCATORS))
    parser.add_argument("--threads", type=int, help="PyTorch's threads (its own choice if not given)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    args = parser.parse_args()
    facts, candidates, results = side_by_side.machine_facts(), list(side_by_side.available(CANDIDATES)), []
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        cases = build_cases(args, Path(name))
        for number, case in enumerate(cases, start=1):
            print(f"[{number}/{len(cases)}] {case}", file=sys.stderr, flush=True)
            try:
                result = side_by_side.compare(case, candidates, args.rounds)
            except side_by_side.WorkerError as error:
                sys.exit(f"\nA candidate failed. {error}")
            results.append(result | {"waiting_for_data": waiting_for_data(case)})
    print_report(results, facts)
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "notes": NOTES, "results": results}, indent=2) + "\n")


def build_cases(args: argparse.Namespace, folder: Path) -> list[Case]:
    """Every combination asked for, all with the same images."""
    from mobilevit_hf import MobileViTConfig

    data = folder / "images"
    classes = copy_images(args.data, data, args.batches * args.batch)
    allocators = list(ALLOCATORS) if args.allocator == "both" else [args.allocator]
    names = ("hidden_sizes", "neck_hidden_sizes", "expand_ratio", "hidden_dropout_prob")
    cases = []
    for allocator, variant, size, workers in product(allocators, args.variants, args.sizes, args.workers):
        config = MobileViTConfig.from_variant(variant)
        cases.append(
            Case(
                data=str(data),
                runs=str(folder / f"runs-{len(cases)}"),
                classes=classes,
                batches=args.batches,
                variant=variant,
                size=size,
                workers=workers,
                batch=args.batch,
                allocator=allocator,
                threads=args.threads,
                fields={name: getattr(config, name) for name in names},
            )
        )
    return cases


NOTES = (
    "images/s: of an epoch, median over the rounds. faster by: the candidate's time over ours in the same round, "
    "median. waits: the share of its time that ours waits for images, by its metrics.jsonl.",
    "Own workers: ours has one where there is a second core, the others have none.",
    "Ours trains by its default recipe, but for images of one size: it also averages the weights, and has the "
    "config's dropout and clipped gradients as Trainer has; timm's loop has none of these, which is in its favor.",
)


def print_report(results: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Images a second of each, how many times theirs ours are, and how long ours waits for them."""
    for allocator, meaning in ALLOCATORS.items():
        rows = [result for result in results if result["allocator"] == allocator]
        if rows:
            print(f"{meaning[0].upper()}{meaning[1:]}.")
            print(f"{'case':<36} {'candidate':<9} {'images/s':>8} {'ours is faster by':>18} {'ours waits':>11}")
        for result in rows:
            images = result["batches"] * result["batch"]
            sizes = f"{result['size']}x{result['size']}, batch {result['batch']}"
            case = f"{result['variant']}, {sizes}, {result['workers']} workers"
            for name, row in result["candidates"].items():
                rate = images / statistics.median(row["rounds_ms"]) * 1000
                waits = f"{result['waiting_for_data']:.1%}" if name == OURS else ""
                print(f"{case:<36} {name:<9} {rate:>8.1f} {row['times_ours']:>17.2f}x {waits:>11}")
        print()
    print("\n".join(NOTES))
    facts = {**facts, "threads": ", ".join(map(str, sorted({result["threads"] for result in results})))}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
