"""Log-probabilities of the responses of preference data under a model, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array

from llm.data.loader import BatchSampler, iterate_batches
from llm.data.packing import PackingMode
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens
from llm.models.logprobs import response_log_probs
from llm.types import Batch


class PairScore(NamedTuple):
    """A row of preference data under a model.

    Attributes:
        row: number of the row in its file, from 0.
        chosen_logp: log-probability of the chosen response, nats, summed over its tokens.
        rejected_logp: of the rejected one.
        chosen_tokens: how many tokens the chosen response has, its end token among them.
        rejected_tokens: how many the rejected one has.
    """

    row: int
    chosen_logp: float
    rejected_logp: float
    chosen_tokens: int
    rejected_tokens: int


def score_pairs(
    model: nnx.Module,
    pairs: Sequence[PairTokens],
    *,
    batch_size: int = 8,
    layout: PackingMode = "shared",
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda batches, total: batches,
) -> list[PairScore]:
    """Measure the responses of preference data.

    Args:
        model: an :class:`llm.models.protocol.LanguageModel`.
        pairs: the data; no two of the same row.
        batch_size: pairs measured at a time.
        layout: how they are packed; no result depends on it.
        progress: given the batches and their number, hands them on, for example with a progress bar.

    Returns:
        A score for each pair, in their order.

    Raises:
        ValueError: a row whose log-probability is not finite, two of one row, or an impossible
            ``batch_size``.

    Examples:
        >>> score_pairs(nnx.Module(), [])
        []
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
    if len({pair.row for pair in pairs}) < len(pairs):
        raise ValueError("`pairs` must be of different rows, got two of the same")
    if not pairs:
        return []
    graphdef, state = nnx.split(model)
    compared = PairTable.from_pairs(pair._replace(baseline=None) for pair in pairs)
    sampler = BatchSampler(compared, layout, min(batch_size, len(pairs)))
    n_batches = sampler.steps_per_epoch
    scores: dict[int, PairScore] = {}
    for _, parts in progress(iterate_batches(sampler, 0, n_batches), n_batches):
        batch = jax.tree.map(lambda leaf: leaf[0], parts)
        log_probs = np.asarray(_log_probs(graphdef, state, batch))
        for index in np.flatnonzero(batch.present):
            row = int(batch.row_ids[index])
            if not np.isfinite(log_probs[index]).all():
                raise ValueError(
                    f"row {row}, counted from 0: the log-probabilities {log_probs[index].tolist()} "
                    "are not finite: the weights are damaged, or their dtype is too narrow"
                )
            counts = batch.lengths[index].tolist()
            scores[row] = PairScore(row, *log_probs[index].tolist(), *counts)
    return [scores[pair.row] for pair in pairs]


@partial(jax.jit, static_argnames=("graphdef",))
def _log_probs(graphdef: nnx.GraphDef, state: Any, batch: Batch) -> Array:
    return response_log_probs(nnx.merge(graphdef, state), batch)
