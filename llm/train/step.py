r"""One step of training, as pure functions: gradients over parts of a batch, and an update.

A model travels as three pieces, ``graphdef, trainable, frozen = nnx.split(model, filter, ...)``:
gradients are taken for ``trainable`` alone. A batch arrives in parts along a leading accumulation
axis, whose losses are divided by the weights of the *whole* batch (:mod:`llm.train.objective`), so
that the gradient does not depend on the number of parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from llm.config import ObjectiveConfig
from llm.evaluation.metrics import MetricSums, compute_metric_sums, finalize_metrics
from llm.models.logprobs import response_log_probs
from llm.parallel.mesh import Devices
from llm.precision import accumulation_dtype
from llm.types import Batch

from .objective import flag_non_finite_pairs, loss_share, normalizers
from .stochastic_rounding import apply_optimizer

GraphDef = nnx.GraphDef[Any]
"""Structure of a model, without its parameters."""
Parameters = Any
"""A tree of parameters, an ``nnx.State``."""


class TrainState(NamedTuple):
    """State of training that a step replaces; the step reuses its buffers (donation).

    Attributes:
        step: updates made so far.
        trainable: parameters that are trained.
        optimizer_state: state of the optax transformation.
    """

    step: Int[Array, ""]
    trainable: Parameters
    optimizer_state: optax.OptState


class StepResult(NamedTuple):
    """Measurements of a step, before its update.

    Attributes:
        metrics: metrics of the global batch by name; ``grad_norm`` is the norm before clipping.
        non_finite: True for pairs with a log-probability that is NaN or infinite.
    """

    metrics: dict[str, Float[Array, ""]]
    non_finite: Bool[Array, "parts shards n"]


TrainStep = jax.stages.Wrapped
EvaluationStep = jax.stages.Wrapped


def init_train_state(trainable: Parameters, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step.

    Args:
        trainable: parameters to train.
        optimizer: optax transformation that will update them.

    Returns:
        The state of step 0.

    Examples:
        >>> int(init_train_state({"weight": jnp.zeros(2)}, optax.sgd(0.1)).step)
        0
    """
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


@jax.jit
def all_finite(state: TrainState) -> Bool[Array, ""]:
    """Return whether all parameters and all numbers of the optimizer are finite.

    Args:
        state: training state.

    Returns:
        True if no number is NaN or infinite.

    Examples:
        >>> state = init_train_state({"weight": jnp.array([1.0, jnp.inf])}, optax.sgd(0.1))
        >>> bool(all_finite(state))
        False
    """
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def gradients(
    graphdef: GraphDef,
    trainable: Parameters,
    frozen: Parameters,
    batches: Batch,
    config: ObjectiveConfig,
    *,
    devices: Devices,
) -> tuple[Parameters, StepResult]:
    """Return the gradient of the objective over a global batch, and its metrics.

    Args:
        graphdef: structure of the model.
        trainable: parameters to differentiate.
        frozen: other state of the model.
        batches: parts of the batch, ``[parts, shards, ...]``: parts are accumulated one after
            another, shards are on different devices.
        config: the objective.
        devices: mesh of one or more devices, with the sharding plan of the model.

    Returns:
        The gradient, in the dtypes of the parameters, and the measurements.
    """
    divisors = normalizers(config, batches)

    def on_device(
        trainable: Parameters, frozen: Parameters, batches: Batch
    ) -> tuple[tuple[Parameters, MetricSums], Array]:
        def loss(trainable: Parameters, batch: Batch) -> tuple[Array, tuple[MetricSums, Array]]:
            model = nnx.merge(graphdef, trainable, frozen)
            sums, _, flags = _measure(model, batch, config)
            return loss_share(config, sums, divisors), (sums, flags)

        def part(batch: Batch) -> tuple[tuple[Any, MetricSums], Array]:
            gradient, (sums, flags) = jax.grad(loss, has_aux=True)(trainable, batch)
            wide = jax.tree.map(lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)), gradient)
            return (wide, sums), flags

        return _sum_over_parts(part, batches)

    (gradient, sums), flags = devices.map_gradients(on_device)(trainable, frozen, batches)
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
    measured = finalize_metrics(config, sums) | {"grad_norm": jnp.sqrt(sum(squares))}
    narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), gradient, trainable)
    return narrow, StepResult(measured, flags)


