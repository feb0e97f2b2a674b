"""Reductions of per-example losses, and the weight of one token."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_theory.losses import sft
from rpo_theory.reductions import WeightedSum, reduce_mean, reduce_sft, weight_per_token

EXACT = 1e-13  # float64 sums of a handful of terms
NAMES: list[Any] = ["sum", "sequence_mean", "pooled_mean"]

rows = st.lists(
    st.tuples(st.floats(0.0, 100.0), st.integers(1, 50), st.booleans()), min_size=2, max_size=8
)
every_reduction = pytest.mark.parametrize("reduction", NAMES)


def arrays(drawn: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    loss, tokens, where = zip(*drawn, strict=True)
    return jnp.array(loss), jnp.array(tokens, jnp.float64), jnp.array(where)


@settings(deadline=None)
@given(rows)
def test_closed_form_the_three_reductions(drawn: Any) -> None:
    loss, tokens, where = arrays(drawn)
    kept = [(x, t) for x, t, keep in drawn if keep]
    means = {
        "sum": sum(x for x, _ in kept) / max(len(kept), 1),
        "sequence_mean": sum(x / t for x, t in kept) / max(len(kept), 1),
        "pooled_mean": sum(x for x, _ in kept) / max(sum(t for _, t in kept), 1),
    }
    for name in NAMES:
        got = float(reduce_sft(loss, tokens, reduction=name, where=where).mean())
        assert got == pytest.approx(means[name], rel=EXACT, abs=EXACT)


@every_reduction
@settings(deadline=None)
@given(drawn=rows, clipped=st.integers(1, 7))
def test_property_parts_added_before_dividing_equal_the_whole(
    reduction: Any, drawn: Any, clipped: int
) -> None:
    loss, tokens, where = arrays(drawn)
    whole = reduce_sft(loss, tokens, reduction=reduction, where=where)
    parts = [
        reduce_sft(loss[part], tokens[part], reduction=reduction, where=where[part])
        for part in (slice(None, clipped), slice(clipped, None))
    ]
    added = WeightedSum(*(first + second for first, second in zip(*parts, strict=True)))
    assert float(added.mean()) == pytest.approx(float(whole.mean()), rel=EXACT, abs=EXACT)


@settings(deadline=None)
@given(rows)
def test_closed_form_weights_count_examples(drawn: Any) -> None:
    loss, counts, _ = arrays(drawn)
    average = np.average(np.asarray(loss), weights=np.asarray(counts))
    mean = np.mean(np.asarray(loss))
    np.testing.assert_allclose(reduce_mean(loss, counts).mean(), average, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(reduce_mean(loss).mean(), mean, rtol=EXACT, atol=EXACT)


@every_reduction
def test_property_weights_of_the_sft_loss_count_as_repetitions(reduction: Any) -> None:
    loss, tokens, counts = jnp.array([3.0, 5.0]), jnp.array([2.0, 7.0]), np.array([3, 2])
    again = np.repeat(np.arange(2), counts)
    repeated = reduce_sft(loss[again], tokens[again], reduction=reduction)
    weighted = reduce_sft(loss, tokens, reduction=reduction, weights=counts.astype(float))
    np.testing.assert_allclose(weighted, repeated, rtol=EXACT)
    where = jnp.array([True, False])
    masked = reduce_sft(
        loss, tokens, reduction=reduction, weights=jnp.array([3.0, jnp.nan]), where=where
    )
    first = reduce_sft(loss[again[:3]], tokens[again[:3]], reduction=reduction)
    np.testing.assert_allclose(masked, first, rtol=EXACT)


def test_extreme_weights_of_zero_give_zero_with_a_zero_gradient() -> None:
    def mean(loss: jax.Array) -> jax.Array:
        return reduce_mean(loss, jnp.zeros(2)).mean()

    assert float(mean(jnp.ones(2))) == 0.0
    np.testing.assert_array_equal(jax.grad(mean)(jnp.ones(2)), [0.0, 0.0])


@every_reduction
@pytest.mark.parametrize("rubbish", [np.nan, np.inf])
def test_extreme_masked_rows_reach_neither_value_nor_gradient(
    reduction: Any, rubbish: float
) -> None:
    loss, tokens = jnp.array([2.0, rubbish]), jnp.array([4.0, rubbish])
    where = jnp.array([True, False])

    def mean(loss: jax.Array) -> jax.Array:
        return reduce_sft(loss, tokens, reduction=reduction, where=where).mean()

    single = reduce_sft(loss[:1], tokens[:1], reduction=reduction).mean()
    np.testing.assert_array_equal(mean(loss), single)
    gradient = np.asarray(jax.grad(mean)(loss))
    assert np.isfinite(gradient).all()
    assert gradient[1] == 0.0


@every_reduction
def test_gradient_of_one_token_is_weight_per_token(reduction: Any) -> None:
    """With responses of one length the reductions differ only by that length."""
    eta, beta, length, n = 0.005, 0.01, 100, 3

    def loss(token_log_probs: jax.Array) -> jax.Array:
        tokens = jnp.full(n, float(length))
        reduced = reduce_sft(sft(token_log_probs.sum(axis=1)), tokens, reduction=reduction)
        return eta * beta * reduced.mean()

    gradient = np.asarray(jax.grad(loss)(jnp.full((n, length), -1.0)))
    weight = weight_per_token(eta=eta, beta=beta, mean_tokens=float(length), reduction=reduction)
    np.testing.assert_allclose(gradient, -weight / n, rtol=EXACT)


def test_golden_the_documented_mapping_of_trl_agrees_at_one_hundred_tokens() -> None:
    """w = 0.005 without beta over a length of 100 equals eta beta with beta 0.01."""
    theorem = weight_per_token(eta=0.005, beta=0.01, mean_tokens=100.0)
    pooled = weight_per_token(eta=0.005, beta=1.0, mean_tokens=100.0, reduction="pooled_mean")
    assert theorem == pytest.approx(pooled, rel=EXACT)


def test_raises_for_an_unknown_reduction() -> None:
    name: Any = "mean"
    with pytest.raises((ValueError, TypeError), match="reduction"):
        reduce_sft(jnp.ones(1), jnp.ones(1), reduction=name)
    per_token = inspect.unwrap(weight_per_token)
    with pytest.raises(ValueError, match="`reduction` must be 'sum', 'sequence_mean' or"):
        per_token(eta=1.0, beta=1.0, mean_tokens=9.0, reduction=name)
    with pytest.raises(ValueError, match="`mean_tokens` must be greater than 0, got 0"):
        per_token(eta=1.0, beta=1.0, mean_tokens=0.0)
