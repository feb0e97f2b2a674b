r"""Replies of a decoder to prompts: greedy, or sampled at a temperature from the nucleus.

Prompts of different lengths are read together and answered token by token with a cache of keys and
values, in one compiled loop that ends when every reply has. What is drawn for a prompt depends on
the seed and on its place among the prompts alone, not on the batch that it is answered in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from llm.models.decoder import Cache, Decoder
from llm.models.protocol import Head
from llm.precision import accumulation_dtype

PROMPT_MULTIPLE = 64
"""Prompts are padded to a multiple of this many tokens, so that few shapes are compiled."""
NO_TOKEN = -1


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    r"""How replies are chosen.

    Attributes:
        max_new_tokens: longest reply.
        temperature: :math:`t`: tokens are drawn from :math:`p^{1/t}`, normalised; 0 takes the
            likeliest.
        top_p: after that only from the fewest tokens that have this probability together.
        seed: of the draws.

    Raises:
        ValueError: a value out of range.

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
        """Whether nothing is drawn."""
        return self.temperature == 0


class GeneratedTokens(NamedTuple):
    """Answer to a prompt.

    Attributes:
        tokens: without the end token.
        finished: whether it came to an end; False where it was cut at ``max_new_tokens``.
    """

    tokens: tuple[int, ...]
    finished: bool


def generate_tokens(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: GenerationConfig,
    *,
    end_ids: Collection[int],
    batch_size: int = 8,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda batches, total: batches,
) -> list[GeneratedTokens]:
    """Answer prompts.

    Args:
        decoder: the model.
        prompts: tokens of each, at least one.
        decoding: how the replies are chosen.
        end_ids: tokens that end a reply.
        batch_size: how many are answered at a time; those of similar length together.
        progress: given the batches and their number, hands them on, for example with a progress bar.

    Returns:
        A reply to every prompt, in their order.

    Raises:
        ValueError: a prompt without tokens, or with one that the model has no embedding for.

    Examples:
        >>> from llm.models.architecture import Architecture
        >>> small = Architecture(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> decoder = Decoder(small, rngs=nnx.Rngs(0))
        >>> len(generate_tokens(decoder, [[1, 2]], GenerationConfig(max_new_tokens=3), end_ids=())[0].tokens)
        3
    """
    _check(prompts, decoder.architecture.vocab_size, batch_size)
    batch_size = min(batch_size, len(prompts))
    graphdef, state = nnx.split(decoder)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [
        order[start : start + batch_size] for start in range(0, len(order), max(1, batch_size))
    ]
    ends = np.array(sorted(end_ids), dtype=np.int32)
    replies: dict[int, GeneratedTokens] = {}
    for indices in progress(batches, len(batches)):
        # The last batch is filled up with rows that are done before they begin.
        absent = batch_size - len(indices)
        tokens, lengths = _pad([prompts[index] for index in indices] + [()] * absent)
        places = np.array(list(indices) + [0] * absent, dtype=np.uint32)
        out, done = _generate_batch(
            graphdef,
            state,
            tokens,
            lengths,
            places,
            ends,
            np.uint32(decoding.seed % 2**32),
            np.float32(decoding.temperature),
            np.float32(decoding.top_p),
            max_new_tokens=decoding.max_new_tokens,
            greedy=decoding.greedy,
        )
        rows = zip(np.asarray(out), np.asarray(done), strict=True)
        for index, (row, finished) in zip(indices, rows, strict=False):
            replies[index] = GeneratedTokens(tuple(row[row != NO_TOKEN].tolist()), bool(finished))
    return [replies[index] for index in range(len(prompts))]


def sample_tokens(
    logits: Float[Array, "r V"],
    keys: Key[Array, " r"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Int[Array, " r"]:
    """Draw a token for each row.

    Args:
        logits: of the next token.
        keys: one a row.
        temperature: above 0.
        top_p: see :class:`GenerationConfig`; the token that reaches it is still in.

    Returns:
        Ids.

    Examples:
        >>> logits, key = jnp.log(jnp.array([[0.2, 0.5, 0.3]])), jax.random.key(0)[None]
        >>> sample_tokens(logits, key, jnp.float32(1.0), jnp.float32(0.4))
        Array([1], dtype=int32)
    """
    scaled = logits / temperature.astype(logits.dtype)
    ranked = -jnp.sort(-scaled, axis=-1)
    shares = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    inside = (before < top_p.astype(logits.dtype)).at[:, 0].set(True)
    # The least of the ranked logits that are inside; equal ones come in together.
    bar = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1, keepdims=True)
    kept = jnp.where(scaled >= bar, scaled, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


class _State(NamedTuple):
    """Of the loop: what every row has said, and the hidden state that it goes on from."""

    step: Int[Array, ""]
    hidden: Float[Array, "r D"]
    cache: Cache
    out: Int[Array, "r new"]
    done: Bool[Array, " r"]


@partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "greedy"))
def _generate_batch(
    graphdef: nnx.GraphDef,
    state: Any,
    tokens: Int[Array, "r T"],
    lengths: Int[Array, " r"],
    places: Array,
    ends: Int[Array, " e"],
    seed: Array,
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    *,
    max_new_tokens: int,
    greedy: bool,
) -> tuple[Int[Array, "r new"], Bool[Array, " r"]]:
    """Tokens of the replies, ``NO_TOKEN`` after their ends, and which have come to one."""
    decoder = nnx.merge(graphdef, state)
    head = decoder.head()
    n_rows, width = tokens.shape
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    positions = jnp.where(columns < lengths[:, None], columns, NO_TOKEN)
    cache = decoder.init_cache(n_rows, width + max_new_tokens)
    hidden, cache = decoder.decode(tokens, positions, cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), places)

    def body(now: _State) -> _State:
        logits = _logits(now.hidden, head)
        if greedy:
            chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, now.step)
            chosen = sample_tokens(logits, drawn, temperature, top_p)
        done = now.done | jnp.isin(chosen, ends)
        out = now.out.at[:, now.step].set(jnp.where(done, NO_TOKEN, chosen))
        # A row that is done is padding.
        positions = jnp.where(done, NO_TOKEN, lengths + now.step)[:, None]
        hidden, cache = decoder.decode(chosen[:, None], positions, now.cache)
        return _State(now.step + 1, hidden[:, 0], cache, out, done)

    def goes_on(now: _State) -> Array:
        return (now.step < max_new_tokens) & ~jnp.all(now.done)

    out = jnp.full((n_rows, max_new_tokens), NO_TOKEN, jnp.int32)
    start = _State(jnp.int32(0), hidden, cache, out, lengths == 0)
    end = jax.lax.while_loop(goes_on, body, start)
    return end.out, end.done


def _logits(hidden: Float[Array, "r D"], head: Head) -> Float[Array, "r V"]:
    wide = accumulation_dtype(hidden.dtype)
    matrix = head.weight.astype(hidden.dtype)
    logits = jnp.einsum("rd,vd->rv", hidden, matrix, preferred_element_type=wide)
    return logits if head.soft_cap is None else head.soft_cap * jnp.tanh(logits / head.soft_cap)


def _pad(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as rows of one width, and their lengths."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
    tokens = np.zeros(
        (len(prompts), PROMPT_MULTIPLE * math.ceil(lengths.max() / PROMPT_MULTIPLE)), np.int32
    )
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def _check(prompts: Sequence[Sequence[int]], vocab_size: int, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"`prompts[{number}]` has no tokens")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(
                f"`prompts[{number}]` has token {max(prompt)}, but the model embeds only "
                f"{vocab_size}: take the model's own tokenizer"
            )
