"""A training step on a second model: any module with hidden states and a head can be trained.

The model sums transformed embeddings of the visible tokens, without attention or layers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from llm.config import ObjectiveConfig
from llm.evaluation.metrics import finalize_metrics
from llm.finite.policy_table import Comparisons, ResponseSpace, all_responses, comparison_batch
from llm.models.logprobs import response_log_probs
from llm.models.protocol import Head, LanguageModel
from llm.parallel.mesh import single_device
from llm.train.step import (
    gradients,
    init_train_state,
    make_evaluation_step,
    make_train_step,
)
from llm.types import Batch, Rows
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs

EXACT = 1e-11  # float64, relative to the largest entry, after two passes through the model
VOCABULARY, WIDTH, END = 3, 4, 2
SPACE = ResponseSpace(
    prompts=((0,), (1, 0)), responses=all_responses((0, 1), end=END, max_length=2)
)
CONFIG = ObjectiveConfig(beta=0.3, eta=0.7)
RATE = 0.1
DEVICES = single_device()
compiled = jax.jit(
    gradients,
    static_argnames=("config", "devices"),
    compiler_options={"xla_backend_optimization_level": 0},  # compiling is the cost here
)


run = functools.partial(compiled, devices=DEVICES)


class Bag(nnx.Module):
    """Sums the embeddings of visible tokens, each times a matrix of its position; tied head."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        def normal(*shape: int) -> jax.Array:
            return jax.random.normal(rngs.params(), shape)

        self.embedding = nnx.Param(normal(VOCABULARY, WIDTH))
        self.position_kernel = nnx.Param(normal(8, WIDTH, WIDTH))
        self.scale = nnx.Variable(jnp.array(0.5))

    def hidden_states(self, rows: Rows) -> jax.Array:
        segments, branches = jnp.asarray(rows.segments), jnp.asarray(rows.branches)
        seen = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
        seen &= (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
        seen &= jnp.tri(segments.shape[1], dtype=bool)
        embedded = self.embedding[...][jnp.asarray(rows.tokens)]
        moved = jnp.einsum(
            "rtd,rtde->rte", embedded, self.position_kernel[...][jnp.asarray(rows.positions)]
        )
        return jnp.tanh(
            self.scale[...] * jnp.einsum("rts,rsd->rtd", seen.astype(moved.dtype), moved)
        )

    def head(self) -> Head:
        return Head(self.embedding[...], None)


def bag(seed: int) -> Bag:
    return Bag(rngs=nnx.Rngs(seed))


def pieces(seed: int = 0) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    graphdef, trainable, frozen = nnx.split(bag(seed), nnx.Param, ...)
    return graphdef, trainable, frozen


def comparisons(n: int = 8) -> Comparisons:
    rng = np.random.default_rng(0)
    responses = len(SPACE.responses)
    winners = rng.integers(0, responses, n)
    losers = (winners + rng.integers(1, responses, n)) % responses
    counts = rng.uniform(1.0, 3.0, n)
    return Comparisons(
        rng.integers(0, 2, n), winners, losers, counts, rng.integers(0, responses, n)
    )


def in_parts(parts: int, n: int = 8) -> Batch:
    """Return the comparisons in parts of equal size, along a leading axis."""
    whole = comparisons(n)
    size = n // parts
    batches = [
        comparison_batch(SPACE, jax.tree.map(lambda leaf, s=s: leaf[s : s + size], whole))
        for s in range(0, n, size)
    ]
    longest = max(len(batch.completions.flat_index) for batch in batches)

    def padded(batch: Batch) -> Batch:
        missing = (0, longest - len(batch.completions.flat_index))
        index, target, response = (np.pad(leaf, missing) for leaf in batch.completions)
        response[longest - missing[1] :] = 3 * size
        return batch._replace(completions=type(batch.completions)(index, target, response))

    return DEVICES.assign(jax.tree.map(lambda *leaves: np.stack(leaves), *map(padded, batches)))


@functools.cache
def with_cached_reference(parts: int) -> Batch:
    batches, (graphdef, state) = in_parts(parts), nnx.split(bag(1))

    @jax.jit
    def log_probs(batch: Batch) -> jax.Array:
        return response_log_probs(nnx.merge(graphdef, state), batch)

    found = [log_probs(jax.tree.map(lambda leaf, i=i: leaf[i, 0], batches)) for i in range(parts)]
    return batches._replace(reference=np.stack([np.asarray(part) for part in found])[:, None])


def one_sequence_per_row() -> Rows:
    sequences = [(*p, *r) for p in SPACE.prompts for r in SPACE.responses]
    shape = (len(sequences), max(map(len, sequences)))
    tokens, segments = np.zeros(shape, int), np.zeros(shape, int)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)], segments[row, : len(sequence)] = sequence, 1
    return Rows(tokens, np.tile(np.arange(shape[1]), (shape[0], 1)), segments, 0 * segments)


