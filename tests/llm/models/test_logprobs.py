"""Chunked log-probabilities: full logits in NumPy, autodiff of them, and the compiled program."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.logprobs import sequence_log_probs, token_log_probs
from llm.models.protocol import Head
from llm.types import Completions

EXACT = 1e-12  # float64, sums of at most a hundred terms
HALF = 2e-2  # bfloat16 has eight bits, log-probabilities are of order one
ROWS, COLUMNS, WIDTH, VOCABULARY, TOKENS, RESPONSES = 3, 7, 5, 97, 64, 6
SOFT_CAPS: list[Any] = [None, 1.5]  # the cap is felt: logits are of order two

with_soft_caps = pytest.mark.parametrize("soft_cap", SOFT_CAPS)


def drawn(seed: int = 0) -> tuple[jax.Array, jax.Array, Completions]:
    """Hidden states, head weight, and completions of which some are padding."""
    rng = np.random.default_rng(seed)
    response = rng.integers(0, RESPONSES, TOKENS)
    response[-9:] = RESPONSES
    completions = Completions(
        flat_index=rng.integers(0, ROWS * COLUMNS, TOKENS).astype(np.int32),
        target=rng.integers(0, VOCABULARY, TOKENS).astype(np.int32),
        response=response.astype(np.int32),
    )
    hidden = jnp.asarray(rng.normal(size=(ROWS, COLUMNS, WIDTH)))
    return hidden, jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH))), completions


def by_numpy(
    hidden: Any, weight: Any, completions: Completions, soft_cap: float | None
) -> np.ndarray:
    """A loop over tokens, each with its whole row of logits."""
    flat, totals = np.asarray(hidden).reshape(-1, WIDTH), np.zeros(RESPONSES)
    for place, target, response in zip(*completions, strict=True):
        logits = np.asarray(weight) @ flat[place]
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        if response < RESPONSES:
            totals[response] += logits[target] - np.log(np.sum(np.exp(logits)))
    return totals


def by_full_logits(
    hidden: jax.Array, weight: jax.Array, completions: Completions, soft_cap: float | None
) -> jax.Array:
    """All logits at once, to be differentiated by JAX."""
    logits = hidden.reshape(-1, WIDTH)[completions.flat_index] @ weight.T
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    chosen = jax.nn.log_softmax(logits)[jnp.arange(TOKENS), completions.target]
    owner = np.arange(RESPONSES)[:, None] == completions.response
    return jnp.asarray(owner.astype(float)) @ chosen


@with_soft_caps
@pytest.mark.parametrize("chunk_size", [None, 64, 8, 24])
def test_closed_form_sums_of_the_log_softmax(chunk_size: int | None, soft_cap: Any) -> None:
    hidden, weight, completions = drawn()

    def chunked(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        head = Head(weight, soft_cap)
        return sequence_log_probs(hidden, head, completions, RESPONSES, chunk_size=chunk_size)

    got = jax.jit(chunked)(hidden, weight)
    np.testing.assert_allclose(got, by_numpy(hidden, weight, completions, soft_cap), rtol=EXACT)


@with_soft_caps
@pytest.mark.parametrize("chunk_size", [64, 24])
def test_gradient_of_hidden_states_and_head_equals_autodiff_of_full_logits(
    chunk_size: int, soft_cap: Any
) -> None:
    hidden, weight, completions = drawn()
    slope = jnp.asarray(np.random.default_rng(1).normal(size=RESPONSES))

    def chunked(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        head = Head(weight, soft_cap)
        got = sequence_log_probs(hidden, head, completions, RESPONSES, chunk_size=chunk_size)
        return jnp.vdot(slope, got)

    def full(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.vdot(slope, by_full_logits(hidden, weight, completions, soft_cap))

    for got, wanted in zip(
        jax.jit(jax.grad(chunked, (0, 1)))(hidden, weight),
        jax.jit(jax.grad(full, (0, 1)))(hidden, weight),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=EXACT, atol=EXACT)


def test_gradient_of_tied_embeddings_adds_both_uses() -> None:
    _, weight, completions = drawn()
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (ROWS, COLUMNS))

    def chunked(weight: jax.Array) -> jax.Array:
        hidden = jnp.tanh(weight[tokens])
        return sequence_log_probs(hidden, Head(weight, None), completions, RESPONSES).sum()

    def full(weight: jax.Array) -> jax.Array:
        return by_full_logits(jnp.tanh(weight[tokens]), weight, completions, None).sum()

    got, wanted = (jax.jit(jax.grad(route))(weight) for route in (chunked, full))
    np.testing.assert_allclose(got, wanted, rtol=EXACT, atol=EXACT)


def buffer_sizes(chunk_size: int) -> list[int]:
    """Entries of every array in the compiled gradient."""
    hidden, weight, completions = drawn()

    def total(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        head = Head(weight, 1.5)
        return sequence_log_probs(hidden, head, completions, RESPONSES, chunk_size=chunk_size).sum()

    text = jax.jit(jax.grad(total, (0, 1))).lower(hidden, weight).compile().as_text()
    shapes = re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", str(text))
    return [int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes]


def test_property_no_array_of_tokens_by_vocabulary_is_in_the_compiled_gradient() -> None:
    sizes = buffer_sizes(chunk_size=8)
    assert 8 * VOCABULARY in sizes
    assert max(sizes) == 8 * VOCABULARY
    assert max(buffer_sizes(chunk_size=TOKENS)) == TOKENS * VOCABULARY


def test_extreme_padding_that_points_at_nan_reaches_neither_value_nor_gradient() -> None:
    hidden, weight, completions = drawn()
    hidden = hidden.at[1, 2].set(jnp.nan)
    poisoned = 1 * COLUMNS + 2
    padding = completions.response == RESPONSES
    index = np.where(completions.flat_index == poisoned, 0, completions.flat_index)
    completions = completions._replace(flat_index=np.where(padding, poisoned, index))

    def total(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return sequence_log_probs(hidden, Head(weight, None), completions, RESPONSES).sum()

    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, weight)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_extreme_large_logits_stay_finite() -> None:
    features, weight = jnp.array([[1e3], [-1e3]]), jnp.array([[1e2], [-1e2]])
    got = token_log_probs(features, Head(weight, None), jnp.array([0, 0]))
    np.testing.assert_array_equal(got, [0.0, -2e5])


def test_property_bfloat16_states_give_float32_log_probs_and_gradients_of_the_weight() -> None:
    hidden, weight, completions = drawn()
    narrow, stored = hidden.astype(jnp.bfloat16), weight.astype(jnp.float32)

    def chunked(weight: jax.Array) -> jax.Array:
        return sequence_log_probs(narrow, Head(weight, None), completions, RESPONSES, chunk_size=8)

    got = jax.jit(chunked)(stored)
    slope = jax.jit(jax.grad(lambda weight: chunked(weight).sum()))(stored)
    assert got.dtype == slope.dtype == jnp.float32
    wanted = by_numpy(hidden, weight, completions, None)
    np.testing.assert_allclose(got, wanted, rtol=HALF)
    whole = jax.grad(lambda weight: by_full_logits(hidden, weight, completions, None).sum())
    full = jax.jit(whole)(weight)
    assert np.linalg.norm(np.asarray(slope) - np.asarray(full)) <= HALF * np.linalg.norm(full)


def test_extreme_a_response_without_tokens_has_log_probability_zero() -> None:
    hidden, weight, completions = drawn()
    got = sequence_log_probs(hidden, Head(weight, None), completions, RESPONSES + 1)
    head = Head(weight, None)
    absent = completions._replace(response=np.full(TOKENS, RESPONSES, np.int32))
    np.testing.assert_array_equal(sequence_log_probs(hidden, head, absent, RESPONSES), 0.0)
    assert float(got[RESPONSES]) < 0  # as the last response, the same tokens do count


def test_raises_for_a_chunk_without_tokens() -> None:
    hidden, weight, _ = drawn()
    with pytest.raises(ValueError, match=r"`chunk_size` must be 1 or more, got 0"):
        token_log_probs(hidden[0], Head(weight, None), jnp.zeros(COLUMNS, int), chunk_size=0)


@with_soft_caps
@pytest.mark.parametrize("counted", [0, 1, 7, 8, 9, 40, 63, 64])
def test_gradient_and_values_are_right_however_many_tokens_are_padding(
    counted: int, soft_cap: Any
) -> None:
    hidden, weight, completions = drawn()
    response = np.where(np.arange(TOKENS) < counted, completions.response % RESPONSES, RESPONSES)
    completions = completions._replace(response=response.astype(np.int32))
    expected = by_numpy(hidden, weight, completions, soft_cap)

    def total(hidden: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        head = Head(weight, soft_cap)
        log_probs = sequence_log_probs(hidden, head, completions, RESPONSES)
        return jnp.sum(jnp.square(log_probs)), log_probs

    def plain(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(by_full_logits(hidden, weight, completions, soft_cap)))

    slopes, found = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(hidden, weight)
    np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT)
    for one, other in zip(slopes, jax.grad(plain, argnums=(0, 1))(hidden, weight), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=EXACT * (1 + abs(other).max()))
