"""Software and hardware of the machine for reports and model cards: versions, processor, memory."""

import contextlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "accelerate", "mobilevit-hf")
MIB = 2**20


def library_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):  # run from a checkout
            versions[name] = version(name)
    return versions


def pip_command(extra: str) -> str:
    """Return the command that installs an extra of this package from where the package was installed from."""
    name = f"mobilevit-hf[{extra}]"
    with contextlib.suppress(PackageNotFoundError):  # run from a checkout
        origin = json.loads(distribution("mobilevit-hf").read_text("direct_url.json") or "{}")
        if not origin:  # from an index
            return f"pip install '{name}'"
        if origin.get("dir_info", {}).get("editable"):
            return f"pip install -e '{url2pathname(urlsplit(origin['url']).path)}[{extra}]'"
        vcs = origin.get("vcs_info")
        return f"pip install '{name} @ {vcs['vcs'] + '+' if vcs else ''}{origin['url']}'"
    return f"pip install '{Path(__file__).parents[1]}[{extra}]'"


def describe_hardware(device: "str | torch.device" = "cpu", *, num_processes: int = 1) -> dict[str, Any]:
    """Return the hardware that `num_processes` processes use for a model on a device.

    The keys are `device` (its type), `cpu`, `cores`, `gpu` or, on a CPU, `threads`, `processes` and `system`.
    """
    import torch

    device = torch.device(device)
    hardware: dict[str, Any] = {"device": device.type, "cpu": cpu_name(), "cores": os.cpu_count()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        hardware["threads"] = torch.get_num_threads()
    return hardware | {"processes": num_processes, "system": f"{platform.system()} {platform.machine()}"}


def cpu_name() -> str | None:
    """Return the model name of the processor, None if the system doesn't report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or None)


def peak_memory() -> float:
    """Return the peak resident memory of this process in MiB, including shared libraries.

    On Linux, `ru_maxrss` starts at the size of the parent process, so VmHWM is read instead.
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="utf-8") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / MIB
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / MIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def available_devices() -> list[str]:
    """Return the devices that torch finds, the fastest last: "cpu", "mps", "cuda"."""
    import torch

    is_available = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    return [device for device, available in is_available.items() if available]
