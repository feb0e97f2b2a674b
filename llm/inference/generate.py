r"""Generation: greedy decoding, or sampling by the options of :class:`GenerationConfig`.

:func:`generate_tokens` decodes a batch of prompts of different lengths with a key-value cache, in
one compiled loop that ends when every sequence has ended. :func:`generate_replies` runs whole
conversations, reply by reply, through a tokenizer. A sample depends on the seed and on the index of
its prompt, not on the batch that the prompt is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from llm.data.preferences import Message
from llm.models.decoder import Cache, Decoder
from llm.parallel.mesh import Devices, on_host, single_device
from llm.parallel.vocab import VocabParallel
from llm.text.tokenizer import Tokenizer

from .sampling import GenerationConfig, penalize_repetitions, sample_tokens

__all__ = [
    "Conversation",
    "GeneratedTokens",
    "GenerationConfig",
    "NonFiniteLogitsError",
    "Progress",
    "Reply",
    "generate_replies",
    "generate_tokens",
    "sample_tokens",
]

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""A function of the batches and their number that yields the batches, such as a progress bar."""

PROMPT_MULTIPLE = 64
"""Prompts are padded to a multiple of this many tokens, so that few shapes are compiled."""
NO_TOKEN = -1
"""Marks padding, in positions and in generated tokens."""
NO_STEP = -1
"""Marks rows whose logits were finite at every step."""


