"""Claims about the checks of choices and ties: each broken rule is named with its field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rpo_theory import data_checks
from rpo_theory.array_checks import InvalidProblemError
from rpo_theory.preference_data import Choices, DavidsonTies, RaoKupperTies

SHAPE = (2, 3)


def choices(**changes: Any) -> Choices:
    subsets = np.array([[True, True, False], [True, True, True]])
    wins = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    valid = Choices(
        contexts=np.array([0, 1]), subsets=subsets, wins=wins, first=np.array([True, True])
    )
    return valid._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contexts": np.array([0, 2])}, r"`choices.contexts\[1\]`.*index from 0 to 1, got 2"),
        ({"subsets": np.eye(3)[:2]}, r"`choices.subsets\[0\]`.*at least two actions"),
        ({"subsets": 2.0 * np.ones((2, 3))}, r"`choices.subsets\[0\]\[0\]`.*true or false"),
        ({"wins": -np.ones((2, 3))}, r"`choices.wins\[0\]\[0\]`.*at least 0"),
        ({"wins": np.ones((2, 3))}, r"`choices.wins\[0\]\[2\]`.*not in the set"),
        ({"wins": np.ones((2, 2))}, r"`choices.wins`.*shape"),
    ],
)
def test_raises_for_invalid_choices(changes: dict[str, Any], message: str) -> None:
    data_checks.validate_choices(choices(), SHAPE)
    with pytest.raises(InvalidProblemError, match=message):
        data_checks.validate_choices(choices(**changes), SHAPE)


def test_raises_for_invalid_ties() -> None:
    counts = np.zeros((*SHAPE, 3))
    data_checks.validate_ties(DavidsonTies(counts, 0.5), SHAPE)
    with pytest.raises(InvalidProblemError, match=r"greater than 0 for DavidsonTies, got 0"):
        data_checks.validate_ties(DavidsonTies(counts, 0.0), SHAPE)
    with pytest.raises(InvalidProblemError, match=r"greater than 1 for RaoKupperTies, got 0.5"):
        data_checks.validate_ties(RaoKupperTies(counts, 0.5), SHAPE)
    with pytest.raises(InvalidProblemError, match=r"cannot tie with itself"):
        data_checks.validate_ties(DavidsonTies(np.ones_like(counts), 0.5), SHAPE)
