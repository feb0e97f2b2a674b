"""Masks over the examples of a loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rpo_theory._batching import broadcast_scalars
from rpo_theory._log_probs import PairLogProbs, keep, masked_pair, zero_unless


def test_gradient_masked_inputs_have_none_even_if_they_are_nan() -> None:
    where = jnp.array([True, False])

    def loss(values: jax.Array) -> jax.Array:
        return zero_unless(where, jnp.log(keep(values, where, 1.0))).sum()

    assert jax.grad(loss)(jnp.array([2.0, jnp.nan])).tolist() == [0.5, 0.0]


def test_closed_form_without_a_mask_nothing_changes() -> None:
    pair = PairLogProbs(jnp.array([1.0]), jnp.array([2.0]))
    same = masked_pair(pair, None)
    assert (float(same.chosen[0]), float(same.rejected[0])) == (1.0, 2.0)
    masked = masked_pair(pair, jnp.array([False]), -1.0)
    assert (float(masked.chosen[0]), float(masked.rejected[0])) == (-1.0, -1.0)


def test_closed_form_a_scalar_applies_to_the_whole_batch() -> None:
    tree = broadcast_scalars((np.array(2.0), np.ones((3, 2))), 3)
    assert tree[0].tolist() == [2.0, 2.0, 2.0]
    assert tree[1].shape == (3, 2)
