r"""Small random instances of further reward classes: kernel, Lipschitz, polytope, and a given one.

A bandit is drawn as a tabular one, and the class is built around its true reward, which lies in the
class. Its solvers take longer to compile than those of the box and of the ball, so that instances
are small and few.
"""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from bandits.environments.base import Instance
from bandits.environments.random import numpy_generator, random_tabular, unit_vectors
from rpo_theory.rewards import KernelBall, Lipschitz, Polytope, RewardClass

from .instances import ProblemBatch

ClassFamily = Literal["kernel", "lipschitz", "polytope"]

SMALL_SHAPE = (2, 3)
"""Numbers of contexts and actions of every instance; a Lipschitz class compares all cells."""
FEATURES = 3
"""Dimension of the points between which kernel and distance are taken."""
INEQUALITIES = 3
"""Number of inequalities of a polytope."""


def random_class_instance(
    key: Key[Array, ""],
    family: ClassFamily | RewardClass,
    *,
    shape: tuple[int, int] = SMALL_SHAPE,
) -> Instance:
    r"""Draw a small bandit with a reward class of a family, or with a given class.

    There are up to 10,000 comparisons; :math:`\beta` and :math:`\eta` are log-uniform in [0.1, 10].

    Args:
        key: a ``jax.random.key``.
        family: "kernel", "lipschitz" or "polytope"; or a reward class, which every instance has and
            which need not contain the true reward.
        shape: numbers of contexts and of actions, which are not padded.

    Returns:
        The instance.

    Examples:
        >>> from rpo_theory.rewards import contains
        >>> bandit = random_class_instance(jax.random.key(0), "lipschitz")
        >>> bool(contains(bandit.reward_class, bandit.true_reward))
        True
    """
    options_key, instance_key = jax.random.split(key)
    rng = numpy_generator(options_key)
    contexts, actions = shape
    beta, eta = (float(10.0 ** rng.uniform(-1.0, 1.0)) for _ in range(2))
    maximum = float(rng.uniform(0.5, 4.0))
    instance = random_tabular(
        instance_key,
        contexts=contexts,
        actions=actions,
        comparisons=int(10.0 ** rng.uniform(0.0, 4.0)),
        pair_probability=rng.uniform(0.0, 0.6),
        reward_max=maximum,
        baseline=("chosen", "reference", "dirichlet")[rng.integers(3)],
        beta=beta,
        eta=eta,
    )
    reward = np.asarray(instance.true_reward)
    if family == "kernel":
        return instance._replace(reward_class=_kernel(rng, reward))
    if family == "lipschitz":
        return instance._replace(reward_class=_lipschitz(rng, reward, maximum))
    if family == "polytope":
        return instance._replace(reward_class=_polytope(rng, reward, maximum))
    return instance._replace(reward_class=jax.tree.map(np.asarray, family))


def draw_class_batch(
    key: Key[Array, ""],
    n: int,
    family: ClassFamily | RewardClass,
    *,
    shape: tuple[int, int] = SMALL_SHAPE,
) -> ProblemBatch:
    """Draw instances of :func:`random_class_instance` of one shape.

    Args:
        key: a ``jax.random.key``; instance ``i`` depends on ``key`` and ``i`` alone.
        n: number of instances, at least 1.
        family: see :func:`random_class_instance`.
        shape: see :func:`random_class_instance`.

    Returns:
        The instances as one batch.

    Examples:
        >>> draw_class_batch(jax.random.key(0), 4, "kernel").instance.true_reward.shape
        (4, 2, 3)
    """
    keys = [jax.random.fold_in(key, i) for i in range(n)]
    instances = [random_class_instance(key, family, shape=shape) for key in keys]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *instances)
    return ProblemBatch(batch, np.arange(n), *(np.full(n, size) for size in shape))


def _kernel(rng: np.random.Generator, reward: Float[np.ndarray, "x a"]) -> KernelBall:
    """Return a ball of a linear kernel plus a multiple of the identity, around a reward."""
    points = _points(rng, reward)
    gram = points @ points.T + 0.1 * np.eye(reward.size)
    norm = np.sqrt(reward.reshape(-1) @ np.linalg.solve(gram, reward.reshape(-1)))
    return KernelBall(gram, np.array(norm * rng.uniform(1.0, 1.5)))


def _lipschitz(
    rng: np.random.Generator, reward: Float[np.ndarray, "x a"], maximum: float
) -> Lipschitz:
    """Return a Lipschitz class of points on the sphere, with a constant that a reward allows."""
    points, flat = _points(rng, reward), reward.reshape(-1)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    apart = distance > 0
    steepest = (np.abs(flat[:, None] - flat)[apart] / distance[apart]).max()
    return Lipschitz(np.array(steepest * rng.uniform(1.0, 1.5)), distance, np.array(maximum))


def _polytope(
    rng: np.random.Generator, reward: Float[np.ndarray, "x a"], maximum: float
) -> Polytope:
    """Return a polytope with random inequalities that a reward meets with room to spare."""
    normals = unit_vectors(rng.standard_normal((INEQUALITIES, reward.size)))
    room = maximum * rng.uniform(0.05, 0.5, INEQUALITIES)
    limits = normals @ reward.reshape(-1) + room
    return Polytope(normals.reshape(-1, *reward.shape), limits, np.array(maximum))


def _points(rng: np.random.Generator, reward: Float[np.ndarray, "x a"]) -> Float[np.ndarray, "n d"]:
    """Draw a point on the sphere for every context and action."""
    return unit_vectors(rng.standard_normal((reward.size, FEATURES)))
