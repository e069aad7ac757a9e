"""Output streams, exit codes, messages and progress bars of the commands."""

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

from ..environment import available_devices
from ..redaction import redact, redact_message
from .options import Device

# Rich wraps tables in a file or pipe at 80 characters, in the middle of paths.
WIDTH = None if (sys.stdout and sys.stdout.isatty()) or "COLUMNS" in os.environ else 500
output, messages = Console(emoji=False, width=WIDTH), Console(stderr=True, emoji=False)

# Part of the data is invalid; the rest was processed.
EXIT_UNREADABLE = 1
EXIT_ERROR = 2

MEGABYTE = 10**6

# Option of each parameter of the running command, such as `--data-format` of `data_format`.
option_names: dict[str, str] = {}

# What stands for drawings and symbols of the commands where the output's encoding lacks them, as on Windows.
ASCII = {"█": "#", "→": "->", "…": "...", "√": "sqrt", "²": "^2"}


def replace_unencodable() -> None:
    """Make standard output and error print what their encoding lacks as ASCII, or as an escape sequence."""
    codecs.register_error("ascii_or_escape", _encode_as_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ascii_or_escape")


def _encode_as_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters), error.end


def printable(text: str) -> str:
    """Return a text without passwords and tokens, and with undecodable bytes and control characters escaped."""
    return "".join(c if c.isprintable() else _escape_character(c) for c in redact(text))


def _escape_character(character: str) -> str:
    byte = ord(character) - 0xDC00  # Python keeps an undecodable byte as a surrogate
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def name_options(text: str) -> str:
    """Return a message for the command line, with the options of its parameters.

    `task` is replaced at the start, and with its value as `task="NAME"`. In a message that starts with an option, so
    is a name with an underscore, such as `max_steps`; other messages may be about a recipe.
    """
    for name, option in option_names.items():
        text = re.sub(rf"^{name}: ", f"{option}: ", text)
        text = re.sub(rf'\b{name}="([^"]+)"', rf"{option} \1", text)
    for name, option in option_names.items():
        if "_" in name and text.startswith("--"):
            text = re.sub(rf"(?<![^\s(]){name}(?=[\s,;)]|[.:?]?(?:\s|$))", option, text)
    return text


def log(kind: str, text: str, color: str = "yellow") -> None:
    """Print a line `kind: text` to standard error, with options instead of the parameters of Python."""
    text = printable(redact_message(name_options(text)))
    messages.print(f"[{color}]{kind}:[/] {escape(text)}", soft_wrap=True, highlight=False)


def log_rows(rows: Mapping[str, str]) -> None:
    """Print aligned lines `name: text` to standard error."""
    width = max(map(len, rows), default=0) + 1
    for name, text in rows.items():
        title = f"{escape(printable(name))}:".ljust(width)
        messages.print(f"[cyan]{title}[/] {escape(printable(text))}", soft_wrap=True, highlight=False)


def print_line(text: str, style: str = "") -> None:
    """Print a line to standard output: no markup, no wrapping, no highlighting."""
    output.print(printable(text), style=style or None, soft_wrap=True, highlight=False, markup=False)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value to standard output as JSON: see `format_json`."""
    print(format_json(value, indent), flush=True)


def format_json(value: Any, indent: int | None = None) -> str:
    """Return a value as ASCII JSON without passwords and tokens: one line, or indented.

    Raises:
        ValueError: If a number is not finite.
    """
    try:
        return redact(json.dumps(value, indent=indent, allow_nan=False)).replace("…", r"\u2026")
    except ValueError as error:
        raise ValueError(
            "--json: got NaN or infinity in the result, expected finite numbers. Leave out --json to see it."
        ) from error


def make_table(label: str, *numbers: str, show_header: bool = True) -> Table:
    """Return a table without borders: a column of labels, and right-aligned columns of numbers."""
    table = Table(box=None, padding=(0, 1), show_header=show_header)
    table.add_column(label, overflow="fold", min_width=20)
    for title in numbers:
        table.add_column(escape(printable(title)), justify="right")
    return table


def make_cell(text: str) -> Text:
    """Return a table cell without markup."""
    return Text(printable(text))


def pick_device(device: Device) -> str:
    """Return the device name for torch; `auto` prefers CUDA, then MPS.

    Raises:
        ValueError: If the device is not available.
    """
    available = available_devices()
    if device is Device.auto:
        return available[-1]
    if device not in available:
        raise ValueError(f"--device {device}: torch finds no such device. Use --device cpu or auto.")
    return device


def check_parent(option: str, file: Path) -> None:
    """Check that the folder of an output file exists, before the work that fills the file.

    Raises:
        ValueError: If it does not exist.
    """
    if not file.parent.is_dir():
        raise ValueError(f"{option}: folder {file.parent} does not exist. Create it, or pass another file.")


def show_progress(*columns: ProgressColumn, disable: bool = False) -> Progress:
    """Return a progress bar on the terminal; output that is redirected to a file stays free of it."""
    console = output if output.is_terminal else messages
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=disable or not console.is_terminal,
        redirect_stdout=output.is_terminal,
        redirect_stderr=messages.is_terminal,
    )
