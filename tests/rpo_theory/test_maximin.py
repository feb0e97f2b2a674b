"""Algorithm 1 against its definition, first-order play, CVXPY, closed forms and minimax."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from scipy.optimize import brentq

from rpo_theory import certificate, maximin, minimax, saddle_forms, unbounded
from rpo_theory.numerics import saddle_interior_point
from rpo_theory.objectives import saddle_objective
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem, Solution, Status

CONTEXTS, ACTIONS, FEATURES = 3, 5, 3  # one shape for most tests: compiled once
EXACT = 1e-10  # the solver stops at 1e-12; errors grow by the inverse weight of a prompt
AGREEMENT = 1e-8  # of policies from two exact solvers; the project's bar is 1e-6
CVXPY_VALUE = 1e-8  # accuracy of Clarabel's exponential cones in the objective
CVXPY_POLICY = 1e-4  # and in the policy, which small beta magnifies
FIRST_ORDER = 1e-5  # accuracy of about ten thousand steps of first-order play
GAP = 1e-10
phi = jax.jit(saddle_objective)


def random_problem(
    seed: int,
    *,
    contexts: int = CONTEXTS,
    actions: int = ACTIONS,
    beta: float | None = None,
    eta: float | None = None,
) -> Problem:
    """Draw partially covering data, with eta and beta over four decades by default."""
    rng = np.random.default_rng(seed)
    reward = rng.uniform(0, 2, (contexts, actions))
    counts = np.triu(rng.integers(1, 9, (contexts, actions, actions)), 1)
    counts = counts * (rng.random(counts.shape) < 0.4)
    won = rng.binomial(counts, 1 / (1 + np.exp(reward[:, None, :] - reward[:, :, None])))
    drawn = 10.0 ** rng.uniform(-2, 2, 2)
    return Problem(
        context_weights=rng.dirichlet(np.ones(contexts)),
        reference_policy=rng.dirichlet(np.ones(actions), contexts),
        baseline_policy=rng.dirichlet(np.ones(actions), contexts),
        wins=(won + np.swapaxes(counts - won, 1, 2)).astype(float),
        beta=np.array(drawn[0] if beta is None else beta),
        eta=np.array(drawn[1] if eta is None else eta),
    )


def reward_class_of(kind: str, seed: int = 0) -> RewardClass:
    rng = np.random.default_rng(seed)
    match kind:
        case "box":
            return TabularBox(np.array(2.0))
        case "ball":
            features = rng.normal(size=(CONTEXTS, ACTIONS, FEATURES))
            return LinearBall(features, np.array(1.5))
        case "finite":
            return FiniteClass(rng.uniform(0, 2, (4, CONTEXTS, ACTIONS)))
        case _:
            return Unbounded()


def stack(items: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def total_variation(first: Any, second: Any) -> np.ndarray:
    return 0.5 * np.abs(np.asarray(first) - np.asarray(second)).sum(axis=-1)


def random_member(reward_class: RewardClass, rng: np.random.Generator) -> np.ndarray:
    match reward_class:
        case TabularBox(maximum):
            return float(maximum) * rng.integers(0, 2, (CONTEXTS, ACTIONS))
        case LinearBall(features, radius):
            theta = rng.normal(size=FEATURES)
            return np.asarray(features) @ (float(radius) * theta / np.linalg.norm(theta))
        case FiniteClass(rewards):
            return np.asarray(rewards)[rng.integers(4)]
        case _:
            return 3.0 * rng.normal(size=(CONTEXTS, ACTIONS))


@pytest.mark.parametrize("kind", ["box", "ball"])
def test_theorem_5_6_maximin_and_minimax_find_the_same_policy(kind: str) -> None:
    problems = stack([random_problem(seed) for seed in range(100)])
    classes = stack([reward_class_of(kind, seed) for seed in range(100)])
    ours, alternative = (
        maximin.solve_batch(problems, classes),
        minimax.solve_batch(problems, classes),
    )
    assert total_variation(ours.policy, alternative.policy).max() < AGREEMENT
    scale = np.maximum(1.0, np.abs(alternative.objective))
    assert (np.abs(ours.objective - alternative.objective) / scale).max() < AGREEMENT


@pytest.mark.parametrize("kind", ["box", "ball", "finite"])
def test_property_the_answer_is_a_saddle_point_of_phi(kind: str) -> None:
    """No reward lowers the objective of the policy, and no policy raises it against the reward."""
    rng = np.random.default_rng(1)
    for seed in range(3):
        problem, reward_class = random_problem(seed, beta=0.3, eta=1.0), reward_class_of(kind, seed)
        policy, reward, value = maximin.solve(problem, reward_class)[:3]
        for _ in range(30):
            alternative = random_member(reward_class, rng)
            assert phi(problem, policy, alternative) >= value - GAP
        if kind == "finite":
            continue  # the adversary mixes its members
        assert abs(phi(problem, policy, reward) - value) < GAP
        for near in (0.5, 0.99):
            alternative = near * np.asarray(policy) + (1 - near) * rng.dirichlet(
                np.ones(ACTIONS), CONTEXTS
            )
            assert phi(problem, alternative, reward) <= value + GAP


def test_property_no_policy_does_better_against_a_finite_class() -> None:
    problem, reward_class = random_problem(4, beta=0.2, eta=2.0), reward_class_of("finite", 4)
    solution = maximin.solve(problem, reward_class)
    rng = np.random.default_rng(0)

    def worst(policy: Any) -> float:
        members = np.asarray(reward_class.rewards)  # pyright: ignore
        return min(float(phi(problem, policy, member)) for member in members)

    best = worst(solution.policy)
    assert best == pytest.approx(float(solution.objective), abs=GAP)
    for near in np.linspace(0.0, 0.999, 40):
        step = rng.dirichlet(np.ones(ACTIONS), CONTEXTS)
        assert worst(near * solution.policy + (1 - near) * step) <= best + GAP


def first_order_play(problem: Problem, maximum: float, steps: int) -> np.ndarray:
    """Run extragradient on phi, with multiplicative weights for the policy and projected steps."""
    problem = jax.tree.map(jnp.asarray, problem)
    gradients = jax.grad(saddle_objective, argnums=(1, 2))
    weights = (problem.eta * problem.context_weights)[:, None]

    def move(policy: Array, reward: Array, up: Array, down: Array) -> tuple[Array, Array]:
        log_policy = jnp.log(policy) + 0.3 * up / weights
        shifted = jnp.exp(log_policy - log_policy.max(axis=1, keepdims=True))
        return (
            shifted / shifted.sum(axis=1, keepdims=True),
            jnp.clip(reward - 0.3 * down, 0.0, maximum),
        )

    def step(_: int, at: tuple[Array, Array]) -> tuple[Array, Array]:
        ahead = move(*at, *gradients(problem, *at)[:2])
        return move(*at, *gradients(problem, *ahead)[:2])

    start = problem.reference_policy, jnp.full_like(problem.reference_policy, 0.5 * maximum)
    return np.asarray(jax.jit(lambda: jax.lax.fori_loop(0, steps, step, start))()[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parity_first_order_play_converges_to_the_same_policy(seed: int) -> None:
    problem = random_problem(seed, beta=0.5, eta=1.0)
    played = first_order_play(problem, 2.0, 40_000)
    solution = maximin.solve(problem, TabularBox(np.array(2.0)))
    assert total_variation(played, solution.policy).max() < FIRST_ORDER


def cvxpy_maximum(problem: Problem, reward_class: RewardClass) -> tuple[float, np.ndarray]:
    """Solve Algorithm 1 as a maximum over policies and labels, from eqs. 3.2 and 3.3."""
    policy = cp.Variable((CONTEXTS, ACTIONS))
    weights = float(problem.eta) * np.asarray(problem.context_weights)
    flow: Any = cp.multiply(weights[:, None], policy - problem.baseline_policy)
    gain: Any = -float(problem.beta) * cp.sum(
        cp.multiply(weights[:, None], cp.rel_entr(policy, problem.reference_policy))
    )
    for x, won, lost in np.argwhere(problem.wins > 0):
        share = problem.wins[x, won, lost] / problem.wins.sum()
        label = cp.Variable()  # the adversary's probability that the loser wins
        step = np.zeros((CONTEXTS, ACTIONS))
        step[x, won], step[x, lost] = -share, share
        flow = flow + label * step
        gain = gain + share * (cp.entr(label) + cp.entr(1 - label))
    if isinstance(reward_class, LinearBall):
        features = np.asarray(reward_class.features).reshape(-1, FEATURES)
        image = features.T @ cp.vec(flow, order="C")
        gain = gain - float(reward_class.radius) * cp.norm(image)
    elif isinstance(reward_class, TabularBox):
        gain = gain - float(reward_class.maximum) * cp.sum(cp.neg(flow))
    constraints: list[Any] = [cp.sum(policy, axis=1) == 1]
    task = cp.Problem(cp.Maximize(gain), constraints)
    task.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return np.asarray(task.value).item(), np.asarray(policy.value)


# Clarabel may warn that it does not reach its tolerance; the comparison checks its accuracy.
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("kind", ["box", "ball"])
@pytest.mark.parametrize("seed", range(4))
def test_parity_cvxpy_finds_the_same_value_and_policy(kind: str, seed: int) -> None:
    beta, eta = ((0.1, 1.0), (0.5, 0.1), (2.0, 5.0), (0.3, 20.0))[seed]
    problem, reward_class = random_problem(seed, beta=beta, eta=eta), reward_class_of(kind, seed)
    value, policy = cvxpy_maximum(problem, reward_class)
    solution = maximin.solve(problem, reward_class)
    assert float(solution.objective) == pytest.approx(value, rel=CVXPY_VALUE, abs=CVXPY_VALUE)
    assert total_variation(policy, solution.policy).max() < CVXPY_POLICY


@pytest.mark.parametrize("beta", [1e-3, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("eta", [0.03, 1.0, 30.0])
def test_closed_form_two_arms_are_one_equation_in_their_difference(beta: float, eta: float) -> None:
    """With one unknown d = r_1 - r_2 in [-R, R], the derivative of F is increasing."""
    wins, base, reference, width = (7.0, 2.0), 0.3, 0.6, 2.0

    def policy(d: float) -> float:
        odds = np.log(reference / (1 - reference)) + d / beta
        return float(1 / (1 + np.exp(-np.clip(odds, -700, 700))))

    def gradient(d: float) -> float:
        losing = 1 / (1 + np.exp(d))
        return eta * (policy(d) - base) - (wins[0] * losing - wins[1] * (1 - losing)) / sum(wins)

    d: Any = -width if gradient(-width) >= 0 else width
    if gradient(-width) < 0 < gradient(width):
        d = brentq(gradient, -width, width, xtol=1e-15)
    problem = Problem(
        context_weights=np.ones(1),
        reference_policy=np.array([[reference, 1 - reference]]),
        baseline_policy=np.array([[base, 1 - base]]),
        wins=np.array([[[0.0, wins[0]], [wins[1], 0.0]]]),
        beta=np.array(beta),
        eta=np.array(eta),
    )
    actual = maximin.solve(problem, TabularBox(np.array(width))).policy
    assert actual[0, 0] == pytest.approx(policy(float(d)), abs=EXACT)


def test_theorem_s1_s3_policies_of_the_unbounded_class() -> None:
    """Mass beyond the baseline is what the labels push; arms that never win and are not picked
    get none.
    """
    for seed in range(12):
        problem = random_problem(seed)
        baseline = np.asarray(problem.baseline_policy).copy()
        baseline[:, 0] = 0.0
        wins = np.asarray(problem.wins).copy()
        wins[:, 0, :] = 0.0
        baseline /= baseline.sum(axis=1, keepdims=True)
        problem = problem._replace(wins=wins, baseline_policy=baseline)
        solution = maximin.solve(problem, Unbounded())
        assert Status(int(solution.status)) == Status.NOT_ATTAINED
        policy, reward = solution.policy, solution.reward
        assert (policy[:, 0] == 0.0).all()
        assert np.isneginf(reward[:, 0]).all()
        kept = reward[:, 1:]
        losing = 1 / (1 + np.exp(np.clip(kept[:, :, None] - kept[:, None, :], -700, 700)))
        push = wins[:, 1:, 1:] * losing
        weight = float(problem.eta) * problem.context_weights[:, None] * wins.sum()
        mass = baseline[:, 1:] + (push.sum(axis=2) - push.sum(axis=1)) / weight
        assert np.abs(mass - policy[:, 1:]).max() < EXACT * max(1.0, float((1 / weight).max()))


def test_parity_unbounded_class_agrees_with_minimax() -> None:
    problems = stack([random_problem(seed, beta=0.5) for seed in range(40)])
    ours, alternative = (
        f(problems, Unbounded()) for f in (maximin.solve_batch, minimax.solve_batch)
    )
    assert (ours.status == alternative.status).all()
    assert total_variation(ours.policy, alternative.policy).max() < AGREEMENT
    assert ours.objective == pytest.approx(alternative.objective, rel=AGREEMENT)


@pytest.mark.parametrize(
    ("beta", "gap", "lost"),
    [(0.5, 0.145, 0.062), (0.2, 0.268, 0.055), (0.1, 0.347, 0.042), (0.05, 0.388, 0.021)],
)
def test_theorem_without_convexity_algorithm_1_beats_the_minimax_policy(
    beta: float, gap: float, lost: float
) -> None:
    """For two rewards without their hull the formulations differ by a known gap."""
    members = np.array([[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.6]]])
    baseline = np.array([[0.0, 0.0, 1.0]])
    problem = Problem(
        np.ones(1),
        np.full((1, 3), 1 / 3),
        baseline,
        np.zeros((1, 3, 3)),
        np.array(beta),
        np.ones(()),
    )
    ours = maximin.solve(problem, FiniteClass(members))
    log_z = beta * np.log(np.exp(members[0] / beta).mean())
    assert log_z - 0.6 - float(ours.objective) == pytest.approx(gap, abs=5e-4)
    worst = (members * ours.policy).sum(axis=(1, 2)).min()
    assert 0.6 - worst == pytest.approx(lost, abs=5e-4)


def hard(name: str) -> tuple[Problem, RewardClass]:
    problem = random_problem(3, beta=0.5, eta=0.5)
    wins = np.asarray(problem.wins)
    match name:
        case "eta 1e-4" | "eta 1e4":
            problem = problem._replace(eta=np.array(float(name.split()[1])))
        case "beta 1e-4" | "beta 1e4":
            problem = problem._replace(beta=np.array(float(name.split()[1])))
        case "weight 1e-12":
            problem = problem._replace(context_weights=np.array([1e-12, 0.4, 0.6 - 1e-12]))
        case "weight 0":
            problem = problem._replace(context_weights=np.array([0.0, 0.4, 0.6]))
        case "a prompt without data":
            problem = problem._replace(wins=wins * np.array([0.0, 1.0, 1.0])[:, None, None])
        case "no data":
            problem = problem._replace(wins=0.0 * wins)
        case "disconnected":
            clipped = np.zeros((ACTIONS, ACTIONS))
            clipped[:2, :2] = clipped[2:, 2:] = 1.0
            problem = problem._replace(wins=wins * clipped, eta=np.array(1e-4))
        case "self comparisons":
            problem = problem._replace(wins=wins + 5.0 * np.eye(ACTIONS))
        case "many comparisons":
            problem = problem._replace(wins=1e9 * wins)
        case "reference with zeros":
            reference = np.asarray(problem.reference_policy).copy()
            reference[:, :2] = 0.0
            problem = problem._replace(reference_policy=reference / reference.sum(1, keepdims=True))
        case "reference 1e-12":
            reference = np.asarray(problem.reference_policy).copy()
            reference[:, 0] = 1e-12
            problem = problem._replace(reference_policy=reference / reference.sum(1, keepdims=True))
    width = 1e3 if name == "wide box" else 2.0
    return problem, TabularBox(np.array(width))


HARD = (
    "eta 1e-4",
    "eta 1e4",
    "beta 1e-4",
    "beta 1e4",
    "weight 1e-12",
    "weight 0",
    "a prompt without data",
    "no data",
    "disconnected",
    "self comparisons",
    "many comparisons",
    "reference with zeros",
    "reference 1e-12",
    "wide box",
)


@pytest.mark.parametrize("kind", ["box", "ball"])
@pytest.mark.parametrize("name", HARD)
def test_extreme_problems_are_solved_with_a_certificate(name: str, kind: str) -> None:
    problem, reward_class = hard(name)
    if kind == "ball":
        reward_class = reward_class_of("ball")
    solution = maximin.solve(problem, reward_class)
    proof = certificate.certify(problem, reward_class, solution.policy, solution.reward)
    scale = max(1.0, float(problem.eta), abs(float(proof.value)))
    assert float(proof.duality_gap) <= GAP * scale
    assert float(solution.objective) == pytest.approx(float(proof.value), abs=GAP * scale)
    outside = np.asarray(problem.reference_policy) == 0
    assert (solution.policy[outside] == 0.0).all()


def test_extreme_weights_keep_the_baseline_mass_of_every_component() -> None:
    """By S1 labels move nothing between components; roundoff divided by 1e-12 would be visible."""
    clipped = np.zeros((ACTIONS, ACTIONS))
    clipped[:2, :2] = clipped[2:, 2:] = 1.0
    clipped -= np.eye(ACTIONS)
    problem = random_problem(5, beta=0.5, eta=0.5)._replace(
        wins=np.random.default_rng(5).integers(1, 9, (CONTEXTS, ACTIONS, ACTIONS)) * clipped,
        context_weights=np.array([1e-12, 0.5, 0.5 - 1e-12]),
    )
    policy = maximin.solve(problem, Unbounded()).policy
    excess = (policy - problem.baseline_policy)[:, :2].sum(axis=1)
    assert np.abs(excess).max() < AGREEMENT


def test_limit_without_adversary_the_policy_follows_the_likelihood() -> None:
    """For eta = 0 every policy is optimal; the one returned has the reward as implicit reward."""
    problem = random_problem(0, beta=0.5, eta=0.0)
    policy, reward = maximin.solve(problem, TabularBox(np.array(2.0)))[:2]
    implicit = 0.5 * np.log(policy / problem.reference_policy)
    assert np.ptp(implicit - reward, axis=1) == pytest.approx(0.0, abs=EXACT)
    gradient = certificate.reward_gradient(problem, policy, reward)
    move = reward - np.clip(reward - gradient, 0.0, 2.0)
    assert np.abs(move).max() < EXACT


def test_limit_eta_to_infinity_gives_the_baseline() -> None:
    problem = random_problem(2, beta=0.1, eta=1e8)
    even = np.full_like(problem.reference_policy, 1 / ACTIONS)
    baseline = 0.5 * even + 0.5 * problem.baseline_policy
    problem = problem._replace(reference_policy=even, baseline_policy=baseline)
    actual = maximin.solve(problem, TabularBox(np.array(4.0))).policy
    assert total_variation(actual, baseline).max() < 1e-6  # of order 1 / eta


def test_limit_beta_to_infinity_gives_the_reference() -> None:
    problem = random_problem(2, beta=1e8, eta=1.0)
    actual = maximin.solve(problem, TabularBox(np.array(2.0))).policy
    assert total_variation(actual, problem.reference_policy).max() < 1e-6  # of order R / beta


@pytest.mark.parametrize("kind", ["box", "ball", "finite", "unbounded"])
def test_property_a_batch_gives_the_solutions_of_its_problems(kind: str) -> None:
    problems = [random_problem(seed, beta=0.4) for seed in range(5)]
    classes = [reward_class_of(kind, seed) for seed in range(5)]
    batch = maximin.solve_batch(stack(problems), stack(classes))
    for i in (0, 4):
        single = maximin.solve(problems[i], classes[i])
        assert int(single.status) == batch.status[i]
        assert total_variation(single.policy, batch.policy[i]).max() < EXACT


def padded(problem: Problem) -> Problem:
    """Add a context of weight zero and two actions of probability zero."""
    arms = ((0, 1), (0, 2))
    reference = np.pad(problem.reference_policy, arms)
    baseline = np.pad(problem.baseline_policy, arms)
    reference[-1, 0] = baseline[-1, 0] = 1.0
    return problem._replace(
        context_weights=np.pad(problem.context_weights, (0, 1)),
        reference_policy=reference,
        baseline_policy=baseline,
        wins=np.pad(problem.wins, ((0, 1), (0, 2), (0, 2))),
    )


@pytest.mark.parametrize("kind", ["box", "ball", "unbounded"])
def test_property_padding_changes_nothing(kind: str) -> None:
    problem, reward_class = random_problem(7, beta=0.2, eta=0.7), reward_class_of(kind)
    plain = maximin.solve(problem, reward_class)
    if isinstance(reward_class, LinearBall):
        features = np.pad(np.asarray(reward_class.features), ((0, 1), (0, 2), (0, 0)))
        reward_class = reward_class._replace(features=features)
    wide = maximin.solve(padded(problem), reward_class)
    inner = wide.policy[:CONTEXTS, :ACTIONS]
    assert total_variation(inner, plain.policy).max() < EXACT
    assert float(wide.objective) == pytest.approx(float(plain.objective), abs=EXACT)
    assert np.isfinite(wide.policy).all()


def primitives(jaxpr: Any) -> set[str]:
    """Return the names of all operations, including those of inner programs."""
    names: set[str] = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    names |= primitives(inner)
    return names


@pytest.mark.parametrize("kind", ["box", "ball", "finite", "unbounded"])
def test_property_the_method_takes_no_exponential(kind: str) -> None:
    """The method uses no Gibbs policy, log Z, softmax or sigmoid, unlike minimax."""

    def one_saddle(problem: Problem, reward_class: RewardClass) -> Any:
        if kind == "unbounded":
            problem = unbounded.reduce(problem).problem
        saddles = saddle_forms.saddle_problems(problem, reward_class)
        return jax.tree.map(lambda leaf: leaf[0], saddles)

    saddle = jax.eval_shape(one_saddle, random_problem(0), reward_class_of(kind))
    start = jax.eval_shape(saddle_interior_point.init, saddle)
    used = primitives(jax.make_jaxpr(saddle_interior_point.step)(saddle, start).jaxpr)
    assert {"log", "cholesky"} <= used
    assert not used & {"exp", "exp2", "expm1", "logistic", "tanh", "cumlogsumexp"}


def test_compiles_once_for_problems_of_one_shape() -> None:
    reward_class = TabularBox(np.array(2.0))
    maximin.solve(random_problem(0), reward_class)
    compilations = getattr(maximin._solve_group, "_cache_size")  # noqa: B009
    before = compilations()
    for seed in (1, 2):
        maximin.solve(
            random_problem(seed, beta=1.0 + seed), reward_class, tolerance=10.0 ** (-9 - seed)
        )
    assert compilations() == before


def test_raises_when_the_step_limit_comes_first() -> None:
    problem, reward_class = random_problem(0), TabularBox(np.array(2.0))
    with pytest.raises(ValueError, match="step limit"):
        maximin.solve(problem, reward_class, max_steps=2)
    solution: Solution = maximin.solve(problem, reward_class, max_steps=2, throw=False)
    assert Status(int(solution.status)) == Status.MAX_STEPS
    assert np.isfinite(solution.policy).all()


def test_raises_when_the_baseline_leaves_the_support_of_the_reference() -> None:
    reference = np.zeros((CONTEXTS, ACTIONS))
    reference[:, 0] = 1.0
    problem = random_problem(0)._replace(reference_policy=reference)
    with pytest.raises(ValueError, match="unbounded below"):
        maximin.solve(problem, Unbounded())
