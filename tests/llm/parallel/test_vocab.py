"""Claims about words that are split over devices: sums over all of them, each device its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from llm.parallel.layout import WORDS
from llm.parallel.vocab import Words

TENSOR, FSDP = 2, 3
RNG = np.random.default_rng(0)


def on_mesh(function: Callable[..., Any], *arguments: np.ndarray) -> Any:
    """A function on devices along ``tensor`` and ``fsdp``, which vmap's named axes stand for."""
    on_all = jax.vmap(jax.vmap(function, axis_name="fsdp"), axis_name="tensor")
    return jax.jit(on_all)(*arguments)


def test_roundtrip_tokens_of_all_devices_are_everyones_and_go_back() -> None:
    words = Words(WORDS)
    own = RNG.normal(size=(TENSOR, FSDP, 4, 2))
    every = np.asarray(on_mesh(words.everyone, own))
    for tensor in range(TENSOR):
        for fsdp in range(FSDP):
            np.testing.assert_array_equal(every[tensor, fsdp], np.concatenate(own[tensor]))
    np.testing.assert_array_equal(on_mesh(words.back, every), own)


def test_closed_form_a_word_is_owned_by_one_device_at_its_place_there() -> None:
    ids = np.broadcast_to(np.arange(12), (TENSOR, FSDP, 12))
    places, mine = map(np.asarray, on_mesh(lambda ids: Words(WORDS).own(ids, 2), ids))
    np.testing.assert_array_equal(mine.sum(axis=(0, 1)), np.ones(12))
    for word in range(12):
        tensor, fsdp, place = word // 6, word // 2 % 3, word % 2
        assert mine[tensor, fsdp, word]
        assert places[tensor, fsdp, word] == place


def test_closed_form_sums_are_over_all_devices_and_logarithms_do_not_overflow() -> None:
    values = RNG.normal(size=(TENSOR, FSDP, 5)) + np.array([0.0, 0.0, 0.0, 800.0, -800.0])
    total = np.asarray(on_mesh(Words(WORDS).total, values))
    np.testing.assert_allclose(total, np.broadcast_to(values.sum(axis=(0, 1)), total.shape))
    found = np.asarray(on_mesh(Words(WORDS).log_total, values))
    expected = np.asarray(logsumexp(values, axis=(0, 1)))
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-14)


def test_closed_form_a_scattered_sum_gives_each_device_its_own_tokens_of_it() -> None:
    values = RNG.normal(size=(TENSOR, FSDP, FSDP * 2, 4))
    found = np.asarray(on_mesh(Words(WORDS).scattered, values))
    total = values.sum(axis=(0, 1)).reshape(FSDP, 2, 4)
    np.testing.assert_allclose(found, np.broadcast_to(total, found.shape), atol=1e-12)


@pytest.mark.parametrize("name", ["everyone", "back", "total", "log_total", "scattered"])
def test_limit_one_device_has_all_words_and_tells_nobody(name: str) -> None:
    values = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(getattr(Words(()), name)(values), values)


def test_limit_one_device_owns_every_word() -> None:
    places, mine = Words(()).own(jnp.array([0, 7]), 8)
    assert (places.tolist(), mine.tolist()) == ([0, 7], [True, True])
