r"""One step of training, as pure functions: gradients over parts of a batch, and an update.

A model travels as three pieces, ``graphdef, trainable, frozen = nnx.split(model, filter, ...)``:
gradients are taken for ``trainable`` alone. A batch arrives in parts along a leading accumulation
axis, whose losses are divided by the weights of the *whole* batch (:mod:`llm.train.objective`), so that
the gradient does not depend on how many parts there are.
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

from .objective import loss_share, non_finite, normalizers

Parameters = Any
"""A tree of parameters, an ``nnx.State``."""


class TrainState(NamedTuple):
    """What a step changes; its buffers are given up to the step.

    Attributes:
        step: updates made so far.
        trainable: parameters that are trained.
        optimizer_state: of the optax transformation.
    """

    step: Int[Array, ""]
    trainable: Parameters
    optimizer_state: optax.OptState


class Reference(NamedTuple):
    """A reference model that runs along, with parameters of its own.

    Attributes:
        graphdef: its structure.
        state: all its parameters.
    """

    graphdef: nnx.GraphDef
    state: Parameters


class StepResult(NamedTuple):
    """What a step measured, before its update.

    Attributes:
        metrics: by name, over the global batch; ``grad_norm`` is that before clipping.
        non_finite: pairs whose log-probabilities are NaN or infinite, by part of the batch.
    """

    metrics: dict[str, Float[Array, ""]]
    non_finite: Bool[Array, "parts n"]


TrainStep = jax.stages.Wrapped
EvaluationStep = jax.stages.Wrapped


def init_train_state(trainable: Parameters, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step.

    Args:
        trainable: parameters to train.
        optimizer: how they will be updated.

    Returns:
        The state.

    Examples:
        >>> int(init_train_state({"weight": jnp.zeros(2)}, optax.sgd(0.1)).step)
        0
    """
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


@jax.jit
def all_finite(state: TrainState) -> Bool[Array, ""]:
    """Whether every parameter and every number of the optimiser is finite.

    Args:
        state: of training.

    Returns:
        True or false.

    Examples:
        >>> state = init_train_state({"weight": jnp.array([1.0, jnp.inf])}, optax.sgd(0.1))
        >>> bool(all_finite(state))
        False
    """
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def gradients(
    graphdef: nnx.GraphDef,
    trainable: Parameters,
    frozen: Parameters,
    batches: Batch,
    config: ObjectiveConfig,
    *,
    reference: Reference | None = None,
    chunk_size: int | None = None,
    devices: Devices | None = None,
) -> tuple[Parameters, StepResult]:
    """Gradient of the objective of a global batch, and its metrics.

    Args:
        graphdef: structure of the model.
        trainable: parameters to differentiate.
        frozen: its other state.
        batches: parts of the batch, along a leading axis of every array; with ``devices`` each part
            has a second axis, of the devices that have pairs of their own.
        config: the objective.
        reference: reference model; None takes the log-probabilities that come with the batch.
        chunk_size: tokens whose logits are alive at once, see
            :func:`llm.models.logprobs.sequence_log_probs`.
        devices: the mesh that the model's layout is for; None for one device.

    Returns:
        The gradient, of the parameters' own dtypes, and what was measured.
    """
    divisors = normalizers(config, batches)

    def on_device(
        trainable: Parameters, frozen: Parameters, batches: Batch, reference: Reference | None
    ) -> tuple[tuple[Parameters, MetricSums], Array]:
        def share(trainable: Parameters, batch: Batch) -> tuple[Array, tuple[MetricSums, Array]]:
            model = nnx.merge(graphdef, trainable, frozen)
            totals, _, flags = _measure(model, batch, config, reference, chunk_size)
            return loss_share(config, totals, divisors), (totals, flags)

        def part(batch: Batch) -> tuple[tuple[Any, MetricSums], Array]:
            slope, (totals, flags) = jax.grad(share, has_aux=True)(trainable, batch)
            wide = jax.tree.map(lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)), slope)
            return (wide, totals), flags

        return _sum_over_parts(part, batches)

    everywhere = on_device if devices is None else devices.gradients(on_device)
    (slope, totals), flags = everywhere(trainable, frozen, batches, reference)
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(slope)]
    measured = finalize_metrics(config, totals) | {"grad_norm": jnp.sqrt(sum(squares))}
    grads = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), slope, trainable)
    return grads, StepResult(measured, flags)


