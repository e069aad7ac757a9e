"""How the process of a command ends: quietly, or with one line for an error; never with a traceback."""

import atexit
import errno
import gc
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType

import typer
from typer.exceptions import TyperException
from wrapt import register_post_import_hook

from ..training.signals import SharedError
from . import console
from .interrupts import EXIT_INTERRUPTED, exit_now, handle_interrupts
from .launch import is_first_of_node

DEBUG = "MOBILEVIT_DEBUG"
TRACEBACK = "Traceback (most recent call last)"  # in the message of an error of another process
MAX_REASON = 600  # characters; torch adds the frames of its C++ code
MAX_WORD = 300  # such as a path; what is wrong with it stands after it


def run_and_exit(program: Callable[[], int | None]) -> None:
    """Run a program, which returns its exit code, and exit.

    An error of the user, of the system or of this package ends in one line; with MOBILEVIT_DEBUG=1 it is raised.
    """
    console.replace_unencodable()
    register_post_import_hook(_silence, "transformers.utils.logging")
    register_post_import_hook(_silence, "huggingface_hub.utils.logging")  # each of its retries is a warning
    atexit.register(gc.freeze)  # otherwise Python looks for cycles among all objects of torch at exit, for a second
    try:
        code = program() or 0
        if sys.stdout:
            sys.stdout.flush()  # here, so that a full disk is an error
    except Exception as error:
        if os.environ.get(DEBUG) and not isinstance(error, typer.Abort | TyperException | BrokenPipeError):
            raise
        code = _report(error)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    handle_interrupts(exit_now)
    sys.exit(code)


def _report(error: Exception) -> int:
    """Print the line of an error; return the exit code."""
    match error:
        case BrokenPipeError():  # such as `mobilevit models | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return console.EXIT_ERROR
        case SharedError() if not is_first_of_node():
            pass
        case typer.Abort():
            console.log("error", "aborted: the standard input ended.", color="red")
            return console.EXIT_UNREADABLE
        case TyperException():
            _report_usage(error)
        case RuntimeError() if "home directory" in str(error):  # of pathlib, in libraries
            console.log("error", "HOME: got no value and no user, expected a folder. Set it.", color="red")
        case OSError(errno=errno.ENOSPC):
            console.log("error", f"{_reason(error)}. Free disk space and run the command again.", color="red")
        case ValueError() | OSError():
            console.log("error", _reason(error) or type(error).__name__, color="red")
        case _:
            reason = ": ".join(filter(None, (type(error).__name__, _reason(error).rstrip("."))))
            console.log("error", f"unexpected {reason}. Set {DEBUG}=1 for the traceback.", color="red")
    return console.EXIT_ERROR


def _reason(error: Exception) -> str:
    """Return the message of an error in one line."""
    text = str(error)
    if TRACEBACK in text:
        text = text.strip().splitlines()[-1]
    text = re.sub(rf"\S{{{MAX_WORD},}}", lambda word: f"{word[0][:MAX_WORD]}…", " ".join(text.split()))
    return f"{text[:MAX_REASON]} …" if len(text) > MAX_REASON else text


def _report_usage(error: TyperException) -> None:
    message, ctx = error.format_message().replace("Value error, ", ""), getattr(error, "ctx", None)
    if ctx and message == ctx.get_help():  # no arguments
        print(message, file=sys.stderr)
        return
    message = " ".join(message.split())
    hint = f" See {ctx.command_path} -h." if ctx else ""
    console.log("error", f"{message}{'' if message.endswith(('.', '?')) else '.'}{hint}", color="red")


def _silence(logging: ModuleType) -> None:
    logging.set_verbosity_error()
    if disable := getattr(logging, "disable_progress_bar", None):
        disable()
