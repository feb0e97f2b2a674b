"""Building blocks of a decoder layer: projections, adapters, norms, and the layer itself.

The parameters of all layers are stacked: a module made with ``stack=(L,)`` holds its parameters
along a leading axis of length ``L``. Inside ``lax.scan`` the module is merged with the slice of one
layer, and only such a slice is ever called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from llm.parallel.layout import ROW_PARALLEL, ShardingPlan
from llm.precision import accumulation_dtype

from .activations import activate
from .architecture import Activation, Architecture
from .custom_vjp import rms_norm
from .experts import Experts, Router, RouterSums, router_sums
from .projections import PROJECTIONS, Collective, JointProjection, Projection, identity
from .rope import RopeAngles, apply_rope

AttentionFn = Callable[[Array, Array, Array, Array | None], tuple[Array, object]]
MLP_CHUNK = 4096
"""Tokens of a row whose hidden units are in memory at once, if the MLP is applied in chunks."""
LAYER_RESIDUALS = "layer_residuals"
"""Name of the arrays from which the backward pass recomputes a layer without matrix products."""


def save_residuals(arrays: Any) -> Any:
    """Name arrays :data:`LAYER_RESIDUALS`, so that a remat policy can save them.

    The rest of a layer is norms, rotations and activations of these arrays.

    Args:
        arrays: a tree of arrays.

    Returns:
        The same tree.

    Examples:
        >>> jaxpr = jax.make_jaxpr(save_residuals)({"x": 1.0})
        >>> [equation.params["name"] for equation in jaxpr.eqns]
        ['layer_residuals']
    """
    return jax.tree.map(lambda x: checkpoint_name(x, LAYER_RESIDUALS), arrays)


class Norm(nnx.Module):
    """Root-mean-square norm, multiplied by a weight or by one plus a weight.

    Args:
        shape: shape of the weight, leading axes included.
        architecture: model with the constant in the root and the kind of weight.
        param_dtype: dtype of the weight.
    """

    def __init__(
        self, shape: tuple[int, ...], architecture: Architecture, param_dtype: DTypeLike
    ) -> None:
        """Set the weight so that the factor is one."""
        self.offset: float = 1.0 if architecture.norm_plus_one else 0.0
        self.epsilon: float = architecture.rms_norm_eps
        self.weight: nnx.Param[Array] = nnx.Param(jnp.full(shape, 1.0 - self.offset, param_dtype))

    def __call__(
        self, x: Float[Array, "... D"], split: ShardingPlan | None = None
    ) -> Float[Array, "... D"]:
        """Normalize the last axis, computing in float32 at least.

        Args:
            x: input.
            split: sharding plan, if the last axis is split over ``tensor``.

        Returns:
            The normalized input, in its dtype.
        """
        wide = x.astype(accumulation_dtype(x.dtype))
        weight = self.offset + self.weight[...].astype(wide.dtype)
        if split is None or split.tensor == 1:
            return jnp.asarray(rms_norm(wide, weight, self.epsilon)).astype(x.dtype)
        # Each device holds some features; their squares are summed, and so are the gradients.
        squares = jnp.mean(jnp.square(wide), axis=-1, keepdims=True) / split.tensor
        mean = split.tp_broadcast(split.tp_reduce(squares))
        return (wide * jax.lax.rsqrt(mean + self.epsilon) * weight).astype(x.dtype)


class Layer(nnx.Module):
    """A decoder layer, or all layers stacked along the leading axis of every parameter.

    Args:
        architecture: sizes and switches.
        rngs: parameters are drawn from the stream ``params``.
        param_dtype: dtype of the parameters.
    """

    def __init__(
        self, architecture: Architecture, *, rngs: nnx.Rngs, param_dtype: DTypeLike
    ) -> None:
        """Draw the parameters."""
        a, stack = architecture, (architecture.num_hidden_layers,)
        width, units = a.hidden_size, a.intermediate_size
        n_queries = a.num_attention_heads * a.head_dim
        n_keys = a.num_key_value_heads * a.head_dim
        options = {"rngs": rngs, "param_dtype": param_dtype}

        def norm(size: int, enabled: bool = True) -> Norm | None:
            return Norm((*stack, size), a, param_dtype) if enabled else None

        self.head_dim: int = a.head_dim
        self.activation: Activation = a.hidden_act
        self.residual_multiplier: float = a.residual_multiplier
        self.input_norm: Norm | None = nnx.data(norm(width, a.pre_norms))
        self.q_proj: Projection = Projection(stack, width, n_queries, bias=a.qkv_bias, **options)
        self.k_proj: Projection = Projection(stack, width, n_keys, bias=a.qkv_bias, **options)
        self.v_proj: Projection = Projection(stack, width, n_keys, bias=a.qkv_bias, **options)
        self.q_norm: Norm | None = nnx.data(norm(a.head_dim, a.qk_norm))
        self.k_norm: Norm | None = nnx.data(norm(a.head_dim, a.qk_norm))
        self.q_proj_norm: Norm | None = nnx.data(norm(n_queries, a.qk_proj_norm))
        self.k_proj_norm: Norm | None = nnx.data(norm(n_keys, a.qk_proj_norm))
        sinks = nnx.Param(jnp.zeros((*stack, a.num_attention_heads), param_dtype))
        self.sinks: nnx.Param[Array] | None = nnx.data(sinks if a.attention_sinks else None)
        self.o_proj: Projection = Projection(stack, n_queries, width, bias=a.o_proj_bias, **options)
        self.post_attention_norm: Norm | None = nnx.data(norm(width, a.post_norms))
        self.mlp_norm: Norm | None = nnx.data(norm(width, a.pre_norms))

        def mlp_projection(n_in: int, n_out: int) -> Any:
            """Return a projection of the MLP; None in a mixture of experts."""
            if a.num_experts:
                return None
            return Projection(stack, n_in, n_out, bias=a.mlp_bias, **options)

        self.gate_proj: Projection = nnx.data(mlp_projection(width, units))
        self.up_proj: Projection = nnx.data(mlp_projection(width, units))
        self.down_proj: Projection = nnx.data(mlp_projection(units, width))
        self.router: Router | None = nnx.data(Router(a, **options) if a.num_experts else None)
        self.experts: Experts | None = nnx.data(Experts(a, **options) if a.num_experts else None)
        self.post_mlp_norm: Norm | None = nnx.data(norm(width, a.post_norms))
        self.joint: Any = nnx.data(None)  # projections by the first of their names

    def __call__(
        self,
        x: Float[Array, "r T D"],
        angles: RopeAngles,
        attention: AttentionFn,
        *,
        plan: ShardingPlan,
        chunked_mlp: bool = False,
        token_counts: Float[Array, "r T"] | None = None,
    ) -> tuple[Float[Array, "r T D"], object, RouterSums | None]:
        """Apply one layer.

        Args:
            x: the residual stream.
            angles: rotary angles of the tokens.
            attention: ``attention(queries, keys, values, sinks) -> (mixed values, extra)``; the
                sinks are None if the model has none.
            plan: collectives of the devices that share the layer.
            chunked_mlp: compute the hidden units of a few tokens at a time, in the gradient too.
            token_counts: how often each token counts in the sums of the router; None for no sums.

        Returns:
            The residual stream after the layer, the extra result of ``attention``, and the sums of
            the router, if they are asked for and there is one.
        """
        normed = plan.tp_broadcast(_apply(self.input_norm, x))
        queries, keys, values = self._project(("q_proj", "k_proj", "v_proj"), normed)
        queries = self._heads(_apply(self.q_proj_norm, queries, plan))
        keys = self._heads(_apply(self.k_proj_norm, keys, plan))
        queries = apply_rope(_apply(self.q_norm, queries), angles)
        keys = apply_rope(_apply(self.k_norm, keys), angles)
        queries, keys, values = save_residuals((queries, keys, self._heads(values)))
        sinks = None if self.sinks is None else self.sinks[...]
        mixed, extra = attention(queries, keys, values, sinks)
        (attended,) = self._project(("o_proj",), mixed.reshape(*x.shape[:2], -1), plan.tp_reduce)
        x = save_residuals(x + self._residual(_apply(self.post_attention_norm, attended)))
        normed = _apply(self.mlp_norm, x)
        sums = None
        if self.router is None:
            normed = plan.tp_broadcast(normed)
        elif token_counts is not None:
            sums = router_sums(self.router(_tokens(normed)), token_counts.reshape(-1))

        def mlp(x: Float[Array, "r T D"]) -> Float[Array, "r T D"]:
            return self._mlp(x, plan)

        output = apply_in_chunks(mlp, normed) if chunked_mlp else mlp(normed)
        return x + self._residual(_apply(self.post_mlp_norm, output)), extra, sums

    def _mlp(self, x: Float[Array, "r T D"], plan: ShardingPlan) -> Float[Array, "r T D"]:
        if self.router is not None and self.experts is not None:
            routing = self.router(_tokens(x))
            return self.experts(_tokens(plan.tp_broadcast(x)), routing, plan).reshape(x.shape)
        gate, up = save_residuals(self._project(("gate_proj", "up_proj"), x))
        return self._project(("down_proj",), activate(gate, self.activation) * up, plan.tp_reduce)[
            0
        ]

    def _project(
        self, names: tuple[str, ...], x: Float[Array, "r T I"], reduce: Collective = identity
    ) -> tuple[Float[Array, "r T O"], ...]:
        """Apply projections of one input."""
        if self.joint is not None and names[0] in self.joint:
            return self.joint[names[0]](x, reduce)
        return tuple(getattr(self, name)(x, reduce) for name in names)

    def _residual(self, x: Float[Array, "r T D"]) -> Float[Array, "r T D"]:
        return x if self.residual_multiplier == 1.0 else x * self.residual_multiplier

    def start_dropout(self, key: PRNGKeyArray, plan: ShardingPlan) -> None:
        """Set the keys of the dropout of all adapters.

        Args:
            key: key of the layer in this step; each projection folds its index into it.
            plan: devices that share the layer. Those along ``tensor`` draw one mask for an input
                that all of them hold, and masks of their own for an input that is split.
        """
        for index, name in enumerate(PROJECTIONS):
            projection = getattr(self, name)  # a layer of experts has no MLP
            adapter = None if projection is None else projection.adapter
            if adapter is not None:
                adapter_key = jax.random.fold_in(key, index)
                if plan.tensor > 1 and name in ROW_PARALLEL:
                    shard = jax.lax.axis_index("tensor")
                    adapter_key = jax.random.fold_in(adapter_key, shard)
                adapter.dropout_key = adapter_key

    def _heads(self, x: Float[Array, "r T I"]) -> Float[Array, "r T H K"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


JOINT = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Projections of one input, which a CPU applies as one product."""


