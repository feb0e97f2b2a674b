"""Claims about ``rpo verify``: its files, its verdicts and its exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from bandits.theorem_check import agreement, negative_controls
from bandits.theorem_check.agreement import Agreement
from bandits.theorem_check.negative_controls import NegativeControl
from rpo.cli import main

GOOD = Agreement("tabular", 0, 0, 3, 4, 0.5, 0.1, -2.0, 1e-15, 1e-9, 1e-8, 0.01)
BUDGET = "examples.budget:Budget"
CONTROL = NegativeControl("two rewards, beta 0.5", 0.1448, 0.145)


def verify(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    records: list[Agreement],
    controls: list[NegativeControl],
    *options: str,
) -> tuple[int, dict]:
    monkeypatch.setattr(agreement, "measure_agreement", lambda n, seed, **_: iter(records))
    monkeypatch.setattr(negative_controls, "solve_negative_controls", lambda: controls)
    code = main(["verify", "--instances", "2", "--out", str(folder), *options])
    return code, json.loads((folder / "verify.json").read_text())


def test_closed_form_the_file_holds_the_measurements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = GOOD._replace(family="linear", duality_gap=3e-11)
    code, written = verify(monkeypatch, tmp_path / "new" / "folder", [GOOD, linear], [CONTROL])
    assert code == 0
    assert [claim["holds"] for claim in written["claims"]] == [True] * 4
    assert written["claims"][0]["measured"] == pytest.approx(1.5e-11)
    fields = "family seed contexts actions eta beta value duality_gap policy_tv_maximin"
    assert set(written["instances"][0]) == {*fields.split(), "policy_tv_loss", "seconds"}
    assert set(written["negative_controls"][0]) == {"name", "duality_gap", "expected"}
    image = (tmp_path / "new" / "folder" / "verify.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("holds:") == 4


def test_property_the_positive_control_is_a_separate_claim(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for gap, holds in ((1e-16, True), (-1e-9, False)):
        positive = NegativeControl("convex-like finite class", gap, 0.0)
        code, written = verify(monkeypatch, tmp_path / str(gap), [GOOD], [CONTROL, positive])
        assert (code == 0) is holds
        assert "convex-like but not convex" in written["claims"][4]["name"]
        assert written["claims"][4]["measured"] == abs(gap)


@pytest.mark.parametrize(
    ("claim", "records", "controls"),
    [
        (0, [GOOD._replace(duality_gap=1e-9)], [CONTROL]),
        (0, [GOOD, GOOD._replace(duality_gap=float("nan"))], [CONTROL]),
        (1, [GOOD._replace(policy_tv_maximin=2e-6)], [CONTROL]),
        (1, [GOOD._replace(policy_tv_maximin=float("inf")), GOOD], [CONTROL]),
        (2, [GOOD._replace(policy_tv_loss=2e-6)], [CONTROL]),
        (3, [GOOD], [CONTROL._replace(duality_gap=0.0)]),
    ],
)
def test_property_a_claim_that_fails_is_reported_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    claim: int,
    records: list[Agreement],
    controls: list[NegativeControl],
) -> None:
    code, written = verify(monkeypatch, tmp_path, records, controls)
    assert code == 1
    assert [row["holds"] for row in written["claims"]] == [i != claim for i in range(4)]
    assert capsys.readouterr().out.count("FAILS:") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--instances", "0"],
        ["--instances", "many"],
        ["--instances", "1.5"],
        ["--seed", "-1"],
        ["--unknown"],
    ],
)
def test_raises_one_line_for_a_bad_option(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert options[0] in error
    assert not (tmp_path / "out").exists()


def test_raises_before_any_work_if_nothing_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    assert main(["verify", "--out", str(occupied)]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert occupied.read_text() == "kept"


def test_closed_form_rigorous_adds_the_proven_gaps_and_a_claim(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = GOOD._replace(proven_duality_gap=2e-10)
    code, written = verify(
        monkeypatch, tmp_path / "good", [good, GOOD._replace(proven_duality_gap=0.0)], [CONTROL]
    )
    assert code == 0
    assert written["claims"][4]["measured"] == pytest.approx(1e-10)
    assert [row["proven_duality_gap"] for row in written["instances"]] == [2e-10, 0.0]
    bad = GOOD._replace(proven_duality_gap=float("inf"))
    code, written = verify(monkeypatch, tmp_path / "bad", [good, bad], [CONTROL])
    assert code == 1
    assert [claim["holds"] for claim in written["claims"]] == [True] * 4 + [False]


def test_closed_form_a_class_of_the_user_adds_instances(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(n: int, seed: int, reward_class: Any, **options: Any) -> list[Agreement]:
        assert float(reward_class.budget) == 2.0
        assert (n, seed, options["shape"], options["rigorous"]) == (20, 0, (1, 3), False)
        return [GOOD._replace(family=options["name"])] * n

    monkeypatch.setattr(agreement, "measure_class", measure)
    monkeypatch.chdir(Path(__file__).parents[3])
    options = ["--problem", "examples/budget_problem.json"]
    with jax.numpy_dtype_promotion("standard"):
        code, written = verify(
            monkeypatch, tmp_path, [GOOD], [CONTROL], "--reward-class", BUDGET, *options
        )
    assert code == 0
    assert [row["family"] for row in written["instances"]] == ["tabular"] + [BUDGET] * 20


@pytest.mark.slow
def test_theorem_holds_for_a_class_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    options = ["--reward-class", BUDGET, "--problem", "examples/budget_problem.json"]
    with jax.numpy_dtype_promotion("standard"):
        assert main(["verify", "--instances", "2", *options, "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "verify.json").read_text())
    assert sum(row["family"] == BUDGET for row in written["instances"]) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward-class", "examples.budget"], "must be of the form module:Class"),
        (["--reward-class", "examples.none:Budget"], "cannot import examples.none"),
        (["--reward-class", BUDGET], "give its parameters as the keys of `reward_class`"),
        (["--reward-class", "rpo_theory.rewards:Unbounded"], "Unbounded is not compact"),
        (["--problem", "examples/budget_problem.json"], "argument --problem: needs --reward-class"),
        (["--reward-class", BUDGET, "--problem", "none.json"], "none.json"),
    ],
)
def test_raises_one_line_for_a_class_that_cannot_be_checked(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert main(["verify", *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_raises_rigorous_without_python_flint_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flint", None)
    assert main(["verify", "--rigorous", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'rpo-theory[rigorous]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
