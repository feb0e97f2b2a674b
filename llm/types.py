r"""Rows of tokens that travel to the model, and where in them the responses are.

One type serves every layout: a row may hold one whole sequence, or many pairs one after another,
each as *prompt, chosen, rejected* with the prompt written once. Shape legend of this package:

====== ==========================================================
letter meaning
====== ==========================================================
``n``  preference pairs
``r``  rows
``T``  tokens in a row
``c``  completion tokens of all responses
``k``  responses of a pair: chosen, rejected and, if it is another one, the baseline
``D``  width
``V``  vocabulary
``H``  heads, ``K`` head size, ``F`` hidden units, ``L`` layers
====== ==========================================================
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import jax
from jaxtyping import Bool, Float, Int

from rpo_theory.types import ArrayLike


class Role(enum.IntEnum):
    """Role of a response in its pair; the value is its column in arrays of shape ``[n k]``."""

    CHOSEN = 0
    REJECTED = 1
    BASELINE = 2


class Branch(enum.IntEnum):
    """Part of a pair that a token belongs to: the prompt, or the response with a role."""

    PROMPT = 0
    CHOSEN = 1 + Role.CHOSEN
    REJECTED = 1 + Role.REJECTED
    BASELINE = 1 + Role.BASELINE


@jax.tree_util.register_static
@dataclass(frozen=True)
class Bounds:
    """What is known of rows when a step is compiled.

    Attributes:
        roles: how many responses of a pair there may be: 2, or 3 with baseline responses.
        segments: the most segments of a row; None if unknown.
        longest: tokens of the longest prompt with a response; None if unknown.
    """

    roles: int = 3
    segments: int | None = None
    longest: int | None = None


class Rows(NamedTuple):
    """Tokens with all that attention needs to know.

    A token attends to itself and to earlier ones of its row that have its segment and are of the
    prompt or of its own branch. Sliding windows and rotary angles go by ``positions``, not by
    columns.

    Attributes:
        tokens: token ids; anything where there is padding, shape ``[r T]``.
        positions: place in the sequence that the token is read in, from 0; a rejected response
            that shares its prompt counts on from the prompt's end, shape ``[r T]``.
        segments: 0 for padding, otherwise which pair of the row, from 1, shape ``[r T]``.
        branches: values of :class:`Branch`, shape ``[r T]``.
        bounds: of the numbers above; where there are two roles, no work is compiled for a third.
    """

    tokens: Int[ArrayLike, "r T"]
    positions: Int[ArrayLike, "r T"]
    segments: Int[ArrayLike, "r T"]
    branches: Int[ArrayLike, "r T"]
    bounds: Bounds = Bounds()


class Completions(NamedTuple):
    """Tokens whose log-probability is wanted, padded to a fixed number.

    Attributes:
        place: ``row * T + column`` of the token *before* it, whose hidden state predicts it: the
            last one of the prompt for the first token of every response, shape ``[c]``.
        target: id of the token, shape ``[c]``.
        response: ``pair * k + role`` of the response it belongs to, role 0 chosen, 1 rejected,
            2 baseline; ``n * k`` for padding, shape ``[c]``.
    """

    place: Int[ArrayLike, " c"]
    target: Int[ArrayLike, " c"]
    response: Int[ArrayLike, " c"]


class Batch(NamedTuple):
    """Preference pairs, ready for a step.

    Attributes:
        rows: the tokens.
        completions: which of them count.
        lengths: tokens of every response, its end token among them; 0 for an absent pair,
            shape ``[n k]``.
        present: False for a pair that only fills the batch, shape ``[n]``.
        row_ids: number of the data row that each pair comes from, -1 if absent, shape ``[n]``.
        reference: cached reference log-probabilities, nats, shape ``[n k]``; None where the
            reference model runs along.
        weights: how often each pair counts, at least 0; None for once each, shape ``[n]``.
    """

    rows: Rows
    completions: Completions
    lengths: Int[ArrayLike, "n k"]
    present: Bool[ArrayLike, " n"]
    row_ids: Int[ArrayLike, " n"]
    reference: Float[ArrayLike, "n k"] | None = None
    weights: Float[ArrayLike, " n"] | None = None
