r"""Reward classes of small neural networks, and the adversary's best response in them.

.. math:: r_\theta(x,a) = \sum_h w_h\,\sigma(\langle u_h,\phi(x,a)\rangle),
          \qquad \|u_h\|\le B,\quad |w_h|\le c

The class is compact and, in general, not convex: Theorem 5.6 can fail. With one linear neuron and
:math:`c=1` it is the ball of :class:`rpo_theory.LinearBall`. A bias is a feature that is constant.

Minima over the parameters are those of projected gradient descent from several random starts. They
are local minima, so a value that uses them is no proof.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from .objectives import minimax_objective, saddle_objective
from .problems import normalize
from .types import ArrayLike, Problem

RESTARTS = 32
STEPS = 300
STEP_SIZES = 4.0 ** np.arange(3, -13, -1)
"""Sizes that every step tries, in units of the parameters; the best is taken."""
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda scores: scores,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


class NetworkClass(NamedTuple):
    r"""Rewards of all networks of one shape.

    Attributes:
        features: :math:`\phi(x,a)`, shape ``[x a d]``.
        n_neurons: number of neurons of the hidden layer.
        activation: :math:`\sigma`: ``"linear"``, ``"relu"`` or ``"tanh"``.
        radius: :math:`B`, largest norm of the weights of a neuron.
        output_max: :math:`c`, largest size of an output weight.
    """

    features: Float[ArrayLike, "x a d"]
    n_neurons: int
    activation: Literal["linear", "relu", "tanh"]
    radius: float = 1.0
    output_max: float = 1.0


class Parameters(NamedTuple):
    r"""Weights of a network.

    Attributes:
        inputs: :math:`u_h`, shape ``[h d]``.
        outputs: :math:`w_h`, shape ``[h]``.
    """

    inputs: Float[ArrayLike, "h d"]
    outputs: Float[ArrayLike, " h"]


class Fit(NamedTuple):
    """Best network of several descents.

    Attributes:
        reward: its reward table, shape ``[x a]``.
        objective: value of the objective there, nats.
        parameters: its weights.
    """

    reward: Float[ArrayLike, "x a"]
    objective: Float[ArrayLike, ""]
    parameters: Parameters


def network_reward(network: NetworkClass, parameters: Parameters) -> Float[Array, "x a"]:
    r"""Return the reward table of a network, :math:`r_\theta`.

    Args:
        network: shape of the network.
        parameters: its weights.

    Examples:
        >>> network = NetworkClass(jnp.array([[[1.0], [2.0]]]), 1, "relu")
        >>> network_reward(network, Parameters(jnp.array([[0.5]]), jnp.array([-1.0]))).tolist()
        [[-0.5, -1.0]]
    """
    return _reward(jnp.asarray(network.features), parameters, activation=network.activation)


def best_response(
    network: NetworkClass,
    problem: Problem,
    policy: Float[ArrayLike, "x a"],
    key: Key[Array, ""],
    *,
    restarts: int = RESTARTS,
    steps: int = STEPS,
) -> Fit:
    r"""Minimize :math:`\phi(\pi, r_\theta)` over the parameters for a fixed policy.

    Args:
        network: the reward class.
        problem: preference data, policies and weights.
        policy: :math:`\pi(a|x)`.
        key: random key of the starts, of ``jax.random.key``.
        restarts: number of starts.
        steps: number of gradient steps from each.

    Returns:
        The best network found, as float64 NumPy arrays.

    Examples:
        >>> even, wins = np.full((1, 2), 0.5), np.zeros((1, 2, 2))
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> network = NetworkClass(np.array([[[1.0], [-1.0]]]), 1, "linear")
        >>> policy = np.array([[0.9, 0.1]])
        >>> best_response(network, problem, policy, jax.random.key(0)).reward.round(6).tolist()
        [[-1.0, 1.0]]
    """
    return _fit(network, problem, jnp.asarray(policy), key, restarts, steps)


def minimax_network(
    network: NetworkClass,
    problem: Problem,
    key: Key[Array, ""],
    *,
    restarts: int = RESTARTS,
    steps: int = STEPS,
) -> Fit:
    r"""Minimize :math:`F(r_\theta)=\max_\pi\phi(\pi,r_\theta)` over the parameters.

    Args:
        network: the reward class.
        problem: preference data, policies and weights.
        key: random key of the starts, of ``jax.random.key``.
        restarts: number of starts.
        steps: number of gradient steps from each.

    Returns:
        The best network found, as float64 NumPy arrays. Its objective minus the max-min value of
        :func:`rpo_theory.double_oracle.solve` is the gap of the class.

    Examples:
        >>> even, wins = np.full((1, 2), 0.5), np.zeros((1, 2, 2))
        >>> problem = Problem(np.ones(1), even, even, wins, beta=1.0, eta=1.0)
        >>> network = NetworkClass(np.array([[[1.0], [0.0]]]), 1, "linear")
        >>> round(float(minimax_network(network, problem, jax.random.key(0)).objective), 6)
        0.0
    """
    return _fit(network, problem, None, key, restarts, steps)


def _fit(
    network: NetworkClass,
    problem: Problem,
    policy: Float[Array, "x a"] | None,
    key: Key[Array, ""],
    restarts: int,
    steps: int,
) -> Fit:
    with jax.enable_x64(True):
        arguments = (normalize(problem), np.asarray(network.features), policy)
        arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arguments)
        bounds = (jnp.float64(network.radius), jnp.float64(network.output_max))
        fit = _descend(
            *arguments,
            bounds,
            key,
            n_neurons=network.n_neurons,
            activation=network.activation,
            restarts=restarts,
            steps=steps,
        )
        return jax.tree.map(np.asarray, fit)


@partial(jax.jit, static_argnames=("n_neurons", "activation", "restarts", "steps"))
def _descend(
    problem: Problem,
    features: Float[Array, "x a d"],
    policy: Float[Array, "x a"] | None,
    bounds: tuple[Float[Array, ""], Float[Array, ""]],
    key: Key[Array, ""],
    *,
    n_neurons: int,
    activation: str,
    restarts: int,
    steps: int,
) -> Fit:
    """Return the best end of projected gradient descents from random starts."""
    inputs_key, outputs_key = jax.random.split(key)
    n_features = features.shape[-1]

    def objective(parameters: Parameters) -> Float[Array, ""]:
        reward = _reward(features, parameters, activation=activation)
        if policy is None:
            return minimax_objective(problem, reward)
        return saddle_objective(problem, policy, reward)

    def project(parameters: Parameters) -> Parameters:
        radius, output_max = bounds
        norms = jnp.linalg.norm(parameters.inputs, axis=-1, keepdims=True)
        shrunk = parameters.inputs * jnp.minimum(1.0, radius / jnp.where(norms > 0, norms, 1.0))
        return Parameters(shrunk, jnp.clip(parameters.outputs, -output_max, output_max))

    def step(parameters: Parameters, _: None) -> tuple[Parameters, None]:
        gradient = jax.grad(objective)(parameters)
        length = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in gradient))
        length = jnp.where(length > 0, length, 1.0)

        def moved(size: Float[Array, ""]) -> Parameters:
            move = jax.tree.map(lambda at, slope: at - size * slope / length, parameters, gradient)
            return project(move)

        sizes = jnp.append(jnp.asarray(STEP_SIZES), 0.0) * bounds[0]
        candidates = jax.vmap(moved)(sizes)
        best = jnp.argmin(jax.vmap(objective)(candidates))
        return jax.tree.map(lambda leaf: leaf[best], candidates), None

    def descend(start: Parameters) -> Parameters:
        return jax.lax.scan(step, project(start), length=steps)[0]

    radius, output_max = bounds
    shape = (restarts, n_neurons)
    directions = jax.random.normal(inputs_key, (*shape, n_features), jnp.float64) * radius
    outputs = jax.random.uniform(outputs_key, shape, jnp.float64, -1.0, 1.0) * output_max
    ends = jax.vmap(descend)(Parameters(directions, outputs))
    values = jax.vmap(objective)(ends)
    best = jax.tree.map(lambda leaf: leaf[jnp.argmin(values)], ends)
    return Fit(_reward(features, best, activation=activation), values.min(), best)


def _reward(
    features: Float[Array, "x a d"], parameters: Parameters, *, activation: str
) -> Float[Array, "x a"]:
    inputs, outputs = map(jnp.asarray, parameters)
    return ACTIVATIONS[activation](jnp.einsum("xad,hd->xah", features, inputs)) @ outputs
