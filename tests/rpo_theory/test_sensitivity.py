"""Derivatives of the minimax solution against differences of solutions with 45 digits."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from rpo_theory import direct, maximin, minimax
from rpo_theory.problems import normalize
from rpo_theory.rewards import LinearBall, Lipschitz, TabularBox
from rpo_theory.types import Problem

DERIVATIVE = 1e-8
"""Error of a derivative, relative to its norm."""
TRANSPOSED = 1e-12
"""Relative difference of <w, Jv> and <J'w, v>, which sum the same products in another order."""
AWAY = 1e-4
"""Smallest slack or multiplier of an instance away from kinks."""
TOUCHING = 1e-7
"""Slack below which a constraint is active."""
STEP = mp.mpf(10) ** -15
"""Step of the central differences; their error is about its square."""
HOLD = mp.mpf(10) ** -25
"""Penalty that holds what neither the objective nor the constraints determine."""
ENABLE = r'jax\.config\.update\("jax_enable_x64", True\)'
SHAPES = [(1, 3), (2, 3), (3, 4)]
FEATURES = 3


class Instance(NamedTuple):
    problem: Problem
    reward_class: Any
    direction: tuple[Problem, Any]


def draw(kind: str, seed: int, shape: tuple[int, int]) -> Instance:
    rng = np.random.default_rng([seed, *shape])
    n_actions = shape[1]
    diagonal = np.arange(n_actions)
    wins = rng.poisson(2.0, (*shape, n_actions)).astype(float) + 0.25
    wins[:, diagonal, diagonal] = 0.0
    problem = Problem(
        context_weights=rng.dirichlet(np.full(shape[0], 3.0)),
        reference_policy=rng.dirichlet(np.full(n_actions, 2.0), shape[0]),
        baseline_policy=rng.dirichlet(np.full(n_actions, 1.0), shape[0]),
        wins=wins,
        beta=rng.uniform(0.2, 1.0),
        eta=rng.uniform(0.2, 2.0),
    )
    tangent = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))), problem)
    tangent = tangent._replace(
        context_weights=tangent.context_weights - tangent.context_weights.mean(),
        reference_policy=_sum_zero(tangent.reference_policy),
        baseline_policy=_sum_zero(tangent.baseline_policy),
        wins=tangent.wins * (1.0 - np.eye(n_actions)),
    )
    if kind == "box":
        reward_class = TabularBox(rng.uniform(0.3, 2.0))
    elif kind == "ball":
        reward_class = LinearBall(rng.normal(size=(*shape, FEATURES)), rng.uniform(0.2, 1.5))
    else:
        points = rng.normal(size=(shape[0] * n_actions, 2))
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
        reward_class = Lipschitz(rng.uniform(0.2, 1.0), distance, rng.uniform(0.8, 2.0))
    moved = jax.tree.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))), reward_class)
    if kind == "lipschitz":
        moved = moved._replace(distance=_symmetric(moved.distance))
    return Instance(problem, reward_class, (tangent, moved))


def _sum_zero(table: np.ndarray) -> np.ndarray:
    return table - table.mean(axis=-1, keepdims=True)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) * (1.0 - np.eye(len(matrix)))


# The oracle: Newton's method with 70 digits on the active constraints.


class Exact(NamedTuple):
    """Policy, centered reward and value with many digits."""

    policy: np.ndarray
    reward: np.ndarray
    value: Any


def to_exact(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.vectorize(mp.mpf, otypes=[object])(np.asarray(leaf)), tree)


