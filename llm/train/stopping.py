"""When a run stops early, and when a checkpoint is due by the clock, in all processes alike."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals of a machine that is preempted, of Ctrl-C, and of a terminal that closes."""


class StopRequest:
    """A request to stop a run, which any of its processes may receive."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the run to stop."""
        self._event.set()

    def is_set(self) -> bool:
        """Return whether any process was asked to stop; all processes get the same answer."""
        if jax.process_count() == 1:
            return self._event.is_set()
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.array(self._event.is_set()))))

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Have the signals that end a process request a stop instead, in the main thread.

        A signal that is ignored, as SIGHUP is under ``nohup``, stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            kind: signal.signal(kind, lambda *_: self.set())
            for kind in STOP_SIGNALS
            if signal.getsignal(kind) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


class SaveTimer:
    """The time since the last checkpoint, by the clock of process 0."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the time.

        Args:
            minutes: largest time between checkpoints; 0 for no limit.
            clock: returns the present time in seconds.
        """
        self._minutes, self._clock = minutes, clock
        self.restart()

    def restart(self) -> None:
        """Count from now on: a checkpoint was saved."""
        self._start = self._clock()

    def is_due(self) -> bool:
        """Return whether the time is over; all processes get the answer of process 0."""
        if not self._minutes:
            return False
        is_over = self._clock() - self._start >= 60.0 * self._minutes
        if jax.process_count() == 1:
            return is_over
        from jax.experimental import multihost_utils

        return bool(multihost_utils.broadcast_one_to_all(np.array(is_over)))
