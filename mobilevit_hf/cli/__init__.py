"""The `mobilevit` command: one module for each thing it does."""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import transformers
import typer

from .. import __version__
from . import console
from .benchmark import benchmark as benchmark_command
from .cache import cache as cache_command
from .check_data import check_data as check_data_command
from .convert import convert as convert_command
from .demo import demo as demo_command
from .evaluate import evaluate as evaluate_command
from .export import export as export_command
from .launch import start_processes
from .models import models as models_command
from .predict import predict as predict_command
from .publish import publish as publish_command
from .train import make_command

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("predict")(predict_command)
app.command("convert")(convert_command)
app.command("train")(make_command())
app.command("evaluate")(evaluate_command)
app.command("check-data")(check_data_command)
app.command("export")(export_command)
app.command("cache")(cache_command)
app.command("benchmark")(benchmark_command)
app.command("models")(models_command)
app.command("publish")(publish_command)
app.command("demo")(demo_command)


def main() -> None:
    """Run the command line."""
    _run(app)


def run(command: Callable[..., None]) -> None:
    """Run one command by itself, as a script does, by as many processes as its launcher was asked for."""
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(command)

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
    """Run and convert MobileViT models. MOBILEVIT_DEBUG=1 shows the traceback of an error."""
