"""Claims about packing: both modes agree on log-probabilities and gradients, and waste little."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ObjectiveConfig
from llm.data.loader import BatchSampler, iterate_batches
from llm.data.packing import (
    BatchShape,
    PackingMode,
    pack,
    packed_token_counts,
    required_shape,
    responses_by_role,
    round_up_shape,
)
from llm.data.preferences import PairTokens
from llm.evaluation.metrics import compute_metric_sums, finalize_metrics
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.logprobs import response_log_probs
from llm.types import Batch, Branch, Rows

VOCABULARY = 13
LONGEST = 12
EXACT = 1e-10  # float64, another order of summation
SMALL = Architecture(
    vocab_size=VOCABULARY,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def random_pairs(n: int, *, baseline: bool = False, seed: int = 0) -> list[PairTokens]:
    rng = np.random.default_rng(seed)

    def tokens(least: int) -> tuple[int, ...]:
        return tuple(rng.integers(VOCABULARY, size=rng.integers(least, 7)).tolist())

    return [
        PairTokens(
            tokens(1), tokens(1), tokens(1), tokens(1) if baseline and row % 2 else None, row
        )
        for row in range(n)
    ]


def packed(pairs: list[PairTokens], layout: PackingMode, roles: int = 2, spare: int = 0) -> Batch:
    required = required_shape(pairs, layout=layout, roles=roles)
    shape = BatchShape(
        rows=required.rows + spare * roles,
        row_tokens=required.row_tokens + 3 * spare,
        completions=required.completions + 5 * spare,
        longest=required.longest + spare,
    )
    return pack(pairs, layout=layout, roles=roles, n_pairs=len(pairs) + spare, shape=shape)


def with_masks(pairs: list[PairTokens]) -> list[PairTokens]:
    """Leave the tokens in the middle of most pairs' responses unscored, or the first ones."""

    def mask(part: tuple[int, ...] | None, row: int) -> tuple[bool, ...] | None:
        if part is None or len(part) == 1 + row % 4:
            return None
        last = len(part) - 1
        return tuple(index in (last, row % 4) for index in range(len(part)))

    return [
        pair
        if pair.row % 4 == 1
        else pair._replace(scored=tuple(mask(part, pair.row // 2) for part in pair[1:4]))
        for pair in pairs
    ]


def unpacked_log_prob(
    decoder: Decoder,
    pair: PairTokens,
    response: tuple[int, ...],
    scored: tuple[bool, ...] | None = None,
) -> float:
    """Log-probability of the scored tokens of a response, from the logits of one sequence."""
    sequence = [*pair.prompt, *response]
    tokens = np.array([sequence + [0] * (LONGEST - len(sequence))])
    real = (np.arange(LONGEST) < len(sequence))[None].astype(int)
    rows = Rows(tokens, np.arange(LONGEST)[None], real, 0 * real)
    log_probs = np.asarray(jax.nn.log_softmax(logits(decoder, rows)[0]))
    positions = np.arange(len(pair.prompt), len(sequence))
    if scored is not None:
        positions = positions[np.array(scored)]
    return sum(float(log_probs[position - 1, sequence[position]]) for position in positions)


@nnx.jit
def logits(decoder: Decoder, rows: Rows) -> jax.Array:
    return decoder.hidden_states(rows) @ decoder.head().weight.T


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    with jax.enable_x64(True):
        return Decoder(SMALL, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)


@pytest.mark.parametrize("layout", ["separate", "shared"])
@pytest.mark.parametrize("roles", [2, 3])
def test_parity_with_one_sequence_per_row(
    decoder: Decoder, layout: PackingMode, roles: int
) -> None:
    pairs = with_masks(random_pairs(4, baseline=roles == 3))
    batch = packed(pairs, layout, roles, spare=2)
    found = response_log_probs(decoder, batch)
    counts = []
    for number, pair in enumerate(pairs):
        chosen, rejected, baseline = pair.scored or (None, None, None)
        scored = [chosen, rejected, chosen if pair.baseline is None else baseline][:roles]
        both = list(zip(responses_by_role(pair, roles), scored, strict=True))
        expected = [unpacked_log_prob(decoder, pair, *each) for each in both]
        np.testing.assert_allclose(found[number], expected, rtol=EXACT, err_msg=str(number))
        counts.append([len(part) if mask is None else sum(mask) for part, mask in both])
    np.testing.assert_array_equal(found[len(pairs) :], 0.0)
    np.testing.assert_array_equal(batch.lengths[: len(pairs)], counts)
    # The loss: means over scored tokens, and the margin of their log-probabilities.
    config = ObjectiveConfig(beta=0.7, eta=0.3, sft_reduction="sequence_mean")
    reference = np.linspace(-3.0, -1.0, found.size).reshape(found.shape)
    loss = finalize_metrics(config, compute_metric_sums(config, found, reference, batch))["loss"]
    policy, role = np.asarray(found)[: len(pairs)], 2 if roles == 3 else 0
    ratio = 0.7 * (policy - reference[: len(pairs)])
    dpo = np.mean(np.log1p(np.exp(ratio[:, 1] - ratio[:, 0])))
    sft = np.mean(-policy[:, role] / np.array(counts)[:, role])
    np.testing.assert_allclose(loss, dpo + 0.3 * 0.7 * sft, rtol=EXACT)


def test_gradient_of_both_packing_modes_agrees(decoder: Decoder) -> None:
    pairs = random_pairs(5, seed=1)
    graphdef, parameters = nnx.split(decoder)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))

    def gradient(batch: Batch) -> list[jax.Array]:
        def weighted_sum(parameters: nnx.State) -> jax.Array:
            return jnp.sum(weights * response_log_probs(nnx.merge(graphdef, parameters), batch))

        return jax.tree.leaves(jax.jit(jax.grad(weighted_sum))(parameters))

    separate, shared = (gradient(packed(pairs, layout)) for layout in ("separate", "shared"))
    for first, second in zip(separate, shared, strict=True):
        np.testing.assert_allclose(first, second, atol=EXACT, rtol=EXACT)


def test_closed_form_a_shared_row_reads_rejected_from_the_end_of_the_prompt() -> None:
    pair = PairTokens((1, 2), (3, 4, 5), (6, 7), None, 9)
    batch = packed([pair], "shared")
    np.testing.assert_array_equal(batch.rows.tokens, [[1, 2, 3, 4, 6]])
    np.testing.assert_array_equal(batch.rows.positions, [[0, 1, 2, 3, 2]])
    np.testing.assert_array_equal(
        batch.rows.branches,
        [[Branch.PROMPT] * 2 + [Branch.CHOSEN] * 2 + [Branch.REJECTED]],
    )
    np.testing.assert_array_equal(batch.completions.flat_index, [1, 2, 3, 1, 4])
    np.testing.assert_array_equal(batch.completions.target, [3, 4, 5, 6, 7])
    np.testing.assert_array_equal(batch.completions.response, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(batch.lengths, [[3, 2]])
    assert batch.row_ids.tolist() == [9]


def test_raises_if_pairs_do_not_fit_the_shape() -> None:
    pairs = random_pairs(2)
    required = required_shape(pairs, layout="shared", roles=2)
    tight = dataclasses.replace(required, row_tokens=required.row_tokens - 1)
    with pytest.raises(ValueError, match="`shape` must hold 2 pairs"):
        pack(pairs, layout="shared", roles=2, n_pairs=2, shape=tight)
    with pytest.raises(ValueError, match="`shape` must hold 2 pairs"):
        pack(pairs, layout="shared", roles=2, n_pairs=1, shape=required)


@given(st.integers(1, 10**6))
def test_property_rounding_up_a_shape_adds_at_most_a_64th(size: int) -> None:
    shape = round_up_shape(BatchShape(rows=1, row_tokens=size, completions=1, longest=1))
    assert size <= shape.row_tokens <= max(size * (1 + 1 / 64), size + 64)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 40),
    per_microbatch=st.integers(1, 4),
    accumulation_steps=st.integers(1, 3),
    seed=st.none() | st.integers(0, 5),
)
def test_property_every_pair_is_in_exactly_one_step_of_an_epoch(
    n: int, per_microbatch: int, accumulation_steps: int, seed: int | None
) -> None:
    sampler = BatchSampler(random_pairs(n), "shared", per_microbatch, accumulation_steps, seed)
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        rows = np.concatenate([sampler.batch(step).row_ids.ravel() for step in steps])
        assert sorted(rows[rows >= 0].tolist()) == list(range(n))


def test_roundtrip_batches_do_not_depend_on_the_first_step_read() -> None:
    pairs = random_pairs(23)
    whole = dict(iterate_batches(BatchSampler(pairs, "shared", 2, 2, 3), 0, 14))
    later = dict(iterate_batches(BatchSampler(pairs, "shared", 2, 2, 3), 8, 14))
    assert sorted(whole) == list(range(14))
    for step, batch in later.items():
        jax.tree.map(np.testing.assert_array_equal, batch, whole[step])
    orders = [whole[step].row_ids.tolist() for step in (0, 6)]
    assert orders[0] != orders[1]  # another epoch, another order


def test_closed_form_steps_are_balanced_by_tokens() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        PairTokens(
            (1,) * int(rng.integers(1, 200)), (1,) * int(rng.integers(1, 200)), (1, 2), None, row
        )
        for row in range(512)
    ]
    sampler = BatchSampler(pairs, "shared", 8, 1, 0)
    sizes = packed_token_counts(pairs, layout="shared", roles=2)
    tokens = [sizes[sampler.pair_indices(k)].sum() for k in range(64)]
    assert max(tokens) - min(tokens) < 0.05 * np.mean(tokens)
