"""Command line of the scripts that reproduce the paper."""

import argparse
import os
from pathlib import Path
from typing import Any

from mobilevit_hf.cli.console import log, print_line

from .stages import PRECISIONS, Experiment, make_stages, print_result, run_stages, verify_data
from .throughput import Rates, describe, read_rates, write_rates

GIGA = 1e9


def make_parser(experiment: Experiment, description: str) -> argparse.ArgumentParser:
    """Return the parser of an experiment's script."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--variant", choices=list(experiment.paper), default="s", help="variant of MobileViT")
    parser.add_argument("--data", help=f"dataset: Hub id, folder or archive (default: {experiment.data})")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/paper"), help="folder for all outputs")
    parser.add_argument("--processes", type=int, help="processes, one for each GPU (default: 8; 1 in miniature)")
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1, help="batches per optimizer step")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp16", help="precision of the training")
    parser.add_argument("--model", help="initial checkpoint: directory or Hub id (default: that of the recipe)")
    parser.add_argument(
        "--streaming", action="store_true", help="stream a Hub dataset, with images of one size, without a download"
    )
    parser.add_argument("--hub-model-id", help="repository to publish the model to (default: none)")
    parser.add_argument("--license", help="license id of the published model")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and the estimate, run nothing")
    parser.add_argument(
        "--miniature", action="store_true", help="run all stages in four steps, on synthetic data without --data"
    )
    parser.add_argument("--measure", action="store_true", help="measure the throughput of this machine, and exit")
    group = parser.add_argument_group("estimate")
    group.add_argument("--cores", type=int, default=os.cpu_count(), help="CPU cores")
    group.add_argument("--bandwidth", type=float, default=10.0, help="bandwidth between GPUs in GB/s")
    group.add_argument("--gpu-images-per-second", type=float, help="training throughput of a GPU, if not measured")
    group.add_argument("--price", type=float, help="price of a GPU hour")
    group.add_argument("--seconds", type=float, default=20.0, help="CPU time of each measurement")
    return parser


def check_arguments(experiment: Experiment, args: Any) -> None:
    """Check options before anything is read.

    Raises:
        ValueError: If an option is invalid.
    """
    for name in ("processes", "gradient_accumulation_steps", "cores", "bandwidth", "seconds"):
        if getattr(args, name) <= 0:
            raise ValueError(
                f"--{name.replace('_', '-')}: got {getattr(args, name)}, expected more than 0. Change it."
            )
    divisor = args.processes * args.gradient_accumulation_steps
    if experiment.total_batch % divisor:
        raise ValueError(
            f"--processes: got {divisor} batches per step, expected a divisor of {experiment.total_batch}, the images "
            "of a step. Change --processes or --gradient-accumulation-steps."
        )
    if args.hub_model_id and not args.license and experiment.task == "image-classification":
        raise ValueError(
            "--license: got none, expected one, as a model trained from scratch has none to take over. Add --license."
        )


def reproduce(experiment: Experiment, description: str, rates: Rates) -> int:
    """Run the command line of an experiment; return the exit code.

    Args:
        experiment: Experiment.
        description: First line of the help.
        rates: Rates for the estimate if none were measured on this machine.
    """
    args = make_parser(experiment, description).parse_args()
    args.processes = (1 if args.miniature else 8) if args.processes is None else args.processes
    check_arguments(experiment, args)
    if args.measure:
        from .workloads import measure

        write_rates(args.output_dir, measure(experiment, args), f"{experiment.name}-{args.variant}")
    if args.measure or (args.dry_run and not args.miniature):
        print_estimate(experiment, args, rates)
    if args.miniature:  # apart from the stages of the paper's datasets, which would be skipped as done
        args.output_dir /= "miniature"
    is_generated = args.miniature and not args.data
    args.data = args.data or (f"{args.output_dir / experiment.name}" if is_generated else experiment.data)
    if args.measure:
        return 0
    if args.dry_run:
        for stage in make_stages(experiment, args):
            log(stage.name, f"{'(done) ' if stage.is_done() else ''}{stage.describe()}", color="cyan")
        return 0
    if is_generated and not Path(args.data).exists():
        experiment.write_miniature(Path(args.data))
    verify_data(experiment, args)
    if not (code := run_stages(make_stages(experiment, args))):
        print_result(experiment, args)
    return code


def print_estimate(experiment: Experiment, args: Any, default: Rates) -> None:
    """Print the expected duration of the training."""
    from dataclasses import replace

    from .workloads import make_workload

    name = f"{experiment.name}-{args.variant}"
    rates = read_rates(args.output_dir, default, name)
    if args.gpu_images_per_second:
        rates = replace(rates, gpu=args.gpu_images_per_second)
    workload = make_workload(experiment, args)
    print_line(f"{name} on {args.processes} GPUs and {args.cores} cores")
    for line in describe(workload, rates, cores=args.cores, bandwidth=GIGA * args.bandwidth, price=args.price):
        print_line(line)
