"""Public functions under jit, vmap and grad, and the solvers of all routes inside a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory import bounds, objectives, preference, stationarity
from rpo_theory.adversary import adversarial_reward
from rpo_theory.certificate import certify
from rpo_theory.density_ratio import density_ratio_bound
from rpo_theory.maximin import solve as solve_maximin
from rpo_theory.minimax import solve as solve_minimax
from rpo_theory.policies import kl_divergence, log_gibbs_policy
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

EVEN = np.full((1, 2), 0.5)
SKEWED = np.array([[0.7, 0.3]])
WINS = np.array([[[0.0, 3.0], [1.0, 0.0]]])
TERMS = {"n_pairs": 100.0, "complexity": 2.0, "coverage": 1.0}


def problem(eta: Any) -> Problem:
    return Problem(np.ones(1), EVEN, SKEWED, WINS, beta=1.0, eta=eta)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "covering_scale": lambda t: bounds.covering_scale(100.0, t),
    "complexity": lambda t: bounds.complexity(3.0, 0.1 * t),
    "printed_modulus": bounds.printed_modulus,
    "corrected_modulus": bounds.corrected_modulus,
    "tight_modulus": bounds.tight_modulus,
    "theorem_beta": bounds.theorem_beta,
    "tuned_eta": lambda t: bounds.tuned_eta(t, n_pairs=100.0, complexity=2.0),
    "regularized_gap_bound": lambda t: bounds.regularized_gap_bound(0.1, **TERMS, eta=t),
    "suboptimality_bound": lambda t: bounds.suboptimality_bound(
        0.1, **TERMS, eta=t, beta=0.1, kl=t
    ),
    "theorem_bound_printed": lambda t: bounds.theorem_bound_printed(**TERMS, reward_max=t, kl=t),
    "theorem_bound_corrected": lambda t: bounds.theorem_bound_corrected(
        **TERMS, reward_max=t, kl=t
    ),
    "theorem_bound_tight": lambda t: bounds.theorem_bound_tight(**TERMS, reward_max=t, kl=t),
    "prompt_shift_factor": lambda t: bounds.prompt_shift_factor(
        jnp.stack([t, 1.0 - t]), jnp.array([0.4, 0.6])
    ),
    "value": lambda t: objectives.value(SKEWED, t * EVEN, np.ones(1)),
    "gap": lambda t: objectives.gap(SKEWED, EVEN, t * SKEWED, np.ones(1)),
    "saddle_objective": lambda t: objectives.saddle_objective(problem(t), SKEWED, t * SKEWED),
    "minimax_objective": lambda t: objectives.minimax_objective(problem(t), t * SKEWED),
    "kl_divergence": lambda t: kl_divergence(jnp.array([[t, 1.0 - t]]), EVEN)[0],
    "log_gibbs_policy": lambda t: log_gibbs_policy(t * SKEWED, EVEN, t)[0, 0],
    "negative_log_likelihood": lambda t: preference.negative_log_likelihood(t * SKEWED, WINS),
    "s1_residual": lambda t: stationarity.s1_residual(problem(t), SKEWED, t * SKEWED)[0, 0],
    "density_ratio_bound": lambda t: density_ratio_bound(
        jnp.array([[t, 1.0 - t]]), EVEN, np.ones(1), np.full((1, 2, 2), 0.25)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_public_functions_are_jax_citizens(name: str) -> None:
    function, points = FUNCTIONS[name], jnp.array([0.6, 0.8])
    mapped = jax.jit(jax.vmap(jax.value_and_grad(function)))
    values, slopes = mapped(points)
    np.testing.assert_allclose(values, [function(point) for point in points], rtol=1e-12)
    step = 1e-6
    differences = [(function(p + step) - function(p - step)) / (2 * step) for p in points]
    np.testing.assert_allclose(slopes, differences, rtol=1e-6, atol=1e-8)


def test_parity_traced_solvers_with_the_host_drivers() -> None:
    box, etas = TabularBox(2.0), np.array([0.3, 1.0])

    def answers(eta: Any) -> Any:
        solution, other = solve_minimax(problem(eta), box), solve_maximin(problem(eta), box)
        worst = adversarial_reward(problem(eta), box, solution.policy)
        certificate = certify(problem(eta), box, other.policy, solution.reward)
        return solution, other.policy, worst, certificate

    solutions, policies, worst, certificates = jax.jit(jax.vmap(answers))(etas)
    for index, eta in enumerate(etas):
        host = solve_minimax(problem(eta), box)
        np.testing.assert_allclose(solutions.policy[index], host.policy, atol=1e-12)
        np.testing.assert_allclose(solutions.objective[index], host.objective, atol=1e-12)
        np.testing.assert_allclose(policies[index], host.policy, atol=1e-9)
        host_worst = adversarial_reward(problem(eta), box, host.policy)
        np.testing.assert_allclose(
            worst[index][0, 0] - worst[index][0, 1], host_worst[0, 0] - host_worst[0, 1], atol=1e-7
        )
        assert int(solutions.status[index]) == int(host.status)
    assert np.all(np.asarray(certificates.duality_gap) < 1e-9)


def test_parity_float32_arguments_are_promoted() -> None:
    eta = jnp.asarray(0.5, jnp.float32)
    policy = jax.jit(lambda eta: solve_minimax(problem(eta), TabularBox(2.0)).policy)(eta)
    assert policy.dtype == jnp.float64
