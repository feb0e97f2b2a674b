r"""Generation: greedy decoding, or sampling with a temperature and a nucleus (top-p).

:func:`generate_tokens` decodes a batch of prompts of different lengths with a key-value cache, in
one compiled loop that ends when every sequence has ended. :func:`generate_replies` runs whole
conversations, reply by reply, through a tokenizer. A sample depends on the seed and on the index of
its prompt, not on the batch that the prompt is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from llm.data.preferences import Message
from llm.models.decoder import Cache, Decoder
from llm.text.tokenizer import Tokenizer

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""A function of the batches and their number that yields the batches, such as a progress bar."""

PROMPT_MULTIPLE = 64
"""Prompts are padded to a multiple of this many tokens, so that few shapes are compiled."""
NO_TOKEN = -1
"""Marks padding, in positions and in generated tokens."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    r"""Options of generation, with the names of ``transformers.GenerationConfig``.

    Attributes:
        max_new_tokens: largest number of tokens of a reply, at least 1.
        temperature: :math:`t\ge 0`: tokens are drawn from :math:`p^{1/t}`, normalized; 0 is greedy
            decoding.
        top_p: in (0, 1]: draw only from the smallest set of tokens whose probabilities, at the
            temperature, sum to at least ``top_p``.
        seed: seed of the samples.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> GenerationConfig(temperature=0.7, top_p=0.9).greedy
        False
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` must be 0 or more and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


class GeneratedTokens(NamedTuple):
    """Tokens that were generated for one prompt.

    Attributes:
        tokens: token ids, without the end token.
        finished: True if an end token was generated, False if ``max_new_tokens`` was reached.
    """

    tokens: tuple[int, ...]
    finished: bool


class Reply(NamedTuple):
    """A reply of the model in a conversation.

    Attributes:
        text: decoded text, without special tokens.
        finished: True if an end token was generated, False if ``max_new_tokens`` was reached.
        tokens: number of tokens, without the end token.
    """

    text: str
    finished: bool
    tokens: int


@runtime_checkable
class Conversation(Protocol):
    """A conversation whose replies are to be generated."""

    @property
    def prompts(self) -> Sequence[Sequence[Message]]:
        """New messages before each reply: first the prompt, then what follows each reply."""
        ...

    @property
    def where(self) -> str:
        """Source of the conversation, such as ``file:line``, for error messages."""
        ...


def generate_replies(
    decoder: Decoder,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    config: GenerationConfig,
    *,
    batch_size: int = 8,
    progress: Progress = lambda batches, n_batches: batches,
) -> list[list[Reply]]:
    """Generate the replies of conversations: the first reply of each, then the second, and so on.

    Args:
        decoder: the model.
        tokenizer: tokenizer of the model.
        conversations: conversations with one or more prompts each; a later prompt follows the
            replies to the earlier ones.
        config: options of generation.
        batch_size: number of conversations that are decoded together.
        progress: function that yields the batches of a round of replies, see :data:`Progress`.

    Returns:
        For each conversation, one reply per prompt.

    Raises:
        ValueError: if a prompt with ``max_new_tokens`` exceeds the model's positions; the message
            names the conversation's source.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> from llm.text.tokenizer import ByteTokenizer
        >>> sizes = dict(vocab_size=261, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> decoder = Decoder(Architecture(**sizes, num_attention_heads=2), rngs=nnx.Rngs(0))
        >>> generate_replies(decoder, ByteTokenizer(), [], GenerationConfig())
        []
    """
    max_prompt_tokens = decoder.architecture.max_position_embeddings - config.max_new_tokens
    replies: list[list[Reply]] = [[] for _ in conversations]
    for reply_index in range(max((len(each.prompts) for each in conversations), default=0)):
        indices = [i for i, each in enumerate(conversations) if reply_index < len(each.prompts)]
        prompts = []
        for i in indices:
            messages = list(conversations[i].prompts[0])
            for reply, following in zip(replies[i], conversations[i].prompts[1:], strict=False):
                messages += [Message("assistant", reply.text), *following]
            prompts.append(tokenizer.encode_prompt(messages))
            if len(prompts[-1]) > max_prompt_tokens:
                raise ValueError(
                    f"{conversations[i].where}: the prompt has {len(prompts[-1])} tokens, but the "
                    f"model reads {max_prompt_tokens} before {config.max_new_tokens} new ones"
                )
        generated = generate_tokens(
            decoder,
            prompts,
            config,
            end_ids=tokenizer.end_ids,
            batch_size=batch_size,
            progress=progress,
        )
        for i, (tokens, finished) in zip(indices, generated, strict=True):
            replies[i].append(Reply(tokenizer.decode(tokens), finished, len(tokens)))
    return replies


def generate_tokens(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    end_ids: Collection[int],
    batch_size: int = 8,
    progress: Progress = lambda batches, n_batches: batches,
) -> list[GeneratedTokens]:
    """Generate a continuation of every prompt.

    Args:
        decoder: the model.
        prompts: token ids of each prompt, at least one.
        config: options of generation.
        end_ids: token ids that end a sequence.
        batch_size: number of prompts that are decoded together; prompts are sorted by length.
        progress: function that yields the batches, see :data:`Progress`.

    Returns:
        The generated tokens of every prompt, in the order of the prompts.

    Raises:
        ValueError: if a prompt is empty, or has a token id outside the model's vocabulary.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> decoder = Decoder(Architecture(**sizes, num_attention_heads=2), rngs=nnx.Rngs(0))
        >>> config = GenerationConfig(max_new_tokens=3)
        >>> len(generate_tokens(decoder, [[1, 2]], config, end_ids=())[0].tokens)
        3
    """
    _check_prompts(prompts, decoder.architecture.vocab_size, batch_size)
    batch_size = min(batch_size, len(prompts))
    graphdef, state = nnx.split(decoder)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [
        order[start : start + batch_size] for start in range(0, len(order), max(1, batch_size))
    ]
    end_tokens = np.array(sorted(end_ids), dtype=np.int32)
    results: dict[int, GeneratedTokens] = {}
    for indices in progress(batches, len(batches)):
        # The last batch is filled up with empty prompts, which are finished from the start.
        n_padding = batch_size - len(indices)
        tokens, lengths = _pad([prompts[index] for index in indices] + [()] * n_padding)
        generated, finished = _generate_batch(
            graphdef,
            state,
            tokens,
            lengths,
            np.array(list(indices) + [0] * n_padding, dtype=np.uint32),
            end_tokens,
            np.uint32(config.seed % 2**32),
            np.float32(config.temperature),
            np.float32(config.top_p),
            max_new_tokens=config.max_new_tokens,
            greedy=config.greedy,
        )
        rows = zip(np.asarray(generated), np.asarray(finished), strict=True)
        for index, (row, ended) in zip(indices, rows, strict=False):
            results[index] = GeneratedTokens(tuple(row[row != NO_TOKEN].tolist()), bool(ended))
    return [results[index] for index in range(len(prompts))]


def sample_tokens(
    logits: Float[Array, "r V"],
    keys: Key[Array, " r"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Int[Array, " r"]:
    """Draw one token per row from the nucleus of the tempered distribution.

    Args:
        logits: logits of the next token.
        keys: one random key per row.
        temperature: a positive temperature.
        top_p: see :class:`GenerationConfig`; the token that reaches ``top_p`` belongs to the
            nucleus, and so do tokens with the same logit.

    Returns:
        Token ids.

    References:
        Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.

    Examples:
        >>> logits, key = jnp.log(jnp.array([[0.2, 0.5, 0.3]])), jax.random.key(0)[None]
        >>> sample_tokens(logits, key, jnp.float32(1.0), jnp.float32(0.4))
        Array([1], dtype=int32)
    """
    scaled = logits / temperature.astype(logits.dtype)
    ranked = -jnp.sort(-scaled, axis=-1)
    probs = jax.nn.softmax(ranked, axis=-1)
    mass_before = jnp.cumsum(probs, axis=-1) - probs
    in_nucleus = (mass_before < top_p.astype(logits.dtype)).at[:, 0].set(True)
    # A threshold on logits, not on ranks: equal logits are in the nucleus together.
    threshold = jnp.min(jnp.where(in_nucleus, ranked, jnp.inf), axis=-1, keepdims=True)
    truncated = jnp.where(scaled >= threshold, scaled, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, truncated).astype(jnp.int32)


class _LoopState(NamedTuple):
    """State of the decoding loop; ``hidden`` is the hidden state that predicts the next token."""

    step: Int[Array, ""]
    hidden: Float[Array, "r D"]
    cache: Cache
    generated: Int[Array, "r new"]
    finished: Bool[Array, " r"]


@partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "greedy"))
def _generate_batch(
    graphdef: nnx.GraphDef,
    state: Any,
    tokens: Int[Array, "r T"],
    lengths: Int[Array, " r"],
    prompt_indices: Array,
    end_tokens: Int[Array, " e"],
    seed: Array,
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    *,
    max_new_tokens: int,
    greedy: bool,
) -> tuple[Int[Array, "r new"], Bool[Array, " r"]]:
    """Return generated tokens, padded with ``NO_TOKEN``, and which rows reached an end token."""
    decoder = nnx.merge(graphdef, state)
    head = decoder.head()
    n_rows, width = tokens.shape
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    positions = jnp.where(columns < lengths[:, None], columns, NO_TOKEN)
    cache = decoder.init_cache(n_rows, width + max_new_tokens)
    hidden, cache = decoder.decode(tokens, positions, cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), prompt_indices)

    def body(loop: _LoopState) -> _LoopState:
        logits = head.logits(loop.hidden)
        if greedy:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step)
            token = sample_tokens(logits, step_keys, temperature, top_p)
        finished = loop.finished | jnp.isin(token, end_tokens)
        generated = loop.generated.at[:, loop.step].set(jnp.where(finished, NO_TOKEN, token))
        # A finished row is padding: its position is NO_TOKEN.
        positions = jnp.where(finished, NO_TOKEN, lengths + loop.step)[:, None]
        hidden, cache = decoder.decode(token[:, None], positions, loop.cache)
        return _LoopState(loop.step + 1, hidden[:, 0], cache, generated, finished)

    def is_running(loop: _LoopState) -> Array:
        return (loop.step < max_new_tokens) & ~jnp.all(loop.finished)

    generated = jnp.full((n_rows, max_new_tokens), NO_TOKEN, jnp.int32)
    start = _LoopState(jnp.int32(0), hidden, cache, generated, lengths == 0)
    end = jax.lax.while_loop(is_running, body, start)
    return end.generated, end.finished


def _pad(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad prompts at the end to one length; return the tokens and the true lengths."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
    width = PROMPT_MULTIPLE * math.ceil(lengths.max() / PROMPT_MULTIPLE)
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def _check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"`prompts[{number}]` has no tokens")
        unknown = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise ValueError(
                f"`prompts[{number}]` has token {unknown}, but the model embeds only "
                f"{vocab_size}: use the model's own tokenizer"
            )