def make_train_step(
    graphdef: GraphDef,
    config: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    *,
    devices: Devices,
    seed: int = 0,
) -> TrainStep:
    """Make the jitted function of a training step; it reuses the buffers of the state.

    Args:
        graphdef: structure of the model.
        config: the objective.
        optimizer: optax transformation that made the state.
        devices: see :func:`gradients`.
        seed: seed of the stochastic rounding of bfloat16 parameters; the key of a step depends on
            it and on the number of the step alone.

    Returns:
        ``step(state, frozen, batches) -> (TrainState, StepResult)``; the state that is passed in
        must not be used again. Put the first state on the mesh with ``devices.put``; otherwise the
        second step is compiled again, for the shardings of the state that the first step returned.
    """

    def step(
        state: TrainState, frozen: Parameters, batches: Batch
    ) -> tuple[TrainState, StepResult]:
        trainable = state.trainable
        gradient, result = gradients(graphdef, trainable, frozen, batches, config, devices=devices)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trainable, optimizer_state, metrics = apply_optimizer(
            optimizer, gradient, state.optimizer_state, trainable, key
        )
        result = result._replace(metrics=result.metrics | metrics)
        state = TrainState(state.step + 1, trainable, optimizer_state)
        return jax.lax.with_sharding_constraint(state, devices.shardings(state)), result

    return jax.jit(step, donate_argnums=0)


def make_evaluation_step(
    graphdef: GraphDef, config: ObjectiveConfig, *, devices: Devices
) -> EvaluationStep:
    """Make the jitted function that measures a batch of held-out pairs.

    Args:
        graphdef: structure of the model.
        config: the objective.
        devices: see :func:`gradients`.

    Returns:
        ``evaluate(trainable, frozen, batches) -> (MetricSums, log_probs)``, where ``log_probs`` are
        those of the responses in nats, ``[parts shards n k]``. Add the sums of all batches with
        :func:`llm.evaluation.metrics.add_metric_sums`, then divide them with
        :func:`llm.evaluation.metrics.finalize_metrics`.
    """

    def on_device(
        trainable: Parameters, frozen: Parameters, batches: Batch
    ) -> tuple[MetricSums, Array]:
        model = nnx.merge(graphdef, trainable, frozen)

        def part(batch: Batch) -> tuple[MetricSums, Array]:
            sums, policy, _ = _measure(model, batch, config)
            return sums, policy

        return _sum_over_parts(part, batches)

    return jax.jit(devices.map_metrics(on_device))


def _measure(
    model: Any, batch: Batch, config: ObjectiveConfig
) -> tuple[MetricSums, Float[Array, "n k"], Bool[Array, " n"]]:
    """Return sums of the metrics, log-probabilities, and flags of non-finite pairs."""
    policy = response_log_probs(model, batch)
    return (
        compute_metric_sums(config, policy, batch.reference, batch),
        policy,
        flag_non_finite_pairs(policy, batch.reference, batch),
    )


def _sum_over_parts(
    part: Callable[[Batch], tuple[Any, Array]], batches: Batch
) -> tuple[Any, Array]:
    """Sum the first result of ``part`` over the parts, and stack its second result."""
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    if batches.lengths.shape[0] == 1:  # without a loop, which would copy the sums
        sums, per_pair = part(first)
        return sums, per_pair[None]
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, first)[0]
    )

    def accumulate(sums: Any, batch: Batch) -> tuple[Any, Array]:
        added, per_pair = part(batch)
        return jax.tree.map(jnp.add, sums, added), per_pair

    return jax.lax.scan(accumulate, zeros, batches)
