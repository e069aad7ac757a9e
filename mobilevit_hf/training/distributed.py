"""The processes of a run on one or several nodes: what one of them does for all, or for those of its node."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from .signals import SharedError

T = TypeVar("T")

# The check of a large dataset takes hours, while the processes that wait notice at once if the one they wait for dies.
SETUP_TIMEOUT = timedelta(hours=24)
# Parts of the errors of Gloo, NCCL and the rendezvous when a process has ended.
CONNECTION_ERRORS = (
    *("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "gloo/transport", "NCCL", "Timed out"),
    *("timed out", "remote process", "TCPStore", "Watchdog"),
)


class Groups(NamedTuple):
    """Groups of processes that exchange Python objects on the CPU."""

    all: Any
    node: Any  # the processes of this node
    node_rank: int  # rank of its first process


@lru_cache(maxsize=1)
def _create_groups(accelerator: Accelerator) -> Groups:
    everyone = dist.new_group(backend="gloo", timeout=SETUP_TIMEOUT)
    local_ranks = _gather(everyone, accelerator.local_process_index)
    starts = [rank for rank, local_rank in enumerate(local_ranks) if local_rank == 0]
    ranks = [list(range(*limits)) for limits in pairwise((*starts, accelerator.num_processes))]
    groups = [dist.new_group(own, backend="gloo", timeout=SETUP_TIMEOUT) for own in ranks]  # by all processes
    own = next(index for index, members in enumerate(ranks) if accelerator.process_index in members)
    return Groups(everyone, groups[own], starts[own])


def _gather(group: Any, value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def run_in_main_process(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Call a function in the main process; return its result, or raise its error, in all processes."""
    if accelerator.num_processes == 1:
        return function()
    groups = _create_groups(accelerator)
    result, error = _call(function) if accelerator.is_main_process else (None, None)
    values = [(result, error and _make_portable(error))]
    dist.broadcast_object_list(values, src=0, group=groups.all)
    return _unwrap(values[0], error)


def run_once_per_node(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Call a function in the first process of each node; return its result in the node's processes.

    An error on one node is raised in all processes of all nodes.
    """
    if accelerator.num_processes == 1:
        return function()
    groups = _create_groups(accelerator)
    result, error = _call(function) if accelerator.is_local_main_process else (None, None)
    errors = _gather(groups.all, error and _make_portable(error))
    if first := next(filter(None, errors), None):
        raise error or first
    values: list[Any] = [result]
    dist.broadcast_object_list(values, src=groups.node_rank, group=groups.node)
    return values[0]


def check_equal_on_nodes(accelerator: Accelerator, value: Any, describe: Callable[[Any, Any], str]) -> None:
    """Raise a ValueError in all processes if a value, of which each node has its own, differs between nodes.

    Args:
        accelerator: Accelerator of the run.
        value: Value to compare.
        describe: Function that returns the message of the error for another value and that of the main process.
    """
    if accelerator.num_processes == 1:
        return
    values = _gather(_create_groups(accelerator).all, value)
    if (other := next((each for each in values if each != values[0]), None)) is not None:
        error = describe(other, values[0])
        raise ValueError(error) if accelerator.is_main_process else SharedError(error)


def broadcast_model(accelerator: Accelerator, model: nn.Module) -> None:
    """Copy the main process's weights and buffers to all processes, whose initial checkpoint may be another file."""
    if accelerator.num_processes > 1:
        with torch.no_grad():
            for value in model.state_dict().values():
                value.copy_(broadcast(value.clone()))


def count_node_processes(accelerator: Accelerator) -> int:
    """Return the number of processes of this node, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


@contextmanager
def explain_lost_process(accelerator: Accelerator) -> Generator[None, None, None]:
    """Convert the error of an operation with a process that has ended to one that tells how to resume."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if accelerator.num_processes == 1 or not any(part in text for part in CONNECTION_ERRORS):
            raise
        raise SharedError(
            "Another process of this training ended or can't be reached; its own error, if it has one, is in the log "
            "of its node. Checkpoints are intact; resume with --resume auto, with any number of processes."
        ) from error


def _call(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:  # raised by the caller in all processes
        return None, error


def _unwrap(value: tuple[Any, Exception | None], own_error: Exception | None) -> Any:
    result, error = value
    if error:
        raise own_error or error
    return result


def _make_portable(error: Exception) -> Exception:
    """Return an error that every process can unpickle."""
    if isinstance(error, ValueError | OSError):
        return SharedError(str(error))
    return RuntimeError(f"Another process failed: {type(error).__name__}: {error}")
