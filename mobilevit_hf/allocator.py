"""Tune the C library's memory allocator for networks whose activations are large and short-lived; see what it took.

Nothing of the package is imported here: benchmarks load this file alone.
"""

import contextlib
import ctypes
import platform
import sys

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


def peak_memory() -> float:
    """The most memory this process has had resident, shared libraries included, in MiB.

    On Linux VmHWM, elsewhere `ru_maxrss` (which on Linux would start from the parent's size).
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / MIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