def separate_layers(layers: Layer, n_layers: int) -> list[Layer]:
    """Copy stacked layers one by one, with the products that a CPU reads fastest.

    A loop over stacked layers copies the parameters and the cache of a layer before each step.

    Args:
        layers: the stacked layers.
        n_layers: their number.

    Returns:
        The layers, which compute the same.
    """
    graphdef, stacked = nnx.split(layers)

    def separate(stacked: Any, index: Array) -> Layer:
        layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[index], stacked))
        _join_projections(layer)
        return layer

    joined, _ = nnx.split(nnx.eval_shape(separate, stacked, 0))
    parameters = jax.jit(lambda stacked, index: nnx.state(separate(stacked, index)))
    indices = range(n_layers)
    return [nnx.merge(joined, parameters(stacked, np.int32(i))) for i in indices]


def _join_projections(layer: Layer) -> None:
    """Replace the projections of a layer, in place, by those of :data:`JOINT`."""
    joint = {}
    for names in JOINT:
        if getattr(layer, names[0]) is not None:  # a layer of experts has no MLP
            joint[names[0]] = JointProjection([getattr(layer, name) for name in names])
            for name in names:
                setattr(layer, name, nnx.data(None))
    layer.joint = nnx.Dict(joint)


def apply_in_chunks(
    function: Callable[[Array], Array], x: Float[Array, "r T D"]
) -> Float[Array, "r T D"]:
    """Apply a function of single tokens to :data:`MLP_CHUNK` tokens at a time, or fewer.

    The gradient is computed in the same chunks. Rows that have no divisor near the chunk size are
    passed to ``function`` whole.

    Args:
        function: map from ``[r t D]`` to ``[r t D]``, independent between tokens.
        x: the tokens.

    Returns:
        The same as ``function(x)``.

    Examples:
        >>> apply_in_chunks(jnp.square, jnp.arange(6.0).reshape(1, 6, 1)).ravel().tolist()
        [0.0, 1.0, 4.0, 9.0, 16.0, 25.0]
    """
    n_tokens = x.shape[1]
    fewest = math.ceil(n_tokens / MLP_CHUNK)
    n_chunks = next((n for n in range(fewest, 2 * fewest) if n_tokens % n == 0), 1)
    if n_chunks == 1:
        return function(x)
    chunks = x.reshape(x.shape[0], n_chunks, -1, x.shape[2]).swapaxes(0, 1)
    return jax.lax.map(jax.checkpoint(function), chunks).swapaxes(0, 1).reshape(x.shape)


def _apply(norm: Norm | None, x: Array, split: ShardingPlan | None = None) -> Array:
    return x if norm is None else norm(x, split)


def _tokens(x: Float[Array, "r T D"]) -> Float[Array, "n D"]:
    return x.reshape(-1, x.shape[-1])
