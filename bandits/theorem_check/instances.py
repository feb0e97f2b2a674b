r"""The random instances on which the theorem is verified, padded to a few common shapes.

Solvers compile once for each shape. Padding everything to the largest would cost several times the
work; a handful of padded_shapes is a compromise between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Int, Key

from bandits.environments.random import Instance, numpy_generator, random_linear, random_tabular

Family = Literal["tabular", "linear"]

MAX_CONTEXTS, MAX_ACTIONS = 20, 30
"""Largest verification instance."""
PADDED_SHAPES = ((20, 12), (20, 30))
"""Contexts and actions that verification instances are padded to: the first that hold them."""
FEATURES = 6


class ProblemBatch(NamedTuple):
    """Instances of one padded shape, side by side.

    Attributes:
        instance: every array has a leading batch axis.
        number: place of each instance among all that were drawn, from 0.
        contexts: number of contexts before padding.
        actions: number of actions before padding.
    """

    instance: Instance
    number: Int[np.ndarray, " B"]
    contexts: Int[np.ndarray, " B"]
    actions: Int[np.ndarray, " B"]


def draw_verification_batches(
    key: Key[Array, ""],
    n: int,
    family: Family,
    *,
    padded_shapes: Sequence[tuple[int, int]] = PADDED_SHAPES,
) -> list[ProblemBatch]:
    r"""Draw the instances on which the theorem is verified, in batches of common shapes.

    1 to 20 contexts, 2 to 30 actions, :math:`\beta` and :math:`\eta` log-uniform in [0.01, 100],
    up to 10,000 comparisons; the baseline is chosen, reference or random. Instance ``i`` depends
    on ``key`` and ``i`` alone: more instances or other padded_shapes leave it as it is.

    Args:
        key: a ``jax.random.key``.
        n: number of instances.
        family: "tabular" or "linear".
        padded_shapes: shapes to pad to; each instance goes to the first that holds it.

    Returns:
        One batch for each ceiling that holds an instance; solvers compile once for each.

    Raises:
        ValueError: no ceiling holds the largest instance.

    Examples:
        >>> batches = draw_verification_batches(jax.random.key(0), 3, "tabular", padded_shapes=[(20, 30)])
        >>> [batch.instance.true_reward.shape for batch in batches]
        [(3, 20, 30)]
    """
    if not any(x >= MAX_CONTEXTS and a >= MAX_ACTIONS for x, a in padded_shapes):
        raise ValueError(
            f"`padded_shapes` must include one of at least ({MAX_CONTEXTS}, {MAX_ACTIONS}), "
            f"got {padded_shapes}"
        )
    drawn = [_random_instance(jax.random.fold_in(key, i), family, padded_shapes) for i in range(n)]
    batches = []
    for shape in dict.fromkeys(padded_shapes):
        held = [i for i in range(n) if drawn[i][0].true_reward.shape == tuple(shape)]
        if held:
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(drawn[i][0] for i in held))
            sizes = np.array([drawn[i][1] for i in held])
            batches.append(ProblemBatch(stacked, np.array(held), sizes[:, 0], sizes[:, 1]))
    return batches


def _random_instance(
    key: Key[Array, ""], family: Family, padded_shapes: Sequence[tuple[int, int]]
) -> tuple[Instance, tuple[int, int]]:
    """One padded instance and its own numbers of contexts and actions."""
    options_key, instance_key = jax.random.split(key)
    rng = numpy_generator(options_key)
    contexts = int(rng.integers(1, MAX_CONTEXTS, endpoint=True))
    actions = int(rng.integers(2, MAX_ACTIONS, endpoint=True))
    comparisons = int(10.0 ** rng.uniform(0.0, 4.0))
    pair_probability, size = rng.uniform(0.0, 0.6), rng.uniform(0.5, 4.0)
    beta, eta = (float(10.0 ** rng.uniform(-2.0, 2.0)) for _ in range(2))
    baseline = ("chosen", "reference", "dirichlet")[rng.integers(3)]
    shape = next(s for s in padded_shapes if s[0] >= contexts and s[1] >= actions)
    draw = (
        partial(random_tabular, reward_max=size)
        if family == "tabular"
        else partial(random_linear, radius=size, features=FEATURES)
    )
    instance = draw(
        instance_key,
        contexts=contexts,
        actions=actions,
        comparisons=comparisons,
        pair_probability=pair_probability,
        baseline=baseline,
        beta=beta,
        eta=eta,
        shape=shape,
    )
    return instance, (contexts, actions)
