"""Dense attention, masks and rotary embedding against sums over single tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.attention.dispatch import attend, attend_cached, visible
from llm.models.architecture import Architecture
from llm.models.rope import RopeAngles, apply_rope, rope_angles
from llm.types import Rows

ROUNDING = 1e-12  # sums of tens of terms of order 1 in float64
HEADS, GROUPS, SIZE = 4, 2, 6
# Two pairs with shared prompts, then padding: prompt, chosen, rejected, prompt, chosen, rejected.
SEGMENTS = np.array([[1] * 7 + [2] * 6 + [0] * 2])
BRANCHES = np.array([[0, 0, 0, 1, 1, 2, 2, 0, 0, 1, 2, 2, 2, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 2, 3, 4, 0, 0]])
ROWS = Rows(np.zeros_like(SEGMENTS), POSITIONS, SEGMENTS, BRANCHES)
branch_rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=8, max_size=8)


def test_closed_form_shared_prompts_and_two_pairs() -> None:
    seen = np.asarray(visible(ROWS))[0]
    expected = {
        4: {0, 1, 2, 3, 4},  # chosen attends to prompt and chosen
        6: {0, 1, 2, 5, 6},  # rejected does not attend to chosen
        12: {7, 8, 10, 11, 12},  # the second pair does not attend to the first
    }
    for token, attended in expected.items():
        assert set(np.flatnonzero(seen[token])) == attended


def test_closed_form_windows_use_positions_not_columns() -> None:
    seen = np.asarray(visible(ROWS, window=3))[0]
    assert set(np.flatnonzero(seen[6])) == {2, 5, 6}
    assert set(np.flatnonzero(seen[5])) == {1, 2, 5}


@settings(max_examples=30, deadline=None)
@given(branch_rows)
def test_property_the_mask_is_the_definition(
    tokens: list[tuple[int, int]],
) -> None:
    segments, branches = (np.array([column]) for column in zip(*tokens, strict=True))
    zeros = np.zeros_like(segments)
    seen = np.asarray(visible(Rows(zeros, zeros, segments, branches)))[0]
    for i, (segment, branch) in enumerate(tokens):
        for j, (key_segment, key_branch) in enumerate(tokens):
            expected = j <= i and segment == key_segment and key_branch in (0, branch)
            assert seen[i, j] == expected


@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (2, None), (None, 1.5)])
def test_closed_form_softmax_over_the_tokens_of_the_mask(
    window: int | None, soft_cap: float | None
) -> None:
    q, k, v = map(np.asarray, inputs := _draw(SEGMENTS.shape[1]))
    options: dict[str, Any] = {"window": window, "soft_cap": soft_cap, "scale": 0.7}
    mixed = attend(*inputs, ROWS, **options)
    seen = np.asarray(visible(ROWS, window=window))
    for token in range(q.shape[1]):
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            attended = np.flatnonzero(seen[0, token])
            logits = 0.7 * k[0, attended, group] @ q[0, token, head]
            if soft_cap:
                logits = soft_cap * np.tanh(logits / soft_cap)
            weights = np.exp(logits) / np.exp(logits).sum()
            expected = weights @ v[0, attended, group]
            np.testing.assert_allclose(mixed[0, token, head], expected, rtol=0, atol=ROUNDING)


def test_parity_cached_attention_equals_attention_over_rows() -> None:
    q, k, v = _draw(6)
    columns = np.arange(6)[None]
    ones = np.ones_like(columns)
    rows = Rows(ones, columns, ones, 0 * ones)
    options: dict[str, Any] = {"window": 4, "soft_cap": 2.0, "scale": 0.5}
    whole = attend(q, k, v, rows, **options)
    # Slots after the last token hold numbers that must be masked.
    padding = ((0, 0), (0, 3), (0, 0), (0, 0))
    keys, values = (jnp.pad(x, padding, constant_values=9.0) for x in (k, v))
    late = attend_cached(q[:, 4:], keys, values, jnp.array([[4, 5]]), **options)
    np.testing.assert_allclose(late, whole[:, 4:], rtol=0, atol=ROUNDING)


def test_extreme_large_logits_and_fully_masked_queries_stay_finite() -> None:
    q, k, v = _draw(6)
    options: dict[str, Any] = {"window": None, "soft_cap": None, "scale": 1e6}
    mixed = attend_cached(q, k, v, jnp.array([[-1, 0, 1, 2, -5, 9]]), **options)
    assert np.isfinite(mixed).all()


def test_closed_form_rotation_is_multiplication_by_a_complex_number() -> None:
    a = Architecture(
        vocab_size=2,
        hidden_size=8,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        rope_theta=50.0,
    )
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8))
    positions = np.array([[0, 5, 2]])
    cosine, sine = rope_angles(a, positions, jnp.float64)
    rotated = np.asarray(apply_rope(jnp.asarray(x), RopeAngles(cosine[0], sine[0])))
    plane = (x[..., :4] + 1j * x[..., 4:]) * np.exp(
        1j * positions[..., None, None] * 50.0 ** (-np.arange(4) / 4)
    )
    expected = np.concatenate([plane.real, plane.imag], axis=-1)
    np.testing.assert_allclose(rotated, expected, rtol=0, atol=ROUNDING)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


def test_gradient_of_fully_masked_queries_is_finite() -> None:
    q, k, v = _draw(4)
    positions = jnp.array([[-1, -1, 0, 1]])
    options: dict[str, Any] = {"window": 1, "soft_cap": None, "scale": 1.0}

    def output_sum(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend_cached(q, k, v, positions, **options).sum()

    gradients = jax.grad(output_sum, (0, 1, 2))(q, k, v)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def _draw(n_tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(n_tokens)
    queries = rng.normal(size=(1, n_tokens, HEADS, SIZE))
    keys, values = rng.normal(size=(2, 1, n_tokens, GROUPS, SIZE))
    return jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(values)
