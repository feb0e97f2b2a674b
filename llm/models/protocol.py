"""Interface of a language model that can be trained: hidden states, and an output head."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from llm.attention.logits import apply_soft_cap
from llm.precision import accumulation_dtype
from llm.types import Rows

from .projections import multiply_few


class Head(NamedTuple):
    r"""Output head: logits are :math:`h W^\top`, or :math:`c\tanh(h W^\top/c)` with a soft cap.

    Attributes:
        weight: output embedding :math:`W`, shape ``[V D]``; a shard of it if the vocabulary is
            split.
        soft_cap: the cap :math:`c`; None for no cap.
        vocab_axes: mesh axes that the vocabulary is split over; empty on one device.
    """

    weight: Float[Array, "V D"]
    soft_cap: float | None
    vocab_axes: tuple[str, ...] = ()

    def logits(self, hidden: Float[Array, "s D"]) -> Float[Array, "s V"]:
        """Return the logits of the tokens in ``weight``, float32 at least.

        Args:
            hidden: hidden states; the product is computed in their dtype.

        Examples:
            >>> Head(jnp.array([[1.0], [3.0]]), None).logits(jnp.array([[2.0]])).tolist()
            [[2.0, 6.0]]
        """
        logits = jnp.einsum(
            "sd,vd->sv",
            hidden,
            self.weight.astype(hidden.dtype),
            preferred_element_type=accumulation_dtype(hidden.dtype),
        )
        return apply_soft_cap(logits, self.soft_cap)

    def logits_by_token(self, hidden: Float[Array, "s D"]) -> Float[Array, "s V"]:
        """Return :meth:`logits`, as the product ``W h`` that a CPU computes faster for few tokens.

        Args:
            hidden: hidden states; the product is computed in their dtype.

        Examples:
            >>> Head(jnp.array([[1.0], [3.0]]), None).logits_by_token(jnp.array([[2.0]])).tolist()
            [[2.0, 6.0]]
        """
        wide = accumulation_dtype(hidden.dtype)
        weight = self.weight.astype(hidden.dtype)
        logits = multiply_few(weight, hidden, preferred_element_type=wide)
        return apply_soft_cap(logits, self.soft_cap)


@runtime_checkable
class LanguageModel(Protocol):
    """A model that maps rows of tokens to hidden states, and hidden states to logits."""

    def hidden_states(self, rows: Rows) -> Float[Array, "r T D"]:
        """Return the hidden states after the final norm."""
        ...

    def head(self) -> Head:
        """Return the output head."""
        ...
