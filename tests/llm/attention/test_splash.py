"""The TPU kernel in Pallas' interpreter against plain attention, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention.blockwise import Settings
from llm.attention.dispatch import visible
from llm.attention.splash import attend_with_splash, fits
from llm.precision import computing_in
from llm.types import Branch, Rows

ROUNDING = 5e-6  # float32 sums in another order, relative to the largest entry
HEADS, GROUPS, SIZE = 4, 2, 128


def packed_rows(*, baseline: bool) -> Rows:
    """Two pairs a row, and padding; 200 tokens, no multiple of the kernel's blocks."""
    lengths = [(40, 30, 25, 20), (25, 15, 20, 10)] if baseline else [(50, 40, 30), (20, 25, 15)]
    positions, segments, branches = np.zeros((3, 1, 200), np.int32)
    column = 0
    for number, parts in enumerate(lengths):
        for branch, length in enumerate(parts):
            span = slice(column, column + length)
            start = 0 if branch == Branch.PROMPT else parts[0]
            positions[0, span] = start + np.arange(length)
            segments[0, span], branches[0, span] = number + 1, branch
            column += length
    return Rows(np.zeros_like(positions), positions, segments, branches)


@pytest.mark.parametrize(("baseline", "soft_cap"), [(False, None), (True, 2.0)])
def test_gradient_and_values_in_the_interpreter_are_those_of_plain_attention(
    *, baseline: bool, soft_cap: float | None
) -> None:
    rows = packed_rows(baseline=baseline)
    settings = Settings(soft_cap, SIZE**-0.5)
    with computing_in("float32"), jax.numpy_dtype_promotion("standard"):
        keys = jax.random.split(jax.random.key(0), 4)
        parts = [
            jax.random.normal(key, (1, 200, heads, SIZE))
            for key, heads in zip(keys, (HEADS, GROUPS, GROUPS), strict=False)
        ]
        weight = (
            jax.random.normal(keys[3], (1, 200, HEADS, SIZE)) * (rows.segments > 0)[..., None, None]
        )

        def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
            logits = settings.scale * jnp.einsum("rthk,rshk->rhts", q, k, precision="highest")
            if soft_cap is not None:
                logits = soft_cap * jnp.tanh(logits / soft_cap)
            logits = jnp.where(visible(rows)[:, None], logits, -1e30)
            return jnp.einsum("rhts,rshk->rthk", jax.nn.softmax(logits), v, precision="highest")

        def splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend_with_splash(q, k, v, rows, settings=settings, interpret=True)

        def measured(mix):
            def weighted(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
                mixed = mix(*qkv)
                return jnp.sum(weight * mixed), mixed

            slopes, mixed = jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(*parts)
            return [mixed * (rows.segments > 0)[..., None, None], *slopes]

        for one, other in zip(measured(splash), measured(plain), strict=True):
            bound = ROUNDING * float(jnp.abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=bound)


def test_closed_form_heads_must_fill_the_vector_unit() -> None:
    assert [fits(size) for size in (64, 96, 128, 256)] == [False, False, True, True]
