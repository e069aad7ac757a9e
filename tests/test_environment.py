import json
import os
import platform
import re
import sys
from importlib.metadata import PathDistribution, version
from pathlib import Path

import pytest
import torch

from mobilevit_hf import environment
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


def test_peak_memory_includes_allocations():
    before, block = peak_memory(), bytearray(os.urandom(2**20)) * 256
    assert len(block) == 256 * 2**20
    assert 256 < peak_memory() < 2**20
    assert peak_memory() >= before
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        assert peak_memory() >= int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10 - 1


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'mobilevit-hf[demo]'"),
        ({"url": "file:///a%20b/c", "dir_info": {"editable": True}}, "pip install -e '/a b/c[demo]'"),
        ({"url": "file:///a/c", "dir_info": {}}, "pip install 'mobilevit-hf[demo] @ file:///a/c'"),
        (
            {"url": "https://a/c.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'mobilevit-hf[demo] @ git+https://a/c.git'",
        ),
    ],
)
def test_pip_command_installs_from_the_origin_of_the_package(tmp_path, monkeypatch, origin, command):
    (tmp_path / "METADATA").touch()
    if origin:
        (tmp_path / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(environment, "distribution", lambda name: PathDistribution(tmp_path))
    assert environment.pip_command("demo") == command
