"""Claims about requests to stop a run, and checkpoints that are due by the clock."""

from __future__ import annotations

import os
import signal

from llm.train.stopping import STOP_SIGNALS, SaveTimer, StopRequest


def test_property_every_signal_that_ends_a_process_requests_a_stop() -> None:
    for kind in STOP_SIGNALS:
        inherited, request = signal.signal(kind, signal.SIG_DFL), StopRequest()
        try:
            with request.on_signals():
                assert not request.is_set()
                os.kill(os.getpid(), kind)
                assert request.is_set()
            assert signal.getsignal(kind) is signal.SIG_DFL
        finally:
            signal.signal(kind, inherited)


def test_property_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    try:
        with request.on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_closed_form_a_checkpoint_is_due_when_the_minutes_are_over() -> None:
    now = [100.0]
    timer = SaveTimer(2.0, clock=lambda: now[0])
    now[0] += 119.0
    assert not timer.is_due()
    now[0] += 1.0
    assert timer.is_due()
    timer.restart()
    assert not timer.is_due()


def test_limit_zero_minutes_are_no_limit() -> None:
    now = [0.0]
    timer = SaveTimer(0.0, clock=lambda: now[0])
    now[0] = 1e9
    assert not timer.is_due()
