import os
import platform
from importlib.metadata import version

import pytest
import torch

from mobilevit_hf.environment import cpu_name, describe_hardware, library_versions, peak_memory


def test_versions_of_installed_packages_only():
    versions = library_versions(("torch", "no-such-package"))
    assert versions == {"python": platform.python_version(), "torch": version("torch")}


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_hardware_of_a_cpu(device):
    hardware = describe_hardware(device, num_processes=3)
    assert hardware == {
        "device": "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": 3,
        "system": f"{platform.system()} {platform.machine()}",
    }


def test_hardware_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    hardware = describe_hardware("cuda:1")
    assert (hardware["device"], hardware["gpu"]) == ("cuda", "GPU 1")
    assert "threads" not in hardware


def test_peak_memory_grows_with_an_allocation():
    before = peak_memory()
    block = bytearray(os.urandom(2**20)) * 256
    assert len(block) == 256 * 2**20
    assert 10 < before < peak_memory() < 2**20
