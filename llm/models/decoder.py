"""Decoder of every model family that :class:`llm.models.architecture.Architecture` describes.

The parameters of all layers are stacked along a leading axis, and ``lax.scan`` applies one layer
after another, so that one layer is compiled for all. Local and global attention differ in numbers
that the scan runs over. Only
:func:`llm.models.unrolled.unroll` separates them, for one CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from llm.attention.blockwise import ATTENTION_RESIDUALS
from llm.attention.caches import SlotMajorCache, allocate_cache
from llm.attention.dispatch import NO_WINDOW, attend
from llm.config import LoraConfig
from llm.parallel.layout import SINGLE_DEVICE, ShardingPlan
from llm.precision import accumulation_dtype
from llm.types import Rows
from rpo_theory.types import ArrayLike

from .architecture import Architecture
from .experts import RouterSums, response_counts, router_loss
from .layers import LAYER_RESIDUALS, Layer, Norm
from .projections import TableAdapter, identity
from .protocol import Head
from .rope import RopeAngles, rope_angles, rope_rows

Remat = Literal["none", "dots", "full"]
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.save_only_these_names(ATTENTION_RESIDUALS, LAYER_RESIDUALS),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENTION_RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nnx.Module):
    """Decoder-only transformer: token ids to hidden states.

    Args:
        architecture: sizes and switches.
        rngs: parameters are drawn from the stream ``params``.
        dtype: dtype of activations; norms, softmax and rotary angles use float32 at least.
        param_dtype: dtype of the parameters.
        remat: what the backward pass recomputes of each layer. ``none`` saves matrix products and
            recomputes norms and activations; ``dots`` saves only products without a batch axis;
            ``full`` saves only the input of the layer.

    Attributes:
        max_length: tokens of the longest sequence that the decoder is used for. ``longrope`` has
            its factors for long sequences if this is more than the length of the pretraining.
            None decides by the longest sequence of each batch, or by the slots of a cache.
        lora: its adapters and saved modules; None if all parameters are trained.
        dropout_key: key of the dropout of adapters; None, as for scoring, for no dropout.

    Raises:
        ValueError: if ``remat`` is unknown.

    Examples:
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
        >>> small = Architecture(**sizes, num_hidden_layers=2, num_attention_heads=2)
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
    ) -> None:
        """Draw the parameters."""
        if remat not in REMAT_POLICIES:
            raise ValueError(f"`remat` must be none, dots or full, got {remat!r}")
        self.architecture: Architecture = architecture
        self.dtype: np.dtype[Any] = jnp.dtype(dtype)
        self.remat: Remat = remat
        self.sharding_plan: ShardingPlan = SINGLE_DEVICE
        self.max_length: int | None = None
        self.lora: LoraConfig | None = None
        self.dropout_key: Array | None = nnx.data(None)
        shape = (architecture.vocab_size, architecture.hidden_size)
        scale = architecture.hidden_size**-0.5
        embedding = scale * jax.random.normal(rngs.params(), shape, param_dtype)
        self.embedding: nnx.Param[Array] = nnx.Param(embedding)
        self.layers: Layer = Layer(architecture, rngs=rngs, param_dtype=param_dtype)
        self.norm: Norm = Norm((architecture.hidden_size,), architecture, param_dtype)
        self.embedding_adapter: TableAdapter | None = nnx.data(None)
        self.output_adapter: TableAdapter | None = nnx.data(None)
        self.output: nnx.Param[Array] | None = nnx.data(None)
        if not architecture.tie_word_embeddings:
            self.output = nnx.Param(scale * jax.random.normal(rngs.params(), shape, param_dtype))

    def hidden_states(self, rows: Rows) -> Float[Array, "r T D"]:
        """Read whole rows.

        Args:
            rows: the tokens, and which of them attend to each other.

        Returns:
            Hidden states after the final norm, divided by ``logits_scaling``; finite and without
            meaning at padding.
        """
        return self.read(rows)[0]

    def read(
        self, rows: Rows, *, with_router_loss: bool = False
    ) -> tuple[Float[Array, "r T D"], Float[Array, ""] | None]:
        """Read whole rows, and measure how evenly the router uses the experts.

        Args:
            rows: see :meth:`hidden_states`.
            with_router_loss: compute the loss of the router.

        Returns:
            The hidden states, and :func:`llm.models.experts.router_loss` of all layers, in which
            the tokens of a shared prompt count once for each response; None if it is not asked for.

        Raises:
            ValueError: if the loss is asked for, and the model has no router.
        """
        if with_router_loss and not self.architecture.num_experts:
            raise ValueError("`with_router_loss` must be False for a model without experts")
        filled = jnp.asarray(rows.segments) > 0
        tokens = jnp.where(filled, rows.tokens, 0)
        positions = jnp.where(filled, rows.positions, 0)
        rows = rows._replace(tokens=tokens, positions=positions)

        def attention(
            queries: Array, keys: Array, values: Array, *, index: Any, carry: Any, **options: Any
        ) -> tuple[Array, Any]:
            del index
            return attend(queries, keys, values, rows, **options), carry

        longest = jnp.max(positions) + 1
        wide = accumulation_dtype(self.dtype)
        counts = response_counts(rows).astype(wide) if with_router_loss else None
        hidden, _, sums = self.apply_layers(
            tokens, positions, longest, attention, None, self.remat, counts
        )
        return hidden, None if sums is None else router_loss(sums, self.sharding_plan)

    def head(self) -> Head:
        """Return the output head: the output embedding and its soft cap."""
        name = "embedding" if self.output is None else "output"
        soft_cap = self.architecture.final_logit_softcapping
        return Head(self.table(name), soft_cap, self.sharding_plan.vocab_axes(name))

    def table(self, name: str) -> Float[Array, "V D"]:
        """Return the weight of the embedding or of the output head, with its adapter added.

        Args:
            name: ``embedding`` or ``output``; a tied model has an embedding only.

        Returns:
            The weight, or the device's shard of it; float32 at least if there is an adapter.
        """
        weight: Array = getattr(self, name)[...]
        adapter: TableAdapter | None = getattr(self, f"{name}_adapter")
        if adapter is None:
            return weight
        plan = self.sharding_plan
        return adapter(weight, plan.tp_broadcast if plan.vocab_axes(name) else identity)

    def init_cache(self, n_rows: int, n_slots: int) -> SlotMajorCache:
        """Allocate a cache for positions 0 to ``n_slots - 1``.

        Args:
            n_rows: number of sequences that a device decodes together.
            n_slots: length of the longest sequence, prompt and reply.

        Returns:
            An empty cache; devices along ``tensor`` hold different heads.
        """
        a = self.architecture
        return allocate_cache(
            a.num_hidden_layers,
            n_rows,
            n_slots,
            a.num_key_value_heads // self.sharding_plan.tensor,
            a.head_dim,
            self.dtype,
        )

    def decode(
        self,
        tokens: Int[ArrayLike, "r T"],
        positions: Int[ArrayLike, "r T"],
        cache: SlotMajorCache,
    ) -> tuple[Float[Array, "r T D"], SlotMajorCache]:
        """Read the next tokens of sequences: whole prompts, or one token of each.

        Args:
            tokens: token ids; any values at padding.
            positions: positions in the sequences, from 0 and without gaps; negative at padding,
                which may be anywhere.
            cache: keys and values of the earlier tokens.

        Returns:
            Hidden states after the final norm, finite at padding, and the cache with the new
            tokens.
        """
        positions = jnp.asarray(positions)
        filled = positions >= 0
        clean = jnp.where(filled, tokens, 0), jnp.where(filled, positions, 0)
        slots = jnp.where(filled, positions, cache.n_slots)  # that of padding is dropped

        def attention(
            queries: Array, keys: Array, values: Array, *, index: Array, carry: Any, **options: Any
        ) -> tuple[Array, SlotMajorCache]:
            cache = carry.write(index, slots, keys, values)
            return cache.attend(index, queries, positions, **options), cache

        hidden, cache, _ = self.apply_layers(*clean, cache.n_slots, attention, cache, "none", None)
        return hidden, cache

    def apply_layers(
        self,
        tokens: Array,
        positions: Array,
        longest: Array | int,
        attention: Callable[..., Any],
        carry: Any,
        remat: Remat,
        token_counts: Array | None,
    ) -> tuple[Array, Any, RouterSums | None]:
        """Embed tokens, apply all layers and the final norm.

        Args:
            tokens: token ids.
            positions: their positions.
            longest: number of tokens of the longest sequence.
            attention: ``attention(queries, keys, values, *, index, carry, **options)`` returns the
                mixed values of a layer, and the next ``carry``.
            carry: what the layers pass on; separate layers have one each, and no ``index``.
            remat: see :class:`Decoder`; separate layers save everything.
            token_counts: how often each token counts in the sums of the router; None for no sums.

        Returns:
            The hidden states, the last ``carry`` or that of each layer, and the sums.
        """
        a, plan = self.architecture, self.sharding_plan
        wide = accumulation_dtype(self.dtype)
        angles = rope_angles(a, positions, wide, is_long=self._is_long(longest))
        query_scale = self._query_scale(positions)

        def apply(layer: Layer, state: tuple[Array, Any], numbers: tuple[Any, ...]) -> Any:
            (x, carry), (index, is_local, rope_row) = state, numbers
            options = {"soft_cap": a.attn_logit_softcapping, "scale": a.attention_scale}
            options["window"] = self._window(is_local)

            def layer_attention(
                queries: Array, keys: Array, values: Array, sinks: Array | None
            ) -> tuple[Array, Any]:
                if query_scale is not None:
                    queries = queries * query_scale[..., None, None]
                more = options if sinks is None else {**options, "sinks": sinks}
                return attention(queries, keys, values, index=index, carry=carry, **more)

            if self.dropout_key is not None:
                layer.start_dropout(jax.random.fold_in(self.dropout_key, index), plan)
            row = 0 if angles.cosine.shape[0] == 1 else rope_row
            layer_angles = RopeAngles(angles.cosine[row], angles.sine[row])
            x, carry, sums = layer(
                x,
                layer_angles,
                layer_attention,
                plan=plan,
                # The chunks of tokens would have one dropout mask.
                chunked_mlp=remat == "full" and self.dropout_key is None,
                token_counts=token_counts,
            )
            return (x, carry), sums

        flags = a.local_layers or [False] * a.num_hidden_layers
        if isinstance(self.layers, nnx.List):
            graphdef, _ = nnx.split(self.layers[0])

            @jax.jit  # traced once for all layers
            def apply_alike(parameters: Any, x: Array, carry: Any, *numbers: Any) -> Any:
                return apply(nnx.merge(graphdef, parameters), (x, carry), (None, *numbers))[0]

            hidden, carries = self._embed(tokens), []
            parts = [None] * len(flags) if carry is None else carry
            of_layers = zip(self.layers, parts, flags, rope_rows(a), strict=True)
            for layer, carry_of_layer, *numbers in of_layers:
                hidden, new = apply_alike(nnx.state(layer), hidden, carry_of_layer, *numbers)
                carries.append(new)
            carry, sums = tuple(carries), None
        else:
            graphdef, parameters = nnx.split(self.layers)

            def body(state: tuple[Array, Any], xs: tuple[Any, ...]) -> tuple[Any, Any]:
                gathered = plan.fsdp_gather(xs[0], self.dtype)
                return apply(nnx.merge(graphdef, gathered), state, xs[1:])

            # The loop itself keeps XLA from merging the recomputation with the forward pass.
            body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
            xs = jnp.arange(a.num_hidden_layers), jnp.array(flags), jnp.asarray(rope_rows(a))
            state = self._embed(tokens), carry
            (hidden, carry), sums = jax.lax.scan(body, state, (parameters, *xs))
        hidden = self.norm(hidden)
        hidden = hidden if a.logits_scaling == 1.0 else hidden / a.logits_scaling
        return hidden, carry, jax.tree.map(lambda leaf: leaf.sum(axis=0), sums)

    def _embed(self, tokens: Int[Array, "r T"]) -> Float[Array, "r T D"]:
        x = self.sharding_plan.embed(self.table("embedding"), tokens, self.dtype)
        if self.architecture.scaled_embeddings:
            x = x * jnp.asarray(self.architecture.hidden_size**0.5, self.dtype)
        multiplier = self.architecture.embedding_multiplier
        return x if multiplier == 1.0 else x * multiplier

    def _window(self, is_local: Array) -> Array | int | None:
        a = self.architecture
        if a.sliding_window is None or not a.mixes_local_layers:
            return a.sliding_window
        return jnp.where(is_local, a.sliding_window, NO_WINDOW)

    def _is_long(self, longest: Array | int) -> Array | bool:
        """Return whether ``longrope`` has its factors for long sequences."""
        scaling = self.architecture.rope_scaling
        if scaling is None or scaling.rope_type != "longrope":
            return False
        longest = longest if self.max_length is None else self.max_length
        return longest > scaling.original_max_position_embeddings

    def _query_scale(self, positions: Array) -> Array | None:
        """Return the factor of the queries at each position, if there is one."""
        scaling = self.architecture.rope_scaling
        if scaling is None or scaling.llama_4_scaling_beta is None:
            return None
        periods = positions // scaling.original_max_position_embeddings
        return 1 + scaling.llama_4_scaling_beta * jnp.log1p(periods.astype(self.dtype))
