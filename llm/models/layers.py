"""Parts of a decoder layer: projection, adapter, norm. All layers' parameters lie in one array.

A module made with ``stack=(L,)`` holds its parameters for all layers along a leading axis; inside
``lax.scan`` the same module is merged with one layer's slice, and it is only called there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float

from llm.precision import accumulation_dtype

from .architecture import Activation, Architecture
from .rope import Turn, rotate

PROJECTIONS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}

Mixer = Callable[[Array, Array, Array], tuple[Array, object]]
Exchange = Callable[[Array], Array]
PART = 4096
"""Tokens of a row whose hidden units are in memory at once, where memory is short."""
KEPT = "kept"
"""Name of what the backward pass can make everything else from, with no product done again."""


def keep(parts: Any) -> Any:
    """Name arrays :data:`KEPT`; the rest of a layer is norms, rotations and activations of them.

    Args:
        parts: a tree of arrays.

    Returns:
        The same tree; only what is kept for the backward pass changes.

    Examples:
        >>> [equation.params["name"] for equation in jax.make_jaxpr(keep)({"x": 1.0}).eqns]
        ['kept']
    """
    return jax.tree.map(lambda x: checkpoint_name(x, KEPT), parts)


def alone(x: Array) -> Array:
    """What a device tells the others where there are none.

    Args:
        x: what they would hear.

    Returns:
        The same.

    Examples:
        >>> alone(jnp.array([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """
    return x


@jax.custom_vjp
def product(x: Float[Array, "r T I"], kernel: Float[Array, "I O"]) -> Float[Array, "r T O"]:
    r"""The product ``x W``, with a gradient that is written out.

    .. math:: \bar x = \bar y W^\top,\qquad \bar W = \sum_t x_t \bar y_t^\top

    The rule that JAX derives is the same sum as the transpose of :math:`\bar y^\top x`. XLA then
    lays :math:`\bar y` out by columns where it is computed, and on a CPU that takes longer than
    the product: the backward pass of a decoder took 1.6 times as long.

    Args:
        x: of the same dtype as the kernel.
        kernel: :math:`W`.

    Returns:
        Of the same dtype.
    """
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(residuals: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    tokens = tuple(range(x.ndim - 1))
    over_tokens = ((tokens, tokens), ((), ()))
    into_x = jax.lax.dot_general(slope, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    # A product lays its first factor out by columns: let that be the smaller one.
    if x.shape[-1] > slope.shape[-1]:
        return into_x, jax.lax.dot_general(slope, x, over_tokens).T
    return into_x, jax.lax.dot_general(x, slope, over_tokens)


product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(
    x: Float[Array, "... D"], weight: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    r"""Divide by the root mean square, times a weight, with a gradient that is written out.

    .. math:: n = x\,s,\quad s = \Big(\tfrac1D\sum_d x_d^2 + \epsilon\Big)^{-1/2},\quad y = w\,n

    .. math:: \bar x = s\Big(w\bar y - n\,\tfrac1D\sum_d (w\bar y\,n)_d\Big),\quad
              \bar w = \sum_t \bar y_t n_t

    On a CPU the sums of the rule that JAX derives take seven times as long as those written here.

    Args:
        x: float32 at least.
        weight: :math:`w`, of the same dtype.
        epsilon: :math:`\epsilon`.

    Returns:
        :math:`y`, of the same dtype; NaN where the squares overflow.

    Examples:
        >>> rms_norm(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0]), 0.0).round(4).tolist()
        [0.8485, 2.2627]
    """
    return _rms_norm_forward(x, weight, epsilon)[0]


def _rms_norm_forward(
    x: Array, weight: Array, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon
    # Of an infinite mean the scale would be 0, and so would all that was too large.
    scale = jnp.where(jnp.isinf(mean), jnp.nan, jax.lax.rsqrt(mean))
    return x * scale * weight, (x, weight, scale)


def _rms_norm_backward(
    epsilon: float, residuals: tuple[Array, Array, Array], slope: Array
) -> tuple[Array, Array]:
    del epsilon
    x, weight, scale = residuals
    unit, weighed = x * scale, slope * weight
    mean = jnp.einsum("...d,...d->...", weighed, unit, precision="highest") / x.shape[-1]
    flat = (leaf.reshape(-1, x.shape[-1]) for leaf in (slope, unit))
    into_weight = jnp.einsum("td,td->d", *flat, precision="highest")
    return scale * (weighed - unit * mean[..., None]), into_weight


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


class Adapter(nnx.Module):
    """Low-rank addition to a projection: ``scale * (x A) B``.

    Args:
        stack: leading axes of the parameters.
        n_in: size of the input.
        n_out: size of the output.
        rank: of the product.
        scale: its factor.
        rngs: ``A`` is drawn from ``params``; ``B`` is zero.
        param_dtype: of both.
    """

    def __init__(
        self,
        stack: tuple[int, ...],
        n_in: int,
        n_out: int,
        rank: int,
        *,
        scale: float,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
    ) -> None:
        """Draw the parameters."""
        down = jax.random.normal(rngs.params(), (*stack, n_in, rank), param_dtype)
        self.a = nnx.LoRAParam(down * n_in**-0.5)
        self.b = nnx.LoRAParam(jnp.zeros((*stack, rank, n_out), param_dtype))
        self.scale = scale

    def __call__(self, x: Float[Array, "r T I"]) -> Float[Array, "r T O"]:
        """Add to a projection's output."""
        inner = product(x, self.a[...].astype(x.dtype))
        return product(inner, self.b[...].astype(x.dtype)) * self.scale


class Projection(nnx.Module):
    """``x W + b``, and what an adapter adds.

    Args:
        stack: leading axes of the parameters.
        n_in: size of the input.
        n_out: size of the output.
        bias: whether there is a ``b``.
        rngs: ``W`` is drawn from ``params``, with variance ``1 / n_in``; ``b`` is zero.
        param_dtype: of both.
    """

    def __init__(
        self,
        stack: tuple[int, ...],
        n_in: int,
        n_out: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
    ) -> None:
        """Draw the parameters."""
        kernel = jax.random.normal(rngs.params(), (*stack, n_in, n_out), param_dtype)
        self.kernel = nnx.Param(kernel * n_in**-0.5)
        self.bias = nnx.data(nnx.Param(jnp.zeros((*stack, n_out), param_dtype)) if bias else None)
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(self, x: Float[Array, "r T I"], total: Exchange = alone) -> Float[Array, "r T O"]:
        """Project, in the dtype of the input; ``total`` adds up what devices have of a product."""
        y = product(x, self.kernel[...].astype(x.dtype))
        y = total(y if self.adapter is None else y + self.adapter(x))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Norm(nnx.Module):
    """Divide by the root mean square, then multiply by the weight, or by one plus it.

    Args:
        shape: of the weight, leading axes included.
        architecture: its epsilon and kind of weight count.
        param_dtype: of the weight.
    """

    def __init__(
        self, shape: tuple[int, ...], architecture: Architecture, param_dtype: DTypeLike
    ) -> None:
        """Draw the parameters."""
        self.plus = 1.0 if architecture.norm_plus_one else 0.0
        self.epsilon = architecture.rms_norm_eps
        self.weight = nnx.Param(jnp.full(shape, 1.0 - self.plus, param_dtype))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Norm the last axis; float32 at least inside."""
        wide = x.astype(accumulation_dtype(x.dtype))
        weight = self.plus + self.weight[...].astype(wide.dtype)
        return jnp.asarray(rms_norm(wide, weight, self.epsilon)).astype(x.dtype)


class Layer(nnx.Module):
    """One layer of a decoder, or all of them along the leading axis of every parameter.

    Args:
        architecture: sizes and switches.
        rngs: parameters are drawn from ``params``.
        param_dtype: of the parameters.
    """

    def __init__(
        self, architecture: Architecture, *, rngs: nnx.Rngs, param_dtype: DTypeLike
    ) -> None:
        """Draw the parameters."""
        a, stack = architecture, (architecture.num_hidden_layers,)
        options = {"rngs": rngs, "param_dtype": param_dtype}
        n_queries, n_keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim

        def norm(size: int, wanted: bool = True) -> Norm | None:
            return Norm((*stack, size), a, param_dtype) if wanted else None

        self.head_dim = a.head_dim
        self.activation: Activation = a.hidden_act
        self.input_norm = nnx.data(norm(a.hidden_size))
        self.q_proj = Projection(stack, a.hidden_size, n_queries, bias=a.qkv_bias, **options)
        self.k_proj = Projection(stack, a.hidden_size, n_keys, bias=a.qkv_bias, **options)
        self.v_proj = Projection(stack, a.hidden_size, n_keys, bias=a.qkv_bias, **options)
        self.q_norm = nnx.data(norm(a.head_dim, a.qk_norm))
        self.k_norm = nnx.data(norm(a.head_dim, a.qk_norm))
        self.o_proj = Projection(stack, n_queries, a.hidden_size, bias=a.o_proj_bias, **options)
        self.post_attention_norm = nnx.data(norm(a.hidden_size, a.post_norms))
        self.mlp_norm = nnx.data(norm(a.hidden_size))
        self.gate_proj = Projection(
            stack, a.hidden_size, a.intermediate_size, bias=a.mlp_bias, **options
        )
        self.up_proj = Projection(
            stack, a.hidden_size, a.intermediate_size, bias=a.mlp_bias, **options
        )
        self.down_proj = Projection(
            stack, a.intermediate_size, a.hidden_size, bias=a.mlp_bias, **options
        )
        self.post_mlp_norm = nnx.data(norm(a.hidden_size, a.post_norms))

    def __call__(
        self,
        x: Float[Array, "r T D"],
        turn: Turn,
        mix: Mixer,
        *,
        spread: Exchange = alone,
        total: Exchange = alone,
        frugal: bool = False,
    ) -> tuple[Float[Array, "r T D"], object]:
        """Apply one layer.

        Args:
            x: the residual stream.
            turn: rotary angles of the tokens.
            mix: ``mix(queries, keys, values) -> (mixed, extra)``, the attention.
            spread: gives the devices that share the layer what they all read.
            total: adds up what each of them has of a product.
            frugal: keep hidden units of few tokens at a time, in the gradient too.

        Returns:
            The stream after the layer, and the extra.
        """
        normed = spread(_apply(self.input_norm, x))
        queries = rotate(_apply(self.q_norm, self._heads(self.q_proj(normed))), turn)
        keys = rotate(_apply(self.k_norm, self._heads(self.k_proj(normed))), turn)
        queries, keys, values = keep((queries, keys, self._heads(self.v_proj(normed))))
        mixed, extra = mix(queries, keys, values)
        attended = self.o_proj(mixed.reshape(*x.shape[:2], -1), total)
        x = keep(x + _apply(self.post_attention_norm, attended))
        normed = spread(_apply(self.mlp_norm, x))

        def feed(x: Float[Array, "r T D"]) -> Float[Array, "r T D"]:
            gate, up = keep((self.gate_proj(x), self.up_proj(x)))
            return self.down_proj(activate(gate, self.activation) * up, total)

        fed = by_parts(feed, normed) if frugal else feed(normed)
        return x + _apply(self.post_mlp_norm, fed), extra

    def _heads(self, x: Float[Array, "r T I"]) -> Float[Array, "r T H K"]:
        return x.reshape(*x.shape[:2], -1, self.head_dim)


def by_parts(
    function: Callable[[Array], Array], x: Float[Array, "r T D"], *, most: int = PART
) -> Float[Array, "r T D"]:
    """Apply a function of each token to some of them at a time, also in the gradient.

    Args:
        function: ``[r t D]`` to ``[r t D]``.
        x: the tokens.
        most: tokens of a row at a time; all at once where no number of equal parts is near.

    Returns:
        The same as ``function(x)``.

    Examples:
        >>> by_parts(jnp.square, jnp.arange(6.0).reshape(1, 6, 1), most=3).ravel().tolist()
        [0.0, 1.0, 4.0, 9.0, 16.0, 25.0]
    """
    n_tokens = x.shape[1]
    least = math.ceil(n_tokens / most)
    parts = next((n for n in range(least, 2 * least) if n_tokens % n == 0), 1)
    if parts == 1:
        return function(x)
    split = x.reshape(x.shape[0], parts, -1, x.shape[2]).swapaxes(0, 1)
    return jax.lax.map(jax.checkpoint(function), split).swapaxes(0, 1).reshape(x.shape)


def activate(x: Float[Array, "..."], kind: Activation) -> Float[Array, "..."]:
    """Activation of the gate.

    Args:
        x: any.
        kind: ``silu``, ``gelu`` or its approximation by tanh.

    Returns:
        Of the same shape and dtype.

    Examples:
        >>> round(float(activate(jnp.array(1.0), "silu")), 4)
        0.7311
    """
    if kind == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=kind == "gelu_pytorch_tanh")


def _apply(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)
