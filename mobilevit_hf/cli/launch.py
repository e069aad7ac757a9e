"""Several processes on a CPU: what `accelerate launch --cpu --num_processes N` is asked for."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

import psutil

# Whichever of them is set, this is one of several processes already.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def start_processes() -> None:
    """Become the processes that `accelerate launch` was asked for, where it starts one only.

    On a CPU it leaves several to MPI and starts one without, whatever their number; torch's launcher starts them.

    Raises:
        ValueError: If their number isn't said on its command line.
    """
    if not _is_alone(os.environ):
        return
    parent = psutil.Process().parent()
    number = _number_in(parent.cmdline() if parent else [])
    if number is None:
        raise ValueError(
            "accelerate launch starts one process on a CPU. For several: torchrun --nproc-per-node 2 "
            f"{sys.argv[0]}, or add --num_processes 2 to accelerate launch."
        )
    # Each has its share of the cores by OMP_NUM_THREADS, which accelerate has set.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


def _is_alone(environment: Mapping[str, str]) -> bool:
    """Whether this is the only process of a launch for several on a CPU."""
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").casefold() in ("1", "true", "yes")
    return on_cpu and "MASTER_ADDR" in environment and not any(name in environment for name in SIZES)


def _number_in(words: Sequence[str]) -> int | None:
    """The number of processes on a command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    return parser.parse_known_args(words)[0].num_processes
