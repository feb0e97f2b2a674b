"""Token statistics of objectives: weights of long responses, squared probabilities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.config import ObjectiveConfig
from llm.data.packing import pack, required_shape
from llm.data.preferences import PairTokens
from llm.models import token_statistics
from llm.models.protocol import Head
from llm.models.token_statistics import response_statistics, token_log_sum_squares
from llm.types import Rows

EXACT = 1e-12
VOCABULARY, WIDTH = 11, 4


class Table:
    """A model whose hidden state is a fixed vector of the token."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.embedding = jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)))
        self.output = jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)))

    def hidden_states(self, rows: Rows) -> jax.Array:
        return self.embedding[jnp.asarray(rows.tokens)]

    def head(self) -> Head:
        return Head(self.output, None)

    def token_log_probs(self, tokens: tuple[int, ...]) -> np.ndarray:
        """Return the log-probabilities of all tokens after each of the tokens."""
        logits = np.asarray(self.embedding[jnp.array(tokens)] @ self.output.T)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


PAIRS = [
    PairTokens((1, 2), (3, 4, 5, 6), (7, 8), None, 0),
    PairTokens((9,), (1,), (2, 3, 4), (5, 6), 1),
]


def batch_of(pairs: list[PairTokens]) -> Any:
    shape = required_shape(pairs, layout="shared", roles=3)
    return pack(pairs, layout="shared", roles=3, n_pairs=3, shape=shape)


def by_hand(of_tokens: Any) -> np.ndarray:
    """Apply a function of (table of log-probabilities, tokens, shared length) to all responses."""
    model, values = Table(), np.zeros((3, 3))
    for row, pair in enumerate(PAIRS):
        shared = min(len(pair.chosen), len(pair.rejected))
        for role, tokens in enumerate((pair.chosen, pair.rejected, pair.baseline or pair.chosen)):
            before = (pair.prompt[-1], *tokens[:-1])
            length = len(tokens) if role == 2 else shared
            values[row, role] = of_tokens(model.token_log_probs(before), np.array(tokens), length)
    return values


def test_closed_form_statistics_are_sums_over_the_tokens_of_each_response() -> None:
    model, batch = Table(), batch_of(PAIRS)

    def log_prob(table: np.ndarray, tokens: np.ndarray, shared: int, alpha: float = 1.0) -> float:
        weights = np.where(np.arange(len(tokens)) < shared, 1.0, alpha)
        return float(weights @ table[np.arange(len(tokens)), tokens])

    def squares(table: np.ndarray, tokens: np.ndarray, shared: int) -> float:
        return float(np.log(np.exp(2 * table).sum(axis=1)).sum())

    config = ObjectiveConfig(method="wpo")
    got = jax.jit(lambda: response_statistics(model, batch, config))()
    np.testing.assert_allclose(got.log_probs, by_hand(log_prob), atol=EXACT)
    np.testing.assert_allclose(got.log_sum_squares, by_hand(squares), atol=EXACT)

    config = ObjectiveConfig(method="ld_dpo", options={"alpha": 0.25})
    got = jax.jit(lambda: response_statistics(model, batch, config))()
    wanted = by_hand(lambda *arguments: log_prob(*arguments, alpha=0.25))
    np.testing.assert_allclose(got.log_probs, wanted, atol=EXACT)
    assert got.log_sum_squares is None
    assert response_statistics(model, batch, ObjectiveConfig()).log_sum_squares is None


def test_property_chunks_of_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = jnp.asarray(np.random.default_rng(1).normal(size=(21, WIDTH)))
    head = Head(Table().output, 3.0)
    wanted = np.asarray(token_log_sum_squares(features, head))
    monkeypatch.setattr(token_statistics, "CHUNK_ENTRIES", 8 * VOCABULARY)
    np.testing.assert_allclose(token_log_sum_squares(features, head), wanted, atol=EXACT)
    slope = jax.grad(lambda features: token_log_sum_squares(features, head).sum())(features)
    assert not np.asarray(slope).any()
