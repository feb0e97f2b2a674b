"""Claims about ``rpo plan``: its table, its JSON document, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rpo.cli import main

ROOT = Path(__file__).resolve().parents[3]
CONFIG = str(ROOT / "configs" / "rpo_mistral_7b.yaml")
SHAPE = ["--model.path", str(ROOT / "configs" / "shapes" / "mistral_7b")]


def test_closed_form_json_has_the_fields_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, *SHAPE, "--topology", "h200:8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["topology"], plan["devices"], plan["fits"]) == ("h200:8", 8, True)
    assert plan["compiled"] is False
    assert plan["tokens_per_step"] == 8 * 4 * 32 * 1536


def test_property_a_step_that_does_not_fit_is_reported_with_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", CONFIG, *SHAPE, "--topology", "l40s:1"]) == 1
    shown = capsys.readouterr().out
    assert "l40s:1, 1 devices (estimated, not compiled)" in shown
    assert "does not fit" in shown


def test_raises_one_line_for_an_unknown_topology(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, *SHAPE, "--topology", "v9:2x2"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("rpo: error: argument --topology: must be one of v4")
    assert shown.count("\n") == 1
