"""Compare models and pipelines side by side: models, command line and report of the benchmarks.

Two allocator modes: `same` calls `mobilevit_hf.tune_allocator()` in every process, so that the models are compared;
`users` calls it for ours only, as this package's commands do.
"""

import argparse
import importlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers import OURS, Call, Candidate, WorkerError, available, compare, serve

VARIANTS = ("xxs", "xs", "s")
ALLOCATORS = {
    "same": "same allocator settings for all: tune_allocator() in every process",
    "users": "as users run it: ours after tune_allocator(), the others with the default allocator",
}
NUM_CLASSES = 1000
SEGMENTER = {"num_labels": 21, "output_stride": 16}  # fields of the configuration, as in the paper
CLASSIFICATION, SEGMENTATION = "classification", "segmentation"  # settings
LOADED = "as loaded"  # this package's model as `from_pretrained` returns it
PACKAGES = ("torch", "torchvision", "transformers", "timm", "onnxruntime", "openvino", "mobilevit-hf")
PACKAGES += ("ultralytics", "ultralytics-opencv-headless")  # two distributions of one package
CANDIDATES = {
    "stock": Candidate("transformers", "transformers.models.mobilevit.modeling_mobilevit"),
    "timm contiguous": Candidate("timm", "timm"),
    "timm channels_last": Candidate("timm", "timm"),
    LOADED: Candidate("mobilevit_hf", "mobilevit_hf.modeling.modeling_mobilevit"),
    OURS: Candidate("mobilevit_hf", "mobilevit_hf.modeling.modeling_mobilevit"),
}
COLUMNS_NOTE = (
    "ms: median call duration over the rounds. x ours: duration of the candidate divided by that of ours in the same "
    "round, median. peak: peak resident memory of the process, shared libraries included; imports: before the model."
)


@dataclass(frozen=True)
class Case:
    """A setting in which all candidates are compared.

    Attributes:
        variant: "xxs", "xs" or "s".
        batch: Images per call.
        size: Height and width of the images.
        allocator: Key of `ALLOCATORS`.
        threads: PyTorch's number of threads, None for its default.
        fields: Configuration of the variant, for candidates with a configuration class.
        setting: Key of the benchmark's settings, empty if it has none.
    """

    variant: str
    batch: int
    size: int
    allocator: str
    threads: int | None
    fields: dict[str, Any]
    setting: str = ""

    def __str__(self) -> str:
        return f"{label_of(vars(self))}, {self.size}x{self.size}, allocator: {self.allocator}"


def label_of(case: dict[str, Any]) -> str:
    """Return variant, batch size and setting of a case or a result."""
    return ", ".join(filter(None, (case["variant"], f"batch {case['batch']}", case["setting"])))


# --- models ----------------------------------------------------------------------------------------------------------


def build_model(candidate: str, case: Case) -> Any:
    """Return the candidate's model for the setting, in its memory layout and with PyTorch's default initialization.

    It is a classifier, or DeepLabv3 in the setting "segmentation". Stock transformers initializes batch normalization
    close to zero; the same initialization keeps timings comparable.
    """
    import torch

    if candidate.startswith("timm"):
        import timm

        model = timm.create_model(f"mobilevit_{case.variant}", num_classes=NUM_CLASSES)
    else:
        package: Any = importlib.import_module("transformers" if candidate == "stock" else "mobilevit_hf")
        is_segmenter = case.setting == SEGMENTATION
        name = "MobileViTForSemanticSegmentation" if is_segmenter else "MobileViTForImageClassification"
        fields = case.fields | (SEGMENTER if is_segmenter else {})
        model = getattr(package, name)(package.MobileViTConfig(**fields))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    channels_last = candidate in ("timm channels_last", OURS)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def random_images(candidate: str, case: Case) -> Any:
    """Return a batch of random images; in channels_last for timm in channels_last, whose calls save the conversion."""
    import torch

    images = torch.rand(case.batch, 3, case.size, case.size)
    return images.to(memory_format=torch.channels_last) if candidate == "timm channels_last" else images


def logits_of(output: Any) -> Any:
    """Return the logits of a transformers output or of timm's plain tensor."""
    return getattr(output, "logits", output)


# --- command line and report -----------------------------------------------------------------------------------------


def describe_environment() -> dict[str, Any]:
    """Return hardware, versions, load and command line."""
    from mobilevit_hf.environment import cpu_name, library_versions

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'no glibc'}",
        **library_versions(PACKAGES),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "command": shlex.join(["python", *sys.argv]),
    }


def print_environment(results: list[dict[str, Any]], environment: dict[str, Any]) -> None:
    """Print what the results depend on besides the code."""
    threads = sorted({result["threads"] for result in results})
    environment = {**environment, "threads": ", ".join(map(str, threads))}
    print("\n".join(f"{name}: {value}" for name, value in environment.items()))


