"""Digests of parameters: they depend on names, shapes, dtypes and values."""

from __future__ import annotations

import hashlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from llm.hashing import parameters_sha256, weights_digest


def test_closed_form_a_digest_is_that_of_a_header_and_the_bytes_of_each_array() -> None:
    values = np.arange(6.0).reshape(2, 3)
    content = b"['a'] float64 (2, 3)\n" + values.tobytes()
    assert weights_digest({"a": jnp.asarray(values)}) == hashlib.sha256(content).hexdigest()


def test_closed_form_the_digest_of_all_parameters_is_that_of_both_parts() -> None:
    trainable, frozen = {"a": jnp.ones(2)}, {"b": jnp.zeros(1)}
    assert parameters_sha256(trainable, frozen) == weights_digest((trainable, frozen))
    assert parameters_sha256(trainable, frozen) != parameters_sha256(frozen, trainable)


def test_property_a_digest_depends_on_names_shapes_dtypes_and_values() -> None:
    base = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    others = [
        {"a": jnp.zeros((2, 2)), "c": jnp.zeros(3)},
        {"a": jnp.zeros((4,)), "b": jnp.zeros(3)},
        {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3, jnp.bfloat16)},
        {"a": jnp.zeros((2, 2)).at[0, 1].set(1e-300), "b": jnp.zeros(3)},
        {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3), "s": jnp.zeros(())},
    ]
    digests = {weights_digest(tree) for tree in (base, *others)}
    assert len(digests) == 6
    assert weights_digest(dict(reversed(base.items()))) in digests


def test_property_the_digest_of_a_model_is_that_of_its_parameters() -> None:
    first, equal, different = (
        weights_digest(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(seed)))) for seed in (0, 0, 1)
    )
    assert first == equal
    assert first != different
