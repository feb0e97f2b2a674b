"""Claims about ``rpo solve``: the answer, its certificate, the JSON document, the summary."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from rpo import cli
from rpo.solving.answer import SOLVERS, solve_task
from rpo.solving.summary import write_summary
from rpo.solving.tasks import task_from_votes

GAP = 1e-10
"""Largest duality gap of a solved problem, in nats relative to max(1, abs(value))."""
PRINTED = 6e-4
"""Half a unit of the third printed digit, with a margin for the sum of two."""
ROUNDING = 1e-12
"""Sums of a few dozen rounded float64 numbers."""
ORACLE = 1e-6
"""Accuracy of SciPy's minimizer on these problems, in total variation."""
VOTES_CPU_SECONDS = 10.0
"""Five seconds of the two cores that the bar is set for."""

HALVES = [[0.5, 0.5]]
PROBLEM: dict[str, Any] = {
    "context_weights": [0.4, 0.6],
    "reference_policy": [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]],
    "baseline_policy": [[0.3, 0.4, 0.3], [0.1, 0.8, 0.1]],
    "comparisons": [[0, 0, 1, 3], [0, 1, 0, 2], [0, 1, 2, 1.5], [1, 0, 2, 1], [1, 2, 0, 4]],
    "beta": 0.3,
    "eta": 0.7,
    "reward_class": {"kind": "tabular", "max": 1.5},
}
VOTES = """context,winner,loser,count
q,[bold]x,y,6
q,y,[bold]x,2
p,y,\x1bz,3
p,\x1bz,y,1
"""


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def solve(
    capsys: pytest.CaptureFixture[str], folder: Path, problem: Any, *options: str, code: int = 0
) -> dict[str, Any]:
    """Run the command on a problem; return its document, read by a strict parser."""
    (folder / "problem.json").write_text(json.dumps(problem))
    return run(capsys, str(folder / "problem.json"), *options, code=code)


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    assert cli.main(["solve", *argv]) == code
    return json.loads(capsys.readouterr().out, parse_constant=refuse_constant)


def rpo_loss(reward: np.ndarray, problem: dict[str, Any]) -> float:
    """F(r) of eq. 4.4 in plain NumPy, comparison by comparison."""
    reward = reward.reshape(np.shape(problem["reference_policy"]))
    beta, n_comparisons = problem["beta"], sum(row[3] for row in problem["comparisons"])
    log_z = np.log(np.sum(problem["reference_policy"] * np.exp(reward / beta), axis=1))
    margin = beta * log_z - np.sum(problem["baseline_policy"] * reward, axis=1)
    loss = problem["eta"] * np.dot(problem["context_weights"], margin)
    for x, winner, loser, count in problem["comparisons"]:
        loss += count / n_comparisons * np.log1p(np.exp(reward[x, loser] - reward[x, winner]))
    return float(loss)


