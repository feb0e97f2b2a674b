"""The program ``rpo``: the process of a command, its streams, its interrupt and its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from .cli import main, report_error
from .runtime.streams import open_standard_streams, output_error

RESUMABLE = ("train", "study")
SECONDS_TO_EXIT = 5.0
"""Time after an error in which threads of libraries may end."""
SECONDS_TO_JOIN = 10.0
"""Longest time after an error that pools of threads may take to end."""


def run_program() -> int:
    """Run the command that the arguments of the process name; the process ends soon after an error.

    The standard streams of the process are replaced.

    Returns:
        The exit code.

    Examples:
        >>> run_program()  # doctest: +SKIP
        0
    """
    open_standard_streams()
    arguments = sys.argv[1:]
    if arguments[:1] and arguments[0] in RESUMABLE:
        _use_default_interrupt()
    code = main(arguments)
    failed = output_error()
    if failed is not None and code in (0, 1):
        code = report_error(failed)
    if code != 0:
        _exit_soon(code)
    return code


def _use_default_interrupt() -> None:
    """Let SIGINT end the process; as an exception, callbacks of libraries can swallow it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _exit_soon(code: int) -> None:
    """End the process in a few seconds, whatever threads of libraries still wait for."""

    def end() -> None:
        # The main thread counts as ended when the interpreter waits for the other threads, but not
        # while it waits for pools of threads, one of which may wait for a server that is gone.
        threading.main_thread().join(SECONDS_TO_JOIN)
        time.sleep(SECONDS_TO_EXIT)
        os._exit(code)

    sys.stderr.flush()
    threading.Thread(target=end, daemon=True).start()
