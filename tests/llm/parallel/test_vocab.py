"""Collectives of a vocabulary that is split over devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from llm.parallel.layout import VOCAB_AXES
from llm.parallel.vocab import VocabParallel

TENSOR, FSDP = 2, 3
RNG = np.random.default_rng(0)
VOCAB = VocabParallel(VOCAB_AXES)
SINGLE = VocabParallel(())


def on_mesh(function: Callable[..., Any], *arguments: np.ndarray) -> Any:
    """Run a function over ``tensor`` and ``fsdp``, which are named axes of ``vmap`` here."""
    on_all = jax.vmap(jax.vmap(function, axis_name="fsdp"), axis_name="tensor")
    return jax.jit(on_all)(*arguments)


def test_roundtrip_tokens_are_gathered_from_all_devices_and_sliced() -> None:
    local = RNG.normal(size=(TENSOR, FSDP, 4, 2))
    gathered = np.asarray(on_mesh(VOCAB.all_gather_tokens, local))
    for tensor in range(TENSOR):
        for fsdp in range(FSDP):
            np.testing.assert_array_equal(gathered[tensor, fsdp], np.concatenate(local[tensor]))
    np.testing.assert_array_equal(on_mesh(VOCAB.take_local_tokens, gathered), local)


def test_closed_form_each_id_belongs_to_one_shard_and_has_its_index_there() -> None:
    ids = np.broadcast_to(np.arange(12), (TENSOR, FSDP, 12))
    index, is_local = map(np.asarray, on_mesh(lambda ids: VOCAB.local_index(ids, 2), ids))
    np.testing.assert_array_equal(is_local.sum(axis=(0, 1)), np.ones(12))
    for token in range(12):
        tensor, fsdp, expected = token // 6, token // 2 % 3, token % 2
        assert is_local[tensor, fsdp, token]
        assert index[tensor, fsdp, token] == expected


def test_closed_form_sums_are_over_all_shards_and_logarithms_do_not_overflow() -> None:
    values = RNG.normal(size=(TENSOR, FSDP, 5)) + np.array([0.0, 0.0, 0.0, 800.0, -800.0])
    sums = np.asarray(on_mesh(VOCAB.reduce_sum, values))
    np.testing.assert_allclose(sums, np.broadcast_to(values.sum(axis=(0, 1)), sums.shape))
    logs = np.asarray(on_mesh(VOCAB.reduce_logsumexp, values))
    expected = np.asarray(logsumexp(values, axis=(0, 1)))
    np.testing.assert_allclose(logs, np.broadcast_to(expected, logs.shape), rtol=1e-14)


def test_closed_form_a_scattered_sum_gives_each_device_its_tokens() -> None:
    values = RNG.normal(size=(TENSOR, FSDP, FSDP * 2, 4))
    scattered = np.asarray(on_mesh(VOCAB.reduce_scatter_tokens, values))
    expected = values.sum(axis=(0, 1)).reshape(FSDP, 2, 4)
    np.testing.assert_allclose(scattered, np.broadcast_to(expected, scattered.shape), atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "all_gather_tokens",
        "take_local_tokens",
        "reduce_sum",
        "reduce_logsumexp",
        "reduce_scatter_tokens",
    ],
)
def test_limit_the_collectives_of_an_unsplit_vocabulary_are_identities(name: str) -> None:
    values = jnp.array([1.0, -2.0])
    assert getattr(SINGLE, name)(values) is values


def test_limit_every_id_of_an_unsplit_vocabulary_is_local() -> None:
    index, is_local = SINGLE.local_index(jnp.array([0, 7]), 8)
    assert (index.tolist(), is_local.tolist()) == ([0, 7], [True, True])


def test_closed_form_gathered_logits_are_those_of_the_tokens_of_each_device() -> None:
    rows, entries = 2, 3
    whole = RNG.normal(size=(FSDP, rows, TENSOR * FSDP * entries))
    shards = whole.reshape(FSDP * rows, TENSOR, FSDP, entries).transpose(1, 2, 0, 3)
    gathered = np.asarray(on_mesh(VOCAB.gather_vocabulary, shards))
    np.testing.assert_array_equal(gathered, np.broadcast_to(whole, gathered.shape))
    assert SINGLE.gather_vocabulary(jnp.ones(2)).tolist() == [1.0, 1.0]
