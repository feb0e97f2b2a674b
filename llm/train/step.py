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
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from llm.config import ObjectiveConfig, ObjectiveConstants
from llm.evaluation.metrics import MetricSums, compute_metric_sums, finalize_metrics
from llm.models.lora import has_dropout, start_dropout
from llm.models.token_statistics import ResponseStatistics, response_statistics
from llm.parallel.mesh import Devices
from llm.precision import accumulation_dtype
from llm.types import Batch
from rpo_theory.reductions import WeightedSum

from .objective import flag_non_finite_pairs, loss_share, normalizers
from .objective_schedule import ConstantsSchedule
from .stochastic_rounding import apply_optimizer

DROPOUT_STREAM = 2**31 - 1
"""Number that separates the keys of dropout from those of stochastic rounding."""
ROUTER_LOSS = "aux_loss"
"""Metric of the router's auxiliary loss of a mixture of experts, named as in TRL."""
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
        reference: weights of a reference that follows the policy; a step leaves them as they are.
            None for a fixed reference.
    """

    step: Int[Array, ""]
    trainable: Parameters
    optimizer_state: optax.OptState
    reference: Parameters | None = None


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
    constants: ObjectiveConstants | None = None,
    dropout_key: PRNGKeyArray | None = None,
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
        constants: constants of the step; None for those of the configuration.
        dropout_key: key of the dropout of adapters in this step; each part and each shard has masks
            of its own. None for no dropout.

    Returns:
        The gradient, in the dtypes of the parameters, and the measurements.
    """
    divisors = normalizers(config, batches)
    n_parts = batches.lengths.shape[0]

    def on_device(
        trainable: Parameters, fixed: tuple[Parameters, Array | None], batches: Batch
    ) -> tuple[tuple[Parameters, MetricSums], Array]:
        frozen, shard_key = fixed
        if shard_key is not None:
            shard_key = jax.random.fold_in(shard_key, devices.shard_index())

        def loss(
            trainable: Parameters, batch: Batch, key: Array | None
        ) -> tuple[Array, tuple[MetricSums, Array]]:
            model = nnx.merge(graphdef, trainable, frozen)
            if key is not None:
                start_dropout(model, key)
            sums, _, flags = _measure(model, batch, config, constants, devices)
            share = loss_share(config, sums, divisors, constants)
            return share + _router_share(model, sums, n_parts), (sums, flags)

        def part(batch: Batch, index: Array) -> tuple[tuple[Any, MetricSums], Array]:
            key = None if shard_key is None else jax.random.fold_in(shard_key, index)
            gradient, (sums, flags) = jax.grad(loss, has_aux=True)(trainable, batch, key)
            return (_widen(gradient), sums), flags

        return _sum_over_parts(part, batches)

    def on_device_with_global_batch(
        trainable: Parameters, fixed: tuple[Parameters, Array | None], batches: Batch
    ) -> tuple[tuple[Parameters, MetricSums], Array]:
        frozen, shard_key = fixed
        if shard_key is not None:
            shard_key = jax.random.fold_in(shard_key, devices.shard_index())

        def statistics(trainable: Parameters, batch: Batch, index: Array) -> ResponseStatistics:
            model = nnx.merge(graphdef, trainable, frozen)
            if shard_key is not None:
                start_dropout(model, jax.random.fold_in(shard_key, index))
            return response_statistics(model, batch, config)

        def loss(trainable: Parameters) -> tuple[Array, tuple[MetricSums, Array]]:
            # The backward pass computes one part at a time again, as accumulation does.
            part = jax.checkpoint(statistics)
            policy, squares, router_losses = jax.lax.map(
                lambda each: part(trainable, *each), (batches, jnp.arange(n_parts))
            )
            whole = _without_tokens(batches)
            flags = jax.vmap(flag_non_finite_pairs)(policy, whole.reference, whole)
            policy, squares, whole = devices.plan.gather_pairs((policy, squares, whole))
            sums = compute_metric_sums(
                config, policy, whole.reference, whole, constants=constants, log_sum_squares=squares
            )
            # Every shard has the whole batch; the sums over shards must count it once.
            sums = jax.tree.map(lambda leaf: leaf / devices.plan.batch_shards, sums)
            sums |= _router_sums(router_losses, devices)
            share = loss_share(config, sums, divisors, constants)
            model = nnx.merge(graphdef, trainable, frozen)
            return share + _router_share(model, sums, n_parts), (sums, flags)

        gradient, (sums, flags) = jax.grad(loss, has_aux=True)(trainable)
        return (_widen(gradient), sums), flags

    if config.needs_global_batch:
        on_device = on_device_with_global_batch
    fixed = frozen, dropout_key
    (gradient, sums), flags = devices.map_gradients(on_device)(trainable, fixed, batches)
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)]
    measured = finalize_metrics(config, sums, constants) | {"grad_norm": jnp.sqrt(sum(squares))}
    narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), gradient, trainable)
    return narrow, StepResult(measured, flags)


