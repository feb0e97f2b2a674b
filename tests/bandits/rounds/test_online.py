"""The loop of rounds: regret, pairs, and independence of whatever runs beside it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from bandits.environments.designs import Design, draw_design
from bandits.methods.registry import METHODS
from bandits.rounds import RoundsConfig, RoundsMethod, play_rounds, run_rounds
from bandits.rounds.online import fit_round, measure_round, pair_distribution
from rpo_theory.types import Status

DESIGN = Design(actions=3, target_coverage=20.0, reference="data", reward_max=2.0)
METHODS_OF_TEST = [
    RoundsMethod(method="rpo_optimistic"),
    RoundsMethod(method="two_stage", sampling="reference"),
]


def config(**changes: object) -> RoundsConfig:
    settings = {"name": "a", "methods": METHODS_OF_TEST, "rounds": 4, "seeds": 3, "beta": 0.2}
    return RoundsConfig(**{**settings, "design": DESIGN, **changes})  # pyright: ignore[reportArgumentType]


def test_closed_form_the_measures_are_shortfalls_of_values() -> None:
    instance, beta = draw_design(DESIGN, 100, np.arange(4)), 0.3
    policy = np.random.default_rng(0).dirichlet(np.ones(3), (4, 1))
    reference, truth = (
        np.asarray(instance.problem.reference_policy),
        np.asarray(instance.true_reward),
    )
    best = beta * np.asarray(logsumexp(truth / beta, axis=2, b=reference))[:, 0]
    kl = (policy * np.log(policy / reference)).sum(axis=(1, 2))
    measured = measure_round(policy, instance, beta)
    value = (policy * truth).sum(axis=(1, 2)) - beta * kl
    np.testing.assert_allclose(measured["regret"], best - value, atol=1e-12)
    np.testing.assert_allclose(measured["kl"], kl, atol=1e-12)
    gap = np.max(truth, axis=(1, 2)) - (policy * truth).sum(axis=(1, 2))
    np.testing.assert_allclose(measured["gap"], gap, atol=1e-12)


def test_property_the_rounds_of_a_seed_depend_on_nothing_beside_it() -> None:
    several = run_rounds(config()).records
    again = run_rounds(config()).records
    assert several.equals(again)
    one = run_rounds(config(seeds=1, first_seed=2, methods=METHODS_OF_TEST[::-1])).records
    for method in ("rpo_optimistic", "two_stage"):
        rows = [row for row in several.to_pylist() if row["seed"] == 2 and row["method"] == method]
        assert [row for row in one.to_pylist() if row["method"] == method] == rows


def test_property_a_round_adds_its_pairs_and_its_measures() -> None:
    records = run_rounds(config(pairs_per_round=7)).records
    first = records.slice(0, 4).to_pydict()
    assert first["n_pairs"] == [100.0, 107.0, 114.0, 121.0]
    assert first["eta"] == pytest.approx([0.1 / n**0.5 for n in first["n_pairs"]])
    np.testing.assert_allclose(np.cumsum(first["regret"]), first["cumulative_regret"])
    np.testing.assert_allclose(np.cumsum(first["gap"]), first["cumulative_gap"])
    assert set(records["status"].to_pylist()) == {Status.SOLVED.name}
    assert set(records["sampling"].to_pylist()) == {"baseline", "reference"}


def test_property_the_first_round_is_the_method_on_the_given_data() -> None:
    seeds = np.arange(3)
    instance = draw_design(DESIGN, 100, seeds)
    problem = instance.problem._replace(beta=np.full(3, 0.2), eta=np.full(3, 0.01))
    fit = METHODS["two_stage"](problem, instance.reward_class)
    columns = play_rounds(instance, METHODS_OF_TEST[1], config(rounds=1), seeds)
    expected = measure_round(fit.policy, instance, 0.2)
    np.testing.assert_array_equal(columns["regret"][0], expected["regret"])
    same = fit_round(METHODS_OF_TEST[1], problem, instance, seeds)
    np.testing.assert_array_equal(same.policy, fit.policy)


def test_closed_form_pairs_are_drawn_from_both_policies() -> None:
    instance = draw_design(DESIGN, 100, np.arange(2))
    policy = softmax(np.arange(6.0).reshape(2, 1, 3), axis=2)
    second = {
        "baseline": instance.problem.baseline_policy,
        "reference": instance.problem.reference_policy,
        "policy": policy,
    }
    for sampling, other in second.items():
        pairs = pair_distribution(policy, instance.problem, sampling)
        np.testing.assert_allclose(pairs[0, 0], np.outer(policy[0, 0], np.asarray(other)[0, 0]))
        np.testing.assert_allclose(pairs.sum(axis=(1, 2, 3)), 1.0)
