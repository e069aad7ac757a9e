"""Tuning of glibc's memory allocator for networks with large, short-lived activations.

Imports nothing from the package: benchmarks load this file on its own.
"""

import ctypes
import platform

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MIB = 2**20


def tune_allocator() -> bool:
    """Keep freed memory in this process instead of returning it to the kernel after every layer.

    By default glibc maps a new region for each large block and unmaps it on release, so every layer of a batch incurs
    page faults again; at batch size 8 and above they dominate the run time on a CPU. Call this once, before the first
    forward pass. The setting is process-wide: memory, once used, is held until the process ends. The commands of this
    package call it; importing the package or creating a pipeline does not.

    Returns:
        True if the allocator accepted the settings, False if the C library is not glibc (macOS, Windows, musl) and
        needs none.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 4 * MIB}
    accepted = [mallopt(parameter, value) == 1 for parameter, value in settings.items()]
    return all(accepted)
