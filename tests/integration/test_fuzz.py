"""Claims about damaged files, a few hundred of every kind; ``make fuzz`` reads a million."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
fuzz: Any = importlib.import_module("fuzz")
fuzz_targets: Any = importlib.import_module("fuzz_targets")

SLOW = {"study": 20, "training": 20, "parquet": 50, "tokenizer": 50, "tokenizer_config": 50}
"""Number of inputs of targets that take milliseconds per input."""


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_property_damaged_files_give_data_or_an_error_with_their_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.text.chat_template.MAX_SECONDS", 0.1)
    target = fuzz_targets.TARGETS[name][0](tmp_path)
    assert all(fuzz.attempt(target, seed_input) for seed_input in target.seeds)

    @given(st.integers(0, 2**32))
    @settings(
        max_examples=SLOW.get(name, 200),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    def read(seed: int) -> None:
        fuzz.attempt(target, fuzz.next_input(target, Random(seed)))

    read()


def test_raises_for_errors_that_are_not_of_the_package() -> None:
    def fails(data: bytes) -> None:
        raise {b"a": ValueError("input"), b"b": ValueError("where?"), b"c": KeyError("input")}[data]

    target = fuzz.Target(fails, [b""], lambda rng: b"")
    assert not fuzz.attempt(target, b"a")
    with pytest.raises(AssertionError, match="does not name the input"):
        fuzz.attempt(target, b"b")
    with pytest.raises(KeyError):
        fuzz.attempt(target, b"c")


def test_closed_form_a_target_is_read_in_a_separate_process_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["fuzz.py", "--target", "votes", "--inputs", "500", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    assert fuzz.main() == 0
    table = capsys.readouterr().out
    assert "votes                  500" in table
    assert "0 faults" in table
    assert not (tmp_path / "out").exists()
