r"""Agreement of three routes to the RPO policy on random instances.

The routes are the exact solution of the minimax problem, Algorithm 1 by a solver that never uses
the closed form, and the minimization of the RPO loss over the policy (`liu:24`, Theorem 5.6 and
Algorithm 2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from rpo_theory import direct, maximin, minimax
from rpo_theory.types import Solution

from .instances import PADDED_SHAPES, Family, ProblemBatch, draw_verification_batches


class Agreement(NamedTuple):
    r"""Measurements of the three routes on one instance.

    Attributes:
        family: "tabular" or "linear".
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

    def relative_gap(self) -> float:
        r"""Return the duality gap relative to :math:`\max(1, |F|)`."""
        return self.duality_gap / max(1.0, abs(self.value))


def measure_agreement(
    n: int, seed: int, *, padded_shapes: Sequence[tuple[int, int]] = PADDED_SHAPES
) -> Iterator[Agreement]:
    """Solve ``n`` random instances, half of each family, by all three routes.

    Args:
        n: number of instances.
        seed: seed of the key from which the instances are drawn.
        padded_shapes: numbers of contexts and actions to which instances are padded; the solvers
            are compiled once for each.

    Yields:
        One record for each instance, batch by batch. The batches are solved in parallel by spawned
        processes, so a script that calls this function needs the ``__main__`` guard.
    """
    keys: dict[Family, Key[Array, ""]] = dict(
        zip(("tabular", "linear"), jax.random.split(jax.random.key(seed)), strict=True)
    )
    counts = (n - n // 2, n // 2)
    batches = [
        (batch, family)
        for (family, key), count in zip(keys.items(), counts, strict=True)
        for batch in draw_verification_batches(key, count, family, padded_shapes=padded_shapes)
    ]
    n_workers = min(os.cpu_count() or 1, len(batches))
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as processes:
        for records in processes.map(_measure_batch, *zip(*batches, strict=True), repeat(seed)):
            yield from records


def _measure_batch(batch: ProblemBatch, family: str, seed: int) -> list[Agreement]:
    start = time.perf_counter()
    problems, reward_class = batch.instance.problem, batch.instance.reward_class
    exact = minimax.solve_batch(problems, reward_class, throw=False)
    algorithm_1 = maximin.solve_batch(problems, reward_class, throw=False)
    loss_minimizer = direct.solve_batch(problems, reward_class, throw=False)
    tv_maximin = _largest_total_variation(exact, algorithm_1)
    tv_loss = _largest_total_variation(exact, loss_minimizer)
    seconds = (time.perf_counter() - start) / len(batch.number)
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
        )
        for i, number in enumerate(batch.number)
    ]


def _largest_total_variation(first: Solution, second: Solution) -> Float[np.ndarray, " p"]:
    """Return the total variation between two policies, the largest over prompts."""
    difference = np.asarray(first.policy) - np.asarray(second.policy)
    distance = 0.5 * np.abs(difference).sum(axis=-1).max(axis=-1)
    # A policy that is not a number does not agree with any other.
    return np.where(np.isfinite(distance), distance, np.inf)
