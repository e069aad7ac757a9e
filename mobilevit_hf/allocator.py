"""Tune the C library's memory allocator for networks whose activations are large and short-lived.

Nothing of the package is imported here: benchmarks load this file alone.
"""

import ctypes
import platform

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MIB = 2**20


def tune_allocator() -> bool:
    """Keep freed memory in this process instead of returning it to the kernel after every layer.

    glibc maps each large block anew and unmaps it when it is freed, so that every layer of a batch pays for page
    faults again; at batch 8 and above they take most of the time on a CPU. Calling this once, before the first
    forward pass, avoids that. It is a setting of the whole process: memory, once used, stays with it until it ends.
    The commands of this package call it; importing the package or building a pipeline never does.

    Returns:
        True if the allocator took the settings, False where it is not glibc (macOS, Windows, musl), which needs none.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 4 * MIB}
    accepted = [mallopt(parameter, value) == 1 for parameter, value in settings.items()]
    return all(accepted)
