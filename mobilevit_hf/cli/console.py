"""What the commands share: the two streams, exit codes, where to run, and how names are shown."""

import os
from enum import StrEnum

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

output, messages = Console(), Console(stderr=True)

# Something was wrong with the data, and the rest was done.
EXIT_UNREADABLE = 1
EXIT_ERROR = 2


class Device(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def printable(text: str) -> str:
    """A file's name or a message as it can be shown: undecodable bytes and control characters written out."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(kind: str, text: str, color: str = "yellow") -> None:
    """A line on standard error: what kind of message it is, in colour, and the message."""
    messages.print(f"[{color}]{kind}:[/] {escape(printable(text))}", soft_wrap=True, highlight=False)


def pick_device(device: Device) -> str:
    """The name torch has for it.

    Raises:
        ValueError: If it isn't there.
    """
    available = {
        Device.cuda: torch.cuda.is_available(),
        Device.mps: torch.backends.mps.is_available(),
        Device.cpu: True,
    }
    if device is Device.auto:
        return next(name for name, is_there in available.items() if is_there)
    if not available[device]:
        raise ValueError(f"--device {device}: torch finds no such device here. Use --device cpu or auto.")
    return device


def show_progress(*, disable: bool) -> Progress:
    """A bar on the terminal, below the answers if they go there too. What goes to a file stays out of its way."""
    console = output if output.is_terminal else messages
    return Progress(
        console=console,
        transient=True,
        disable=disable or not console.is_terminal,
        redirect_stdout=output.is_terminal,
        redirect_stderr=messages.is_terminal,
    )
