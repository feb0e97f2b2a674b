r"""Primal-dual Newton method for the tabular box, with one block per context.

With tabular rewards the minimax objective separates over contexts. For one context, divided by its
weight :math:`s = \eta d_0(x) + n_x/N`, it is

.. math:: \min_{0\le r\le R}\; a\,[\beta\log Z(r) - \langle\pi_{base}, r\rangle]
          + c\sum_{w,l} W_{wl}\,\mathrm{softplus}(r_l - r_w),
          \qquad a = \eta d_0(x)/s,\; c = 1/(N s).

Two additions to the textbook method make it robust. First, a step is shortened so that no
log-probability and no margin moves farther than Newton's model can be trusted;
:math:`\log Z` is self-concordant at scale :math:`\beta`. Second, terms that are sharp compared
with the width of the box (a small :math:`\beta`, or the comparisons in a wide box) are smoothed at
a temperature that falls like the barrier parameter. The blocks are on the *last* axis ``b`` of the
arrays, so that the arithmetic is vectorized over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ..types import Problem

EPSILON = 2.0**-52
EXPONENT = 512.0  # exp of this, and of half of it squared, is a normal number
LIFT = 8.0 * EPSILON  # relative lift of the diagonal of the equations
UNROLLED = 12  # largest number of actions whose equations are solved by unrolled elimination
# Tuned on beta and eta from 1e-4 to 1e4; the number of steps is flat around these values.
CENTERING = 0.01  # factor on the barrier parameter per step
CENTERING_HOT = 0.1  # the same factor while the temperature is still falling
COOLING = 0.5  # factor on the temperature after a trusted step
INITIAL_DUAL = 0.01
SHARPER = 1e-4  # weight of complementarity in the residual: one more step, more accurate faces
TRUST = 3.0  # nats that a full-length step may move; a longer one does not lower the temperature


class Blocks(NamedTuple):
    r"""Problems of one context each, stacked on the last axis.

    Attributes:
        reference: reference policy.
        baseline: baseline policy.
        wins: win counts, indexed by winner and loser.
        adversary_weight: coefficient :math:`a` of the adversarial term, in [0, 1].
        data_weight: coefficient :math:`c` of the summed comparisons.
        beta: weight :math:`\beta` of the KL term.
        width: width :math:`R` of the box.
    """

    reference: Float[Array, "a b"]
    baseline: Float[Array, "a b"]
    wins: Float[Array, "a a b"]
    adversary_weight: Float[Array, " b"]
    data_weight: Float[Array, " b"]
    beta: Float[Array, " b"]
    width: Float[Array, " b"]


BlockData: TypeAlias = Callable[
    [Float[Array, "a b"], Float[Array, " b"]], tuple[Float[Array, "a b"], Float[Array, "a a b"]]
]
"""Derivatives of data beyond win counts at a reward and the unit that it is smoothed with."""


class BoxState(NamedTuple):
    r"""Iterate of the method; the reward is measured from the center of the box.

    Attributes:
        reward: :math:`r - R/2`.
        slack_low: distance to the lower bound, stored separately so that it never cancels to zero.
        slack_high: distance to the upper bound.
        dual_low: multiplier of the lower bound.
        dual_high: multiplier of the upper bound.
        temperature: scale at which the policy (if above :math:`\beta`) and the comparisons (if
            above 1) are smoothed; it falls until it smooths neither.
        residual: KKT residual of this iterate, in probabilities.
        steps: number of Newton steps.
        done: whether the block has converged and no longer moves.
    """

    reward: Float[Array, "a b"]
    slack_low: Float[Array, "a b"]
    slack_high: Float[Array, "a b"]
    dual_low: Float[Array, "a b"]
    dual_high: Float[Array, "a b"]
    temperature: Float[Array, " b"]
    residual: Float[Array, " b"]
    steps: Int[Array, " b"]
    done: Bool[Array, " b"]


def prompt_blocks(problem: Problem, width: Float[Array, ""]) -> Blocks:
    """Cut a tabular problem into one block per context, each divided by its weight."""
    wins = jnp.asarray(problem.wins)
    n_comparisons = wins.sum()
    n_comparisons = jnp.where(n_comparisons > 0, n_comparisons, 1.0)
    adversary = jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights)
    scale = adversary + wins.sum(axis=(1, 2)) / n_comparisons
    scale = jnp.where(scale > 0, scale, 1.0)
    return Blocks(
        reference=jnp.asarray(problem.reference_policy).T,
        baseline=jnp.asarray(problem.baseline_policy).T,
        wins=jnp.moveaxis(wins, 0, -1),
        adversary_weight=adversary / scale,
        data_weight=1.0 / (n_comparisons * scale),
        beta=jnp.broadcast_to(jnp.asarray(problem.beta), scale.shape),
        width=jnp.broadcast_to(width, scale.shape),
    )


def init(blocks: Blocks) -> BoxState:
    """Return the initial iterate: the box center, at a temperature that smooths every term."""
    half = 0.5 * jnp.broadcast_to(blocks.width, blocks.reference.shape)
    dual = jnp.full_like(half, INITIAL_DUAL)
    count = jnp.zeros(blocks.beta.shape, jnp.int32)
    return BoxState(
        reward=jnp.zeros_like(half),
        slack_low=half,
        slack_high=half,
        dual_low=dual,
        dual_high=dual,
        temperature=0.5 * blocks.width,
        residual=jnp.full_like(blocks.beta, jnp.inf),
        steps=count,
        done=count > 0,
    )


def solve(
    blocks: Blocks,
    policy: Float[Array, "a b"] | None = None,
    *,
    tolerance: float,
    max_steps: int,
    data: BlockData | None = None,
) -> BoxState:
    r"""Minimize over the reward, against a fixed policy or against the best response.

    Args:
        blocks: problems of one context each.
        policy: fixed policy of :math:`\min_r \phi(\pi, r)`; if None, solve :math:`\min_r F(r)`.
        tolerance: KKT residual at which a block stops, in probabilities.
        max_steps: maximum number of Newton steps of a block.
        data: gradient and edge weights of the data beyond ``blocks.wins``; None without such data.

    Returns:
        The last iterate.
    """

    def running(state: BoxState) -> Bool[Array, ""]:
        return jnp.any(~state.done) & (jnp.max(state.steps) < max_steps)

    return jax.lax.while_loop(
        running, lambda state: step(blocks, policy, state, tolerance, data), init(blocks)
    )


def step(
    blocks: Blocks,
    policy: Float[Array, "a b"] | None,
    state: BoxState,
    tolerance: float,
    data: BlockData | None = None,
) -> BoxState:
    """Take one safeguarded Newton step in every block that has not converged."""
    gradient, edge_weights, probability = _derivatives(blocks, policy, state)
    if data is not None:
        slope, curvature = data(state.reward, _scales(blocks, state)[1])
        gradient, edge_weights = gradient + slope, edge_weights + curvature
    product_low = state.dual_low * state.slack_low
    product_high = state.dual_high * state.slack_high
    barrier = 0.5 * jnp.mean(product_low + product_high, axis=0)
    stationarity = jnp.abs(gradient - state.dual_low + state.dual_high).max(axis=0)
    complementarity = jnp.maximum(product_low, product_high).max(axis=0) / blocks.width
    residual = jnp.maximum(stationarity, complementarity / SHARPER)
    # The rounding error of r / beta limits the accuracy of exp(r / beta).
    roundoff = EPSILON * jnp.max(probability * jnp.abs(state.reward), axis=0) / blocks.beta
    reached = residual <= jnp.maximum(tolerance, 4.0 * roundoff)
    sharp = jnp.minimum(blocks.beta, 1.0)
    done = state.done | (reached & (state.temperature <= sharp))

    # Near the solution Newton's model is exact and the barrier may fall superlinearly.
    fast = jnp.minimum(CENTERING, jnp.sqrt(residual))
    centering = jnp.where(state.temperature > sharp, CENTERING_HOT, fast)
    target = jnp.maximum(centering * barrier, 0.1 * SHARPER * tolerance * blocks.width)
    pull_low, pull_high = target / state.slack_low, target / state.slack_high
    stiff_low = state.dual_low / state.slack_low
    stiff_high = state.dual_high / state.slack_high
    direction = _grounded_laplacian_solve(
        edge_weights, stiff_low + stiff_high, pull_low - pull_high - gradient
    )
    dual_low_step = pull_low - state.dual_low - stiff_low * direction
    dual_high_step = pull_high - state.dual_high + stiff_high * direction

    inside = jnp.clip(1.0 - barrier, 0.99, 1.0 - 1e-6)
    longest = inside * jnp.minimum(
        _longest_step(state.slack_low, direction), _longest_step(state.slack_high, -direction)
    )
    dual_longest = inside * jnp.minimum(
        _longest_step(state.dual_low, dual_low_step),
        _longest_step(state.dual_high, dual_high_step),
    )
    length = jnp.minimum(1.0, longest)
    distance = length * _distance(blocks, state, direction)
    trust = jnp.where(distance > TRUST, jnp.log1p(distance) / jnp.maximum(distance, TRUST), 1.0)
    length = length * trust
    dual_length = jnp.minimum(1.0, dual_longest)
    dual_length = jnp.where(trust < 1.0, jnp.minimum(dual_length, length), dual_length)
    cooled = jnp.maximum(sharp, COOLING * state.temperature)

    moved = BoxState(
        reward=state.reward + length * direction,
        slack_low=state.slack_low + length * direction,
        slack_high=state.slack_high - length * direction,
        dual_low=state.dual_low + dual_length * dual_low_step,
        dual_high=state.dual_high + dual_length * dual_high_step,
        temperature=jnp.where(distance < TRUST, cooled, state.temperature),
        residual=residual,
        steps=state.steps + 1,
        done=done,
    )
    stays = state._replace(residual=residual, done=done)
    return BoxState(*(jnp.where(done, old, new) for old, new in zip(stays, moved, strict=True)))


def _derivatives(
    blocks: Blocks, policy: Float[Array, "a b"] | None, state: BoxState
) -> tuple[Float[Array, "a b"], Float[Array, "a a b"], Float[Array, "a b"]]:
    """Return the gradient, the Hessian as edge weights of a Laplacian, and the policy."""
    beta, unit = _scales(blocks, state)
    wins = blocks.wins
    # The barriers keep XLA from computing the same exponentials and quotients again for each use.
    wins_over = jax.lax.optimization_barrier(_win_probabilities(state.reward / unit))
    # Without a fused multiply-add the flows of a pair cancel exactly in the sum over its actions.
    flow = jax.lax.optimization_barrier(wins * jnp.swapaxes(wins_over, 0, 1))
    both_ways = wins + jnp.swapaxes(wins, 0, 1)
    variance = wins_over * jnp.swapaxes(wins_over, 0, 1)
    edge_weights = (blocks.data_weight / unit) * both_ways * variance
    if policy is None:
        probability = jax.lax.optimization_barrier(_gibbs(blocks.reference, state.reward, beta))
        sharpness = blocks.adversary_weight / beta
        edge_weights = edge_weights + sharpness * probability[:, None] * probability[None, :]
    else:
        probability = policy
    excess = blocks.adversary_weight * (probability - blocks.baseline)
    gradient = jax.lax.optimization_barrier(excess + blocks.data_weight * net_flow(flow))
    return gradient, edge_weights, probability


def net_flow(flow: Float[Array, "a a b"]) -> Float[Array, "a b"]:
    """Return what flows into an action minus what flows out of it; the first axis is the source.

    Examples:
        >>> net_flow(jnp.array([[[0.0], [2.0]], [[0.0], [0.0]]])).tolist()
        [[-2.0], [2.0]]
    """
    actions = range(len(flow))
    if len(flow) > UNROLLED:
        return flow.sum(axis=0) - flow.sum(axis=1)
    return jnp.asarray(sum(flow[i] for i in actions) - sum(flow[:, i] for i in actions))


def _win_probabilities(scaled: Float[Array, "a b"]) -> Float[Array, "a a b"]:
    r"""Return :math:`\sigma(r_i - r_j)` of all pairs from one exponential for each action.

    The exponent is split into a multiple of 512 and a remainder that cannot overflow. Where the
    multiples differ by two or more, the probability is below 1e-222 and counts as 0.
    """
    multiple = jnp.floor(scaled / EXPONENT + 0.5)
    weight = jnp.exp(scaled - EXPONENT * multiple)
    weight, inverse, multiple = jax.lax.optimization_barrier((weight, 1.0 / weight, multiple))
    jump = multiple[None, :] - multiple[:, None]
    far = jnp.where(jump > 0, jnp.inf, 0.0)
    near = jnp.where(jump > 0, math.exp(EXPONENT), math.exp(-EXPONENT))
    factor = jnp.where(jump == 0, 1.0, jnp.where(jnp.abs(jump) == 1, near, far))
    return 1.0 / (1.0 + (weight[None, :] * inverse[:, None]) * factor)


def _scales(blocks: Blocks, state: BoxState) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Return the smoothed beta of the policy and the smoothed unit of the margins."""
    return jnp.maximum(blocks.beta, state.temperature), jnp.maximum(1.0, state.temperature)


