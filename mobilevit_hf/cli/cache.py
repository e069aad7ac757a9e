"""`mobilevit cache`: list or clear the cache of exported models."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from . import console
from .console import MEGABYTE


def cache(
    action: Annotated[
        str | None, typer.Argument(metavar="clear", help="Remove all of them. Default: list them.")
    ] = None,
) -> None:
    """List or clear cached exported models and unpacked datasets.

    `mobilevit predict --backend` exports a model on first use and keeps it in this cache.
    """
    from ..backends.cache import clear, entries, folder_bytes
    from ..data.archives import unpacked_archives
    from ..io import cache_folder

    if action not in (None, "clear"):
        raise ValueError(f"cache: got {action!r}, expected clear or no argument.")
    if action == "clear":
        console.print_line(f"{clear() / MEGABYTE:.1f} MB removed from {cache_folder()}")
        return
    cached = entries()
    if cached:
        table = Table("model", "backend", "precision", "MB", "last used", box=None, padding=(0, 1))
        for entry in cached:
            names = [str(entry.record.get(name, "?"))[:12] for name in ("weights", "backend", "dtype")]
            last_used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
            table.add_row(*map(console.make_cell, names), f"{entry.bytes / MEGABYTE:.1f}", last_used)
        console.output.print(table)
    console.print_line(f"{sum(entry.bytes for entry in cached) / MEGABYTE:.1f} MB in {cache_folder()}")
    if archives := unpacked_archives():
        console.print_line(
            f"{sum(map(folder_bytes, archives)) / MEGABYTE:.1f} MB of {len(archives)} unpacked datasets"
        )
