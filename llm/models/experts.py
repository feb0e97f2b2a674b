r"""Mixture of experts: a router sends each token to a few of many MLPs.

With router logits :math:`z = x W_r` and the set :math:`S` of the :math:`k` largest ones,

.. math:: y = \sum_{e\in S} p_e\, \mathrm{MLP}_e(x),\qquad p = \mathrm{softmax}(z),

where :math:`p` is divided by its sum over :math:`S` in some families. No token is dropped: tokens
are sorted by expert, and the MLPs of all experts are ragged matrix products over the sorted tokens.

On a mesh with an ``expert`` axis each device holds some of the experts. The tokens of its group are
gathered, every device applies its experts to them, and the results are summed and scattered back.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from llm.parallel.layout import ShardingPlan
from llm.precision import accumulation_dtype
from llm.types import Branch, Rows

from .activations import activate, clamped_swiglu
from .architecture import Architecture
from .quantization import QuantizedKernel


class RouterSums(NamedTuple):
    """Sums over tokens and layers that the auxiliary loss of a router is made of.

    Attributes:
        counts: number of tokens that each expert serves.
        probabilities: sum of each expert's probability.
        tokens: number of tokens.
    """

    counts: Float[Array, " E"]
    probabilities: Float[Array, " E"]
    tokens: Float[Array, ""]


class Routing(NamedTuple):
    """Experts of each token.

    Attributes:
        probabilities: softmax of the router logits.
        experts: indices of the experts that serve the token.
        weights: factors of their outputs.
    """

    probabilities: Float[Array, "n E"]
    experts: Int[Array, "n k"]
    weights: Float[Array, "n k"]


class Router(nnx.Module):
    """Linear map from tokens to the logits of the experts.

    Args:
        architecture: model with the number of experts, and how their weights are normalized.
        rngs: the matrix is drawn from the stream ``params``; a bias starts at zero.
        param_dtype: dtype of the parameters.
    """

    def __init__(
        self, architecture: Architecture, *, rngs: nnx.Rngs, param_dtype: DTypeLike
    ) -> None:
        """Draw the parameters."""
        a = architecture
        self.n_chosen: int = a.num_experts_per_tok
        self.normalized: bool = a.norm_topk_prob
        shape = (a.num_hidden_layers, a.hidden_size, a.num_experts)
        kernel = jax.random.normal(rngs.params(), shape, param_dtype) * a.hidden_size**-0.5
        self.kernel: nnx.Param[Array] = nnx.Param(kernel)
        bias = nnx.Param(jnp.zeros((shape[0], shape[2]), param_dtype))
        self.bias: nnx.Param[Array] | None = nnx.data(bias if a.expert_bias else None)

    def __call__(self, x: Float[Array, "n D"]) -> Routing:
        """Choose the experts of each token, computing in float32 at least."""
        wide = accumulation_dtype(x.dtype)
        logits = x.astype(wide) @ self.kernel[...].astype(wide)
        if self.bias is not None:
            logits = logits + self.bias[...].astype(wide)
        probabilities = jax.nn.softmax(logits, axis=-1)
        weights, experts = jax.lax.top_k(probabilities, self.n_chosen)
        if self.normalized:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        return Routing(probabilities, experts, weights.astype(x.dtype))


class ExpertProjection(nnx.Module):
    """Linear maps ``x W_e + b_e`` of all experts.

    Args:
        shape: numbers of layers, experts, inputs and outputs.
        bias: whether there are biases.
        rngs: ``W`` is drawn from the stream ``params``; ``b`` starts at zero.
        param_dtype: dtype of the parameters.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        bias: bool,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike,
    ) -> None:
        """Draw the parameters."""
        kernel = jax.random.normal(rngs.params(), shape, param_dtype) * shape[2] ** -0.5
        self.kernel: nnx.Param[Array] | QuantizedKernel = nnx.Param(kernel)
        zeros = nnx.Param(jnp.zeros((*shape[:2], shape[3]), param_dtype)) if bias else None
        self.bias: nnx.Param[Array] | None = nnx.data(zeros)

    def __call__(
        self,
        x: Float[Array, "m I"],
        sizes: Int[Array, " E"],
        expert: Int[Array, " m"],
        *,
        n_partial: int = 1,
    ) -> Float[Array, "m O"]:
        """Apply each expert to its tokens.

        Args:
            x: tokens, sorted by expert.
            sizes: number of tokens of each expert; the tokens after them have none.
            expert: index of the expert of each token.
            n_partial: number of devices whose outputs are summed; each adds its share of the bias.

        Returns:
            The outputs, finite and without meaning for tokens without an expert.
        """
        y = jax.lax.ragged_dot(x, self.kernel[...].astype(x.dtype), sizes)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[expert] / n_partial