def exact_derivatives(
    problem: Problem, reward: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Return the minimax objective, its gradient and Hessian, and the Gibbs policy."""
    exp, log = np.frompyfunc(mp.exp, 1, 1), np.frompyfunc(mp.log, 1, 1)
    d0, ref, base, wins, beta, eta = (np.asarray(leaf, object)[()] for leaf in problem[:6])
    n_contexts, n_actions = reward.shape
    weight = ref * exp(reward / beta)
    partition = weight.sum(axis=1)
    policy = weight / partition[:, None]
    n_comparisons = wins.sum()
    margin = reward[:, :, None] - reward[:, None, :]
    surprise = 1 / (1 + exp(margin))
    value = eta * (d0 * (beta * log(partition) - (base * reward).sum(axis=1))).sum()
    value = value - (wins * log(1 - surprise)).sum() / n_comparisons
    flow = wins * surprise / n_comparisons
    gradient = eta * d0[:, None] * (policy - base) + flow.sum(axis=1) - flow.sum(axis=2)
    # Probabilities of float64 sum to one up to rounding, which would move the constants.
    gradient = gradient - gradient.mean(axis=1, keepdims=True)
    edges = (wins + np.swapaxes(wins, 1, 2)) * surprise * (1 - surprise) / n_comparisons
    edges = edges + (eta * d0 / beta)[:, None, None] * policy[:, :, None] * policy[:, None, :]
    hessian = np.full((reward.size, reward.size), mp.mpf(0), object)
    for x in range(n_contexts):
        rows = slice(x * n_actions, (x + 1) * n_actions)
        block = -edges[x].copy()
        for a in range(n_actions):
            block[a, a] = edges[x, a].sum() - edges[x, a, a]
        hessian[rows, rows] = block
    return value, gradient, hessian, policy


def newton(residual: Any, start: np.ndarray, steps: int = 20) -> np.ndarray:
    point = start
    for _ in range(steps):
        value, matrix = residual(point)
        move = mp.lu_solve(mp.matrix(matrix.tolist()), mp.matrix([-v for v in value]))
        point = point + np.array(list(move), object)
        if max(abs(v) for v in move) < mp.mpf(10) ** -40:
            return point
    raise AssertionError("the oracle did not converge")


def exact_table(problem: Problem, rows: np.ndarray, levels: np.ndarray, start: np.ndarray) -> Exact:
    """Minimize over tables with rows @ r = levels, which may be redundant."""
    shape = start.shape
    n, c = start.size, len(rows)
    first = to_exact(start.ravel())

    def residual(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reward, dual = point[:n], point[n:]
        _, gradient, hessian, _ = exact_derivatives(problem, reward.reshape(shape))
        matrix = np.full((n + c, n + c), mp.mpf(0), object)
        matrix[:n, :n] = hessian + HOLD * np.eye(n, dtype=int)
        matrix[:n, n:], matrix[n:, :n] = rows.T, rows
        matrix[n:, n:] = -HOLD * np.eye(c, dtype=int)
        stationarity = gradient.ravel() + HOLD * (reward - first) + rows.T @ dual
        return np.concatenate([stationarity, rows @ reward - levels - HOLD * dual]), matrix

    zeros = np.full(c, mp.mpf(0), object)
    reward = newton(residual, np.concatenate([first, zeros]))[:n].reshape(shape)
    value, _, _, policy = exact_derivatives(problem, reward)
    return Exact(policy, reward - reward.mean(axis=1, keepdims=True), value)


def exact_solution(kind: str, problem: Problem, reward_class: Any, found: Any, plain: Any) -> Exact:
    """Solve with many digits on the constraints that are active at a solution in float64."""
    if kind == "ball":
        return exact_ball(problem, reward_class, found.reward, plain)
    reward = np.asarray(found.reward)
    unit, flat = np.eye(reward.size, dtype=int), reward.ravel()
    low, high = flat < TOUCHING, flat > float(plain.maximum) - TOUCHING
    rows = [*unit[low], *unit[high]]
    levels = [mp.mpf(0)] * low.sum() + [reward_class.maximum] * high.sum()
    if kind == "lipschitz":
        limits = float(plain.constant) * np.asarray(plain.distance)
        slack = limits - (flat[:, None] - flat[None, :])
        for i, j in np.argwhere((slack < TOUCHING) & (limits > 0)):
            rows.append(unit[i] - unit[j])
            levels.append(reward_class.constant * reward_class.distance[i, j])
    rows = np.array(rows, int).reshape(-1, reward.size)
    return exact_table(problem, rows, np.array(levels, object), reward)


def exact_ball(problem: Problem, ball: Any, reward: np.ndarray, plain: LinearBall) -> Exact:
    shape = np.shape(reward)
    features = ball.features.reshape(-1, FEATURES)
    theta = np.asarray(plain.parameter(reward))
    first = to_exact(theta)
    bound = np.linalg.norm(theta) > float(plain.radius) - TOUCHING

    def residual(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, dual = point[:FEATURES], point[FEATURES]
        _, gradient, hessian, _ = exact_derivatives(problem, (features @ u).reshape(shape))
        matrix = np.full((FEATURES + 1, FEATURES + 1), mp.mpf(0), object)
        curvature = (dual + HOLD) * np.eye(FEATURES, dtype=int)
        matrix[:-1, :-1] = features.T @ hessian @ features + curvature
        matrix[:-1, -1] = u
        matrix[-1] = np.append(u, mp.mpf(0)) if bound else [mp.mpf(0)] * FEATURES + [mp.mpf(1)]
        violation = (u @ u - ball.radius**2) / 2 if bound else dual
        stationarity = features.T @ gradient.ravel() + dual * u + HOLD * (u - first)
        return np.append(stationarity, violation), matrix

    slope = residual(to_exact(np.append(theta, 0.0)))[0][:FEATURES]
    dual = -float(slope @ theta) / max(theta @ theta, 1e-300) if bound else 0.0
    u = newton(residual, to_exact(np.append(theta, dual)))[:FEATURES]
    reward = (features @ u).reshape(shape)
    value, _, _, policy = exact_derivatives(problem, reward)
    return Exact(policy, reward - reward.mean(axis=1, keepdims=True), value)


def exact_derivative(kind: str, instance: Instance, found: Any) -> Exact:
    arguments = instance.problem, instance.reward_class
    with mp.workdps(70):
        base, direction = to_exact((arguments, instance.direction))
        ends = []
        for sign in (1, -1):
            moved = jax.tree.map(lambda leaf, way, s=sign: leaf + s * STEP * way, base, direction)
            ends.append(exact_solution(kind, moved[0], moved[1], found, instance.reward_class))
        return Exact(*((p - m) / (2 * STEP) for p, m in zip(*ends, strict=True)))


def is_away_from_kinks(kind: str, instance: Instance, found: Any) -> bool:
    """Tell whether the same constraints are active a short step to both sides."""
    solutions = (found, instance.reward_class), *(_solve_moved(instance, s) for s in (-AWAY, AWAY))
    return len({_n_active(kind, *moved) for moved in solutions}) == 1


def _solve_moved(instance: Instance, step: float) -> Any:
    arguments = (instance.problem, instance.reward_class)
    moved = jax.tree.map(lambda leaf, way: leaf + step * way, arguments, instance.direction)
    return minimax.solve(normalize(moved[0]), moved[1]), moved[1]


@jax.jit
def both_modes(arguments: Any, direction: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Return the solution, its tangent along a direction, and its cotangent of some weights."""

    def solve(problem: Problem, reward_class: Any) -> tuple[Any, ...]:
        return tuple(minimax.solve(problem, reward_class)[:3])

    solution, push = jax.linearize(solve, *arguments)
    pull = jax.linear_transpose(push, *arguments)
    return solution, push(*direction), pull(weights)


def check(kind: str, seed: int, shape: tuple[int, int]) -> bool:
    """Compare all derivatives of one instance; return False if it is too close to a kink."""
    instance = draw(kind, seed, shape)
    arguments = normalize(instance.problem), instance.reward_class
    found = minimax.solve(*arguments)
    if not is_away_from_kinks(kind, instance, found):
        return False
    rng = np.random.default_rng(seed)
    weights = tuple(jnp.asarray(rng.normal(size=np.shape(part))) for part in found[:3])
    inputs = jax.tree.map(jnp.asarray, (arguments, instance.direction))
    _, tangent, cotangent = both_modes(*inputs, weights)
    expected = exact_derivative(kind, instance, found)
    centered = _sum_zero(np.asarray(tangent[1]))
    for ours, exact in zip((tangent[0], centered, tangent[2]), expected, strict=True):
        exact = np.asarray(exact, float)
        error = np.linalg.norm(np.asarray(ours) - exact)
        assert error <= DERIVATIVE * np.linalg.norm(exact), (kind, seed, error)
    forward, backward = (
        [np.ravel(np.multiply(a, b)) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)]
        for pair in ((weights, tangent), (cotangent, inputs[1]))
    )
    forward, backward = np.concatenate(forward), np.concatenate(backward)
    size = np.abs(forward).sum() + np.abs(backward).sum()
    difference = abs(forward.sum() - backward.sum())
    assert difference <= TRANSPOSED * size, (kind, seed, difference / size)
    return True