def test_closed_form_policy_and_value_are_those_that_scipy_finds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    got = solve(capsys, tmp_path, PROBLEM)
    best = scipy.optimize.minimize(
        rpo_loss,
        np.full(6, 0.7),
        (PROBLEM,),
        bounds=[(0.0, 1.5)] * 6,
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    gibbs = PROBLEM["reference_policy"] * np.exp(best.x.reshape(2, 3) / PROBLEM["beta"])
    gibbs /= gibbs.sum(axis=1, keepdims=True)
    assert np.abs(np.subtract(got["policy"], gibbs)).sum(axis=1).max() / 2 < ORACLE
    assert got["value"] == pytest.approx(best.fun, abs=GAP)
    assert got["value"] == pytest.approx(rpo_loss(np.array(got["reward"]), PROBLEM), abs=ROUNDING)
    assert 0 <= got["duality_gap"] <= GAP
    assert got["kkt_residual"] <= GAP
    assert got["status"] == "solved"
    assert got["message"].startswith("Solved")
    assert "gap" not in got
    assert "ranking" not in got


@pytest.mark.parametrize("formulation", SOLVERS)
def test_theorem_every_formulation_gives_the_same_certified_policy(
    formulation: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    exact = solve(capsys, tmp_path, PROBLEM)
    got = solve(capsys, tmp_path, PROBLEM, "--formulation", formulation)
    assert got["formulation"] == formulation
    assert np.abs(np.subtract(got["policy"], exact["policy"])).sum(axis=1).max() / 2 < ORACLE
    assert got["duality_gap"] < ORACLE


def test_closed_form_unbounded_class_satisfies_s1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    got = solve(capsys, tmp_path, PROBLEM | {"reward_class": {"kind": "unbounded"}})
    assert got["duality_gap"] is None
    assert got["message"].startswith("Solved: the stationarity residual meets the tolerance.")
    assert got["stationarity_residual"] < GAP
    assert got["kkt_residual"] < GAP
    expected = np.array(PROBLEM["baseline_policy"])
    reward, n_comparisons = np.array(got["reward"]), sum(row[3] for row in PROBLEM["comparisons"])
    for x, winner, loser, count in PROBLEM["comparisons"]:
        surprise = 1.0 / (1.0 + np.exp(reward[x, winner] - reward[x, loser]))
        flow = count * surprise / (PROBLEM["eta"] * n_comparisons * PROBLEM["context_weights"][x])
        expected[x, winner] += flow
        expected[x, loser] -= flow
    np.testing.assert_allclose(got["policy"], expected, atol=GAP)


@pytest.mark.parametrize(
    ("beta", "gap", "duality_gap"),
    [(0.5, 0.344, 0.546), (0.2, 0.523, 0.870), (0.1, 0.589, 0.982), (0.05, 0.600, 1.000)],
)
def test_theorem_fails_on_the_non_convex_class_by_the_printed_numbers(
    beta: float,
    gap: float,
    duality_gap: float,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    members = [[[1, 0, 0.6]], [[0, 1, 0.6]]]
    problem = {
        "context_weights": [1],
        "reference_policy": [[1 / 3, 1 / 3, 1 / 3]],
        "baseline_policy": [[0, 0, 1]],
        "comparisons": [],
        "beta": beta,
        "eta": 2,
        "reward_class": {"kind": "finite", "rewards": members},
        "comparator": [[0, 0, 1]],
    }
    answers = [solve(capsys, tmp_path, problem | {"true_reward": truth}) for truth in members]
    assert max(answer["gap"] for answer in answers) == pytest.approx(gap, abs=PRINTED)
    assert answers[0]["duality_gap"] / 2 == pytest.approx(duality_gap, abs=PRINTED)
    assert answers[0]["coverage"] == 0
    assert "not convex" in answers[0]["message"]


@pytest.mark.parametrize(
    ("n", "eta", "gap"), [(100, 0.0, 1.0), (100, 0.1, 0.080), (1000, 1000**-0.5, 0.018)]
)
def test_golden_type_one_hacking_fools_dpo_and_not_rpo(
    n: int, eta: float, gap: float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rate = 1 / (1 + np.exp(-0.5))
    problem = {
        "context_weights": [1],
        "reference_policy": [[1 / 3, 1 / 3, 1 / 3]],
        "baseline_policy": "chosen",
        "comparisons": [[0, 0, 1, (n - 1) * rate], [0, 1, 0, (n - 1) * (1 - rate)], [0, 2, 0, 1]],
        "beta": n**-0.5,
        "eta": eta,
        # Under DPO the arm that never loses gets the top of the box: 1.00 needs more room than 1.
        "reward_class": {"kind": "tabular", "max": 4},
        "true_reward": [[1, 0.5, 0]],
    }
    got = solve(capsys, tmp_path, problem)
    assert got["gap"] == pytest.approx(gap, abs=PRINTED)


def test_golden_coverage_is_one_over_the_root_of_the_informative_share(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    problem = {
        "context_weights": [1],
        "reference_policy": HALVES,
        "baseline_policy": [[0, 1]],
        "comparisons": [[0, 0, 1, 3], [0, 1, 0, 1], [0, 0, 0, 96]],
        "beta": 1,
        "eta": 1,
        "reward_class": {"kind": "unbounded"},
        "true_reward": [[0.5, 0]],
    }
    got = solve(capsys, tmp_path, problem)
    assert got["coverage"] == pytest.approx(5.0, rel=ROUNDING)  # share 4 / 100, C = .04 ** -.5
    problem["comparisons"] = [[0, 0, 0, 96]]
    got = solve(capsys, tmp_path, problem)
    assert got["coverage"] is None
    assert any("coverage is infinite" in note for note in got["notes"])


def test_extreme_true_reward_outside_the_class_has_a_gap_and_no_coverage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    got = solve(capsys, tmp_path, PROBLEM | {"true_reward": [[0, 9, 0], [0, 9, 0]]})
    probability = np.array(got["policy"])[:, 1]
    expected = 9 - 9 * np.dot(PROBLEM["context_weights"], probability)
    assert got["gap"] == pytest.approx(expected, rel=ROUNDING)
    assert got["coverage"] is None
    assert any("not in the class" in note for note in got["notes"])


def test_closed_form_default_comparator_is_the_best_action_that_the_reference_reaches(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    problem = PROBLEM | {
        "reference_policy": [[0.5, 0.5, 0], [0.2, 0.4, 0.4]],
        "true_reward": [[0, 0.5, 1], [1, 0, 0]],
    }
    got = solve(capsys, tmp_path, problem)
    value = np.einsum(
        "x,xa,xa->", problem["context_weights"], got["policy"], problem["true_reward"]
    )
    assert got["gap"] == pytest.approx(0.4 * 0.5 + 0.6 * 1.0 - value, rel=ROUNDING)


def test_extreme_rewards_that_diverge_are_null_in_strict_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    problem = {
        "context_weights": [1],
        "reference_policy": [[0.4, 0.3, 0.3]],
        "baseline_policy": "chosen",
        "comparisons": [[0, 0, 1, 3], [0, 1, 0, 1], [0, 0, 2, 2]],
        "beta": 0.5,
        "eta": 1,
        "reward_class": {"kind": "unbounded"},
    }
    got = solve(capsys, tmp_path, problem)
    assert got["status"] == "not_attained"
    assert got["reward"][0][2] is None
    assert got["policy"][0][2] == 0
    assert got["stationarity_residual"] < GAP
    assert any("minus infinity" in note for note in got["notes"])


def test_raises_exit_code_1_and_a_message_if_there_is_no_solution(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    problem = {
        "context_weights": [1],
        "reference_policy": [[1, 0]],
        "baseline_policy": HALVES,
        "comparisons": [],
        "beta": 1,
        "eta": 1,
        "reward_class": {"kind": "unbounded"},
    }
    got = solve(capsys, tmp_path, problem, code=1)
    assert got["status"] == "unbounded"
    assert got["message"].startswith("No solution")


@pytest.mark.parametrize("beta", [1e-300, 1e-4, 1e4, 1e300])
@pytest.mark.parametrize("eta", [0.0, 1e-4, 1e4, 1e300])
def test_extreme_weights_end_with_a_status_and_strict_json(
    beta: float, eta: float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "problem.json").write_text(json.dumps(PROBLEM | {"beta": beta, "eta": eta}))
    code = cli.main(["solve", str(tmp_path / "problem.json")])
    got = json.loads(capsys.readouterr().out, parse_constant=refuse_constant)
    assert code == (0 if got["status"] == "solved" else 1)
    if got["status"] == "solved":
        np.testing.assert_allclose(np.sum(got["policy"], axis=1), 1.0, atol=ROUNDING)
    elif 1e-4 <= beta <= 1e4 and eta <= 1e4:
        pytest.fail(got["message"])


def test_property_duplicate_and_self_comparisons_change_nothing_in_the_policy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole = solve(capsys, tmp_path, PROBLEM | {"comparisons": [[0, 0, 1, 2], [1, 2, 0, 2]]})
    halves = [[0, 0, 1, 1], [1, 2, 0, 2], [0, 0, 1, 1]]
    parts = solve(capsys, tmp_path, PROBLEM | {"comparisons": halves})
    assert parts["policy"] == whole["policy"]
    # Self comparisons dilute the data: four of them among eight, and eta counts double.
    diluted = [*halves, [0, 1, 1, 4]]
    got = solve(capsys, tmp_path, PROBLEM | {"comparisons": diluted, "eta": PROBLEM["eta"] / 2})
    np.testing.assert_allclose(got["policy"], whole["policy"], atol=1e-9)


def test_roundtrip_standard_input_is_a_problem(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = solve(capsys, tmp_path, PROBLEM)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(PROBLEM).encode())))
    assert run(capsys, "-") == expected


@pytest.fixture
def votes(tmp_path: Path) -> str:
    path = tmp_path / "votes.csv"
    path.write_text(VOTES)
    return str(path)


def test_roundtrip_votes_are_answered_with_names_and_dpo_beside(
    votes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got = run(capsys, "--votes", votes)
    assert got["contexts"] == ["p", "q"]
    assert got["actions"] == ["\x1bz", "[bold]x", "y"]
    assert got["beta"] == got["eta"] == pytest.approx(12**-0.5)
    assert np.max(got["reward"]) <= 4
    without = run(capsys, "--votes", votes, "--eta", "0")
    assert got["dpo"]["policy"] == without["policy"] != got["policy"]
    for answer in (got, got["dpo"]):
        assert answer["status"] == "solved"
        assert answer["duality_gap"] <= GAP
        average = np.dot([4 / 12, 8 / 12], answer["policy"])
        order = [got["actions"].index(name) for name in answer["ranking"]]
        np.testing.assert_allclose(answer["ranking_probability"], average[order], atol=ROUNDING)
        assert answer["ranking_probability"] == sorted(answer["ranking_probability"], reverse=True)


def test_property_options_of_votes_have_their_effect(
    votes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--beta", "0.5", "--reward-max", "0.25", "--context-weights", "uniform"]
    got = run(capsys, "--votes", votes, "--eta", "0.25", *options)
    assert (got["beta"], got["eta"]) == (0.5, 0.25)
    assert np.max(got["reward"]) == pytest.approx(0.25)
    average = np.mean(got["policy"], axis=0)
    best = got["actions"].index(got["ranking"][0])
    assert got["ranking_probability"][0] == pytest.approx(average[best], abs=ROUNDING)


def test_limit_large_eta_returns_the_chosen_baseline(
    votes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    strong = ["--eta", "1e6", "--beta", "1", "--reward-max", "20"]
    reference = run(capsys, "--votes", votes, *strong, "--baseline", "reference")
    # The reference is uniform over the two actions that occur in a context.
    np.testing.assert_allclose(reference["policy"], [[0.5, 0, 0.5], [0, 0.5, 0.5]], atol=1e-5)
    chosen = run(capsys, "--votes", votes, *strong, "--baseline", "chosen")
    expected = [[0.25, 0, 0.75], [0, 0.75, 0.25]]
    np.testing.assert_allclose(chosen["policy"], expected, atol=1e-5)


def test_property_contexts_without_votes_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "v.csv").write_text(VOTES + "empty,y,[bold]x,0\n")
    got = run(capsys, "--votes", str(tmp_path / "v.csv"))
    reference = task_from_votes(str(tmp_path / "v.csv"), baseline="reference")
    for notes, named in ((got["notes"], True), (reference.notes, False)):
        about_baseline = [note for note in notes if "baseline" in note]
        assert any("1 context: empty" in note for note in about_baseline) == named


def test_theorem_real_votes_are_ranked_with_a_proof_in_a_few_seconds(shared_data: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = shared_data / "pandalm-votes.csv"
    argv = [sys.executable, "-m", "rpo", "solve", "--votes", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < VOTES_CPU_SECONDS
    got = json.loads(done.stdout, parse_constant=refuse_constant)
    assert np.shape(got["policy"]) == (49, 5)
    assert got["comparisons"] == 2671
    for answer in (got, got["dpo"]):
        assert answer["status"] == "solved"
        assert answer["duality_gap"] <= GAP
        assert sorted(answer["ranking"]) == got["actions"]
    # The model with the largest share of won comparisons leads.
    rows = [line.rsplit(",", 3) for line in path.read_text("utf-8").splitlines()[1:]]
    won = {name: sum(int(n) for _, w, _, n in rows if w == name) for name in got["actions"]}
    lost = {name: sum(int(n) for *_, who, n in rows if who == name) for name in got["actions"]}
    assert got["ranking"][0] == max(won, key=lambda name: won[name] / (won[name] + lost[name]))
    assert "RPO" in done.stderr
    assert "DPO (eta = 0)" in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_property_summary_shows_both_rankings_and_escapes_names(
    votes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["solve", "--votes", votes]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.err
    assert "[bold]x" in captured.err
    assert "\\x1bz" in captured.err
    assert "Solved" in captured.err
    terminal = Terminal()
    write_summary(solve_task(task_from_votes(votes)), terminal)
    shown = terminal.getvalue()
    assert "[bold]x" in shown
    assert "\\x1bz" in shown
    assert "\x1bz" not in shown


@pytest.mark.parametrize(
    ("rows", "verdict"), [("a,b,9\nb,c,9\n", "is the same"), ("a,b,9\nb,a,4\nc,a,1\n", "differs")]
)
def test_property_summary_of_one_context_compares_its_most_likely_actions(
    rows: str, verdict: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "votes.csv").write_text(f"winner,loser,count\n{rows}")
    assert cli.main(["solve", "--votes", str(tmp_path / "votes.csv")]) == 0
    assert f"The most likely action {verdict}; its probability is " in capsys.readouterr().err


def test_property_summary_names_the_most_likely_actions_of_a_problem(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "problem.json").write_text(json.dumps(PROBLEM | {"baseline_policy": "chosen"}))
    assert cli.main(["solve", str(tmp_path / "problem.json")]) == 0
    out, err = capsys.readouterr()
    got = json.loads(out)
    rows = [line.split() for line in err.splitlines()]
    for x, policy in enumerate(got["policy"]):
        assert [str(x), str(np.argmax(policy)), f"{max(policy):.4f}"] in rows


def test_closed_form_rigorous_prints_a_proven_gap_that_is_rounded_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "problem.json").write_text(json.dumps(PROBLEM))
    assert cli.main(["solve", str(tmp_path / "problem.json"), "--rigorous"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out, parse_constant=refuse_constant)
    assert 0.0 < answer["proven_duality_gap"] <= GAP
    (line,) = [text for text in printed.err.splitlines() if "proven at most" in text]
    assert answer["proven_duality_gap"] <= float(line.split()[-1]) <= GAP


@pytest.mark.parametrize("missing", [False, True], ids=["unbounded class", "no python-flint"])
def test_raises_rigorous_says_in_one_line_why_nothing_can_be_proven(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: bool,
) -> None:
    expected = "must have a method `exact_form`"
    if missing:
        monkeypatch.setitem(sys.modules, "flint", None)
        expected = "pip install 'rpo-theory[rigorous]'"
    (tmp_path / "problem.json").write_text(
        json.dumps({**PROBLEM, "reward_class": {"kind": "unbounded"}})
    )
    assert cli.main(["solve", str(tmp_path / "problem.json"), "--rigorous"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    assert expected in printed.err
