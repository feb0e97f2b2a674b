r"""Three routes to one policy, measured: the theorem on random instances.

The minimax problem solved exactly, Algorithm 1 by a method that never uses the closed form, and the
RPO loss minimised over the policy (`liu:24`, Theorem 5.6 and Algorithm 2).
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
    r"""What was measured on one instance.

    Attributes:
        family: "tabular" or "linear".
        seed: seed of the key that the instances were drawn with.
        number: place of the instance among those of its family.
        contexts: number of prompts.
        actions: number of responses.
        eta: :math:`\eta`.
        beta: :math:`\beta`.
        value: :math:`F(\hat r)`, nats.
        duality_gap: proven for the exact solution, nats.
        policy_tv_maximin: largest total variation over prompts between the exact policy and that
            of Algorithm 1.
        policy_tv_loss: the same for the policy that minimises the RPO loss.
        seconds: time of the three solves, with compilation, shared evenly by the
            instances of a batch.
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
        r"""Duality gap relative to :math:`\max(1, |F|)`."""
        return self.duality_gap / max(1.0, abs(self.value))


def measure_agreement(
    n: int, seed: int, *, padded_shapes: Sequence[tuple[int, int]] = PADDED_SHAPES
) -> Iterator[Agreement]:
    """Solve ``n`` random instances, half of each family, by all three routes.

    Args:
        n: number of instances.
        seed: seed of the instances.
        padded_shapes: shapes that instances are padded to; each is compiled once.

    Yields:
        One record an instance, batch by batch. Batches are compiled and solved side by side, in a
        process for each core: a script that calls this needs the ``__main__`` guard.
    """
    keys: dict[Family, Key[Array, ""]] = dict(
        zip(("tabular", "linear"), jax.random.split(jax.random.key(seed)), strict=True)
    )
    shares = (n - n // 2, n // 2)
    work = [
        (batch, family)
        for (family, key), share in zip(keys.items(), shares, strict=True)
        for batch in draw_verification_batches(key, share, family, padded_shapes=padded_shapes)
    ]
    workers = min(os.cpu_count() or 1, len(work))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        for records in processes.map(_measure_batch, *zip(*work, strict=True), repeat(seed)):
            yield from records


def _measure_batch(batch: ProblemBatch, family: str, seed: int) -> list[Agreement]:
    start = time.perf_counter()
    problems, reward_class = batch.instance.problem, batch.instance.reward_class
    exact = minimax.solve_batch(problems, reward_class, throw=False)
    independent = maximin.solve_batch(problems, reward_class, throw=False)
    descended = direct.solve_batch(problems, reward_class, throw=False)
    distances = [_largest_distance(exact, other) for other in (independent, descended)]
    seconds = (time.perf_counter() - start) / len(batch.number)
    return [
        Agreement(
            family=family,
            seed=seed,
            number=int(number),
            contexts=int(batch.contexts[i]),
            actions=int(batch.actions[i]),
            eta=float(problems.eta[i]),
            beta=float(problems.beta[i]),
            value=float(exact.objective[i]),
            duality_gap=float(exact.stats["duality_gap"][i]),
            policy_tv_maximin=float(distances[0][i]),
            policy_tv_loss=float(distances[1][i]),
            seconds=seconds,
        )
        for i, number in enumerate(batch.number)
    ]


def _largest_distance(first: Solution, second: Solution) -> Float[np.ndarray, " p"]:
    difference = np.asarray(first.policy) - np.asarray(second.policy)
    distance = 0.5 * np.abs(difference).sum(axis=-1).max(axis=-1)
    # A route that returned no number has not agreed.
    return np.where(np.isfinite(distance), distance, np.inf)
