r"""Decoding on one CPU, which gives the row of a reply that has ended to the next prompt.

A CPU streams all weights for each step, whatever the number of rows is, so that every row should
have a reply to generate. Prompts are read in groups of as many as there are rows, packed one after
another; they wait with their keys and values until a row is idle. The cache is in pages
(:mod:`llm.attention.pages`), so that a step reads the positions that are filled and few others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from llm.attention.pages import PAGE, LayerPages, PagedCache
from llm.models.decoder import Decoder
from llm.models.unrolled import decode_with_pages, init_pages, read_prompts, unroll

from .decoding import DecodingState, empty_result, generate_token, is_running, tokens_seen
from .decoding_records import DecodedRows, DecodingNumbers, DecodingOptions, PromptRows


class WaitingPrompts(NamedTuple):
    """Prompts that were read.

    Attributes:
        prompts: their tokens.
        hidden: hidden state after the last token of each.
        pages: keys and values of their tokens.
    """

    prompts: PromptRows
    hidden: Float[Array, "r D"]
    pages: tuple[LayerPages, ...]


class ContinuousDecoder:
    """The programs and the rows of one CPU."""

    def __init__(
        self,
        decoder: Decoder,
        numbers: DecodingNumbers,
        options: DecodingOptions,
        *,
        n_rows: int,
        n_slots: int,
    ) -> None:
        """Bring the model into the form that is read fastest, and allocate the rows.

        Args:
            decoder: the model.
            numbers: numbers of the generation.
            options: options of the generation.
            n_rows: number of replies that are generated together.
            n_slots: number of tokens of the longest prompt with its reply.
        """
        unrolled = unroll(decoder)
        self._numbers, self._options, self._n_slots = numbers, options, n_slots
        self._graphdef, self._parameters = nnx.split(unrolled)
        lengths = jnp.zeros(n_rows, jnp.int32)
        shape = n_rows, decoder.architecture.vocab_size
        self._state = DecodingState(
            n_running=jnp.int32(0),
            lengths=lengths,
            indices=jnp.zeros(n_rows, jnp.uint32),
            steps=jnp.zeros_like(lengths),
            hidden=jnp.zeros((n_rows, decoder.architecture.hidden_size), decoder.dtype),
            cache=init_pages(unrolled, n_rows, n_slots, round_pages(n_rows)),
            result=empty_result(lengths, options),
            seen=jnp.zeros(shape, bool) if options.penalized else None,
        )
        self._idle = list(range(n_rows))
        self._n_free = round_pages(n_rows)

    def decode(self, prompts: PromptRows) -> Iterator[tuple[int, DecodedRows]]:
        """Read prompts, and generate until each of them has a row.

        Args:
            prompts: as many prompts as there are rows, in NumPy arrays; empty ones are left out.

        Yields:
            The index of a prompt, and its reply, as rows end.
        """
        n_packed = packed_size(prompts.lengths, prompts.tokens.shape)
        waiting = _read_prompts(
            self._graphdef, self._parameters, prompts, n_slots=self._n_slots, n_packed=n_packed
        )
        pages = -(-prompts.lengths // PAGE)
        if len(self._idle) == len(pages):
            # A reply that is being generated has half of its tokens on average.
            most = prompts.lengths[pages > 0] + self._options.max_new_tokens // 2
            self._grow(int(np.sum(-(-most // PAGE))))
        for source in np.flatnonzero(pages).tolist():
            while not self._idle:
                yield from self._advance(n_wanted=len(self._state.lengths))
            self._make_room(int(pages[source]))
            row = self._idle.pop()
            self._n_free -= int(pages[source])
            self._state = _admit(
                self._state, waiting, np.int32(source), np.int32(row), options=self._options
            )

    def finish(self) -> Iterator[tuple[int, DecodedRows]]:
        """Generate until all rows have ended; yield as :meth:`decode` does."""
        while len(self._idle) < len(self._state.lengths):
            yield from self._advance(n_wanted=1)

    def _advance(self, n_wanted: int) -> Iterator[tuple[int, DecodedRows]]:
        """Generate while at least ``n_wanted`` rows are running and there are free pages."""
        self._state = state = _generate(
            self._graphdef,
            self._parameters,
            self._numbers,
            self._state,
            np.int32(n_wanted),
            options=self._options,
        )
        self._n_free = int(state.cache.table.n_free)
        result = jax.tree.map(np.asarray, state.result)
        ended = result.finished | (np.asarray(state.steps) == self._options.max_new_tokens)
        indices = np.asarray(state.indices).tolist()
        rows = set(np.flatnonzero(ended).tolist()) - set(self._idle)
        if not rows:
            self._make_room(self._n_free + 1)
        for row in sorted(rows, key=indices.__getitem__):  # errors name the first prompt
            self._idle.append(row)
            yield indices[row], jax.tree.map(lambda each, row=row: each[row], result)

    def _make_room(self, n_pages: int) -> None:
        """Let the cache grow until at least a number of pages is free."""
        if self._n_free < n_pages:
            self._grow(self._state.cache.table.n_pages + n_pages - self._n_free)

    def _grow(self, n_pages: int) -> None:
        """Let the cache grow to at least a number of pages, free or not."""
        cache, n_pages = self._state.cache, round_pages(n_pages)
        if n_pages > cache.table.n_pages:
            self._n_free += n_pages - cache.table.n_pages
            self._state = self._state._replace(cache=_grown(cache, n_pages=n_pages))


def round_pages(n_pages: int) -> int:
    """Round a number of pages up to a half of a power of two; each size is compiled.

    Args:
        n_pages: number of pages, at least 1.

    Returns:
        The rounded number, at least 8.

    Examples:
        >>> [round_pages(n) for n in (1, 17, 33, 41)]
        [8, 24, 48, 48]
    """
    step = max(8, 2 ** math.ceil(math.log2(n_pages))) // 4
    return max(8, step * math.ceil(n_pages / step))


def packed_size(lengths: np.ndarray, shape: tuple[int, int]) -> int:
    """Return the number of tokens into which prompts are packed.

    It is a multiple of an eighth of the padded prompts, so that few sizes are compiled.

    Args:
        lengths: number of tokens of each prompt.
        shape: number of prompts and of tokens of the padded prompts.

    Returns:
        The number, at least the sum of the lengths.

    Examples:
        >>> packed_size(np.array([3, 30]), (2, 32))
        40
    """
    part = math.ceil(math.prod(shape) / 8)
    return part * math.ceil(int(lengths.sum()) / part)


@partial(jax.jit, static_argnames=("graphdef", "n_slots", "n_packed"))
def _read_prompts(
    graphdef: nnx.GraphDef, state: Any, prompts: PromptRows, *, n_slots: int, n_packed: int
) -> WaitingPrompts:
    decoder = nnx.merge(graphdef, state)
    tokens, lengths, _ = prompts
    hidden, pages = read_prompts(decoder, tokens, lengths, n_slots, n_packed=n_packed)
    return WaitingPrompts(prompts, hidden[jnp.cumsum(lengths) - 1], pages)


@partial(jax.jit, static_argnames="options", donate_argnames="state")
def _admit(
    state: DecodingState,
    waiting: WaitingPrompts,
    source: Int[Array, ""],
    row: Int[Array, ""],
    *,
    options: DecodingOptions,
) -> DecodingState:
    """Give an idle row to a prompt."""
    tokens, lengths, indices = jax.tree.map(lambda each: each[source], waiting.prompts)
    new = empty_result(lengths[None], options)
    seen = state.seen
    if seen is not None:
        seen = seen.at[row].set(tokens_seen(tokens[None], lengths[None], seen.shape[1])[0])
    return DecodingState(
        n_running=state.n_running + 1,
        lengths=state.lengths.at[row].set(lengths),
        indices=state.indices.at[row].set(indices),
        steps=state.steps.at[row].set(0),
        hidden=state.hidden.at[row].set(waiting.hidden[source]),
        cache=state.cache.admit(waiting.pages, source, row, lengths),
        result=jax.tree.map(lambda all_, one: all_.at[row].set(one[0]), state.result, new),
        seen=seen,
    )


@partial(jax.jit, static_argnames=("graphdef", "options"), donate_argnames="state")
def _generate(
    graphdef: nnx.GraphDef,
    parameters: Any,
    numbers: DecodingNumbers,
    state: DecodingState,
    n_wanted: Int[Array, ""],
    *,
    options: DecodingOptions,
) -> DecodingState:
    """Generate while at least ``n_wanted`` rows are running and the next tokens have pages."""
    decoder = nnx.merge(graphdef, parameters)

    def goes_on(state: DecodingState) -> Array:
        begins = is_running(state, options) & ((state.lengths + state.steps) % PAGE == 0)
        n_begun = jnp.sum(begins, dtype=jnp.int32)
        return (state.n_running >= n_wanted) & (state.cache.table.n_free >= n_begun)

    decode = partial(decode_with_pages, decoder)
    generate = partial(generate_token, decoder, decode, numbers, options)
    state = jax.lax.while_loop(goes_on, generate, state)
    ended = ~is_running(state, options)
    return state._replace(cache=state.cache.release(ended))


@partial(jax.jit, static_argnames="n_pages")
def _grown(cache: PagedCache, *, n_pages: int) -> PagedCache:
    return cache.grown(n_pages)