def _n_active(kind: str, solution: Any, reward_class: Any) -> tuple[int, ...]:
    """Count the constraints that a solution touches, of each sort."""
    reward = np.asarray(solution.reward)
    if kind == "ball":
        norm = np.linalg.norm(reward_class.parameter(reward))
        return (int(norm > float(reward_class.radius) - TOUCHING),)
    maximum = float(reward_class.maximum)
    counts = [int((reward < TOUCHING).sum()), int((reward > maximum - TOUCHING).sum())]
    if kind == "lipschitz":
        flat = reward.ravel()
        limits = float(reward_class.constant) * np.asarray(reward_class.distance)
        slack = limits - (flat[:, None] - flat[None, :])
        counts.append(int(((slack < TOUCHING) & (limits > 0)).sum()))
    return tuple(counts)


def test_gradient_of_a_box_is_the_difference_of_exact_solutions() -> None:
    assert sum(check("box", seed, (2, 3)) for seed in range(6)) >= 3


def test_gradient_at_a_kink_is_that_of_the_side_where_the_bound_is_active() -> None:
    problem, _, _ = draw("box", 2, (2, 3))
    problem = normalize(problem)
    free = np.asarray(minimax.solve(problem, TabularBox(50.0)).reward)
    width = float((free.max(axis=1) - free.min(axis=1)).max())
    arguments = jax.tree.map(jnp.asarray, (problem, TabularBox(width)))
    wider = jax.tree.map(jnp.zeros_like, arguments)[0], TabularBox(jnp.ones(()))
    weights = (jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(()))
    tangent = both_modes(arguments, wider, weights)[1][0]
    solve = jax.jit(minimax.solve)  # polished, so that a short step can be taken at a kink
    step = 1e-6
    at, left, right = (
        np.asarray(solve(arguments[0], TabularBox(jnp.asarray(width + move))).policy)
        for move in (0.0, -step, step)
    )
    np.testing.assert_allclose(tangent, (at - left) / step, atol=1e-5)
    np.testing.assert_allclose((right - at) / step, 0.0, atol=1e-5)
    assert np.abs(tangent).max() > 1e-2