class Experts(nnx.Module):
    """The MLPs of all experts, stacked over layers and experts.

    Args:
        architecture: sizes and switches.
        rngs: parameters are drawn from the stream ``params``.
        param_dtype: dtype of the parameters.
    """

    def __init__(
        self, architecture: Architecture, *, rngs: nnx.Rngs, param_dtype: DTypeLike
    ) -> None:
        """Draw the parameters."""
        a = architecture
        self.architecture: Architecture = a
        stack, width, units = (
            (a.num_hidden_layers, a.num_experts),
            a.hidden_size,
            a.intermediate_size,
        )

        def project(n_in: int, n_out: int) -> ExpertProjection:
            shape = (*stack, n_in, n_out)
            return ExpertProjection(shape, bias=a.expert_bias, rngs=rngs, param_dtype=param_dtype)

        self.gate_proj: ExpertProjection = project(width, units)
        self.up_proj: ExpertProjection = project(width, units)
        self.down_proj: ExpertProjection = project(units, width)

    def __call__(
        self, x: Float[Array, "n D"], routing: Routing, plan: ShardingPlan
    ) -> Float[Array, "n D"]:
        """Mix the outputs of the experts of each token.

        Args:
            x: tokens of the device.
            routing: their experts.
            plan: collectives of the devices that share the experts.

        Returns:
            The outputs, in the dtype of ``x``.
        """
        weights = plan.tp_broadcast(routing.weights)
        x, experts, weights = plan.gather_tokens((x, routing.experts, weights))
        n_experts = self.gate_proj.kernel.shape[0]
        local = experts.reshape(-1) - plan.expert_index() * n_experts
        # Experts of other devices come last, and serve nobody here.
        local = jnp.where((local >= 0) & (local < n_experts), local, n_experts)
        order = jnp.argsort(local, stable=True)
        sizes = jnp.bincount(local, length=n_experts).astype(jnp.int32)
        expert = jnp.minimum(local[order], n_experts - 1)
        is_served = (local < n_experts)[:, None]
        copies = jnp.repeat(x, experts.shape[1], axis=0)
        hidden = self._hidden_units(_permute(copies, order), sizes, expert)
        outputs = self.down_proj(hidden, sizes, expert, n_partial=plan.tensor)
        outputs = _permute(outputs, jnp.argsort(order))
        outputs = jnp.where(is_served, outputs, 0) * weights.reshape(-1, 1)
        mixed = outputs.reshape(*experts.shape, -1).sum(axis=1)
        return plan.scatter_tokens(plan.tp_reduce(mixed))

    def _hidden_units(self, x: Array, sizes: Array, expert: Array) -> Array:
        a = self.architecture
        gate, up = self.gate_proj(x, sizes, expert), self.up_proj(x, sizes, expert)
        if a.swiglu_limit is not None:
            return clamped_swiglu(gate, up, a.swiglu_alpha, a.swiglu_limit)
        return activate(gate, a.hidden_act) * up


def response_counts(rows: Rows) -> Int[Array, "r T"]:
    """Return how many responses each token of packed rows belongs to.

    Args:
        rows: the rows.

    Returns:
        The number of responses after a prompt, for its tokens; 1 for the tokens of a response, and
        for those of a prompt without one; 0 for padding.

    Examples:
        >>> one = jnp.ones((1, 4), int)
        >>> rows = Rows(one, one, jnp.array([[1, 1, 1, 0]]), jnp.array([[0, 1, 2, 0]]))
        >>> response_counts(rows).tolist()
        [[2, 1, 1, 0]]
    """
    segments, branches = jnp.asarray(rows.segments), jnp.asarray(rows.branches)
    n_rows, n_tokens = segments.shape
    row = jnp.arange(n_rows)[:, None]
    present = jnp.zeros((n_rows, n_tokens + 1, 1 + rows.bounds.roles), jnp.int32)
    present = present.at[row, segments, branches].set(1)
    responses = present[..., 1:].sum(axis=-1)[row, segments]
    counts = jnp.where(branches == int(Branch.PROMPT), jnp.maximum(responses, 1), 1)
    return jnp.where(segments > 0, counts, 0)


def router_sums(routing: Routing, counts: Float[Array, " n"]) -> RouterSums:
    """Sum the choices of a router over tokens.

    Args:
        routing: the experts of the tokens.
        counts: how often each token counts, see :func:`response_counts`.

    Returns:
        The sums, without a gradient in the numbers of tokens.
    """
    chosen = jax.nn.one_hot(routing.experts, routing.probabilities.shape[-1], dtype=counts.dtype)
    served = jnp.einsum("nke,n->e", chosen, counts)
    probabilities = jnp.einsum("ne,n->e", routing.probabilities, counts)
    return RouterSums(jax.lax.stop_gradient(served), probabilities, jnp.sum(counts))


def router_loss(sums: RouterSums, plan: ShardingPlan) -> Float[Array, ""]:
    r"""Return a device's share of the auxiliary loss that balances the load of the experts.

    .. math:: E \sum_e f_e\, P_e

    with :math:`f_e` the tokens that expert :math:`e` serves and :math:`P_e` the sum of its
    probabilities, both per token and layer. The loss is :math:`k` if all experts serve equally
    many tokens.

    Args:
        sums: sums over layers and over the tokens of the device.
        plan: sharding plan; the sums of all devices are added.

    Returns:
        The share; those of all devices add up to the loss. 0 without tokens.

    References:
        `fedus:22`, eq. 4 to 6, as ``transformers`` computes it.

    Examples:
        >>> from llm.parallel.layout import SINGLE_DEVICE
        >>> even = RouterSums(jnp.array([2.0, 2.0]), jnp.array([2.0, 2.0]), jnp.array(4.0))
        >>> float(router_loss(even, SINGLE_DEVICE))
        1.0
    """
    served, tokens = plan.batch_sum((sums.counts, sums.tokens))
    tokens = jnp.maximum(tokens, 1)
    return sums.counts.size * jnp.sum(served / tokens * sums.probabilities / tokens)


@jax.custom_vjp
def _permute(x: Float[Array, "m D"], order: Int[Array, " m"]) -> Float[Array, "m D"]:
    """Return rows in another order; the gradient is gathered, not scattered."""
    return x[order]


_permute.defvjp(lambda x, order: (x[order], order), lambda order, y: (y[jnp.argsort(order)], None))
