"""Policy tables: responses, their total probability, and equal objectives of trainer and theory."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ObjectiveConfig
from llm.evaluation.metrics import compute_metric_sums, finalize_metrics
from llm.finite.policy_table import (
    Comparisons,
    ResponseSpace,
    all_responses,
    comparison_batch,
    log_policy,
    make_problem,
)
from llm.models.protocol import Head
from llm.types import Branch, Rows
from rpo_theory import policy_loss
from rpo_theory.objectives import minimax_objective

EXACT = 1e-12  # float64, a few hundred terms of order ten
END = 2
SPACE = ResponseSpace(
    prompts=((0,), (1, 0, 1)), responses=all_responses((0, 1), end=END, max_length=3)
)


class Markov:
    """A model whose next-token logits depend on the last token and the position only."""

    def __init__(self, seed: int = 0, vocabulary: int = 3) -> None:
        self.vocabulary = vocabulary
        self.logits = np.random.default_rng(seed).normal(size=(8, vocabulary, vocabulary))

    def hidden_states(self, rows: Rows) -> jax.Array:
        return jnp.asarray(self.logits[rows.positions, rows.tokens])

    def head(self) -> Head:
        return Head(jnp.eye(self.vocabulary), None)

    def log_prob(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
        read, log_prob = list(prompt), 0.0
        for token in response:
            logits = self.logits[len(read) - 1, read[-1]]
            log_prob += logits[token] - np.log(np.exp(logits).sum())
            read.append(token)
        return log_prob


@pytest.mark.parametrize(("letters", "length"), [(1, 1), (2, 3), (4, 3)])
def test_closed_form_number_of_responses(letters: int, length: int) -> None:
    responses = all_responses(range(letters), end=letters, max_length=length)
    assert len(responses) == len(set(responses)) == sum(letters**i for i in range(length + 1))
    assert all(letters not in response[:-1] for response in responses)
    assert all(len(response) == length or response[-1] == letters for response in responses)


def test_closed_form_table_of_log_probabilities() -> None:
    model = Markov()
    expected = [
        [model.log_prob(prompt, response) for response in SPACE.responses]
        for prompt in SPACE.prompts
    ]
    np.testing.assert_allclose(log_policy(model, SPACE), expected, rtol=EXACT)


def test_property_probabilities_of_all_responses_sum_to_one() -> None:
    probability = np.exp(np.asarray(log_policy(Markov(), SPACE))).sum(axis=1)
    np.testing.assert_allclose(probability, 1.0, rtol=EXACT)


def draw(seed: int, *, baselines: bool) -> Comparisons:
    rng = np.random.default_rng(seed)
    n, responses = 9, len(SPACE.responses)
    return Comparisons(
        contexts=np.arange(n) % 2,
        winners=rng.integers(0, responses, n),
        losers=rng.integers(0, responses, n),
        counts=rng.uniform(0.5, 4.0, n),
        baselines=rng.integers(0, responses, n) if baselines else None,
    )


def test_closed_form_every_token_is_predicted_from_all_that_precedes_it() -> None:
    data = draw(0, baselines=True)
    rows, completions, *_ = comparison_batch(SPACE, data)
    tokens, width = np.asarray(rows.tokens), rows.tokens.shape[1]
    expected = [
        ((*SPACE.prompts[context], *SPACE.responses[response][:i]), token, 3 * pair + role)
        for pair, context in enumerate(np.asarray(data.contexts))
        for role, responses in enumerate((data.winners, data.losers, data.baselines))
        for response in [np.asarray(responses)[pair]]
        for i, token in enumerate(SPACE.responses[response])
    ]
    found = [
        (tuple(tokens[index // width, : index % width + 1].tolist()), target, owner)
        for index, target, owner in zip(*completions, strict=True)
    ]
    assert found == expected


def test_closed_form_no_row_is_a_prefix_of_another() -> None:
    """For responses of up to three tokens, two letters after each prompt are enough."""
    rows = comparison_batch(SPACE, draw(0, baselines=False)).rows
    real = [tuple(np.asarray(rows.tokens)[i][np.asarray(rows.segments)[i] > 0]) for i in range(8)]
    assert len(rows.tokens) == 8
    letters = list(itertools.product((0, 1), (0, 1)))
    assert real == [(*prompt, *two) for prompt in SPACE.prompts for two in letters]
    branches = np.where(np.asarray(rows.segments) > 0, rows.branches, Branch.PROMPT)
    assert (branches == Branch.CHOSEN).sum(axis=1).tolist() == [2] * 8


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000), baselines=st.booleans())
def test_property_objectives_of_trainer_and_theory_are_equal_at_any_parameters(
    seed: int, baselines: bool
) -> None:
    """Loss and adversarial value, from pairs of token sequences and from win counts."""
    data, config = draw(seed, baselines=baselines), ObjectiveConfig(beta=0.3, eta=0.7)
    log_probs = np.asarray(log_policy(Markov(seed), SPACE))
    log_reference = np.asarray(log_policy(Markov(seed + 1), SPACE))
    batch, roles = comparison_batch(SPACE, data), [data.winners, data.losers]
    roles = np.stack([*roles, data.baselines] if baselines else roles, axis=1)

    def select_pairs(table: np.ndarray) -> Any:
        return jnp.asarray(table[np.asarray(data.contexts)[:, None], roles])

    got = finalize_metrics(
        config,
        compute_metric_sums(config, select_pairs(log_probs), select_pairs(log_reference), batch),
    )
    problem = make_problem(log_reference, data, beta=config.beta, eta=config.eta)
    reward = jnp.asarray(config.beta * (log_probs - log_reference))
    loss = policy_loss.loss(problem, reward)
    value = minimax_objective(problem, reward)
    np.testing.assert_allclose(got["loss"], loss, rtol=EXACT)
    np.testing.assert_allclose(got["theory/adversarial_value"], value, rtol=EXACT, atol=EXACT)


def test_closed_form_the_baseline_policy_is_the_distribution_of_the_winners() -> None:
    log_reference = np.log(np.full((2, 3), 1 / 3))
    data = Comparisons(
        contexts=np.array([0, 0, 1]),
        winners=np.array([0, 2, 1]),
        losers=np.array([1, 1, 0]),
        counts=np.array([1.0, 3.0, 4.0]),
    )
    problem = make_problem(log_reference, data, beta=0.1, eta=1.0)
    np.testing.assert_allclose(problem.context_weights, [0.5, 0.5], rtol=EXACT)
    np.testing.assert_allclose(problem.baseline_policy, [[0.25, 0, 0.75], [0, 1, 0]], rtol=EXACT)
    assert float(np.asarray(problem.wins).sum()) == 8.0


def test_raises_for_a_prompt_without_comparisons() -> None:
    index = np.array([0])
    data = Comparisons(index, index, index + 1, np.array([1.0]))
    with pytest.raises(ValueError, match="must cover every prompt, got none of prompt 1"):
        make_problem(np.log(np.full((2, 2), 0.5)), data, beta=0.1, eta=1.0)