def make_train_step(
    graphdef: nnx.GraphDef,
    config: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    *,
    chunk_size: int | None = None,
    devices: Devices | None = None,
) -> TrainStep:
    """Compile-once function of a step: gradients and update, with the state's buffers reused.

    Args:
        graphdef: structure of the model.
        config: the objective.
        optimizer: the one that made the state.
        chunk_size: see :func:`gradients`.
        devices: see :func:`gradients`.

    Returns:
        ``step(state, frozen, batches, reference=None) -> (TrainState, StepResult)``, jitted; the
        state that goes in must not be used again.
    """

    def step(
        state: TrainState, frozen: Parameters, batches: Batch, reference: Reference | None = None
    ) -> tuple[TrainState, StepResult]:
        trainable = state.trainable
        options = {"reference": reference, "chunk_size": chunk_size, "devices": devices}
        grads, result = gradients(graphdef, trainable, frozen, batches, config, **options)
        # Optax raises floats to integer powers, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(grads, state.optimizer_state, trainable)
            trainable = optax.apply_updates(trainable, updates)
        state = TrainState(state.step + 1, trainable, optimizer_state)
        if devices is not None:
            state = jax.lax.with_sharding_constraint(state, devices.shardings(state))
        return state, result

    return jax.jit(step, donate_argnums=0)


def make_evaluation_step(
    graphdef: nnx.GraphDef,
    config: ObjectiveConfig,
    *,
    chunk_size: int | None = None,
    devices: Devices | None = None,
) -> EvaluationStep:
    """Compile-once function that measures a batch of held-out pairs without training.

    Args:
        graphdef: structure of the model.
        config: the objective.
        chunk_size: see :func:`gradients`.
        devices: see :func:`gradients`.

    Returns:
        ``evaluate(trainable, frozen, batches, reference=None) -> (MetricSums, log_probs)``, jitted: add
        the totals of all batches with :func:`llm.evaluation.metrics.add_metric_sums`, then divide with
        :func:`llm.evaluation.metrics.finalize_metrics`; log-probabilities of the responses, nats, are
        ``[parts n k]``, or ``[parts devices n k]``.
    """

    def on_device(
        trainable: Parameters, frozen: Parameters, batches: Batch, reference: Reference | None
    ) -> tuple[MetricSums, Array]:
        model = nnx.merge(graphdef, trainable, frozen)

        def part(batch: Batch) -> tuple[MetricSums, Array]:
            totals, policy, _ = _measure(model, batch, config, reference, chunk_size)
            return totals, policy

        return _sum_over_parts(part, batches)

    everywhere = on_device if devices is None else devices.measures(on_device)

    def evaluate(
        trainable: Parameters,
        frozen: Parameters,
        batches: Batch,
        reference: Reference | None = None,
    ) -> tuple[MetricSums, Array]:
        return everywhere(trainable, frozen, batches, reference)

    return jax.jit(evaluate)


def _measure(
    model: Any,
    batch: Batch,
    config: ObjectiveConfig,
    reference: Reference | None,
    chunk_size: int | None,
) -> tuple[MetricSums, Float[Array, "n k"], Bool[Array, " n"]]:
    policy = response_log_probs(model, batch, chunk_size=chunk_size)
    theirs = batch.reference
    if reference is not None:
        other = nnx.merge(reference.graphdef, reference.state)
        theirs = jax.lax.stop_gradient(response_log_probs(other, batch, chunk_size=chunk_size))
    return (
        compute_metric_sums(config, policy, theirs, batch),
        policy,
        non_finite(policy, theirs, batch),
    )


def _sum_over_parts(
    part: Callable[[Batch], tuple[Any, Array]], batches: Batch
) -> tuple[Any, Array]:
    """Add up what ``part`` returns first and stack what it returns second; one part has no loop."""
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    if batches.lengths.shape[0] == 1:
        total, one = part(first)
        return total, one[None]
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, first)[0]
    )

    def advance(total: Any, batch: Batch) -> tuple[Any, Array]:
        more, one = part(batch)
        return jax.tree.map(jnp.add, total, more), one

    return jax.lax.scan(advance, zeros, batches)
