"""Claims about the confidence interval of ``rpo solve`` and its bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpo_theory as rt
from rpo import api, cli
from rpo.results import Improvement

PROBLEM: dict[str, Any] = {
    "context_weights": [1],
    "reference_policy": [[0.5, 0.5]],
    "baseline_policy": "reference",
    "comparisons": [[0, 0, 1, 90], [0, 1, 0, 10]],
    "beta": 0.1,
    "eta": 0.1,
    "reward_class": {"kind": "tabular", "max": 4},
}
TIES = {"ties": [[0, 0, 1, 4]], "tie_model": "davidson"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "problem.json"


def test_property_the_command_prints_the_interval_of_the_library(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(json.dumps(PROBLEM))
    assert cli.main(["solve", str(path), "--confidence", "0.9", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    got = json.loads(printed.out)["improvement"]
    wins = np.array([[[0.0, 90.0], [10.0, 0.0]]])
    problem = rt.Problem.from_wins(wins, beta=0.1, eta=0.1, baseline_policy="reference")
    policy = rt.minimax.solve(problem, rt.TabularBox(4.0)).policy
    expected = rt.confidence_interval(problem, rt.TabularBox(4.0), policy, confidence=0.9, seed=3)
    np.testing.assert_allclose([got["lower"], got["upper"]], expected[:2], atol=1e-9)
    assert (got["confidence"], got["seed"], got["proven"]) == (0.9, 3, True)
    assert f"{got['lower']:.4f} to {got['upper']:.4f}" in printed.err
    assert "At 90 % confidence the policy improves on the baseline policy.\n" in printed.err


def test_closed_form_the_sentence_says_what_the_interval_proves() -> None:
    better, worse, open_ = (Improvement(0.95, 0, *ends) for ends in ((1, 2), (-2, -1), (-1, 1)))
    assert better.sentence == "At 95 % confidence the policy improves on the baseline policy."
    assert worse.sentence == "At 95 % confidence the policy is worse than the baseline policy."
    assert open_.sentence.startswith("The data do not prove at 95 % confidence")
    assert [one.is_proven for one in (better, worse, open_)] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "options", "rule"),
    [
        ({}, ["--confidence", "0"], "must be a number greater than 0"),
        ({}, ["--confidence", "1"], "must be less than 1, got 1"),
        ({}, ["--confidence", "nan"], "must be a number greater than 0"),
        ({}, ["--seed", "1"], "argument --seed: needs --confidence"),
        ({"comparisons": [[0, 0, 1, 2.5]]}, ["--confidence", "0.9"], "must be a whole number"),
        ({"comparisons": [[0, 0, 1, 1]]}, ["--confidence", "0.9"], "must hold at least 2"),
        ({"comparisons": []}, ["--confidence", "0.9"], "must hold at least 2"),
        ({"reward_class": {"kind": "unbounded"}}, ["--confidence", "0.9"], "bounded reward class"),
        (TIES, ["--confidence", "0.9"], "tie parameter that was not fitted"),
        (
            {"rankings": [[0, [2, 1, 0], 9]], "reference_policy": [[0.4, 0.3, 0.3]]},
            ["--confidence", "0.9"],
            "must not hold rankings",
        ),
    ],
)
def test_raises_in_one_line_on_data_and_options_without_an_interval(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    options: list[str],
    rule: str,
) -> None:
    path.write_text(json.dumps({**PROBLEM, **change}))
    assert cli.main(["solve", str(path), *options]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    assert rule in printed.err


def test_raises_from_python_on_a_level_outside_of_its_range() -> None:
    with pytest.raises(ValueError, match="`confidence` must be less than 1"):
        api.solve(PROBLEM, confidence=1.0)
