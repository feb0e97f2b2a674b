"""A decoder of any family that :class:`llm.models.architecture.Architecture` can describe.

Layers are stacked along the leading axis of their parameters and applied by ``lax.scan``; layers
that see a window and those that see everything differ by numbers that the scan runs over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from llm.attention.blockwise import SAVED
from llm.attention.dispatch import EVERYTHING, attend, attend_cached
from llm.parallel.layout import Layout
from llm.precision import accumulation_dtype
from llm.types import Rows
from rpo_theory.types import ArrayLike

from .architecture import Architecture
from .layers import KEPT, Layer, Norm
from .protocol import Head
from .rope import Turn, turns

Remat = Literal["none", "dots", "full"]
LayerLoop = Literal["scan", "unrolled"]
POLICIES = {
    "none": jax.checkpoint_policies.save_only_these_names(SAVED, KEPT),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
    """Keys and values of the tokens read so far: those of position ``s`` in slot ``s``."""

    keys: Float[Array, "L r S G K"]
    values: Float[Array, "L r S G K"]


class Decoder(nnx.Module):
    """Token ids to hidden states.

    Args:
        architecture: sizes and switches.
        rngs: parameters are drawn from ``params``.
        dtype: to compute in; norms, softmax and rotary angles use float32 at least.
        param_dtype: of the parameters.
        remat: what the backward pass computes again of each layer: ``none`` of it but norms and
            activations, all but matrix products (``dots``), or all.
        layer_loop: ``scan`` compiles one layer for all; ``unrolled`` each by itself.

    Raises:
        ValueError: an unknown ``remat`` or ``layer_loop``.

    Examples:
        >>> small = Architecture(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> decoder = Decoder(small, rngs=nnx.Rngs(0))
        >>> row = np.arange(3)[None]
        >>> decoder.hidden_states(Rows(row, row, np.ones_like(row), np.zeros_like(row))).shape
        (1, 3, 4)
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: Remat = "none",
        layer_loop: LayerLoop = "scan",
    ) -> None:
        """Draw the parameters."""
        if remat not in POLICIES:
            raise ValueError(f"`remat` must be none, dots or full, got {remat!r}")
        if layer_loop not in ("scan", "unrolled"):
            raise ValueError(f"`layer_loop` must be scan or unrolled, got {layer_loop!r}")
        self.architecture = architecture
        self.dtype = jnp.dtype(dtype)
        self.remat: Remat = remat
        self.layer_loop: LayerLoop = layer_loop
        self.layout: Layout | None = None
        shape = (architecture.vocab_size, architecture.hidden_size)
        scale = architecture.hidden_size**-0.5
        self.embedding = nnx.Param(scale * jax.random.normal(rngs.params(), shape, param_dtype))
        self.layers = Layer(architecture, rngs=rngs, param_dtype=param_dtype)
        self.norm = Norm((architecture.hidden_size,), architecture, param_dtype)
        self.output: nnx.Param | None = nnx.data(None)
        if not architecture.tie_word_embeddings:
            self.output = nnx.Param(scale * jax.random.normal(rngs.params(), shape, param_dtype))

    def hidden_states(self, rows: Rows) -> Float[Array, "r T D"]:
        """Read whole rows.

        Args:
            rows: tokens, and who sees whom.

        Returns:
            Hidden states after the final norm; finite at padding, which nothing else sees.
        """
        filled = jnp.asarray(rows.segments) > 0
        tokens = jnp.where(filled, rows.tokens, 0)
        positions = jnp.where(filled, rows.positions, 0)
        rows = rows._replace(tokens=tokens, positions=positions)

        def mix(
            queries: Array, keys: Array, values: Array, *, index: Array, carry: Any, **options: Any
        ) -> tuple[Array, Any]:
            del index
            return attend(queries, keys, values, rows, **options), carry

        hidden, _ = self._run(tokens, positions, mix, None, self.remat)
        return hidden

    def head(self) -> Head:
        """Output embedding and soft cap."""
        name, weight = "embedding", self.embedding
        if self.output is not None:
            name, weight = "output", self.output
        words_over = None if self.layout is None else self.layout.split_of((name,))[0]
        return Head(weight[...], self.architecture.final_logit_softcapping, words_over or ())

    def init_cache(self, n_rows: int, n_slots: int) -> Cache:
        """Room for the keys and values of tokens at positions 0 to ``n_slots - 1``.

        Args:
            n_rows: sequences decoded together.
            n_slots: the longest one's length, prompt and reply.

        Returns:
            An empty cache.
        """
        a = self.architecture
        shape = (a.num_hidden_layers, n_rows, n_slots, a.num_key_value_heads, a.head_dim)
        return Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

    def decode(
        self, tokens: Int[ArrayLike, "r T"], positions: Int[ArrayLike, "r T"], cache: Cache
    ) -> tuple[Float[Array, "r T D"], Cache]:
        """Read on from where a cache stands: whole prompts, or a token each.

        Args:
            tokens: ids; anything where there is padding.
            positions: places in the sequences, from 0 and without gaps; negative for padding,
                which may stand anywhere.
            cache: of the earlier tokens.

        Returns:
            Hidden states after the final norm, finite at padding, and the cache with these tokens
            in it.
        """
        positions = jnp.asarray(positions)
        filled = positions >= 0
        # Padding is written past the last slot: dropped.
        slots = jnp.where(filled, positions, cache.keys.shape[2])
        row = jnp.arange(slots.shape[0])[:, None]

        def mix(
            queries: Array, keys: Array, values: Array, *, index: Array, carry: Any, **options: Any
        ) -> tuple[Array, Cache]:
            cache = Cache(
                carry.keys.at[index, row, slots].set(keys, mode="drop"),
                carry.values.at[index, row, slots].set(values, mode="drop"),
            )
            kept = (cache.keys[index], cache.values[index])
            return attend_cached(queries, *kept, positions, **options), cache

        clean = jnp.where(filled, tokens, 0), jnp.where(filled, positions, 0)
        return self._run(*clean, mix, cache, "none")

    def _run(
        self, tokens: Array, positions: Array, mix: Callable[..., Any], carry: Any, remat: Remat
    ) -> tuple[Array, Any]:
        """Embed, apply all layers, norm; ``carry`` goes through the layers' mixing."""
        a = self.architecture
        angles = turns(a, positions, accumulation_dtype(self.dtype))
        graphdef, parameters = nnx.split(self.layers)
        layout = self.layout

        def body(state: tuple[Array, Any], xs: tuple[Any, Array, Array]) -> tuple[Any, None]:
            (x, carry), (slices, index, local) = state, xs
            options = {"soft_cap": a.attn_logit_softcapping, "scale": a.attention_scale}
            options["window"] = self._window(local)

            def mix_here(*qkv: Array) -> tuple[Array, Any]:
                return mix(*qkv, index=index, carry=carry, **options)

            exchange: dict[str, Any] = {"frugal": remat == "full"}
            if layout is not None:
                slices = layout.gathered(slices, self.dtype)
                exchange |= {"spread": layout.spread, "total": layout.total}
            layer = nnx.merge(graphdef, slices)
            return layer(x, self._turn(angles, local), mix_here, **exchange), None

        scanned = self.layer_loop == "scan"
        body = jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=not scanned)
        numbers = (
            jnp.arange(a.num_hidden_layers),
            jnp.array(a.local_layers or [False] * a.num_hidden_layers),
        )
        state = self._embed(tokens), carry
        if self.layer_loop == "scan":
            state, _ = jax.lax.scan(body, state, (parameters, *numbers))
        else:
            for i in range(a.num_hidden_layers):
                slices = jax.tree.map(lambda leaf, i=i: leaf[i], (parameters, *numbers))
                state, _ = body(state, slices)
        return self.norm(state[0]), state[1]

    def _embed(self, tokens: Int[Array, "r T"]) -> Float[Array, "r T D"]:
        table = self.embedding[...]
        if self.layout is None:
            x = table[tokens].astype(self.dtype)
        else:
            x = self.layout.embed(table.astype(self.dtype), tokens)
        if self.architecture.scaled_embeddings:
            x = x * jnp.asarray(self.architecture.hidden_size**0.5, self.dtype)
        return x

    def _window(self, local: Array) -> Array | int | None:
        a = self.architecture
        if a.sliding_window is None or not a.mixes_local_layers:
            return a.sliding_window
        return jnp.where(local, a.sliding_window, EVERYTHING)

    def _turn(self, angles: Turn, local: Array) -> Turn:
        n_bases = angles.cosine.shape[0]
        kind = local.astype(jnp.int32) if n_bases > 1 else 0
        return Turn(angles.cosine[kind], angles.sine[kind])