class NonFiniteLogitsError(ValueError):
    """An error of logits that are infinite or not a number.

    Args:
        index: index of the prompt.
        step: number of the token that they predict, from 1.
        source: name of the prompt in the message.
    """

    def __init__(self, index: int, step: int, source: str) -> None:
        """Store index and step."""
        super().__init__(
            f"{source}: the logits of token {step} of the reply are not finite: the weights are "
            "damaged, or too large for the dtype"
        )
        self.index: int = index
        self.step: int = step


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
    end_ids: Collection[int] = (),
    batch_size: int = 8,
    devices: Devices | None = None,
    progress: Progress = lambda batches, n_batches: batches,
) -> list[list[Reply]]:
    """Generate the replies of conversations: the first reply of each, then the second, and so on.

    Args:
        decoder: the model.
        tokenizer: tokenizer of the model.
        conversations: conversations with one or more prompts each; a later prompt follows the
            replies to the earlier ones.
        config: options of generation.
        end_ids: token ids that end a reply, besides those of the tokenizer.
        batch_size: number of conversations that are decoded together, see :func:`generate_tokens`.
        devices: mesh that the model is sharded over; None for JAX's default device.
        progress: function that yields the batches of a round of replies, see :data:`Progress`.

    Returns:
        For each conversation, one reply per prompt.

    Raises:
        ValueError: if a prompt with ``max_new_tokens`` exceeds the model's positions, cannot be
            written as tokens, or leads to logits that are not finite; the message names the
            conversation's source.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> from llm.text.tokenizer import ByteTokenizer
        >>> sizes = dict(vocab_size=261, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> decoder = Decoder(Architecture(**sizes, num_attention_heads=2), rngs=nnx.Rngs(0))
        >>> generate_replies(decoder, ByteTokenizer(), [], GenerationConfig())
        []
    """
    positions = decoder.architecture.max_position_embeddings
    max_prompt_tokens = positions - config.max_new_tokens
    if max_prompt_tokens < 1 and conversations:
        raise ValueError(
            f"`max_new_tokens` must be less than {positions:,}, which the model reads with the "
            f"prompt, got {config.max_new_tokens:,}"
        )
    replies: list[list[Reply]] = [[] for _ in conversations]
    for reply_index in range(max((len(each.prompts) for each in conversations), default=0)):
        indices = [i for i, each in enumerate(conversations) if reply_index < len(each.prompts)]
        prompts = []
        for i in indices:
            messages = list(conversations[i].prompts[0])
            for reply, following in zip(replies[i], conversations[i].prompts[1:], strict=False):
                messages += [Message("assistant", reply.text), *following]
            try:
                tools = getattr(conversations[i], "tools", "")
                prompts.append(tokenizer.encode_prompt(messages, tools=tools))
            except ValueError as error:
                raise ValueError(f"{conversations[i].where}: {error}") from error
            if len(prompts[-1]) > max_prompt_tokens:
                raise ValueError(
                    f"{conversations[i].where}: the prompt has {len(prompts[-1])} tokens, but the "
                    f"model reads {max_prompt_tokens} before {config.max_new_tokens} new ones"
                )
        try:
            generated = generate_tokens(
                decoder,
                prompts,
                config,
                end_ids=tokenizer.end_ids.union(end_ids),
                batch_size=batch_size,
                devices=devices,
                progress=progress,
            )
        except NonFiniteLogitsError as error:
            where = conversations[indices[error.index]].where
            raise NonFiniteLogitsError(error.index, error.step, where) from error
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
    devices: Devices | None = None,
    progress: Progress = lambda batches, n_batches: batches,
) -> list[GeneratedTokens]:
    """Generate a continuation of every prompt.

    Args:
        decoder: the model.
        prompts: token ids of each prompt, at least one.
        config: options of generation.
        end_ids: token ids that end a sequence.
        batch_size: number of prompts that are decoded together, on all devices; prompts are sorted
            by length. It is rounded up to a multiple of the devices that hold different prompts.
        devices: mesh that the model is sharded over; None for JAX's default device. On several
            processes all must call this function, with the same prompts.
        progress: function that yields the batches, see :data:`Progress`.

    Returns:
        The generated tokens of every prompt, in the order of the prompts.

    Raises:
        ValueError: if a prompt is empty, or has a token id outside the model's vocabulary.
        NonFiniteLogitsError: if logits are infinite or not a number; the message names the prompt
            and the token.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> decoder = Decoder(Architecture(**sizes, num_attention_heads=2), rngs=nnx.Rngs(0))
        >>> config = GenerationConfig(max_new_tokens=3)
        >>> len(generate_tokens(decoder, [[1, 2]], config, end_ids=())[0].tokens)
        3
    """
    _check_prompts(prompts, decoder.architecture.vocab_size, batch_size)
    devices = single_device() if devices is None else devices
    batch_size = devices.rows_of(min(batch_size, len(prompts)))
    graphdef, state = devices.split_model(decoder)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [
        order[start : start + batch_size] for start in range(0, len(order), max(1, batch_size))
    ]
    numbers = _Numbers(
        np.array(sorted(end_ids), dtype=np.int32),
        np.uint32(config.seed % 2**32),
        np.float32(config.temperature),
        np.float32(config.top_p),
        np.int32(config.top_k),
        np.float32(config.min_p),
        np.float32(config.repetition_penalty),
    )
    results: dict[int, GeneratedTokens] = {}
    for indices in progress(batches, len(batches)):
        # The last batch is filled up with empty prompts, which are finished from the start.
        n_padding = batch_size - len(indices)
        tokens, lengths = _pad([prompts[index] for index in indices] + [()] * n_padding)
        prompt_indices = np.array(list(indices) + [0] * n_padding, dtype=np.uint32)
        generated, finished, failed = map(
            on_host,
            _generate_batch(
                graphdef,
                state,
                devices.put_shared(numbers),
                devices.put_rows(_PromptRows(tokens, lengths, prompt_indices)),
                devices=devices,
                max_new_tokens=config.max_new_tokens,
                greedy=config.greedy,
                penalized=config.repetition_penalty != 1.0,
            ),
        )
        for index, step in sorted(zip(indices, failed.tolist(), strict=False)):
            if step != NO_STEP:
                raise NonFiniteLogitsError(index, step + 1, f"`prompts[{index}]`")
        rows = zip(generated, finished, strict=True)
        for index, (row, ended) in zip(indices, rows, strict=False):
            results[index] = GeneratedTokens(tuple(row[row != NO_TOKEN].tolist()), bool(ended))
    return [results[index] for index in range(len(prompts))]


class _Numbers(NamedTuple):
    """End tokens, seed and numbers of :class:`GenerationConfig` that need no other program."""

    end_tokens: Any
    seed: Any
    temperature: Any
    top_p: Any
    top_k: Any
    min_p: Any
    repetition_penalty: Any


class _PromptRows(NamedTuple):
    """Prompts of a batch: padded tokens, their true lengths, and the indices of the prompts."""

    tokens: Any
    lengths: Any
    indices: Any


class _LoopState(NamedTuple):
    """State of the decoding loop.

    Attributes:
        step: number of generated tokens.
        n_running: number of rows of all devices that need a further token; the devices of a mesh
            make the same number of steps, because each step has collectives.
        hidden: hidden state that predicts the next token.
        cache: keys and values of the earlier tokens.
        generated: the tokens, padded with ``NO_TOKEN``.
        finished: rows that need no further token.
        failed: first step at which the logits of a row were not finite, or ``NO_STEP``.
        seen: tokens of the prompt and of the reply; None if they are not penalized.
    """

    step: Int[Array, ""]
    n_running: Int[Array, ""]
    hidden: Float[Array, "r D"]
    cache: Cache
    generated: Int[Array, "r new"]
    finished: Bool[Array, " r"]
    failed: Int[Array, " r"]
    seen: Bool[Array, "r V"] | None


