r"""Coverage of a policy's own replies by the data, on features of the initial model.

RPO's guarantee holds for comparators that the data cover. If a policy's own replies are not
covered, the data say little about their reward. Rewards are taken as linear in fixed features: the
mean hidden state of the initial model over a response, projected at random to few dimensions, so
that some hundreds of pairs span all directions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from llm.data.loader import BatchSampler, iterate_batches
from llm.data.preferences import PairTokens
from llm.inference.generate import GenerationConfig, generate_tokens
from llm.models.decoder import Decoder
from llm.parallel.mesh import Devices, on_host, single_device
from llm.precision import accumulation_dtype
from llm.types import Batch

from .coverage_estimate import CoverageEstimate, estimate_coverage

DIMENSION = 32
"""Dimension of the projected features."""


class SampleCoverage:
    """Coverage measure of policies, for one initial model, data set and list of prompts."""

    def __init__(
        self,
        frozen: Decoder,
        data: Sequence[PairTokens],
        prompts: Sequence[PairTokens],
        *,
        end_ids: Collection[int],
        batch_size: int,
        seed: int,
        devices: Devices | None = None,
    ) -> None:
        """Compute the features of the data.

        Args:
            frozen: the initial model, whose hidden states are the features.
            data: pairs; the features of chosen minus rejected are the directions that are covered.
            prompts: pairs whose prompts the policy answers. Its replies are compared with their
                baseline responses, or with the chosen ones if there is no baseline.
            end_ids: token ids that end a reply.
            batch_size: number of pairs that are processed together.
            seed: seed of the projection, of the sampled replies and of the bootstrap.
            devices: mesh that both models are sharded over; None for JAX's default device. On
                several processes all must create and use the measure together.

        Raises:
            ValueError: if there are fewer than two prompts.
        """
        if len(prompts) < 2:
            raise ValueError(
                f"coverage needs at least 2 held-out prompts, got {len(prompts)}: raise "
                "`trainer.coverage_samples`, or set it to 0"
            )
        self._devices = single_device() if devices is None else devices
        self._split = self._devices.split_model(frozen)
        self._prompts, self._end_ids = prompts, end_ids
        self._batch_size, self._seed = batch_size, seed
        width = frozen.architecture.hidden_size
        draw = np.random.default_rng(seed).standard_normal((width, min(DIMENSION, width)))
        self._projection = draw / np.sqrt(width)
        chosen, rejected = self._features(data)
        self._differences = chosen - rejected
        baselines = [pair._replace(chosen=pair.baseline or pair.chosen) for pair in prompts]
        self._baseline = self._features(baselines)[0]
        self._decoding = GenerationConfig(
            max_new_tokens=max(len(pair.chosen) for pair in prompts), temperature=1.0, seed=seed
        )

    def measure(self, policy: Decoder) -> CoverageEstimate:
        """Measure the coverage of a policy.

        Args:
            policy: the policy. It answers each prompt once, by sampling at temperature 1 with the
                same random numbers at every call.

        Returns:
            The coefficient with an interval over prompts.
        """
        prompts = [pair.prompt for pair in self._prompts]
        replies = generate_tokens(
            policy,
            prompts,
            self._decoding,
            end_ids=self._end_ids,
            batch_size=self._batch_size,
            devices=self._devices,
        )
        end = min(self._end_ids)
        answered = [
            pair._replace(
                chosen=(*reply.tokens, end) if reply.finished else reply.tokens, scored=None
            )
            for pair, reply in zip(self._prompts, replies, strict=True)
        ]
        samples = self._features(answered)[0]
        key = jax.random.key(self._seed)
        return estimate_coverage(samples, self._baseline, self._differences, key)

    def _features(self, pairs: Sequence[PairTokens]) -> tuple[np.ndarray, np.ndarray]:
        """Return features of the chosen and of the rejected responses, in the order of pairs."""
        numbered = [
            pair._replace(baseline=None, reference=None, row=row) for row, pair in enumerate(pairs)
        ]
        devices, n_shards = self._devices, self._devices.plan.batch_shards
        per_device = devices.rows_of(min(self._batch_size, len(pairs))) // n_shards
        sampler = BatchSampler(numbered, "shared", per_device, n_shards)
        features = np.empty((len(pairs), 2, self._projection.shape[1]))
        for _, shards in iterate_batches(sampler, 0, sampler.steps_per_epoch):
            on_mesh = _mean_states(*self._split, devices.put_rows(shards), devices=devices)
            means = on_host(on_mesh).astype(np.float64)
            present = np.asarray(shards.present)
            features[np.asarray(shards.row_ids)[present]] = means[present] @ self._projection
        return features[:, 0], features[:, 1]


@partial(jax.jit, static_argnames=("graphdef", "devices"))
def _mean_states(
    graphdef: nnx.GraphDef, state: Any, shards: Batch, *, devices: Devices
) -> Float[Array, "shards n k D"]:
    """Average, over each response, the hidden states from which its tokens are predicted."""

    def on_device(state: Any, shared: None, shards: Batch) -> Array:
        del shared
        batch = jax.tree.map(lambda leaf: leaf[0], shards)
        hidden = nnx.merge(graphdef, state).hidden_states(batch.rows)
        n_pairs, n_roles = batch.lengths.shape
        states = hidden.reshape(-1, hidden.shape[-1])[jnp.asarray(batch.completions.flat_index)]
        # Padding has the number of responses as its response, which segment_sum drops.
        response = jnp.asarray(batch.completions.response)
        sums = jax.ops.segment_sum(
            states.astype(accumulation_dtype(states.dtype)),
            response,
            num_segments=n_pairs * n_roles,
        )
        counts = jnp.maximum(jnp.asarray(batch.lengths), 1).reshape(-1, 1).astype(sums.dtype)
        return (sums / counts).reshape(1, n_pairs, n_roles, -1)

    return devices.map_rows(on_device)(state, None, shards)
