"""Rules that methods induce: the batch of all outcomes equals one fit at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from bandits.environments import Baseline
from bandits.methods import find_method
from bandits.minimax_regret import fit_outcomes
from bandits.minimax_regret.rules import method_options

WINS = np.array([[[3.0, 2.0], [1.0, 0.0]], [[6.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [5.0, 0.0]]])
REFERENCE = np.array([0.3, 0.7])
SETTING: dict[str, Any] = {"reference": REFERENCE, "reward_max": 2.0, "eta": 0.1, "beta": 0.4}


@pytest.mark.parametrize(("baseline", "policy"), [(1, [0.0, 1.0]), ("reference", [0.3, 0.7])])
def test_parity_rpo_at_every_outcome_minimizes_its_objective_in_one_variable(
    baseline: Baseline, policy: list[float]
) -> None:
    eta, beta = SETTING["eta"], SETTING["beta"]
    fits = fit_outcomes("rpo", WINS, baseline=baseline, options={}, **SETTING)

    def objective(difference: float, wins: np.ndarray) -> float:
        reward = np.array([0.0, difference])
        penalty = beta * np.log(REFERENCE @ np.exp(reward / beta)) - np.dot(policy, reward)
        labels = -wins[1, 0] * log_expit(difference) - wins[0, 1] * log_expit(-difference)
        return eta * penalty + labels / wins.sum()

    for wins, fitted in zip(WINS, fits.policy[:, 0], strict=True):
        options = {"bounds": (-2.0, 2.0), "args": (wins,), "options": {"xatol": 1e-12}}
        found: Any = minimize_scalar(objective, method="bounded", **options)
        best = found.x
        odds = REFERENCE[1] / REFERENCE[0] * np.exp(best / beta)
        np.testing.assert_allclose(fitted[1] / fitted[0], odds, rtol=1e-5)


def test_closed_form_comparisons_of_an_action_with_itself_are_chosen_responses() -> None:
    fits = fit_outcomes("behavior_cloning", WINS, baseline="chosen", options={}, **SETTING)
    np.testing.assert_allclose(fits.policy[:, 0, 0], [5 / 6, 1.0, 1 / 6], rtol=1e-12)


def test_raises_for_options_that_methods_do_not_have() -> None:
    rpo, dpo = find_method("rpo"), find_method("dpo")
    assert method_options(rpo, {"rewards": "unbounded"}).rewards == "unbounded"
    assert not hasattr(method_options(dpo, {}), "baseline")
    with pytest.raises(ValueError, match=r"`options` of rpo: unknown key `rewrads`"):
        method_options(rpo, {"rewrads": "given"})
    with pytest.raises(ValueError, match="must not have `baseline`: it is a key of the method"):
        method_options(dpo, {"baseline": "chosen"})
