r"""Check of the first step: its loss is known before the first update.

If the policy is still equal to its reference, the preference loss is :math:`\log 2` for DPO, and
another constant or a function of the data for other losses. If another model is the reference, the
loss is the mean of the exact losses of the rows. With another value the run would optimize another
objective, and it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.config import ObjectiveConfig, TrainConfig
from llm.evaluation.metrics import compute_metric_sums, finalize_metrics
from llm.parallel.mesh import on_host
from llm.types import Batch

from .objective import whole_batch_sums
from .reference_cache import ReferenceCache, attach_reference, compute_reference
from .run import Run

STEP0_TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 5e-2}
r"""Largest relative error of the first loss, by the dtype of the model.

On SmolLM2-135M in float32 the compiled forward passes of reference and step differ by under 2e-6.
The rest is a margin for deeper models."""


class FirstStep(NamedTuple):
    """What is known of the first step before it is made.

    Attributes:
        exact: its loss; None if the loss of a policy equal to its reference is known without data.
        metrics: its metrics without dropout; None if the step has no dropout.
    """

    exact: float | None
    metrics: dict[str, float] | None


def measure_first_step(run: Run, batch: Batch) -> FirstStep:
    """Compute what the first step must give, from forward passes without gradients.

    Args:
        run: a run that has made no update.
        batch: batch of the first step with reference log-probabilities, ``[parts, shards, ...]``.

    Returns:
        The exact loss, and the metrics without dropout.
    """
    objective = run.config.objective
    has_other = run.reference_digest is not None
    has_dropout = run.has_dropout
    # The shares of desirable and undesirable rows have their own weights; a ranking of K responses
    # has the loss log K!.
    is_given = has_other or batch.desirable is not None or batch.ranked is not None
    by_rows = is_given and "sum_squares" not in objective.statistics
    depends_on_data = is_given or objective.preference_at_reference is None
    measured = None
    if has_dropout or (depends_on_data and not by_rows):
        measured = _forward(run, batch)
    exact = None
    if by_rows:
        first = run.data.train.select(np.unique(run.sampler.pair_indices(0)))
        computed = compute_reference(run.log_probs, run.batches_in_order(first))
        exact = exact_first_loss(objective, batch, computed)
    elif depends_on_data and measured is not None:
        exact = measured["loss"]
    return FirstStep(exact, measured if has_dropout else None)


def _forward(run: Run, batch: Batch) -> dict[str, float]:
    """Return the metrics of a batch under the current parameters, without dropout."""
    objective = run.config.objective
    sums, log_probs = run.evaluation_step(
        run.state.trainable, run.frozen, run.put_on_devices(batch)
    )
    if objective.needs_global_batch:
        sums = whole_batch_sums(objective, [(batch, on_host(log_probs))])
    means = finalize_metrics(objective, sums)
    return {name: float(on_host(value)) for name, value in means.items()}


def exact_first_loss(config: ObjectiveConfig, batch: Batch, policy: ReferenceCache) -> float:
    r"""Compute the exact loss of a step from the log-probabilities of its rows, in float64.

    It is the mean over rows of :math:`\ell(\log\pi(y|x), \log\pi_{ref}(y|x))`, plus the SFT term.

    Args:
        config: the objective.
        batch: batch of the step with its ``reference`` attached, ``[parts, shards, ...]``.
        policy: log-probabilities of the rows under the policy.

    Returns:
        The loss.

    Raises:
        ValueError: if a row of the batch is not in ``policy``.

    Examples:
        >>> rows, present = np.zeros((1, 1, 1), int), np.ones((1, 1, 1), bool)
        >>> lengths, reference = np.ones((1, 1, 1, 2), int), np.zeros((1, 1, 1, 2))
        >>> batch = Batch(None, None, lengths, present, rows, reference)
        >>> policy = ReferenceCache(np.array([0]), np.array([[-1.0, -1.0]]))
        >>> round(exact_first_loss(ObjectiveConfig(method="dpo"), batch, policy), 4)
        0.6931
    """
    no_tokens: Any = None  # the tokens have been scored already
    pairs = batch._replace(rows=no_tokens, completions=no_tokens)
    pairs = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[3:]), pairs)
    log_probs = attach_reference(pairs, policy).reference
    with jax.enable_x64(True):
        wide, reference = (jnp.asarray(each, jnp.float64) for each in (log_probs, pairs.reference))
        sums = compute_metric_sums(config, wide, reference, pairs)
        return float(finalize_metrics(config, sums)["loss"])


def check_first_loss(
    config: TrainConfig, metrics: Mapping[str, float], exact: float | None = None
) -> None:
    r"""Raise an error if the first loss is not the exact one.

    Args:
        config: configuration of the run.
        metrics: metrics of the first step, without dropout.
        exact: the loss, from :func:`measure_first_step`; None for that of a policy equal to its
            reference. If that depends on data, nothing is checked.

    Raises:
        ValueError: if the relative error exceeds the tolerance of the dtype.
    """
    objective, of_policy = config.objective, "that of policy and reference on these rows"
    if exact is None:
        if objective.preference_at_reference is None:
            return
        exact = objective.preference_at_reference + objective.sft_weight * metrics["loss/sft"]
        of_policy = "that of a policy equal to its reference"
    tolerance = first_step_tolerance(config)
    error = abs(metrics["loss"] - exact)
    if not error <= tolerance * max(1.0, abs(exact)):
        raise ValueError(
            f"the first loss must be {exact:.6f}, {of_policy}, got "
            f"{metrics['loss']:.6f}, {error:.1e} off (`trainer.step0_tolerance` is {tolerance:g}): "
            "the reference log-probabilities are not those of this model on these rows"
        )


def first_step_tolerance(config: TrainConfig) -> float:
    """Return the largest relative error of the first loss.

    Args:
        config: configuration of the run.

    Returns:
        ``trainer.step0_tolerance``, or :data:`STEP0_TOLERANCE` of the dtype.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig
        >>> model, data = ModelConfig(path="policy"), DataConfig(train="rows.jsonl")
        >>> first_step_tolerance(TrainConfig(name="run", model=model, data=data))
        0.0002
    """
    return config.trainer.step0_tolerance or STEP0_TOLERANCE[config.model.dtype]
