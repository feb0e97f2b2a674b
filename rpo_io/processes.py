"""Calls in processes of their own, from any caller: a script, a notebook, standard input, a thread.

The workers of :mod:`multiprocessing` import the caller's main module again, so that a script
without the ``if __name__ == "__main__"`` guard would run twice. These workers do not.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, TypeVar

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
    waiting = iter(enumerate(calls))
    results: dict[int, T] = {}
    workers: list[subprocess.Popen[bytes]] = []
    # Without threads of its own, this works in a thread that outlives the main thread too.
    with selectors.DefaultSelector() as running:
        try:
            for index, call in islice(waiting, n_processes):
                worker = _start_worker(variables)
                workers.append(worker)
                _send(worker, pickle.dumps(call))
                running.register(_output(worker), selectors.EVENT_READ, (worker, index))
            for wanted in range(len(calls)):
                while wanted not in results:
                    for key, _ in running.select():
                        worker, index = key.data
                        results[index] = _receive(worker)
                        running.unregister(key.fileobj)
                        for following, call in islice(waiting, 1):
                            _send(worker, pickle.dumps(call))
                            data = (worker, following)
                            running.register(key.fileobj, selectors.EVENT_READ, data)
                yield results.pop(wanted)
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


def _start_worker(variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(variables),
    )
    _send(worker, sys.path)
    return worker


def _send(worker: subprocess.Popen[bytes], message: Any) -> None:
    assert worker.stdin
    with suppress(BrokenPipeError):  # a worker that has ended is noticed where its answer is missed
        worker.stdin.write(pickle.dumps(message))
        worker.stdin.flush()


def _output(worker: subprocess.Popen[bytes]) -> IO[bytes]:
    assert worker.stdout
    return worker.stdout


def _receive(worker: subprocess.Popen[bytes]) -> Any:
    """Return the result of a worker's call, or raise its exception."""
    try:
        result, error, text = pickle.load(_output(worker))
    except (EOFError, pickle.UnpicklingError) as lost:
        code = worker.wait()
        raise RuntimeError(f"a worker process ended with exit code {code} during a call") from lost
    if error is not None:
        error.add_note(f"in a worker process:\n{text}")
        raise error
    return result


def _answer_calls() -> None:
    """Run the calls that arrive on standard input, until the process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this one
    calls: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read_calls, args=(calls,), daemon=True).start()
    # Standard output carries results; what a call prints goes to standard error.
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)
        while True:
            results.write(_answer(calls.get()))
            results.flush()


def _read_calls(calls: SimpleQueue[bytes]) -> None:
    """Pass the calls on, and end this process, also during a call, when its parent has ended."""
    while True:
        try:
            calls.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            os._exit(1)


def _answer(call: bytes) -> bytes:
    """Return the pickled result of a pickled call, or its exception with the traceback as text."""
    try:
        return pickle.dumps((pickle.loads(call)(), None, ""))
    except Exception as error:
        text = traceback.format_exc()
        try:
            return pickle.dumps((None, error, text))
        except Exception:  # some exceptions cannot be pickled
            return pickle.dumps((None, RuntimeError(str(error)), text))
