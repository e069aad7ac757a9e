"""What the commands share: the two streams, exit codes, where to run, and how names are shown."""

from enum import StrEnum

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

output, messages = Console(emoji=False), Console(stderr=True, emoji=False)

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
    return "".join(c if c.isprintable() else _written_out(c) for c in text)


def _written_out(character: str) -> str:
    """A byte that is no text, which Python keeps as a surrogate, as that byte; anything else as in Python's source."""
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def say(kind: str, text: str, color: str = "yellow") -> None:
    """A line on standard error: what kind of message it is, in color, and the message."""
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
