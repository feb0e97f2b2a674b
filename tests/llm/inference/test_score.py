"""Claims about scores, against unpacked sequences summed token by token in NumPy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.data.preferences import PairTokens
from llm.inference.score import PairScore, score_pairs
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.types import Rows

SMALL = Architecture(
    vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2
)
SAME_SUMS = 1e-12  # relative, float64, another order of summation
PAIRS = [
    PairTokens((3, 1, 4), (1, 5, 0), (9, 0), None, 7),
    PairTokens((2,), (6,), (5, 3, 5, 8, 0), (1, 0), 2),
    PairTokens((9, 7, 9, 3, 2), (3, 8, 0), (4, 6, 0), None, 3),
]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    with jax.enable_x64(True):
        return Decoder(SMALL, rngs=nnx.Rngs(2), dtype=jnp.float64, param_dtype=jnp.float64)


def log_prob(decoder: Decoder, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    tokens = np.zeros((1, 12), int)
    tokens[0, : len(prompt) + len(response)] = prompt + response
    positions = np.arange(12)[None]
    hidden = read(decoder, Rows(tokens, positions, np.ones_like(tokens), np.zeros_like(tokens)))
    logits = np.asarray(hidden)[0] @ np.asarray(decoder.head().weight).T
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    start = len(prompt) - 1
    return float(sum(np.log(probs[start + i, token]) for i, token in enumerate(response)))


@nnx.jit
def read(decoder: Decoder, rows: Rows) -> jax.Array:
    return decoder.hidden_states(rows)


def test_closed_form_scores_are_sums_over_tokens_in_the_order_of_the_pairs(
    decoder: Decoder,
) -> None:
    batch_counts: list[int] = []

    def progress(batches: Iterable[Any], n_batches: int) -> Iterable[Any]:
        batch_counts.append(n_batches)
        return batches

    scores = score_pairs(decoder, PAIRS, batch_size=2, progress=progress)
    assert batch_counts == [2]
    assert [score.row for score in scores] == [7, 2, 3]
    assert [score[3:] for score in scores] == [(3, 2), (1, 5), (3, 3)]
    for pair, score in zip(PAIRS, scores, strict=True):
        expected = [log_prob(decoder, pair.prompt, response) for response in pair[1:3]]
        np.testing.assert_allclose(score[1:3], expected, rtol=SAME_SUMS)


def test_parity_of_scores_in_both_packing_modes(decoder: Decoder) -> None:
    shared = score_pairs(decoder, PAIRS, batch_size=2)
    separate = score_pairs(decoder, PAIRS, batch_size=2, layout="separate")
    np.testing.assert_allclose(shared, separate, rtol=SAME_SUMS)


def test_limit_no_pairs_have_no_scores(decoder: Decoder) -> None:
    assert score_pairs(decoder, []) == []


def test_raises_for_duplicate_rows_and_damaged_weights(
    decoder: Decoder,
) -> None:
    with pytest.raises(ValueError, match="two pairs of the same row"):
        score_pairs(decoder, [PAIRS[0], PAIRS[0]])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        score_pairs(decoder, PAIRS, batch_size=0)
    damaged = nnx.clone(decoder)
    damaged.embedding[...] = damaged.embedding[...].at[2].set(jnp.nan)
    with pytest.raises(ValueError, match=r"row 2, counted from 0: .* not finite"):
        score_pairs(damaged, PAIRS[1:2], batch_size=2)


def test_roundtrip_scores_have_the_field_names_of_the_output_file() -> None:
    names = ("row", "chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens")
    assert PairScore._fields == names
