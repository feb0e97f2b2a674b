"""What a model must offer to be trained: hidden states for tokens, and its output embedding."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from jax import Array
from jaxtyping import Float

from llm.types import Rows


class Head(NamedTuple):
    r"""Output embedding: logits are :math:`h W^\top`, or :math:`c\tanh(h W^\top/c)`.

    Attributes:
        weight: :math:`W`, shape ``[V D]``.
        soft_cap: :math:`c`, or None.
        words_over: mesh axes that the words are split over, if they are: ``weight`` is then a
            device's own share.
    """

    weight: Float[Array, "V D"]
    soft_cap: float | None
    words_over: tuple[str, ...] = ()


@runtime_checkable
class LanguageModel(Protocol):
    """Anything that maps rows of tokens to hidden states can be trained."""

    def hidden_states(self, rows: Rows) -> Float[Array, "r T D"]:
        """Hidden states after the final norm."""
        ...

    def head(self) -> Head:
        """Output embedding and soft cap."""
        ...