def assert_close(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = float(np.abs(np.asarray(theirs)).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT * max(scale, 1e-3))


def test_property_any_module_with_hidden_states_and_a_head_is_a_language_model() -> None:
    assert isinstance(bag(0), LanguageModel)


def test_gradient_equals_autodiff_of_the_theory_on_full_logits() -> None:
    """The expected loss sums over single sequences and averages losses.rpo by counts."""
    graphdef, trainable, frozen = pieces()
    batches = with_cached_reference(1)
    data = comparisons()

    tokens = [
        (prompt * len(SPACE.responses) + response, len(SPACE.prompts[prompt]) - 1 + i, token)
        for prompt in range(len(SPACE.prompts))
        for response, letters in enumerate(SPACE.responses)
        for i, token in enumerate(letters)
    ]
    row, column, token = np.array(tokens).T
    owner = (np.arange(row.max() + 1)[:, None] == row).astype(float)

    def table(model: Bag) -> jax.Array:
        hidden = model.hidden_states(one_sequence_per_row())
        logits = jax.nn.log_softmax(hidden @ model.embedding[...].T)
        return (jnp.asarray(owner) @ logits[row, column, token]).reshape(len(SPACE.prompts), -1)

    other = bag(1)

    def loss(trainable: nnx.State) -> jax.Array:
        policy, reference = table(nnx.merge(graphdef, trainable, frozen)), table(other)
        pairs = [
            PairLogProbs(of[data.contexts, data.winners], of[data.contexts, data.losers])
            for of in (policy, reference)
        ]
        base = policy[data.contexts, np.asarray(data.baselines)]
        each = losses.rpo(pairs[0], pairs[1], base, beta=CONFIG.beta, eta=CONFIG.eta)
        return jnp.average(each, weights=data.counts)

    value, wanted = jax.jit(jax.value_and_grad(loss))(trainable)
    got, result = run(graphdef, trainable, frozen, batches, CONFIG)
    np.testing.assert_allclose(result.metrics["loss"], value, rtol=EXACT)
    assert_close(got, wanted)
    squares = sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(wanted))
    np.testing.assert_allclose(result.metrics["grad_norm"], np.sqrt(squares), rtol=EXACT)
    assert result.non_finite.shape == (1, 1, 8)
    assert not result.non_finite.any()


@pytest.mark.parametrize("reduction", ["sum", "pooled_mean"])
def test_property_parts_of_a_batch_give_the_gradient_of_the_whole(reduction: Any) -> None:
    graphdef, trainable, frozen = pieces()
    config = ObjectiveConfig(beta=0.3, eta=0.7, sft_reduction=reduction)
    whole, halves = (with_cached_reference(parts) for parts in (1, 2))
    wanted, whole_result = run(graphdef, trainable, frozen, whole, config)
    got, result = run(graphdef, trainable, frozen, halves, config)
    assert_close(got, wanted)
    assert_close(result.metrics, whole_result.metrics)
    assert result.non_finite.shape == (2, 1, 4)


