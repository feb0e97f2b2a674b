"""Calls in processes of their own, from any caller: a script, a notebook, standard input, a thread.

The workers of :mod:`multiprocessing` import the caller's main module again, so that a script
without the ``if __name__ == "__main__"`` guard would run twice. These workers do not.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
START = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from rpo_io.processes import _answer_calls; _answer_calls()"
)
"""Program of a worker. Option ``-P`` keeps the working folder off the path of its first imports."""


def run_in_processes(
    calls: Sequence[Callable[[], T]],
    *,
    max_processes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[T]:
    """Run calls in new Python processes, several at a time.

    Args:
        calls: functions without arguments, such as partials. Functions and arguments must be
            picklable, and the functions must come from modules that can be imported.
        max_processes: largest number of processes, at least 1; one per core by default.
        environment: variables that are added to those of this process.

    Yields:
        The results in the order of the calls. Calls start in this order too. The processes end
        with the iteration, also if it is not exhausted.

    Raises:
        Exception: the first exception of a call, or RuntimeError if a process ended unexpectedly.

    Examples:
        >>> from functools import partial
        >>> list(run_in_processes([partial(pow, 2, n) for n in (3, 4)], max_processes=1))
        [8, 16]
    """
    n_processes = min(max_processes or os.cpu_count() or 1, len(calls))
    variables = {**os.environ, **(environment or {})}
    workers: list[subprocess.Popen[bytes]] = []
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def run(call: Callable[[], T]) -> T:
        worker = idle.get()
        try:
            return _ask(worker, call)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(max(1, n_processes)) as threads:
            try:
                for _ in range(n_processes):
                    workers.append(_start_worker(variables))
                    idle.put(workers[-1])
                for future in [threads.submit(run, call) for call in calls]:
                    yield future.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.kill()
    finally:
        for worker in workers:
            worker.communicate()


def _start_worker(variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(variables),
    )
    assert worker.stdin
    pickle.dump(sys.path, worker.stdin)
    worker.stdin.flush()
    return worker


def _ask(worker: subprocess.Popen[bytes], call: Callable[[], T]) -> T:
    """Send a call to an idle worker and return its result, or raise its exception."""
    assert worker.stdin
    assert worker.stdout
    message = pickle.dumps(call)
    try:
        worker.stdin.write(message)
        worker.stdin.flush()
        result, error, text = pickle.load(worker.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as lost:
        code = worker.wait()
        raise RuntimeError(f"a worker process ended with exit code {code} during a call") from lost
    if error is not None:
        error.add_note(f"in a worker process:\n{text}")
        raise error
    return result


def _answer_calls() -> None:
    """Run the calls that arrive on standard input until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this one
    calls = sys.stdin.buffer
    # Standard output carries results; what a call prints goes to standard error.
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)
        while True:
            try:
                call = pickle.load(calls)
            except EOFError:
                return
            try:
                results.write(_answer(call))
                results.flush()
            except BrokenPipeError:  # the parent has ended
                os._exit(1)


def _answer(call: Callable[[], Any]) -> bytes:
    """Return the pickled result of a call, or its exception with the traceback as text."""
    try:
        return pickle.dumps((call(), None, ""))
    except Exception as error:
        text = traceback.format_exc()
        try:
            return pickle.dumps((None, error, text))
        except Exception:  # some exceptions cannot be pickled
            return pickle.dumps((None, RuntimeError(str(error)), text))
