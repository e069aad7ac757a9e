"""Ctrl-C while modules are imported: importing this module, before the slow ones, installs the handler."""

import os
import signal
import threading
from types import FrameType
from typing import Never

EXIT_INTERRUPTED = 128 + signal.SIGINT
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


def exit_now(number: int, frame: FrameType | None) -> Never:
    """Signal handler: exit without cleaning up."""
    os._exit(EXIT_INTERRUPTED)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler: raise KeyboardInterrupt, or exit at once if a module is being imported.

    A KeyboardInterrupt in an import prints a traceback of the import system, and libraries that catch every exception
    while they are imported, or call Python from C++, ignore it or abort.
    """
    caller = frame
    while caller is not None:
        if caller.f_code.co_filename == IMPORT_SYSTEM:
            exit_now(number, frame)
        caller = caller.f_back
    signal.default_int_handler(number, frame)


def handle_interrupts(handler: "signal._HANDLER") -> None:
    """Set the handler of Ctrl-C, unless it is ignored or another program handles it."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, interrupt):
        signal.signal(signal.SIGINT, handler)


handle_interrupts(interrupt)
