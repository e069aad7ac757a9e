"""Launchers of scripts: several processes on a CPU need torchrun."""

import sys

import pytest

from mobilevit_hf.cli.launch import WORLD_SIZE_VARIABLES, check_launcher


@pytest.fixture
def set_environment(monkeypatch):
    """Function that sets the launcher's environment variables, and only these."""

    def set_environment(**variables):
        for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", *WORLD_SIZE_VARIABLES):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"ACCELERATE_USE_CPU": "True"},
        {"ACCELERATE_USE_CPU": "False", "MASTER_ADDR": "127.0.0.1"},
        {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "3"},
        {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "PMI_SIZE": "3"},
    ],
    ids=["no-launcher", "one-process", "gpu", "torchrun", "mpi"],
)
def test_supported_launches_pass(set_environment, variables):
    set_environment(**variables)
    check_launcher()


@pytest.mark.parametrize("use_cpu", ["True", "true", "1"])
def test_accelerate_launch_of_several_processes_on_a_cpu_names_torchrun(set_environment, monkeypatch, use_cpu):
    set_environment(ACCELERATE_USE_CPU=use_cpu, MASTER_ADDR="127.0.0.1")
    monkeypatch.setattr(sys, "argv", ["script.py", "data"])
    with pytest.raises(ValueError, match=r"accelerate launch: .*torchrun --nproc-per-node 2 script\.py"):
        check_launcher()