def _gibbs(
    reference: Float[Array, "a b"], reward: Float[Array, "a b"], beta: Float[Array, " b"]
) -> Float[Array, "a b"]:
    top = jnp.where(reference > 0, reward, -jnp.inf).max(axis=0)
    weight = reference * jnp.exp(jnp.minimum((reward - top) / beta, 0.0))
    return weight / weight.sum(axis=0)


def _grounded_laplacian_solve(
    edge_weights: Float[Array, "a a b"], ground: Float[Array, "a b"], right: Float[Array, "a b"]
) -> Float[Array, "a b"]:
    """Solve (Laplacian + ground) v = right in every block.

    The diagonal is a sum of row entries, never a difference. It is lifted by a few units in the
    last place, so the factorization cannot break down.
    """
    if len(right) <= UNROLLED:
        return _unrolled_laplacian_solve(edge_weights, ground, right)
    same = jnp.eye(len(right), dtype=bool)[:, :, None]
    off_diagonal = jnp.where(same, 0.0, edge_weights)
    scale = jax.lax.rsqrt(off_diagonal.sum(axis=1) + ground)
    scaled = jnp.where(same, 1.0 + LIFT, -off_diagonal * scale[:, None] * scale[None, :])
    factor = jnp.linalg.cholesky(jnp.moveaxis(scaled, -1, 0), symmetrize_input=False)
    rows = (scale * right).T[:, :, None]
    half = jax.lax.linalg.triangular_solve(factor, rows, left_side=True, lower=True)
    solution = jax.lax.linalg.triangular_solve(
        factor, half, left_side=True, lower=True, transpose_a=True
    )
    return scale * solution[:, :, 0].T


