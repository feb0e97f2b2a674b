"""Every number known about the named instances, to its printed digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from scipy.stats import binom

from bandits.environments.base import Baseline, Instance
from bandits.environments.instances import (
    coverage_is_necessary,
    four_arms,
    ghost_arm,
    likelihood_displacement,
    non_convex_class,
    type_i_hacking,
    type_ii_hacking,
)
from rpo_theory import losses, maximin, minimax, objectives
from rpo_theory.certificate import certify
from rpo_theory.coverage import coverage_coefficient
from rpo_theory.problems import validate
from rpo_theory.rewards import FiniteClass, LinearBall, TabularBox, Unbounded
from rpo_theory.types import Status

EXACT = 1e-9
"""Accuracy of a solver or a formula in float64 against a closed form."""
PROVEN = 1e-10
"""Duality gap that the exact solver guarantees."""
POLICY = 1e-6
"""Accuracy of a maximizer found by a search on values: the root of their rounding, 1e-8."""
VANISHING_ETA = 1e-7
"""So small that a gap of order eta does not change a printed digit."""

NAMED_INSTANCES = {
    "four_arms": four_arms(20),
    "type_i_hacking": type_i_hacking(100),
    "type_ii_hacking": type_ii_hacking(100),
    "non_convex_class": non_convex_class(0.2),
    "ghost_arm": ghost_arm(100, deficit=0.25),
    "likelihood_displacement": likelihood_displacement(0.005),
    "coverage_is_necessary": coverage_is_necessary(100, 0.25),
}


def printed(value: float | Array, decimals: int) -> str:
    return f"{float(value):.{decimals}f}"


def least(function: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Return the minimizer of a function of one number between bounds, and its value."""
    optimum: Any = minimize_scalar(
        function, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    return float(optimum.x), float(optimum.fun)


def solved_policy(instance: Instance) -> np.ndarray:
    return np.asarray(minimax.solve(instance.problem, instance.reward_class).policy)


def gap_of(instance: Instance, policy: np.ndarray) -> float:
    weights = instance.problem.context_weights
    return float(objectives.gap(policy, instance.comparator, instance.true_reward, weights))


def solved_gap(instance: Instance) -> float:
    return gap_of(instance, solved_policy(instance))


def coverage_of(instance: Instance) -> float:
    return float(
        coverage_coefficient(
            instance.reward_class,
            true_reward=instance.true_reward,
            comparator=instance.comparator,
            baseline=instance.problem.baseline_policy,
            context_weights=instance.problem.context_weights,
            pair_distribution=instance.pair_distribution,
        )
    )


@pytest.mark.parametrize("name", NAMED_INSTANCES)
def test_property_a_named_instance_is_valid_and_its_class_holds_the_truth(name: str) -> None:
    instance = NAMED_INSTANCES[name]
    validate(instance.problem, instance.reward_class)
    nearest = instance.reward_class.project(instance.true_reward)
    np.testing.assert_allclose(nearest, instance.true_reward, atol=EXACT)
    wins, pairs = np.asarray(instance.problem.wins), np.asarray(instance.pair_distribution)
    if wins.sum() > 0:
        counts = wins + wins.swapaxes(1, 2)
        np.testing.assert_allclose((pairs + pairs.swapaxes(1, 2)) * wins.sum(), counts, atol=EXACT)


# Four arms.


@pytest.mark.parametrize(
    ("n", "baseline", "text"),
    [
        (20, 2, "0.204"),
        (100, 2, "0.120"),  # 0.11953
        (1_000, 2, "0.053"),
        (10_000, 2, "0.005"),
        (20, "chosen", "1.044"),
        (100, "chosen", "1.037"),
        (1_000, "chosen", "1.014"),
        (10_000, "chosen", "1.000"),
    ],
)
def test_golden_four_arms_gap(n: int, baseline: Baseline, text: str) -> None:
    assert printed(solved_gap(four_arms(n, baseline=baseline)), 3) == text


@pytest.mark.parametrize("n", [20, 100, 10_000])
def test_closed_form_four_arms_coverage_grows_with_n_only_for_the_chosen_baseline(n: int) -> None:
    # In the free parameters the data weigh theta_2^2 (n-1)/n + theta_1^2 / n. The baseline on arm 2
    # compares theta_2, "chosen" compares (1 - p) theta_2 - theta_1, where p is the share of arm 0.
    share = (n - 1) * expit(0.1) / n
    arm_2, chosen = four_arms(n), four_arms(n, baseline="chosen")
    assert coverage_of(arm_2) ** 2 == pytest.approx(n / (n - 1), rel=EXACT)
    expected = n + (1 - share) ** 2 * n / (n - 1)
    assert coverage_of(chosen) ** 2 == pytest.approx(expected, rel=EXACT)
    assert expected - n == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize(
    ("n", "arm", "suboptimality"), [(3, 1, 1.1), (4, 1, 1.1), (5, 0, 1.0), (20, 0, 1.0)]
)
def test_golden_four_arms_greedy_likelihood_picks_a_bad_arm(
    n: int, arm: int, suboptimality: float
) -> None:
    instance = four_arms(n, eta=0.0)
    reward = minimax.solve(instance.problem, instance.reward_class).reward[0]
    assert int(np.argmax(reward)) == arm
    truth = np.asarray(instance.true_reward)[0]
    assert truth.max() - truth[arm] == pytest.approx(suboptimality, abs=EXACT)


def test_golden_four_arms_the_last_label_has_probability_a_quarter() -> None:
    truth = np.asarray(four_arms(20).true_reward)[0]
    assert printed(expit(truth[1] - truth[2]), 4) == "0.2689"


# Reward hacking.

BOXES = [TabularBox(np.array(1.0)), TabularBox(np.array(5.0)), Unbounded()]


@pytest.mark.parametrize("reward_class", BOXES, ids=repr)
@pytest.mark.parametrize(
    ("n", "baseline", "text"),
    [
        (100, "chosen", "0.080"),
        (1_000, "chosen", "0.018"),
        (100, "data_marginal", "0.082"),
        (1_000, "data_marginal", "0.017"),
        (100, "reference", "0.392"),
        (1_000, "reference", "0.349"),
    ],
)
def test_golden_type_i_hacking_rpo_gap_in_any_box(
    n: int, baseline: Baseline, text: str, reward_class: TabularBox | Unbounded
) -> None:
    instance = type_i_hacking(n, baseline=baseline)._replace(reward_class=reward_class)
    assert printed(solved_gap(instance), 3) == text


@pytest.mark.parametrize("eta", [0.0, VANISHING_ETA])
@pytest.mark.parametrize(
    ("n", "reward_max", "text"),
    [(100, 2.0, "1.00"), (1_000, 2.0, "1.00"), (1_000, 1.0, "1.00"), (100, 1.0, "0.99")],
)
def test_limit_type_i_hacking_dpo_gap(n: int, reward_max: float, text: str, eta: float) -> None:
    # It is 0.9943 in the smallest box at n = 100, the only number here that the box changes.
    assert printed(solved_gap(type_i_hacking(n, reward_max=reward_max, eta=eta)), 2) == text


@pytest.mark.parametrize("reward_class", BOXES, ids=repr)
@pytest.mark.parametrize(
    ("baseline", "eta", "text"),
    [("chosen", 0.0, "0.501"), ("chosen", None, "0.505"), ("reference", None, "0.225")],
)
def test_golden_type_ii_hacking_gap_in_any_box(
    baseline: Baseline, eta: float | None, text: str, reward_class: TabularBox | Unbounded
) -> None:
    instance = type_ii_hacking(100, baseline=baseline, eta=eta)
    assert printed(solved_gap(instance._replace(reward_class=reward_class)), 3) == text


def test_extreme_type_ii_hacking_chosen_gives_the_best_arm_probability_zero() -> None:
    instance = type_ii_hacking(100, baseline="chosen")
    solution = minimax.solve(instance.problem, Unbounded())
    assert int(solution.status) == Status.NOT_ATTAINED
    assert float(solution.policy[0, 0]) == 0.0


# A class that is not convex.

NON_CONVEX = [
    (0.5, "0.344", "0.145", "0.546", "0.062"),
    (0.2, "0.523", "0.268", "0.870", "0.055"),
    (0.1, "0.589", "0.347", "0.982", "0.042"),
    (0.05, "0.600", "0.388", "1.000", "0.021"),
]


def algorithm_1(instance: Instance) -> tuple[np.ndarray, float]:
    """Solve max-min exactly: phi is concave, so the optimal policy is symmetric in the two arms."""
    beta = float(instance.problem.beta)

    def policy(q: float) -> np.ndarray:
        return np.array([[q, q, 1.0 - 2.0 * q]])

    def worst(q: float) -> float:
        row = policy(q)[0]
        return q + 0.6 * row[2] - 0.6 - beta * float(row @ np.log(3.0 * row))

    best, negative_value = least(lambda q: -worst(q), 1e-9, 0.5 - 1e-9)
    return policy(best), -negative_value


def worst_gap(instance: Instance, policy: np.ndarray) -> float:
    assert isinstance(instance.reward_class, FiniteClass)
    members = np.asarray(instance.reward_class.rewards)
    return max(gap_of(instance._replace(true_reward=member), policy) for member in members)


@pytest.mark.parametrize(
    ("beta", "minimax_gap", "duality_gap", "pair_gap", "maximin_gap"), NON_CONVEX
)
def test_golden_non_convex_class_the_two_formulations_differ(
    beta: float, minimax_gap: str, duality_gap: str, pair_gap: str, maximin_gap: str
) -> None:
    eta = 3.0
    instance = non_convex_class(beta, eta=eta)
    solution = minimax.solve(instance.problem, instance.reward_class, throw=False)
    assert printed(worst_gap(instance, np.asarray(solution.policy)), 3) == minimax_gap

    certificate = certify(instance.problem, instance.reward_class, solution.policy, solution.reward)
    assert printed(float(certificate.duality_gap) / eta, 3) == pair_gap

    policy, lower = algorithm_1(instance)
    assert printed(float(solution.objective) / eta - lower, 3) == duality_gap
    assert printed(worst_gap(instance, policy), 3) == maximin_gap
    solved = maximin.solve(instance.problem, instance.reward_class).policy
    np.testing.assert_allclose(solved, policy, atol=POLICY)
    assert worst_gap(instance, policy) <= beta * np.log(3.0)
    assert coverage_of(instance) == 0.0


@pytest.mark.parametrize("beta", [0.5, 0.2, 0.1, 0.05])
def test_theorem_non_convex_class_its_hull_and_the_box_close_the_gap(beta: float) -> None:
    instance = non_convex_class(beta)
    assert isinstance(instance.reward_class, FiniteClass)
    # Without data phi is linear in the reward, so hull and members have the same minimum.
    _, lower = algorithm_1(instance)
    midpoint = np.mean(np.asarray(instance.reward_class.rewards), axis=0)
    assert float(objectives.minimax_objective(instance.problem, midpoint)) == pytest.approx(
        lower, abs=EXACT
    )
    solution = minimax.solve(instance.problem, TabularBox(np.array(1.0)))
    assert int(solution.status) == Status.SOLVED
    box_gap = certify(
        instance.problem,
        TabularBox(np.array(1.0)),
        solution.policy,
        solution.reward,
    ).duality_gap
    assert float(box_gap) <= PROVEN


# A rare arm without data.


def gibbs_gap(n: int, beta: float, ghost: float, deficits: np.ndarray) -> np.ndarray:
    """Return 1/2 - E_pi r* of pi_ref exp(rhat / beta) for many deficits, in NumPy."""
    reference = np.array([0.5, 0.5 / n, 0.5 - 0.5 / n])
    rewards = np.stack([0 * deficits + 0.5, 0 * deficits + ghost, 0.5 - deficits], axis=1)
    policy = softmax(np.log(reference) + rewards / beta, axis=1)
    return 0.5 - 0.5 * policy[:, 0] - (0.5 - deficits) * policy[:, 2]


DEFICITS = np.append(0.0, np.geomspace(1e-6, 0.5, 8_000))


@pytest.mark.parametrize(
    ("n", "gap", "decimals"),
    [
        (10**2, "0.092", 3),
        (10**3, "0.0515", 4),
        (10**4, "0.0333", 4),
        (10**6, "0.0182", 4),
        (10**9, "0.0104", 4),
    ],
)
def test_golden_ghost_arm_no_temperature_saves_greedy_likelihood(
    n: int, gap: str, decimals: int
) -> None:
    _, best = least(lambda beta: gibbs_gap(n, beta, 1.0, DEFICITS).max(), 0.02, 0.5)
    assert printed(best, decimals) == gap
    if n == 10**2:
        assert printed(best * np.log(n), 2) == "0.42"
    _, limit = least(lambda u: -u / (2 * (1 + np.exp(u))), 0.0, 5.0)
    assert printed(-limit, 3) == "0.139"
    assert best * np.log(n) > -limit


@pytest.mark.parametrize("deficit", [0.0, 0.1, 0.5])
def test_closed_form_ghost_arm_the_adversary_takes_the_ghost_to_be_worthless(
    deficit: float,
) -> None:
    n = 100
    instance = ghost_arm(n, deficit=deficit)
    solution = minimax.solve(instance.problem, instance.reward_class, throw=False)
    np.testing.assert_allclose(solution.reward, instance.true_reward, atol=EXACT)
    expected = gibbs_gap(n, n**-0.5, 0.0, np.array([deficit]))[0]
    assert gap_of(instance, np.asarray(solution.policy)) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(("n", "scaled"), [(10**2, "0.2765"), (10**6, "0.2785")])
def test_golden_ghost_arm_rpo_gap_is_of_order_one_over_root_n(n: int, scaled: str) -> None:
    worst = gibbs_gap(n, n**-0.5, 0.0, DEFICITS).max()
    assert printed(worst * np.sqrt(n), 4) == scaled


# Likelihood displacement.


def descend(instance: Instance) -> Array:
    """Return log-probabilities after 20,000 gradient steps of size 0.5 on the RPO loss."""
    assert isinstance(instance.reward_class, LinearBall)
    problem = instance.problem
    features = jnp.asarray(instance.reward_class.features)[0] / problem.beta
    log_reference = jnp.log(jnp.asarray(problem.reference_policy))[0]
    reference = losses.PairLogProbs(log_reference[0], log_reference[1])

    def log_policy(theta: Array) -> Array:
        return jax.nn.log_softmax(log_reference + features @ theta)

    def loss(theta: Array) -> Array:
        logs = log_policy(theta)
        pair = losses.PairLogProbs(logs[0], logs[1])
        return losses.rpo(pair, reference, logs[0], beta=problem.beta, eta=problem.eta)

    gradient = jax.grad(loss)
    theta = jax.lax.fori_loop(0, 20_000, lambda _, t: t - 0.5 * gradient(t), jnp.zeros(2))
    return log_policy(theta)


@pytest.mark.parametrize(
    ("eta", "text"),
    [
        (0.0, "-56.6"),
        (0.005, "-43.2"),
        (0.05, "-0.37"),
        (0.5, "-0.023"),
        (1.0, "-0.011"),
        (5.0, "-0.002"),
    ],
)
def test_golden_likelihood_displacement_ends_once_eta_is_large_enough(
    eta: float, text: str
) -> None:
    instance = likelihood_displacement(eta)
    logs = jax.jit(lambda: descend(instance))()
    assert printed(logs[0], len(text.split(".")[1])) == text
    if eta == 0.0:
        assert float(logs[2]) > -PROVEN  # all mass on the response that no pair contains
        start = np.log(np.asarray(instance.problem.reference_policy)[0, 0])
        assert printed(start, 2) == "-0.71"


# Coverage is necessary.


@pytest.mark.parametrize("informative", [1.0, 0.25, 0.01])
def test_closed_form_coverage_is_one_over_root_of_the_informative_share(
    informative: float,
) -> None:
    for better in (0, 1):
        instance = coverage_is_necessary(400, informative, better=better)
        assert coverage_of(instance) ** 2 == pytest.approx(1 / informative, rel=EXACT)
        on_the_better = coverage_is_necessary(400, informative, better=better, baseline=better)
        assert coverage_of(on_the_better) == 0.0


def error_of_the_best_test(instance: Instance, n: int) -> float:
    """Return half of (1 - total variation between the two worlds), by enumeration."""
    informative = 1.0 - float(np.trace(np.asarray(instance.pair_distribution)[0]))
    win_rate = expit(np.asarray(instance.true_reward).max())
    pairs = np.arange(n + 1)
    wrong = binom.cdf(np.ceil(pairs / 2) - 1, pairs, win_rate)
    wrong += 0.5 * np.where(pairs % 2 == 0, binom.pmf(pairs // 2, pairs, win_rate), 0.0)
    return float(binom.pmf(pairs, n, informative) @ wrong)


@pytest.mark.parametrize("informative", [1.0, 0.25, 0.04])
@pytest.mark.parametrize("n", [25, 100, 2_500])
def test_theorem_no_algorithm_beats_a_quarter_of_the_coverage_over_root_n(
    n: int, informative: float
) -> None:
    instance = coverage_is_necessary(n, informative)
    delta = np.asarray(instance.true_reward).max()
    value = delta * error_of_the_best_test(instance, n) * np.sqrt(n) / coverage_of(instance)
    assert value >= 0.25
    if n * informative >= 100:
        assert printed(value, 2) == "0.31"
    if n * informative >= 2_500:
        assert printed(value, 3) == "0.309"


def test_theorem_rpo_obeys_the_lower_bound_in_one_of_the_two_worlds() -> None:
    n = 25
    wins = np.arange(n + 1)[:, None, None, None] * np.array([[[0.0, 0.0], [1.0, 0.0]]])
    wins = wins + (n - wins[:, :, 1:, :1]) * np.array([[[0.0, 1.0], [0.0, 0.0]]])
    world = coverage_is_necessary(n, 1.0, baseline=0)
    outcomes = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * (n + 1)), world.problem)
    box = TabularBox(np.ones(n + 1))
    policy = minimax.solve_batch(outcomes._replace(wins=wins), box).policy

    expected_gap = []
    for better in (0, 1):
        truth = np.asarray(coverage_is_necessary(n, 1.0, better=better).true_reward)[0]
        probability = binom.pmf(np.arange(n + 1), n, expit(truth[1] - truth[0]))
        expected_gap.append(probability @ (truth.max() - np.asarray(policy)[:, 0] @ truth))
    assert max(expected_gap) >= coverage_of(world) / (4 * np.sqrt(n))


# Options out of range.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: four_arms(1), "`n` must be at least 2, got 1"),
        (lambda: ghost_arm(1, deficit=0.1), "`n` must be at least 2, got 1"),
        (lambda: ghost_arm(10, deficit=0.6), r"`deficit` must be in \[0, 0.5\], got 0.6"),
        (lambda: four_arms(20, baseline=4), "`baseline` must be .* an action from 0 to 3, got 4"),
        (lambda: type_i_hacking(20, reward_max=0.5), "`reward_max` must be at least 1, got 0.5"),
        (lambda: type_ii_hacking(20, reward_max=0.5), "`reward_max` must be at least 1, got 0.5"),
        (lambda: coverage_is_necessary(100, 0.001), "`informative` must be in .* got 0.001"),
        (lambda: coverage_is_necessary(100, 1.5), "`informative` must be in .* got 1.5"),
    ],
)
def test_raises_an_option_out_of_range(build: Callable[[], Instance], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
