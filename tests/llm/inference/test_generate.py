"""Claims about generation, against config without a cache and nuclei computed in NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.data.preferences import Message
from llm.inference import continuous
from llm.inference.generate import (
    GeneratedTokens,
    GenerationConfig,
    NonFiniteLogitsError,
    Reply,
    generate_replies,
    generate_tokens,
    sample_tokens,
)
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.text.tokenizer import ByteTokenizer
from llm.types import Rows

# Options of Gemma 2: a sliding window, a soft cap, tied embeddings.
SMALL = Architecture(
    vocab_size=12,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    tie_word_embeddings=True,
    final_logit_softcapping=2.0,
    sliding_window=3,
    local_layers=(True, False),
)
BYTES = Architecture(
    vocab_size=261,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=32,
)
PROMPTS: list[list[int]] = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9], [3, 2]]
N_DRAWS = 20_000
FIVE_SIGMA = 5 * 0.5 / N_DRAWS**0.5  # five standard deviations of a frequency


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    with jax.enable_x64(True):
        return Decoder(SMALL, rngs=nnx.Rngs(2), dtype=jnp.float64, param_dtype=jnp.float64)


def next_logits(decoder: Decoder, tokens: Sequence[int]) -> np.ndarray:
    """Return the logits after a sequence, computed without a cache."""
    row = np.array([[*tokens, *[0] * (12 - len(tokens))]])
    filled = (np.arange(12) < len(tokens))[None].astype(int)
    hidden = read(decoder, Rows(row, np.arange(12)[None], filled, np.zeros_like(row)))
    head = decoder.head()
    logits = np.asarray(hidden)[0, len(tokens) - 1] @ np.asarray(head.weight).T
    assert head.soft_cap is not None
    return head.soft_cap * np.tanh(logits / head.soft_cap)


@nnx.jit
def read(decoder: Decoder, rows: Rows) -> jax.Array:
    return decoder.hidden_states(rows)


def greedy(
    decoder: Decoder, prompt: Sequence[int], n: int, ends: Iterable[int], penalty: float = 1.0
) -> GeneratedTokens:
    tokens: list[int] = []
    while len(tokens) < n:
        logits = next_logits(decoder, [*prompt, *tokens])
        for token in {*prompt, *tokens}:
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        token = int(logits.argmax())
        if token in ends:
            return GeneratedTokens(tuple(tokens), True)
        tokens.append(token)
    return GeneratedTokens(tuple(tokens), False)


def test_parity_greedy_decoding_with_and_without_a_cache(decoder: Decoder) -> None:
    free = [greedy(decoder, prompt, 6, ()) for prompt in PROMPTS]
    # End tokens that end some replies early, one at once, and some never.
    ends = {free[0].tokens[2], free[1].tokens[0]}
    expected = [greedy(decoder, prompt, 6, ends) for prompt in PROMPTS]
    assert len({len(reply.tokens) for reply in expected}) >= 2
    config = GenerationConfig(max_new_tokens=6)
    assert generate_tokens(decoder, PROMPTS, config, end_ids=(), batch_size=2) == free
    assert generate_tokens(decoder, PROMPTS, config, end_ids=ends, batch_size=2) == expected


def test_parity_repeated_tokens_of_prompt_and_reply_are_penalized(decoder: Decoder) -> None:
    free = [greedy(decoder, prompt, 6, ()) for prompt in PROMPTS]
    expected = [greedy(decoder, prompt, 6, (), penalty=1.4) for prompt in PROMPTS]
    assert sum(one != other for one, other in zip(free, expected, strict=True)) >= 3
    config = GenerationConfig(max_new_tokens=6, repetition_penalty=1.4)
    assert generate_tokens(decoder, PROMPTS, config, end_ids=(), batch_size=2) == expected


@pytest.fixture(scope="module")
def damaged() -> Decoder:
    """Return a decoder that cannot read token 7 and often writes it."""
    small = Decoder(replace(SMALL, tie_word_embeddings=False), rngs=nnx.Rngs(2))
    small.embedding[...] = small.embedding[...].at[7].set(jnp.nan)
    assert small.output is not None
    small.output[...] = small.output[...].at[7].multiply(3.0)
    return small


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 9}])
def test_raises_with_prompt_and_token_for_logits_that_are_not_finite(
    options: dict[str, Any], damaged: Decoder
) -> None:
    config = GenerationConfig(max_new_tokens=40, **options)
    outside = range(100, 112)
    for prompt, is_early in (([3, 7], True), ([1, 2], False)):
        with pytest.raises(NonFiniteLogitsError, match=r"`prompts\[0\]`: the logits of") as caught:
            generate_tokens(damaged, [prompt], config, end_ids=outside)
        assert caught.value.index == 0
        assert (caught.value.step == 1) == is_early
    # A reply that has ended before is not concerned.
    assert generate_tokens(damaged, [[1, 2]], config, end_ids=range(12))[0].finished


def test_property_a_sample_does_not_depend_on_its_batch(decoder: Decoder) -> None:
    config = GenerationConfig(max_new_tokens=6, temperature=1.3, top_p=0.9, seed=4)
    together = generate_tokens(decoder, PROMPTS, config, end_ids=(0,), batch_size=5)
    assert generate_tokens(decoder, PROMPTS, config, end_ids=(0,), batch_size=2) == together
    assert generate_tokens(decoder, PROMPTS, config, end_ids=(0,), batch_size=2) == together


def test_property_samples_differ_between_prompts_and_seeds(decoder: Decoder) -> None:
    def draw(seed: int) -> list[GeneratedTokens]:
        config = GenerationConfig(max_new_tokens=6, temperature=1.3, top_p=0.9, seed=seed)
        return generate_tokens(decoder, [[1, 2]] * 5, config, end_ids=(0,))

    assert len({*draw(0), *draw(1)}) > 5


def test_closed_form_tokens_are_drawn_from_the_tempered_nucleus() -> None:
    logits = np.log([0.05, 0.4, 0.3, 0.05, 0.2])
    temperature, top_p = 1.7, 0.8
    probs = np.exp(logits / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    size = 1 + int(np.searchsorted(np.cumsum(probs[order]), top_p))
    nucleus = np.isin(np.arange(5), order[:size])
    assert 1 < size < 5
    expected = np.where(nucleus, probs, 0) / probs[nucleus].sum()
    keys = jax.random.split(jax.random.key(0), N_DRAWS)
    rows = jnp.broadcast_to(jnp.asarray(logits), (N_DRAWS, 5))
    drawn = np.asarray(sample_tokens(rows, keys, jnp.float32(temperature), jnp.float32(top_p)))
    frequencies = np.bincount(drawn, minlength=5) / N_DRAWS
    assert (frequencies[~nucleus] == 0).all()
    assert np.abs(frequencies - expected).max() < FIVE_SIGMA


def test_limit_a_small_nucleus_is_greedy_and_a_full_one_keeps_every_token() -> None:
    logits = jnp.tile(jnp.log(jnp.array([[0.25, 0.3, 0.45]])), (200, 1))
    keys = jax.random.split(jax.random.key(1), 200)
    one, tiny, whole = (jnp.float32(value) for value in (1.0, 1e-6, 1.0))
    assert set(np.asarray(sample_tokens(logits, keys, one, tiny)).tolist()) == {2}
    assert set(np.asarray(sample_tokens(logits, keys, one, whole)).tolist()) == {0, 1, 2}


def test_limit_no_prompts_generate_nothing(decoder: Decoder) -> None:
    assert generate_tokens(decoder, [], GenerationConfig(), end_ids=()) == []


def test_compiles_once_for_all_batches_seeds_and_temperatures(decoder: Decoder) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "top_p": 0.5}
    compiled: Any = continuous._generate
    size = None
    for seed, temperature in ((0, 0.5), (7, 1.5)):
        config = GenerationConfig(seed=seed, temperature=temperature, **options)
        generate_tokens(decoder, PROMPTS, config, end_ids=(0,), batch_size=2)
        assert compiled._cache_size() == (size or compiled._cache_size())
        size = compiled._cache_size()


def test_extreme_bfloat16_with_a_progress_function() -> None:
    small = Decoder(SMALL, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    batch_counts: list[int] = []

    def progress(batches: Iterable[Any], n_batches: int) -> Iterable[Any]:
        batch_counts.append(n_batches)
        return batches

    config = GenerationConfig(max_new_tokens=3)
    replies = generate_tokens(small, PROMPTS, config, end_ids=(), batch_size=2, progress=progress)
    assert [len(reply.tokens) for reply in replies] == [3] * 5
    assert batch_counts == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
        ({"temperature": -0.1}, "`temperature` must be 0 or more"),
        ({"temperature": float("nan")}, "`temperature` must be 0 or more"),
        ({"temperature": float("inf")}, "`temperature` must be 0 or more and finite"),
        ({"top_p": 0.0}, "`top_p` must be above 0"),
        ({"top_p": 1.1}, "`top_p` must be above 0 and at most 1, got 1.1"),
    ],
)
def test_raises_for_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**options)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], r"`prompts\[1\]` has no tokens"),
        ([[1, 12]], r"`prompts\[0\]` has token 12, but the model embeds only 12"),
        ([[-1]], r"`prompts\[0\]` has token -1"),
    ],
)
def test_raises_for_prompts_that_cannot_be_read(
    prompts: list[list[int]], message: str, decoder: Decoder
) -> None:
    with pytest.raises(ValueError, match=message):
        generate_tokens(decoder, prompts, GenerationConfig(), end_ids=())


class Conversation(NamedTuple):
    prompts: tuple[tuple[Message, ...], ...]
    where: str


SYSTEM, FIRST, SECOND = Message("system", "s"), Message("user", "a"), Message("user", "b")
CONVERSATIONS = [
    Conversation(((SYSTEM, FIRST), (SECOND,)), "questions.jsonl:1"),
    Conversation(((SECOND,),), "questions.jsonl:2"),
]


@pytest.fixture(scope="module")
def byte_decoder() -> Decoder:
    return Decoder(BYTES, rngs=nnx.Rngs(3))


def test_parity_a_later_prompt_follows_the_reply_to_the_earlier_one(byte_decoder: Decoder) -> None:
    tokenizer, config = ByteTokenizer(), GenerationConfig(max_new_tokens=4)

    def reply(*messages: Message) -> Reply:
        prompt = tokenizer.encode_prompt(messages)
        (generated,) = generate_tokens(byte_decoder, [prompt], config, end_ids=tokenizer.end_ids)
        tokens, finished = generated
        return Reply(tokenizer.decode(tokens), finished, len(tokens))

    first = reply(SYSTEM, FIRST)
    second = reply(SYSTEM, FIRST, Message("assistant", first.text), SECOND)
    replies = generate_replies(byte_decoder, tokenizer, CONVERSATIONS, config)
    assert replies == [[first, second], [reply(SECOND)]]


def test_raises_with_the_source_of_a_conversation_that_is_too_long(byte_decoder: Decoder) -> None:
    config = GenerationConfig(max_new_tokens=27)
    message = r"^questions\.jsonl:1: the prompt has 6 tokens, but the model reads 5 before 27 new"
    with pytest.raises(ValueError, match=message):
        generate_replies(byte_decoder, ByteTokenizer(), CONVERSATIONS, config)


@pytest.mark.parametrize("weight", [jnp.inf, 3e38, jnp.nan])
def test_extreme_weights_that_overflow_are_refused_with_their_source(weight: float) -> None:
    small = Decoder(replace(BYTES, tie_word_embeddings=False), rngs=nnx.Rngs(0))
    assert small.output is not None
    small.output[...] = jnp.full_like(small.output[...], weight)
    conversation = Conversation(((Message("user", "Hi"),),), "rows.jsonl:7")
    with pytest.raises(ValueError, match=r"rows.jsonl:7: the logits of token 1 of the reply are"):
        generate_replies(small, ByteTokenizer(), [conversation], GenerationConfig(max_new_tokens=3))


def test_limit_no_conversations_have_no_replies(byte_decoder: Decoder) -> None:
    assert generate_replies(byte_decoder, ByteTokenizer(), [], GenerationConfig()) == []
