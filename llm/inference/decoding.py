r"""Decoding of a batch: the prompts are read, then one token of every row after another.

Accelerators and meshes run one compiled program for the whole batch. A single CPU streams weights
and cache from memory for every token, so there the projections of one input are joined
(:class:`llm.models.projections.JointProjection`), and the cache grows in buckets of slots that are
bounded by the longest row that is still running. The draw of a token depends on the seed, the index
of its prompt and its place in the reply alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from llm.attention.caches import Cache
from llm.models.decoder import Decoder
from llm.models.layers import join_projections
from llm.models.protocol import Head
from llm.parallel.mesh import Devices, on_host
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

BUCKET = 64
"""Slots by which the cache of a CPU grows; each size is a program of its own."""


class _LoopState(NamedTuple):
    """State of the decoding loop.

    Attributes:
        step: number of generated tokens of the rows that are running.
        n_running: number of rows of all devices that need a further token; the devices of a mesh
            make the same number of steps, because each step has collectives.
        hidden: hidden state that predicts the next token.
        cache: keys and values of the earlier tokens.
        result: the tokens so far.
        seen: tokens of the prompt and of the reply; None if they are not penalized.
    """

    step: Int[Array, ""]
    n_running: Int[Array, ""]
    hidden: Float[Array, "r D"]
    cache: Cache
    result: DecodedRows
    seen: Bool[Array, "r V"] | None


class BatchDecoder:
    """The programs that decode batches of prompts with one model on one mesh."""

    def __init__(
        self, decoder: Decoder, devices: Devices, options: DecodingOptions, *, longest: int
    ) -> None:
        """Bring the model into the form in which it is read fastest.

        Args:
            decoder: the model.
            devices: mesh that it is sharded over.
            options: options of the generation.
            longest: number of tokens of the longest prompt with its reply, of all batches.
        """
        self._devices, self._options = devices, options
        graphdef, state = devices.split_model(decoder)
        scaling = decoder.architecture.rope_scaling
        if decoder.max_length is None and scaling is not None and scaling.rope_type == "longrope":
            # The factors must depend neither on the batch of a prompt nor on the buckets.
            model = nnx.merge(graphdef, state)
            model.max_length = longest
            graphdef, state = nnx.split(model)
        platform = devices.mesh.devices.flat[0].platform
        self._in_buckets = platform == "cpu" and devices.mesh.size == 1
        if self._in_buckets:
            joined = nnx.merge(graphdef, state)
            join_projections(joined.layers)
            graphdef, state = nnx.split(joined)
        self._graphdef, self._state = graphdef, state

    def decode(self, numbers: DecodingNumbers, prompts: PromptRows) -> DecodedRows:
        """Decode a batch.

        Args:
            numbers: numbers of the generation.
            prompts: the prompts, in NumPy arrays; their number is a multiple of the shards of a
                batch.

        Returns:
            The rows, in NumPy arrays.
        """
        devices, options = self._devices, self._options
        if not self._in_buckets:
            on_mesh = decode_on_mesh(
                self._graphdef,
                self._state,
                devices.put_shared(numbers),
                devices.put_rows(prompts),
                devices=devices,
                options=options,
            )
            return jax.tree.map(on_host, on_mesh)
        longest = int(prompts.lengths.max())
        most = max(prompts.tokens.shape[1], longest + options.max_new_tokens)
        n_slots = min(bucket_slots(longest + 1), most)
        n_slots = max(n_slots, prompts.tokens.shape[1])
        arguments = self._graphdef, self._state, numbers, prompts
        n_packed = packed_size(prompts.lengths, prompts.tokens.shape)
        loop = _start_on_device(*arguments, options=options, n_slots=n_slots, n_packed=n_packed)
        while True:
            loop = _advance_on_device(*arguments, loop, options=options)
            step = int(loop.step)
            if step == options.max_new_tokens or int(loop.n_running) == 0:
                return jax.tree.map(np.asarray, loop.result)
            n_slots = min(bucket_slots(n_slots + 1), most)
            loop = loop._replace(cache=_grow(loop.cache, n_slots=n_slots))


def bucket_slots(n_slots: int) -> int:
    """Round a number of slots up, to a multiple of a 16th of it and of :data:`BUCKET`.

    Args:
        n_slots: number of slots, at least 1.

    Returns:
        The rounded number.

    Examples:
        >>> [bucket_slots(n) for n in (1, 65, 1000, 1025, 5000)]
        [64, 128, 1024, 1152, 5120]
    """
    step = max(BUCKET, 2 ** math.ceil(math.log2(n_slots)) // 16)
    return step * math.ceil(n_slots / step)


def packed_size(lengths: np.ndarray, shape: tuple[int, int]) -> int:
    """Return the number of tokens into which the prompts of a batch are packed.

    It is a multiple of an eighth of the padded batch, so that few sizes are compiled.

    Args:
        lengths: number of tokens of each prompt.
        shape: number of rows and of tokens of the padded batch.

    Returns:
        The number, at least the sum of the lengths.

    Examples:
        >>> packed_size(np.array([3, 30]), (2, 32))
        40
    """
    part = math.ceil(math.prod(shape) / 8)
    return part * math.ceil(int(lengths.sum()) / part)


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
    platform = devices.mesh.devices.flat[0].platform

    def on_device(state: Any, numbers: DecodingNumbers, prompts: PromptRows) -> DecodedRows:
        decoder = nnx.merge(graphdef, state)
        n_slots = prompts.tokens.shape[1] + options.max_new_tokens
        cache = decoder.init_cache(prompts.tokens.shape[0], n_slots, platform=platform)
        loop = _start(decoder, prompts, cache, options)
        return _advance(decoder, numbers, prompts, loop, options).result

    return devices.map_rows(on_device)(state, numbers, prompts)


@partial(jax.jit, static_argnames=("graphdef", "options", "n_slots", "n_packed"))
def _start_on_device(
    graphdef: nnx.GraphDef,
    state: Any,
    numbers: DecodingNumbers,
    prompts: PromptRows,
    *,
    options: DecodingOptions,
    n_slots: int,
    n_packed: int,
) -> _LoopState:
    """Read the prompts on one device, packed into one row."""
    del numbers
    decoder = nnx.merge(graphdef, state)
    cache = decoder.init_cache(prompts.tokens.shape[0], n_slots)
    return _start(decoder, prompts, cache, options, n_packed=n_packed)


@partial(jax.jit, static_argnames=("graphdef", "options"), donate_argnames=("loop",))
def _advance_on_device(
    graphdef: nnx.GraphDef,
    state: Any,
    numbers: DecodingNumbers,
    prompts: PromptRows,
    loop: _LoopState,
    *,
    options: DecodingOptions,
) -> _LoopState:
    """Generate tokens on one device until all rows have ended or the cache is full."""
    return _advance(nnx.merge(graphdef, state), numbers, prompts, loop, options)


@partial(jax.jit, static_argnames=("n_slots",))
def _grow(cache: Any, *, n_slots: int) -> Any:
    return cache.grown(n_slots)


def _start(
    decoder: Decoder,
    prompts: PromptRows,
    cache: Cache,
    options: DecodingOptions,
    *,
    n_packed: int | None = None,
) -> _LoopState:
    """Read the prompts, padded or packed, and return the state before the first token."""
    tokens, lengths, _ = prompts
    n_rows, width = tokens.shape
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    positions = jnp.where(columns < lengths[:, None], columns, NO_TOKEN)
    last = jnp.maximum(lengths - 1, 0)
    if n_packed is None:
        padded, cache = decoder.decode(tokens, positions, cache)
        hidden = jnp.take_along_axis(padded, last[:, None, None], axis=1)[:, 0]
    else:
        packed, cache = decoder.decode_packed(tokens, lengths, cache, n_packed=n_packed)
        hidden = packed[jnp.cumsum(lengths) - lengths + last]
    seen = None
    if options.penalized:
        seen = jnp.zeros((n_rows, decoder.architecture.vocab_size), bool)
        # Padding is written past the last token, where ``mode="drop"`` discards it.
        prompt = jnp.where(positions >= 0, tokens, seen.shape[1])
        seen = seen.at[jnp.arange(n_rows)[:, None], prompt].set(True, mode="drop")
    return _LoopState(
        step=jnp.int32(0),
        n_running=decoder.sharding_plan.batch_sum(jnp.sum(lengths > 0)),
        hidden=hidden,
        cache=cache,
        result=DecodedRows(
            tokens=jnp.full((n_rows, options.max_new_tokens), NO_TOKEN, jnp.int32),
            finished=lengths == 0,
            failed=jnp.full(n_rows, NO_STEP, jnp.int32),
        ),
        seen=seen,
    )


def _advance(
    decoder: Decoder,
    numbers: DecodingNumbers,
    prompts: PromptRows,
    loop: _LoopState,
    options: DecodingOptions,
) -> _LoopState:
    """Generate tokens until all rows have ended, or the cache has no slot for the next token."""
    lengths, plan = prompts.lengths, decoder.sharding_plan
    next_logits = _logits_function(decoder.head())
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(numbers.seed), prompts.indices)
    row = jnp.arange(lengths.shape[0])

    def body(loop: _LoopState) -> _LoopState:
        before = loop.result
        logits = next_logits(loop.hidden)
        if loop.seen is not None:
            logits = penalize_repetitions(logits, loop.seen, numbers.repetition_penalty)
        is_usable = jnp.isfinite(logits).all(axis=-1)
        failed = jnp.where(before.finished | is_usable, before.failed, loop.step)
        token = _choose(logits, keys, loop.step, numbers, greedy=options.greedy)
        finished = before.finished | jnp.isin(token, numbers.end_tokens) | (failed != NO_STEP)
        tokens = before.tokens.at[:, loop.step].set(jnp.where(finished, NO_TOKEN, token))
        # A finished row is padding: its position is NO_TOKEN.
        positions = jnp.where(finished, NO_TOKEN, lengths + loop.step)[:, None]
        hidden, cache = decoder.decode(token[:, None], positions, loop.cache)
        return _LoopState(
            step=loop.step + 1,
            n_running=plan.batch_sum(jnp.sum(~finished)),
            hidden=hidden[:, 0],
            cache=cache,
            result=DecodedRows(tokens, finished, failed),
            seen=None if loop.seen is None else loop.seen.at[row, token].set(True),
        )

    def is_running(loop: _LoopState) -> Array:
        needed = jnp.max(jnp.where(loop.result.finished, 0, lengths + loop.step))
        is_running = (loop.step < options.max_new_tokens) & (loop.n_running > 0)
        # On a mesh the cache has room for all tokens, and devices must not stop one by one.
        return is_running & (needed < loop.cache.n_slots) if plan.batch_shards == 1 else is_running

    return jax.lax.while_loop(is_running, body, loop)


def _logits_function(head: Head) -> Callable[[Array], Float[Array, "r V"]]:
    """Return the function of the hidden states of a device's rows that returns their logits."""
    vocab = VocabParallel(head.vocab_axes)

    def next_logits(hidden: Float[Array, "r D"]) -> Float[Array, "r V"]:
        return vocab.gather_vocabulary(head.logits_by_token(vocab.all_gather_tokens(hidden)))

    return next_logits


def _choose(
    logits: Float[Array, "r V"],
    keys: Key[Array, " r"],
    step: Int[Array, ""],
    numbers: DecodingNumbers,
    *,
    greedy: bool,
) -> Int[Array, " r"]:
    """Return the next token of each row."""
    if greedy:
        return most_likely_tokens(logits)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    filters = numbers.temperature, numbers.top_p, numbers.top_k, numbers.min_p
    return sample_tokens(logits, step_keys, *filters)
