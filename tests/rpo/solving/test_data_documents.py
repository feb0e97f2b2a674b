"""Rankings, choices and ties of problem files: what is read, and mistakes named by line and key."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rpo.solving.problem_files import from_document
from rpo_io.json_document import DocumentError, parse_document
from rpo_theory import DavidsonTies, RaoKupperTies

GOOD: dict[str, Any] = {
    "context_weights": [0.5, 0.5],
    "reference_policy": [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]],
    "baseline_policy": "chosen",
    "rankings": [[0, [2, 0, 1], 3], [0, [1, 0], 2]],
    "choices": [[1, [0, 1, 2], 1, 1.5]],
    "beta": 0.5,
    "eta": 0.25,
    "reward_class": {"kind": "tabular", "max": 2},
}
TIED = {"ties": [[0, 0, 1, 2]], "tie_model": "davidson", "tie_parameter": 0.7}


def read(**changes: Any) -> Any:
    document = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return from_document(parse_document(json.dumps(document, indent=1).encode(), name="p.json"))


def test_closed_form_pairs_join_the_wins_and_first_ranks_are_the_baseline() -> None:
    file = read()
    assert file.problem.wins[0, 1, 0] == file.problem.wins.sum() == 2.0
    np.testing.assert_allclose(file.problem.baseline_policy, [[0, 0.4, 0.6], [0, 1, 0]])
    assert file.problem.choices.wins.sum() == 3.0 + 3.0 + 1.5
    assert file.problem.ties is None
    assert file.observations == {"comparisons": 0, "rankings": 5, "choices": 1.5, "ties": 0}


def test_closed_form_with_ties_a_ranking_of_two_is_no_comparison() -> None:
    file = read(**TIED, comparisons=[[0, 2, 1, 4]])
    assert isinstance(file.problem.ties, DavidsonTies)
    assert float(file.problem.ties.parameter) == 0.7
    assert file.problem.wins.sum() == 4.0
    assert file.problem.choices.wins.sum() == 2.0 + 3.0 + 3.0 + 1.5
    np.testing.assert_allclose(file.problem.baseline_policy[0], [1 / 11, 3 / 11, 7 / 11])
    other = read(**TIED | {"tie_model": "rao_kupper", "tie_parameter": 1.5})
    assert isinstance(other.problem.ties, RaoKupperTies)


def test_property_a_model_without_ties_and_without_parameter_changes_nothing() -> None:
    assert read(tie_model="davidson").problem.ties is None
    assert read(tie_model="davidson", ties=[]).problem.ties is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rankings": [[0, [0, 1, 0], 1]]}, "`rankings[0][1][2]` must not repeat an action, got 0"),
        ({"rankings": [[0, [0, 3], 1]]}, "`rankings[0][1][1]` must be the index of an action"),
        ({"rankings": [[0, [0, 1.0], 1]]}, "`rankings[0][1][1]` must be the index of an action"),
        ({"rankings": [[0, [0, "a"], 1]]}, "`rankings[0][1][1]` must be the index of an action"),
        ({"rankings": [[2, [0, 1], 1]]}, "`rankings[0][0]` must be the index of a context"),
        ({"rankings": [[0, [0], 1]]}, "`rankings[0][1]` must have at least two actions, got 1"),
        ({"rankings": [[0, [0, 1], -1]]}, "`rankings[0][2]` must be a count, a number from 0 to"),
        ({"rankings": [[0, [0, 1], float("nan")]]}, "`rankings[0][2]` must be a count, a number"),
        ({"rankings": [[0, [0, 1], 1], [0, 5, 1]]}, "`rankings[1][1]` must be a list of actions"),
        ({"rankings": [[0, [0, 1]]]}, "`rankings[0]"),
        ({"rankings": 1}, "`rankings` must be a list, got 1"),
        ({"choices": [[0, [0, 1], 2, 1]]}, "`choices[0][2]` must be in the set of the choice, got"),
        ({"choices": [[0, [1], 1, 1]]}, "`choices[0][1]` must have at least two actions, got 1"),
        ({"choices": [[0, [0, 1], 0, "1"]]}, "`choices[0][3]` must be a count"),
        ({"ties": [[0, 0, 1, 2]]}, '`tie_model` is missing: ties need a model, "davidson" or'),
        (TIED | {"tie_model": "elo"}, '`tie_model` must be "davidson" or "rao_kupper", got "elo"'),
        (TIED | {"tie_parameter": 0}, '`tie_parameter` must be greater than 0 for "davidson"'),
        (
            TIED | {"tie_model": "rao_kupper", "tie_parameter": 1},
            '`tie_parameter` must be greater than 1 for "rao_kupper", got 1',
        ),
        ({"tie_parameter": 0.5}, "`tie_parameter` needs `tie_model`"),
        (TIED | {"ties": [[0, 1, 1, 2]]}, "`ties[0][2]` must be another action: an action cannot"),
        (TIED | {"ties": [[0, 0, 1, -2]]}, "`ties[0][3]` must be a count, a number from 0"),
        ({"rankings": None, "choices": None}, "`comparisons` is missing"),
        (
            TIED
            | {"reward_class": {"kind": "unbounded"}, "baseline_policy": [[0, 0, 1], [1, 0, 0]]}
            | {"reference_policy": [[0.5, 0.5, 0], [0.5, 0.5, 0]]},
            "`baseline_policy[0][2]` must be 0 where the reference policy is 0",
        ),
    ],
)
def test_raises_and_names_line_and_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError) as raised:
        read(**changes)
    where, _, rule = str(raised.value).partition(": ")
    assert where.startswith("p.json, line ")
    assert rule.startswith(message)
    assert "\n" not in rule