def make_train_step(
    graphdef: GraphDef,
    config: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    *,
    devices: Devices,
    seed: int = 0,
    schedule: ConstantsSchedule | None = None,
) -> TrainStep:
    """Make the jitted function of a training step; it reuses the buffers of the state.

    Args:
        graphdef: structure of the model.
        config: the objective.
        optimizer: optax transformation that made the state.
        devices: see :func:`gradients`.
        seed: seed of the stochastic rounding of bfloat16 parameters and of the dropout of adapters;
            the keys of a step depend on it and on the number of the step alone.
        schedule: constants of the objective by step; None for those of the configuration. Their
            values are metrics of the step.

    Returns:
        ``step(state, frozen, batches) -> (TrainState, StepResult)``; the state that is passed in
        must not be used again. Put the first state on the mesh with ``devices.put``; otherwise the
        second step is compiled again, for the shardings of the state that the first step returned.
    """

    def step(
        state: TrainState, frozen: Parameters, batches: Batch
    ) -> tuple[TrainState, StepResult]:
        trainable = state.trainable
        constants = None if schedule is None else schedule(state.step)
        dropout_key = None
        if has_dropout(nnx.merge(graphdef, trainable, frozen)):
            stream = jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM)
            dropout_key = jax.random.fold_in(stream, state.step)
        gradient, result = gradients(
            graphdef,
            trainable,
            frozen,
            batches,
            config,
            devices=devices,
            constants=constants,
            dropout_key=dropout_key,
        )
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trainable, optimizer_state, metrics = apply_optimizer(
            optimizer, gradient, state.optimizer_state, trainable, key
        )
        if constants is not None:
            metrics |= {
                "objective/beta": jnp.asarray(constants.beta),
                "objective/eta": jnp.asarray(constants.eta),
            }
        result = result._replace(metrics=result.metrics | metrics)
        state = TrainState(state.step + 1, trainable, optimizer_state, state.reference)
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
        ``evaluate(trainable, frozen, batches, constants=None) -> (MetricSums, log_probs)``, where
        ``log_probs`` are those of the responses in nats, ``[parts shards n k]``. Add the sums of
        all batches with :func:`llm.evaluation.metrics.add_metric_sums`, then divide them with
        :func:`llm.evaluation.metrics.finalize_metrics`.
    """

    def evaluate(
        trainable: Parameters,
        frozen: Parameters,
        batches: Batch,
        constants: ObjectiveConstants | None = None,
    ) -> tuple[MetricSums, Array]:
        def on_device(
            trainable: Parameters, frozen: Parameters, batches: Batch
        ) -> tuple[MetricSums, Array]:
            model = nnx.merge(graphdef, trainable, frozen)

            def part(batch: Batch, _: Array) -> tuple[MetricSums, Array]:
                sums, policy, _ = _measure(model, batch, config, constants, devices)
                return sums, policy

            return _sum_over_parts(part, batches)

        return devices.map_metrics(on_device)(trainable, frozen, batches)

    return jax.jit(evaluate)


def _measure(
    model: Any,
    batch: Batch,
    config: ObjectiveConfig,
    constants: ObjectiveConstants | None,
    devices: Devices,
) -> tuple[MetricSums, Float[Array, "n k"], Bool[Array, " n"]]:
    """Return sums of metrics, log-probabilities, and flags of non-finite pairs."""
    policy, squares, router_loss = response_statistics(model, batch, config)
    sums = compute_metric_sums(
        config, policy, batch.reference, batch, constants=constants, log_sum_squares=squares
    )
    flags = flag_non_finite_pairs(policy, batch.reference, batch)
    return sums | _router_sums(router_loss, devices), policy, flags


def _router_sums(losses: Float[Array, "*parts"] | None, devices: Devices) -> MetricSums:
    """Return a device's share of the router's loss, whose mean is that over the parts."""
    if losses is None:
        return {}
    weight = jnp.asarray(losses.size / devices.plan.batch_shards, losses.dtype)
    return {ROUTER_LOSS: WeightedSum(jnp.sum(losses), weight)}


def _router_share(model: Any, sums: MetricSums, n_parts: int) -> Array | float:
    """Return what the router's loss adds to the share of the objective."""
    if ROUTER_LOSS not in sums:
        return 0.0
    return model.architecture.router_aux_loss_coef * sums[ROUTER_LOSS].sum / n_parts


def _widen(gradient: Parameters) -> Parameters:
    """Return a gradient in the dtypes in which it is accumulated."""
    return jax.tree.map(lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)), gradient)


def _without_tokens(batches: Batch) -> Batch:
    """Return a batch with what losses of log-probabilities need."""
    nothing: Any = None
    return batches._replace(rows=nothing, completions=nothing)


def _sum_over_parts(
    part: Callable[[Batch, Array], tuple[Any, Array]], batches: Batch
) -> tuple[Any, Array]:
    """Sum the first result of ``part`` over the parts, and stack its second result."""
    first = jax.tree.map(lambda leaf: leaf[0], batches), jnp.zeros((), jnp.int32)
    n_parts = batches.lengths.shape[0]
    if n_parts == 1:  # without a loop, which would copy the sums
        sums, per_pair = part(*first)
        return sums, per_pair[None]
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, *first)[0]
    )

    def accumulate(sums: Any, batch: tuple[Batch, Array]) -> tuple[Any, Array]:
        added, per_pair = part(*batch)
        return jax.tree.map(jnp.add, sums, added), per_pair

    return jax.lax.scan(accumulate, zeros, (batches, jnp.arange(n_parts)))
