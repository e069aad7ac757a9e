"""The `mobilevit` command: one module per subcommand, imported when it is used.

Modules of this folder import torch, transformers and other slow libraries inside functions, so that help, completion
and usage errors take a fraction of a second.
"""

from . import interrupts  # noqa: F401, handles Ctrl-C during the imports below

# isort: split

import importlib
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from . import console
from .launch import check_launcher
from .options import fill_optional_values
from .process import run_and_exit

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
    "serve",
)


_DEFAULT = re.compile(r"  \[default: ([^;\]]+)(\]|; )")


def _format_default(match: re.Match[str]) -> str:
    """Return Typer's `[default: 8; x>=1]` in the style of the help texts: `Default: 8.  [x>=1]`."""
    return f" Default: {match[1]}." + ("" if match[2] == "]" else "  [")


class Command(TyperCommand):
    """A command whose help groups options by section; Typer's tables cut long names in a terminal of 80 columns."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage line, without hidden arguments and the braces of newer versions of Typer."""
        hidden = [param.get_usage_pieces(ctx) for param in self.get_params(ctx) if getattr(param, "hidden", False)]
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx) if [piece] not in hidden]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; typer has no options whose value may be left out."""
        options: list[Any] = [param for param in self.params if param.param_type_name == "option"]
        console.option_names = {param.name: max(param.opts, key=len) for param in options}
        with_value = {name for param in options if not param.is_flag for name in param.opts}
        return super().parse_args(ctx, fill_optional_values(args, with_value))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            is_argument = param.param_type_name == "argument"
            section = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or "Options"
            if record := param.get_help_record(ctx):
                sections.setdefault(section, []).append((record[0], _DEFAULT.sub(_format_default, record[1])))
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


class Commands(TyperGroup):
    """A group that imports the module of a subcommand on first use."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, None if there is no such command."""
        if cmd_name not in self.commands:
            return None
        if self.commands[cmd_name] is None:
            name = cmd_name.replace("-", "_")
            single = _make_typer()
            single.command(cmd_name, cls=Command)(getattr(importlib.import_module(f".{name}", __name__), name))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands[cmd_name]


def _make_typer(*, add_completion: bool = False, **settings: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=add_completion,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        **settings,
    )


app = _make_typer(cls=Commands, no_args_is_help=True, add_completion=True)


def main() -> None:
    """Run the command line."""
    run_and_exit(partial(app, standalone_mode=False))


def run(command: Callable[..., None]) -> None:
    """Run a single command, such as one of `train.make_command`, as a script that launchers can start."""
    script = _make_typer()
    script.command(cls=Command)(command)

    def start() -> int | None:
        check_launcher()
        return script(standalone_mode=False)

    run_and_exit(start)


def _print_version(value: bool) -> None:
    if value:
        console.output.print(f"mobilevit_hf {__version__}", highlight=False)
        raise typer.Exit


@app.callback(epilog="MOBILEVIT_DEBUG=1 prints the traceback of an error.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate, export and publish MobileViT models."""
