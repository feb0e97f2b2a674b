"""Tabular problems with all their data, cut into one block per context for the box solver.

The Hessian of every likelihood is a graph Laplacian per context. A choice from a set with
probabilities :math:`p` adds the edge weights :math:`p_ap_b`, and a comparison or tie the second
derivative of its loss. The solver of win counts therefore takes choices and ties as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .numerics.box_interior_point import BlockData, Blocks, prompt_blocks
from .observations import n_observations
from .preference_data import Choices, Ties
from .types import Problem


def tabular_blocks(problem: Problem, width: Float[Array, ""]) -> tuple[Blocks, BlockData | None]:
    """Return the blocks of a problem, and the derivatives of the data beyond win counts.

    Args:
        problem: preference data, policies and weights, as arrays.
        width: width of the box.

    Returns:
        Blocks, and a function for :func:`box_interior_point.solve`; None if win counts are all
        data. With ties the function has the comparisons too.

    Examples:
        >>> even, wins = jnp.full((1, 2), 0.5), jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
        >>> problem = Problem(jnp.ones(1), even, even, wins, beta=1.0, eta=3.0)
        >>> blocks, derivatives = tabular_blocks(problem, jnp.ones(()))
        >>> blocks.adversary_weight.tolist(), blocks.data_weight.tolist(), derivatives
        ([0.75], [0.25], None)
    """
    if problem.choices is None and problem.ties is None:
        return prompt_blocks(problem, width), None
    wins, n_data = jnp.asarray(problem.wins), n_observations(problem)
    n_data = jnp.where(n_data > 0, n_data, 1.0)
    counts = wins.sum(axis=(1, 2))
    if problem.ties is not None:
        counts = counts + jnp.asarray(problem.ties.counts).sum(axis=(1, 2))
    if problem.choices is not None:
        contexts = jnp.asarray(problem.choices.contexts).astype(jnp.int32)
        counts = counts.at[contexts].add(jnp.asarray(problem.choices.wins).sum(axis=1))
    adversary = jnp.asarray(problem.eta) * jnp.asarray(problem.context_weights)
    scale = adversary + counts / n_data
    scale = jnp.where(scale > 0, scale, 1.0)
    data_weight = 1.0 / (n_data * scale)
    decided = wins if problem.ties is None else jnp.zeros_like(wins)
    blocks = prompt_blocks(problem, width)._replace(
        wins=jnp.moveaxis(decided, 0, -1),
        adversary_weight=adversary / scale,
        data_weight=data_weight,
    )

    def derivatives(
        reward: Float[Array, "a b"], unit: Float[Array, " b"]
    ) -> tuple[Float[Array, "a b"], Float[Array, "a a b"]]:
        gradient, edge_weights = jnp.zeros_like(reward), jnp.zeros_like(blocks.wins)
        scaled = reward / unit
        if problem.ties is not None:
            gradient, edge_weights = _pair_derivatives(scaled, wins, problem.ties)
        if problem.choices is not None:
            slope, curvature = _choices_derivatives(scaled, problem.choices)
            gradient, edge_weights = gradient + slope, edge_weights + curvature
        return data_weight * gradient, data_weight / unit * edge_weights

    return blocks, derivatives


def _pair_derivatives(
    reward: Float[Array, "a b"], wins: Float[Array, "b a a"], ties: Ties
) -> tuple[Float[Array, "a b"], Float[Array, "a a b"]]:
    """Return gradient and edge weights of the loss of comparisons and ties."""
    tie_counts = jnp.asarray(ties.counts)

    def slope(margin: Float[Array, "b a a"]) -> Float[Array, "b a a"]:
        def loss(margin: Float[Array, "b a a"]) -> Float[Array, ""]:
            return jnp.sum(wins * ties.win_loss(margin) + tie_counts * ties.tie_loss(margin))

        return jax.grad(loss)(margin)

    rewards = reward.T
    margin = rewards[:, :, None] - rewards[:, None, :]
    flow, bend = jax.jvp(slope, (margin,), (jnp.ones_like(margin),))
    gradient = flow.sum(axis=2) - flow.sum(axis=1)
    return gradient.T, jnp.moveaxis(bend + bend.mT, 0, -1)


def _choices_derivatives(
    reward: Float[Array, "a b"], choices: Choices
) -> tuple[Float[Array, "a b"], Float[Array, "a a b"]]:
    """Return gradient and edge weights of the loss of choices."""
    contexts = jnp.asarray(choices.contexts).astype(jnp.int32)
    subsets, wins = jnp.asarray(choices.subsets).astype(bool), jnp.asarray(choices.wins)
    rewards = reward.T[contexts]
    probability = jax.nn.softmax(rewards, axis=1, where=subsets)
    probability = jnp.where(subsets, probability, 0.0)
    n_choices = wins.sum(axis=1, keepdims=True)
    rows = (n_choices * probability)[:, :, None] * probability[:, None, :]
    edge_weights = jnp.zeros((len(reward), len(reward), reward.shape[1]), reward.dtype)
    gradient = jnp.zeros_like(reward).at[:, contexts].add((n_choices * probability - wins).T)
    return gradient, edge_weights.at[:, :, contexts].add(jnp.moveaxis(rows, 0, -1))
