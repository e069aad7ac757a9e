"""What reports and model cards state about the machine: versions, processor, memory."""

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "accelerate", "mobilevit-hf")
MIB = 2**20


def library_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the installed packages among `packages`."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):  # runs from its source
            versions[name] = version(name)
    return versions


def describe_hardware(device: "str | torch.device" = "cpu", *, num_processes: int = 1) -> dict[str, Any]:
    """Return the device, processor, cores, threads (CPU) or GPU name, number of processes and system."""
    import torch

    device = torch.device(device)
    hardware: dict[str, Any] = {"device": device.type, "cpu": cpu_name(), "cores": os.cpu_count()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        hardware["threads"] = torch.get_num_threads()
    return hardware | {"processes": num_processes, "system": f"{platform.system()} {platform.machine()}"}


def cpu_name() -> str | None:
    """Return the processor's model name, None if the system doesn't report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or None)


def peak_memory() -> float:
    """Return the peak resident memory of this process in MiB, shared libraries included.

    VmHWM on Linux, `ru_maxrss` elsewhere (on Linux that would start at the parent's size).
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / MIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
