r"""Decoding of one token after another, and the program that decodes a batch on a mesh.

Accelerators and meshes run one compiled program for a whole batch. A single CPU replaces the rows
that have ended, see :mod:`llm.inference.continuous`. The draw of a token depends on the seed, the
index of its prompt and its place in the reply alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from llm.models.decoder import Decoder
from llm.models.protocol import Head
from llm.parallel.mesh import Devices
from llm.parallel.vocab import VocabParallel

from .decoding_records import (
    NO_STEP,
    NO_TOKEN,
    DecodedRows,
    DecodingNumbers,
    DecodingOptions,
    PromptRows,
)
from .sampling import most_likely_tokens, penalize_repetitions, sample_tokens


class DecodingState(NamedTuple):
    """State of the decoding loop.

    Attributes:
        n_running: number of rows of all devices that need a further token; the devices of a mesh
            make the same number of steps, because each step has collectives.
        lengths: number of tokens of the prompt of each row; 0 for a row without one.
        indices: indices of the prompts among all prompts.
        steps: number of tokens that were generated for each row, its end token included.
        hidden: hidden state that predicts the next token of each row.
        cache: keys and values of the earlier tokens, as the function that decodes has them.
        result: the tokens so far.
        seen: tokens of the prompt and of the reply; None if they are not penalized.
    """

    n_running: Int[Array, ""]
    lengths: Int[Array, " r"]
    indices: Int[Array, " r"]
    steps: Int[Array, " r"]
    hidden: Float[Array, "r D"]
    cache: Any
    result: DecodedRows
    seen: Bool[Array, "r V"] | None


def empty_result(lengths: Int[Array, " r"], options: DecodingOptions) -> DecodedRows:
    """Return the result of rows before their first token.

    Args:
        lengths: number of tokens of each prompt; 0 for a row that is not used.
        options: options of the generation.

    Returns:
        Rows without tokens.

    Examples:
        >>> options = DecodingOptions(3, greedy=True, penalized=False)
        >>> empty_result(jnp.array([4, 0]), options).finished.tolist()
        [False, True]
    """
    return DecodedRows(
        tokens=jnp.full((len(lengths), options.max_new_tokens), NO_TOKEN, jnp.int32),
        finished=lengths == 0,
        failed=jnp.full(len(lengths), NO_STEP, jnp.int32),
    )


def is_running(state: DecodingState, options: DecodingOptions) -> Bool[Array, " r"]:
    """Return which rows of a device need a further token.

    Args:
        state: the rows.
        options: options of the generation.

    Returns:
        False for a row that has ended, and for one without a prompt.
    """
    return ~state.result.finished & (state.steps < options.max_new_tokens)


def tokens_seen(
    tokens: Int[Array, "r T"], lengths: Int[Array, " r"], vocab_size: int
) -> Bool[Array, "r V"]:
    """Return which tokens occur in each prompt.

    Args:
        tokens: token ids, padded at the end.
        lengths: number of tokens of each prompt.
        vocab_size: number of tokens of the vocabulary.

    Returns:
        Whether the prompt has the token.

    Examples:
        >>> tokens_seen(jnp.array([[3, 1, 0]]), jnp.array([2]), 4).tolist()
        [[False, True, False, True]]
    """
    # Padding is written past the last token, where ``mode="drop"`` discards it.
    columns = jnp.arange(tokens.shape[1], dtype=lengths.dtype)
    prompt = jnp.where(columns < lengths[:, None], tokens, vocab_size)
    seen = jnp.zeros((tokens.shape[0], vocab_size), bool)
    return seen.at[jnp.arange(tokens.shape[0])[:, None], prompt].set(True, mode="drop")


@partial(jax.jit, static_argnames=("graphdef", "devices", "options"))
def decode_on_mesh(
    graphdef: nnx.GraphDef,
    state: Any,
    numbers: DecodingNumbers,
    prompts: PromptRows,
    *,
    devices: Devices,
    options: DecodingOptions,
) -> DecodedRows:
    """Decode a batch in one program, in which each device has some of the rows.

    Args:
        graphdef: structure of the model with the sharding plan of the mesh.
        state: its parameters, on the mesh.
        numbers: numbers of the generation, on every device.
        prompts: the prompts; consecutive ones are on one device.
        devices: the mesh.
        options: options of the generation.

    Returns:
        The rows.
    """

    def on_device(state: Any, numbers: DecodingNumbers, prompts: PromptRows) -> DecodedRows:
        decoder = nnx.merge(graphdef, state)
        start = _read_padded(decoder, prompts, options)
        generate = partial(generate_token, decoder, decoder.decode, numbers, options)
        return jax.lax.while_loop(lambda state: state.n_running > 0, generate, start).result

    return devices.map_rows(on_device)(state, numbers, prompts)


def _read_padded(decoder: Decoder, prompts: PromptRows, options: DecodingOptions) -> DecodingState:
    """Read padded prompts into an empty cache with room for their replies."""
    tokens, lengths, indices = prompts
    n_rows, width = tokens.shape
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    positions = jnp.where(columns < lengths[:, None], columns, NO_TOKEN)
    cache = decoder.init_cache(n_rows, width + options.max_new_tokens)
    hidden, cache = decoder.decode(tokens, positions, cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    vocab_size = decoder.architecture.vocab_size
    return DecodingState(
        n_running=decoder.sharding_plan.batch_sum(jnp.sum(lengths > 0, dtype=jnp.int32)),
        lengths=lengths,
        indices=indices,
        steps=jnp.zeros_like(lengths),
        hidden=jnp.take_along_axis(hidden, last, axis=1)[:, 0],
        cache=cache,
        result=empty_result(lengths, options),
        seen=tokens_seen(tokens, lengths, vocab_size) if options.penalized else None,
    )


def generate_token(
    decoder: Decoder,
    decode: Callable[..., Any],
    numbers: DecodingNumbers,
    options: DecodingOptions,
    state: DecodingState,
) -> DecodingState:
    """Generate the next token of every row that is running.

    Args:
        decoder: the model.
        decode: function of tokens, positions and the cache that returns hidden states and the
            cache, such as :meth:`llm.models.decoder.Decoder.decode`.
        numbers: numbers of the generation.
        options: options of the generation.
        state: the rows; a cache in pages must have enough free ones.

    Returns:
        The rows with their tokens.
    """
    before, running = state.result, is_running(state, options)
    logits = _next_logits(decoder.head(), state.hidden)
    if state.seen is not None:
        logits = penalize_repetitions(logits, state.seen, numbers.repetition_penalty)
    fails = running & ~jnp.isfinite(logits).all(axis=-1)
    token = _choose(logits, state, numbers, greedy=options.greedy)
    ends = running & (jnp.isin(token, numbers.end_tokens) | fails)
    row = jnp.arange(len(token))
    kept = jnp.where(running & ~ends, token, NO_TOKEN)
    state = state._replace(
        steps=state.steps + running.astype(state.steps.dtype),
        result=DecodedRows(
            tokens=before.tokens.at[row, state.steps].set(kept, mode="drop"),
            finished=before.finished | ends,
            failed=jnp.where(fails, state.steps, before.failed),
        ),
        seen=None if state.seen is None else state.seen.at[row, token].set(True),
    )
    running = is_running(state, options)
    # A row that has ended is padding: its position is NO_TOKEN.
    positions = jnp.where(running, state.lengths + state.steps - 1, NO_TOKEN)[:, None]
    hidden, cache = decode(token[:, None], positions, state.cache)
    n_running = decoder.sharding_plan.batch_sum(jnp.sum(running, dtype=jnp.int32))
    return state._replace(n_running=n_running, hidden=hidden[:, 0], cache=cache)


def _next_logits(head: Head, hidden: Float[Array, "r D"]) -> Float[Array, "r V"]:
    """Return the logits of a device's rows."""
    vocab = VocabParallel(head.vocab_axes)
    return vocab.gather_vocabulary(head.logits_by_token(vocab.all_gather_tokens(hidden)))


def _choose(
    logits: Float[Array, "r V"],
    state: DecodingState,
    numbers: DecodingNumbers,
    *,
    greedy: bool,
) -> Int[Array, " r"]:
    """Return the next token of each row."""
    if greedy:
        return most_likely_tokens(logits)
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    keys = fold_in(jax.random.key(numbers.seed), state.indices)
    step_keys = jax.vmap(jax.random.fold_in)(keys, state.steps)
    filters = numbers.temperature, numbers.top_p, numbers.top_k, numbers.min_p
    return sample_tokens(logits, step_keys, *filters)
