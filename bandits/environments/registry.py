r"""Environments by name: designs, the named instances, and truths fitted to real votes.

=================== =============================================================================
name                what is drawn
=================== =============================================================================
``design``          :func:`bandits.environments.designs.draw_design`
``named:INSTANCE``  an instance of :mod:`bandits.environments.instances` with its exact expected counts: the
                    same for every seed
``votes:FILE.csv``  data drawn anew from the pairs of real votes, labelled by the reward that fits
                    them best
=================== =============================================================================
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
from .designs import Design, draw_design
from .random import Instance, baseline_policy, best_arm_policy
from .sampling import check_draw, draw_win_counts
from .votes import read_votes

WORST_DEFICIT = 1.2785
r"""The :math:`u` that maximises :math:`u/(1+e^u)`: a deficit of u beta costs RPO the most."""

NAMED_INSTANCES: dict[str, Callable[[int], Instance]] = {
    "four_arms": instances.four_arms,
    "type_i_hacking": instances.type_i_hacking,
    "type_ii_hacking": instances.type_ii_hacking,
    "ghost_arm": lambda n: instances.ghost_arm(n, deficit=min(0.5, WORST_DEFICIT / math.sqrt(n))),
    "coverage_is_necessary": lambda n: instances.coverage_is_necessary(n, 0.1),
}
"""The named instances that are a function of the number of comparisons alone."""


def draw_environment(
    environment: str, n_comparisons: int, seeds: Int[np.ndarray, " B"], *, design: Design
) -> Instance:
    r"""Draw an environment by its name, one bandit for every seed.

    Args:
        environment: "design", "named:INSTANCE" or "votes:FILE.csv".
        n_comparisons: :math:`N`.
        seeds: whole numbers from 0 on.
        design: all of it for "design"; of it, ``reward_max`` and ``label_noise`` for votes.

    Returns:
        Instances with a leading batch axis on every array.

    Raises:
        ValueError: an unknown name, or a number out of range; a mistake in a file of votes.
        OSError: a file of votes cannot be opened.

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
            return _repeated(NAMED_INSTANCES[name](n_comparisons), len(seeds))
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
    reward_max: float = 4.0,
    label_noise: float = 0.0,
) -> Instance:
    r"""Draw data as real votes might have come out: their pairs, and labels by their best fit.

    The truth is the reward of greatest likelihood in the box, and each comparison is of a pair as
    often as the votes have it. :math:`d_0` is each context's share of the votes, :math:`\pi_{ref}`
    uniform, :math:`\pi_{base}` the law of both members of a pair, whatever they were labelled.

    Args:
        path: a CSV file of votes.
        n_comparisons: :math:`N`.
        seeds: whole numbers from 0 on.
        reward_max: :math:`R_{max}`.
        label_noise: probability that a label is flipped.

    Returns:
        Instances with a leading batch axis on every array; :math:`\beta = \eta = 1/\sqrt N`.

    Raises:
        ValueError: a number out of range; a mistake in the file.
        OSError: the file cannot be opened.
    """
    seeds = check_draw(n_comparisons, seeds)
    fitted = _fitted(path, reward_max, path.stat().st_mtime_ns)
    batch = _repeated(fitted, len(seeds))
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
def _fitted(path: Path, reward_max: float, _modified: int) -> Instance:
    """The votes themselves, with the reward that fits them best as their truth."""
    wins = read_votes(path).wins
    n_contexts, n_actions, _ = wins.shape
    reference = np.full((n_contexts, n_actions), 1.0 / n_actions)
    # The weight of the adversary is so small that it only settles what the votes leave open.
    problem = Problem(
        context_weights=wins.sum(axis=(1, 2)) / wins.sum(),
        reference_policy=reference,
        baseline_policy=baseline_policy("data_marginal", wins=wins, reference=reference),
        wins=wins,
        beta=np.array(1.0),
        eta=np.array(1e-6),
    )
    reward_class = TabularBox(np.array(reward_max))
    truth = np.asarray(minimax.solve(problem, reward_class).reward)
    return Instance(problem, reward_class, truth, best_arm_policy(truth), wins / wins.sum())


def _repeated(instance: Instance, times: int) -> Instance:
    """The same instance on every place of a batch."""
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], times, axis=0), instance)
