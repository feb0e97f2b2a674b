"""Claims about the notice that a machine of Compute Engine is about to be preempted."""

from __future__ import annotations

from threading import Event

import pytest

from rpo.runtime import preemption
from rpo.runtime.preemption import watched_preemption

from .test_clusters import served

PATH = "/computeMetadata/v1/instance/preempted"


def test_property_a_notice_of_the_metadata_server_calls_the_function_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preemption, "SECONDS_BETWEEN_REQUESTS", 0.01)
    answers, noticed, calls = {PATH: "FALSE"}, Event(), []

    def on_notice() -> None:
        calls.append(None)
        noticed.set()

    with served(answers) as server, watched_preemption(on_notice, {"GCE_METADATA_IP": server}):
        assert not noticed.wait(0.1)
        answers[PATH] = "TRUE"
        assert noticed.wait(5)
        Event().wait(0.05)
    assert len(calls) == 1


def test_property_a_server_without_answers_ends_the_watch_and_not_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preemption, "SECONDS_BETWEEN_REQUESTS", 0.01)
    called = Event()
    with served({}) as server, watched_preemption(called.set, {"GCE_METADATA_IP": server}):
        assert not called.wait(0.1)


def test_property_other_machines_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "is_compute_engine", lambda environment: False)
    monkeypatch.setattr(preemption, "Thread", None)  # starting one would fail
    with watched_preemption(lambda: None, {}):
        pass
