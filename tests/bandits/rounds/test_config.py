"""Validation of the configuration of rounds."""

from __future__ import annotations

from typing import Any

import pytest

from bandits.rounds import QuickRounds, RoundsConfig, RoundsMethod
from bandits.rounds.config import _check_name

GREEDY = RoundsMethod(method="two_stage")


def config(**changes: Any) -> RoundsConfig:
    return RoundsConfig(**{"name": "a", "methods": [GREEDY], "rounds": 2, "seeds": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "`rounds` must be a whole number from 1 to 100000, got 0"),
        ({"pairs_per_round": 0}, "`pairs_per_round` must be a whole number from 1"),
        ({"seeds": 0}, "`seeds` must be a whole number from 1"),
        ({"first_seed": -1}, "`first_seed` must be a whole number from 0"),
        ({"methods": []}, "`methods` must not be empty"),
        ({"methods": [GREEDY, GREEDY]}, "`label` must differ between methods"),
        ({"beta": 0.0}, "`beta` must be finite and greater than 0, got 0.0"),
        ({"eta": -1.0}, "`eta` must be finite and at least 0, got -1.0"),
        ({"name": "a b"}, "`name` must consist of letters"),
        ({"quick": QuickRounds(rounds=0)}, "the sizes under `quick`: `rounds` must be"),
    ],
)
def test_raises_for_a_study_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rpo_optimist"}, "`method` must be one of .*did you mean rpo_optimistic"),
        ({"method": "rpo", "label": "$"}, "`label` must be printable text without"),
    ],
)
def test_raises_for_an_unknown_method(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoundsMethod(**changes)


def test_raises_for_an_unknown_name_where_no_type_checker_runs() -> None:
    _check_name("sampling", "policy", ("baseline", "policy"))
    with pytest.raises(ValueError, match="`sampling` must be one of baseline, policy, got 'self'"):
        _check_name("sampling", "self", ("baseline", "policy"))


def test_property_the_quick_version_replaces_only_sizes() -> None:
    quick = config(quick=QuickRounds(rounds=1)).quick_version()
    assert (quick.rounds, quick.seeds, quick.quick) == (1, 2, QuickRounds())


def test_property_a_methods_default_baseline_is_that_of_the_environment() -> None:
    assert RoundsMethod(method="rpo").options.baseline == "given"
    named = RoundsMethod(method="rpo", options={"baseline": "chosen"})
    assert named.options.baseline == "chosen"
