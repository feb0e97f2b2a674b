r"""Generation: greedy decoding, or sampling by the options of :class:`GenerationConfig`.

:func:`generate_tokens` decodes prompts of different lengths with a cache of keys and values. One
CPU gives the row of a reply that has ended to the next prompt; elsewhere one compiled loop ends
when all replies of a batch have ended. :func:`generate_replies` runs whole conversations, reply by
reply, through a tokenizer. A sample depends on the seed and on the index of its prompt, not on the
prompts that are decoded with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx

from llm.attention.pages import PAGE
from llm.data.preferences import Message
from llm.models.decoder import Decoder
from llm.parallel.mesh import Devices, on_host, single_device
from llm.text.tokenizer import Tokenizer

from .continuous import ContinuousDecoder
from .decoding import decode_on_mesh
from .decoding_records import (
    NO_STEP,
    NO_TOKEN,
    DecodedRows,
    DecodingNumbers,
    DecodingOptions,
    PromptRows,
)
from .sampling import GenerationConfig, sample_tokens

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
        >>> from flax import nnx
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
        >>> from flax import nnx
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
    if not prompts:
        return []
    penalized = config.repetition_penalty != 1.0
    options = DecodingOptions(config.max_new_tokens, config.greedy, penalized)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    numbers = DecodingNumbers(
        np.array(sorted(end_ids), dtype=np.int32),
        np.uint32(config.seed % 2**32),
        np.float32(config.temperature),
        np.float32(config.top_p),
        np.int32(config.top_k),
        np.float32(config.min_p),
        np.float32(config.repetition_penalty),
    )
    results: dict[int, GeneratedTokens] = {}
    for index, row in _decode(decoder, numbers, options, prompts, batches, devices, progress):
        if row.failed != NO_STEP:
            raise NonFiniteLogitsError(index, int(row.failed) + 1, f"`prompts[{index}]`")
        tokens = row.tokens[row.tokens != NO_TOKEN].tolist()
        results[index] = GeneratedTokens(tuple(tokens), bool(row.finished))
    return [results[index] for index in range(len(prompts))]


def _decode(
    decoder: Decoder,
    numbers: DecodingNumbers,
    options: DecodingOptions,
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    devices: Devices,
    progress: Progress,
) -> Iterator[tuple[int, DecodedRows]]:
    """Yield the index of each prompt with its reply, in any order."""
    n_rows = devices.rows_of(len(batches[0]))
    n_slots = max(map(len, prompts)) + options.max_new_tokens
    decoder = _with_max_length(decoder, n_slots)
    if devices.mesh.size == 1 and devices.mesh.devices.flat[0].platform == "cpu":
        rows = ContinuousDecoder(decoder, numbers, options, n_rows=n_rows, n_slots=n_slots)
        for batch_index, indices in enumerate(progress(batches, len(batches))):
            yield from rows.decode(_pad(prompts, indices, n_rows))
            if batch_index == len(batches) - 1:  # before the progress is complete
                yield from rows.finish()
        return
    graphdef, state = devices.split_model(decoder)
    for indices in progress(batches, len(batches)):
        # The last batch is filled up with empty prompts, which are finished from the start.
        on_mesh = decode_on_mesh(
            graphdef,
            state,
            devices.put_shared(numbers),
            devices.put_rows(_pad(prompts, indices, n_rows)),
            devices=devices,
            options=options,
        )
        result = jax.tree.map(on_host, on_mesh)
        for row, index in sorted(enumerate(indices), key=lambda pair: pair[1]):
            yield index, jax.tree.map(lambda each, row=row: each[row], result)


def _with_max_length(decoder: Decoder, n_slots: int) -> Decoder:
    """Let the factors of ``longrope`` depend neither on the batch of a prompt nor on the cache."""
    scaling = decoder.architecture.rope_scaling
    if decoder.max_length is not None or scaling is None or scaling.rope_type != "longrope":
        return decoder
    copy: Decoder = nnx.merge(*nnx.split(decoder))
    copy.max_length = n_slots
    return copy


def _pad(prompts: Sequence[Sequence[int]], indices: Sequence[int], n_rows: int) -> PromptRows:
    """Pad some prompts at the end to one length, and their number to ``n_rows``."""
    chosen = [prompts[index] for index in indices] + [()] * (n_rows - len(indices))
    lengths = np.array([len(prompt) for prompt in chosen], dtype=np.int32)
    width = round_width(int(lengths.max()))
    tokens = np.zeros((n_rows, width), np.int32)
    for row, prompt in zip(tokens, chosen, strict=True):
        row[: len(prompt)] = prompt
    padded = [*indices, *[0] * (n_rows - len(indices))]
    return PromptRows(tokens, lengths, np.array(padded, dtype=np.uint32))


def round_width(n_tokens: int) -> int:
    """Round the tokens of the longest prompt up, to whole pages; each width is compiled.

    Args:
        n_tokens: number of tokens, at least 1.

    Returns:
        The rounded number, at most a quarter more beyond 128 tokens.

    Examples:
        >>> [round_width(n) for n in (1, 65, 129, 600)]
        [32, 96, 160, 640]
    """
    step = max(PAGE, 2 ** math.ceil(math.log2(n_tokens)) // 8)
    return step * math.ceil(n_tokens / step)


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
