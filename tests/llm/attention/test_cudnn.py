"""Attention over separate sequences against dense attention over packed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.attention.cudnn import attend_by_sequence, sequence_indices
from llm.attention.dispatch import visible
from llm.data.packing import PackingMode, pack, required_shape, round_up_shape
from llm.data.preferences import PairTokens
from llm.types import Bounds, Rows

ROUNDING = 5e-6  # the kernel computes its softmax in float32 for all inputs
HEADS, GROUPS, SIZE = 4, 2, 5


def packed(layout: PackingMode, *, roles: int) -> Rows:
    """Return three pairs of different lengths and an absent one, with padding."""
    pairs = [
        PairTokens(tuple(range(p)), tuple(range(c)), tuple(range(j)), (1,) * b or None, row)
        for row, (p, c, j, b) in enumerate([(3, 2, 4, 2), (9, 14, 5, 3), (1, 1, 1, 0)])
    ]
    pairs = [pair if roles == 3 else pair._replace(baseline=None) for pair in pairs]
    shape = round_up_shape(required_shape(pairs, layout=layout, roles=roles))
    if layout == "separate":
        shape = type(shape)(**{**vars(shape), "rows": 4 * roles})
    return pack(pairs, layout=layout, roles=roles, n_pairs=4, shape=shape).rows


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(("layout", "roles"), [("shared", 2), ("shared", 3), ("separate", 2)])
def test_gradient_and_values_equal_those_of_dense_attention(
    layout: PackingMode, roles: int, window: int | None
) -> None:
    rows = packed(layout, roles=roles)
    rng, shape = np.random.default_rng(0), rows.tokens.shape
    filled = (np.asarray(rows.segments) > 0)[..., None, None]
    *parts, weight = (
        jnp.asarray(rng.standard_normal((*shape, heads, SIZE)))
        for heads in (HEADS, GROUPS, GROUPS, HEADS)
    )

    def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
        logits = 0.3 * jnp.einsum("rthk,rshk->rhts", q, k)
        seen = visible(rows, window=window)[:, None]
        return jnp.einsum("rhts,rshk->rthk", jax.nn.softmax(logits, where=seen, axis=-1), v)

    def by_sequence(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        options = {"window": window, "scale": 0.3, "implementation": "xla"}
        return attend_by_sequence(q, k, v, rows, **options)

    def value_and_gradient(attend):
        def weighted(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixed = jnp.where(filled, attend(*qkv), 0)
            return jnp.sum(weight * mixed), mixed

        gradients, mixed = jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(*parts)
        return [mixed, *gradients]

    with jax.numpy_dtype_promotion("standard"):
        pairs = zip(value_and_gradient(by_sequence), value_and_gradient(dense), strict=True)
        for actual, expected in pairs:
            assert np.ptp(expected) > 0
            np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDING)


def test_closed_form_a_shared_prompt_is_in_every_sequence_of_its_pair_and_is_output_once() -> None:
    indices = sequence_indices(packed("shared", roles=2))
    assert indices.lengths.tolist() == [4, 6, 22, 13, 1, 1, 1, 1]
    assert indices.token[:2, :7].tolist() == [[0, 1, 2, 3, 64, 64, 64], [0, 1, 2, 4, 5, 6, 64]]
    assert indices.sequences[:5].tolist() == [[0, 1], [0, 1], [0, 1], [0, 8], [8, 1]]
    assert indices.output_sequence[:5].tolist() == [0, 0, 0, 0, 1]


def test_raises_if_the_bounds_are_unknown() -> None:
    rows = packed("shared", roles=2)._replace(bounds=Bounds(roles=2))
    with pytest.raises(ValueError, match=r"`rows\.bounds` must have"):
        sequence_indices(rows)
