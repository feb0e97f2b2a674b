r"""Negative controls: problems that break an assumption of the theorem, with their exact gaps.

Theorem 5.6 of `liu:24` needs a compact and convex-like reward class (A 5.5) and a policy class that
holds the Gibbs policies. Each control breaks one of these assumptions. Its gap
``min max - max min``, as the solvers compute it, is compared with a number known in advance. The
controls show that the check of the theorem is able to fail. One positive control shows that
convexity is more than the theorem needs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.optimize import minimize_scalar

from bandits.environments.instances import non_convex_class
from rpo_theory import maximin, minimax
from rpo_theory.objectives import saddle_objective
from rpo_theory.rewards import FiniteClass, RewardClass, TabularBox
from rpo_theory.types import Problem

EXPECTED_GAPS = {0.5: 0.145, 0.2: 0.268, 0.1: 0.347, 0.05: 0.388}
"""Gap of the two-reward class at each value of beta, to three digits."""
N_REWARDS = 24
"""Rewards in every finite class; with one size, the classes share their compiled solvers."""


class NegativeControl(NamedTuple):
    r"""Problem on which the two formulations differ.

    Attributes:
        name: name of the class that breaks an assumption; of the positive control, of its class.
        duality_gap: :math:`\min_r\max_\pi\phi - \max_\pi\min_r\phi` as computed, divided by
            :math:`\eta`.
        expected: the same gap, known in advance; 0 for the positive control.
    """

    name: str
    duality_gap: float
    expected: float


def solve_negative_controls() -> list[NegativeControl]:
    """Solve all negative controls.

    Returns:
        The two-reward class at four values of beta, a neural reward class, a policy class that
        lacks the Gibbs policies, and the positive control.
    """
    return [*two_rewards(), one_neuron(), two_policies(), convex_like()]


def two_rewards() -> list[NegativeControl]:
    r"""Solve the finite class :math:`\{(1, 0, .6), (0, 1, .6)\}` at several values of beta.

    Returns:
        One control for each value of beta in ``EXPECTED_GAPS``; the instance is
        :func:`bandits.environments.instances.non_convex_class`.
    """
    instances = [non_convex_class(beta) for beta in EXPECTED_GAPS]
    problems, reward_class = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(instance[:2] for instance in instances)
    )
    repeated = np.resize(np.arange(2), N_REWARDS)  # a reward that is listed twice changes nothing
    gaps = _gaps(problems, FiniteClass(reward_class.rewards[:, repeated]))
    return [
        NegativeControl(f"two rewards, beta {beta}", gap, expected)
        for (beta, expected), gap in zip(EXPECTED_GAPS.items(), gaps, strict=True)
    ]


def convex_like(beta: float = 0.1) -> NegativeControl:
    r"""Solve the convex-like class :math:`\{(1,0,.6), (0,1,.6), (0,0,.6)\}`, which is not convex.

    The third reward is at most every mixture of the members, and equal at the response of the
    baseline. Its objective is therefore at most that of every mixture, whatever the policy is: the
    class is convex-like (Fan), and the two formulations agree.

    Args:
        beta: weight :math:`\beta` of the KL term.

    Returns:
        The positive control, with gap 0.
    """
    problem, reward_class = non_convex_class(beta)[:2]
    assert isinstance(reward_class, FiniteClass)
    lowest = np.array([[[0.0, 0.0, 0.6]]])
    rewards = np.concatenate([np.asarray(reward_class.rewards), lowest])
    repeated = FiniteClass(rewards[np.resize(np.arange(3), N_REWARDS)])
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (problem, repeated))
    return NegativeControl("convex-like finite class", _gaps(*batch)[0], 0.0)


def one_neuron(
    beta: float = 0.1, steepness: float = 4.0, angles: int = N_REWARDS
) -> NegativeControl:
    r"""Solve a non-convex neural class: one sigmoid neuron with weights on the unit circle.

    The features of three responses are 120 degrees apart, :math:`r_w(a) = \sigma(s\langle w,
    \phi_a\rangle)`, reference and baseline are uniform, and there are no data. Rotating the weights
    permutes the responses, so by concavity the uniform policy is optimal against the worst neuron,
    with value 0. Against a known neuron the optimal value is
    :math:`\beta\log E e^{r/\beta} - E r`.

    Args:
        beta: weight :math:`\beta` of the KL term.
        steepness: :math:`s`.
        angles: number of neurons on the circle, a multiple of three.

    Returns:
        The control.
    """
    weight_angles = 2 * np.pi * np.arange(angles) / angles
    feature_angles = 2 * np.pi * np.arange(3) / 3
    rewards = 1 / (1 + np.exp(-steepness * np.cos(weight_angles[:, None] - feature_angles)))
    value = beta * np.log(np.exp(rewards / beta).mean(axis=1)) - rewards.mean(axis=1)
    problem = _no_data(np.full((1, 3), 1 / 3), beta)
    batch = jax.tree.map(lambda leaf: leaf[None], (problem, FiniteClass(rewards[:, None, :])))
    return NegativeControl("one-neuron reward class", _gaps(*batch)[0], float(value.min()))


def two_policies(beta: float = 0.1) -> NegativeControl:
    r"""Solve a class of two deterministic policies, which lacks the Gibbs policies.

    Rewards are in the box :math:`[0,1]^2`, reference and baseline are uniform, and there are no
    data. :math:`\max_k r_k - \bar r` has the minimum 0, at equal rewards, while the minimum for
    either policy is :math:`-\frac12`.

    Args:
        beta: weight :math:`\beta` of the KL term, which is the same for both policies.

    Returns:
        The control, with gap 1/2.
    """
    box = TabularBox(np.array(1.0))
    problem = _no_data(np.full((1, 2), 0.5), beta)
    policies = np.eye(2)[:, None, :]
    baseline = np.asarray(problem.baseline_policy)
    # Without data phi is linear in the reward, and at zero reward it is minus the KL term.
    kl_term = float(jax.jit(saddle_objective)(problem, policies[0], np.zeros((1, 2))))

    least = jax.jit(box.linear_minimum)

    def minimum(share: float) -> float:
        """Return the minimum over rewards of a mixture of both objectives, concave in its share."""
        mixture = share * policies[0] + (1.0 - share) * policies[1]
        return float(least(mixture - baseline)) + kl_term

    best: Any = minimize_scalar(lambda share: -minimum(share), bounds=(0.0, 1.0), method="bounded")
    gap = -float(best.fun) - max(minimum(0.0), minimum(1.0))
    return NegativeControl("two-policy class", gap, 0.5)


def _gaps(problems: Problem, reward_class: RewardClass) -> list[float]:
    """Return the min-max value minus the max-min value of each problem, divided by its eta."""
    upper = minimax.solve_batch(problems, reward_class).objective
    lower = maximin.solve_batch(problems, reward_class).objective
    return ((np.asarray(upper) - np.asarray(lower)) / np.asarray(problems.eta)).tolist()


def _no_data(uniform: np.ndarray, beta: float) -> Problem:
    n_actions = uniform.shape[1]
    wins = np.zeros((1, n_actions, n_actions))
    return Problem(np.ones(1), uniform, uniform, wins, np.array(beta), np.array(1.0))
