"""`mobilevit cache`: the programs that were exported on first use."""

from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..backends.cache import cache_folder, clear, entries
from . import console

MEGABYTE = 10**6


def cache(
    action: Annotated[str | None, typer.Argument(metavar="[clear]", help="Remove everything. Default: list.")] = None,
) -> None:
    """List, or remove, the exported models kept for the next use."""
    if action not in (None, "clear"):
        raise ValueError(f"cache: got {action!r}, expected clear, or nothing to list what is there.")
    folder = escape(str(cache_folder()))
    if action == "clear":
        console.output.print(f"{clear() / MEGABYTE:.1f} MB removed from {folder}", soft_wrap=True, highlight=False)
        return
    found = entries()
    if found:
        table = Table("model", "backend", "computes in", "MB", "last used", box=None, padding=(0, 1))
        for entry in found:
            record = {name: escape(console.printable(str(value))) for name, value in entry.record.items()}
            when = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
            names = (record.get(name, "?")[:12] for name in ("weights", "backend", "dtype"))
            table.add_row(*names, f"{entry.bytes / MEGABYTE:.1f}", when)
        console.output.print(table)
    total = sum(entry.bytes for entry in found)
    console.output.print(f"{total / MEGABYTE:.1f} MB in {folder}", soft_wrap=True, highlight=False)
