r"""Random instances on which the theorem is verified, padded to a few common shapes.

Solvers compile once for each shape, and padding everything to the largest shape would multiply the
work. A few shapes are a compromise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Int, Key

from bandits.environments.base import Instance
from bandits.environments.random import numpy_generator, random_linear, random_tabular

Family = Literal["tabular", "linear"]

MAX_CONTEXTS, MAX_ACTIONS = 20, 30
"""Size of the largest verification instance."""

PADDED_SHAPES = ((20, 12), (20, 30))
"""Numbers of contexts and actions to which instances are padded: the first that is large enough."""

FEATURES = 6
"""Dimension of the features of linear instances."""


class ProblemBatch(NamedTuple):
    """Instances of one padded shape.

    Attributes:
        instance: the instances, with a leading batch axis on every array.
        number: index of each instance among all instances of the draw, from 0.
        contexts: number of contexts of each instance before padding.
        actions: number of actions of each instance before padding.
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

    An instance has 1 to 20 contexts, 2 to 30 actions, up to 10,000 comparisons, and :math:`\beta`
    and :math:`\eta` log-uniform in [0.01, 100]. Its baseline is "chosen", "reference" or random.
    Instance ``i`` depends only on ``key`` and ``i``, neither on ``n`` nor on the padded shapes.

    Args:
        key: a ``jax.random.key``.
        n: number of instances.
        family: "tabular" or "linear".
        padded_shapes: numbers of contexts and actions to pad to. Each instance goes to the first
            shape that is large enough.

    Returns:
        One batch for each shape that holds an instance.

    Raises:
        ValueError: if no shape holds the largest instance.

    Examples:
        >>> key, shapes = jax.random.key(0), [(20, 30)]
        >>> batches = draw_verification_batches(key, 3, "tabular", padded_shapes=shapes)
        >>> [batch.instance.true_reward.shape for batch in batches]
        [(3, 20, 30)]
    """
    if not any(x >= MAX_CONTEXTS and a >= MAX_ACTIONS for x, a in padded_shapes):
        raise ValueError(
            f"`padded_shapes` must include one of at least ({MAX_CONTEXTS}, {MAX_ACTIONS}), "
            f"got {padded_shapes}"
        )
    instances, sizes = [], []
    for i in range(n):
        instance, size = _random_instance(jax.random.fold_in(key, i), family, padded_shapes)
        instances.append(instance)
        sizes.append(size)
    batches = []
    for shape in dict.fromkeys(padded_shapes):
        indices = [i for i in range(n) if instances[i].true_reward.shape == tuple(shape)]
        if indices:
            batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(instances[i] for i in indices))
            contexts, actions = np.array([sizes[i] for i in indices]).T
            batches.append(ProblemBatch(batch, np.array(indices), contexts, actions))
    return batches


def _random_instance(
    key: Key[Array, ""], family: Family, padded_shapes: Sequence[tuple[int, int]]
) -> tuple[Instance, tuple[int, int]]:
    """Return one padded instance and its numbers of contexts and actions before padding."""
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
