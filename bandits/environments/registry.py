r"""Registry of environments: designs, named instances and rewards fitted to votes, by name.

=================== ==============================================================================
name                environment
=================== ==============================================================================
``design``          random bandits, see :func:`bandits.environments.designs.draw_design`
``named:INSTANCE``  an instance of :mod:`bandits.environments.instances` with its exact expected
                    counts, the same for every seed
``votes:FILE.csv``  new data from the pairs of a file of votes, labeled by the reward that fits the
                    votes best
=================== ==============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from rpo_theory import minimax
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

from . import instances
from .base import Instance, baseline_policy, best_action_policy
from .designs import Design, draw_design
from .sampling import check_draw, draw_win_counts
from .votes import read_votes

WORST_DEFICIT = 1.2785
r"""Maximizer :math:`u` of :math:`u/(1+e^u)`: a deficit of :math:`u\beta` costs RPO the most."""

TIE_BREAKING_ETA = 1e-6
r"""Weight :math:`\eta` of the fit to votes, so small that it only decides what votes leave open."""

NAMED_INSTANCES: dict[str, Callable[[int], Instance]] = {
    "four_arms": instances.four_arms,
    "type_i_hacking": instances.type_i_hacking,
    "type_ii_hacking": instances.type_ii_hacking,
    "ghost_arm": lambda n: instances.ghost_arm(n, deficit=min(0.5, WORST_DEFICIT / math.sqrt(n))),
    "coverage_is_necessary": lambda n: instances.coverage_is_necessary(n, 0.1),
}
"""Named instances that depend on nothing but the number of comparisons."""


def draw_environment(
    environment: str, n_comparisons: int, seeds: Int[np.ndarray, " B"], *, design: Design
) -> Instance:
    r"""Draw an environment by its name, one bandit for every seed.

    Args:
        environment: "design", "named:INSTANCE" or "votes:FILE.csv".
        n_comparisons: number of comparisons :math:`N`, at least 1.
        seeds: whole numbers, at least 0.
        design: what "design" draws. Votes use only its ``reward_max`` and ``label_noise``, and
            named instances use nothing of it.

    Returns:
        Instances with a leading batch axis on every array.

    Raises:
        ValueError: if the name is unknown, a number is out of range, or a file of votes has a
            mistake.
        OSError: if a file of votes cannot be opened.

    Examples:
        >>> name = "named:type_i_hacking"
        >>> draw_environment(name, 100, np.arange(2), design=Design()).true_reward.tolist()
        [[[1.0, 0.5, 0.0]], [[1.0, 0.5, 0.0]]]
    """
    kind, _, name = environment.partition(":")
    match kind:
        case "design" if not name:
            return draw_design(design, n_comparisons, seeds)
        case "named" if name in NAMED_INSTANCES:
            check_draw(n_comparisons, seeds)
            return _repeat(NAMED_INSTANCES[name](n_comparisons), len(seeds))
        case "votes" if name:
            return _draw_from_votes(
                Path(name),
                n_comparisons,
                seeds,
                reward_max=design.reward_max,
                label_noise=design.label_noise,
            )
    raise ValueError(
        "`environment` must be 'design', 'votes:FILE.csv' or 'named:' and one of "
        f"{', '.join(NAMED_INSTANCES)}, got {environment!r}"
    )


def _draw_from_votes(
    path: Path,
    n_comparisons: int,
    seeds: Int[np.ndarray, " B"],
    *,
    reward_max: float,
    label_noise: float,
) -> Instance:
    r"""Draw data from the pairs of the votes, labeled by the maximum likelihood reward.

    :math:`d_0` is each context's share of the votes, :math:`\pi_{ref}` is uniform over the actions
    that occur in the context, :math:`\pi_{base}` is the distribution of both members of a pair,
    and :math:`\beta = \eta = 1/\sqrt N`.
    """
    seeds = check_draw(n_comparisons, seeds)
    fitted = _fit_votes(path, reward_max, path.stat().st_mtime_ns)
    batch = _repeat(fitted, len(seeds))
    wins = draw_win_counts(
        np.asarray(batch.true_reward),
        np.asarray(batch.pair_distribution),
        comparisons=n_comparisons,
        seeds=seeds,
        label_noise=label_noise,
    )
    scale = np.full(len(seeds), n_comparisons**-0.5)
    return batch._replace(problem=batch.problem._replace(wins=wins, beta=scale, eta=scale))


@lru_cache(maxsize=8)
def _fit_votes(path: Path, reward_max: float, _modified: int) -> Instance:
    """Return the votes as an instance whose truth is the maximum likelihood reward in the box."""
    votes = read_votes(path)
    wins, reference = votes.wins, votes.reference_policy()
    problem = Problem(
        context_weights=wins.sum(axis=(1, 2)) / wins.sum(),
        reference_policy=reference,
        baseline_policy=baseline_policy("data_marginal", wins=wins, reference=reference),
        wins=wins,
        beta=np.array(1.0),
        eta=np.array(TIE_BREAKING_ETA),
    )
    reward_class = TabularBox(np.array(reward_max))
    truth = np.asarray(minimax.solve(problem, reward_class).reward)
    comparator = best_action_policy(np.where(votes.occurs, truth, -np.inf))
    return Instance(problem, reward_class, truth, comparator, wins / wins.sum())


def _repeat(instance: Instance, times: int) -> Instance:
    """Stack copies of an instance along a new leading axis."""
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], times, axis=0), instance)
