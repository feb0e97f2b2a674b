"""Splash attention in Pallas' interpreter against dense attention, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention.dispatch import visible
from llm.attention.logits import AttentionSettings
from llm.attention.splash import attend_with_splash, supports_head_size
from llm.precision import computing_in
from llm.types import Bounds, Branch, Rows

ROUNDING = 5e-6  # float32 sums in another order, relative to the largest entry
HEADS, GROUPS, SIZE = 4, 2, 128


def packed_rows(responses: int) -> Rows:
    """Return a row of two pairs and padding, whose length is no multiple of the kernel's blocks."""
    lengths = [(50, 40, 30), (20, 25, 15)]
    if responses == 4:  # of a ranking, after a ranking of three
        lengths = [(30, 25, 20, 15), (25, 15, 20, 10, 12)]
    positions, segments, branches = np.zeros((3, 1, 200), np.int32)
    column = 0
    for number, parts in enumerate(lengths):
        for branch, length in enumerate(parts):
            span = slice(column, column + length)
            start = 0 if branch == Branch.PROMPT else parts[0]
            positions[0, span] = start + np.arange(length)
            segments[0, span], branches[0, span] = number + 1, branch
            column += length
    bounds = Bounds(roles=responses)
    return Rows(np.zeros_like(positions), positions, segments, branches, bounds)


@pytest.mark.parametrize(("responses", "soft_cap"), [(2, None), (4, 2.0)])
def test_gradient_and_values_in_the_interpreter_equal_those_of_dense_attention(
    responses: int, soft_cap: float | None
) -> None:
    rows = packed_rows(responses)
    settings = AttentionSettings(soft_cap, SIZE**-0.5)
    with computing_in("float32"), jax.numpy_dtype_promotion("standard"):
        keys = jax.random.split(jax.random.key(0), 4)
        parts = [
            jax.random.normal(key, (1, 200, heads, SIZE))
            for key, heads in zip(keys, (HEADS, GROUPS, GROUPS), strict=False)
        ]
        weight = (
            jax.random.normal(keys[3], (1, 200, HEADS, SIZE)) * (rows.segments > 0)[..., None, None]
        )

        def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
            logits = settings.scale * jnp.einsum("rthk,rshk->rhts", q, k, precision="highest")
            if soft_cap is not None:
                logits = soft_cap * jnp.tanh(logits / soft_cap)
            logits = jnp.where(visible(rows)[:, None], logits, -1e30)
            return jnp.einsum("rhts,rshk->rthk", jax.nn.softmax(logits), v, precision="highest")

        def splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend_with_splash(q, k, v, rows, settings=settings, interpret=True)

        def value_and_gradient(attend):
            def weighted(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
                mixed = attend(*qkv)
                return jnp.sum(weight * mixed), mixed

            gradients, mixed = jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(*parts)
            return [mixed * (rows.segments > 0)[..., None, None], *gradients]

        pairs = zip(value_and_gradient(splash), value_and_gradient(dense), strict=True)
        for actual, expected in pairs:
            bound = ROUNDING * float(jnp.abs(expected).max())
            np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def test_closed_form_head_sizes_must_be_multiples_of_the_vector_width() -> None:
    assert [supports_head_size(n) for n in (64, 96, 128, 256)] == [False, False, True, True]
