"""Claims about tasks of ``rpo solve``: options, Python values and arrays, remarks on votes."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo import api, cli
from rpo.solving.problem_files import class_document
from rpo.solving.summary import write_summary
from rpo.solving.tasks import task_from_problem, task_from_votes
from rpo_theory.rewards import FiniteClass, LinearBall, TabularBox, Unbounded
from rpo_theory.types import Problem

GOOD: dict[str, Any] = {
    "context_weights": [0.4, 0.6],
    "reference_policy": [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]],
    "baseline_policy": [[0.3, 0.4, 0.3], [0.1, 0.8, 0.1]],
    "comparisons": [[0, 0, 1, 3], [0, 1, 0, 2], [0, 1, 2, 1.5], [1, 0, 2, 1], [1, 2, 0, 4]],
    "beta": 0.3,
    "eta": 0.7,
    "reward_class": {"kind": "tabular", "max": 1.5},
}
LINEAR = {"kind": "linear", "features": [[[1.0], [0.5], [0.0]]] * 2, "radius": 1.0}
# One vote makes DPO certain of eve; RPO stays with ada, who won twelve of twenty.
FAREWELL = """context,winner,loser,count
greeting,ada,bob,18
greeting,bob,ada,9
greeting,bob,eve,4
farewell,ada,bob,12
farewell,bob,ada,8
farewell,eve,ada,1
"""


def command(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[Any, str]:
    capsys.readouterr()
    assert cli.main(["solve", *argv]) == code
    shown = capsys.readouterr()
    return json.loads(shown.out or "null"), shown.err


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--eta", "0.1", "--beta", "0.2"], {"eta": 0.1, "beta": 0.2}),
        (["--reward-max", "0.5"], {"reward_class": {"kind": "tabular", "max": 0.5}}),
        (["--baseline", "chosen", "--eta", "0"], {"baseline_policy": "chosen", "eta": 0}),
        (["--baseline", "reference"], {"baseline_policy": "reference"}),
    ],
)
def test_parity_an_option_is_the_same_as_the_value_in_the_file(
    options: list[str],
    changes: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "p.json").write_text(json.dumps(GOOD))
    (tmp_path / "changed.json").write_text(json.dumps(GOOD | changes))
    expected, _ = command(capsys, str(tmp_path / "changed.json"))
    assert command(capsys, str(tmp_path / "p.json"), *options)[0] == expected
    for key in ("beta", "eta", "reward_class"):
        assert expected[key] == (GOOD | changes)[key]
    assert expected["baseline"] == changes.get("baseline_policy", "given")
    if "reward_class" not in changes:  # an option may stand for a missing key
        absent = {key: value for key, value in GOOD.items() if key not in changes}
        (tmp_path / "absent.json").write_text(json.dumps(absent))
        assert command(capsys, str(tmp_path / "absent.json"), *options)[0] == expected


def test_raises_for_an_option_that_does_not_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in (LINEAR, {"kind": "unbounded"}, {"kind": "finite", "rewards": [[[0, 0, 0]] * 2]}):
        (tmp_path / "p.json").write_text(json.dumps(GOOD | {"reward_class": kind}))
        _, message = command(capsys, str(tmp_path / "p.json"), "--reward-max", "2", code=2)
        rule = "applies to the reward class tabular, and that of the problem is"
        assert f"error: argument --reward-max: {rule} {kind['kind']}" in message
    _, message = command(capsys, str(tmp_path / "p.json"), "--context-weights", "votes", code=2)
    assert message.startswith("rpo: error: argument --context-weights: goes with --votes")


def as_arrays(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with NumPy and JAX arrays, tuples and NumPy scalars as values."""
    return document | {
        "context_weights": tuple(document["context_weights"]),
        "reference_policy": np.array(document["reference_policy"]),
        "baseline_policy": jnp.asarray(document["baseline_policy"]),
        "beta": np.float64(document["beta"]),
        "eta": np.array(document["eta"]),
    }