def print_report(results: list[dict[str, Any]], environment: dict[str, Any], notes: list[str]) -> None:
    """Print one table per allocator mode, the notes and the environment."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=100)
    for allocator, description in ALLOCATORS.items():
        rows = [result for result in results if result["allocator"] == allocator]
        if not rows:
            continue
        table = Table("case", "candidate", title=f"Allocator: {allocator}", title_justify="left")
        for column in ("ms", "min ms", "x ours", "peak MiB", "imports"):
            table.add_column(column, justify="right")
        for result in rows:
            for index, (name, row) in enumerate(result["candidates"].items()):
                label = label_of(result) if index == 0 else ""
                numbers = (
                    f"{row['median_ms']:.1f}",
                    f"{row['min_ms']:.1f}",
                    f"{row['speedup_of_ours']:.2f}",
                    f"{row['peak_mib']:.0f}",
                    f"{row['imported_mib']:.0f}",
                )
                table.add_row(label, name, *numbers, end_section=name == OURS)
        console.print(table)
        console.print(f"{description[0].upper()}{description[1:]}.\n")
    for note in notes:
        console.print(note, markup=False)
    print_environment(results, environment)


def main(
    description: str,
    build: Callable[[str, Case], Call],
    check: Callable[[Case], str],
    *,
    variants: list[str],
    batches: list[int],
    notes: list[str],
    size: int = 256,
    candidates: dict[str, Candidate] = CANDIDATES,
    settings: dict[str, dict[str, Candidate]] | None = None,
) -> None:
    """Run the command line of a benchmark.

    Args:
        description: Description in `--help`.
        build: Builds the call to time, given the candidate's name and the case; runs in the worker process.
        check: Returns one line about a variant in a setting, such as the difference between the outputs of ours and
            stock.
        variants: Default variants.
        batches: Default batch sizes.
        notes: Explanations printed below the table.
        size: Default height and width of the images.
        candidates: Candidates by name, ours last.
        settings: Candidates of each setting, instead of `candidates`. A setting in which ours is not installed is
            skipped.
    """
    settings = settings or {"": candidates}
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        candidate, case = request["candidate"], Case(**request["case"])
        serve(build, settings[case.setting][candidate].module, candidate, case)
        return
    args = _parse_arguments(description, variants, batches, size, list(settings))
    installed = {setting: available(settings[setting]) for setting in args.settings}
    cases = [case for case in build_cases(args) if OURS in installed[case.setting]]
    try:
        _run_and_report(args, cases, installed, check, notes)
    except WorkerError as error:
        sys.exit(f"\nA candidate failed. {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parse_arguments(
    description: str, variants: list[str], batches: list[int], size: int, settings: list[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=variants)
    parser.add_argument("--batches", nargs="+", type=_positive, default=batches, help="images per call")
    parser.add_argument("--size", type=_positive, default=size, help="height and width of the images")
    if len(settings) > 1:
        parser.add_argument("--settings", nargs="+", choices=settings, default=settings)
    else:
        parser.set_defaults(settings=settings)
    parser.add_argument("--rounds", type=_positive, default=7, help="rounds per candidate")
    parser.add_argument("--allocator", choices=(*ALLOCATORS, "both"), default="both", help="; ".join(ALLOCATORS))
    parser.add_argument("--threads", type=_positive, help="PyTorch's number of threads (default: chosen by PyTorch)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected 1 or more")
    return number


def build_cases(args: argparse.Namespace) -> list[Case]:
    """Return all combinations of the options, small variants first."""
    from mobilevit_hf import MobileViTConfig

    allocators = list(ALLOCATORS) if args.allocator == "both" else [args.allocator]
    configs = {name: MobileViTConfig.from_variant(name, num_labels=NUM_CLASSES) for name in args.variants}
    fields = ("hidden_sizes", "neck_hidden_sizes", "expand_ratio", "hidden_dropout_prob", "num_labels")
    return [
        Case(
            variant,
            batch,
            args.size,
            allocator,
            args.threads,
            {name: getattr(config, name) for name in fields},
            setting,
        )
        for allocator in allocators
        for variant, config in configs.items()
        for batch in args.batches
        for setting in args.settings
    ]


def _run_and_report(
    args: argparse.Namespace,
    cases: list[Case],
    candidates: dict[str, list[str]],
    check: Callable[[Case], str],
    notes: list[str],
) -> None:
    environment = describe_environment()
    notes = [*notes, COLUMNS_NOTE, *map(check, {(case.variant, case.setting): case for case in cases}.values())]
    results: list[dict[str, Any]] = []
    try:
        for number, case in enumerate(cases, start=1):
            print(f"[{number}/{len(cases)}] {case}", file=sys.stderr, flush=True)
            results.append(compare(case, candidates[case.setting], args.rounds))
    finally:
        if results:
            print_report(results, environment, notes)
        if args.json:
            report = {"environment": environment, "notes": notes, "results": results}
            args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
