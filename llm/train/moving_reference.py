r"""A reference that follows the policy: refreshed every few steps, or an exponential average.

.. math:: \theta_{ref} \leftarrow \gamma\,\theta_{ref} + (1-\gamma)\,\theta

This happens every ``model.reference_refresh_steps`` steps with :math:`\gamma` =
``model.reference_decay``. At 0 the reference becomes the current policy. The weights of the
reference are part of the state of a run. Until the first refresh the log-probabilities are those of
the cache, as for a fixed reference.

References:
    `gorbatovski:24` (TR-DPO): its hard update has a decay of 0, its soft update one of
    :math:`1-\alpha`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm.models.lora import adapted_paths, merge_lora
from llm.parallel.layout import SINGLE_DEVICE
from llm.parallel.mesh import on_host
from llm.precision import accumulation_dtype
from llm.types import Batch

from . import reference_cache
from .step import GraphDef, Parameters

if TYPE_CHECKING:
    from .run import Run


class ReferenceWeights(NamedTuple):
    """Parameters in which a moving reference differs from the policy.

    Attributes:
        trainable: values of the trained parameters. An average has adapters that are 0.
        merged: values of the frozen weights into which the adapters are merged; empty without an
            average, because the product of two averages is not the average of the products.
    """

    trainable: Parameters
    merged: Parameters


def policy_as_reference(
    graphdef: GraphDef, trainable: Parameters, frozen: Parameters, *, decay: float
) -> ReferenceWeights:
    """Return the weights of a reference that is the current policy.

    Args:
        graphdef: structure of the model.
        trainable: trained parameters.
        frozen: other parameters.
        decay: share of the old reference that stays at a refresh; 0 for copies of the trained
            parameters, in their dtype. An average is in float32 at least.

    Returns:
        New arrays, so that a step may reuse the buffers of ``trainable``.
    """
    if not decay:
        return ReferenceWeights(jax.tree.map(jnp.copy, trainable), nnx.State({}))
    adapters, whole = nnx.split_state(_widen(trainable), nnx.LoRAParam, ...)
    model = nnx.merge(graphdef, _widen(trainable), _widen(frozen))
    model.sharding_plan = SINGLE_DEVICE
    paths = adapted_paths(model)
    merged = nnx.filter_state(nnx.state(merge_lora(model)), lambda path, _: path in paths)
    zeros = jax.tree.map(jnp.zeros_like, adapters)
    whole = jax.tree.map(jnp.copy, whole)
    return ReferenceWeights(nnx.merge_state(zeros, whole), merged)


def average_reference(
    old: ReferenceWeights, new: ReferenceWeights, decay: float
) -> ReferenceWeights:
    r"""Return :math:`\gamma` times the old reference plus :math:`1-\gamma` times the policy.

    Args:
        old: weights of the reference.
        new: weights of the policy, from :func:`policy_as_reference`.
        decay: the factor :math:`\gamma`; at 0 the result is ``new``.

    Returns:
        The weights of the next reference.

    Examples:
        >>> old, new = (ReferenceWeights(jnp.array(value), {}) for value in (4.0, 8.0))
        >>> float(average_reference(old, new, 0.75).trainable)
        5.0
    """
    if not decay:
        return new
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, old, new)


def _widen(tree: Parameters) -> Parameters:
    return jax.tree.map(lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)), tree)


class ReferenceLogProbs:
    """Log-probabilities of the reference of a run: from a cache, or once it moves from its weights.

    Attributes:
        has_moved: whether the reference is no longer the one of the cache.
    """

    has_moved: bool

    def __init__(
        self, run: Run, cache: reference_cache.ReferenceCache | None, first_step: int
    ) -> None:
        """Begin at a step.

        Args:
            run: the run, whose state holds the weights of a moving reference.
            cache: log-probabilities of the first reference; None if the objective needs none.
            first_step: number of updates made so far.
        """
        self._run, self._cache = run, cache
        self._interval = run.config.model.reference_refresh_steps
        # A refresh comes before the next step, after the evaluation of the last one.
        self.has_moved = self._interval is not None and first_step > self._interval

    def before_step(self, step: int) -> None:
        """Refresh the reference if it is time.

        Args:
            step: number of updates made so far.
        """
        if self._interval is not None and step > 0 and step % self._interval == 0:
            self._run.refresh_reference()
            self.has_moved = True

    def attach(self, batch: Batch) -> Batch:
        """Attach the log-probabilities of the current reference to a batch.

        Args:
            batch: a batch, ``[parts, shards, ...]``.

        Returns:
            The batch with ``reference`` filled in; 0 for absent pairs, None without a reference.
        """
        if self._cache is None:
            return batch
        if not self.has_moved:
            return reference_cache.attach_reference(batch, self._cache)
        weights: Any = self._run.state.reference
        frozen = nnx.merge_state(self._run.frozen, weights.merged)
        values = on_host(self._run.log_probs_under(weights.trainable, frozen, batch))
        return batch._replace(reference=np.where(np.asarray(batch.present)[..., None], values, 0))