def test_parity_a_file_a_mapping_arrays_and_a_problem_are_one_problem(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(GOOD))
    expected = api.solve(tmp_path / "p.json").to_dict()
    wins = np.zeros((2, 3, 3))
    for x, winner, loser, count in GOOD["comparisons"]:
        wins[x, winner, loser] = count
    table = {key: value for key, value in GOOD.items() if key != "comparisons"} | {"wins": wins}
    for source in (GOOD, as_arrays(GOOD), table, as_arrays(table)):
        before = copy.deepcopy(source)
        assert api.solve(source).to_dict() == expected
        assert str(source) == str(before)
    problem = task_from_problem(GOOD).problem
    assert api.solve(problem, reward_max=1.5).policy.tolist() == expected["policy"]
    stronger = api.solve(GOOD, eta=2.0, beta=0.1)
    assert api.solve(problem, reward_max=1.5, eta=2.0, beta=0.1).policy.tolist() == (
        stronger.policy.tolist()
    )
    assert (stronger.eta, stronger.beta) == (2.0, 0.1)
    from_wins = api.solve(wins)
    assert from_wins.eta == from_wins.beta == pytest.approx(wins.sum() ** -0.5)
    assert from_wins.baseline == "chosen"
    uniform = Problem.from_wins(wins, beta=from_wins.beta, eta=from_wins.eta)
    assert api.solve(wins.tolist()).policy.tolist() == from_wins.policy.tolist()
    assert api.solve(uniform).policy.tolist() == from_wins.policy.tolist()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({**GOOD, "bta": 1}, "the problem: `bta` is not a known key: did you mean `beta`?"),
        ({**GOOD, "eta": np.nan}, "the problem: `eta` must be finite, got nan"),
        ({**GOOD, "eta": -1}, "the problem: `eta` must be at least 0, got -1"),
        ({**GOOD, "beta": True}, "the problem: `beta` must be a number, got true"),
        ({**GOOD, "beta": 10**400}, "the problem: `beta` must be finite, got inf"),
        ({**GOOD, "beta": 1j}, "the problem: `beta` must be a number, a string"),
        ({**GOOD, 3: 1}, "the problem: must have strings as keys, got 3"),
        ({**GOOD, "wins": np.zeros((2, 3, 3))}, "the problem: `wins` must not stand beside"),
        ({"beta": 1.0}, "the problem: `context_weights` is missing"),
        ({**GOOD, "comparisons": [[0, True, 1, 1]]}, "the problem: `comparisons[0][1]` must be"),
        ({**GOOD, "reference_policy": np.ones((2, 3))}, "the problem: `reference_policy[0]` must"),
        (np.zeros((2, 3, 3)), "`beta` must be given if there are no comparisons"),
        (-np.ones((1, 2, 2)), "`wins[0][0][0]` must be at least 0, got -1"),
        ([[[0, -1], [3, 0]]], "`wins[0][0][1]` must be at least 0, got -1"),
        ([[[1, 1], [3, 0]]], "`wins[0][0][0]` must be 0, got 1"),
    ],
)
def test_raises_for_wrong_values_with_the_name_of_the_key(source: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        api.solve(source)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@settings(deadline=None, max_examples=25)
@given(
    st.text(min_size=1, max_size=12).filter(lambda key: key not in {*GOOD, "true_reward", "wins"}),
    st.sampled_from([(), ("reward_class",)]),
    st.sampled_from([0, "text", [1], {"a": 1}, None]),
)
def test_property_a_further_key_of_a_problem_is_refused(
    key: str, path: tuple[str, ...], value: Any
) -> None:
    document = copy.deepcopy(GOOD)
    (document[path[0]] if path else document)[key] = value
    with pytest.raises(ValueError, match=r"is not a known key|needs `true_reward`|must be a list"):
        task_from_problem(document)


def test_closed_form_the_class_of_an_answer_is_described_by_its_bound() -> None:
    assert class_document(TabularBox(np.array(2.0))) == {"kind": "tabular", "max": 2.0}
    ball = LinearBall(np.ones((1, 2, 3)), np.array(0.5))
    assert class_document(ball) == {"kind": "linear", "radius": 0.5}
    assert class_document(FiniteClass(np.zeros((2, 1, 2)))) == {"kind": "finite"}
    assert class_document(Unbounded()) == {"kind": "unbounded"}


def test_golden_one_lucky_vote_decides_for_dpo_and_not_for_rpo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(FAREWELL)
    got, shown = command(capsys, "--votes", str(path))
    names, x = got["actions"], got["contexts"].index("farewell")
    assert names[int(np.argmax(got["policy"][x]))] == "ada"
    assert names[int(np.argmax(got["dpo"]["policy"][x]))] == "eve"
    assert shown.startswith("First over all contexts: ada (probability 0.83) under RPO")
    assert "differs in 1 of 2 contexts (farewell)" in shown
    lines = [line.split() for line in shown.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:2] == ["context", "action"])
    assert lines[start + 1 : start + 4] == [
        ["farewell", "ada", "0.6560", "0.0000"],
        ["eve", "0.2317", "1.0000"],
        ["bob", "0.1123", "0.0000"],
    ]


