"""Matrix products keep the precision of the requested dtype on every device."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from llm.data.packing import BatchShape, pack
from llm.data.preferences import PairTokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.logprobs import response_log_probs
from llm.precision import computing_in

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def matmuls_of_a_gradient(dtype: str) -> list[str]:
    """Return the lines of the lowered program that multiply matrices."""
    pair = PairTokens((1, 2), (3, 4), (5,), None, 0)
    shape = BatchShape(rows=1, row_tokens=16, completions=8, longest=8)
    with computing_in(dtype), jax.numpy_dtype_promotion("standard"):
        computed = jnp.dtype(dtype)
        model = Decoder(Architecture(**SIZES), rngs=nnx.Rngs(0), dtype=computed)
        batch = pack([pair], layout="shared", roles=2, n_pairs=1, shape=shape)
        graphdef, parameters = nnx.split(model)

        def log_prob_sum(parameters: Any) -> jax.Array:
            return response_log_probs(nnx.merge(graphdef, parameters), batch).sum()

        program = jax.jit(jax.grad(log_prob_sum)).lower(parameters).as_text()
    return re.findall(r".*dot_general.*", program)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_property_every_matmul_of_a_gradient_keeps_all_bits_of_its_factors(dtype: str) -> None:
    matmuls = matmuls_of_a_gradient(dtype)
    assert matmuls
    assert all("HIGHEST" in matmul for matmul in matmuls)