@partial(jax.jit, static_argnames=("graphdef", "devices", "max_new_tokens", "greedy", "penalized"))
def _generate_batch(
    graphdef: nnx.GraphDef,
    state: Any,
    numbers: _Numbers,
    prompts: _PromptRows,
    *,
    devices: Devices,
    max_new_tokens: int,
    greedy: bool,
    penalized: bool,
) -> tuple[Int[Array, "r new"], Bool[Array, " r"], Int[Array, " r"]]:
    """Return tokens, padded with ``NO_TOKEN``, which rows ended, and where logits failed."""
    on_device = partial(
        _generate_rows,
        graphdef,
        max_new_tokens=max_new_tokens,
        greedy=greedy,
        penalized=penalized,
    )
    return devices.map_rows(on_device)(state, numbers, prompts)


def _generate_rows(
    graphdef: nnx.GraphDef,
    state: Any,
    numbers: _Numbers,
    prompts: _PromptRows,
    *,
    max_new_tokens: int,
    greedy: bool,
    penalized: bool,
) -> tuple[Int[Array, "r new"], Bool[Array, " r"], Int[Array, " r"]]:
    """Return the results of :func:`_generate_batch` for the rows of one device."""
    decoder, (tokens, lengths, _) = nnx.merge(graphdef, state), prompts
    head, plan = decoder.head(), decoder.sharding_plan
    vocab = VocabParallel(head.vocab_axes)
    n_rows, width = tokens.shape
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    positions = jnp.where(columns < lengths[:, None], columns, NO_TOKEN)
    cache = decoder.init_cache(n_rows, width + max_new_tokens)
    hidden, cache = decoder.decode(tokens, positions, cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(numbers.seed), prompts.indices)

    def body(loop: _LoopState) -> _LoopState:
        logits = vocab.gather_vocabulary(head.logits(vocab.all_gather_tokens(loop.hidden)))
        if loop.seen is not None:
            logits = penalize_repetitions(logits, loop.seen, numbers.repetition_penalty)
        is_usable = jnp.isfinite(logits).all(axis=-1)
        failed = jnp.where(loop.finished | is_usable, loop.failed, loop.step)
        if greedy:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, loop.step)
            filters = numbers.temperature, numbers.top_p, numbers.top_k, numbers.min_p
            token = sample_tokens(logits, step_keys, *filters)
        finished = loop.finished | jnp.isin(token, numbers.end_tokens) | (failed != NO_STEP)
        generated = loop.generated.at[:, loop.step].set(jnp.where(finished, NO_TOKEN, token))
        # A finished row is padding: its position is NO_TOKEN.
        positions = jnp.where(finished, NO_TOKEN, lengths + loop.step)[:, None]
        hidden, cache = decoder.decode(token[:, None], positions, loop.cache)
        seen = None if loop.seen is None else loop.seen.at[row, token].set(True)
        return _LoopState(
            step=loop.step + 1,
            n_running=plan.batch_sum(jnp.sum(~finished)),
            hidden=hidden[:, 0],
            cache=cache,
            generated=generated,
            finished=finished,
            failed=failed,
            seen=seen,
        )

    def is_running(loop: _LoopState) -> Array:
        return (loop.step < max_new_tokens) & (loop.n_running > 0)

    row = jnp.arange(n_rows)
    seen = None
    if penalized:
        seen = jnp.zeros((n_rows, decoder.architecture.vocab_size), bool)
        # Padding is written past the last token, where ``mode="drop"`` discards it.
        prompt = jnp.where(positions >= 0, tokens, seen.shape[1])
        seen = seen.at[row[:, None], prompt].set(True, mode="drop")
    start = _LoopState(
        step=jnp.int32(0),
        n_running=plan.batch_sum(jnp.sum(lengths > 0)),
        hidden=hidden,
        cache=cache,
        generated=jnp.full((n_rows, max_new_tokens), NO_TOKEN, jnp.int32),
        finished=lengths == 0,
        failed=jnp.full(n_rows, NO_STEP, jnp.int32),
        seen=seen,
    )
    end = jax.lax.while_loop(is_running, body, start)
    return end.generated, end.finished, end.failed


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