def test_property_contexts_are_shown_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "votes.csv"
    path.write_text(FAREWELL)
    monkeypatch.setattr("rpo.solving.summary._FEW_ROWS", 5)
    _, few = command(capsys, "--votes", str(path))
    assert "The policy of every context" in few
    assert len(few.split("farewell")) == 2  # in the sentence that names where choices differ
    _, shown = command(capsys, "--votes", str(path), "--contexts")
    assert [line.split()[-1] for line in shown.splitlines()[-6:]] == (
        ["0.0000", "1.0000", "0.0000", "0.9921", "0.0079", "0.0000"]
    )
    answer = api.solve(votes=path, contexts=True)
    assert len(answer.table_rows()) == 6
    assert list(answer.table_rows()[0]) == ["context", "action", "probability", "DPO"]
    (tmp_path / "p.json").write_text(json.dumps(GOOD))
    _, shown = command(capsys, str(tmp_path / "p.json"), "--contexts")
    assert [len(line.split()) for line in shown.splitlines()[-6:]] == [3, 2, 2, 3, 2, 2]


def test_closed_form_no_mass_goes_to_the_actions_of_other_contexts(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    rows = "tea,green,black,3\ntea,black,green,1\nsoup,leek,green,2\n"
    path.write_text("context,winner,loser,count\n" + rows)
    answer = api.solve(votes=path)
    tea = dict(zip(answer.actions or (), answer.policy[1], strict=True))
    soup = dict(zip(answer.actions or (), answer.policy[0], strict=True))
    assert tea["leek"] == soup["black"] == 0
    # With two actions F is a function of their difference alone: eq. 4.4 of one context.
    weight, beta = answer.eta * 4 / 6, answer.beta

    def loss(difference: float) -> float:
        log_z = beta * np.log(0.5 * np.exp(difference / beta) + 0.5)
        data = 3 / 6 * np.log1p(np.exp(-difference)) + 1 / 6 * np.log1p(np.exp(difference))
        return weight * (log_z - 0.75 * difference) + data

    found: Any = scipy.optimize.minimize_scalar(loss, bounds=(-4, 4), options={"xatol": 1e-10})
    best = found.x
    assert tea["green"] == pytest.approx(1 / (1 + np.exp(-best / beta)), abs=1e-7)
    assert answer.to_dict()["ranking_contexts"] == [
        {"green": 2, "black": 1, "leek": 1}[name] for name, _ in answer.ranking or ()
    ]
    assert any(note.startswith("2 of 3 actions do not occur") for note in answer.notes)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("q,a,b\nq,c,d\n", "1 context: q"),
        ("q,a,b\nq,c,d\np,a,b\nr,a,b\nr,c,d\n", "2 contexts: q, r"),
        ("q,a,b\nq,b,c\nq,c,d\n", None),
    ],
)
def test_property_contexts_whose_votes_do_not_connect_their_actions_are_named(
    rows: str, named: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("context,winner,loser\n" + rows)
    notes = [note for note in task_from_votes(str(path)).notes if "connect" in note]
    assert [named in note for note in notes if named] == ([True] if named else [])
    assert len(notes) == (named is not None)


def test_property_comparisons_of_an_action_with_itself_are_counted_in_a_problem() -> None:
    rows = [*GOOD["comparisons"], [0, 1, 1, 4]]
    (note,) = task_from_problem(GOOD | {"comparisons": rows}).notes
    assert note.startswith("Comparisons of an action with itself: 4. They say nothing")
    assert task_from_problem(GOOD).notes == ()


def test_extreme_weights_are_refused_by_name_or_end_with_a_status() -> None:
    for answer in (api.solve(GOOD, eta=1e308), api.solve(GOOD, beta=1e308)):
        assert answer.status in ("solved", "max_steps", "not_finite")
    rule = "`beta` must be greater than 0 and at least 2.23e-308, got 9.99988867e-321"
    for source in (GOOD, np.array([[[0, 3], [1, 0]]])):
        with pytest.raises(ValueError, match=rule):
            api.solve(source, beta=1e-320)


def test_property_the_summary_of_an_unsolved_problem_begins_with_the_reason() -> None:
    stopped = api.solve(GOOD | {"beta": 1e-300})
    stream = io.StringIO()
    write_summary(stopped, stream)
    assert stream.getvalue().startswith(stopped.message)
