"""The `mobilevit` command: one module for each thing it does."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import transformers
import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from . import console
from .launch import start_processes

# Each is a function of that name in a module of that name.
COMMANDS = (
    "predict",
    "convert",
    "train",
    "evaluate",
    "check-data",
    "export",
    "cache",
    "benchmark",
    "models",
    "publish",
    "demo",
)


class Command(TyperCommand):
    """Lists its options under their headings; Typer's own tables cut long names in a terminal of 80 columns."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write them."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            heading = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"
            if record := param.get_help_record(ctx):
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Commands(TyperGroup):
    """Imports a command's module when it is asked for: what one of them needs would cost the others seconds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """The command of a name, None if there is none."""
        if cmd_name not in self.commands:
            return None
        if self.commands[cmd_name] is None:
            name = cmd_name.replace("-", "_")
            single = _typer()
            single.command(cmd_name, cls=Command)(getattr(importlib.import_module(f".{name}", __name__), name))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands[cmd_name]


def _typer(**settings: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings)


app = _typer(cls=Commands, no_args_is_help=True)


def main() -> None:
    """Run the command line."""
    _run(app)


def run(command: Callable[..., None]) -> None:
    """Run one command by itself, as a script does, by as many processes as its launcher was asked for."""
    script = _typer()
    script.command(cls=Command)(command)

    def start() -> None:
        start_processes()
        script()

    _run(start)


def _run(program: Callable[[], None]) -> None:
    """A user's mistake is one line and exit code 2, never a traceback."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        program()
    except (ValueError, OSError) as error:
        if os.environ.get("MOBILEVIT_DEBUG"):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        console.say("error", reason, color="red")
        sys.exit(console.EXIT_ERROR)


def _version(value: bool) -> None:
    if value:
        console.output.print(f"mobilevit_hf {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train, run and publish MobileViT models. MOBILEVIT_DEBUG=1 shows the traceback of an error."""
