"""The decoding loop of a CPU: buckets, joined projections, and the first most likely token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.inference import decoding
from llm.inference.decoding import bucket_slots
from llm.inference.generate import GeneratedTokens, GenerationConfig, generate_tokens
from llm.inference.sampling import most_likely_tokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.layers import join_projections
from llm.models.lora import add_lora
from llm.types import Rows

ROUNDING = 1e-12  # float64, sums in another order
SMALL: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9], [3, 2]]


def make(**switches: Any) -> Decoder:
    architecture = Architecture(**{**SMALL, **switches})
    return Decoder(architecture, rngs=nnx.Rngs(2), dtype=jnp.float64, param_dtype=jnp.float64)


def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]] = PROMPTS, **options: Any
) -> list[GeneratedTokens]:
    config = GenerationConfig(max_new_tokens=9, **options)
    return generate_tokens(decoder, prompts, config, end_ids=[0], batch_size=3)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "repetition_penalty": 1.2}])
def test_property_replies_do_not_depend_on_the_buckets_of_the_cache(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, sizes = make(), []
    grow = decoding._grow

    def spy(cache: Any, *, n_slots: int) -> Any:
        sizes.append(n_slots)
        return grow(cache, n_slots=n_slots)

    monkeypatch.setattr(decoding, "_grow", spy)
    whole = generate(decoder, **options)
    assert not sizes
    monkeypatch.setattr("llm.inference.generate.PROMPT_MULTIPLE", 2)
    monkeypatch.setattr(decoding, "BUCKET", 4)
    assert generate(decoder, **options) == whole
    assert {8, 12} <= set(sizes)


@pytest.mark.parametrize(
    "switches",
    [
        {"qkv_bias": True, "o_proj_bias": True, "mlp_bias": True},
        {"qk_norm": True, "attention_sinks": True},
        {"num_experts": 4, "num_experts_per_tok": 2},
        {"lora": True},
    ],
    ids=lambda switches: next(iter(switches)),
)
def test_parity_joined_projections_compute_the_same_hidden_states(
    switches: dict[str, Any],
) -> None:
    with_lora = switches.pop("lora", False)
    decoder = make(**switches)
    if with_lora:
        add_lora(decoder, rank=2, alpha=4.0, rngs=nnx.Rngs(1))
        adapters = nnx.state(decoder, nnx.LoRAParam)
        nnx.update(decoder, jax.tree.map(lambda leaf: leaf + 0.1, adapters))
    row = np.arange(6)[None]
    rows = Rows(row, row, np.ones_like(row), np.zeros_like(row))
    expected = decoder.hidden_states(rows)
    join_projections(decoder.layers)
    assert decoder.layers.o_proj is None
    np.testing.assert_allclose(decoder.hidden_states(rows), expected, rtol=ROUNDING, atol=ROUNDING)


def test_closed_form_buckets_hold_their_number_and_waste_at_most_an_eighth() -> None:
    for n_slots in range(1, 5000, 7):
        bucket = bucket_slots(n_slots)
        assert n_slots <= bucket < n_slots + max(64, n_slots / 8)
        assert bucket % 64 == 0


def test_closed_form_the_first_of_the_most_likely_tokens_is_taken() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (50, 9)).astype(float)
    np.testing.assert_array_equal(most_likely_tokens(jnp.asarray(logits)), logits.argmax(axis=-1))
