"""Decoding on one CPU: rows that prompts share, separate layers, and the most likely token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.attention.pages import PAGE
from llm.inference import continuous
from llm.inference.continuous import round_pages
from llm.inference.decoding import DecodingState, empty_result, generate_token, is_running
from llm.inference.decoding_records import NO_STEP, DecodingNumbers, DecodingOptions
from llm.inference.generate import (
    GeneratedTokens,
    GenerationConfig,
    generate_tokens,
    round_width,
)
from llm.inference.sampling import most_likely_tokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.layers import separate_layers
from llm.models.lora import add_lora
from llm.models.unrolled import unroll
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
    return generate_tokens(decoder, prompts, config(**options), end_ids=[0], batch_size=3)


def config(**options: Any) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=9, **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "repetition_penalty": 1.2}])
def test_property_replies_do_not_depend_on_the_rows_that_they_share(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are given to other prompts, the cache grows, and no page is held by two sequences."""
    decoder, sizes = make(), []
    generate_steps = continuous._generate

    def spy(*arguments: Any, **static: Any) -> Any:
        state = generate_steps(*arguments, **static)
        table = jax.tree.map(np.asarray, state.cache.table)
        taken = table.row < len(state.lengths)
        assert table.n_free == np.sum(~taken)
        holders = list(zip(table.row[taken].tolist(), table.first[taken].tolist(), strict=True))
        assert len(set(holders)) == len(holders)
        for row, first in holders:
            assert table.row[table.blocks[row, first // 4]] == row
        sizes.append(table.n_pages)
        return state

    single = [generate(decoder, [prompt], **options)[0] for prompt in PROMPTS]
    monkeypatch.setattr(continuous, "_generate", spy)
    for name in ("llm.attention.pages", "llm.inference.continuous", "llm.inference.generate"):
        monkeypatch.setattr(f"{name}.PAGE", 4)
    together = generate(decoder, **options)
    if not options:  # the draws of a prompt depend on its index
        assert together == single
    assert together == generate_tokens(
        decoder, PROMPTS, config(**options), end_ids=[0], batch_size=len(PROMPTS)
    )
    assert len(sizes) > len(PROMPTS) // 3 + 1
    assert len(set(sizes)) > 1


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
def test_parity_separate_layers_compute_the_same_hidden_states(
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
    assert separate_layers(decoder.layers, 2)[1].o_proj is None
    unrolled = unroll(decoder)
    assert decoder.layers.o_proj is not None
    found = unrolled.hidden_states(rows)
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=ROUNDING)


def test_closed_form_rounded_sizes_are_few_and_waste_little() -> None:
    numbers = np.arange(1, 5000)
    pages, widths = ([f(int(n)) for n in numbers] for f in (round_pages, round_width))
    assert (pages >= numbers).all()
    assert (pages <= np.maximum(8, 1.5 * numbers)).all()
    assert (widths >= numbers).all()
    assert (widths <= np.maximum(numbers + PAGE, 1.25 * numbers)).all()
    assert max(len(set(pages)), len(set(widths))) < 50


def test_closed_form_rows_end_by_an_end_token_a_last_token_or_a_failure() -> None:
    """The logits of a row are its hidden state times the identity."""
    decoder = make(hidden_size=13, vocab_size=13, head_dim=4, tie_word_embeddings=False)
    decoder.output = nnx.Param(jnp.eye(13))
    options = DecodingOptions(2, greedy=True, penalized=False)
    numbers = DecodingNumbers(jnp.array([4], jnp.int32), *jnp.zeros(6))
    lengths = jnp.array([3, 3, 3, 3, 0], jnp.int32)
    state = DecodingState(
        n_running=jnp.int32(4),
        lengths=lengths,
        indices=jnp.arange(5, dtype=jnp.uint32),
        steps=jnp.array([0, 1, 0, 0, 0], jnp.int32),
        hidden=jnp.eye(13)[jnp.array([4, 5, 6, 7, 8])].at[3].set(jnp.nan),
        cache=[],
        result=empty_result(lengths, options),
        seen=None,
    )
    positions = []

    def decode(tokens: Any, at: Any, cache: Any) -> Any:
        positions.append(at[:, 0].tolist())
        return state.hidden[:, None], cache

    after = generate_token(decoder, decode, numbers, options, state)
    assert is_running(state, options).tolist() == [True, True, True, True, False]
    assert is_running(after, options).tolist() == [False, False, True, False, False]
    assert (int(after.n_running), positions) == (1, [[-1, -1, 3, -1, -1]])
    assert after.result.tokens.tolist() == [[-1, -1], [-1, 5], [6, -1], [-1, -1], [-1, -1]]
    assert after.result.finished.tolist() == [True, False, False, True, True]
    assert after.result.failed.tolist() == [NO_STEP, NO_STEP, NO_STEP, 0, NO_STEP]


def test_closed_form_the_first_of_the_most_likely_tokens_is_taken() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (50, 9)).astype(float)
    np.testing.assert_array_equal(most_likely_tokens(jnp.asarray(logits)), logits.argmax(axis=-1))
