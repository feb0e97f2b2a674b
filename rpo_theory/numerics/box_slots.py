"""Many box problems at once: every context is a block, and blocks are solved in refilled slots.

A block that is done leaves its slot to the next block. Waiting for the slowest block of a fixed
set takes 1.5 times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ..policies import log_partition_scaled
from ..types import ArrayLike, Problem
from . import box_interior_point

CHUNK = 16_384  # matrix entries that fit into the cache together
STRIDE = 2  # Newton steps between two refills of the slots
VECTOR = 8  # float64 values in the widest vector registers of CPUs


class SlotsResult(NamedTuple):
    """Rewards, residuals and step counts, with a leading problem axis.

    Attributes:
        reward: minimizers, measured from the center of the box.
        residual: largest KKT residual of the contexts of a problem, in probabilities.
        steps: largest number of Newton steps of the contexts of a problem.
    """

    reward: Float[Array, "p x a"]
    residual: Float[Array, " p"]
    steps: Int[Array, " p"]


def n_slots(n_actions: int, n_blocks: int) -> int:
    """Return the number of slots: a power of two, or 1 if that is smaller than a vector."""
    size = 1 << max(0, int(CHUNK / n_actions**2).bit_length() - 1)
    return min(size if size >= VECTOR else 1, n_blocks)


def solve_in_slots(
    problems: Problem, width: Float[Array, " p"], *, tolerance: float, max_steps: int
) -> SlotsResult:
    """Minimize F over a box for every problem.

    Args:
        problems: problems with a leading batch axis on every array.
        width: width of the box of each problem.
        tolerance: KKT residual at which a block stops, in probabilities.
        max_steps: maximum number of Newton steps of a block.

    Returns:
        The minimizers and how they were reached.
    """
    n_problems, n_contexts, n_actions = problems.reference_policy.shape
    n_blocks = n_problems * n_contexts
    rows = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, -1, 1).reshape(n_blocks, *leaf.shape[1:-1]),
        jax.vmap(box_interior_point.prompt_blocks)(problems, width),
    )
    slots = n_slots(n_actions, n_blocks)

    def load(index: Int[Array, " b"]) -> box_interior_point.Blocks:
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.at[index].get(mode="clip"), 0, -1), rows)

    def advance(carry: tuple) -> tuple:
        index, upcoming, state, results = carry
        blocks = load(index)
        for _ in range(STRIDE):
            state = box_interior_point.step(blocks, None, state, tolerance)
        current = (state.reward.T, state.residual, state.steps)
        results = jax.tree.map(
            lambda stored, new: stored.at[index].set(new, mode="drop"), results, current
        )
        free = state.done | (state.steps >= max_steps)
        n_refilled = jnp.cumsum(free.astype(jnp.int32))
        index = jnp.where(free, upcoming + n_refilled - 1, index)
        fresh = box_interior_point.init(load(index))
        state = jax.tree.map(lambda old, new: jnp.where(free, new, old), state, fresh)
        return index, upcoming + n_refilled[-1], state, results

    first = jnp.arange(slots, dtype=jnp.int32)
    state = box_interior_point.init(load(first))
    results = (
        jnp.zeros((n_blocks, n_actions), width.dtype),
        jnp.zeros(n_blocks, width.dtype),
        jnp.zeros(n_blocks, jnp.int32),
    )
    reward, residual, steps = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0] < n_blocks),
        advance,
        (first, jnp.int32(slots), state, results),
    )[-1]
    return SlotsResult(
        reward=reward.reshape(n_problems, n_contexts, n_actions),
        residual=residual.reshape(n_problems, n_contexts).max(axis=1),
        steps=steps.reshape(n_problems, n_contexts).max(axis=1),
    )


def conclude(
    problems: Problem, width: Float[Array, " p"], reward: Float[Array, "p x a"]
) -> tuple[Float[Array, "p x a"], Float[Array, " p"], Float[Array, " p"]]:
    r"""Return policies, objectives and duality gaps of rewards in a box.

    They are those of :func:`rpo_theory.minimax.solve` and :mod:`rpo_theory.certificate`, with the
    contexts of all problems on the last axis, where the arithmetic is vectorized.

    Args:
        problems: problems with a leading batch axis on every array; win counts are all data.
        width: width of the box of each problem.
        reward: members of the boxes.

    Returns:
        Gibbs policies, :math:`F(r)` in nats, and bounds on the duality gap in nats.
    """
    n_problems, n_contexts, _ = reward.shape

    def contexts_last(table: Float[ArrayLike, "p x ..."]) -> Float[Array, "... b"]:
        table = jnp.asarray(table)
        return jnp.moveaxis(table.reshape(-1, *table.shape[2:]), 0, -1)

    def per_problem(number: Float[ArrayLike, " p"] | float) -> Float[Array, " b"]:
        return jnp.repeat(jnp.asarray(number), n_contexts)

    wins, rewards = contexts_last(problems.wins), contexts_last(reward)
    reference = contexts_last(problems.reference_policy)
    baseline = contexts_last(problems.baseline_policy)
    n_comparisons = problems.wins.sum(axis=(1, 2, 3))
    share = 1.0 / per_problem(jnp.where(n_comparisons > 0, n_comparisons, 1.0))
    weight = per_problem(problems.eta) * problems.context_weights.reshape(-1)
    beta = per_problem(problems.beta)

    top = jnp.where(reference > 0, rewards, -jnp.inf).max(axis=0)
    scaled = (rewards - top) / beta
    policy = reference * jnp.exp(jnp.minimum(scaled, 0.0))
    policy = jax.lax.optimization_barrier(policy / policy.sum(axis=0))
    log_z = log_partition_scaled(scaled.T, reference.T)
    lost = jnp.where(baseline > 0, baseline * (top - rewards), 0.0).sum(axis=0)

    margin = rewards[:, None] - rewards[None, :]
    small = jax.lax.optimization_barrier(jnp.exp(-jnp.abs(margin)))
    losses = wins * (jnp.log1p(small) + jnp.maximum(-margin, 0.0))
    surprise = jnp.where(margin >= 0, small, 1.0) / (1.0 + small)
    flow = jax.lax.optimization_barrier(wins * surprise)
    value = weight * (beta * log_z + lost) + share * losses.sum(axis=(0, 1))
    gradient = weight * (policy - baseline) + share * box_interior_point.net_flow(flow)
    distance = jnp.where(gradient > 0, rewards, rewards - per_problem(width))
    gap = (gradient * distance).sum(axis=0)
    per_context = (n_problems, n_contexts)
    return (
        policy.T.reshape(reward.shape),
        value.reshape(per_context).sum(axis=1),
        jnp.maximum(gap.reshape(per_context).sum(axis=1), 0.0),
    )
