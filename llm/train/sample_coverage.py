r"""Coverage of a policy's own replies by the data, on features of the model that it started from.

The guarantee of RPO asks that the data cover the policy that one would like to find; a policy whose
own replies they do not cover has left what they can speak for. The reward class is that of rewards
linear in fixed features: the mean hidden state of the frozen model over a response, projected at
random to few dimensions, so that some hundreds of pairs show every direction of them.
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
from llm.precision import accumulation_dtype
from llm.types import Batch

from .diagnostics import linear_coverage

DIMENSION = 32
"""Of the projected features."""


class SampleCoverage:
    """The coefficient, for one frozen model, data set and list of prompts."""

    def __init__(
        self,
        frozen: Decoder,
        data: Sequence[PairTokens],
        asked: Sequence[PairTokens],
        *,
        end_ids: Collection[int],
        batch_size: int,
        seed: int,
    ) -> None:
        """Measure the features of the data, once.

        Args:
            frozen: the model whose hidden states are the features.
            data: pairs whose differences are the data's.
            asked: pairs whose prompts the policy answers, and whose baseline responses, or else
                the chosen ones, it is compared with.
            end_ids: tokens that end a reply.
            batch_size: pairs at a time.
            seed: of the projection and the draws.
        """
        self._split = nnx.split(frozen)
        self._asked, self._end_ids, self._size, self._seed = asked, end_ids, batch_size, seed
        width = frozen.architecture.hidden_size
        draw = np.random.default_rng(seed).standard_normal((width, min(DIMENSION, width)))
        self._projection = draw / np.sqrt(width)
        chosen, rejected = self._features(data)
        self._differences = chosen - rejected
        based = [pair._replace(chosen=pair.baseline or pair.chosen) for pair in asked]
        self._baseline = self._features(based)[0]
        self._decoding = GenerationConfig(
            max_new_tokens=max(len(pair.chosen) for pair in asked), temperature=1.0, seed=seed
        )

    def measure(self, policy: Decoder) -> float:
        """Coverage of the policy.

        Args:
            policy: answers each prompt once, from its own law; every time with the same draws.

        Returns:
            The coefficient, see :func:`llm.train.diagnostics.linear_coverage`.
        """
        prompts = [pair.prompt for pair in self._asked]
        replies = generate_tokens(
            policy, prompts, self._decoding, end_ids=self._end_ids, batch_size=self._size
        )
        end = min(self._end_ids)
        answered = [
            pair._replace(chosen=(*reply.tokens, end) if reply.finished else reply.tokens)
            for pair, reply in zip(self._asked, replies, strict=True)
        ]
        samples = self._features(answered)[0]
        return linear_coverage(samples, self._baseline, self._differences)

    def _features(self, pairs: Sequence[PairTokens]) -> tuple[np.ndarray, np.ndarray]:
        """Features of the chosen and of the rejected responses, in the order of the pairs."""
        numbered = [
            pair._replace(baseline=None, reference=None, row=row) for row, pair in enumerate(pairs)
        ]
        order = BatchSampler(numbered, "shared", min(self._size, len(pairs)))
        found = np.empty((len(pairs), 2, self._projection.shape[1]))
        for _, parts in iterate_batches(order, 0, order.steps_per_epoch):
            batch = jax.tree.map(lambda leaf: leaf[0], parts)
            means = np.asarray(_mean_states(*self._split, batch), dtype=np.float64)
            here = np.asarray(batch.present)
            found[np.asarray(batch.row_ids)[here]] = means[here] @ self._projection
        return found[:, 0], found[:, 1]


@partial(jax.jit, static_argnames=("graphdef",))
def _mean_states(graphdef: nnx.GraphDef, state: Any, batch: Batch) -> Float[Array, "n k D"]:
    """Mean over each response of the hidden states from which its tokens are predicted."""
    hidden = nnx.merge(graphdef, state).hidden_states(batch.rows)
    n_pairs, n_roles = batch.lengths.shape
    states = hidden.reshape(-1, hidden.shape[-1])[jnp.asarray(batch.completions.place)]
    # Padding belongs to the response after the last.
    owner = jnp.asarray(batch.completions.response)
    sums = jax.ops.segment_sum(
        states.astype(accumulation_dtype(states.dtype)),
        owner,
        num_segments=n_pairs * n_roles,
    )
    counts = jnp.maximum(jnp.asarray(batch.lengths), 1).reshape(-1, 1).astype(sums.dtype)
    return (sums / counts).reshape(n_pairs, n_roles, -1)
