"""Coverage designs: their bandits have the coverage, labels and rates that a design asks for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import expit

from bandits.environments.base import Instance
from bandits.environments.design_checks import check_design
from bandits.environments.designs import DECADES, MARGIN, Design, designed_coverage, draw_design
from rpo_theory import bounds, minimax
from rpo_theory.coverage import coverage_coefficient_batch
from rpo_theory.problems import validate
from rpo_theory.rewards import LinearBall, TabularBox, log_covering_number

EXACT = 1e-9
"""Relative difference between a pseudo-inverse and the exact solver of resistances."""
SIGMAS = 5.0
"""One false alarm in 1.7 million numbers; the seeds are fixed."""

COVERED: dict[str, Any] = {"actions": 6, "rare": 2, "target_coverage": 2.0, "coverage_all": 12.0}
DESIGNS = {
    "tabular": Design(contexts=3, **COVERED),
    "near ties": Design(contexts=2, gaps="log_uniform", **COVERED),
    "missing edges": Design(contexts=3, missing_edges=0.5, **COVERED),
    "linear": Design(contexts=3, reward="linear", features=3, **COVERED),
    "shifted": Design(contexts=4, prompts_shift=1.0, imbalance=3.0, **COVERED),
    "two responses": Design(actions=2, target_coverage=3.0),
}
every_design = pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)


def member(batch: Instance, index: int) -> Instance:
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), batch)


def same(first: Any, second: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def measured(batch: Instance, comparator: np.ndarray) -> np.ndarray:
    return np.asarray(
        coverage_coefficient_batch(
            batch.reward_class,
            true_reward=batch.true_reward,
            comparator=comparator,
            baseline=batch.problem.baseline_policy,
            context_weights=batch.problem.context_weights,
            pair_distribution=batch.pair_distribution,
        )
    )


def playing(batch: Instance, rank: int) -> np.ndarray:
    order = np.argsort(-np.asarray(batch.true_reward), axis=2, kind="stable")
    return np.eye(order.shape[2])[order[:, :, rank]]


@every_design
def test_property_an_instance_is_valid_and_its_class_holds_the_truth(design: Design) -> None:
    batch = draw_design(design, 500, np.arange(20))
    for index in range(20):
        instance = member(batch, index)
        validate(instance.problem, instance.reward_class)
        nearest = np.asarray(instance.reward_class.project(instance.true_reward))
        np.testing.assert_allclose(nearest, instance.true_reward, atol=EXACT)
    np.testing.assert_allclose(batch.pair_distribution.sum(axis=(1, 2, 3)), 1.0, rtol=EXACT)
    np.testing.assert_array_equal(batch.problem.wins.sum(axis=(1, 2, 3)), 500)
    pairs = np.asarray(batch.pair_distribution)
    assert not np.any(np.asarray(batch.problem.wins)[pairs + pairs.swapaxes(2, 3) == 0])
    best = np.sum(np.asarray(batch.comparator) * batch.true_reward, axis=2)
    np.testing.assert_array_equal(best, np.max(batch.true_reward, axis=2))


@every_design
def test_property_a_draw_depends_only_on_its_seed(design: Design) -> None:
    seeds = np.array([7, 0, 2**40, 3])
    batch = draw_design(design, 300, seeds)
    for index, seed in enumerate(seeds):
        assert same(member(batch, index), member(draw_design(design, 300, np.array([seed])), 0))
    assert not same(member(batch, 0).problem.wins, member(batch, 1).problem.wins)
    assert same(batch.true_reward, draw_design(design, 301, seeds).true_reward)
    assert not same(
        batch.problem.wins, 0 * batch.problem.wins + draw_design(design, 301, seeds)[0].wins
    )


@pytest.mark.parametrize("name", ["tabular", "near ties", "shifted", "two responses"])
def test_closed_form_the_best_and_the_worst_comparator_have_the_target_coverage(
    name: str,
) -> None:
    design = DESIGNS[name]
    batch = draw_design(design, 500, np.arange(5))
    best, worst = designed_coverage(design, 500)
    assert best == pytest.approx(design.target_coverage, rel=EXACT)
    np.testing.assert_allclose(
        measured(batch, playing(batch, 0)), design.target_coverage, rtol=EXACT
    )
    by_rank = [measured(batch, playing(batch, rank)) for rank in range(design.actions)]
    np.testing.assert_allclose(np.max(by_rank, axis=0), worst, rtol=EXACT)
    if design.coverage_all is not None:
        assert worst == pytest.approx(design.coverage_all, rel=EXACT)
        np.testing.assert_allclose(by_rank[-1], design.coverage_all, rtol=EXACT)


@pytest.mark.parametrize("name", ["missing edges", "linear"])
def test_property_missing_edges_leave_the_target_and_features_can_only_help(name: str) -> None:
    design = DESIGNS[name]
    batch = draw_design(design, 500, np.arange(30))
    coefficient = measured(batch, playing(batch, 0))
    assert np.all(coefficient <= design.target_coverage * (1 + EXACT))
    if name == "missing edges":
        np.testing.assert_allclose(coefficient, design.target_coverage, rtol=EXACT)


def test_closed_form_rare_comparisons_stay_few_while_the_data_grow() -> None:
    design = Design(contexts=2, actions=5, rare=2, rare_comparisons=1.5)
    for n in (100, 10_000):
        batch = draw_design(design, n, np.arange(2000))
        rare = playing(batch, 3)
        wins = np.asarray(batch.problem.wins)
        counts = np.einsum("bxa,bxac->bx", rare, wins + wins.swapaxes(2, 3))
        deviation = math.sqrt(1.5 / counts.size)
        assert counts.mean() == pytest.approx(1.5, abs=SIGMAS * deviation)
        assert designed_coverage(design, n)[1] == pytest.approx(math.sqrt(n / 3.0), rel=EXACT)
    assert designed_coverage(Design(rare=1, rare_comparisons=0.0), 100)[1] == math.inf
    for n in (100, 10_000):  # one comparison on average, unless something else is given
        assert designed_coverage(Design(rare=1), n)[1] == pytest.approx(math.sqrt(n))
    assert designed_coverage(Design(rare=1, coverage_all=7.0), 100)[1] == pytest.approx(7.0)


def test_property_labels_follow_bradley_terry_and_flip_at_the_noise_rate() -> None:
    for noise in (0.0, 0.2):
        design = Design(contexts=2, actions=4, label_noise=noise, target_coverage=1.5)
        batch = draw_design(design, 10**6, np.arange(3))
        wins, reward = np.asarray(batch.problem.wins), np.asarray(batch.true_reward)
        counts = wins + wins.swapaxes(2, 3)
        rate = expit(reward[..., :, None] - reward[..., None, :])
        rate = (1 - noise) * rate + noise * (1 - rate)
        compared = counts > 0
        z = (wins - counts * rate)[compared] / np.sqrt(counts * rate * (1 - rate))[compared]
        assert np.abs(z).max() < SIGMAS
        share = counts.sum(axis=(2, 3)) / counts.sum(axis=(1, 2, 3))[:, None]
        np.testing.assert_allclose(share, 0.5, atol=SIGMAS * 0.5e-3)


def test_property_pairs_follow_the_pair_distribution() -> None:
    n = 10**6
    batch = draw_design(DESIGNS["shifted"], n, np.arange(3))
    ordered, wins = np.asarray(batch.pair_distribution), np.asarray(batch.problem.wins)
    pairs, counts = ordered + ordered.swapaxes(2, 3), wins + wins.swapaxes(2, 3)
    compared = pairs > 0
    z = (counts - n * pairs)[compared] / np.sqrt(n * pairs * (1 - pairs))[compared]
    assert np.abs(z).max() < SIGMAS


def test_closed_form_shift_imbalance_and_missing_edges_are_as_described() -> None:
    design = Design(contexts=3, actions=6, prompts_shift=math.log(4.0), imbalance=5.0)
    pairs = np.asarray(draw_design(design, 100, np.arange(1)).pair_distribution)[0]
    prompts = pairs.sum(axis=(1, 2))
    assert prompts[0] / prompts[-1] == pytest.approx(4.0, rel=EXACT)
    ordinary = np.sort(pairs[0][pairs[0] > 0])
    pendant = np.isclose(ordinary, prompts[0] * design.prompt_factor() / design.target_coverage**2)
    assert pendant.sum() == 1
    ordinary = ordinary[~pendant]
    assert ordinary.size == 10
    assert ordinary[-1] / ordinary[0] == pytest.approx(5.0, rel=EXACT)
    seeds = np.arange(400)
    missing = draw_design(Design(actions=6, missing_edges=0.3), 100, seeds)
    kept = (np.asarray(missing.pair_distribution) > 0).sum(axis=(1, 2, 3)) - 1
    assert kept.mean() == pytest.approx(7.0, abs=SIGMAS * math.sqrt(10 * 0.21 / 400))
    no_edges = draw_design(Design(actions=6, missing_edges=1.0), 100, seeds[:1])
    assert (np.asarray(no_edges.pair_distribution) > 0).sum() == 2


def test_property_near_ties_are_log_uniform_and_rare_responses_are_worst() -> None:
    design = Design(actions=5, rare=1, gaps="log_uniform", reward_max=2.0)
    reward = np.sort(np.asarray(draw_design(design, 100, np.arange(2000)).true_reward)[:, 0])
    widest = 2.0 * (1 - 2 * MARGIN)
    np.testing.assert_allclose(reward[:, -1], 2.0 * (1 - MARGIN))
    np.testing.assert_allclose(reward[:, -1] - reward[:, 0], widest)
    decades = -np.log10((reward[:, -1:] - reward[:, 1:-1]) / widest) / DECADES
    assert decades.min() >= 0
    assert decades.max() <= 1
    assert decades.mean() == pytest.approx(0.5, abs=SIGMAS / math.sqrt(12 * decades.size))


def test_property_misspecification_takes_the_truth_out_of_its_class() -> None:
    sizes: dict[str, Any] = {"contexts": 4, "reward": "linear", "features": 3}
    inside = draw_design(Design(**sizes), 100, np.arange(2))
    outside = draw_design(Design(misspecification=0.2, **sizes), 100, np.arange(2))
    change = np.abs(np.asarray(outside.true_reward) - inside.true_reward)
    assert 0.1 < change.max() <= 0.2
    ball = outside.reward_class
    assert isinstance(ball, LinearBall)
    first = LinearBall(np.asarray(ball.features)[0], np.asarray(ball.radius)[0])
    truth = outside.true_reward[0]
    assert np.abs(np.asarray(first.project(truth)) - truth).max() > 0.05


def test_closed_form_a_reference_from_the_data_has_their_frequencies() -> None:
    design = Design(
        contexts=2, actions=5, rare=1, rare_comparisons=2.0, reference="data", prompts_shift=0.5
    )
    batch = draw_design(design, 1000, np.arange(3))
    reference = np.asarray(batch.problem.reference_policy)
    rare = np.einsum("bxa,bxa->bx", playing(batch, 4), reference)
    prompts = np.asarray(batch.pair_distribution).sum(axis=(2, 3))
    np.testing.assert_allclose(prompts, np.stack([design.data_prompts()] * 3))
    np.testing.assert_allclose(rare, 0.5 * 2.0 * 2 / 1000)
    best = np.einsum("bxa,bxa->bx", np.asarray(batch.comparator), reference)
    np.testing.assert_allclose(best, 0.5 * design.prompt_factor() / design.target_coverage**2)


def test_property_features_from_a_file_are_used_up_to_their_scale(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((3, 5, 2))
    file = tmp_path / "features.npy"
    np.save(file, features)
    design = Design(contexts=3, actions=5, reward="linear", features_file=str(file))
    batch = draw_design(design, 100, np.arange(4))
    ball = batch.reward_class
    assert isinstance(ball, LinearBall)
    longest = np.linalg.norm(features, axis=2).max()
    np.testing.assert_allclose(ball.features, np.stack([features / longest] * 4))
    assert np.abs(np.asarray(batch.true_reward)).max() < 0.5 * design.reward_max
    assert not same(batch.true_reward[0], batch.true_reward[1])
    for wrong in (features[:2], features * np.nan, 0 * features):
        np.save(tmp_path / f"wrong{wrong.shape[0]}{wrong[0, 0, 0]}.npy", wrong)
    for path in [*tmp_path.glob("wrong*.npy"), tmp_path / "absent.npy"]:
        with pytest.raises(ValueError, match="`features_file`"):
            draw_design(replace(design, features_file=str(path)), 100, np.arange(1))


def gaps_to_the_best(design: Design, n: int, seeds: np.ndarray, *, eta: float) -> np.ndarray:
    batch = draw_design(design, n, seeds)
    problem = batch.problem._replace(eta=np.full(len(seeds), eta))
    policy = np.asarray(minimax.solve_batch(problem, batch.reward_class).policy)
    short = np.asarray(batch.comparator) - policy
    return np.einsum("bx,bxa,bxa->b", problem.context_weights, short, batch.true_reward)


def theorem_eta(design: Design, n: int) -> float:
    box = TabularBox(np.array(design.reward_max))
    epsilon = float(bounds.covering_scale(n, design.reward_max))
    covering = log_covering_number(box, epsilon, design.contexts * design.actions)
    iota = bounds.complexity(covering, 0.05)
    modulus = bounds.printed_modulus(design.reward_max)
    return float(bounds.tuned_eta(modulus, n_pairs=n, complexity=iota))


def test_theorem_rpo_falls_like_one_over_root_n_where_maximum_likelihood_stays_flat() -> None:
    design = Design(
        actions=8,
        rare=4,
        rare_comparisons=1.0,
        target_coverage=1.5,
        gaps="log_uniform",
        reward_max=2.0,
    )
    sizes, seeds = (1000, 10_000, 100_000, 1_000_000), np.arange(200)
    slopes = {}
    for method in ("RPO", "maximum likelihood"):
        gaps = [
            gaps_to_the_best(
                design, n, seeds, eta=theorem_eta(design, n) if method == "RPO" else 0.0
            ).mean()
            for n in sizes
        ]
        slopes[method] = np.polyfit(np.log(sizes), np.log(gaps), 1)[0]
    assert -0.6 < slopes["RPO"] < -0.4
    assert abs(slopes["maximum likelihood"]) < 0.1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"contexts": 0}, "contexts"),
        ({"actions": 3, "rare": 2}, "rare"),
        ({"target_coverage": 0.9}, "target_coverage"),
        ({"target_coverage": math.nan}, "target_coverage"),
        ({"coverage_all": 4.0, "rare_comparisons": 1.0}, "coverage_all"),
        ({"label_noise": 0.6}, "label_noise"),
        ({"missing_edges": -0.1}, "missing_edges"),
        ({"reward": "cubic"}, "reward"),
        ({"gaps": "equal"}, "gaps"),
        ({"reference": "none"}, "reference"),
        ({"reward_max": 0.0}, "reward_max"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"misspecification": math.inf}, "misspecification"),
    ],
)
def test_raises_on_a_design_out_of_range(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        Design(**options)


def test_raises_on_a_draw_out_of_range() -> None:
    with pytest.raises(ValueError, match="`target_coverage` must leave data"):
        draw_design(Design(rare=4, rare_comparisons=10.0), 50, np.arange(2))
    with pytest.raises(ValueError, match="`n_comparisons`"):
        draw_design(Design(), 0, np.arange(2))
    with pytest.raises(ValueError, match="`seeds`"):
        draw_design(Design(), 10, np.array([1, -1]))


def test_raises_for_a_bandit_that_is_too_large() -> None:
    check_design(Design(contexts=10, actions=2000))
    with pytest.raises(ValueError, match="must give at most 50,000,000 numbers"):
        check_design(Design(contexts=100, actions=2000))
    with pytest.raises(ValueError, match="must give at most 50,000,000 numbers"):
        check_design(Design(features=10**7))