@pytest.mark.parametrize("method", ["aot", "kto"])
def test_property_a_loss_of_the_whole_batch_does_not_depend_on_its_parts(method: str) -> None:
    graphdef, trainable, frozen = pieces()
    config = ObjectiveConfig(method="rpo", beta=0.3, eta=0.7, preference=method)
    batches = [with_cached_reference(parts)._replace(weights=None) for parts in (1, 2)]
    (wanted, whole_result), (got, result) = (
        run(graphdef, trainable, frozen, batch, config) for batch in batches
    )
    assert_close(got, wanted)
    assert_close(result.metrics, whole_result.metrics)

    # A fixed cotangent of the log-probabilities, taken at once, gives the same gradient.
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches[0])

    def loss(trainable: nnx.State) -> jax.Array:
        policy = response_log_probs(nnx.merge(graphdef, trainable, frozen), batch)
        pairs = [PairLogProbs(of[:, 0], of[:, 1]) for of in (policy, jnp.asarray(batch.reference))]
        sft = losses.sft(policy[:, 2]).mean()
        if method == "aot":
            return losses.aot(*pairs, beta=0.3).mean() + 0.21 * sft
        ratios = jnp.stack([first - second for first, second in zip(*pairs, strict=True)])
        point = jnp.maximum(ratios.mean(), 0.0)
        of_chosen = jnp.array([[True], [False]]) & jnp.ones(ratios.shape, bool)
        zero = jnp.zeros_like(ratios)
        return losses.kto(ratios, zero, of_chosen, beta=0.3, reference_point=point).mean() + (
            0.21 * sft
        )

    value, slopes = jax.jit(jax.value_and_grad(loss))(trainable)
    np.testing.assert_allclose(result.metrics["loss"], value, rtol=EXACT)
    assert_close(got, slopes)


def test_closed_form_a_step_of_gradient_descent() -> None:
    graphdef, trainable, frozen = pieces()
    batches = with_cached_reference(2)
    grads, _ = run(graphdef, trainable, frozen, batches, CONFIG)
    wanted = jax.tree.map(lambda leaf, slope: np.asarray(leaf - RATE * slope), trainable, grads)
    optimizer = optax.sgd(RATE)
    step = make_train_step(graphdef, CONFIG, optimizer, devices=DEVICES)
    state, _ = step(init_train_state(trainable, optimizer), frozen, batches)
    assert int(state.step) == 1
    assert_close(state.trainable, wanted)


def test_compiles_once_and_reuses_the_buffers_of_its_state() -> None:
    graphdef, trainable, frozen = pieces()
    batches = with_cached_reference(2)
    optimizer = optax.adam(optax.linear_schedule(RATE, 0.0, 10))
    step = make_train_step(graphdef, CONFIG, optimizer, devices=DEVICES)
    first = DEVICES.put(init_train_state(trainable, optimizer))
    state, before = step(first, frozen, batches)
    state, _ = step(state, frozen, batches)
    state, after = step(state, frozen, batches)
    assert step._cache_size() == 1  # type: ignore[attr-defined]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.trainable))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    assert float(after.metrics["loss"]) < float(before.metrics["loss"])


def test_property_evaluation_measures_what_the_step_does_and_compiles_once() -> None:
    graphdef, trainable, frozen = pieces()
    batches = with_cached_reference(2)
    _, result = run(graphdef, trainable, frozen, batches, CONFIG)
    evaluate = make_evaluation_step(graphdef, CONFIG, devices=DEVICES)
    totals, log_probs = evaluate(trainable, frozen, batches)
    got = finalize_metrics(CONFIG, totals)
    assert_close(got["logps/chosen"], np.average(log_probs[..., 0], weights=batches.weights))
    evaluate(trainable, frozen, batches)
    assert evaluate._cache_size() == 1  # type: ignore[attr-defined]
    assert_close(got, {name: result.metrics[name] for name in got})


def test_extreme_a_pair_that_is_not_finite_is_flagged() -> None:
    graphdef, trainable, frozen = pieces()
    batches = with_cached_reference(2)
    reference = np.array(batches.reference)
    reference[1, 0, 2, 0] = np.nan
    batches = batches._replace(reference=reference)
    _, result = run(graphdef, trainable, frozen, batches, CONFIG)
    assert np.argwhere(result.non_finite).tolist() == [[1, 0, 2]]
    assert np.isnan(result.metrics["grad_norm"])


def test_raises_without_any_reference() -> None:
    graphdef, trainable, frozen = pieces()
    with pytest.raises(ValueError, match="`reference` must be given for method 'rpo'"):
        gradients(graphdef, trainable, frozen, in_parts(1), CONFIG, devices=DEVICES)
