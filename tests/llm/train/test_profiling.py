"""Traces of steps: which steps they hold, and that they are written."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from llm.train.profiling import StepProfiler


@pytest.mark.parametrize(
    ("first_step", "count", "last", "expected"),
    [
        (0, 2, 6, ["start before 1", "stop after 2"]),
        (7, 1, 9, ["start before 8", "stop after 8"]),
        (0, 0, 3, []),
        (0, 9, 3, ["start before 1", "stop at the end"]),
    ],
)
def test_closed_form_the_steps_after_the_first_are_traced(
    monkeypatch: pytest.MonkeyPatch, first_step: int, count: int, last: int, expected: list[str]
) -> None:
    calls: list[str] = []
    now = ""
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: calls.append(f"start {now}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(f"stop {now}"))
    profiler = StepProfiler(Path("nowhere"), first_step, count)
    for step in range(first_step, last + 1):
        now = f"before {step}"
        profiler.before(step)
        now = f"after {step}"
        profiler.after(step)
    now = "at the end"
    profiler.close()
    assert calls == expected


def test_roundtrip_a_trace_is_written(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path / "profile", 0, 1)
    profiler.before(1)
    jax.numpy.ones(3).block_until_ready()
    profiler.after(1)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
