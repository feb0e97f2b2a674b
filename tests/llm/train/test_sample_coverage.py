"""Coverage of a policy's own replies by the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.data.preferences import PairTokens
from llm.inference.generate import GenerationConfig, generate_tokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.train.coverage_estimate import CoverageEstimate, estimate_coverage
from llm.train.sample_coverage import SampleCoverage
from llm.types import Rows

ROUNDING = 1e-9  # float64, sums in another order
SMALL = Architecture(
    vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
)
END = 6


def decoder(seed: int) -> Decoder:
    return Decoder(SMALL, rngs=nnx.Rngs(seed), dtype=jnp.float64, param_dtype=jnp.float64)


def pairs(count: int, seed: int) -> list[PairTokens]:
    rng = np.random.default_rng(seed)
    draw = lambda: tuple(rng.integers(0, END, 3).tolist())  # noqa: E731
    return [PairTokens(draw(), draw(), draw(), None, row) for row in range(count)]


hidden_states = nnx.jit(Decoder.hidden_states)


def features(model: Decoder, prompt: tuple[int, ...], response: tuple[int, ...]) -> np.ndarray:
    """Return the mean of the states that predict the response; one sequence, no packing."""
    tokens = np.array([prompt + response])
    positions = np.arange(tokens.shape[1])[None]
    rows = Rows(tokens, positions, np.ones_like(tokens), np.minimum(positions // len(prompt), 1))
    states = np.asarray(hidden_states(model, rows))[0]
    return states[len(prompt) - 1 : len(prompt) + len(response) - 1].mean(0)


def expected_coverage(
    frozen: Decoder, policy: Decoder, data: list, questions: list, seed: int
) -> CoverageEstimate:
    projection = np.random.default_rng(seed).standard_normal((8, 8)) / np.sqrt(8)
    decoding = GenerationConfig(max_new_tokens=3, temperature=1.0, seed=seed)
    prompts = [pair.prompt for pair in questions]
    replies = generate_tokens(policy, prompts, decoding, end_ids=[END], batch_size=2)
    answers = [(*reply.tokens, END) if reply.finished else reply.tokens for reply in replies]
    samples = [
        features(frozen, pair.prompt, reply) for pair, reply in zip(questions, answers, strict=True)
    ]
    base = [features(frozen, pair.prompt, pair.baseline or pair.chosen) for pair in questions]
    differences = [
        features(frozen, pair.prompt, pair.chosen) - features(frozen, pair.prompt, pair.rejected)
        for pair in data
    ]
    first, second, third = (np.array(part) @ projection for part in (samples, base, differences))
    return estimate_coverage(first, second, third, jax.random.key(seed))


@pytest.mark.parametrize("with_baseline", [False, True])
def test_parity_with_features_of_one_sequence_at_a_time(with_baseline: bool) -> None:
    frozen, policy, data, questions = decoder(0), decoder(1), pairs(12, 0), pairs(3, 1)
    if with_baseline:
        questions = [pair._replace(baseline=pair.rejected) for pair in questions]
    measure = SampleCoverage(frozen, data, questions, end_ids=[END], batch_size=2, seed=3)
    expected = expected_coverage(frozen, policy, data, questions, 3)
    assert measure.measure(policy) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    assert measure.measure(policy) == measure.measure(policy)


def test_raises_for_a_single_prompt() -> None:
    with pytest.raises(ValueError, match="at least 2 held-out prompts, got 1"):
        SampleCoverage(decoder(0), pairs(4, 0), pairs(1, 1), end_ids=[END], batch_size=2, seed=3)
