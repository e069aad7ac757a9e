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
    """List or clear cached models, datasets and downloads.

    `mobilevit predict --backend` exports a model on first use and keeps it in this cache. The list names the model
    that used each file last, even if it is no longer present.
    """
    from ..backends.cache import clear, describe_source, entries, folder_bytes
    from ..data.archives import unpacked_archives
    from ..io import cache_folder

    if action not in (None, "clear"):
        raise ValueError(f"cache: got {action!r}, expected clear or no argument.")
    if action == "clear":
        console.print_line(f"{clear() / MEGABYTE:.1f} MB removed from {cache_folder()}")
        return
    cached = entries()
    if cached:
        table = Table(box=None, padding=(0, 1))
        table.add_column("model", overflow="fold")
        for title in ("backend", "precision", "input", "MB", "last used"):
            table.add_column(title, justify="right" if title == "MB" else "left", no_wrap=True)
        seen = set()
        for entry in cached:  # the most recent first
            weights, backend, dtype = (str(entry.record.get(name, "?")) for name in ("weights", "backend", "dtype"))
            source, interface = entry.record.get("source"), str(entry.record.get("interface", "tensors"))
            model = describe_source(source, weights)
            if source and (source, backend, dtype, interface) in seen:
                model += " (earlier weights)"
            seen.add((source, backend, dtype, interface))
            last_used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
            cells = map(console.make_cell, (model, backend, dtype, interface))
            table.add_row(*cells, f"{entry.bytes / MEGABYTE:.1f}", last_used)
        console.output.print(table)
    console.print_line(f"{sum(entry.bytes for entry in cached) / MEGABYTE:.1f} MB in {cache_folder()}")
    if archives := unpacked_archives():
        console.print_line(
            f"{sum(map(folder_bytes, archives)) / MEGABYTE:.1f} MB of {len(archives)} unpacked datasets"
        )
