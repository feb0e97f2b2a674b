r"""Agreement of three routes to the RPO policy on random instances.

The routes are the exact solution of the minimax problem, Algorithm 1 by a solver that never uses
the closed form, and the minimization of the RPO loss over the policy (`liu:24`, Theorem 5.6 and
Algorithm 2).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, get_args

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from rpo_io.processes import run_in_processes
from rpo_theory import direct, maximin, minimax
from rpo_theory.rewards import RewardClass
from rpo_theory.rigorous import duality_gap_bound
from rpo_theory.types import Solution

from .class_instances import SMALL_SHAPE, ClassFamily, draw_class_batch
from .instances import PADDED_SHAPES, Family, ProblemBatch, draw_verification_batches

FAMILIES: tuple[Family, ...] = get_args(Family)
CLASS_FAMILIES: tuple[ClassFamily, ...] = get_args(ClassFamily)
MANY = 500
"""Number of instances from which the further reward classes are among them."""
CLASS_SHARE, MOST_OF_A_CLASS = 50, 20
"""One instance in 50 is of each further class, and at most 20."""


class Agreement(NamedTuple):
    r"""Measurements of the three routes on one instance.

    Attributes:
        family: "tabular", "linear", "kernel", "lipschitz", "polytope", or the name of a class.
        seed: seed of the key from which the instances were drawn.
        number: index of the instance within its family.
        contexts: number of prompts.
        actions: number of responses.
        eta: weight :math:`\eta` of the adversarial term.
        beta: weight :math:`\beta` of the KL term.
        value: optimal value :math:`F(\hat r)`, nats.
        duality_gap: proven gap of the exact solution, nats.
        policy_tv_maximin: total variation between the exact policy and that of Algorithm 1, the
            largest over prompts.
        policy_tv_loss: the same for the policy that minimizes the RPO loss.
        seconds: time of the three solves of the batch, including compilation, divided by the number
            of its instances.
        proven_duality_gap: upper bound on the duality gap in ball arithmetic, nats; None if not
            asked for.
    """

    family: str
    seed: int
    number: int
    contexts: int
    actions: int
    eta: float
    beta: float
    value: float
    duality_gap: float
    policy_tv_maximin: float
    policy_tv_loss: float
    seconds: float
    proven_duality_gap: float | None = None

    def relative_gap(self) -> float:
        r"""Return the duality gap relative to :math:`\max(1, |F|)`."""
        return self.duality_gap / max(1.0, abs(self.value))

    def relative_proven_gap(self) -> float:
        r"""Return the proven duality gap relative to :math:`\max(1, |F|)`; NaN if not asked for."""
        proven = float("nan") if self.proven_duality_gap is None else self.proven_duality_gap
        return proven / max(1.0, abs(self.value))


def measure_agreement(
    n: int,
    seed: int,
    *,
    padded_shapes: Sequence[tuple[int, int]] = PADDED_SHAPES,
    rigorous: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Agreement]:
    """Solve ``n`` random instances by all three routes.

    Half of them are tabular, half linear. From 500 instances on, one in 50 is of each further
    class (kernel, Lipschitz, polytope), and at most 20: their solvers take minutes to compile.

    Args:
        n: number of instances.
        seed: seed of the key from which the instances are drawn.
        padded_shapes: numbers of contexts and actions to which instances are padded; the solvers
            are compiled once for each.
        rigorous: whether to prove the duality gaps in ball arithmetic too.
        environment: variables that are added to those of this process, for the processes that
            solve.

    Yields:
        One record for each instance, batch by batch. The batches are solved in parallel, in one
        process per core.
    """
    batches = [
        partial(_measure_batch, batch, family, seed, rigorous=rigorous)
        for family in FAMILIES
        for batch in _draw_batches(n, seed, family, padded_shapes)
    ]
    for family in CLASS_FAMILIES if n >= MANY else ():
        key = jax.random.fold_in(jax.random.key(seed), _family_index(family))
        batch = draw_class_batch(key, _n_of_a_class(n), family)
        batches.append(partial(_measure_batch, batch, family, seed, rigorous=rigorous))
    for records in run_in_processes(batches, environment=environment):
        yield from records


def measure_family(
    n: int, seed: int, family: Family, padded_shapes: Sequence[tuple[int, int]]
) -> list[Agreement]:
    """Measure the instances of one family in this process, as :func:`measure_agreement` does.

    Args:
        n: number of instances of both families.
        seed: see :func:`measure_agreement`.
        family: "tabular" or "linear".
        padded_shapes: see :func:`measure_agreement`.

    Returns:
        One record for each instance of the family.
    """
    batches = _draw_batches(n, seed, family, padded_shapes)
    return [record for batch in batches for record in _measure_batch(batch, family, seed)]


def measure_class(
    n: int,
    seed: int,
    reward_class: RewardClass,
    *,
    name: str,
    shape: tuple[int, int] = SMALL_SHAPE,
    rigorous: bool = False,
) -> list[Agreement]:
    """Solve ``n`` random instances of a given reward class by all three routes, in this process.

    Args:
        n: number of instances.
        seed: see :func:`measure_agreement`.
        reward_class: a convex compact class, which every instance has.
        name: name of the class, for the records.
        shape: number of contexts and of actions.
        rigorous: see :func:`measure_agreement`.

    Returns:
        One record for each instance.
    """
    index = len(FAMILIES) + len(CLASS_FAMILIES)
    key = jax.random.fold_in(jax.random.key(seed), index)
    batch = draw_class_batch(key, n, reward_class, shape=shape)
    return _measure_batch(batch, name, seed, rigorous=rigorous)


def _family_index(family: Family | ClassFamily) -> int:
    """Return the number of a family, which gives it a key of its own."""
    return (*FAMILIES, *CLASS_FAMILIES).index(family)


def _n_of_a_class(n: int) -> int:
    """Return the number of instances of each further class among ``n``."""
    return min(n // CLASS_SHARE, MOST_OF_A_CLASS) if n >= MANY else 0


def _draw_batches(
    n: int, seed: int, family: Family, padded_shapes: Sequence[tuple[int, int]]
) -> list[ProblemBatch]:
    """Draw the tabular or the linear instances: half of those that are of no further class."""
    index = _family_index(family)
    n -= len(CLASS_FAMILIES) * _n_of_a_class(n)
    key: Key[Array, ""] = jax.random.split(jax.random.key(seed))[index]
    count = (n - n // 2, n // 2)[index]
    return draw_verification_batches(key, count, family, padded_shapes=padded_shapes)


def _measure_batch(
    batch: ProblemBatch, family: str, seed: int, *, rigorous: bool = False
) -> list[Agreement]:
    start = time.perf_counter()
    problems, reward_class = batch.instance.problem, batch.instance.reward_class
    exact = minimax.solve_batch(problems, reward_class, throw=False)
    algorithm_1 = maximin.solve_batch(problems, reward_class, throw=False)
    loss_minimizer = direct.solve_batch(problems, reward_class, throw=False)
    tv_maximin = _largest_total_variation(exact, algorithm_1)
    tv_loss = _largest_total_variation(exact, loss_minimizer)
    seconds = (time.perf_counter() - start) / len(batch.number)
    proven = _proven_gaps(batch, exact) if rigorous else [None] * len(batch.number)
    return [
        Agreement(
            family=family,
            seed=seed,
            number=int(number),
            contexts=int(batch.contexts[i]),
            actions=int(batch.actions[i]),
            eta=float(np.asarray(problems.eta)[i]),
            beta=float(np.asarray(problems.beta)[i]),
            value=float(exact.objective[i]),
            duality_gap=float(exact.stats["duality_gap"][i]),
            policy_tv_maximin=float(tv_maximin[i]),
            policy_tv_loss=float(tv_loss[i]),
            seconds=seconds,
            proven_duality_gap=proven[i],
        )
        for i, number in enumerate(batch.number)
    ]


def _proven_gaps(batch: ProblemBatch, exact: Solution) -> list[float]:
    """Prove a bound on the duality gap of the exact solution of every instance."""
    instances = jax.tree.map(np.asarray, (batch.instance.problem, batch.instance.reward_class))
    gaps = []
    for i in range(len(batch.number)):
        problem, reward_class = jax.tree.map(lambda leaf, i=i: leaf[i], instances)
        bound = duality_gap_bound(problem, reward_class, exact.policy[i], exact.reward[i])
        gaps.append(bound)
    return gaps


def _largest_total_variation(first: Solution, second: Solution) -> Float[np.ndarray, " p"]:
    """Return the total variation between two policies, the largest over prompts."""
    difference = np.asarray(first.policy) - np.asarray(second.policy)
    distance = 0.5 * np.abs(difference).sum(axis=-1).max(axis=-1)
    # A policy that is not a number does not agree with any other.
    return np.where(np.isfinite(distance), distance, np.inf)
