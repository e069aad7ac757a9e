"""Check how a launcher such as `accelerate launch` or `torchrun` started a script."""

import os
import sys

# Set by torchrun and MPI for each process of several.
WORLD_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def is_first_of_node() -> bool:
    """Return whether this process is the first of those that a launcher started on this machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def check_launcher() -> None:
    """Raise a ValueError if a launcher was asked for several processes and started one."""
    # On CPUs, `accelerate launch --num_processes N` starts a single process unless it runs under MPI; it sets
    # MASTER_ADDR for N > 1 only.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").casefold() in ("1", "true", "yes")
    if on_cpu and "MASTER_ADDR" in os.environ and not any(name in os.environ for name in WORLD_SIZE_VARIABLES):
        raise ValueError(
            "accelerate launch: started 1 process; on a CPU it starts several under MPI only. "
            f"Use torchrun: torchrun --nproc-per-node 2 {sys.argv[0]} ..."
        )
