"""Log-probabilities of the responses of preference data under a model, one score per data row."""

from __future__ import annotations

from collections.abc import Sequence
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
from llm.parallel.mesh import Devices, on_host, single_device
from llm.types import Batch

from .generate import Progress


class PairScore(NamedTuple):
    """Log-probabilities of the two responses of a preference row.

    Attributes:
        row: index of the row in its file, from 0.
        chosen_logp: log-probability of the chosen response, nats, summed over its tokens.
        rejected_logp: log-probability of the rejected response, nats, summed over its tokens.
        chosen_tokens: number of tokens of the chosen response, with its end token.
        rejected_tokens: number of tokens of the rejected response, with its end token.
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
    devices: Devices | None = None,
    progress: Progress = lambda batches, n_batches: batches,
) -> list[PairScore]:
    """Compute the log-probabilities of the chosen and the rejected response of every pair.

    Args:
        model: an :class:`llm.models.protocol.LanguageModel`.
        pairs: tokenized pairs of distinct data rows.
        batch_size: number of pairs in a batch, on all devices together. It is rounded up to a
            multiple of the devices that hold different pairs.
        layout: how pairs are packed into rows; it changes the speed, not the scores.
        devices: mesh that the model is sharded over; None for JAX's default device. On several
            processes all must call this function, with the same pairs.
        progress: function that yields the batches, see :data:`llm.inference.generate.Progress`.

    Returns:
        One score per pair, in the order of the pairs.

    Raises:
        ValueError: if a log-probability is not finite, two pairs are of the same row, or
            ``batch_size`` is less than 1.

    Examples:
        >>> score_pairs(nnx.Module(), [])
        []
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
    if len({pair.row for pair in pairs}) < len(pairs):
        raise ValueError("`pairs` must have distinct rows, got two pairs of the same row")
    if not pairs:
        return []
    devices = single_device() if devices is None else devices
    graphdef, state = devices.split_model(model)
    without_baseline = PairTable.from_pairs(pair._replace(baseline=None) for pair in pairs)
    n_shards = devices.plan.batch_shards
    per_device = devices.rows_of(min(batch_size, len(pairs))) // n_shards
    sampler = BatchSampler(without_baseline, layout, per_device, n_shards)
    n_batches = sampler.steps_per_epoch
    scores: dict[int, PairScore] = {}
    for _, shards in progress(iterate_batches(sampler, 0, n_batches), n_batches):
        on_mesh = log_probs_on_mesh(graphdef, state, devices.put_rows(shards), devices=devices)
        log_probs = np.concatenate(on_host(on_mesh))
        batch = jax.tree.map(lambda leaf: np.concatenate(leaf), _without_tokens(shards))
        present = np.flatnonzero(batch.present)
        damaged = [index for index in present if not np.isfinite(log_probs[index]).all()]
        if damaged:
            index = min(damaged, key=lambda index: batch.row_ids[index])
            raise ValueError(
                f"row {batch.row_ids[index]}, counted from 0: the log-probabilities "
                f"{log_probs[index].tolist()} are not finite: the weights are damaged, or their "
                "dtype is too narrow"
            )
        for index in present:
            row, counts = int(batch.row_ids[index]), batch.lengths[index].tolist()
            scores[row] = PairScore(row, *log_probs[index].tolist(), *counts)
    return [scores[pair.row] for pair in pairs]


@partial(jax.jit, static_argnames=("graphdef", "devices"))
def log_probs_on_mesh(
    graphdef: nnx.GraphDef, state: Any, shards: Batch, *, devices: Devices
) -> Array:
    """Compute the log-probabilities of the responses of a batch on the devices of a mesh.

    Args:
        graphdef: structure of the model with the sharding plan of the mesh.
        state: its parameters, on the mesh.
        shards: pairs of each device, ``[shards, ...]``.
        devices: the mesh.

    Returns:
        Log-probabilities in nats, ``[shards, n, k]``.
    """

    def on_device(state: Any, shared: None, shards: Batch) -> Array:
        del shared
        batch = jax.tree.map(lambda leaf: leaf[0], shards)
        return response_log_probs(nnx.merge(graphdef, state), batch)[None]

    return devices.map_rows(on_device)(state, None, shards)


def _without_tokens(shards: Batch) -> Batch:
    nothing: Any = None
    return shards._replace(rows=nothing, completions=nothing)
