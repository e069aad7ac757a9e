"""Time training from image files: a plain loop with timm, transformers' Trainer, and ours, in float32 on the CPU.

All train from scratch on the same files with AdamW, random resized crops of the same size and horizontal flips with
probability 0.5. A call is an epoch of full batches, timed from the last step of one epoch to the last step of the
next, data loading included. Setup before the first epoch is not timed; nothing is evaluated or saved.
"""

import argparse
import contextlib
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from data import choose_images
from side_by_side import ALLOCATORS, VARIANTS, describe_environment, print_environment
from workers import OURS, Candidate, WorkerError, available, compare, serve

CANDIDATES = {
    "timm": Candidate("timm", "timm"),
    "Trainer": Candidate("transformers", "transformers.trainer"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.training.trainer"),
}
EPOCHS = 100  # length of the schedule; the run is stopped after the last round
NEVER = 1e9  # steps
CROP_SCALE = (0.35, 1.0)  # as in the default recipe of ours
LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 1e-3, 0.01, 0.1
OWN_WORKERS = "own"
END = object()  # marks the end of the turns


@dataclass(frozen=True)
class Case:
    """A setting in which all candidates are compared.

    Attributes:
        data: Folder of images, in folders by class.
        runs: Empty folder for output directories.
        classes: Number of classes.
        batches: Full batches per epoch.
        variant: "xxs", "xs" or "s".
        size: Height and width of the model's input.
        workers: Number of loader processes; 0 decodes in the main process, "own" is each candidate's default.
        batch: Batch size.
        allocator: Key of `side_by_side.ALLOCATORS`.
        threads: PyTorch's number of threads, None for its default.
        fields: Configuration of the variant, for candidates with a configuration class.
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
        """Return worker options of PyTorch's loader, whose default is no worker, for timm and Trainer."""
        workers = 0 if self.workers == OWN_WORKERS else self.workers
        return {"num_workers": workers, "persistent_workers": workers > 0}


AfterStep = Callable[[], bool]
Training = Callable[[AfterStep], None]


def train_in_turns(training: Training, turns: Iterator[None], steps: int) -> None:
    """Train one epoch per turn.

    Args:
        training: Runs the training; calls its argument after every step, which returns whether it waited for a turn.
        turns: Iterator of `workers.take_turns`.
        steps: Steps per epoch.
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
    raise RuntimeError(f"training: ended after {count} steps. Decrease --rounds or increase --batches.")


def image_folder(case: Case) -> Any:
    """Return the dataset of timm and Trainer, with torchvision's transforms as in transformers' examples."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(case.size, CROP_SCALE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    return ImageFolder(case.data, transforms.Compose(steps))


def train_timm(case: Case, after_step: AfterStep) -> None:
    """Train timm's model in a plain loop: cross entropy, fused AdamW, cosine schedule, channels_last."""
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
    """Collate images and classes to keyword arguments of the model."""
    import torch

    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def train_trainer(case: Case, after_step: AfterStep) -> None:
    """Train the stock model with Trainer and PyTorch's initialization, see `side_by_side.build_model`."""
    from transformers import (
        MobileViTConfig,
        MobileViTForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class AfterStepCallback(TrainerCallback):
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
    Trainer(model, arguments, train_dataset=dataset, data_collator=collate, callbacks=[AfterStepCallback()]).train()


def train_ours(case: Case, after_step: AfterStep) -> None:
    """Train with our default recipe at a fixed image size; metrics.jsonl gets one line per epoch."""
    from mobilevit_hf.training import trainer as trainer_module
    from mobilevit_hf.training.arguments import TrainArguments
    from mobilevit_hf.training.callbacks import TrainerCallback, TrainingProgress

    class AfterStepCallback(TrainerCallback):
        def on_progress(self, progress: TrainingProgress) -> None:
            if after_step():
                trainer.meter.skip()  # excludes the turns of other candidates

    trainer_module.SAVE_SECONDS = math.inf  # no checkpoint because of the waiting time
    arguments = TrainArguments(
        data=case.data,
        model=case.variant,
        output_dir=f"{case.runs}/{OURS}",
        image_size=case.size,
        multi_scale="off",
        per_device_train_batch_size=case.batch,
        num_train_epochs=EPOCHS,
        validation_fraction=0.0,
        max_bad=0.0,  # all candidates train on the same images
        eval_steps=NEVER,
        save_steps=NEVER,
        logging_steps=case.batches,
        dataloader_num_workers=None if case.workers == OWN_WORKERS else case.workers,
        use_cpu=True,
    )
    callback = AfterStepCallback()
    Path(str(arguments.output_dir)).mkdir(parents=True)
    run = trainer_module.prepare_run(arguments, trainer_module.create_accelerator(arguments), callback)
    trainer = trainer_module.Trainer(run, callback, time.monotonic())
    trainer.train()


TRAININGS = {"timm": train_timm, "Trainer": train_trainer, OURS: train_ours}


def build(candidate: str, case: Case) -> Training:
    """Return the candidate's training, a function of the callback after each step."""
    return partial(TRAININGS[candidate], case)


def waiting_for_data(case: Case) -> float:
    """Return the fraction of time that ours waited for images, median over all epochs but the first."""
    lines = map(json.loads, Path(case.runs, OURS, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return statistics.median(line["waiting_for_data"] for line in lines if line["step"] > case.batches)


def copy_images(source: Path, folder: Path, count: int) -> int:
    """Copy `count` images of the source to `folder`, in folders by class (ours rejects links that lead outside).

    Returns:
        Number of classes.
    """
    chosen = choose_images(source, count)
    classes = {path.parent.name for path in chosen}
    if len(classes) < 2:
        sys.exit(f"{source}: got images of one class, expected at least two. Pass a folder with one folder per class.")
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number, path in enumerate(chosen):
        shutil.copyfile(path, folder / path.parent.name / f"{number:06}{path.suffix}")
    return len(classes)


def main() -> None:
    """Run the command line, or a worker process."""
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        candidate = request["candidate"]
        case = Case(**request["case"])
        run = partial(train_in_turns, steps=case.batches)
        serve(build, CANDIDATES[candidate].module, candidate, case, run)
        return
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with one folder of images per class")
    parser.add_argument("--batches", type=int, default=8, help="full batches per epoch")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["xxs"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[160], help="height and width of the model's input")
    parser.add_argument(
        "--workers",
        nargs="+",
        type=lambda text: text if text == OWN_WORKERS else int(text),
        default=[0, OWN_WORKERS],
        help="number of loader processes; own: default of each candidate",
    )
    parser.add_argument("--batch", type=int, default=32, help="batch size")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per candidate")
    parser.add_argument("--allocator", choices=(*ALLOCATORS, "both"), default="both", help="; ".join(ALLOCATORS))
    parser.add_argument("--threads", type=int, help="PyTorch's number of threads (default: chosen by PyTorch)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    args = parser.parse_args()
    environment, candidates, results = describe_environment(), available(CANDIDATES), []
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        cases = build_cases(args, Path(name))
        for number, case in enumerate(cases, start=1):
            print(f"[{number}/{len(cases)}] {case}", file=sys.stderr, flush=True)
            try:
                result = compare(case, candidates, args.rounds)
            except WorkerError as error:
                sys.exit(f"\nA candidate failed. {error}")
            results.append(result | {"waiting_for_data": waiting_for_data(case)})
    print_report(results, environment)
    if args.json:
        report = {"environment": environment, "notes": NOTES, "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def build_cases(args: argparse.Namespace, folder: Path) -> list[Case]:
    """Return all combinations of the options, with the same images."""
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
    "images/s: throughput of an epoch, median over the rounds. speedup of ours: duration of the candidate divided by "
    "that of ours in the same round, median. waiting: fraction of time that ours waits for images (metrics.jsonl).",
    "own workers: one for ours if there is a second core, none for the others.",
    "Ours uses its default recipe at a fixed image size, with EMA, and like Trainer the configuration's dropout and "
    "gradient clipping; timm's loop has none of these, which favors timm.",
)


def print_report(results: list[dict[str, Any]], environment: dict[str, Any]) -> None:
    """Print throughput, speedup of ours and the time that ours waits for images."""
    for allocator, description in ALLOCATORS.items():
        rows = [result for result in results if result["allocator"] == allocator]
        if rows:
            print(f"{description[0].upper()}{description[1:]}.")
            print(f"{'case':<36} {'candidate':<9} {'images/s':>8} {'speedup of ours':>18} {'ours waiting':>12}")
        for result in rows:
            images = result["batches"] * result["batch"]
            sizes = f"{result['size']}x{result['size']}, batch {result['batch']}"
            case = f"{result['variant']}, {sizes}, {result['workers']} workers"
            for name, row in result["candidates"].items():
                rate = images / statistics.median(row["rounds_ms"]) * 1000
                waits = f"{result['waiting_for_data']:.1%}" if name == OURS else ""
                print(f"{case:<36} {name:<9} {rate:>8.1f} {row['speedup_of_ours']:>17.2f}x {waits:>12}")
        print()
    print("\n".join(NOTES))
    print_environment(results, environment)


if __name__ == "__main__":
    main()