def test_raises_inside_a_trace_without_float64() -> None:
    problem, box, _ = draw("box", 0, (2, 3))
    solvers = [module.solve for module in (minimax, maximin, direct)]
    with jax.enable_x64(False):
        for solve in solvers:
            with pytest.raises(
                RuntimeError, match=r'jax\.config\.update\("jax_enable_x64", True\)'
            ):
                jax.jit(lambda eta, solve=solve: solve(problem._replace(eta=eta), box))(0.5)


def test_raises_for_derivatives_of_the_other_routes() -> None:
    problem, box, _ = draw("box", 0, (2, 3))
    for solve in (maximin.solve, direct.solve):
        with pytest.raises(NotImplementedError, match=r"differentiate `minimax\.solve`"):
            jax.grad(lambda eta, solve=solve: solve(problem._replace(eta=eta), box).objective)(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["box", "ball", "lipschitz"])
def test_gradient_of_two_hundred_instances(kind: str) -> None:
    # In a single context of three actions, three features are redundant.
    shapes = SHAPES[1:] if kind == "ball" else SHAPES
    compared = 0
    for seed in range(150):
        compared += sum(check(kind, 1000 + seed, shape) for shape in shapes)
        if compared >= 67:
            return
    raise AssertionError(f"only {compared} instances are away from kinks")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["box", "ball", "lipschitz"])
def test_gradient_second_order_is_the_difference_of_gradients(kind: str) -> None:
    instance = draw(kind, 5, (2, 3))
    arguments = jax.tree.map(jnp.asarray, (normalize(instance.problem), instance.reward_class))
    direction = jax.tree.map(jnp.asarray, instance.direction)
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))

    @jax.jit
    def slope(problem: Problem, reward_class: Any) -> Any:
        def value(problem: Problem, reward_class: Any) -> Any:
            return jnp.vdot(weight, minimax.solve(problem, reward_class).policy)

        return jax.jvp(value, (problem, reward_class), direction)[1]

    ours = jax.jit(lambda *a: jax.jvp(slope, a, direction)[1])(*arguments)
    backward = jax.jit(jax.grad(slope, argnums=(0, 1)))(*arguments)
    step = 1e-5
    ends = [
        slope(*jax.tree.map(lambda leaf, way, s=s: leaf + s * step * way, arguments, direction))
        for s in (1.0, -1.0)
    ]
    np.testing.assert_allclose(ours, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)
    inner = jax.tree.map(lambda a, b: np.vdot(a, b), backward, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(inner)), ours, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_compiles_once_and_maps_gradients_over_ten_thousand_problems() -> None:
    count, shape = 10_000, (8, 10)
    rng = np.random.default_rng(0)
    wins = rng.poisson(1.0, (count, *shape, shape[1])) * (1.0 - np.eye(shape[1]))
    problem, box, _ = draw("box", 0, shape)
    traces = []

    def value(wins: Any, eta: Any) -> Any:
        traces.append(None)
        return minimax.solve(problem._replace(wins=wins, eta=eta), box).policy[0, 0]

    mapped = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1))))
    gradients = jax.block_until_ready(mapped(wins, np.full(count, 0.5)))
    assert all(np.isfinite(np.asarray(part)).all() for part in gradients)
    start = time.perf_counter()
    jax.block_until_ready(mapped(wins[::-1].copy(), np.full(count, 0.7)))
    print(f"10,000 gradients in {time.perf_counter() - start:.1f} s")
    assert len(traces) == 1