def _unrolled_laplacian_solve(
    edge_weights: Float[Array, "a a b"], ground: Float[Array, "a b"], right: Float[Array, "a b"]
) -> Float[Array, "a b"]:
    """Eliminate one action after the other; the right-hand side is carried along.

    The Schur complement of a grounded Laplacian is another one. Its pivots are sums of its edges
    and its ground, so there is no subtraction.
    """
    n_actions = len(right)
    actions = range(n_actions)
    edge = {(i, j): edge_weights[i, j] for i in actions for j in range(i + 1, n_actions)}
    degree = [sum(edge[min(i, j), max(i, j)] for j in actions if j != i) for i in actions]
    earth = [ground[i] + LIFT * (degree[i] + ground[i]) for i in actions]
    rest = [right[i] for i in actions]
    edge, earth, rest = jax.lax.optimization_barrier((edge, earth, rest))
    inverses = []
    for k in actions:
        later = range(k + 1, n_actions)
        inverse = 1.0 / (sum(edge[k, i] for i in later) + earth[k])
        factor = {i: edge[k, i] * inverse for i in later}
        inverse, factor = jax.lax.optimization_barrier((inverse, factor))
        inverses.append(inverse)
        for i in later:
            earth[i] = earth[i] + factor[i] * earth[k]
            rest[i] = rest[i] + factor[i] * rest[k]
            for j in range(i + 1, n_actions):
                edge[i, j] = edge[i, j] + factor[i] * edge[k, j]
        edge, earth, rest = jax.lax.optimization_barrier((edge, earth, rest))
    solution = [right[0]] * n_actions
    for k in reversed(actions):
        known = sum(edge[k, i] * solution[i] for i in range(k + 1, n_actions))
        solution[k] = jax.lax.optimization_barrier(inverses[k] * (rest[k] + known))
    return jnp.stack(solution)


def _longest_step(value: Float[Array, "a b"], change: Float[Array, "a b"]) -> Float[Array, " b"]:
    """Return the largest step for which ``value + step * change`` is non-negative."""
    falling = change < 0
    return jnp.where(falling, -value / jnp.where(falling, change, -1.0), jnp.inf).min(axis=0)


def _distance(
    blocks: Blocks, state: BoxState, direction: Float[Array, "a b"]
) -> Float[Array, " b"]:
    """Return the largest move of a log-probability or a margin by a full step, in nats."""
    support = blocks.reference > 0
    highest = jnp.where(support, direction, -jnp.inf).max(axis=0)
    lowest = jnp.where(support, direction, jnp.inf).min(axis=0)
    beta, unit = _scales(blocks, state)
    moved = jnp.where(blocks.adversary_weight > 0, (highest - lowest) / beta, 0.0)
    return jnp.maximum(moved, jnp.abs(direction).max(axis=0) / unit)
