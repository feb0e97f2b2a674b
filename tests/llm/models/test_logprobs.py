"""Chunked log-probabilities against full logits, their autodiff, and the compiled program."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models import logprobs
from llm.models.logprobs import sequence_log_probs, token_log_probs
from llm.models.protocol import Head
from llm.types import Completions

EXACT = 1e-12  # float64, sums of at most a hundred terms
HALF = 2e-2  # bfloat16 has eight bits, log-probabilities are of order one
ROWS, COLUMNS, WIDTH, VOCABULARY, TOKENS, RESPONSES = 3, 7, 5, 97, 64, 6
SOFT_CAPS: list[Any] = [None, 1.5]  # the cap has an effect: logits are of order two

with_soft_caps = pytest.mark.parametrize("soft_cap", SOFT_CAPS)


def set_chunk_size(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    """Set the number of tokens of a chunk; None leaves the default, which holds all of them."""
    if size is not None:
        monkeypatch.setattr(logprobs, "CHUNK_ENTRIES", size * VOCABULARY)


def draw(seed: int = 0) -> tuple[jax.Array, jax.Array, Completions]:
    """Return hidden states, a head weight, and completions of which some are padding."""
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
    """Loop over tokens, each with all of its logits."""
    flat, totals = np.asarray(hidden).reshape(-1, WIDTH), np.zeros(RESPONSES)
    for index, target, response in zip(*completions, strict=True):
        logits = np.asarray(weight) @ flat[index]
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        if response < RESPONSES:
            totals[response] += logits[target] - np.log(np.sum(np.exp(logits)))
    return totals


def by_full_logits(
    hidden: jax.Array, weight: jax.Array, completions: Completions, soft_cap: float | None
) -> jax.Array:
    """Compute all logits at once, to be differentiated by JAX."""
    logits = hidden.reshape(-1, WIDTH)[completions.flat_index] @ weight.T
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    chosen = jax.nn.log_softmax(logits)[jnp.arange(TOKENS), completions.target]
    is_response = np.arange(RESPONSES)[:, None] == completions.response
    return jnp.asarray(is_response.astype(float)) @ chosen


@with_soft_caps
@pytest.mark.parametrize("chunk_size", [None, 64, 8, 24])
def test_closed_form_sums_of_the_log_softmax(
    chunk_size: int | None, soft_cap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chunk_size(monkeypatch, chunk_size)
    hidden, weight, completions = draw()

    def chunked(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return sequence_log_probs(hidden, Head(weight, soft_cap), completions, RESPONSES)

    got = jax.jit(chunked)(hidden, weight)
    np.testing.assert_allclose(got, by_numpy(hidden, weight, completions, soft_cap), rtol=EXACT)


@with_soft_caps
@pytest.mark.parametrize("chunk_size", [64, 24])
def test_gradient_of_hidden_states_and_head_equals_autodiff_of_full_logits(
    chunk_size: int, soft_cap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chunk_size(monkeypatch, chunk_size)
    hidden, weight, completions = draw()
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=RESPONSES))

    def chunked(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        got = sequence_log_probs(hidden, Head(weight, soft_cap), completions, RESPONSES)
        return jnp.vdot(cotangent, got)

    def full(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.vdot(cotangent, by_full_logits(hidden, weight, completions, soft_cap))

    for got, wanted in zip(
        jax.jit(jax.grad(chunked, (0, 1)))(hidden, weight),
        jax.jit(jax.grad(full, (0, 1)))(hidden, weight),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=EXACT, atol=EXACT)


def test_gradient_of_tied_embeddings_adds_both_uses() -> None:
    _, weight, completions = draw()
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (ROWS, COLUMNS))

    def chunked(weight: jax.Array) -> jax.Array:
        hidden = jnp.tanh(weight[tokens])
        return sequence_log_probs(hidden, Head(weight, None), completions, RESPONSES).sum()

    def full(weight: jax.Array) -> jax.Array:
        return by_full_logits(jnp.tanh(weight[tokens]), weight, completions, None).sum()

    got, wanted = (jax.jit(jax.grad(route))(weight) for route in (chunked, full))
    np.testing.assert_allclose(got, wanted, rtol=EXACT, atol=EXACT)


def buffer_sizes() -> list[int]:
    """Return the number of entries of every array in the compiled gradient."""
    hidden, weight, completions = draw()

    def log_prob_sum(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return sequence_log_probs(hidden, Head(weight, 1.5), completions, RESPONSES).sum()

    text = jax.jit(jax.grad(log_prob_sum, (0, 1))).lower(hidden, weight).compile().as_text()
    shapes = re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", str(text))
    return [int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes]


def test_property_no_array_of_tokens_by_vocabulary_is_in_the_compiled_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_chunk_size(monkeypatch, 8)
    sizes = buffer_sizes()
    assert 8 * VOCABULARY in sizes
    assert max(sizes) == 8 * VOCABULARY
    set_chunk_size(monkeypatch, TOKENS)
    assert max(buffer_sizes()) == TOKENS * VOCABULARY


def test_extreme_padding_that_points_at_nan_reaches_neither_value_nor_gradient() -> None:
    hidden, weight, completions = draw()
    hidden = hidden.at[1, 2].set(jnp.nan)
    poisoned = 1 * COLUMNS + 2
    padding = completions.response == RESPONSES
    index = np.where(completions.flat_index == poisoned, 0, completions.flat_index)
    completions = completions._replace(flat_index=np.where(padding, poisoned, index))

    def log_prob_sum(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return sequence_log_probs(hidden, Head(weight, None), completions, RESPONSES).sum()

    value, gradients = jax.jit(jax.value_and_grad(log_prob_sum, (0, 1)))(hidden, weight)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_extreme_large_logits_stay_finite() -> None:
    features, weight = jnp.array([[1e3], [-1e3]]), jnp.array([[1e2], [-1e2]])
    got = token_log_probs(features, Head(weight, None), jnp.array([0, 0]))
    np.testing.assert_array_equal(got, [0.0, -2e5])


def test_property_bfloat16_states_give_float32_log_probs_and_gradients_of_the_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_chunk_size(monkeypatch, 8)
    hidden, weight, completions = draw()
    narrow, stored = hidden.astype(jnp.bfloat16), weight.astype(jnp.float32)

    def chunked(weight: jax.Array) -> jax.Array:
        return sequence_log_probs(narrow, Head(weight, None), completions, RESPONSES)

    got = jax.jit(chunked)(stored)
    gradient = jax.jit(jax.grad(lambda weight: chunked(weight).sum()))(stored)
    assert got.dtype == gradient.dtype == jnp.float32
    wanted = by_numpy(hidden, weight, completions, None)
    np.testing.assert_allclose(got, wanted, rtol=HALF)
    exact = jax.grad(lambda weight: by_full_logits(hidden, weight, completions, None).sum())
    expected = np.asarray(jax.jit(exact)(weight))
    assert np.linalg.norm(np.asarray(gradient) - expected) <= HALF * np.linalg.norm(expected)


def test_extreme_a_response_without_tokens_has_log_probability_zero() -> None:
    hidden, weight, completions = draw()
    got = sequence_log_probs(hidden, Head(weight, None), completions, RESPONSES + 1)
    head = Head(weight, None)
    absent = completions._replace(response=np.full(TOKENS, RESPONSES, np.int32))
    np.testing.assert_array_equal(sequence_log_probs(hidden, head, absent, RESPONSES), 0.0)
    assert float(got[RESPONSES]) < 0  # the same tokens count as the last response


@with_soft_caps
@pytest.mark.parametrize("counted", [0, 1, 7, 8, 9, 40, 63, 64])
def test_gradient_and_values_are_right_for_any_amount_of_padding(
    counted: int, soft_cap: Any
) -> None:
    hidden, weight, completions = draw()
    response = np.where(np.arange(TOKENS) < counted, completions.response % RESPONSES, RESPONSES)
    completions = completions._replace(response=response.astype(np.int32))
    expected = by_numpy(hidden, weight, completions, soft_cap)

    def chunked(hidden: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        head = Head(weight, soft_cap)
        log_probs = sequence_log_probs(hidden, head, completions, RESPONSES)
        return jnp.sum(jnp.square(log_probs)), log_probs

    def full(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(by_full_logits(hidden, weight, completions, soft_cap)))

    gradients, log_probs = jax.jit(jax.grad(chunked, (0, 1), has_aux=True))(hidden, weight)
    np.testing.assert_allclose(log_probs, expected, rtol=EXACT, atol=EXACT)
    for got, wanted in zip(gradients, jax.grad(full, (0, 1))(hidden, weight), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT * (1 + abs(wanted).max()))
