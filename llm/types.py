r"""Batches of preference pairs: packed rows of tokens, and the responses in them.

A row holds one whole sequence, or several pairs one after another, each as *prompt, chosen,
rejected* with a shared prompt. Shapes of this package are written in these letters:

====== ==================================================================================
letter size
====== ==================================================================================
``n``  preference pairs
``r``  rows
``T``  tokens of a row
``c``  completion tokens of all responses
``k``  responses of a pair: chosen, rejected and, if it is neither of them, the baseline;
       or of a ranked row, from best to worst
``D``  hidden state
``V``  vocabulary
``H``  query heads; ``G`` key and value heads; ``K`` size of a head
``F``  hidden units of the MLP
``L``  layers
====== ==================================================================================
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jaxtyping import Bool, Float, Int

from rpo_theory.types import ArrayLike


class Role(enum.IntEnum):
    """Role of a response in its pair; the value is its column in arrays of shape ``[n k]``.

    The best response of a ranked row has the column of the chosen one; the others follow in order.
    """

    CHOSEN = 0
    REJECTED = 1
    BASELINE = 2


class Branch(enum.IntEnum):
    """Part of a pair that a token belongs to: the prompt, or the response with a role.

    A token of the response at rank ``i`` of a ranked row, counted from 0, has the number ``1 + i``.
    """

    PROMPT = 0
    CHOSEN = 1 + Role.CHOSEN
    REJECTED = 1 + Role.REJECTED
    BASELINE = 1 + Role.BASELINE


@jax.tree_util.register_static
@dataclass(frozen=True)
class Bounds:
    """Static bounds on the contents of rows, known when a step is compiled.

    Attributes:
        roles: largest number of responses of a pair: 2, or 3 with baseline responses; or of a
            ranked row.
        segments: largest number of segments of a row; None if unknown.
        longest: number of tokens of the longest prompt with a response; None if unknown.
    """

    roles: int = len(Role)
    segments: int | None = None
    longest: int | None = None


class Rows(NamedTuple):
    """Packed rows of tokens, with the information that attention needs.

    A token attends to itself and to earlier tokens of its row and segment that belong to the prompt
    or to its own branch. Sliding windows and rotary angles use ``positions``, not columns.

    Attributes:
        tokens: token ids; any values at padding, shape ``[r T]``.
        positions: position of the token in its sequence, from 0. Both responses to a shared prompt
            continue at the end of the prompt. Shape ``[r T]``.
        segments: index of the token's pair in its row, from 1; 0 for padding, shape ``[r T]``.
        branches: values of :class:`Branch`, shape ``[r T]``.
        bounds: static bounds; attention is compiled for their number of responses.
    """

    tokens: Int[ArrayLike, "r T"]
    positions: Int[ArrayLike, "r T"]
    segments: Int[ArrayLike, "r T"]
    branches: Int[ArrayLike, "r T"]
    bounds: Bounds = Bounds()


class Completions(NamedTuple):
    """Scored tokens of the responses, padded to a fixed number.

    Attributes:
        flat_index: ``row * T + column`` of the preceding token, whose hidden state predicts this
            one; for the first token of a response, that of the last prompt token. Shape ``[c]``.
        target: id of the token, shape ``[c]``.
        response: response that the token belongs to, ``pair * k + role`` with a :class:`Role` or
            a rank; ``n * k`` for padding, shape ``[c]``.
    """

    flat_index: Int[ArrayLike, " c"]
    target: Int[ArrayLike, " c"]
    response: Int[ArrayLike, " c"]


class Batch(NamedTuple):
    """Preference pairs of a training step.

    Attributes:
        rows: tokens of prompts and responses.
        completions: the tokens of the responses in the rows.
        lengths: number of scored tokens of each response, including its end token; 0 for an absent
            pair or response, shape ``[n k]``.
        present: False for a pair that only pads the batch, shape ``[n]``.
        row_ids: index of the data row of each pair; -1 if absent, shape ``[n]``.
        reference: reference log-probabilities of the responses in nats, shape ``[n k]``; None if
            the objective needs no reference.
        weights: weight of each pair, at least 0; None for 1 each, shape ``[n]``.
        labels: probability that the chosen response is the better one; None for 1 each, shape
            ``[n]``.
        desirable: whether the response of each unpaired row is desirable, shape ``[n]``. Its second
            response is then one to another prompt. None for pairs.
        ranked: which responses each ranked row has, from best to worst, shape ``[n k]``. None for
            pairs.
    """

    rows: Rows
    completions: Completions
    lengths: Int[ArrayLike, "n k"]
    present: Bool[ArrayLike, " n"]
    row_ids: Int[ArrayLike, " n"]
    reference: Float[ArrayLike, "n k"] | None = None
    weights: Float[ArrayLike, " n"] | None = None
    labels: Float[ArrayLike, " n"] | None = None
    desirable: Bool[ArrayLike, " n"] | None = None
    ranked: Bool[ArrayLike, "n k"] | None = None
