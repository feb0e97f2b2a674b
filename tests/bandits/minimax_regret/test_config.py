"""Configuration of a study of minimax regret: its file, its weights and its messages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bandits.minimax_regret import MinimaxRegretConfig, RuleConfig, rewards_from_margins
from bandits.minimax_regret.config import reference_policy_of, weights_of, worlds_of

FILE = Path(__file__).resolve().parents[3] / "configs" / "study_minimax_regret.yaml"
RPO = RuleConfig(method="rpo")
PLAIN = MinimaxRegretConfig(
    name="a", methods=[RPO], comparisons=[20], margins=[0.5, 1.0], reward_max=2.0
)


def test_golden_the_file_of_the_study_has_the_worlds_of_the_documentation() -> None:
    values: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert values.pop("kind") == "minimax_regret"
    methods = [RuleConfig(**method) for method in values.pop("methods")]
    config = MinimaxRegretConfig(methods=methods, **values)
    worlds = worlds_of(config, 20)
    margins = np.geomspace(0.05, 2.0, 12)
    np.testing.assert_allclose(worlds.rewards, rewards_from_margins(margins, 2), atol=5e-7)
    np.testing.assert_array_equal(worlds.pair_distribution, [[0.75, 0.25], [0.0, 0.0]])


def test_closed_form_weights_are_those_of_the_theorem() -> None:
    n, reward_max, delta = 20, 2.0, 0.05
    kappa = (1.0 + math.exp(reward_max)) ** -2
    cells = math.ceil(reward_max / (2.0 / (6.0 * (1.0 + math.exp(reward_max)) * n)))
    eta = kappa * math.sqrt(24.0 * (2.0 * math.log(cells) - math.log(delta)) / n)
    assert weights_of(PLAIN, RPO, n) == pytest.approx((eta, n**-0.5), rel=1e-12)
    tight = math.sqrt(24.0 * math.exp(2) / (1 + math.exp(2)) ** 2 / 8.0) * eta / math.sqrt(24.0)
    assert weights_of(PLAIN, replace(RPO, eta="tight"), n)[0] == pytest.approx(tight / kappa)
    root = replace(RPO, eta="inverse_sqrt", beta=0.3)
    assert weights_of(PLAIN, root, n) == pytest.approx((n**-0.5, 0.3), rel=1e-14)
    assert weights_of(PLAIN, replace(RPO, eta=0.0), n)[0] == 0.0


def test_closed_form_methods_without_a_label_are_named_by_their_name() -> None:
    assert (RPO.display_label, replace(RPO, label="mine").display_label) == ("rpo", "mine")


def test_closed_form_defaults_compare_all_pairs_from_a_uniform_reference() -> None:
    three = replace(PLAIN, actions=3, margins=None, rewards=[[0.0, 1.0, 2.0]])
    worlds = worlds_of(three, 7)
    third = 1.0 / 3.0
    np.testing.assert_allclose(
        worlds.pair_distribution, [[0.0, third, third], [0.0, 0.0, third], [0.0, 0.0, 0.0]]
    )
    assert (worlds.rewards.tolist(), worlds.comparisons) == ([[0.0, 1.0, 2.0]], 7)
    assert reference_policy_of(three).tolist() == [third] * 3
    given = replace(PLAIN, reference=[0.25, 0.75])
    assert reference_policy_of(given).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "`name` must consist of"),
        ({"methods": []}, "`methods` must have at least one value"),
        ({"methods": [RPO, RPO]}, "`methods` must not repeat a label, got 'rpo' twice"),
        ({"methods": [RuleConfig(method="rpo", baseline=2)]}, "an action from 0 to 1, got 2"),
        ({"comparisons": [0]}, "`comparisons` must be whole numbers of at least 1, got 0"),
        ({"comparisons": [True]}, "`comparisons` must be whole numbers"),
        ({"margins": None}, "`margins` or `rewards` must define the worlds, got neither"),
        ({"rewards": [[0.0, 1.0]]}, "`margins` or `rewards` must define the worlds, got both"),
        ({"margins": [0.5, -0.5]}, "`margins` must be greater than 0"),
        ({"margins": [math.nan]}, "`margins` must be greater than 0"),
        ({"margins": None, "rewards": [[0.0]]}, r"`rewards\[0\]` must have one number for each"),
        ({"margins": None, "rewards": [[0.0, math.inf]]}, r"`rewards\[0\]` must be numbers"),
        ({"actions": 1}, "`actions` must be a whole number of at least 2"),
        ({"pair_distribution": [[1.0]]}, "`pair_distribution` must be 2 x 2 probabilities"),
        ({"pair_distribution": [[1.0], [0.0, 0.0]]}, "`pair_distribution` must be 2 x 2"),
        ({"pair_distribution": [[0.0, 0.9], [0.0, 0.0]]}, "must sum to 1, got 0.9"),
        ({"reference": [1.5, -0.5]}, "`reference` must be finite and at least 0"),
        ({"reward_max": 0.0}, "`reward_max` must be a finite number greater than 0"),
        ({"delta": 0.5}, "`delta` must be greater than 0 and less than 1/e"),
        ({"comparisons": [10, 10**6]}, "at most 100,000 outcomes, got 1,000,001"),
        (
            {"comparisons": [90_000], "margins": np.linspace(0.1, 1.0, 300).tolist()},
            "at most 50,000,000 outcomes times worlds, got 54,000,600",
        ),
    ],
)
def test_raises_for_a_study_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rop"}, r"`method` must be one of rpo, .*, got 'rop': did you mean rpo\?"),
        ({"label": "$x$"}, r"`label` must be printable text without \$"),
        ({"eta": -1.0}, "`eta` must be finite and at least 0, or one of theorem"),
        ({"beta": 0.0}, "`beta` must be finite and greater than 0, or one of theorem"),
        (
            {"baseline": -1},
            "reference, or the index of an action, got -1",
        ),
        ({"method": "pessimistic_mle", "options": {"ridge": -1.0}}, "`ridge` must be"),
    ],
)
def test_raises_for_a_method_that_cannot_be_fitted(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RPO, **changes)
