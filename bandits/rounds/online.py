r"""The loop of online preference optimization: fit, choose pairs, label them, add them, repeat.

In round :math:`t` a method fits :math:`\pi_t` to the comparisons so far. New pairs
:math:`(x, a^1, a^0)` are drawn with :math:`x\sim d_0`, :math:`a^1\sim\pi_t` and :math:`a^0` from
the sampling policy, labeled by the Bradley-Terry model of the true reward, and added to the data.

Regret is that of :math:`\pi_t`, not of the pair, against the optimum of the objective that all
methods share, :math:`J_\beta(\pi)=E_\pi r^\star-\beta E\,KL(\pi\|\pi_{ref})`:

.. math:: J_\beta(\pi_{r^\star})-J_\beta(\pi_t)=\beta E_{d_0}KL(\pi_t\|\pi_{r^\star}) .

The gap :math:`J(\pi)-J(\pi_t)` to the comparator, without divergence, is recorded beside it. At a
fixed :math:`\beta` it does not vanish even for :math:`\pi_{r^\star}`.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float, Int

from bandits.environments.base import Instance
from bandits.environments.sampling import draw_win_counts
from bandits.methods.base import FitContext, FitResult
from bandits.methods.policy_checks import require_policies
from bandits.methods.registry import fit_method
from rpo_theory.policies import kl_divergence, kl_to_gibbs
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

from .config import RoundsConfig, RoundsMethod

FIRST_STREAM = 2**62
"""Random stream of the first round; the streams of data sets are below."""


ROUNDS_PER_SEED = 100_003
"""Factor that keeps the random numbers of a method apart over rounds and seeds."""


def play_rounds(
    instance: Instance,
    method: RoundsMethod,
    config: RoundsConfig,
    seeds: Int[np.ndarray, " B"],
) -> dict[str, Float[np.ndarray, "t B"]]:
    r"""Play all rounds of one method on a batch of bandits.

    A seed's rounds depend on its bandit, the method and the configuration alone, not on the batch
    or on other methods. All methods draw the labels of a round from the same random stream.

    Args:
        instance: bandits with the comparisons before the first round, with a leading batch axis.
        method: the method.
        config: sizes, weights and sampling.
        seeds: one seed for each bandit.

    Returns:
        Columns by name, one value for each round and bandit:

        * ``n_pairs``: number of comparisons that the round's policy was fitted to;
        * ``eta``: weight of the round;
        * ``regret``, ``gap``: shortfall of the policy in :math:`J_\beta` and in :math:`J`, units
          of reward; ``cumulative_regret``, ``cumulative_gap``: their sums up to the round;
        * ``kl``: divergence from :math:`\pi_{ref}`, nats;
        * ``comparator_pairs``: number of the comparisons between a response of the comparator and
          another one;
        * ``certificate``, ``status``: those of the fit.

    References:
        `cen:24`, Algorithm 1; `xie:24`, Algorithm 1.

    Examples:
        >>> from bandits.environments.designs import Design, draw_design
        >>> method = RoundsMethod(method="two_stage")
        >>> config = RoundsConfig(name="a", methods=[method], rounds=2, seeds=3)
        >>> drawn = draw_design(Design(actions=2), 100, np.arange(3))
        >>> play_rounds(drawn, method, config, np.arange(3))["n_pairs"][:, 0].tolist()
        [100.0, 110.0]
    """
    problem = instance.problem
    truth, n_batch = np.asarray(instance.true_reward), len(seeds)
    wins = np.asarray(problem.wins, np.float64)
    beta = np.full(n_batch, config.beta)
    rows: list[dict[str, Float[np.ndarray, " B"]]] = []
    for number in range(config.rounds):
        eta = weight_of_round(config, wins.sum(axis=(1, 2, 3)))
        weighted = problem._replace(wins=wins, beta=beta, eta=eta)
        # Every round has random numbers of its own.
        fit = fit_round(method, weighted, instance, (seeds * ROUNDS_PER_SEED + number) % 2**31)
        rows.append(
            {
                "n_pairs": wins.sum(axis=(1, 2, 3)),
                "eta": eta,
                **measure_round(fit.policy, instance, config.beta),
                "comparator_pairs": _comparator_pairs(wins, np.asarray(instance.comparator)),
                "certificate": fit.certificate,
                "status": fit.status.astype(np.float64),
            }
        )
        if number + 1 < config.rounds:
            wins = wins + draw_win_counts(
                truth,
                pair_distribution(fit.policy, problem, method.sampling or config.sampling),
                comparisons=config.pairs_per_round,
                seeds=seeds,
                label_noise=config.design.label_noise if config.environment == "design" else 0.0,
                stream=FIRST_STREAM + number,
            )
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    columns["cumulative_regret"] = columns["regret"].cumsum(axis=0)
    columns["cumulative_gap"] = columns["gap"].cumsum(axis=0)
    return columns


def fit_round(
    method: RoundsMethod, problem: Problem, instance: Instance, seeds: Int[np.ndarray, " B"]
) -> FitResult:
    """Fit a method to the comparisons of all rounds so far.

    Args:
        method: the method and its options.
        problem: the comparisons and weights of the round, with a leading batch axis.
        instance: the bandits, of which only the reward classes are used.
        seeds: seeds of the random numbers of a method that needs any.

    Returns:
        The fitted policies.

    Raises:
        ValueError: if a fit gives no policy, from which the next pairs could be drawn.
    """
    reward_class: RewardClass = instance.reward_class
    context = FitContext(seeds=seeds)
    fit = fit_method(method.record, problem, reward_class, method.options, context)
    return require_policies(fit, method.label or method.record.name)


def weight_of_round(
    config: RoundsConfig, n_pairs: Float[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
    r"""Return the weight :math:`\eta_t` of a round.

    Args:
        config: the weight and its schedule.
        n_pairs: number of comparisons so far, :math:`n_t`.

    Returns:
        Nats per unit of reward.

    Examples:
        >>> method = RoundsMethod(method="rpo")
        >>> config = RoundsConfig(name="a", methods=[method], rounds=1, seeds=1, eta=0.5)
        >>> weight_of_round(config, np.array([100.0])).tolist()
        [0.05]
    """
    if config.eta_rule == "constant":
        return np.full_like(n_pairs, config.eta)
    return config.eta / np.sqrt(n_pairs)


def pair_distribution(
    policy: Float[np.ndarray, "B x a"], problem: Problem, sampling: str
) -> Float[np.ndarray, "B x a a"]:
    r"""Return the distribution of the new pairs, :math:`d_0(x)\,\pi_t(a^1|x)\,\pi'(a^0|x)`.

    Args:
        policy: policy of the round, :math:`\pi_t`.
        problem: bandits, whose baseline and reference policies are used.
        sampling: name of :math:`\pi'`, one of :data:`bandits.rounds.config.Sampling`.

    Returns:
        Probabilities of prompt and ordered pair. A pair of a response with itself is possible; it
        carries no information and counts as a comparison.

    Examples:
        >>> even, wins = np.full((1, 1, 2), 0.5), np.zeros((1, 1, 2, 2))
        >>> problem = Problem(np.ones((1, 1)), even, even, wins, np.ones(1), np.ones(1))
        >>> pair_distribution(np.array([[[1.0, 0.0]]]), problem, "baseline").tolist()
        [[[[0.5, 0.5], [0.0, 0.0]]]]
    """
    second = {
        "baseline": np.asarray(problem.baseline_policy),
        "reference": np.asarray(problem.reference_policy),
        "policy": policy,
    }[sampling]
    return np.einsum("bx,bxi,bxj->bxij", problem.context_weights, policy, second)


def measure_round(
    policy: Float[np.ndarray, "B x a"], instance: Instance, beta: float
) -> dict[str, Float[np.ndarray, " B"]]:
    r"""Measure the policy of a round under the true reward.

    Args:
        policy: :math:`\pi_t(a|x)`, within the support of :math:`\pi_{ref}`.
        instance: the bandits.
        beta: weight of the divergence in the regret.

    Returns:
        ``regret``, ``gap`` and ``kl``, see :func:`play_rounds`.

    Examples:
        >>> from bandits.environments.designs import Design, draw_design
        >>> drawn = draw_design(Design(actions=2), 100, np.arange(1))
        >>> float(measure_round(drawn.problem.reference_policy, drawn, 0.1)["kl"][0])
        0.0
    """
    weights, truth = np.asarray(instance.problem.context_weights), instance.true_reward
    reference = instance.problem.reference_policy
    with jax.enable_x64(True):
        distance = np.asarray(kl_to_gibbs(policy, truth, reference, beta))
        kl = np.asarray(kl_divergence(policy, reference))
    shortfall = np.asarray(instance.comparator) - policy
    return {
        "regret": beta * (weights * distance).sum(axis=1),
        "gap": np.einsum("bx,bxa,bxa->b", weights, shortfall, truth),
        "kl": (weights * kl).sum(axis=1),
    }


def _comparator_pairs(
    wins: Float[np.ndarray, "B x a a"], comparator: Float[np.ndarray, "B x a"]
) -> Float[np.ndarray, " B"]:
    """Return the number of comparisons of the comparator's responses with other responses."""
    both_orders = wins + wins.swapaxes(2, 3)
    others = 1.0 - np.eye(wins.shape[-1])
    return np.einsum("bxi,bxij,ij->b", comparator, both_orders, others)
