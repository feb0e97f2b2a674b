r"""Where the theorem must fail: problems that break its assumption, and their exact gaps.

Theorem 5.6 of `liu:24` needs a convex reward class (A 5.5) and a policy class that holds the Gibbs
policies. Each control breaks one of them; ``min max - max min`` is computed by the solvers and held
against a number known in advance. A check that cannot fail proves nothing.
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
"""Gap of the two-reward class at each beta, to three digits."""


class NegativeControl(NamedTuple):
    r"""A problem on which the two formulations differ.

    Attributes:
        name: what is broken.
        duality_gap: :math:`\min_r\max_\pi\phi - \max_\pi\min_r\phi` as solved, per unit
            :math:`\eta`.
        expected: the same, known in advance.
    """

    name: str
    duality_gap: float
    expected: float


def solve_negative_controls() -> list[NegativeControl]:
    """All negative controls, solved.

    Returns:
        The two-reward class at four values of beta, a neural class, a policy class that misses
        the Gibbs policies.
    """
    return [*two_rewards(), one_neuron(), two_policies()]


def two_rewards() -> list[NegativeControl]:
    r"""A finite class, :math:`\{(1, 0, .6), (0, 1, .6)\}`: see :func:`non_convex_class`.

    Returns:
        A control at each of the values of beta in ``EXPECTED_GAPS``.
    """
    instances = [non_convex_class(beta) for beta in EXPECTED_GAPS]
    problems, reward_class = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(instance[:2] for instance in instances)
    )
    gaps = _gaps(problems, reward_class)
    return [
        NegativeControl(f"two rewards, beta {beta}", gap, expected)
        for (beta, expected), gap in zip(EXPECTED_GAPS.items(), gaps, strict=True)
    ]


def one_neuron(beta: float = 0.1, steepness: float = 4.0, angles: int = 24) -> NegativeControl:
    r"""A non-convex neural class: one sigmoid neuron with weights on the unit circle.

    Three responses with features a third of a turn apart, :math:`r_w(a) = \sigma(s\langle w,
    \phi_a\rangle)`, reference and baseline uniform, no data. Turning the weights turns the
    responses, so by concavity the uniform policy is the best against the worst neuron, with value
    0; against a known neuron the best policy bets, with value
    :math:`\beta\log E e^{r/\beta} - E r`.

    Args:
        beta: :math:`\beta`.
        steepness: :math:`s`.
        angles: neurons on the circle, a multiple of three.

    Returns:
        The control.
    """
    turns = 2 * np.pi * np.arange(angles) / angles
    features = 2 * np.pi * np.arange(3) / 3
    rewards = 1 / (1 + np.exp(-steepness * np.cos(turns[:, None] - features)))
    bet = beta * np.log(np.exp(rewards / beta).mean(axis=1)) - rewards.mean(axis=1)
    problem = _no_data(np.full((1, 3), 1 / 3), beta)
    batch = jax.tree.map(lambda leaf: leaf[None], (problem, FiniteClass(rewards[:, None, :])))
    return NegativeControl("one-neuron reward class", _gaps(*batch)[0], float(bet.min()))


def two_policies(beta: float = 0.1) -> NegativeControl:
    r"""A policy class without the Gibbs policies: always the first response, or always the second.

    Over the box :math:`[0,1]^2`, reference and baseline uniform, no data:
    :math:`\max_k r_k - \bar r` is least, 0, at equal rewards, while each policy alone can be
    brought down to :math:`-\frac12`.

    Args:
        beta: :math:`\beta`; the KL term is the same for both policies.

    Returns:
        The control, with gap 1/2.
    """
    box = TabularBox(np.array(1.0))
    problem = _no_data(np.full((1, 2), 0.5), beta)
    policies = np.eye(2)[:, None, :]
    baseline = np.asarray(problem.baseline_policy)
    # Without data phi is linear in the reward; at the zero reward it is minus the KL term.
    kl_term = float(saddle_objective(problem, policies[0], np.zeros((1, 2))))

    def least(share: float) -> float:
        """Least of the mixture of both objectives over the rewards: concave in the share."""
        mixture = share * policies[0] + (1.0 - share) * policies[1]
        return float(box.minimum(mixture - baseline)) + kl_term

    found: Any = minimize_scalar(lambda share: -least(share), bounds=(0.0, 1.0), method="bounded")
    gap = -float(found.fun) - max(least(0.0), least(1.0))
    return NegativeControl("two-policy class", gap, 0.5)


def _gaps(problems: Problem, reward_class: RewardClass) -> list[float]:
    """Value of the min-max less that of the max-min, per unit eta, for a batch."""
    upper = minimax.solve_batch(problems, reward_class).objective
    lower = maximin.solve_batch(problems, reward_class).objective
    return ((np.asarray(upper) - np.asarray(lower)) / np.asarray(problems.eta)).tolist()


def _no_data(uniform: np.ndarray, beta: float) -> Problem:
    n_actions = uniform.shape[1]
    wins = np.zeros((1, n_actions, n_actions))
    return Problem(np.ones(1), uniform, uniform, wins, np.array(beta), np.array(1.0))
